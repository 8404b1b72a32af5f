"""ADMM for outlier entries: the fast one."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax.objectives import power_sums
from lpjax.solvers._blocks import scan_rows
from lpjax.solvers._problem import Problem, default_tol, finish, make_problem, normalize, objective, root_of_sum
from lpjax.solvers._prox import prox
from lpjax.solvers._solution import Solution
from lpjax.solvers._spread import spread
from lpjax.solvers._start import Init, descend, split_init, starting_pair

# ρ grows from step to step up to a multiple of the first. A small one moves the pair far, a large one makes it settle;
# growing, 10 steps come as near to the optimum (3 %, p = 1, on a real embedding) as 15 of the best constant one.
_GROWTH = 1.15
_LARGEST_GROWTH = 16
# The objective may rise for a few iterations before it falls further: it is judged over this many.
_PATIENCE = 40


def admm_entries(
    matrix: ArrayLike,
    rank: int,
    *,
    p: Any = 1.0,
    num_iters: int = 100,
    tol: float | None = None,
    row_weights: ArrayLike | None = None,
    init: Any = None,
    rho: float = 0.4,
) -> Solution:
    """Lower (Σ_i ω_i Σ_j |a_ij − (LR)_ij|^p)^{1/p} over rank-k LR by ADMM on A = LR + S.

    S by the prox of |·|^p; L, then R by one round of alternating least squares on T = A − S + U, L from the basis Q of
    R's rows: L = TQᵀ, R = argmin ‖T − LR‖; U by the scaled dual step (Boyd et al., Distributed Optimization and
    Statistical Learning via ADMM, 2011, §3.1.1, §3.4.1 for the varying penalty, and §9), the penalty of row i being
    ω_i ρ, by which its prox does not depend on ω_i. The problem is not
    convex in (L, R): the iterates need not fall one by one, and the best one is handed back.

    Args:
        matrix: A, shape (n, d), floating and finite.
        rank: k, from 1 to min(n, d); static under jit.
        p: exponent in [1, 2]; may be traced. At p = 2 the start is optimal and is handed back.
        num_iters: iteration limit.
        tol: relative fall of the best objective in 40 iterations that ends the run; eps^{0.5} by default.
        row_weights: ω ≥ 0, shape (n,); ones by default.
        init: "svd", "lewis", "clipped" (the SVD after clipping large entries), "best" of the three (default), a pair
            (left, right), a `LowRank` or a `Solution`.
        rho: first penalty, above 0, in units of p·(mean |r|)^{p−2} of the start; it grows from step to step.

    Returns:
        `Solution` with the best iterate, never worse than the start; its objective is over entries.

    Raises:
        ValueError: matrix not 2-D, not floating, not finite; rank or p out of range; weights or init of the wrong
            shape or negative.
    """
    name, pair = split_init(init, ("best", "svd", "lewis", "clipped"))
    problem = make_problem(
        matrix,
        rank,
        p=p,
        num_iters=num_iters,
        tol=default_tol(matrix, 0.5) if tol is None else tol,
        row_weights=row_weights,
        init=pair,
    )
    if not isinstance(rho, jax.core.Tracer) and not 0 < rho < float("inf"):
        raise ValueError(f"`rho` is {rho!r}; expected a finite number above 0")
    return spread(_admm_entries, problem, jnp.asarray(rho, problem.p.dtype), rank=rank, init=name)


class _State(NamedTuple):
    """The pair, the scaled dual U, an orthonormal basis of R's rows, ρ; and what tells a stall.

    `lowest` is the least objective so far, `reference` what it was when last looked at; `steps` have been done.
    """

    left: Float[Array, "n k"]
    dual: Float[Array, "n d"]
    right: Float[Array, "k d"]
    basis: Float[Array, "k d"]
    rho: Scalar
    lowest: Scalar
    reference: Scalar
    steps: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("rank", "init"))
def _admm_entries(problem: Problem, rho: Scalar, *, rank: int, init: Init) -> Solution:
    scaled, scaling = normalize(problem)
    (n, d), p = scaled.rows.shape, scaled.p
    own = scaled.rows.matrix.shape[0]
    weights = jnp.ones(own, p.dtype) if scaled.row_weights is None else scaled.row_weights
    first = starting_pair(scaled, rank, init)
    # The mean |r| of the start, were all equal. Weights have no say: the prox of a row does not depend on its own.
    plain = scaled._replace(row_weights=None)
    value = first.objective if scaled.row_weights is None else objective(plain, first.left, first.right, "entries")
    typical = value / (n * d) ** (1 / p)
    first_rho = rho * p * jnp.maximum(typical, jnp.finfo(p.dtype).tiny ** 0.25) ** (p - 2)

    def step(state: _State) -> tuple[_State, tuple[Array, Array], Scalar, Bool[Array, ""]]:
        rho = jnp.minimum(state.rho * _GROWTH, first_rho * _LARGEST_GROWTH)

        def block(total: Array, rows: Array, fresh: Array, weight: Array, state_rows: Any) -> tuple[Array, Any, Any]:
            left, dual = state_rows
            fitted = jnp.matmul(left, state.right, precision="highest")
            residual = rows - fitted
            pulled = residual + dual
            after = pulled - prox(pulled, p, state.rho)
            # A − S + U. Of `dual` there must be one reader: with two, XLA copies it whole at every block.
            target = rows - pulled + 2 * after
            left = jnp.matmul(target, state.basis.T, precision="highest")
            total = total + jnp.matmul(target.T, jnp.where(fresh, weight, 0)[:, None] * left, precision="highest")
            return total, (left, after * (state.rho / rho)), power_sums(residual, p)

        empty = jnp.zeros((d, rank), p.dtype)
        total, (left, dual), sums = scan_rows(block, scaled.rows, empty, given=weights, state=(state.left, state.dual))
        value = root_of_sum(scaled, sums)
        right = _regress(jnp.matmul(state.basis, total, precision="highest"), total.T, state.basis)
        lowest = jnp.minimum(value, state.lowest)
        steps = state.steps + 1
        look = steps % _PATIENCE == 0
        stalled = look & (state.reference - lowest <= scaled.tol * lowest)
        reference = jnp.where(look, lowest, state.reference)
        following = _State(left, dual, right, jnp.linalg.qr(total)[0].T, rho, lowest, reference, steps)
        return following, (state.left, state.right), value, stalled

    orthonormal, triangle = jnp.linalg.qr(first.right.T)
    left = jnp.matmul(first.left, triangle.T, precision="highest")
    right = orthonormal.T
    # The first step measures the start again and makes the first S and U.
    none = jnp.zeros((), jnp.int32)
    outcome = descend(
        step,
        _State(left, jnp.zeros((own, d), p.dtype), right, right, first_rho, first.objective, first.objective, none),
        (left, right),
        first.objective,
        scaled.num_iters,
        optimal=(p == 2) & (scaled.init is None and init != "clipped"),
    )
    left, right = outcome.best
    orthonormal, triangle = jnp.linalg.qr(right.T)
    left = jnp.matmul(left, triangle.T, precision="highest")
    solution = Solution(left, orthonormal.T, outcome.objective, outcome.num_iters, outcome.converged)
    return finish(solution, scaling, problem.p)


def _regress(gram: Float[Array, "k k"], moment: Float[Array, "k d"], fallback: Float[Array, "k d"]) -> Array:
    """R of least ‖T − PR‖, from PᵀP and PᵀT, by Cholesky.

    Columns of P, images of nearly singular directions, are nearly orthogonal: scaled to one length, PᵀP is close to
    the identity however their lengths differ. The ridge of rounding size keeps a singular one solvable.
    """
    diagonal = jnp.diagonal(gram)
    scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 0)
    k = gram.shape[0]
    correlation = gram * scale[:, None] * scale[None, :] + k * jnp.finfo(gram.dtype).eps * jnp.eye(k, dtype=gram.dtype)
    correlation = correlation + jnp.diag((scale == 0).astype(gram.dtype))
    factor = jax.scipy.linalg.cho_factor(correlation)
    right = scale[:, None] * jax.scipy.linalg.cho_solve(factor, scale[:, None] * moment)
    return jnp.where(jnp.all(jnp.isfinite(right)), right, fallback)
