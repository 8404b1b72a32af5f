"""Matrices with known answers, and the table of solvers that property tests run over."""

from __future__ import annotations

import numpy as np

SOLVERS = ["svd", "lewis", "lowner", "irls_rows", "irls_entries", "admm_entries"]
ITERATIVE = ["irls_rows", "irls_entries", "admm_entries"]
OBJECTIVE = {"irls_rows": "rows"}  # the others: entries


def heavy_tailed(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Student-t entries with 2 degrees of freedom: full rank, with outliers of all sizes."""
    return np.random.default_rng(seed).standard_t(2, size=(n, d))


def low_rank(n: int, d: int, rank: int, seed: int = 0) -> np.ndarray:
    """A Gaussian matrix of exactly the given rank."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d))


def truncated_svd(matrix: np.ndarray, rank: int) -> np.ndarray:
    """LAPACK's best rank-k approximation in the Frobenius norm, in double precision."""
    u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def norm(residual: np.ndarray, p: float, over: str = "entries", weights: np.ndarray | None = None) -> float:
    """The lp objective by its definition, in double precision."""
    residual = np.asarray(residual, np.float64)
    weights = np.ones(residual.shape[0]) if weights is None else np.asarray(weights, np.float64)
    sums = (np.abs(residual) ** p).sum(axis=1) if over == "entries" else np.linalg.norm(residual, axis=1) ** p
    return float((weights * sums).sum() ** (1 / p))


def product(solution) -> np.ndarray:
    """left @ right in double precision."""
    return np.asarray(solution.left, np.float64) @ np.asarray(solution.right, np.float64)


def subspace_distance(right: np.ndarray, truth: np.ndarray) -> float:
    """Sine of the largest angle between the row spaces of two matrices."""
    a = np.linalg.qr(np.asarray(right, np.float64).T)[0]
    b = np.linalg.qr(np.asarray(truth, np.float64).T)[0]
    return float(np.linalg.norm(b - a @ (a.T @ b), 2))
