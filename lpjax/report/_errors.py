"""How far factored layers are from the dense ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from lpjax.inspection import LeafRecord, inspect_params
from lpjax.weights.low_rank import LowRank

_ENTRIES = 2**20  # of a block in double precision


class Errors(NamedTuple):
    """‖A − LR‖ / ‖A‖ of one layer, single entries taken off, too; None for A = 0.

    Attributes:
        frobenius: (Σ_ij r_ij²)^½.
        entries: Σ_ij |r_ij|, the ℓ1 norm of the entries.
        rows: Σ_i ‖r_i‖₂, the (2,1) norm; rows are tokens of an embedding, outputs of a kernel.
    """

    frobenius: float | None
    entries: float | None
    rows: float | None


class Spectrum(NamedTuple):
    """Of the dense matrix.

    Attributes:
        values: singular values, descending.
        least: smallest possible Frobenius error of the rank at hand, that of the SVD.
    """

    values: np.ndarray
    least: float | None


def relative_errors(dense: Any, pair: LowRank, *, turned: bool) -> Errors:
    """Errors of `pair` against the matrix that it replaced, in double precision and a block of rows at a time.

    Args:
        dense: the leaf, (n, d).
        pair: what stands for it.
        turned: whether the rows of A are the leaf's columns, as those of a kernel are.
    """
    matrix = np.asarray(dense)
    if turned:
        matrix, pair = matrix.T, pair.T
    sums = np.zeros((2, 3))
    height = max(1, _ENTRIES // matrix.shape[1])
    for start, made in pair.blocks(height):
        block = matrix[start : start + height].astype(np.float64)
        residual = block - made
        for i, part in enumerate((residual, block)):
            norms = np.linalg.norm(part, axis=1)
            sums[i] += np.sum(norms**2), np.sum(np.abs(part)), np.sum(norms)
    sums[:, 0] = np.sqrt(sums[:, 0])
    return Errors(*(float(part / whole) if whole > 0 else None for part, whole in sums.T))


def dense_records(params: Any, paths: Iterable[str]) -> dict[str, LeafRecord]:
    """Records of the dense leaves at `paths`, with their singular values."""
    wanted = set(paths)
    if not wanted:
        return {}
    found = inspect_params(params, select=lambda path, _: path in wanted, keep=())
    return {leaf.path: leaf for leaf in found.leaves}


def spectrum(values: np.ndarray, rank: int) -> Spectrum:
    """The spectrum with what a rank leaves out."""
    squares = (values / values[0]) ** 2 if values[0] > 0 else values
    total = float(squares.sum())
    return Spectrum(values, float(np.sqrt(squares[rank:].sum() / total)) if total else None)
