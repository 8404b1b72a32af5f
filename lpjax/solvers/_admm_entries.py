"""ADMM for outlier entries: the fast one."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax._lapack import qr, solve_definite
from lpjax.objectives import blocked_sum, power_sums
from lpjax.solvers._core.problem import (
    Problem,
    default_tol,
    finish,
    make_problem,
    normalize,
    over_residual,
    root_of_sum,
)
from lpjax.solvers._core.prox import prox
from lpjax.solvers._core.rows import over_devices, scan_rows
from lpjax.solvers._core.sharded import spread
from lpjax.solvers._core.solution import Solution
from lpjax.solvers._core.start import Init, select_tree, split_init, starting_pair
from lpjax.solvers.table import SOLVERS

_LONGEST_FIRST_PLAN = 20
_SPARSE = 0.25  # share of the entries, as `measure` counts them, below which a residual is taken for outliers


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
    plan: int | None = None,
) -> Solution:
    """Lower (Σ_i ω_i Σ_j |a_ij − (LR)_ij|^p)^{1/p} over rank-k LR by ADMM on A = LR + S.

    S by the prox of |·|^p; L, then R by one round of alternating least squares on T = A − S + U, L from the basis Q of
    R's rows: L = TQᵀ, R = argmin ‖T − LR‖; U by the scaled dual step (Boyd et al., Distributed Optimization and
    Statistical Learning via ADMM, 2011, §3.1.1, §3.4.1 for the varying penalty, §3.4.3 for
    over-relaxation, and §9), the penalty of row i being ω_i ρ, by which its prox does not depend on ω_i. The problem
    is not convex in (L, R): the iterates need not fall one by one, and the best one is handed back.

    ρ, the over-relaxation and a damping of U are planned over a number of steps: a small ρ moves the pair far, a
    large one at the end makes it settle. 16 planned steps come nearer to the optimum than 60 of ever larger ones.
    After a plan follows one of at least twice its length, from the best pair so far; where the residual is by then
    concentrated on few entries, it is one of plain ADMM under a growing ρ, which recovers a low-rank matrix with
    outliers to the last digits.

    Args:
        matrix: A, shape (n, d), of finite numbers.
        rank: k, from 1 to min(n, d); static under jit.
        p: exponent in [1, 2]; may be traced. At p = 2 the start is optimal and is handed back.
        num_iters: iteration limit; three plans by default.
        tol: relative fall of the best objective in a whole plan that ends the run; eps^{0.5} by default.
        row_weights: ω ≥ 0, shape (n,); ones by default.
        init: "svd", "lewis", "clipped" (the SVD after clipping large entries), "best" of the three (default), a pair
            (left, right), a `LowRank` or a `Solution`.
        rho: what the planned penalties are multiplied by, above 0.
        plan: steps of the first plan, 1 or more; by default at most 20, and such that the plans after it fit into
            `num_iters`. At p = 1, on a real embedding, a plan of 5 steps comes within 5 % of the optimum, of 16
            within 1 %.

    Returns:
        `Solution` with the best iterate, never worse than the start; its objective is over entries.

    Raises:
        ValueError: matrix not 2-D, not numbers, not finite; rank or p out of range; weights or init of the wrong
            shape or negative; rho or plan out of range.
    """
    name, pair = split_init(init, SOLVERS["admm_entries"].starts)
    problem = make_problem(
        matrix,
        rank,
        solver="admm_entries",
        p=p,
        num_iters=num_iters,
        tol=default_tol(matrix, 0.5) if tol is None else tol,
        row_weights=row_weights,
        init=pair,
    )
    if not isinstance(rho, jax.core.Tracer) and not 0 < rho < float("inf"):
        raise ValueError(f"`rho` is {rho!r}; expected a finite number above 0")
    if plan is None:
        plans = jnp.ceil(jnp.log2(problem.num_iters.astype(jnp.float32) / _LONGEST_FIRST_PLAN + 1))
        steps = jnp.maximum(problem.num_iters // (2 ** plans.astype(jnp.int32) - 1), 1)
    elif isinstance(plan, jax.core.Tracer) or (isinstance(plan, int | np.integer) and plan >= 1):
        steps = jnp.asarray(plan, jnp.int32)
    else:
        raise ValueError(f"`plan` is {plan!r}; expected a whole number, 1 or more")
    given = jnp.asarray(rho, problem.p.dtype), steps
    return spread(_admm_entries, problem, *given, rank=rank, init=name)


class _Step(NamedTuple):
    """What a plan says of one step: ρ in units of the plan, over-relaxation, damping of U."""

    rho: Scalar
    relaxation: Scalar
    damping: Scalar


def _planned(age: Int[Array, ""], length: Int[Array, ""], p: Scalar, share: float, sparse: Bool[Array, ""]) -> _Step:
    """Step `age`, from 0, of a plan of `length`.

    log ρ is a parabola over the plan. Its coefficients and the two others were fitted, by gradient descent through
    the iteration, to the objective after 4, 8, 16 and 32 steps on rows of a real embedding at p = 1, k/d = 0.52, and
    checked at other ranks and p, on kernels and on synthetic matrices: the longer the plan, the lower ρ begins and
    the higher it ends. Near p = 2 hardly anything matters, but for a ρ below half of this, by which nothing settles.

    Args:
        share: k/d. What R leaves of a row, (1 − k/d), the steps are to be in proportion to.
        sparse: plain ADMM instead, its ρ growing to 30: a damped U forgets the outliers that it has to hold.
    """
    doublings = jnp.log2(length.astype(p.dtype) / 4)
    begin = (-0.19 - 0.29 * doublings) * (3 - p) / 2
    middle = 0.25 - (p - 1)
    end = (1.3 + 0.66 * doublings) * (2 - p) ** 3
    at = age.astype(p.dtype) / jnp.maximum(length - 1, 1).astype(p.dtype)
    bend = 2 * (begin + end - 2 * middle)
    rho = jnp.exp(begin + (end - begin - bend) * at + bend * at**2) * (max(1 - share, 0.05) / 0.48) ** (0.7 * (2 - p))
    slowness = 2**-doublings
    fitted = _Step(rho, 2 - 0.8 * slowness**0.36, 1 - jnp.minimum(0.38 * slowness**0.6, 1) * (2 - p) ** 4)
    one = jnp.ones((), p.dtype)
    return select_tree(sparse, _Step(30**at, one, one), fitted)


class _State(NamedTuple):
    """The pair, an orthonormal basis of R's rows, what S and U leave to the next step; and the best pair so far."""

    left: Float[Array, "n k"]
    carried: Float[Array, "n d"]
    right: Float[Array, "k d"]
    basis: Float[Array, "k d"]
    age: Int[Array, ""]
    steps: Int[Array, ""]
    best: tuple[Float[Array, "n k"], Float[Array, "k d"]]
    lowest: Scalar


