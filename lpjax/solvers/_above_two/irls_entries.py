"""IRLS for entries, p > 2: alternating weighted least squares with a line search for every row."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from lpjax._powers import over_largest, roots, size
from lpjax.solvers._above_two.stages import first_exponent, is_last, next_exponent, stage_tolerance
from lpjax.solvers._core.problem import Scaled, orthonormalize, root_of_powers
from lpjax.solvers._core.regression import regress_rows
from lpjax.solvers._core.solution import Solution
from lpjax.solvers._core.start import descend, starting_pair

_HALVINGS = 12
_PADDING = 0.4  # weights are padded by eps to this power, relative to the largest of a row


class _State(NamedTuple):
    left: Float[Array, "n k"]
    right: Float[Array, "k d"]
    residual: Float[Array, "n d"]
    exponent: Scalar
    settled: Bool[Array, ""]


def solve(problem: Scaled) -> Solution:
    """Lower (Σ_i ω_i Σ_j |a_ij − (LR)_ij|^p)^{1/p} for p > 2.

    With the other factor fixed, a row's problem is convex: min over x of Σ_j |r_j − xᵀy_j|^p. Weighted least squares
    with w_j = |r_j|^{p−2} gives the step Δ; Newton's step is Δ/(p − 1). The full step Δ of IRLS need not descend (Adil,
    Peng & Sachdeva, arXiv 1907.07167, who also pad small weights). Here every row takes the best of Δ/(p − 1), Δ/2^j
    and no step, so that the objective falls in every half of a sweep.

    A large p is reached in stages q = 4, 8, …, 1024 (`stages.py`); the best pair at p itself is returned.
    """
    p, matrix = problem.p, problem.rows.read()

    def half(design: Array, residual: Array, root: Array, q: Scalar) -> Array:
        """The step for every row of `residual`; entry j has the weight root_j^q."""
        counted = root * jnp.abs(residual)
        largest = jnp.max(counted, axis=1, keepdims=True)
        heavy = root**2 * over_largest(counted, largest) ** (q - 2)
        padded = heavy + jnp.finfo(residual.dtype).eps ** _PADDING * root**2
        share = heavy / jnp.where(padded > 0, padded, 1)
        move = regress_rows(design, padded, share * residual)
        moved = move @ design
        lengths = jnp.append(0.5 ** jnp.arange(_HALVINGS, dtype=residual.dtype), 1 / (q - 1))

        def compare(j: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
            least, length = best
            t = lengths[j]
            cost = jnp.sum(over_largest(root * (residual - t * moved), largest) ** q, axis=1)
            lower = cost < least
            return jnp.where(lower, cost, least), jnp.where(lower, t, length)

        here = jnp.sum(over_largest(counted, largest) ** q, axis=1)
        _, length = jax.lax.fori_loop(0, lengths.shape[0], compare, (here, jnp.zeros_like(here)))
        return length[:, None] * move

    def value(residual: Array, q: Scalar) -> Scalar:
        return root_of_powers(problem._replace(p=q), size(residual, q, axis=1))

    ones = jnp.ones(matrix.shape[0], matrix.dtype)

    def step(state: _State) -> tuple[_State, tuple[Array, Array], Scalar, Bool[Array, ""]]:
        left, right, residual, q, settled = state
        q = jnp.where(settled, next_exponent(q, p), q)
        before = value(residual, q)
        left = left + half(right, residual, jnp.ones((1, matrix.shape[1]), matrix.dtype), q)
        # Orthonormal rows of R keep the systems of the next halves well scaled; LR is unchanged.
        left, right = orthonormalize(left, right)
        root = roots(ones if problem.row_weights is None else problem.row_weights, q)
        right = right + half(left.T, (matrix - left @ right).T, root[None, :], q).T
        residual = matrix - left @ right
        settled = before - value(residual, q) <= stage_tolerance(q, p, problem.tol) * before
        done = settled & is_last(q, p)
        return _State(left, right, residual, q, settled), (left, right), value(residual, p), done

    first = starting_pair(problem)
    pair, never = (first.left, first.right), jnp.zeros((), bool)
    state = _State(*pair, matrix - first.left @ first.right, first_exponent(p), never)
    outcome = descend(step, state, pair, first.objective, problem.num_iters, optimal=never)
    return Solution(*orthonormalize(*outcome.best), outcome.objective, outcome.num_iters, outcome.converged)
