"""ADMM for outlier entries: the fast solver."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax._check import check_whole
from lpjax._lapack import qr
from lpjax.objectives import blocked_sum, power_sums
from lpjax.solvers._above_two import admm_entries as above_two
from lpjax.solvers._admm_schedule import FITTED, Constants, scheduled_step
from lpjax.solvers._core.certificate import certified
from lpjax.solvers._core.checks import make_problem
from lpjax.solvers._core.problem import (
    Problem,
    finish,
    normalize,
    on_either_side,
    orthonormalize,
    over_residual,
    root_of_sum,
)
from lpjax.solvers._core.prox import prox
from lpjax.solvers._core.regression import regress
from lpjax.solvers._core.rows import fold_rows, over_devices
from lpjax.solvers._core.sharded import run_sharded
from lpjax.solvers._core.solution import Solution
from lpjax.solvers._core.start import select_tree, starting_pair

_LONGEST_FIRST_SCHEDULE = 20
_SPARSE = 0.25  # a residual counts as sparse if `measure` estimates a smaller fraction of nonzero entries


def admm_entries(
    matrix: ArrayLike,
    rank: int,
    *,
    p: Any = 1.0,
    num_iters: int = 90,
    tol: float | None = None,
    row_weights: ArrayLike | None = None,
    init: Any = None,
    rho: float = 1.0,
    schedule: int | None = None,
) -> Solution:
    """Lower (Σ_i ω_i Σ_j |a_ij − (LR)_ij|^p)^{1/p} over rank-k LR by ADMM.

    The problem is  min Σ_i ω_i ‖s_i‖_p^p  over L, R, S  subject to  A = LR + S.  With the scaled dual U, a penalty
    ω_i ρ for row i and an over-relaxation α, a step is

        E ← α(A − LR) + (1 − α)S                     over-relaxation
        S ← argmin ‖S‖_p^p + ρ/2·‖S − (E + U)‖²      prox of |·|^p, entry by entry
        U ← E + U − S                                scaled dual
        L ← argmin ‖T − LQ‖ = TQᵀ,  T = A − S + U    Q: orthonormal basis of R's rows
        R ← argmin Σ_i ω_i ‖t_i − l_i R‖²            least squares
        ρ ← ρ',  U ← δ(ρ/ρ')U                        schedule, δ ≤ 1 a damping

    (Boyd et al., Distributed Optimization and Statistical Learning via ADMM, 2011: §3.1.1 for the scaled form, §3.4.1
    for the varying penalty, §3.4.3 for over-relaxation, §9 for problems that are not convex.) As the penalty of row i
    is ω_i ρ, its prox does not depend on ω_i. The problem is not convex in (L, R): the objective need not fall in every
    step, and the best iterate is returned.

    ρ, α and δ follow a schedule over a number of steps: a small ρ moves L and R far, a large one at the end makes them
    settle. A schedule of 16 steps comes closer to the optimum than 60 steps with a steadily growing ρ. Each further
    schedule starts from the best pair so far and is twice as long; the last one takes all remaining steps. If the
    residual is then concentrated on few entries, the schedule is plain ADMM (α = δ = 1) with a growing ρ, which
    recovers a low-rank matrix with outliers to the last digits.

    For p > 2 the norm itself is minimised instead of its p-th power, under one plain schedule; see
    `lpjax/solvers/_above_two/admm_entries.py`. At p = ∞ the objective is the largest |a_ij − (LR)_ij| of the rows with
    ω_i > 0, and the step for S projects onto an ℓ1 ball.

    Args:
        matrix: A, shape (n, d), of finite numbers.
        rank: k, from 1 to min(n, d); static under jit.
        p: exponent from 1 to ∞; may be traced. At p = 2 the start is optimal and is returned.
        num_iters: iteration limit; the default fits three schedules.
        tol: relative decrease of the best objective per schedule below which the run ends; √eps by default.
        row_weights: ω ≥ 0, shape (n,); ones by default.
        init: "svd", "lewis", "clipped" (the SVD after clipping large entries), "best" of the three (default), a pair
            (left, right), a `LowRank` or a `Solution`.
        rho: factor on every ρ of the schedules, above 0.
        schedule: length of the first schedule in steps, 1 or more; by default at most 20, and such that later ones fit
            into `num_iters`. On a real embedding at p = 1, 4 steps come within 5 % of the best known objective, 16
            within 1 %. For p > 2 the length of the only schedule, `num_iters` by default.

    Returns:
        `Solution` with the best iterate, never worse than the start; its objective is over entries.

    Raises:
        ValueError: matrix not 2-D, not numeric, not finite; rank or p out of range; weights or init of the wrong
            shape or negative; rho or schedule out of range.
    """
    problem = make_problem(
        matrix, rank, "admm_entries", p=p, num_iters=num_iters, tol=tol, row_weights=row_weights, init=init
    )
    if not isinstance(rho, Tracer) and not 0 < rho < float("inf"):
        raise ValueError(f"`rho` is {rho!r}; expected a finite number above 0")
    only = jnp.maximum(problem.num_iters, 1)  # above 2 there is one schedule
    if schedule is None:
        schedules = jnp.ceil(jnp.log2(problem.num_iters.astype(jnp.float32) / _LONGEST_FIRST_SCHEDULE + 1))
        length = jnp.maximum(problem.num_iters // (2 ** schedules.astype(jnp.int32) - 1), 1)
    else:
        if not isinstance(schedule, Tracer):
            check_whole("`schedule`", int(schedule) if isinstance(schedule, np.integer) else schedule, 1)
        length = only = jnp.asarray(schedule, jnp.int32)
    whole = problem.high is not False  # above 2 the step for S may need the largest magnitude of all rows
    return run_sharded(_admm_entries, problem, jnp.asarray(rho, problem.p.dtype), length, only, whole=whole)


class _State(NamedTuple):
    """Between steps: L, R, Q; C = (1 − α)S + U, all that the next step needs of S and U; the best pair so far."""

    L: Float[Array, "n k"]
    C: Float[Array, "n d"]
    R: Float[Array, "k d"]
    Q: Float[Array, "k d"]
    age: Int[Array, ""]
    steps: Int[Array, ""]
    best: tuple[Float[Array, "n k"], Float[Array, "k d"]]
    lowest: Scalar


class _Run(NamedTuple):
    """Between schedules: the state, and for the next one the unit of ρ, its length and `sparse`."""

    state: _State
    unit: Scalar
    length: Int[Array, ""]
    sparse: Bool[Array, ""]
    converged: Bool[Array, ""]


@jax.jit
@on_either_side
def _admm_entries(problem: Problem, rho: Scalar, length: Int[Array, ""], only: Int[Array, ""]) -> Solution:
    if problem.high:
        scaled, scaling = normalize(problem)
        return finish(certified(scaled, above_two.solve(scaled, rho, only), "entries"), scaling, problem.p)
    return solve_scheduled(problem, rho, length, FITTED)


def solve_scheduled(problem: Problem, rho: Scalar, length: Int[Array, ""], constants: Constants) -> Solution:
    """`admm_entries` of a checked problem, with a first schedule of `length` steps made of `constants`."""
    scaled, scaling = normalize(problem)
    (own, d), p, rank = scaled.rows.matrix.shape, scaled.p, scaled.rank
    weights = jnp.ones(own, p.dtype) if scaled.row_weights is None else scaled.row_weights

    def step(state: _State, run: _Run) -> _State:
        now, then = (scheduled_step(state.age + i, run.length, p, rank / d, run.sparse, constants) for i in (0, 1))
        began = state.age == 0
        alpha, kept = jnp.where(began, 1, now.alpha), jnp.where(began, 0, 1).astype(p.dtype)
        dual_factor = now.delta * now.rho / then.rho

        def block(TtL: Array, A: Array, omega: Array, L: Array, C: Array) -> tuple[Array, ...]:
            residual = A - L @ state.R
            E_and_U = alpha * residual + kept * C
            # The condition always holds. Without it, if p is a constant, XLA computes E + U in two fusions. Both read C
            # and one overwrites it, so that all of C would be copied at every block.
            S = jax.lax.cond(run.unit > 0, lambda y: prox(y, p, now.rho * run.unit), lambda y: y, E_and_U)
            U = E_and_U - S
            T = A - S + U
            L = T @ state.Q.T
            TtL = TtL + T.T @ (omega[:, None] * L)
            return TtL, L, (1 - then.alpha) * S + dual_factor * U, power_sums(residual, p)

        TtL, L, C, sums = fold_rows(block, scaled.rows, jnp.zeros((d, rank), p.dtype), weights, state.L, state.C)
        state = _consider(state, root_of_sum(scaled, sums))
        R = regress(state.Q @ TtL, TtL.T, state.Q)  # as L = TQᵀ, LᵀΩL = Q·TᵀΩL
        return state._replace(L=L, C=C, R=R, Q=qr(TtL)[0].T, age=state.age + 1, steps=state.steps + 1)

    def unit_of(mean: Scalar) -> Scalar:
        """The unit of ρ from the mean of |r|^p: p·(mean |r|)^{p−2}, as if all |r| were equal."""
        typical = jnp.maximum(mean ** (1 / p), jnp.finfo(p.dtype).tiny ** 0.25)
        return rho * p * typical ** (p - 2)

    def measure(L: Array, R: Array) -> tuple[Scalar, Scalar, Bool[Array, ""]]:
        """The objective of LR; the unit of ρ; and whether the residual is sparse.

        Like the prox, the unit does not depend on the weights, but it leaves out rows of weight 0.
        (mean |r|^{p/2})² / mean |r|^p is the share of nonzero entries if these are all equal; for Gaussian entries it
        is 0.85 (p = 1) to 0.64 (p = 2).
        """
        sums, roots = over_residual(scaled, L, R, lambda r: (power_sums(r, p), power_sums(r, p / 2)))
        counted = (weights > 0).astype(p.dtype)
        parts = blocked_sum(counted * sums), blocked_sum(counted * roots), jnp.sum(counted)
        total, root_total, count = over_devices(jax.lax.psum, parts, scaled.rows.axes)
        mean = total / (count * d)
        return root_of_sum(scaled, sums), unit_of(mean), (root_total / (count * d)) ** 2 < _SPARSE * mean

    def follow_schedule(run: _Run) -> _Run:
        state, lowest = run.state, run.state.lowest
        L, R = orthonormalize(*state.best)
        state = state._replace(L=L, R=R, Q=R, age=jnp.zeros_like(state.age))

        def unfinished(state: _State) -> Bool[Array, ""]:
            return (state.age < run.length) & (state.steps < scaled.num_iters) & (state.lowest > 0)

        state = jax.lax.while_loop(unfinished, lambda state: step(state, run), state)
        value, unit, sparse = measure(state.L, state.R)
        state = _consider(state, value)
        settled = (state.age == run.length) & (lowest - state.lowest <= scaled.tol * state.lowest)
        settled &= sparse == run.sparse  # else the other kind of schedule is still to be tried
        left_over = scaled.num_iters - state.steps
        # The last schedule takes all remaining steps: a schedule that is cut short is worth little.
        length = jnp.where(left_over < 4 * run.length, jnp.maximum(left_over, 1), 2 * run.length)
        return _Run(state, unit, length, sparse, settled | (state.lowest == 0))

    def unfinished(run: _Run) -> Bool[Array, ""]:
        return ~run.converged & (run.state.steps < scaled.num_iters)

    first = starting_pair(scaled)
    pair, none = (first.left, first.right), jnp.zeros((), jnp.int32)
    state = _State(
        first.left, jnp.zeros((own, d), p.dtype), first.right, first.right, none, none, pair, first.objective
    )
    plain = scaled.row_weights is None
    unit = unit_of(first.objective**p / (scaled.rows.shape[0] * d)) if plain else measure(*pair)[1]
    optimal = (p == 2) & (scaled.init is None and scaled.start != "clipped") | (first.objective == 0)
    run = jax.lax.while_loop(unfinished, follow_schedule, _Run(state, unit, length, jnp.zeros((), bool), optimal))
    L, R = orthonormalize(*run.state.best)
    solution = Solution(L, R, run.state.lowest, run.state.steps, run.converged)
    return finish(certified(scaled, solution, "entries"), scaling, problem.p)


def _consider(state: _State, value: Scalar) -> _State:
    """The state, its pair now the best if its objective `value` is the lowest. A NaN never is: it compares false."""
    improved = value < state.lowest
    best = select_tree(improved, (state.L, state.R), state.best)
    return state._replace(best=best, lowest=jnp.where(improved, value, state.lowest))
