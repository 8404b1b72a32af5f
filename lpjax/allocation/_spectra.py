"""Singular values of a matrix under its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.dtypes import canonicalize_dtype

from lpjax._numbers import solving_dtype
from lpjax.inspection import roots_of_gram, singular_values
from lpjax.weighting.metric import Metrics, on_both_sides, shrunk, symmetric_roots
from lpjax.weights.low_rank import LowRank


def weighted_singular_values(leaf: Any, metrics: Metrics) -> np.ndarray:
    """Singular values of H^{1/2} A G^{1/2}, descending, on the host.

    The larger metric needs no root. If it is H, and X = A G^{1/2}, they are the square roots of the eigenvalues of
    XᵀHX, computed in double precision as in `singular_values`; eigenvectors of a 3072 × 3072 metric would take several
    times as long. For a pair, they are computed from the QR decompositions of its weighted factors.
    """
    if isinstance(leaf, LowRank) and leaf.sparse is None:
        return _of_pair(leaf, metrics)
    matrix = np.concatenate([rows for _, rows in leaf.blocks(2048)]) if isinstance(leaf, LowRank) else np.asarray(leaf)
    matrix = matrix.astype(leaf.dtype)
    matrix = np.asarray(matrix, solving_dtype(canonicalize_dtype(matrix.dtype)))
    if matrix.shape[0] < matrix.shape[1]:
        matrix, metrics = matrix.T, Metrics(metrics.columns, metrics.rows)
    rows, columns = metrics
    rooted = rows is not None and (rows.base.ndim == 1 or rows.power != 1 or matrix.dtype == np.float64)
    sides = rows if rooted else None, columns
    halves = [None if metric is None else symmetric_roots(metric, matrix.dtype)[0] for metric in sides]
    half = np.asarray(on_both_sides(halves, matrix))
    if rows is None or rooted:
        return singular_values(half)
    half = half.astype(np.float64)
    return roots_of_gram(half.T @ shrunk(rows, np.float64, np) @ half, max(matrix.shape))


def _of_pair(pair: LowRank, metrics: Metrics) -> np.ndarray:
    """The singular values of T₁T₂ᵀ, with H^{1/2} L = Q₁T₁ and G^{1/2} Rᵀ = Q₂T₂, in double precision."""
    dtype = solving_dtype(canonicalize_dtype(pair.dtype))
    triangles = []
    for factor, metric in zip((pair.left, pair.right.T), metrics, strict=True):
        wide = np.asarray(factor).astype(np.float64)
        if metric is not None:
            half = np.asarray(symmetric_roots(metric, dtype)[0]).astype(np.float64)
            wide = half[:, None] * wide if half.ndim == 1 else half @ wide
        triangles.append(np.linalg.qr(wide, mode="r"))
    return np.linalg.svd(triangles[0] @ triangles[1].T, compute_uv=False)
