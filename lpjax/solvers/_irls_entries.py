"""IRLS for outlier entries: alternating weighted least squares, the slow reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Scalar

from lpjax.objectives import power_sums
from lpjax.solvers._above_two import irls_entries as above_two
from lpjax.solvers._core.certificate import certified
from lpjax.solvers._core.checks import make_problem
from lpjax.solvers._core.problem import Problem, finish, normalize, on_either_side, orthonormalize, root_of_sum
from lpjax.solvers._core.regression import regress_rows
from lpjax.solvers._core.sharded import run_sharded
from lpjax.solvers._core.solution import Solution
from lpjax.solvers._core.start import descend, starting_pair


def irls_entries(
    matrix: ArrayLike,
    rank: int,
    *,
    p: Any = 1.0,
    num_iters: int = 200,
    tol: float | None = None,
    row_weights: ArrayLike | None = None,
    init: Any = None,
) -> Solution:
    """Lower (Σ_i ω_i Σ_j |a_ij − (LR)_ij|^p)^{1/p} over rank-k LR by alternating reweighted least squares.

    Each half of a sweep solves, for every row of L (then every column of R), the least squares problem weighted by
    w_ij = max(|r_ij|, ε)^{p−2}. Its quadratic majorizes |r|^p, so the objective smoothed at ε falls in every half. ε
    falls threefold per sweep, to eps^{2/3} of the root mean square of entries. A sweep solves n + d systems of k
    unknowns, O(ndk²). This is the reference for small matrices; use `admm_entries` for large ones.

    For p > 2 every row takes a least squares step with a line search, without smoothing; see
    `lpjax/solvers/_above_two/irls_entries.py`. At p = ∞ the objective is the largest |a_ij − (LR)_ij| of the rows with
    ω_i > 0.

    Args:
        matrix: A, shape (n, d), of finite numbers.
        rank: k, from 1 to min(n, d); static under jit.
        p: exponent from 1 to ∞; may be traced. At p = 2 the start is optimal and is returned.
        num_iters: limit on the number of sweeps.
        tol: relative decrease of the objective per sweep below which the run ends; eps^{0.6} by default.
        row_weights: ω ≥ 0, shape (n,); ones by default.
        init: "svd", "lewis", "clipped" (the SVD after clipping large entries), "best" of the three (default), a pair
            (left, right), a `LowRank` or a `Solution`.

    Returns:
        `Solution` with the best iterate, never worse than the start; its objective is over entries.

    Raises:
        ValueError: matrix not 2-D, not numeric, not finite; rank or p out of range; weights or init of the wrong
            shape or negative.
    """
    problem = make_problem(
        matrix, rank, "irls_entries", p=p, num_iters=num_iters, tol=tol, row_weights=row_weights, init=init
    )
    return run_sharded(_irls_entries, problem, whole=True)


class _State(NamedTuple):
    left: Float[Array, "n k"]
    right: Float[Array, "k d"]
    residual: Float[Array, "n d"]
    smoothing: Scalar
    surrogate: Scalar


@jax.jit
@on_either_side
def _irls_entries(problem: Problem) -> Solution:
    scaled, scaling = normalize(problem)
    if scaled.high:
        return finish(certified(scaled, above_two.solve(scaled), "entries"), scaling, problem.p)
    matrix, p = scaled.rows.read(), scaled.p
    mean_entry = jnp.sqrt(jnp.mean(matrix**2))
    floor = jnp.maximum(mean_entry * jnp.finfo(matrix.dtype).eps ** (2 / 3), jnp.finfo(matrix.dtype).tiny)

    def residual_of(left: Array, right: Array) -> Array:
        return matrix - left @ right

    def reweight(residual: Array, smoothing: Scalar) -> Array:
        return jnp.maximum(jnp.abs(residual), smoothing) ** (p - 2)

    def step(state: _State) -> tuple[_State, tuple[Array, Array], Scalar, Bool[Array, ""]]:
        left, right, residual, smoothing, last_surrogate = state
        smoothing = jnp.maximum(smoothing / 3, floor)
        left = left + regress_rows(right, reweight(residual, smoothing), residual)
        # Orthonormal rows of R keep the systems of the next halves well scaled; LR is unchanged.
        left, right = orthonormalize(left, right)
        residual = residual_of(left, right)
        weights = reweight(residual, smoothing)
        if scaled.row_weights is not None:
            weights = weights * scaled.row_weights[:, None]
        right = right + regress_rows(left.T, weights.T, residual.T).T
        residual = residual_of(left, right)
        value = root_of_sum(scaled, power_sums(residual, p))
        # |r|^p, replaced below ε by the quadratic tangent at ε: every half lowers its sum.
        magnitude = jnp.abs(residual)
        smoothed = jnp.maximum(magnitude, smoothing)
        majorizer = smoothed**p + p / 2 * smoothed ** (p - 2) * (magnitude**2 - smoothed**2)
        surrogate = root_of_sum(scaled, jnp.sum(majorizer, axis=1))
        small = scaled.tol * surrogate
        settled = ((surrogate - value <= small) | (smoothing <= floor)) & (last_surrogate - surrogate <= small)
        return _State(left, right, residual, smoothing, surrogate), (left, right), value, settled

    first = starting_pair(scaled)
    residual = residual_of(first.left, first.right)
    infinite = jnp.full((), jnp.inf, matrix.dtype)
    outcome = descend(
        step,
        _State(first.left, first.right, residual, mean_entry, infinite),
        (first.left, first.right),
        first.objective,
        scaled.num_iters,
        optimal=(p == 2) & (scaled.init is None and scaled.start != "clipped"),
    )
    best = orthonormalize(*outcome.best)
    solution = Solution(*best, outcome.objective, outcome.num_iters, outcome.converged)
    return finish(certified(scaled, solution, "entries"), scaling, problem.p)
