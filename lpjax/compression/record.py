"""`lpjax_record.json`: how a compressed checkpoint was made, step by step, beside its weights."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lpjax._files.json import Fields, RecordError, read_object
from lpjax._provenance import run_record
from lpjax.checkpoint import Checkpoint, lowrank_ranks
from lpjax.checkpoint.source import weight_bytes
from lpjax.compression._compress import LayerRecord
from lpjax.models.names import walk

RECORD = "lpjax_record.json"
SCHEMA = "lpjax-record/1"


UNKNOWN = "unknown"
"""Method of a step that nobody told."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One `lpjax compress`. What is not known of an earlier one is None.

    Attributes:
        model: what was compressed, as the command line named it.
        method, p, keep, rank, options: of the solver; "several" where layers had different ones.
        patterns: which layers were asked for.
        parameters_before, parameters_after: of the whole net.
        bytes_before, bytes_after: of the files of weights.
        layers: what became of each selected leaf; an objective that is not known is NaN.
        seed, versions, machine: as `run_record` tells them.
        weighting: name of the weighting that the errors were under, None without a calibration.
        calibration: where that came from: model, source, sha256 of its texts, how many texts and tokens, target, seed.
        budget, budget_of, allocation: as of `Plan`; None where ranks came otherwise.
        sparse: share of what a pair may store that single entries got, the most of all layers; 0 where none has any.
    """

    model: str | None = None
    method: str | None = None
    p: float | None = None
    keep: float | None = None
    rank: int | None = None
    options: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    patterns: tuple[str, ...] | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    layers: tuple[LayerRecord, ...] = ()
    seed: int | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    machine: Mapping[str, str] = dataclasses.field(default_factory=dict)
    weighting: str | None = None
    calibration: Mapping[str, str] = dataclasses.field(default_factory=dict)
    budget: float | None = None
    budget_of: str | None = None
    allocation: str | None = None
    sparse: float = 0.0


@dataclasses.dataclass(frozen=True)
class Record:
    """The steps that made a checkpoint, the first one first.

    Attributes:
        steps: at least one.
        complete: whether a record was kept; else the steps are what config.json and the weights tell.
    """

    steps: tuple[Step, ...]
    complete: bool = True

    @property
    def source(self) -> str | None:
        """The dense net, as it was named."""
        return self.steps[0].model if self.steps else None

    @property
    def layers(self) -> dict[str, tuple[int, LayerRecord]]:
        """path -> (step, record) of every selected leaf: of the last step that factored it, or else the last."""
        found: dict[str, tuple[int, LayerRecord]] = {}
        for i, step in enumerate(self.steps):
            for layer in step.layers:
                factored = layer.rank is not None and not layer.note
                if factored or layer.path not in found or found[layer.path][1].rank is None:
                    found[layer.path] = (i, layer)
        return found

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every factored leaf, by path."""
        return {path: layer.rank for path, (_, layer) in self.layers.items() if layer.rank is not None}


def record_text(record: Record) -> str:
    """`record` as the text of lpjax_record.json; numbers that are not finite become null."""
    steps = [dataclasses.asdict(step) for step in record.steps]
    return json.dumps({"schema": SCHEMA, "source": record.source, "steps": finite(steps)}, indent=2) + "\n"


def record_files(
    before: Checkpoint, params: Any, records: Sequence[LayerRecord], **settings: Any
) -> dict[str, Callable[[int], str]]:
    """The record of one `lpjax.compress`, as `save_checkpoint` takes it by `extra_files`.

    Sizes, versions and the machine are filled in, and the steps that made `before` come first.

    Args:
        before: what was compressed.
        params, records: what `lpjax.compress` returned.
        **settings: further fields of `Step`, as far as you want the page of `lpjax report` to tell them: model (the
            name of the dense net, by which `lpjax recover` finds it), method, p, keep, rank, options, ….

    Raises:
        TypeError: a setting that `Step` does not have.
        RecordError: the record of `before` is damaged.
    """
    earlier = record_of(before).steps
    sizes = [sum(leaf.size for _, leaf in walk(tree)) for tree in (before.params, params)]
    told = {"method": UNKNOWN, "parameters_before": sizes[0], "parameters_after": sizes[1]} | settings
    step = Step(bytes_before=weight_bytes(before.source) or None, layers=tuple(records), **run_record(None), **told)

    def text(size: int) -> str:
        return record_text(Record((*earlier, dataclasses.replace(step, bytes_after=size))))

    return {RECORD: text}


