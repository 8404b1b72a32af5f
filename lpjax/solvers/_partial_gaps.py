"""Lower bounds of the objective over entries if only one factor changes: two convex problems, by duality."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Scalar

from lpjax._exponents import ldexp
from lpjax._lapack import qr
from lpjax._powers import root_of_scale
from lpjax._repr import short_repr
from lpjax.objectives import blocked_sum, power_sums
from lpjax.solvers._core.certificate import factors_of
from lpjax.solvers._core.checks import make_problem
from lpjax.solvers._core.problem import Problem, normalize
from lpjax.solvers._core.prox import prox
from lpjax.solvers._core.solution import gap_of
from lpjax.solvers.table import Interval

_RANGE = Interval(1, 2)
_LOOK = 20  # iterations between two evaluations of the bound


class PartialGaps(NamedTuple):
    """Lower bounds of the objective if only one factor changes; a pytree.

    Attributes:
        objective: (Σ_i ω_i Σ_j |a_ij − (LR)_ij|^p)^{1/p} of the pair.
        left_bound: lower bound of the objective over all left factors, for this right one.
        right_bound: lower bound of the objective over all right factors, for this left one.
    """

    objective: Scalar | Float[Array, "*batch"]
    left_bound: Scalar | Float[Array, "*batch"]
    right_bound: Scalar | Float[Array, "*batch"]

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def left(self) -> Scalar | Float[Array, "*batch"]:
        """1 − left_bound/objective: the largest relative decrease that a change of left alone could bring."""
        return gap_of(self.objective, self.left_bound)

    @property
    def right(self) -> Scalar | Float[Array, "*batch"]:
        """1 − right_bound/objective: the largest relative decrease that a change of right alone could bring."""
        return gap_of(self.objective, self.right_bound)


def partial_gaps(
    matrix: ArrayLike,
    solution: Any,
    *,
    p: Any = 1.0,
    row_weights: ArrayLike | None = None,
    num_iters: int = 200,
) -> PartialGaps:
    """Bound the objective over entries from below if only the left, or only the right factor changes.

    With R fixed the rows are independent convex problems, and by Hölder's inequality, 1/p + 1/q = 1,

        ‖a_i − l R‖_p ≥ y_iᵀ a_i / ‖y_i‖_q   for every l and every y_i with R y_i = 0.

    Candidates for y_i are the derivative of |r|^p and the scaled dual of ADMM, which runs on these problems from the
    given pair. Each is projected onto the null space of R, and every row takes its best value, so a bound is valid
    whether or not ADMM has converged. With L fixed, the same holds for columns. A small gap means that alternating
    minimisation has converged; it does not bound pairs that differ in both factors.

    Args:
        matrix: A, shape (n, d), of finite numbers; memory peaks at about three times its size.
        solution: a `Solution`, a `LowRank` without single entries, or a pair (left, right).
        p: exponent, from 1 to 2; may be traced. Above 2 powers of the dual would overflow or underflow.
        row_weights: ω ≥ 0, shape (n,); ones by default.
        num_iters: number of ADMM steps for each factor; more of them tighten the bounds.

    Raises:
        ValueError: matrix not 2-D, not numeric, not finite; p out of range; weights or factors of the wrong shape or
            negative; a solution with single entries.
    """
    left, right = factors_of(solution)
    if not isinstance(p, Tracer):
        _RANGE.check(p)
    problem = make_problem(
        matrix, left.shape[1], "admm_entries",
        p=p, num_iters=num_iters, tol=0.0, row_weights=row_weights, init=(left, right),
    )  # fmt: skip
    with jax.default_matmul_precision("highest"):
        return _partial_gaps(problem)


@jax.jit
def _partial_gaps(problem: Problem) -> PartialGaps:
    scaled, scaling = normalize(problem)
    assert scaled.init is not None
    (left, right), p = scaled.init, scaled.p
    residual = scaled.rows.read() - left @ right
    omega = jnp.ones(residual.shape[0], p.dtype) if scaled.row_weights is None else scaled.row_weights
    root = omega[:, None] ** (1 / p)
    by_row = _least_norms(residual, right, p, scaled.num_iters)
    by_column = _least_norms((root * residual).T, (root * left).T, p, scaled.num_iters)
    sums = (omega * power_sums(residual, p), omega * by_row**p, by_column**p)
    factor, exponent = root_of_scale(scaling.row_weights, p)
    safe = 1 - 16 * jnp.finfo(p.dtype).eps
    value, *bounds = (ldexp(factor * blocked_sum(part) ** (1 / p), scaling.matrix + exponent) for part in sums)
    bounds = [jnp.where(scaling.finite, safe * bound, 0) for bound in bounds]
    return PartialGaps(jnp.where(scaling.finite, value, jnp.inf), *bounds)


def _least_norms(
    residual: Float[Array, "m e"], basis: Float[Array, "k e"], p: Scalar, num_iters: Scalar
) -> Float[Array, " m"]:
    """Lower bounds of min over x of ‖r_i − xB‖_p, for every row r_i."""
    basis = qr(basis.T)[0]
    # Relative to its mean magnitude, one penalty suits every row.
    mean = jnp.mean(jnp.abs(residual), axis=1, keepdims=True)
    rows = residual / jnp.where(mean > 0, mean, 1)
    dtype, length = rows.dtype, rows.shape[1]
    eps = jnp.finfo(dtype).eps
    euclidean = jnp.sqrt(jnp.sum(rows**2, axis=1))
    # ‖xB‖₂ ≤ ‖r‖₂ + ‖r − xB‖₂ for the best x, for which ‖r − xB‖_p ≤ ‖r‖_p.
    reach = euclidean + power_sums(rows, p) ** (1 / p) * length ** jnp.maximum(0.5 - 1 / p, 0)

    def inside(vectors: Array) -> Array:
        return (vectors @ basis) @ basis.T

    def bound(dual: Array) -> Array:
        dual = dual - inside(dual)
        dual = dual - inside(dual)  # twice, as the first projection leaves rounding errors
        size = jnp.sqrt(jnp.sum(dual**2, axis=1))
        slip = jnp.sqrt(jnp.sum((dual @ basis) ** 2, axis=1)) + 2 * eps * size
        margin = slip * reach + 2 * eps * length**0.5 * size * euclidean
        norm = _dual_norm(dual, p)
        value = (jnp.sum(dual * rows, axis=1) - margin) / jnp.where(norm > 0, norm, 1)
        return jnp.where(norm > 0, value, 0)

    def step(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        fit, dual = state
        mixed = rows - fit + dual
        sparse = prox(mixed, p, p)
        dual = mixed - sparse
        return inside(rows - sparse + dual), dual

    def look(state: tuple[Any, Array, Array]) -> tuple[Any, Array, Array]:
        variables, best, done = state  # of ADMM: xB and U
        count = jnp.minimum(_LOOK, num_iters - done)
        variables = jax.lax.fori_loop(0, count, step, variables)
        return variables, jnp.maximum(best, bound(variables[1])), done + count

    derivative = jnp.sign(rows) * jnp.abs(rows) ** (p - 1)
    first = jnp.maximum(bound(derivative), 0)
    start = ((jnp.zeros_like(rows), derivative / p), first, jnp.zeros_like(num_iters))
    best = jax.lax.while_loop(lambda state: state[2] < num_iters, look, start)[1]
    return best * mean[:, 0]


def _dual_norm(rows: Float[Array, "m e"], p: Scalar) -> Float[Array, " m"]:
    """‖·‖_q of rows, 1/p + 1/q = 1, in units of their largest magnitudes; q = ∞ at p = 1."""
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    share = 1 - 1 / p  # 1/q
    q = 1 / jnp.where(share > 0, share, 1)
    powers = jnp.sum((jnp.abs(rows) / jnp.where(largest > 0, largest, 1)) ** q, axis=1)
    powers = jnp.where(powers > 0, powers, 1)
    return largest[:, 0] * jnp.where(share > 0, powers**share, 1) * (1 + 16 * jnp.finfo(rows.dtype).eps)
