"""IRLS for outlier rows: the fast median subspace."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Scalar

from lpjax._lapack import descending_eigh, qr
from lpjax.solvers._above_two import irls_rows as above_two
from lpjax.solvers._core.certificate import certified
from lpjax.solvers._core.checks import make_problem
from lpjax.solvers._core.problem import Problem, Scaled, finish, normalize, on_either_side, root_of_sum
from lpjax.solvers._core.rows import Rows, fold_rows, map_rows, multiply, over_devices
from lpjax.solvers._core.sharded import run_sharded
from lpjax.solvers._core.solution import Solution
from lpjax.solvers._core.spectrum import Panels, add_gram, no_gram, whole_gram
from lpjax.solvers._core.start import descend, select_tree, starting_bases


def irls_rows(
    matrix: ArrayLike,
    rank: int,
    *,
    p: Any = 1.0,
    num_iters: int = 100,
    tol: float | None = None,
    row_weights: ArrayLike | None = None,
    init: Any = None,
    metric: ArrayLike | None = None,
) -> Solution:
    """Lower (Σ_i ω_i ‖a_i − l_i R‖_C^p)^{1/p} over rank-k LR by iteratively reweighted least squares.

    V ← top-k eigenvectors of Aᵀ diag(w) A, w_i = ω_i max(‖a_i − a_iVVᵀ‖, ε)^{p−2} (fast median subspace, Lerman &
    Maunu, arXiv 1406.6145, algorithm 1, without their spherical weighting). Each step lowers the objective smoothed at
    ε. ε falls tenfold per step, to eps^{2/3} of the root mean square of row norms. Eigenvectors are exact, as the
    authors warn that a randomised SVD is unstable here.

    For p > 2 that iteration need not descend; R takes damped steps R ← R + tΔ instead, where R + Δ is the least squares
    solution under w for the current left factor: see `lpjax/solvers/_above_two/irls_rows.py`. At p = ∞ the objective is
    the largest ‖a_i − l_i R‖_C of the rows with ω_i > 0.

    Args:
        matrix: A, shape (n, d), of finite numbers. An `np.memmap` with n ≥ d stays in its file.
        rank: k, from 1 to min(n, d); static under jit.
        p: exponent from 1 to ∞; may be traced. At p = 2 the SVD is optimal and is returned.
        num_iters: iteration limit.
        tol: relative decrease of the objective per iteration below which the run ends; eps^{0.6} by default.
        row_weights: ω ≥ 0, shape (n,); ones by default.
        init: "svd", "lewis", "best" of the two (default), a pair (left, right), a `LowRank` or a `Solution`.
        metric: C, symmetric positive semidefinite, shape (d, d), possibly singular; the identity by default.

    Returns:
        `Solution` with the best iterate, never worse than the start; its objective is over rows.

    Raises:
        ValueError: matrix not 2-D, not numeric, not finite; rank or p out of range; weights, metric or init of the
            wrong shape, negative or asymmetric.
    """
    problem = make_problem(
        matrix, rank, "irls_rows", p=p, num_iters=num_iters, tol=tol, row_weights=row_weights, metric=metric, init=init
    )
    return run_sharded(_irls_rows, problem)


@jax.jit
@on_either_side
def _irls_rows(problem: Problem) -> Solution:
    scaled, scaling = normalize(problem)
    solve = above_two.solve if scaled.high else _solve
    n, d = scaled.rows.shape
    if n < d:
        # All rows lie in n dimensions; solving there, eigenvectors cost n³ instead of d³.
        span, triangle = qr(scaled.rows.read().T)
        narrow = scaled._replace(rows=Rows(triangle.T))
        if scaled.init is not None:
            pair = (scaled.init[0], scaled.init[1] @ span)
            narrow = narrow._replace(init=pair)
        solution = solve(narrow)
        solution = solution._replace(right=solution.right @ span.T)
    else:
        solution = solve(scaled)
    return finish(certified(scaled, solution, "rows"), scaling, problem.p)


class _Pass(NamedTuple):
    """Results of one pass over the rows, for a basis whose last d − k columns are orthogonal to the subspace."""

    basis: Float[Array, "d d"]
    objective: Scalar
    surrogate: Scalar
    gram: Float[Array, "d d"]
    smoothing: Scalar


def _solve(problem: Scaled) -> Solution:
    (n, d), rank = problem.rows.shape, problem.rank
    p, dtype = problem.p, problem.rows.dtype
    mean_row = jnp.sqrt(over_devices(jax.lax.psum, jnp.sum(_squared_norms(problem.rows)), problem.rows.axes) / n)
    floor = jnp.maximum(mean_row * jnp.finfo(dtype).eps ** (2 / 3), jnp.finfo(dtype).tiny)

    def measure(basis: Array, smoothing: Scalar) -> _Pass:
        complement = basis[:, rank:]

        def block(total: Panels, rows: Array, weights: Array) -> tuple[Panels, Array, Array]:
            # Projected onto the complement instead of subtracted, so that a small residual keeps its digits.
            outside = rows @ complement
            norm = jnp.sqrt(jnp.sum(outside**2, axis=1))
            smoothed = jnp.maximum(norm, smoothing)
            total = add_gram(total, rows, weights * smoothed ** (p - 2))
            # |r|^p, replaced below ε by the quadratic tangent at ε: every step lowers its sum.
            majorizer = smoothed**p + p / 2 * smoothed ** (p - 2) * (norm**2 - smoothed**2)
            return total, norm**p, majorizer

        total, powers, majorizers = fold_rows(block, problem.rows, no_gram(d, dtype), problem.row_weights)
        objective, surrogate = root_of_sum(problem, powers), root_of_sum(problem, majorizers)
        return _Pass(basis, objective, surrogate, whole_gram(total), smoothing)

    def step(last: _Pass) -> tuple[_Pass, Array, Scalar, Bool[Array, ""]]:
        _, basis = descending_eigh(last.gram)
        now = measure(basis, jnp.maximum(last.smoothing / 10, floor))
        small = problem.tol * now.surrogate
        sharp = (now.surrogate - now.objective <= small) | (now.smoothing <= floor)
        return now, basis[:, :rank].T, now.objective, sharp & (last.surrogate - now.surrogate <= small)

    smoothing = jnp.maximum(mean_row / 10, floor)
    passes = [measure(basis, smoothing) for basis in starting_bases(problem)]
    first = functools.reduce(lambda a, b: select_tree(b.objective < a.objective, b, a), passes)
    outcome = descend(
        step,
        first,
        first.basis[:, :rank].T,
        first.objective,
        problem.num_iters,
        optimal=(p == 2) & (problem.init is None and problem.start != "lewis"),  # lewis is only nearly optimal
    )
    left = multiply(problem.rows, outcome.best.T)
    return Solution(left, outcome.best, outcome.objective, outcome.num_iters, outcome.converged)


def _squared_norms(rows: Rows) -> Float[Array, " n"]:
    return map_rows(lambda piece: jnp.sum(piece**2, axis=1), rows)
