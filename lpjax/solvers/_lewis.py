"""Lewis weights and the ellipsoid that they define: the default geometric solver."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax._lapack import descending_eigh
from lpjax.objectives import Over
from lpjax.solvers._above_two.lewis import Design, design
from lpjax.solvers._core.certificate import certified
from lpjax.solvers._core.checks import make_problem
from lpjax.solvers._core.geometry import Coordinates, axes, coordinates, truncate
from lpjax.solvers._core.problem import Problem, finish, normalize, on_either_side
from lpjax.solvers._core.rows import fold_rows, over_devices
from lpjax.solvers._core.sharded import run_sharded
from lpjax.solvers._core.solution import Ellipsoid, Solution
from lpjax.solvers._core.spectrum import Panels, add_gram, no_gram, whole_gram


def lewis(
    matrix: ArrayLike,
    rank: int,
    *,
    p: Any = 1.0,
    num_iters: int = 100,
    tol: float | None = None,
    row_weights: ArrayLike | None = None,
    init: None = None,
    over: Over = "entries",
) -> Solution:
    """Truncate the ‖·‖_p-SVD A = U D Vᵀ of the Lewis ellipsoid to its k largest values: A_k = A V_k V_kᵀ.

    The Lewis weights are the fixed point w_i = (a_iᵀ M⁻¹ a_i)^{p/2}, M = Σ_i w_i^{1−2/p} a_i a_iᵀ = V D² Vᵀ
    (Cohen & Peng, arXiv 1412.0588, §3). At p = 2 they are the leverage scores, and A_k is the truncated SVD.
    With c = r^{1/p−1/2}, r = rank A:  ‖x‖_M ≤ ‖Ax‖_p ≤ c‖x‖_M  for p ≤ 2,  c‖x‖_M ≤ ‖Ax‖_p ≤ ‖x‖_M  for p ≥ 2.
    At p = ∞ the ellipsoid is John's, the largest one inside the polytope |a_iᵀx| ≤ 1, and w is a D-optimal design:
    a_iᵀM⁻¹a_i is 1 if w_i > 0, and at most 1 otherwise. For p > 2 `upper` is e^{(1/2−1/p)·max v} with
    v_i = log(a_iᵀM⁻¹a_i) − (2/p) log w_i, and holds whether or not the iteration has converged.

    Args:
        matrix: A, shape (n, d), of finite numbers. An `np.memmap` with n ≥ d stays in its file.
        rank: k, from 1 to min(n, d); static under jit.
        p: exponent above 0, ∞ included; may be traced.
        num_iters: iteration limit.
        tol: largest relative residual of the fixed point, max_i |log w_i − log (a_iᵀM⁻¹a_i)^{p/2}|, at p = ∞
            max_i a_iᵀM⁻¹a_i − 1; √eps by default. For p ≥ 100 the default `num_iters` may not suffice.
        row_weights: ω ≥ 0, shape (n,): the level set is then that of (Σ ω_i |a_iᵀx|^p)^{1/p}.
        init: unused, as the iteration converges from any start; accepted so that solvers are interchangeable.
        over: reported objective, "entries" or "rows".

    Returns:
        `Solution` with an `Ellipsoid` that holds the weights.

    Raises:
        ValueError: matrix not 2-D, not numeric, not finite; rank or p out of range; weights of the wrong shape or
            negative.
    """
    problem = make_problem(matrix, rank, "lewis", p=p, num_iters=num_iters, tol=tol, row_weights=row_weights)
    return run_sharded(_lewis, problem, over=over)


@functools.partial(jax.jit, static_argnames="over")
@on_either_side
def _lewis(problem: Problem, over: Over) -> Solution:
    scaled, scaling = normalize(problem)
    coords = coordinates(scaled)

    def iterated() -> tuple[Ellipsoid, Array, Array]:
        if scaled.high:
            best, num_iters = design(coords, scaled.p, scaled.tol, scaled.num_iters)
            return _of_design(coords, best, scaled.p), num_iters, best.residual <= scaled.tol
        point = fixed_point(coords, scaled.p, scaled.tol, scaled.num_iters)
        return ellipsoid(coords, point, scaled.p), point.num_iters, point.residual <= scaled.tol

    def known() -> tuple[Ellipsoid, Array, Array]:
        # M = Σ a_i a_iᵀ over independent rows: a_iᵀ M⁺ a_i = 1 for each of them.
        weights = jnp.ones(scaled.rows.matrix.shape[0], scaled.p.dtype)
        axes = (coords.singular_values, coords.vectors)
        return _bounded(coords, *axes, weights, scaled.p), jnp.zeros((), jnp.int32), jnp.ones((), bool)

    n, d = scaled.rows.shape
    body, num_iters, converged = jax.lax.cond(jnp.all(coords.active), known, iterated) if n <= d else iterated()
    solution = truncate(scaled, over, body, num_iters, converged)
    return finish(certified(scaled, solution, over), scaling, problem.p)


class FixedPoint(NamedTuple):
    """State of the iteration.

    Attributes:
        weights: w with Σw = r, shape (n,).
        factor: F of the metric M(w) = FᵀF in whitened coordinates, shape (r, r).
        inverse: F⁻¹, zero past the rank of A.
        change: max_i |log w_i − log w_i of the previous map|.
        residual: estimate of the relative distance of w from the fixed point.
        num_iters: number of maps.
    """

    weights: Float[Array, " n"]
    factor: Float[Array, "r r"]
    inverse: Float[Array, "r r"]
    change: Scalar
    residual: Scalar
    num_iters: Int[Array, ""]


def ellipsoid(coords: Coordinates, point: FixedPoint, p: Scalar) -> Ellipsoid:
    """The Lewis ellipsoid of a fixed point, with its two-sided bound."""
    return _bounded(coords, *axes(coords, point.factor), point.weights, p)


def _bounded(coords: Coordinates, values: Array, vectors: Array, weights: Array, p: Scalar) -> Ellipsoid:
    distortion = coords.dimension ** (1 / p - 0.5)
    return Ellipsoid(values, vectors, jnp.minimum(distortion, 1), jnp.maximum(distortion, 1), weights)


def _of_design(coords: Coordinates, best: Design, p: Scalar) -> Ellipsoid:
    """The ellipsoid of a design for p > 2; both sides of its bound hold for any w with Σw = r."""
    lower = coords.dimension ** (1 / p - 0.5)
    upper = jnp.exp((0.5 - 1 / p) * jnp.maximum(best.excess, 0))
    return Ellipsoid(*axes(coords, best.factor), lower, upper, jnp.exp(best.log_weights))


def fixed_point(coords: Coordinates, p: Scalar, tol: Scalar, num_iters: Scalar) -> FixedPoint:
    """Iterate w ← (qᵀM(w)⁻¹q)^{p/2} from w = 1, whose metric is AᵀA, scaling w to Σw = r.

    Cohen & Peng's map contracts log w by |1 − p/2| along the constant direction, and along others additionally by the
    eigenvalues of a stochastic matrix, which are small if n ≫ d. Σw = r holds at the fixed point, so scaling does not
    move it, but removes the slow direction: 3 to 6 maps suffice instead of 30.

    One map is one pass over row blocks: rows whitened by the previous metric give both their new weights and their
    terms of the new metric, in coordinates in which that metric is near the identity.
    """
    rows, dtype = coords.rows, coords.rows.dtype

    def advance(state: FixedPoint) -> FixedPoint:
        whitening = coords.whitening @ state.inverse

        def block(total: Panels, rows: Array, once: Array) -> tuple[Panels, Array]:
            white = rows @ whitening
            mapped = jnp.sum(white**2, axis=1) ** (p / 2)
            # w^{1−2/p}; a row of zeros has weight 0 and adds nothing to the metric.
            counted = (once > 0) & (mapped > 0)
            powers = jnp.where(counted, jnp.where(counted, mapped, 1) ** (1 - 2 / p), 0)
            return add_gram(total, white, powers), mapped

        total, mapped = fold_rows(block, rows, no_gram(whitening.shape[1], dtype), None)
        metric = whole_gram(total)
        mass = over_devices(jax.lax.psum, jnp.sum(mapped), rows.axes)
        scale = coords.dimension / jnp.maximum(mass, jnp.finfo(dtype).tiny)
        weights = mapped * scale
        values, vectors = descending_eigh(metric * scale ** (1 - 2 / p))
        usable = values > values.shape[0] * jnp.finfo(values.dtype).eps * values[0]
        roots = jnp.sqrt(jnp.where(usable, values, 0))
        inverse_roots = jnp.where(usable, 1 / jnp.where(usable, roots, 1), 0)
        positive = (weights > 0) & (state.weights > 0)
        moved = jnp.abs(jnp.log(jnp.where(positive, weights / jnp.where(positive, state.weights, 1), 1)))
        change = over_devices(jax.lax.pmax, jnp.max(moved), rows.axes)
        # The next map would change log w by this change times the contraction, which is at most |1 − p/2|. Twice the
        # last observed contraction is often far less; the first map gives none, as w = 1 does not come from a metric.
        observed = jnp.where(state.num_iters > 1, 2 * change / jnp.where(state.change > 0, state.change, 1), 1)
        contraction = jnp.minimum(jnp.abs(1 - p / 2), observed)
        return FixedPoint(
            weights,
            (roots[:, None] * vectors.T) @ state.factor,
            state.inverse @ (vectors * inverse_roots[None, :]),
            change,
            contraction * change,
            state.num_iters + 1,
        )

    def unfinished(state: FixedPoint) -> Bool[Array, ""]:
        return (state.residual > tol) & (state.num_iters < num_iters)

    identity = jnp.diag(coords.active.astype(dtype))
    start = FixedPoint(
        jnp.ones(rows.matrix.shape[0], dtype),
        identity,
        identity,
        jnp.full((), jnp.inf, dtype),
        jnp.full((), jnp.inf, dtype),
        jnp.zeros((), jnp.int32),
    )
    return jax.lax.while_loop(unfinished, advance, start)