class _Run(NamedTuple):
    """The state between plans; of the next plan the unit of ρ, the length, and whether it is for a sparse residual."""

    state: _State
    unit: Scalar
    length: Int[Array, ""]
    sparse: Bool[Array, ""]
    converged: Bool[Array, ""]


@functools.partial(jax.jit, static_argnames=("rank", "init"))
def _admm_entries(problem: Problem, rho: Scalar, plan: Scalar, *, rank: int, init: Init) -> Solution:
    scaled, scaling = normalize(problem)
    (own, d), p = scaled.rows.matrix.shape, scaled.p
    weights = jnp.ones(own, p.dtype) if scaled.row_weights is None else scaled.row_weights

    def step(state: _State, run: _Run) -> _State:
        now, then = (_planned(state.age + i, run.length, p, rank / d, run.sparse) for i in (0, 1))
        began = state.age == 0
        relaxation, kept = jnp.where(began, 1, now.relaxation), jnp.where(began, 0, 1).astype(p.dtype)
        dual_share = now.damping * now.rho / then.rho

        def block(total: Array, rows: Array, fresh: Array, weight: Array, state_rows: Any) -> tuple[Array, Any, Any]:
            left, carried = state_rows
            residual = rows - jnp.matmul(left, state.right, precision="highest")
            pulled = relaxation * residual + kept * carried
            # The condition always holds. Without it XLA makes `pulled` twice where p is a constant, in two fusions:
            # with two readers of `carried`, one of which writes it anew, all of it is copied at every block.
            sparse = jax.lax.cond(run.unit > 0, lambda y: prox(y, p, now.rho * run.unit), lambda y: y, pulled)
            dual = pulled - sparse
            target = rows - sparse + dual
            left = jnp.matmul(target, state.basis.T, precision="highest")
            total = total + jnp.matmul(target.T, jnp.where(fresh, weight, 0)[:, None] * left, precision="highest")
            return total, (left, (1 - then.relaxation) * sparse + dual_share * dual), power_sums(residual, p)

        empty = jnp.zeros((d, rank), p.dtype)
        rows = (state.left, state.carried)
        total, (left, carried), sums = scan_rows(block, scaled.rows, empty, given=weights, state=rows)
        state = _consider(state, root_of_sum(scaled, sums))
        right = _regress(jnp.matmul(state.basis, total, precision="highest"), total.T, state.basis)
        basis = qr(total)[0].T
        return state._replace(
            left=left, carried=carried, right=right, basis=basis, age=state.age + 1, steps=state.steps + 1
        )

    def unit_of(mean: Scalar) -> Scalar:
        """What ρ is measured in, p·(mean |r|)^{p−2}, were all |r| equal, for a mean of |r|^p."""
        typical = jnp.maximum(mean ** (1 / p), jnp.finfo(p.dtype).tiny ** 0.25)
        return rho * p * typical ** (p - 2)

    def measure(left: Array, right: Array) -> tuple[Scalar, Scalar, Bool[Array, ""]]:
        """The objective of a pair; ρ's unit, in which weights have no say, as the prox of a row does not depend on its
        own; but a row of weight 0 is left out; and whether the residual is sparse. (mean |r|^{p/2})² / mean |r|^p is
        the share of the entries that are not 0, were those all equal, and 0.85 (p = 1) to 0.64 (p = 2) of a Gaussian's.
        """
        sums, roots = over_residual(scaled, left, right, lambda r: (power_sums(r, p), power_sums(r, p / 2)))
        counted = (weights > 0).astype(p.dtype)
        parts = blocked_sum(counted * sums), blocked_sum(counted * roots), jnp.sum(counted)
        total, root_total, count = over_devices(jax.lax.psum, parts, scaled.rows.axes)
        mean = total / (count * d)
        return root_of_sum(scaled, sums), unit_of(mean), (root_total / (count * d)) ** 2 < _SPARSE * mean

    def follow_plan(run: _Run) -> _Run:
        state, lowest = run.state, run.state.lowest
        left, right = _orthonormalize(*state.best)
        state = state._replace(left=left, right=right, basis=right, age=jnp.zeros_like(state.age))

        def unfinished(state: _State) -> Bool[Array, ""]:
            return (state.age < run.length) & (state.steps < scaled.num_iters) & (state.lowest > 0)

        state = jax.lax.while_loop(unfinished, lambda state: step(state, run), state)
        value, unit, sparse = measure(state.left, state.right)
        state = _consider(state, value)
        settled = (state.age == run.length) & (lowest - state.lowest <= scaled.tol * state.lowest)
        settled &= sparse == run.sparse  # the other kind of plan has not had its turn
        left_over = scaled.num_iters - state.steps
        # The last plan takes what is left: cut short, a plan is worth little.
        length = jnp.where(left_over < 4 * run.length, jnp.maximum(left_over, 1), 2 * run.length)
        return _Run(state, unit, length, sparse, settled | (state.lowest == 0))

    def unfinished(run: _Run) -> Bool[Array, ""]:
        return ~run.converged & (run.state.steps < scaled.num_iters)

    first = starting_pair(scaled, rank, init)
    none = jnp.zeros((), jnp.int32)
    pair = (first.left, first.right)
    state = _State(
        first.left, jnp.zeros((own, d), p.dtype), first.right, first.right, none, none, pair, first.objective
    )
    plain = scaled.row_weights is None
    unit = unit_of(first.objective**p / (scaled.rows.shape[0] * d)) if plain else measure(*pair)[1]
    optimal = (p == 2) & (scaled.init is None and init != "clipped") | (first.objective == 0)
    run = jax.lax.while_loop(unfinished, follow_plan, _Run(state, unit, plan, jnp.zeros((), bool), optimal))
    left, right = _orthonormalize(*run.state.best)
    return finish(Solution(left, right, run.state.lowest, run.state.steps, run.converged), scaling, problem.p)


def _consider(state: _State, value: Scalar) -> _State:
    """The state, its pair, of objective `value`, the best if it is. A NaN compares false: it is never the best."""
    improved = value < state.lowest
    best = select_tree(improved, (state.left, state.right), state.best)
    return state._replace(best=best, lowest=jnp.where(improved, value, state.lowest))


def _orthonormalize(left: Float[Array, "n k"], right: Float[Array, "k d"]) -> tuple[Array, Array]:
    """The same product, the rows of `right` orthonormal."""
    orthonormal, triangle = qr(right.T)
    return jnp.matmul(left, triangle.T, precision="highest"), orthonormal.T


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
    right = scale[:, None] * solve_definite(correlation, scale[:, None] * moment)
    return jnp.where(jnp.all(jnp.isfinite(right)), right, fallback)
