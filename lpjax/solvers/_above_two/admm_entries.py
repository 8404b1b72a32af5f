"""ADMM for entries, p > 2: minimises the norm itself instead of its p-th power."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax._lapack import qr
from lpjax.solvers._core.problem import Scaled, orthonormalize, row_measures, whole_measure
from lpjax.solvers._core.prox import prox_above_two, prox_largest
from lpjax.solvers._core.regression import regress
from lpjax.solvers._core.solution import Solution
from lpjax.solvers._core.start import select_tree, starting_pair

_RELAXATION = 1.6  # Boyd et al. find 1.5 to 1.8 best
_GROWTH = 10.0  # of ρ over a schedule


class _State(NamedTuple):
    """Between steps; S and U are 0 at first. `gained` is the last step with a relative decrease above tol."""

    L: Float[Array, "n k"]
    R: Float[Array, "k d"]
    Q: Float[Array, "k d"]
    S: Float[Array, "n d"]
    U: Float[Array, "n d"]
    norm: Scalar
    steps: Int[Array, ""]
    gained: Int[Array, ""]
    best: tuple[Float[Array, "n k"], Float[Array, "k d"]]
    lowest: Scalar


def solve(problem: Scaled, rho: Scalar, length: Int[Array, ""]) -> Solution:
    """Lower (Σ_i ω_i Σ_j |a_ij − (LR)_ij|^p)^{1/p} for p > 2; the steps are those of `admm_entries`.

    The problem is min ‖S‖ with ‖S‖ = (Σ_i ω_i ‖s_i‖_p^p)^{1/p}, subject to A = LR + S. For the p-th power, which is
    minimised for p ≤ 2, no single ρ is suitable if p is large. For finite p the step for S is the prox of
    ‖S‖^p / (pN^{p−1}), which up to a constant majorizes the norm and is tangent to it at ‖S‖ = N, the norm of the
    previous S; at p = ∞ it is the prox of the largest magnitude. α = 1.6, and ρ grows tenfold over `length` steps from
    ‖A − LR‖ / ‖A − LR‖_F² of the start. Only these two numbers were tuned, on Gaussian, Laplace and Student-t matrices.
    One long schedule reaches a lower objective than several short ones, each of which discards S and U.

    The run has converged if no step of the last quarter of `length` lowered the objective by a fraction above tol.
    """
    p, matrix = problem.p, problem.rows.read()
    (n, d), dtype = matrix.shape, matrix.dtype
    weights = jnp.ones(n, dtype) if problem.row_weights is None else problem.row_weights
    first = starting_pair(problem)
    L, R = orthonormalize(first.left, first.right)
    squares = jnp.sum(weights[:, None] * (matrix - L @ R) ** 2)
    unit = rho * first.objective / jnp.where(squares > 0, squares, 1)

    def norm_of(residual: Array) -> Scalar:
        return whole_measure(problem, row_measures(problem, residual, "entries"))

    def least_norm(Y: Array, penalty: Scalar, norm: Scalar) -> Array:
        def finite(Y: Array) -> Array:
            power = jnp.where(jnp.isinf(p), 3, p)
            return norm * prox_above_two(Y / norm, power, power * penalty * norm)

        return jax.lax.cond(jnp.isinf(p), lambda Y: prox_largest(Y, penalty, weights > 0), finite, Y)

    def penalty_at(age: Array) -> Scalar:
        at = age.astype(dtype) / jnp.maximum(length - 1, 1).astype(dtype)
        return unit * _GROWTH ** jnp.minimum(at, 1)

    def settled(state: _State) -> Bool[Array, ""]:
        return (state.lowest == 0) | ((state.steps >= length) & (state.steps - state.gained > length // 4))

    def step(state: _State) -> _State:
        penalty = penalty_at(state.steps)
        residual = matrix - state.L @ state.R
        state = _consider(state, norm_of(residual), problem.tol)
        alpha = jnp.where(state.steps == 0, 1, _RELAXATION)
        Y = alpha * residual + (1 - alpha) * state.S + state.U
        S = least_norm(Y, penalty, state.norm)
        U = Y - S
        T = matrix - S + U
        L = T @ state.Q.T
        TtL = T.T @ (weights[:, None] * L)
        R = regress(state.Q @ TtL, TtL.T, state.Q)  # as L = TQᵀ, LᵀΩL = Q·TᵀΩL
        norm = jnp.clip(norm_of(S), state.norm / 4, 4 * state.norm)
        U = U * (penalty / penalty_at(state.steps + 1))
        return state._replace(L=L, R=R, Q=qr(TtL)[0].T, S=S, U=U, norm=norm, steps=state.steps + 1)

    def unfinished(state: _State) -> Bool[Array, ""]:
        return ~settled(state) & (state.steps < problem.num_iters)

    pair, none, zeros = (first.left, first.right), jnp.zeros((), jnp.int32), jnp.zeros((n, d), dtype)
    start = _State(L, R, R, zeros, zeros, first.objective, none, none, pair, first.objective)
    last = jax.lax.while_loop(unfinished, step, start)
    last = _consider(last, norm_of(matrix - last.L @ last.R), problem.tol)
    return Solution(*orthonormalize(*last.best), last.lowest, last.steps, settled(last))


def _consider(state: _State, value: Scalar, tol: Scalar) -> _State:
    """The state, its pair now the best if its objective `value` is the lowest. A NaN never is: it compares false."""
    improved = value < state.lowest
    gained = jnp.where(state.lowest - value > tol * state.lowest, state.steps, state.gained)
    best = select_tree(improved, (state.L, state.R), state.best)
    return state._replace(best=best, lowest=jnp.where(improved, value, state.lowest), gained=gained)
