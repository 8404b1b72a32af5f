"""`lpjax_record.json`, beside the weights of a compressed checkpoint: how it was made, step by step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from lpjax._files import json
from lpjax._files.json import Count, Exponent, Plain, Positive, RecordError, Text
from lpjax._provenance import run_record
from lpjax._repr import short_repr
from lpjax._tree import walk
from lpjax.checkpoint import Checkpoint, lowrank_ranks
from lpjax.checkpoint.source import weight_bytes
from lpjax.weights.coded import stored_bytes
from lpjax.weights.dispatch import is_quantized, is_weight
from lpjax.weights.low_rank import LowRank

RECORD = "lpjax_record.json"
SCHEMA = "lpjax-record/1"


UNKNOWN = "unknown"
"""Method of a step whose method was not recorded."""


_NAMES_IN_FILE = {
    "error_entries": "objective_entries",
    "error_rows": "objective_rows",
    "error_weighted": "objective_weighted",
    "nnz": "entries",
}


class LayerRecord(msgspec.Struct, frozen=True, rename=_NAMES_IN_FILE):
    """The outcome for one selected leaf.

    Attributes:
        path: keys joined by slashes.
        shape: shape of the dense leaf, with all of its axes.
        rank: rank of the pair; None if the leaf stayed dense.
        dense_size, stored_size: parameters before and after.
        error_entries, error_rows: ‖A − Â‖_p / ‖A‖_p, unweighted, of the stored Â with single entries, over entries and
            over rows (outputs of a kernel, tokens of an embedding); 0 if dense.
        bound: upper bound of `error_entries` by the solver's ellipsoid, before factors are rounded to the leaf's dtype;
            None without an ellipsoid, and with weights, as it then bounds another norm.
        num_iters, converged: results of the solver; for a stack the largest number, and whether all converged.
        seconds: solve time excluding compilation, divided by the batch size.
        note: why the leaf is unchanged; empty if it is not.
        time_ratio: time of the layer relative to the dense one, by `break_even`; None if unknown.
        error_weighted: ‖A − Â‖ / ‖A‖ in the Frobenius norm under the row weights or statistics of the solve; None
            without any.
        nnz: number of single entries beside the pair.
        step, bits: rounding step or bits, as in `Choice`; None if not given, or not rounded.
        stored_bytes: bytes of a rounded layer in the file, scales included; None if it is not rounded.
        gap: largest relative decrease of the objective by any other pair of this rank, under the weights and before any
            rounding. 0 for "svd" at p = 2; None from solvers that minimise over entries, and with single entries.
    """

    path: Text
    shape: tuple[Positive, ...]
    rank: Positive | None
    dense_size: Count
    stored_size: Count
    error_entries: float = 0.0
    error_rows: float = 0.0
    bound: float | None = None
    num_iters: Count = 0
    converged: bool = True
    seconds: float = 0.0
    note: Text = ""
    time_ratio: float | None = None
    error_weighted: float | None = None
    nnz: Count = 0
    step: float | None = None
    bits: Positive | None = None
    stored_bytes: Count | None = None
    gap: float | None = None

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def rounded(self) -> bool:
        """Whether it is stored as integers times scales."""
        return self.stored_bytes is not None


@dataclasses.dataclass(frozen=True)
class Step:
    """One run of `lpjax compress`; unknown fields are None.

    Attributes:
        model: name of the compressed model, as on the command line.
        method, p, keep, rank, options: settings of the solver; the method is "several" if layers differ.
        patterns: the requested layers.
        parameters_before, parameters_after: number of parameters of the whole model.
        bytes_before, bytes_after: size of the files of weights.
        layers: records of the selected leaves; an unknown error is NaN.
        seed, versions, machine: see `run_record`.
        weighting: name of the weighting of errors; None without statistics.
        calibration: origin of the statistics: model, source, sha256, texts, tokens, target, seed.
        budget, budget_of, allocation: see `Plan`; None if ranks were chosen otherwise.
        sparse: largest share of a pair's parameters spent on single entries, over all layers; 0 without any.
    """

    model: Text | None = None
    method: Text | None = None
    p: float | None = None
    keep: float | None = None
    rank: Positive | None = None
    options: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    patterns: tuple[Text, ...] | None = None
    parameters_before: Count | None = None
    parameters_after: Count | None = None
    bytes_before: Count | None = None
    bytes_after: Count | None = None
    layers: tuple[LayerRecord, ...] = ()
    seed: Count | None = None
    versions: Mapping[str, Plain] = dataclasses.field(default_factory=dict)
    machine: Mapping[str, Plain] = dataclasses.field(default_factory=dict)
    weighting: Text | None = None
    calibration: Mapping[str, Plain] = dataclasses.field(default_factory=dict)
    budget: float | None = None
    budget_of: Text | None = None
    allocation: Text | None = None
    sparse: float = 0.0


@dataclasses.dataclass(frozen=True)
class Record:
    """The steps that made a checkpoint, the first one first.

    Attributes:
        steps: runs of `lpjax compress`; empty for a dense checkpoint.
        complete: whether a record was kept; otherwise the steps come from config.json and the weights.
    """

    steps: tuple[Step, ...]
    complete: bool = True

    @property
    def source(self) -> str | None:
        """Name of the dense model."""
        return self.steps[0].model if self.steps else None

    @property
    def layers(self) -> dict[str, tuple[int, LayerRecord]]:
        """path -> (step, record) of every selected leaf, from the last step that changed it, or else the last one."""
        layers: dict[str, tuple[int, LayerRecord]] = {}
        for i, step in enumerate(self.steps):
            for layer in step.layers:
                changed = (layer.rank is not None or layer.rounded) and not layer.note
                before = layers.get(layer.path)
                if changed or before is None or (before[1].rank is None and not before[1].rounded):
                    layers[layer.path] = (i, layer)
        return layers

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every factored leaf, by path."""
        return {path: layer.rank for path, (_, layer) in self.layers.items() if layer.rank is not None}


