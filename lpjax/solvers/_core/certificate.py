"""A lower bound of the optimum over all pairs of a rank, from one Gram matrix (docs/algorithms/certificate.md).

Let Q be the projection onto the complement of any k-dimensional subspace, x_i the rows, t_i = ‖Qx_i‖. For every v ≥ 0

    Σ_i v_i t_i² = tr(Q Σ_i v_i x_i x_iᵀ) ≥ τ(v) = Σ_{j>k} λ_j(Σ_i v_i x_i x_iᵀ)            (Ky Fan).

    p ≤ 2:  as t_i ≤ ‖x_i‖,  t_i^p ≥ ‖x_i‖^{p−2} t_i²;  so  Σ ω_i t_i^p ≥ τ(v),  v_i = ω_i‖x_i‖^{p−2}.
    p > 2:  Hölder's inequality,  (Σ ω_i t_i^p)^{2/p} ≥ τ(v) / (Σ ω_i u_i^q)^{1/q},  v_i = ω_i u_i,  q = p/(p − 2),
            for every u ≥ 0. With u_i = r_i^{p−2} of a solution's residuals r_i the bound is tight if the solution's
            subspace is the dominant one of Σ v_i x_i x_iᵀ: for p > 2 fixed points of IRLS are optimal.
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

_LARGEST_POWER = 32.0  # of residuals in weights: at p = ∞ one row would have all the weight, and no tail
_SMALL = 2**-7  # fraction of the tail that its margin may take before QR replaces the Gram matrix


def factors_of(solution: Any) -> tuple[Any, Any]:
    """Left and right of a `Solution`, a `LowRank` or a pair.

    Raises:
        ValueError: it has single entries; bounds hold for factors alone.
    """
    if getattr(solution, "sparse", None) is not None:
        raise ValueError("`solution` has single entries besides its factors; expected factors alone")
    return (solution.left, solution.right) if hasattr(solution, "left") else solution


def certified(problem: Scaled, solution: Solution, over: Over, singular: Float[Array, " d"] | None = None) -> Solution:
    """`solution` with its lower bound.

    Args:
        problem, solution: before `finish`; the rows of the right factor are orthonormal.
        over: objective of the bound.
        singular: singular values of diag(√ω) A, if known: at p = 2 they give the bound.
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
    """The factor that turns a bound over rows into one over `over`.

    By power means, Σ_j |r_j|^p ≥ ‖r‖^p for p ≤ 2, and ≥ d^{1−p/2}‖r‖^p for p ≥ 2.
    """
    columns = jnp.asarray(problem.rows.shape[1], problem.p.dtype)
    return 1.0 if over == "rows" else jnp.where(problem.p > 2, columns ** (1 / problem.p - 0.5), 1)


def rows_bound(problem: Scaled, right: Float[Array, "k d"]) -> Scalar:
    """A lower bound of (Σ_i ω_i ‖x_i − l_i R‖^p)^{1/p} over all pairs of the rank, p > 0; not differentiated.

    Args:
        problem: rows and weights; p may be infinite.
        right: R of a solution, with orthonormal rows; only used for p > 2, for which any R gives a bound.
    """
    known = jax.lax.stop_gradient((problem.rows, problem.row_weights, problem.p, right))
    problem, right = problem._replace(rows=known[0], row_weights=known[1], p=known[2]), known[3]
    p, dtype = problem.p, problem.rows.dtype
    info = jnp.finfo(dtype)

    def by_length() -> tuple[Array, Array]:
        lengths = map_rows(norms, problem.rows)
        # Rows whose squares are below the dtype's range are left out, which only lowers the bound.
        seen = lengths > jnp.sqrt(info.tiny / info.eps)
        factors = jnp.where(seen, jnp.where(seen, lengths, 1) ** (p - 2), 0)
        return factors, jnp.ones((), dtype)

    def by_residual() -> tuple[Array, Array]:
        return holder_weights(problem, residual_norms(problem.rows, right) ** 2)

    factors, divisor = jax.lax.cond(p > 2, by_residual, by_length)
    tail = least_tail(weighted_rows(problem, factors), problem.rank)
    return lowered_root(tail / divisor, jnp.minimum(p, 2))


def holder_weights(problem: Scaled, squares: Float[Array, " n"]) -> tuple[Float[Array, " n"], Scalar]:
    """u_i = t_i^{p−2} and (Σ ω_i u_i^q)^{1/q} for p > 2, from squares t² relative to the largest."""
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
    """power^{1/p}, lowered by its rounding errors, which grow with |log power|/p."""
    info = jnp.finfo(power.dtype)
    known = power >= info.tiny
    some = jnp.where(known, power, 1)
    safe = 1 - 16 * info.eps * (1 + jnp.abs(jnp.log(some)) / p)
    return jnp.where(known, jnp.maximum(some ** (1 / p) * safe, 0), 0)


def least_tail(rows: Rows, rank: int) -> Scalar:
    """Σ_{j>k} σ_j², lowered by a margin for rounding errors.

    The Gram matrix of n rows has an error of √n·eps of its trace, a sum of n rounding errors of random sign, and each
    of LAPACK's eigenvalues one of eps·λ₁; the margin is four times their sum. If it exceeds a small fraction of the
    tail, singular values from a QR decomposition replace the eigenvalues. They are exact for a matrix within
    √d·eps·‖A‖_F of A, by which the root of the tail is lowered (Mirsky).
    """
    n, d = rows.shape
    if n < d:
        # Every device has all rows of a wide matrix, whose transpose has the same singular values.
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
    """Σ_{j>k} λ_j of a Gram matrix of n rows, minus the margin of `least_tail`; may be negative. λ descends."""
    d, eps = values.shape[0], jnp.finfo(values.dtype).eps
    margin = 4 * eps * ((d - rank) * values[0] + n**0.5 * jnp.sum(values))
    return jnp.sum(values[rank:]) - margin


def norms(rows: Float[Array, "m d"]) -> Float[Array, " m"]:
    """Euclidean norms of rows."""
    return jnp.sqrt(jnp.sum(rows**2, axis=1))


def residual_norms(rows: Rows, right: Float[Array, "k d"]) -> Float[Array, " n"]:
    """‖x_i − x_iRᵀR‖."""
    return map_rows(lambda piece: norms(piece - (piece @ right.T) @ right), rows)
