"""IRLS for rows, p > 2: damped weighted least squares."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from lpjax._lapack import qr
from lpjax._powers import roots
from lpjax.solvers._above_two.stages import first_exponent, is_last, next_exponent, stage_tolerance
from lpjax.solvers._core.problem import Scaled, root_of_powers
from lpjax.solvers._core.regression import regress
from lpjax.solvers._core.rows import fold_rows, multiply
from lpjax.solvers._core.solution import Solution
from lpjax.solvers._core.start import descend, select_tree, starting_bases

_GROW, _SHRINK = 1.5, 0.3  # factors on t after an accepted and after a rejected step
_SHORTEST = 1e-6


class _Point(NamedTuple):
    """A subspace, and what one pass over the rows measures of it.

    Attributes:
        basis: V, with orthonormal columns.
        exponent: q of the stage.
        value: objective at exponent q.
        objective: objective at exponent p.
        gram, moment: LᵀWL and LᵀW(A − LVᵀ) for L = AV.
    """

    basis: Float[Array, "d k"]
    exponent: Scalar
    value: Scalar
    objective: Scalar
    gram: Float[Array, "k k"]
    moment: Float[Array, "k d"]


class _State(NamedTuple):
    """The last point that was accepted, the t of the next step, and whether the stage has settled."""

    point: _Point
    step: Scalar
    settled: Bool[Array, ""]


def solve(problem: Scaled) -> Solution:
    """Lower (Σ_i ω_i ‖a_i − l_i R‖^p)^{1/p} for p > 2; n ≥ d.

    For L = AV fixed the objective is convex in R, and weighted least squares with w_i = ω_i ‖a_i − l_iVᵀ‖^{p−2} gives a
    descent direction Δ at R = Vᵀ: V ← orth(V + tΔᵀ). With t = 1, or with V the leading eigenvectors of AᵀWA as for
    p ≤ 2, IRLS oscillates if p is large; damping makes it converge (Adil, Peng & Sachdeva, arXiv 1907.07167, for
    regression). Here t grows after a step that lowers the objective; other steps are undone, and t shrinks. So the
    objective at q falls with every accepted step.

    A large p is reached in stages q = 4, 8, …, 1024 (`stages.py`); the best V at p itself is returned.
    """
    p, dtype, rank = problem.p, problem.rows.dtype, problem.rank
    d = problem.rows.shape[1]

    def measure(basis: Array, q: Scalar, scale: Scalar) -> _Point:
        """One pass over the rows; residuals are divided by `scale`, so that their powers stay in range."""

        def block(total: tuple[Array, Array], rows: Array, weights: Array) -> tuple[tuple[Array, Array], Array]:
            left = rows @ basis
            outside = rows - left @ basis.T
            norms = jnp.sqrt(jnp.sum(outside**2, axis=1))
            root = roots(weights, q)
            # ω (r/s)^{q−2} as ω^{2/q} (ω^{1/q} r/s)^{q−2}, as ω^{1/q} r is at most the objective s.
            heavy = root**2 * (root * norms / scale) ** (q - 2)
            weighted = (heavy[:, None] * left).T
            return (total[0] + weighted @ left, total[1] + weighted @ outside), norms

        zero = jnp.zeros((rank, rank), dtype), jnp.zeros((rank, d), dtype)
        (gram, moment), norms = fold_rows(block, problem.rows, zero, problem.row_weights)
        value = root_of_powers(problem._replace(p=q), norms)
        return _Point(basis, q, value, root_of_powers(problem, norms), gram, moment)

    def step(state: _State) -> tuple[_State, Array, Scalar, Bool[Array, ""]]:
        last = state.point
        rises = state.settled & ~is_last(last.exponent, p)
        move = regress(last.gram, last.moment, jnp.zeros_like(last.moment))
        moved = qr(last.basis + state.step * move.T)[0]
        basis = jnp.where(rises | ~jnp.all(jnp.isfinite(moved)), last.basis, moved)
        q = jnp.where(rises, next_exponent(last.exponent, p), last.exponent)
        now = measure(basis, q, jnp.where(last.value > 0, last.value, 1))
        lower = now.value < last.value
        few = last.value - now.value <= stage_tolerance(q, p, problem.tol) * last.value
        t = jnp.where(rises, 1, state.step * jnp.where(lower, _GROW, _SHRINK))
        settled = ~rises & ((lower & few) | (t < _SHORTEST))
        point = select_tree(rises | lower, now, last)
        return _State(point, t, settled), basis.T, now.objective, settled & is_last(q, p)

    q, unit = first_exponent(p), jnp.ones((), dtype)
    points = [measure(basis[:, :rank], q, unit) for basis in starting_bases(problem)]
    first = functools.reduce(lambda a, b: select_tree(b.objective < a.objective, b, a), points)
    start = _State(first, unit, jnp.zeros((), bool))
    never = jnp.zeros((), bool)
    outcome = descend(step, start, first.basis.T, first.objective, problem.num_iters, optimal=never)
    left = multiply(problem.rows, outcome.best.T)
    return Solution(left, outcome.best, outcome.objective, outcome.num_iters, outcome.converged)