def record_text(record: Record) -> str:
    """`record` as the text of lpjax_record.json; numbers that are not finite become null."""
    return json.json_text({"schema": SCHEMA, "source": record.source, "steps": steps_document(record)})


def steps_document(record: Record) -> list[dict[str, Any]]:
    """The steps of `record` as JSON values; numbers that are not finite become null."""
    steps = [{**step, "p": json.exponent_text(step["p"])} for step in msgspec.to_builtins(record.steps)]
    return json.finite(steps)


def record_files(
    before: Checkpoint, params: Any, records: Sequence[LayerRecord], **settings: Any
) -> dict[str, Callable[[int], str]]:
    """The record of one `lpjax.compress`, for `extra_files` of `save_checkpoint`.

    Sizes, versions and the machine are filled in, and the steps that made `before` come first.

    Args:
        before: checkpoint before compression.
        params, records: results of `lpjax.compress`.
        **settings: further fields of `Step`, shown by `lpjax report`: model (name of the dense model, by which
            `lpjax recover` finds it), method, p, keep, rank, options, ….

    Raises:
        TypeError: a setting that `Step` does not have.
        RecordError: the record of `before` is damaged.
    """
    earlier = record_of(before).steps
    sizes = [sum(leaf.size for _, leaf in walk(tree)) for tree in (before.params, params)]
    known = {"method": UNKNOWN, "parameters_before": sizes[0], "parameters_after": sizes[1]} | settings
    step = Step(bytes_before=weight_bytes(before.source) or None, layers=tuple(records), **run_record(None), **known)

    def text(size: int) -> str:
        return record_text(Record((*earlier, dataclasses.replace(step, bytes_after=size))))

    return {RECORD: text}


def record_of(checkpoint: Checkpoint) -> Record:
    """How `checkpoint` was made: the record in its folder, or one from its config and weights; no steps if dense.

    Raises:
        RecordError: the record has another schema, or belongs to other weights.
    """
    ranks = lowrank_ranks(checkpoint.params)
    if not ranks and not any(is_quantized(leaf) for _, leaf in walk(checkpoint.params)):
        return Record(())
    path = None if checkpoint.source is None else checkpoint.source / RECORD
    if path is None or not path.exists():
        return _without_file(checkpoint)
    record = read_record(path)
    if record.ranks != ranks:
        differing = dict.fromkeys(name for name, _ in sorted(set(record.ranks.items()) ^ set(ranks.items())))
        raise RecordError(
            f"{path} is the record of other weights: the ranks differ at {', '.join([*differing][:5])}; "
            f"remove it to continue without a record"
        )
    return record


class _StoredLayer(LayerRecord, frozen=True, kw_only=True):
    rank: Positive | None = None
    error_entries: float = math.nan
    error_rows: float = math.nan
    seconds: float = math.nan


@dataclasses.dataclass(frozen=True)
class _StoredStep(Step):
    p: Exponent | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    layers: tuple[_StoredLayer, ...] = ()

    def __post_init__(self) -> None:
        if self.method is None:
            raise ValueError("method is missing")


class _StoredRecord(msgspec.Struct):
    steps: Annotated[tuple[_StoredStep, ...], msgspec.Meta(min_length=1)]


def read_record(path: Path) -> Record:
    """The record in a file.

    Raises:
        RecordError: it is of another schema; names the file and the key.
    """
    data = json.without_nulls(json.read_object(path, schema=SCHEMA))
    return Record(tuple(map(_step, json.as_type(data, _StoredRecord, str(path)).steps)))


def _step(stored: _StoredStep) -> Step:
    layers = tuple(LayerRecord(**msgspec.structs.asdict(layer)) for layer in stored.layers)
    known: dict[str, Any] = vars(stored) | {"layers": layers, "p": None if stored.p is None else float(stored.p)}
    return Step(**known)


def _without_file(checkpoint: Checkpoint) -> Record:
    """A record with the steps of config.json and the layers of the weights."""
    leaves = {path: leaf for path, leaf in walk(checkpoint.params) if is_weight(leaf)}
    block = checkpoint.compression or {}
    past = block.get("steps")
    past = past if isinstance(past, list) and all(isinstance(step, dict) for step in past) else [block]
    # A pair was made by the last step that names its path.
    last = {
        path: i
        for i, step in enumerate(past)
        for path in (step["paths"] if isinstance(step.get("paths"), list) else leaves)
        if isinstance(path, str)
    }
    steps = []
    for i, step in enumerate(past):
        own = [path for path in leaves if last.get(path, len(past) - 1) == i]
        layers = tuple(_layer_in_file(path, leaves[path]) for path in sorted(own))
        method = step.get("method")
        known = method if isinstance(method, str) else UNKNOWN
        steps.append(Step(None, known, json.exponent_of(step.get("p")), layers=layers))
    return Record(tuple(steps), complete=False)


def _layer_in_file(path: str, leaf: Any) -> LayerRecord:
    unknown, dense_size = math.nan, math.prod(leaf.shape)
    pair = isinstance(leaf, LowRank)
    return LayerRecord(
        path,
        tuple(leaf.shape),
        leaf.rank if pair else None,
        dense_size,
        leaf.size if pair else dense_size,
        unknown,
        unknown,
        seconds=unknown,
        nnz=leaf.nnz if pair else 0,
        stored_bytes=stored_bytes(leaf) if is_quantized(leaf) else None,
    )
