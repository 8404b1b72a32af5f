"""A lower bound of the optimum over all pairs of a rank, from one Gram matrix (docs/algorithms/certificate.md).

Let Q be the projection onto the complement of any k-dimensional subspace, x_i the rows, t_i = ‖Qx_i‖. For every v ≥ 0

    Σ_i v_i t_i² = tr(Q Σ_i v_i x_i x_iᵀ) ≥ τ(v) = Σ_{j>k} λ_j(Σ_i v_i x_i x_iᵀ)            (Ky Fan).

    p ≤ 2:  as t_i ≤ ‖x_i‖,  t_i^p ≥ ‖x_i‖^{p−2} t_i²;  so  Σ ω_i t_i^p ≥ τ(v),  v_i = ω_i‖x_i‖^{p−2}.
    p > 2:  Hölder's inequality,  (Σ ω_i t_i^p)^{2/p} ≥ τ(v) / (Σ ω_i u_i^q)^{1/q},  v_i = ω_i u_i,  q = p/(p − 2),
            for every u ≥ 0. With u_i = r_i^{p−2} of a solution's residuals r_i it is exact if its subspace is the top
            one of Σ v_i x_i x_iᵀ: for p > 2 a fixed point of IRLS is optimal.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from lpjax._lapack import eigenvalues, singular_values
from lpjax.objectives import Over, blocked_sum
from lpjax.solvers._core.problem import Scaled
from lpjax.solvers._core.rows import Rows, map_rows, over_devices
from lpjax.solvers._core.solution import Solution
from lpjax.solvers._core.spectrum import gram_of_rows, triangle_of_rows

_LARGEST_POWER = 32.0  # of residuals, as a weight: at p = ∞ one row alone would have a weight, and no tail
_SMALL = 2**-7  # the share of the tail that rounding may take before QR replaces the Gram matrix


def factors_of(solution: Any) -> tuple[Any, Any]:
    """Left and right of a `Solution`, a `LowRank` or a pair.

    Raises:
        ValueError: there are single entries besides; bounds are of factors alone.
    """
    if getattr(solution, "sparse", None) is not None:
        raise ValueError("`solution` has single entries besides its factors; expected factors alone")
    return (solution.left, solution.right) if hasattr(solution, "left") else solution


def certified(problem: Scaled, solution: Solution, over: Over, singular: Float[Array, " d"] | None = None) -> Solution:
    """`solution`, whose right factor has orthonormal rows, with its lower bound.

    Args:
        problem, solution: before `finish`.
        over: its objective.
        singular: singular values of diag(√ω) A, if they are known: at p = 2 they give the bound.
    """

    def anew() -> Scalar:
        return rows_bound(problem, solution.right)

    if singular is None:
        bound = anew()
    else:
        values = jax.lax.stop_gradient(singular) ** 2
        tail = lowered_tail(values, problem.rank, problem.rows.shape[0])
        near = (problem.p == 2) & (tail >= (1 - _SMALL) * jnp.sum(values[problem.rank :]))
        bound = jax.lax.cond(near, lambda: lowered_root(tail, problem.p), anew)
    return solution._replace(lower_bound=bound * from_rows(problem, over))


def from_rows(problem: Scaled, over: Over) -> Scalar | float:
    """The factor that makes a bound over rows one over `over`.

    By power means, Σ_j |r_j|^p ≥ ‖r‖^p for p ≤ 2, and ≥ d^{1−p/2}‖r‖^p for p ≥ 2.
    """
    columns = jnp.asarray(problem.rows.shape[1], problem.p.dtype)
    return 1.0 if over == "rows" else jnp.where(problem.p > 2, columns ** (1 / problem.p - 0.5), 1)


def rows_bound(problem: Scaled, right: Float[Array, "k d"]) -> Scalar:
    """At most (Σ_i ω_i ‖x_i − l_i R‖^p)^{1/p} of every pair of the rank, p > 0; not differentiated.

    Args:
        problem: rows and weights; p may be infinite.
        right: R of a solution, orthonormal rows. Any R gives a bound; it is used for p > 2.
    """
    known = jax.lax.stop_gradient((problem.rows, problem.row_weights, problem.p, right))
    problem, right = problem._replace(rows=known[0], row_weights=known[1], p=known[2]), known[3]
    p, dtype = problem.p, problem.rows.dtype
    info = jnp.finfo(dtype)

    def by_length() -> tuple[Array, Array]:
        lengths = map_rows(norms, problem.rows)
        # A row whose square is below the dtype's range is left out, which only lowers the bound.
        seen = lengths > jnp.sqrt(info.tiny / info.eps)
        factors = jnp.where(seen, jnp.where(seen, lengths, 1) ** (p - 2), 0)
        return factors, jnp.ones((), dtype)

    def by_residual() -> tuple[Array, Array]:
        return holder_weights(problem, residual_norms(problem.rows, right) ** 2)

    factors, divisor = jax.lax.cond(p > 2, by_residual, by_length)
    tail = least_tail(weighted_rows(problem, factors), problem.rank)
    return lowered_root(tail / divisor, jnp.minimum(p, 2))


def holder_weights(problem: Scaled, squares: Float[Array, " n"]) -> tuple[Float[Array, " n"], Scalar]:
    """u_i = t_i^{p−2} and (Σ ω_i u_i^q)^{1/q} for p > 2, of squares t², in units of the largest."""
    p, tiny = problem.p, jnp.finfo(squares.dtype).tiny
    largest = over_devices(jax.lax.pmax, jnp.max(squares), problem.rows.axes)
    factors = (squares / jnp.where(largest > 0, largest, 1)) ** (jnp.minimum(p - 2, _LARGEST_POWER) / 2)
    share = 1 - 2 / jnp.where(p > 2, p, 4)  # 1/q
    powers = factors ** (1 / share)
    powers = powers if problem.row_weights is None else problem.row_weights * powers
    total = over_devices(jax.lax.psum, blocked_sum(powers), problem.rows.axes)
    return factors, jnp.maximum(total, tiny) ** share


def weighted_rows(problem: Scaled, factors: Float[Array, " n"]) -> Rows:
    """Rows √(ω_i u_i) x_i."""
    weights = factors if problem.row_weights is None else problem.row_weights * factors
    return dataclasses.replace(problem.rows, row_factors=jnp.sqrt(weights))


def lowered_root(power: Scalar, p: Scalar) -> Scalar:
    """power^{1/p}, lowered by the rounding errors of powers: a few eps of the exponent that they take."""
    info = jnp.finfo(power.dtype)
    known = power >= info.tiny
    some = jnp.where(known, power, 1)
    safe = 1 - 16 * info.eps * (1 + jnp.abs(jnp.log(some)) / p)
    return jnp.where(known, jnp.maximum(some ** (1 / p) * safe, 0), 0)


def least_tail(rows: Rows, rank: int) -> Scalar:
    """At most Σ_{j>k} σ_j², by a margin for rounding errors.

    The Gram matrix of n rows has an error of √n·eps of its trace, a sum of as many rounding errors of either sign, and
    LAPACK's eigenvalues one of eps of the largest each; four times these is the margin. If it takes more than a small
    share of the tail, the singular values of the triangle of a QR decomposition take the place of the eigenvalues. They
    are those of a matrix that is nearer than √d·eps·‖A‖_F, which the root of the tail is lowered by (Mirsky).
    """
    n, d = rows.shape
    if n < d:
        # Every device has all rows of a wide matrix. Its transpose has the same singular values.
        return least_tail(Rows(rows.read().T), rank)
    if rank >= d:
        return jnp.zeros((), rows.dtype)
    eps = jnp.finfo(rows.dtype).eps
    values = jnp.maximum(eigenvalues(gram_of_rows(rows))[::-1], 0)
    by_gram = lowered_tail(values, rank, n)

    def by_triangle() -> Scalar:
        singular = singular_values(triangle_of_rows(rows))
        root = jnp.sqrt(jnp.sum(singular[rank:] ** 2)) - d**0.5 * eps * jnp.sqrt(jnp.sum(values))
        return jnp.maximum(root, 0) ** 2

    return jax.lax.cond(by_gram >= (1 - _SMALL) * jnp.sum(values[rank:]), lambda: by_gram, by_triangle)


def lowered_tail(values: Float[Array, " d"], rank: int, n: int) -> Scalar:
    """Σ_{j>k} λ_j of a Gram matrix of n rows, less the margin of `least_tail`; λ descending. May be below 0."""
    d, eps = values.shape[0], jnp.finfo(values.dtype).eps
    margin = 4 * eps * ((d - rank) * values[0] + n**0.5 * jnp.sum(values))
    return jnp.sum(values[rank:]) - margin


def norms(rows: Float[Array, "m d"]) -> Float[Array, " m"]:
    """Euclidean norms of rows."""
    return jnp.sqrt(jnp.sum(rows**2, axis=1))


def residual_norms(rows: Rows, right: Float[Array, "k d"]) -> Float[Array, " n"]:
    """‖x_i − x_iRᵀR‖."""
    return map_rows(lambda piece: norms(piece - (piece @ right.T) @ right), rows)