def record_of(checkpoint: Checkpoint) -> Record:
    """How `checkpoint` was made: by the record in its folder, or without one by what it holds; dense: no steps.

    Raises:
        RecordError: the record has another schema, or is that of other weights.
    """
    ranks = lowrank_ranks(checkpoint.params)
    if not ranks:
        return Record(())
    path = None if checkpoint.source is None else checkpoint.source / RECORD
    if path is None or not path.exists():
        return _told(checkpoint, ranks)
    record = read_record(path)
    if record.ranks != ranks:
        differing = dict.fromkeys(name for name, _ in sorted(set(record.ranks.items()) ^ set(ranks.items())))
        raise RecordError(
            f"{path} is the record of other weights: the ranks differ at {', '.join([*differing][:5])}; "
            f"remove it to go on without a record"
        )
    return record


def read_record(path: Path) -> Record:
    """The record in a file.

    Raises:
        RecordError: it is of another schema; names the file and the key.
    """
    fields = read_object(path, SCHEMA)
    steps = tuple(_read_step(step) for step in fields.objects("steps"))
    if not steps:
        raise RecordError(f"{path}: steps is missing or empty; expected a list of at least one object")
    return Record(steps)


def _read_step(fields: Fields) -> Step:
    return Step(
        model=fields.text("model"),
        method=fields.need("method", fields.text("method")),
        p=fields.number("p"),
        keep=fields.number("keep"),
        rank=fields.count("rank", 1),
        options=fields.numbers("options") or {},
        weighting=fields.text("weighting"),
        calibration=fields.plain("calibration"),
        budget=fields.number("budget"),
        budget_of=fields.text("budget_of"),
        allocation=fields.text("allocation"),
        sparse=fields.number("sparse") or 0.0,
        patterns=fields.texts("patterns"),
        parameters_before=fields.count("parameters_before"),
        parameters_after=fields.count("parameters_after"),
        bytes_before=fields.count("bytes_before"),
        bytes_after=fields.count("bytes_after"),
        layers=tuple(_read_layer(layer) for layer in fields.objects("layers")),
        seed=fields.count("seed"),
        versions=fields.plain("versions"),
        machine=fields.plain("machine"),
    )


def _read_layer(fields: Fields) -> LayerRecord:
    def number(key: str) -> float:
        value = fields.number(key)
        return math.nan if value is None else value

    converged = fields.flag("converged")
    return LayerRecord(
        path=fields.need("path", fields.text("path")),
        shape=fields.need("shape", fields.counts("shape")),
        rank=fields.count("rank", 1),
        dense_size=fields.need("dense_size", fields.count("dense_size", 1)),
        stored_size=fields.need("stored_size", fields.count("stored_size")),
        objective_entries=number("objective_entries"),
        objective_rows=number("objective_rows"),
        bound=fields.number("bound"),
        num_iters=fields.count("num_iters") or 0,
        converged=True if converged is None else converged,
        seconds=number("seconds"),
        note=fields.text("note") or "",
        time_ratio=fields.number("time_ratio"),
        objective_weighted=fields.number("objective_weighted"),
        entries=fields.count("entries") or 0,
    )


def _told(checkpoint: Checkpoint, ranks: Mapping[str, int]) -> Record:
    """The steps as config.json names them, and the layers as they lie in the file."""
    leaves = dict(walk(checkpoint.params))
    block = checkpoint.compression or {}
    past = block.get("steps")
    past = past if isinstance(past, list) and all(isinstance(step, dict) for step in past) else [block]
    # A pair is that of the last step that made one of its leaf.
    last = {
        path: i
        for i, step in enumerate(past)
        for path in (step["paths"] if isinstance(step.get("paths"), list) else ranks)
        if isinstance(path, str)
    }
    steps = []
    for i, step in enumerate(past):
        own = [path for path in ranks if last.get(path, len(past) - 1) == i]
        layers = tuple(_layer_in_file(path, leaves[path]) for path in sorted(own))
        method, p = step.get("method"), step.get("p")
        steps.append(
            Step(
                method=method if isinstance(method, str) else UNKNOWN,
                p=float(p) if isinstance(p, int | float) and abs(p) <= 4 else None,
                layers=layers,
            )
        )
    return Record(tuple(steps), complete=False)


def _layer_in_file(path: str, leaf: Any) -> LayerRecord:
    unknown = math.nan
    return LayerRecord(path, tuple(leaf.shape), leaf.rank, math.prod(leaf.shape), leaf.size, unknown, unknown,
                       seconds=unknown, entries=leaf.entries)  # fmt: skip


def finite(value: Any) -> Any:
    """`value` with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
