"""Singular values of a matrix under its weights."""

from __future__ import annotations

import numpy as np
from jax.dtypes import canonicalize_dtype

from lpjax._metrics import Sides, on_both_sides, shrunk, symmetric_roots
from lpjax.inspect import roots_of_gram, singular_values
from lpjax.solvers._problem import solving_dtype


def weighted_singular_values(matrix: np.ndarray, metrics: Sides) -> np.ndarray:
    """Those of H^{1/2} A G^{1/2}, descending, on the host.

    Of the larger metric no root is needed: with X = A G^{1/2}, and H the larger, they are those of XᵀHX. It is in
    double precision, as in `singular_values`, which see. The eigenvectors of a 3072 × 3072 metric would take several
    times as long.
    """
    matrix = np.asarray(matrix, solving_dtype(canonicalize_dtype(matrix.dtype)))
    if matrix.shape[0] < matrix.shape[1]:
        matrix, metrics = matrix.T, Sides(metrics.columns, metrics.rows)
    rows, columns = metrics
    rooted = rows is not None and (rows.base.ndim == 1 or rows.power != 1 or matrix.dtype == np.float64)
    sides = rows if rooted else None, columns
    halves = [None if metric is None else symmetric_roots(metric, matrix.dtype)[0] for metric in sides]
    half = np.asarray(on_both_sides(halves, matrix))
    if rows is None or rooted:
        return singular_values(half)
    half = half.astype(np.float64)
    return roots_of_gram(half.T @ shrunk(rows, np.float64, np) @ half, max(matrix.shape))
