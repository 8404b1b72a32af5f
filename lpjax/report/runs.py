"""A compressed checkpoint on the page: the contents of its folder, and the comparison with the dense model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lpjax._tree import is_table, walk
from lpjax.checkpoint import Checkpoint, load_checkpoint
from lpjax.checkpoint.int8 import FACTORS, INT8
from lpjax.checkpoint.source import weight_bytes
from lpjax.compression import LayerRecord
from lpjax.compression.history import require_compressed, training_notes
from lpjax.compression.record import Record, record_of
from lpjax.evaluation.errors import Errors, Spectrum, check_dense, cut_spectrum, relative_errors, spectrum_of
from lpjax.evaluation.latency import Latency
from lpjax.inspection import Kind, kinds_of
from lpjax.weights.dispatch import is_weight

Scores = dict[str, float | None]
"""Scores by name; None for a score that is not finite."""


@dataclasses.dataclass
class Layer:
    """A selected leaf.

    Attributes:
        record: record of the step that factored it.
        step: number of that step, from 0.
        errors, spectrum: errors of the leaf and spectrum of the dense one; None if not measured.
    """

    record: LayerRecord
    step: int
    errors: Errors | None = None
    spectrum: Spectrum | None = None

    @property
    def path(self) -> str:
        """The path of the dense leaf."""
        return self.record.path


@dataclasses.dataclass
class Run:
    """A compressed checkpoint.

    Attributes:
        name: the folder, as given.
        label: short name.
        checkpoint: the model.
        record: record of its compression.
        layers: selected leaves, in the order of the model.
        parameters, dense_parameters: numbers of parameters of the whole model, now and dense.
        weight_bytes, folder_bytes: sizes of the weight files, and of all files except reports, in bytes.
        dense_bytes: size of the dense model's weight files, in bytes; None if not known.
        scores: scores by name.
        latency: latencies for each batch shape; empty if not measured.
        notes: notes for the reader.
    """

    name: str
    label: str
    checkpoint: Checkpoint
    record: Record
    layers: list[Layer]
    parameters: int
    dense_parameters: int
    weight_bytes: int
    folder_bytes: int
    dense_bytes: int | None
    scores: Scores = dataclasses.field(default_factory=dict)
    latency: Sequence[Latency] = ()
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def share(self) -> float:
        """Stored parameters over those of the dense model."""
        return self.parameters / self.dense_parameters

    @property
    def factored(self) -> list[Layer]:
        """The layers that are factored or rounded."""
        return [layer for layer in self.layers if layer.record.rank is not None or layer.record.rounded]

    @property
    def kept(self) -> float:
        """Stored parameters of the factored or rounded layers over their dense ones."""
        records = [layer.record for layer in self.factored]
        return sum(record.stored_size for record in records) / sum(record.dense_size for record in records)

    @property
    def kinds(self) -> list[Kind[Layer]]:
        """Compressed layers, grouped by shape, rank, and path without the layer number."""
        return kinds_of(self.factored, lambda layer: (layer.record.shape, layer.record.rank))


def read_run(name: str | Path) -> Run:
    """Read the folder of a compressed checkpoint.

    Raises:
        CheckpointError, RecordError: a file is damaged.
        ValueError: no weight is compressed, or the weights are not those of the record.
    """
    folder = Path(name)
    checkpoint = load_checkpoint(folder)
    record = record_of(checkpoint)
    require_compressed(record, name)
    leaves = dict(walk(checkpoint.params))
    known = record.layers
    layers = [Layer(layer, step) for step, layer in (known[path] for path in leaves if path in known)]
    for layer in (layer.record for layer in layers):
        leaf = leaves[layer.path]
        if (tuple(leaf.shape), leaf.size, math.prod(leaf.shape)) != (layer.shape, layer.stored_size, layer.dense_size):
            raise ValueError(f"{name} holds a {layer.path} that differs from its record; remove the record to continue")
    return Run(
        name=str(name),
        label=folder.resolve().name,
        checkpoint=checkpoint,
        record=record,
        layers=layers,
        parameters=sum(leaf.size for leaf in leaves.values()),
        dense_parameters=sum(math.prod(leaf.shape) for leaf in leaves.values()),
        weight_bytes=weight_bytes(folder),
        folder_bytes=sum(path.stat().st_size for path in _files(folder)),
        dense_bytes=record.steps[0].bytes_before,
        notes=list(_notes(folder, checkpoint, record, layers)),
    )


def _notes(folder: Path, checkpoint: Checkpoint, record: Record, layers: Sequence[Layer]) -> Iterator[str]:
    earlier = [{old.path for old in step.layers if old.rank} for step in record.steps]
    again = [layer.path for layer in layers if any(layer.path in paths for paths in earlier[: layer.step])]
    if again:
        yield (
            f"{len(again)} layers were factored again after an earlier step, such as {again[0]}. Their objectives and "
            "bounds are relative to the factors before, not to the dense matrix."
        )
    yield from training_notes(folder)
    if (checkpoint.compression or {}).get(FACTORS) == INT8:
        yield (
            "The file stores the factors in 8 bits; loading expands them to floating point. Bytes are those of the "
            "file, and errors include the rounding. The model in memory is neither smaller nor faster for it."
        )
    if not record.complete:
        yield (
            "The folder holds no lpjax_record.json, which lpjax compress writes: settings, solve times, versions and "
            "objectives are not known. Ranks and sizes are those of the files."
        )


def compare(run: Run, dense: Checkpoint, name: str, spectra: dict[str, np.ndarray]) -> None:
    """Fill in the errors and spectra of a run's layers.

    Args:
        run: run to fill in.
        dense: the dense model, called `name`.
        spectra: singular values of dense leaves by path; missing ones are added.

    Raises:
        ValueError: `dense` is itself compressed, or is another model.
    """
    leaves, whole = dict(walk(run.checkpoint.params)), dict(walk(dense.params))
    check_dense(dense, name)
    for path, leaf in leaves.items():
        if path not in whole or tuple(whole[path].shape) != tuple(leaf.shape):
            there = f"it has {list(whole[path].shape)} there" if path in whole else "it has no such leaf"
            raise ValueError(
                f"{name} is not the source of {run.name}, which has {path} of shape {list(leaf.shape)}: {there}"
            )
    for layer in run.factored:
        path, transpose = layer.path, not is_table(layer.path)
        if path not in spectra:
            spectra[path] = spectrum_of(whole[path], transpose=transpose)
        layer.errors = relative_errors(whole[path], leaves[path], transpose=transpose)
        rank = layer.record.rank
        layer.spectrum = cut_spectrum(spectra[path], min(layer.record.shape) if rank is None else rank)
        if layer.record.nnz or rank is None:
            layer.spectrum = layer.spectrum._replace(least=None)  # no bound with single entries, or without a rank
    kept = {path: leaf for path, leaf in leaves.items() if not is_weight(leaf)}
    # A plan may store dense weights in half precision.
    changed = [path for path, leaf in kept.items() if not np.array_equal(leaf, np.asarray(whole[path], leaf.dtype))]
    if changed:
        run.notes.append(
            f"{len(changed)} weights that are not factored differ from those of {name}, such as {changed[0]}. The "
            "model was trained further, or the baseline is another one."
        )


def distinguish(runs: Sequence[Run]) -> None:
    """Replace equal labels by the full names."""
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
