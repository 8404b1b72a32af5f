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
from lpjax.solvers._blocks import join_rows, split_rows
from lpjax.solvers._problem import Problem, default_tol, finish, make_problem, normalize, root_of_sum
from lpjax.solvers._prox import prox
from lpjax.solvers._solution import Solution
from lpjax.solvers._start import Init, descend, split_init, starting_pair

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
    rho: float = 1.0,
) -> Solution:
    """Lower (Σ_i ω_i Σ_j |a_ij − (LR)_ij|^p)^{1/p} over rank-k LR by ADMM on A = LR + S.

    S by the prox of |·|^p, (L, R) by one step of orthogonal iteration on A − S + U, U by the scaled dual step (Boyd
    et al., Distributed Optimization and Statistical Learning via ADMM, 2011, §3.1.1 and §9), the penalty of row i
    being ω_i ρ, by which its prox does not depend on ω_i. The problem is not
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
        rho: penalty, above 0, in units of p·(mean |r|)^{p−2} of the start.

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
    return _admm_entries(problem, rank, name, jnp.asarray(rho, problem.p.dtype))


class _State(NamedTuple):
    """Row blocks of T = A − S + U, the matrix that LR is fitted to, and of U; R; and what tells a stall.

    `lowest` is the least objective so far, `reference` what it was when last looked at; `steps` have been done.
    """

    target: Float[Array, "b m d"]
    dual: Float[Array, "b m d"]
    right: Float[Array, "k d"]
    lowest: Scalar
    reference: Scalar
    steps: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("rank", "init"))
def _admm_entries(problem: Problem, rank: int, init: Init, rho: Scalar) -> Solution:
    scaled, scaling = normalize(problem)
    (n, d), p = scaled.matrix.shape, scaled.p
    blocks = split_rows(scaled.matrix, d)
    weights = jnp.ones(n, p.dtype) if scaled.row_weights is None else scaled.row_weights
    weight_blocks = split_rows(weights, d)
    first = starting_pair(scaled, rank, init)
    # The mean |r| of the start, were all equal.
    typical = first.objective / (n * d) ** (1 / p)
    rho = rho * p * jnp.maximum(typical, jnp.finfo(p.dtype).tiny ** 0.25) ** (p - 2)

    def step(state: _State) -> tuple[_State, tuple[Array, Array], Scalar, Bool[Array, ""]]:
        right = state.right

        def block(total: Array, operands: tuple[Array, Array, Array, Array]) -> tuple[Array, Any]:
            rows, weight, target, dual = operands
            left = jnp.matmul(target, right.T, precision="highest")
            residual = rows - jnp.matmul(left, right, precision="highest")
            pulled = residual + dual
            sparse = prox(pulled, p, rho)
            dual = pulled - sparse
            target = rows - sparse + dual
            projected = jnp.matmul(target, right.T, precision="highest")
            total = total + jnp.matmul(target.T, weight[:, None] * projected, precision="highest")
            return total, (target, dual, left, power_sums(residual, p))

        empty = jnp.zeros((d, rank), blocks.dtype)
        operands = (blocks, weight_blocks, state.target, state.dual)
        total, (target, dual, left, sums) = jax.lax.scan(block, empty, operands)
        value = root_of_sum(scaled, join_rows(sums, n))
        following = jnp.linalg.qr(total)[0].T
        lowest = jnp.minimum(value, state.lowest)
        steps = state.steps + 1
        look = steps % _PATIENCE == 0
        stalled = look & (state.reference - lowest <= scaled.tol * lowest)
        reference = jnp.where(look, lowest, state.reference)
        after = _State(target, dual, following, lowest, reference, steps)
        return after, (join_rows(left, n), right), value, stalled

    orthonormal, triangle = jnp.linalg.qr(first.right.T)
    left = jnp.matmul(first.left, triangle.T, precision="highest")
    # T = LR of the start, whose first step then measures the start again and makes the first S and U.
    target = split_rows(jnp.matmul(left, orthonormal.T, precision="highest"), d)
    none = jnp.zeros((), jnp.int32)
    outcome = descend(
        step,
        _State(target, jnp.zeros_like(blocks), orthonormal.T, first.objective, first.objective, none),
        (left, orthonormal.T),
        first.objective,
        scaled.num_iters,
        optimal=(p == 2) & (scaled.init is None),
    )
    left, right = outcome.best
    return finish(Solution(left, right, outcome.objective, outcome.num_iters, outcome.converged), scaling, problem.p)
