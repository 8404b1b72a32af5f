"""Truncated SVD: the p = 2 baseline, exact."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lpjax.objectives import Over
from lpjax.solvers._core.certificate import certified
from lpjax.solvers._core.checks import make_problem
from lpjax.solvers._core.problem import Problem, Scaled, finish, normalize, on_either_side, project
from lpjax.solvers._core.sharded import run_sharded
from lpjax.solvers._core.solution import Solution
from lpjax.solvers._core.spectrum import right_singular


def svd(
    matrix: ArrayLike,
    rank: int,
    *,
    p: Any = 2.0,
    num_iters: int = 0,
    tol: float = 0.0,
    row_weights: ArrayLike | None = None,
    init: None = None,
    metric: ArrayLike | None = None,
    over: Over = "entries",
) -> Solution:
    """argmin over rank-k LR of Σ_i ω_i ‖a_i − l_i R‖_C² (Eckart–Young); p only affects the reported objective.

    Args:
        matrix: A, shape (n, d), of finite numbers. An `np.memmap` with n ≥ d stays in its file.
        rank: k, from 1 to min(n, d); static under jit.
        p: exponent of the reported objective, from 1 to ∞; may be traced.
        num_iters, tol, init: unused, as the method is direct; accepted so that solvers are interchangeable.
        row_weights: ω ≥ 0, shape (n,); ones by default.
        metric: C, symmetric positive semidefinite, shape (d, d), possibly singular; the identity by default.
            The objective is then taken over rows.
        over: reported objective, "entries" or "rows".

    Returns:
        `Solution`; right has orthonormal rows (R C Rᵀ = I with a metric).

    Raises:
        ValueError: matrix not 2-D, not numeric, not finite; rank or p out of range; weights or metric of the wrong
            shape, negative or asymmetric.
    """
    problem = make_problem(
        matrix, rank, "svd", p=p, num_iters=num_iters, tol=tol, row_weights=row_weights, metric=metric
    )
    return run_sharded(_svd, problem, over="rows" if metric is not None else over)


@functools.partial(jax.jit, static_argnames="over")
@on_either_side
def _svd(problem: Problem, over: Over) -> Solution:
    scaled, scaling = normalize(problem)
    (n, d), rank = scaled.rows.shape, scaled.rank
    # The bound needs all singular values of a tall matrix; of a wide one they would cost more.
    singular, vectors = _decomposed(scaled, None if n >= d else rank)
    right = vectors[:, :rank].T
    left, value = project(scaled, right, over)
    solution = Solution(left, right, value, jnp.zeros((), jnp.int32), jnp.ones((), bool))
    return finish(certified(scaled, solution, over, singular if n >= d else None), scaling, problem.p)


def svd_right(problem: Scaled) -> Float[Array, "k d"]:
    """V_kᵀ of diag(√ω) A."""
    return svd_vectors(problem, problem.rank).T


def svd_vectors(problem: Scaled, count: int | None = None) -> Float[Array, "d r"]:
    """The first `count` right singular vectors of diag(√ω) A, min(n, d) by default; beyond k they may be inaccurate."""
    return _decomposed(problem, count)[1]


def _decomposed(problem: Scaled, count: int | None) -> tuple[Float[Array, " r"], Float[Array, "d r"]]:
    weights = problem.row_weights
    rows = dataclasses.replace(problem.rows, row_factors=None if weights is None else jnp.sqrt(weights))
    return right_singular(rows, problem.rank, count)
