"""One compressed checkpoint for the page: what its folder tells, and what the dense net adds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lpjax.checkpoint import Checkpoint, load_checkpoint
from lpjax.checkpoint.int8 import FACTORS, INT8
from lpjax.checkpoint.source import weight_bytes
from lpjax.compression import LayerRecord
from lpjax.compression.history import export_note, training_notes
from lpjax.compression.record import Record, Step, record_of
from lpjax.inspection import Kind, LeafRecord, kinds_of
from lpjax.models.names import walk
from lpjax.report._errors import Errors, Spectrum, dense_records, relative_errors, spectrum
from lpjax.report._latency import Latency
from lpjax.select import is_table
from lpjax.weights.low_rank import LowRank, is_lowrank

Found = dict[str, float | None]
"""Scores by name; None where one was not finite."""


@dataclasses.dataclass
class Layer:
    """A leaf that was selected.

    Attributes:
        path, shape: of the dense leaf.
        rank: None where it stayed dense.
        size, stored: parameters before and after.
        record: of the step that it was factored in, whose number is `step`.
        errors, spectrum: None where not measured.
    """

    path: str
    shape: tuple[int, ...]
    rank: int | None
    size: int
    stored: int
    record: LayerRecord
    step: int
    errors: Errors | None = None
    spectrum: Spectrum | None = None


@dataclasses.dataclass
class Run:
    """A compressed checkpoint.

    Attributes:
        name: the folder as it was named.
        label: a short name.
        record: how it was made.
        layers: that were selected, in the order of the net.
        parameters, dense_parameters: of the whole net.
        weight_bytes: of the files of weights; folder_bytes: of all files but reports.
        dense_bytes: of the dense net's files of weights, None where not known.
        scores: by name.
        latency: for each shape of batch; None where not measured.
        notes: what a reader should know.
    """

    name: str
    label: str
    record: Record
    layers: list[Layer]
    parameters: int
    dense_parameters: int
    weight_bytes: int
    folder_bytes: int
    dense_bytes: int | None
    scores: Found = dataclasses.field(default_factory=dict)
    latency: list[Latency] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def share(self) -> float:
        """Stored parameters of the dense net's."""
        return self.parameters / self.dense_parameters

    @property
    def factored(self) -> list[Layer]:
        """The layers that are pairs."""
        return [layer for layer in self.layers if layer.rank is not None]

    @property
    def last(self) -> Step:
        """The step that made it."""
        return self.record.steps[-1]

    @property
    def kinds(self) -> list[tuple[Kind, list[Layer]]]:
        """Factored layers of one shape and rank whose paths differ in the layer's number."""
        by_path = {layer.path: layer for layer in self.factored}
        leaves = [LeafRecord(x.path, x.shape, "", x.stored, 0.0, x.rank) for x in self.factored]
        return [(kind, [by_path[leaf.path] for leaf in kind.leaves]) for kind in kinds_of(leaves)]


