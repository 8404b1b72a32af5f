"""Errors of factored layers with respect to the dense ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lpjax._tree import walk
from lpjax.checkpoint import Checkpoint, load_checkpoint
from lpjax.checkpoint.source import find_model
from lpjax.compression import Record
from lpjax.inspection import singular_values
from lpjax.weights.dispatch import is_weight
from lpjax.weights.low_rank import LowRank
from lpjax.weights.quantized import Quantized

_ENTRIES = 2**20  # entries of a block in double precision


class Errors(NamedTuple):
    """‖A − Â‖ / ‖A‖ of one layer, Â = LR plus its single entries; None for A = 0.

    Attributes:
        frobenius: in the norm (Σ_ij r_ij²)^½.
        error_entries: in Σ_ij |r_ij|, the ℓ1 norm of the entries.
        error_rows: in Σ_i ‖r_i‖₂, the (2,1) norm; rows are tokens of an embedding, outputs of a kernel.
    """

    frobenius: float | None
    error_entries: float | None
    error_rows: float | None


class Spectrum(NamedTuple):
    """The spectrum of a dense matrix.

    Attributes:
        values: singular values, descending.
        least: smallest possible relative Frobenius error at the given rank, that of the SVD; None for A = 0.
    """

    values: np.ndarray
    least: float | None


def relative_errors(dense: Any, factors: LowRank | Quantized, *, transpose: bool) -> Errors:
    """Errors of `factors` with respect to the matrix they replace, in double precision, one block of rows at a time.

    Args:
        dense: the dense leaf, (n, d).
        factors: its replacement.
        transpose: whether the rows of A are the leaf's columns, as for a kernel.
    """
    matrix = np.asarray(dense)
    if transpose:
        matrix, factors = matrix.T, factors.T
    sums = np.zeros((2, 3))
    height = max(1, _ENTRIES // matrix.shape[1])
    for start, approximation in factors.blocks(height):
        block = matrix[start : start + height].astype(np.float64)
        for i, part in enumerate((block - approximation, block)):
            norms = np.linalg.norm(part, axis=1)
            sums[i] += np.sum(norms**2), np.sum(np.abs(part)), np.sum(norms)
    sums[:, 0] = np.sqrt(sums[:, 0])
    return Errors(*(float(part / whole) if whole > 0 else None for part, whole in sums.T))


def spectrum_of(dense: Any, *, transpose: bool) -> np.ndarray:
    """Singular values of a leaf, descending; `transpose` as for `relative_errors`."""
    matrix = np.asarray(dense)
    return singular_values(matrix.T if transpose else matrix)


def cut_spectrum(values: np.ndarray, rank: int) -> Spectrum:
    """The spectrum, and the error of the best approximation of this rank."""
    squares = (values / values[0]) ** 2 if values[0] > 0 else values
    total = float(squares.sum())
    return Spectrum(values, float(np.sqrt(squares[rank:].sum() / total)) if total else None)


def check_dense(checkpoint: Checkpoint, name: str) -> None:
    """Refuse a factored or quantized checkpoint, called `name`, as the dense model.

    Raises:
        ValueError: a leaf is factored or quantized; names the first.
    """
    for path, leaf in walk(checkpoint.params):
        if is_weight(leaf):
            kind = "factored" if isinstance(leaf, LowRank) else "quantized"
            raise ValueError(f"{name} is itself {kind}, at {path}; expected a dense model as `baseline`")


def load_dense(named: str | None, record: Record, smaller: Path) -> tuple[str, Checkpoint]:
    """Load the dense model to compare a compressed one with; returns its name, too.

    Args:
        named: folder or hub id of the dense model; by default the one in the record.
        record, smaller: record and folder of the compressed model.

    Raises:
        ValueError: no dense model is named or recorded, the recorded one cannot be loaded, or it is itself compressed.
        OSError, CheckpointError: as `load_checkpoint`, if `named` is given.
    """
    name = named or record.source
    if name is None:
        raise ValueError(f"{smaller} does not record its dense model; pass it as `baseline`")
    try:
        dense = load_checkpoint(find_model(name))
    except (OSError, ValueError) as error:
        if named:
            raise
        where = f"{smaller} records that as its dense model; pass its current location as `baseline`"
        raise ValueError(f"{error}; {where}") from error
    check_dense(dense, name)
    return name, dense
