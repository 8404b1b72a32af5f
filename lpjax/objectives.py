"""The ℓp objectives that solvers minimise, and the error bounds of the geometric solvers.

Two objectives, named after the unit of an outlier (docs/algorithms/index.md):

    entries:  (Σ_i ω_i Σ_j |r_ij|^p)^{1/p}          an outlier is one entry
    rows:     (Σ_i ω_i ‖r_i‖_C^p)^{1/p}             an outlier is one row, ‖x‖_C² = xᵀCx

They are equal at p = 2 with C = I, where both are the Frobenius norm. At p = ∞ they are the largest |r_ij| and the
largest ‖r_i‖_C of the rows with ω_i > 0.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.dtypes import canonicalize_dtype
from jaxtyping import Array, Float, Scalar

from lpjax._check import check_name, check_whole
from lpjax._exponents import largest_exponent, ldexp, scaled
from lpjax._numbers import check_fit, numbers, require_representable
from lpjax._powers import at_exponent, by_exponent, root_of_scale, roots, size

Over = Literal["entries", "rows"]


def blocked_sum(values: Float[Array, " n"]) -> Scalar:
    """Sum of a long vector in blocks of about √n, so that √n instead of n rounding errors add up."""
    block = max(1, round(values.shape[0] ** 0.5))
    padded = jnp.pad(values, (0, -values.shape[0] % block))
    return jnp.sum(jnp.sum(padded.reshape(-1, block), axis=1))


def row_norms(residual: Float[Array, "n d"], metric: Float[Array, "d d"] | None = None) -> Float[Array, " n"]:
    """‖r_i‖_C of every row; C = I if `metric` is None."""
    if metric is None:
        return jnp.sqrt(jnp.sum(residual**2, axis=1))
    squared = jnp.sum(jnp.matmul(residual, metric, precision="highest") * residual, axis=1)
    return jnp.sqrt(jnp.maximum(squared, 0))


def power_sums(
    residual: Float[Array, "n d"],
    p: float | Scalar,
    over: Over = "entries",
    metric: Float[Array, "d d"] | None = None,
) -> Float[Array, " n"]:
    """Σ_j |r_ij|^p (entries) or ‖r_i‖_C^p (rows) of every row i."""
    if over == "rows":
        return row_norms(residual, metric) ** p
    # A branch, not a select: at p = 1 and 2 no power is computed, unless p itself is batched.
    return jax.lax.switch(
        jnp.where(p == 1, 0, jnp.where(p == 2, 1, 2)),
        [
            lambda r: jnp.sum(jnp.abs(r), axis=1),
            lambda r: jnp.sum(r * r, axis=1),
            lambda r: jnp.sum(jnp.abs(r) ** p, axis=1),
        ],
        residual,
    )


def row_sizes(
    residual: Float[Array, "n d"],
    p: Scalar,
    over: Over = "entries",
    metric: Float[Array, "d d"] | None = None,
) -> Float[Array, " n"]:
    """(Σ_j |r_ij|^p)^{1/p} (entries) or ‖r_i‖_C (rows) of every row i, for p > 2, ∞ included."""
    return row_norms(residual, metric) if over == "rows" else size(residual, p, axis=1)


def check_over(over: Any, metric: Any) -> None:
    """Refuse an unknown objective, and a metric for entries.

    Raises:
        ValueError: either.
    """
    check_name("over", over, get_args(Over))
    if metric is not None and over == "entries":
        raise ValueError('`metric` measures whole rows; pass over="rows", or leave it out')


def lp_norm(
    residual: Any,
    p: float | Scalar,
    over: Over = "entries",
    *,
    row_weights: Any = None,
    metric: Any = None,
) -> Scalar:
    """ℓp norm of a residual: (Σ_i ω_i Σ_j |r_ij|^p)^{1/p}, or (Σ_i ω_i ‖r_i‖_C^p)^{1/p} over rows.

    Args:
        residual: matrix (n, d) of real numbers: an array, a list, a data frame. It is scaled inside, so that numbers
            near either end of the dtype's range, subnormal ones included, neither overflow nor vanish.
        p: exponent, above 0, ∞ included; may be traced.
        over: "entries" or "rows".
        row_weights: ω ≥ 0, shape (n,); ones by default. Rows of weight 0 are ignored.
        metric: C, symmetric positive semidefinite, shape (d, d); the identity by default. Only over "rows".

    Returns:
        A scalar of the residual's dtype; float32 for half precision, and for integers without x64. NaN or infinite if
        the residual is, and infinite if the norm exceeds that dtype.

    Raises:
        ValueError: `over` is unknown, p is not above 0, an argument is not an array of real numbers, weights or
            metric do not fit the residual, or a metric is given for entries.
    """
    check_over(over, metric)
    residual = numbers("residual", residual)
    if residual.ndim != 2:
        raise ValueError(f"`residual` has shape {residual.shape}; expected a matrix (n, d)")
    if not isinstance(p, Tracer) and not (np.ndim(p) == 0 and np.asarray(p).dtype.kind in "iuf" and float(p) > 0):
        raise ValueError(f"`p` is {p}; expected a number above 0")
    row_weights = None if row_weights is None else numbers("row_weights", row_weights)
    metric = None if metric is None else numbers("metric", metric)
    check_fit(residual.shape, row_weights, metric)
    # Half precision is not enough for p or for a sum of many terms.
    dtype = canonicalize_dtype(residual.dtype)
    dtype = canonicalize_dtype(np.float64) if not jnp.issubdtype(dtype, jnp.floating) else dtype
    dtype = jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype
    require_representable("residual", residual, dtype)
    residual, p = jnp.asarray(residual, dtype), jnp.asarray(p, dtype)
    row_weights, metric = (None if x is None else jnp.asarray(x, dtype) for x in (row_weights, metric))
    return _norm(residual, p, over, row_weights, metric)


@functools.partial(jax.jit, static_argnames="over")
def _norm(residual: Array, p: Scalar, over: Over, row_weights: Array | None, metric: Array | None) -> Scalar:
    weight = metric_exponent = jnp.zeros((), jnp.int32)
    if metric is not None:
        metric_exponent = largest_exponent(metric) // 2
        metric = scaled(metric, -2 * metric_exponent)
    if row_weights is not None:
        residual = jnp.where(row_weights[:, None] == 0, 0, residual)
        row_weights = at_exponent(row_weights, p)
        weight = largest_exponent(row_weights)
        row_weights = scaled(row_weights, -weight)
    exponent = largest_exponent(residual)
    residual = scaled(residual, -exponent)

    def by_sums(p: Scalar) -> Scalar:
        sums = power_sums(residual, p, over, metric)
        return blocked_sum(sums if row_weights is None else row_weights * sums) ** (1 / p)

    def by_sizes(p: Scalar) -> Scalar:
        sizes = row_sizes(residual, p, over, metric)
        return size(sizes if row_weights is None else roots(row_weights, p) * sizes, p)

    factor, root = root_of_scale(weight, p)
    return ldexp(by_exponent(p, by_sums, by_sizes) * factor, exponent + metric_exponent + root)


def tail(singular_values: Any, rank: int) -> Scalar:
    """(Σ_{i>k} s_i²)^{1/2} for descending singular values, shape (r,), and k = rank."""
    beyond = _spectrum(singular_values)[_nonnegative(rank) :]
    exponent = largest_exponent(beyond)
    return ldexp(jnp.sqrt(jnp.sum(scaled(beyond, -exponent) ** 2)), exponent)


def operator_bound(singular_values: Any, rank: int, distortion: float | Scalar) -> Scalar:
    """Upper bound of ‖A − A_k‖_{2→p} = max_{‖x‖₂=1} ‖(A − A_k)x‖_p: distortion · s_{k+1}, for every p.

    Args:
        singular_values: D of the ‖·‖_p-SVD of A, descending, shape (r,).
        rank: k; at k = r the bound is 0.
        distortion: c with ‖Ax‖_p ≤ c‖x‖_M, `Ellipsoid.upper`.
    """
    return distortion * _next(singular_values, rank)


def lower_bound(
    singular_values: Any,
    rank: int,
    distortion: float | Scalar = 1.0,
    dim: int = 1,
    p: float | Scalar = 2.0,
    over: Over = "entries",
) -> Scalar:
    """Lower bound of ‖A − B‖_p over all B of rank k: distortion · s_{k+1}, times d^{1/p−1/2} over entries for p > 2.

    Some unit x in the span of the first k + 1 axes has Bx = 0, so ‖(A − B)x‖_p = ‖Ax‖_p ≥ c‖x‖_M ≥ c·s_{k+1}. For each
    row e of A − B, |⟨e, x⟩| ≤ ‖e‖₂, and ‖e‖₂ ≤ ‖e‖_p for p ≤ 2, ‖e‖₂ ≤ d^{1/2−1/p}‖e‖_p for p ≥ 2 by Hölder's
    inequality.

    Args:
        singular_values: D of the ‖·‖_p-SVD of A, descending, shape (r,).
        rank: k.
        distortion: c with c‖x‖_M ≤ ‖Ax‖_p, `Ellipsoid.lower`; 1 for p ≤ 2.
        dim: d, the number of columns of A; only used for p > 2 over entries.
        p: exponent, 1 or more, ∞ included; only used over entries.
        over: "entries" or "rows".
    """
    spread = dim ** (0.5 - 1 / jnp.maximum(p, 2)) if over == "entries" else 1.0
    return distortion * _next(singular_values, rank) / spread


def entries_bound(singular_values: Any, rank: int, distortion: float | Scalar, dim: int, p: float | Scalar) -> Scalar:
    """Upper bound of ‖A − A_k‖_p, entrywise: distortion · d^{max(1/p−1/2, 0)} · (Σ_{i>k} s_i²)^{1/2}.

    Column j of A − A_k is A times a projected unit vector, at most c times as long as that vector in the ellipsoid's
    norm, and the squares of these lengths add up to Σ_{i>k} s_i². An ℓp norm of d lengths is at most d^{1/p−1/2} times
    their ℓ2 norm for p ≤ 2, and at most that norm for p ≥ 2.

    Args:
        singular_values: D of the ‖·‖_p-SVD of A, descending, shape (r,).
        rank: k.
        distortion: c as in `operator_bound`.
        dim: d, the number of columns of A.
        p: exponent, 1 or more, ∞ included.
    """
    return distortion * dim ** jnp.maximum(1 / p - 0.5, 0) * tail(singular_values, rank)


def _next(singular_values: Any, rank: int) -> Scalar:
    """s_{k+1}; 0 past the last."""
    values = _spectrum(singular_values)
    known = _nonnegative(rank) < values.shape[0]
    return jnp.asarray(values[rank] if known else 0, values.dtype)


def _spectrum(values: Any) -> Array:
    values = jnp.asarray(numbers("singular_values", values))
    if values.ndim != 1:
        raise ValueError(f"`singular_values` has shape {values.shape}; expected (r,)")
    return values.astype(jnp.float32) if jnp.finfo(values.dtype).bits < 32 else values


def _nonnegative(rank: Any) -> int:
    rank = int(rank) if isinstance(rank, np.integer) else rank
    check_whole("`rank`", rank, 0)
    return rank