def read_run(name: str | Path) -> tuple[Run, Checkpoint]:
    """What the folder of a compressed checkpoint tells.

    Raises:
        CheckpointError, RecordError: a damaged file, or a folder without a factored weight.
    """
    folder = Path(name)
    checkpoint = load_checkpoint(folder)
    record = record_of(checkpoint)
    if not record.steps:
        raise ValueError(f"{name} is a dense checkpoint; expected one that `lpjax compress` wrote{export_note(folder)}")
    leaves = dict(walk(checkpoint.params))
    known = record.layers
    layers = [
        Layer(path, layer.shape, layer.rank, layer.dense_size, layer.stored_size, layer, step)
        for path, (step, layer) in ((path, known[path]) for path in leaves if path in known)
    ]
    for layer in layers:
        leaf = leaves[layer.path]
        stored = leaf.size
        if tuple(leaf.shape) != layer.shape or (stored, math.prod(leaf.shape)) != (layer.stored, layer.size):
            raise ValueError(f"{name} has another {layer.path} than its record tells; remove the record to go on")
    run = Run(
        name=str(name),
        label=folder.resolve().name,
        record=record,
        layers=layers,
        parameters=sum(leaf.size for leaf in leaves.values()),
        dense_parameters=sum(math.prod(leaf.shape) for leaf in leaves.values()),
        weight_bytes=weight_bytes(folder),
        folder_bytes=sum(path.stat().st_size for path in _files(folder)),
        dense_bytes=record.steps[0].bytes_before,
    )
    again = [
        layer.path
        for layer in layers
        if any(old.path == layer.path and old.rank for step in record.steps[: layer.step] for old in step.layers)
    ]
    if again:
        run.notes.append(
            f"Pairs of an earlier step that were made smaller: {len(again)}, {again[0]} for one. The goals and bounds "
            "of these layers are relative to the pair before, not to the dense matrix."
        )
    run.notes += training_notes(folder)
    if (checkpoint.compression or {}).get(FACTORS) == INT8:
        run.notes.append(
            "Its file has factors in 8 bits, which are made floating numbers again on loading: bytes are those of the "
            "file, and errors have the rounding in them. The net in memory is as large, and as fast, as before."
        )
    if not record.complete:
        run.notes.append(
            "The folder holds no lpjax_record.json, which lpjax compress writes: what its settings, seconds, versions "
            "and objectives were is not known. Ranks and sizes are those of the files."
        )
    return run, checkpoint


def compare(run: Run, checkpoint: Checkpoint, dense: Checkpoint, name: str, records: dict[str, LeafRecord]) -> None:
    """Fill in the errors and spectra of a run's layers.

    Args:
        run: to be filled in.
        checkpoint: its net.
        dense: the dense net, called `name`.
        records: of dense leaves by path; those that are missing are added.

    Raises:
        ValueError: `dense` is factored itself, or is another net.
    """
    leaves, whole = dict(walk(checkpoint.params)), dict(walk(dense.params))
    check_dense(dense, name)
    for path, leaf in leaves.items():
        if path not in whole or tuple(whole[path].shape) != tuple(leaf.shape):
            found = f"it has {list(whole[path].shape)} there" if path in whole else "it has no such leaf"
            raise ValueError(
                f"{name} is not the net that {run.name} was made of, which has {path} {list(leaf.shape)}: {found}"
            )
    paths = [layer.path for layer in run.factored]
    records |= dense_records(dense.params, [path for path in paths if path not in records])
    for layer in run.factored:
        turned = not is_table(layer.path)
        layer.errors = relative_errors(whole[layer.path], leaves[layer.path], turned=turned)
        values = records[layer.path].singular_values
        if values is not None and layer.rank is not None:
            layer.spectrum = spectrum(values, layer.rank)
            if layer.record.nnz:
                layer.spectrum = layer.spectrum._replace(least=None)  # with single entries less is possible
    changed = [path for path, leaf in leaves.items() if not is_lowrank(leaf) and not _same(leaf, whole[path])]
    if changed:
        run.notes.append(
            f"Weights that are not factored differ from those of {name}: {len(changed)}, {changed[0]} for one. The net "
            "was trained further, or the baseline is another one."
        )


def check_dense(dense: Checkpoint, name: str) -> None:
    """Refuse a baseline that is factored.

    Raises:
        ValueError: as said.
    """
    pairs = [path for path, leaf in walk(dense.params) if isinstance(leaf, LowRank)]
    if pairs:
        raise ValueError(f"{name} is factored itself, at {pairs[0]}; expected the dense net as --baseline")


def name_apart(runs: Sequence[Run]) -> None:
    """Give runs of one label their whole names."""
    labels = [run.label for run in runs]
    for run in runs:
        if labels.count(run.label) > 1:
            run.label = run.name


def _files(folder: Path) -> Iterator[Path]:
    """The folder's own files and those of stages of sentence-transformers, without pages such as this one."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from (file for file in sorted(path.iterdir()) if file.is_file())
        elif path.is_file() and path.suffix != ".html" and not path.name.startswith("."):
            yield path


def _same(leaf: Any, other: Any) -> bool:
    return bool(np.array_equal(np.asarray(leaf), np.asarray(other)))
