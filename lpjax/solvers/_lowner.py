"""Löwner ellipsoids by shallow cuts, after Tukan et al. (arXiv 2009.05647); a reference for small d."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax._lapack import svd
from lpjax._powers import over_largest, size, unit_power
from lpjax.objectives import Over
from lpjax.solvers._core.certificate import certified
from lpjax.solvers._core.checks import make_problem
from lpjax.solvers._core.geometry import Coordinates, axes, coordinates, truncate
from lpjax.solvers._core.problem import Problem, finish, normalize, on_either_side
from lpjax.solvers._core.sharded import run_sharded
from lpjax.solvers._core.solution import Ellipsoid, Solution

_ASCENTS = 4  # steps towards the farthest point of the ellipsoid, for a deeper cut


def lowner(
    matrix: ArrayLike,
    rank: int,
    *,
    p: Any = 1.0,
    num_iters: int = 1000,
    tol: float = 1e-2,
    row_weights: ArrayLike | None = None,
    init: None = None,
    over: Over = "entries",
) -> Solution:
    """Truncate the ‖·‖_p-SVD A = U D Vᵀ of a shallow-cut Löwner ellipsoid to its k largest values: A_k = A V_k V_kᵀ.

    E = {x : xᵀG⁻¹x ≤ 1} starts as the level set of ‖A·‖₂, which contains that of ‖A·‖_p for p ≤ 2; for p > 2, where
    ‖y‖₂ ≤ m^{1/2−1/p}‖y‖_p for m nonzero numbers, as that of ‖A·‖₂ / m^{1/2−1/p}. While a point x of E has
    ‖Ax‖_p > √r, let g be a subgradient of ‖A·‖_p at x. The slab |gᵀx| ≤ 1 separates x from the level set, and E becomes
    the smallest ellipsoid that contains what is left (Grötschel, Lovász & Schrijver, Geometric Algorithms and
    Combinatorial Optimization, §3.3 and §4.6, with both of the parallel cuts): with b = Gg/√(gᵀGg), α = 1/√(gᵀGg),

        G ← r(1−α²)/(r−1)·(G − bbᵀ) + rα²·bbᵀ.

    At p = ∞ the subgradient is the row with the largest a_iᵀGa_i, which gives the deepest cut.

    E always encloses the level set, and its volume falls with every cut. The final E need not be the smallest enclosing
    ellipsoid, which no known method finds in polynomial time; but no further cut of this kind can shrink it.

    Args:
        matrix: A, shape (n, d), of finite numbers.
        rank: k, from 1 to min(n, d); static under jit.
        p: exponent from 1 to ∞; may be traced. At p = 2 the first ellipsoid is exact and is not cut.
        num_iters: limit on the number of cuts, each of which costs a few products with A; static under jit.
        tol: relative tolerance: cuts end when √(gᵀGg) ≤ (1 + tol)·√r at the farthest point found.
        row_weights: ω ≥ 0, shape (n,): the level set is then that of (Σ ω_i |a_iᵀx|^p)^{1/p}.
        init: unused, as the start must enclose the level set; accepted so that solvers are interchangeable.
        over: reported objective, "entries" or "rows".

    Returns:
        `Solution` with an `Ellipsoid`, whose `upper` is certified, at most r, and whose `log_volumes` record the cuts.

    Raises:
        ValueError: matrix not 2-D, not numeric, not finite; rank or p out of range; weights of the wrong shape or
            negative.
    """
    problem = make_problem(matrix, rank, "lowner", p=p, num_iters=num_iters, tol=tol, row_weights=row_weights)
    return run_sharded(_lowner, problem, whole=True, over=over, limit=num_iters)


@functools.partial(jax.jit, static_argnames=("over", "limit"))
@on_either_side
def _lowner(problem: Problem, over: Over, limit: int) -> Solution:
    scaled, scaling = normalize(problem)
    coords = coordinates(scaled)
    final = _cut(coords, scaled.p, scaled.tol, limit, scaled.high)
    directions, radii, _ = svd(final.points)
    usable = (jnp.arange(radii.shape[0], dtype=radii.dtype) < coords.dimension) & (radii > 0)
    inverse = jnp.where(usable, 1 / jnp.where(usable, radii, 1), 0)
    values, vectors = axes(coords, inverse[:, None] * directions.T)
    ellipsoid = Ellipsoid(values, vectors, jnp.ones_like(final.upper), final.upper, log_volumes=final.log_volumes)
    solution = truncate(scaled, over, ellipsoid, final.num_iters, final.converged)
    return finish(certified(scaled, solution, over), scaling, problem.p)


class _Cuts(NamedTuple):
    """E in whitened coordinates, and the cut at its farthest point.

    E = {Xc : ‖c‖₂ ≤ 1}, G = XXᵀ, with X in `points`. Its columns are conjugate, not principal axes: after a cut these
    are not unique, and rounding errors would choose among them irreproducibly.
    """

    points: Float[Array, "r r"]
    normal: Float[Array, " r"]
    reach: Scalar
    upper: Scalar
    log_volumes: Float[Array, " t"]
    num_iters: Int[Array, ""]
    converged: Bool[Array, ""]


def _cut(coords: Coordinates, p: Scalar, tol: Scalar, limit: int, high: bool) -> _Cuts:
    basis = coords.rows.read() @ coords.whitening
    dimension = coords.dimension
    dtype = basis.dtype

    def norm(values: Array) -> Array:
        if high:
            return size(values, p, axis=0)
        return jnp.sum(jnp.abs(values) ** p, axis=0) ** (1 / p)

    def look(points: Array, log_volumes: Array, num_iters: Array) -> _Cuts:
        """Find the subgradient at nearly the farthest point of E from the level set, and bound ‖A·‖_p on E."""
        images = basis @ points
        lengths = norm(images)

        def subgradient(image: Array) -> Array:
            if high:
                # Relative to the norm, so that powers do not overflow; at ∞ the row of the largest entry alone.
                only = jax.nn.one_hot(jnp.argmax(jnp.abs(image)), image.shape[0], dtype=dtype)
                shares = jnp.minimum(over_largest(image, norm(image)), 1)
                powers = jnp.where(jnp.isinf(p), only, unit_power(shares, p - 1))
                return basis.T @ (jnp.sign(image) * powers)
            # A sign decided by rounding would make the cuts irreproducible; 0 is a valid subgradient, too.
            small = jnp.abs(image) <= jnp.sqrt(jnp.finfo(dtype).eps) * jnp.max(jnp.abs(image))
            powers = jnp.where(small, 0, jnp.sign(image) * jnp.abs(image) ** (p - 1))
            scale = jnp.maximum(norm(image), jnp.finfo(dtype).tiny) ** (p - 1)
            return basis.T @ powers / scale

        def ascend(_: Array, normal: Array) -> Array:
            # The point of E farthest along g is Gg/√(gᵀGg); ‖A·‖_p is convex, so no smaller there.
            along = points.T @ normal
            unit = along / jnp.maximum(jnp.linalg.norm(along), jnp.finfo(dtype).tiny)
            return subgradient(images @ unit)

        start = subgradient(images[:, jnp.argmax(lengths)])
        if high:
            longest = jnp.argmax(jnp.sum(images**2, axis=1))
            start = jnp.where(jnp.isinf(p), basis[longest], start)
        normal = jax.lax.fori_loop(0, _ASCENTS, ascend, start)
        reach = jnp.linalg.norm(points.T @ normal)
        # A point of E is x = Σ c_j x_j over columns of X with ‖c‖₂ ≤ 1, and has |a_iᵀx|² ≤ a_iᵀGa_i.
        upper = jnp.minimum(jnp.linalg.norm(lengths), norm(jnp.sqrt(jnp.sum(images**2, axis=1))))
        converged = reach <= (1 + tol) * jnp.sqrt(dimension)
        return _Cuts(points, normal, reach, upper, log_volumes, num_iters, converged)

    def advance(state: _Cuts) -> _Cuts:
        alpha_squared = 1 / state.reach**2
        unit = state.points.T @ state.normal / state.reach
        b = state.points @ unit
        # If r = 1, G = bbᵀ, and the first term vanishes.
        growth = jnp.where(dimension > 1, dimension * (1 - alpha_squared) / jnp.maximum(dimension - 1, 1), 1)
        # G = XXᵀ and b = Xu with ‖u‖ = 1, so the cut maps X to √growth·X(I − uuᵀ) + √(rα²)·Xuuᵀ.
        along = jnp.sqrt(dimension * alpha_squared) - jnp.sqrt(growth)
        points = jnp.sqrt(growth) * state.points + along * b[:, None] * unit[None, :]
        log_volume = ((dimension - 1) * jnp.log(growth) + jnp.log(dimension * alpha_squared)) / 2
        later = jnp.arange(limit, dtype=jnp.int32) >= state.num_iters
        return look(points, state.log_volumes + jnp.where(later, log_volume, 0), state.num_iters + 1)

    def unfinished(state: _Cuts) -> Bool[Array, ""]:
        return ~state.converged & (state.num_iters < limit)

    start = coords.active.astype(dtype)
    if high:
        count = jnp.sum(jnp.any(basis != 0, axis=1)).astype(dtype)
        start = start * jnp.maximum(count, 1) ** (0.5 - 1 / p)
    first = look(
        jnp.diag(start),
        jnp.zeros(limit, dtype),
        jnp.zeros((), jnp.int32),
    )
    # At p = 2 the start is the level set itself.
    first = first._replace(converged=first.converged | (p == 2), upper=jnp.where(p == 2, 1, first.upper).astype(dtype))
    return jax.lax.while_loop(unfinished, advance, first)
