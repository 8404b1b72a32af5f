"""The unit triangular factor and the pivots of a metric: M = Uᵀ diag(d) U."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lpjax._check import check_all_finite

DAMPING = 0.05
"""Multiple of its mean eigenvalue that is added to a metric before rounding under it. Feedback relies on rare
directions more than a factorization does: 0.05 was the best of 0.001, 0.01, 0.05 and 0.1 on all-MiniLM-L6-v2."""


class Triangle(NamedTuple):
    """M = Uᵀ diag(d) U, so that ‖x‖_M² = Σ_i d_i (x_i + Σ_{j>i} U_ij x_j)².

    Attributes:
        upper: U, unit upper triangular, shape (m, m); None for the identity.
        pivots: d > 0, shape (m,).
    """

    upper: Float[np.ndarray, "m m"] | None
    pivots: Float[np.ndarray, " m"]


def triangle_of(metric: Any, size: int, damping: float = DAMPING) -> Triangle:
    """The triangle of a metric with `damping` times its mean eigenvalue added.

    Args:
        metric: symmetric positive semidefinite matrix (size, size); its diagonal (size,) if it is diagonal, which is
            not damped; or None for the identity.
        size: number of rows.
        damping: 0 or more.

    Raises:
        ValueError: the metric has another shape, is not finite, or is not positive semidefinite.
    """
    if metric is None:
        return Triangle(None, np.ones(size))
    metric = np.asarray(metric, np.float64)
    if metric.shape not in ((size,), (size, size)):
        raise ValueError(f"a metric has shape {metric.shape}; expected ({size},) or ({size}, {size})")
    check_all_finite("a metric", np.all(np.isfinite(metric)))
    diagonal = metric if metric.ndim == 1 else np.diagonal(metric)
    with np.errstate(over="ignore"):
        mean = float(diagonal.mean()) if size else 0.0
    if not np.isfinite(mean):
        raise ValueError("a metric is too large for double precision; expected a smaller multiple of it")
    if np.any(diagonal < 0):
        raise ValueError("a metric has a negative diagonal entry; expected a positive semidefinite one")
    if mean == 0:  # all weights are 0: use equal ones
        return Triangle(None, np.ones(size))
    if metric.ndim == 1:
        return Triangle(None, np.maximum(metric, mean * 1e-6))
    damped = metric + damping * mean * np.eye(size)
    try:
        root = np.linalg.cholesky(damped).T
    except np.linalg.LinAlgError:
        raise ValueError("a metric is not positive semidefinite") from None
    pivots = np.diagonal(root)
    return Triangle(root / pivots[:, None], pivots**2)


def present(metric: Any) -> Any:
    """`metric`, or None, for equal weights, if it is all zeros."""
    return None if metric is None or not np.any(metric) else metric


def under_metric(metric: Any, part: np.ndarray, at: slice) -> np.ndarray:
    """H times `part`, rows `at` of a matrix: all of them unless H is diagonal."""
    if metric is None:
        return part
    metric = np.asarray(metric, np.float64)
    return metric[at][:, None] * part if metric.ndim == 1 else metric @ part
