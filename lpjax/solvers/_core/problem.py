"""The steps around every algorithm: scale to order one, measure the objective, scale back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax._exponents import exponent_of, finite_bits, largest_bits, largest_exponent, ldexp, scaled
from lpjax._lapack import eigh, qr, with_pseudo_inverse
from lpjax._powers import at_exponent, over_largest, root_of_scale, roots, unit_power
from lpjax.objectives import Over, blocked_sum, power_sums, row_sizes
from lpjax.solvers._core.mapped import Mapped
from lpjax.solvers._core.rows import Rows, map_rows, over_devices
from lpjax.solvers._core.solution import Solution

Init = Literal["best", "svd", "lewis", "clipped"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["matrix", "p", "row_weights", "metric", "tol", "num_iters", "init"],
    meta_fields=["rank", "start", "axes", "at_the_end", "high"],
)
@dataclasses.dataclass(frozen=True)
class Problem:
    """A matrix with its weights and settings; the arguments of a jitted solver core, a pytree.

    Attributes:
        matrix: A, shape (n, d), floating, or a matrix that stays in its file. Inside `shard_map`, A and all arrays with
            n rows have the rows of this device.
        p: exponent, a scalar of A's dtype.
        row_weights: ω, shape (n,), or None for ones.
        metric: C, shape (d, d), or None for the identity.
        tol: tolerance, a scalar of A's dtype.
        num_iters: iteration limit, an int32 scalar.
        init: starting pair (left, right), or None.
        rank: k.
        start: name of the start if there is no pair.
        axes: names of the mesh axes over which the rows are sharded, if the core runs inside `shard_map`.
        at_the_end: whether products of factors of A may overflow; false if values are unknown.
        high: whether p is above 2; None if p is traced and that is unknown.
    """

    matrix: Float[Array, "n d"] | Mapped
    p: Scalar
    row_weights: Float[Array, " n"] | None
    metric: Float[Array, "d d"] | None
    tol: Scalar
    num_iters: Scalar
    init: tuple[Float[Array, "n k"], Float[Array, "k d"]] | None
    rank: int
    start: Init = "best"
    axes: tuple[str, ...] = ()
    at_the_end: bool = False
    high: bool | None = False


class Scaled(NamedTuple):
    """A problem scaled to order one, without a metric, as algorithms get it. Attributes as in `Problem`."""

    rows: Rows
    p: Scalar
    row_weights: Float[Array, " n"] | None
    tol: Scalar
    num_iters: Scalar
    init: tuple[Float[Array, "n k"], Float[Array, "k d"]] | None
    rank: int
    start: Init
    high: bool = False


class Scaling(NamedTuple):
    """How `normalize` scaled a problem, for `finish`.

    Attributes:
        matrix, row_weights, metric: exponents of the scale factors, powers of 2; powers of 4 for the metric.
        metric_inverse_half: pseudo-inverse of the square root of the scaled metric.
        finite: whether all numbers of the problem are finite.
        axes: as in `Problem`.
        slack: bound on the change of any objective of the scaled problem by rounding errors of the metric's root; None
            without a metric.
    """

    matrix: Int[Array, ""]
    row_weights: Int[Array, ""]
    metric: Int[Array, ""]
    metric_inverse_half: Float[Array, "d d"] | None
    finite: Bool[Array, ""]
    axes: tuple[str, ...]
    slack: Scalar | None = None


def normalize(problem: Problem) -> tuple[Scaled, Scaling]:
    """Scale to order one by powers of two (exact) and fold the metric into the matrix; a non-finite one becomes 0.

    Σ ω_i ‖a_i − l_i R‖_C^p is Σ ω_i ‖b_i − l_i S‖^p with b = a C^{1/2} and S = R C^{1/2}, so algorithms need no C.
    """
    rows = Rows(problem.matrix, axes=problem.axes)
    bits = rows.largest_bits()
    # At most the second largest exponent, whose inverse is a normal number: one product scales an entry.
    exponent = jnp.minimum(exponent_of(bits, rows.dtype), jnp.finfo(rows.dtype).maxexp - 2)
    weights, weight_exponent, finite = _scaled_weights(problem, finite_bits(bits, rows.dtype))
    if problem.metric is not None:
        finite &= jnp.all(jnp.isfinite(problem.metric))
    rows = dataclasses.replace(rows, exponent=-exponent, finite=finite)
    init, metric_exponent, inverse_half, slack = problem.init, jnp.zeros((), jnp.int32), None, None
    if init is not None:
        # Either factor of a pair may hold its scale.
        inner = largest_exponent(init[1])
        init = scaled(init[0], inner - exponent), scaled(init[1], -inner)
    if problem.metric is not None:
        metric_exponent = largest_exponent(problem.metric) // 2
        metric = jnp.where(finite, scaled(problem.metric, -2 * metric_exponent), 0)
        half, inverse_half, error = _square_roots(metric)
        # Minkowski's inequality, for rows that change by a fraction `error` of their lengths. XLA drops it if unused.
        lengths = jax.lax.stop_gradient(map_rows(lambda piece: jnp.sqrt(jnp.sum(piece**2, axis=1)), rows))
        slack = jax.lax.stop_gradient(error) * _root_of_powers(lengths, weights, problem.p, problem.axes)
        if isinstance(problem.matrix, Mapped):
            rows = dataclasses.replace(rows, turn=half)
        else:  # once, not in every pass
            rows = Rows(rows.read() @ half, axes=problem.axes)
        init = None if init is None else (init[0], init[1] @ half)
    settings = problem.tol, problem.num_iters, init, problem.rank, problem.start, bool(problem.high)
    return Scaled(rows, problem.p, weights, *settings), Scaling(
        exponent, weight_exponent, metric_exponent, inverse_half, finite, problem.axes, slack
    )


def _scaled_weights(
    problem: Problem, finite: Bool[Array, ""]
) -> tuple[Float[Array, " n"] | None, Int[Array, ""], Bool[Array, ""]]:
    """The row weights scaled to order one, the exponent of their scale, and whether they are `finite`, too."""
    weights = problem.row_weights
    if weights is None:
        return None, jnp.zeros((), jnp.int32), finite
    heaviest = over_devices(jax.lax.pmax, largest_bits(weights), problem.axes)
    finite &= finite_bits(heaviest, weights.dtype)
    if problem.high:
        weights = at_exponent(weights, problem.p)
        heaviest = over_devices(jax.lax.pmax, largest_bits(weights), problem.axes)
    exponent = exponent_of(heaviest, weights.dtype)
    return jnp.where(finite, jnp.maximum(scaled(weights, -exponent), 0), 1), exponent, finite


def _square_roots(metric: Float[Array, "d d"]) -> tuple[Float[Array, "d d"], Float[Array, "d d"], Scalar]:
    """C^{1/2} and its pseudo-inverse, through eigenvalues: a singular C does not fail, unlike with Cholesky.

    The third value bounds the relative change of a row by rounding errors of C^{1/2} and of the product with it:
    LAPACK's eigenvalues have errors of eps·λ₁, so a root has one of eps·λ₁/√λ for the smallest λ that is kept.
    """
    values, vectors = eigh(metric)
    eps, largest = jnp.finfo(values.dtype).eps, jnp.maximum(values[-1], 0)
    kept = values > values.shape[0] * eps * largest
    root = jnp.sqrt(jnp.where(kept, values, 0))
    smallest = jnp.sqrt(jnp.min(jnp.where(kept, values, largest)))
    error = 4 * eps * (largest / jnp.where(smallest > 0, smallest, 1) + (values.shape[0] * largest) ** 0.5)
    return *with_pseudo_inverse(vectors, root), error


def project(problem: Scaled, right: Float[Array, "k d"], over: Over) -> tuple[Float[Array, "n k"], Scalar]:
    """left = A Rᵀ for R with orthonormal rows, and the ℓp objective of the pair."""

    def of_rows(rows: Array) -> tuple[Array, Array]:
        left = rows @ right.T
        return left, row_measures(problem, rows - left @ right, over)

    left, measures = map_rows(of_rows, problem.rows)
    return left, whole_measure(problem, measures)


def orthonormalize(
    left: Float[Array, "n k"], right: Float[Array, "k d"]
) -> tuple[Float[Array, "n k"], Float[Array, "k d"]]:
    """Factors of the same product, with orthonormal rows of R."""
    orthonormal, triangle = qr(right.T)
    return left @ triangle.T, orthonormal.T


def objective(problem: Scaled, left: Float[Array, "n k"], right: Float[Array, "k d"], over: Over) -> Scalar:
    """The ℓp objective of a pair."""
    measures = over_residual(problem, left, right, lambda residual: row_measures(problem, residual, over))
    return whole_measure(problem, measures)


def over_residual(
    problem: Scaled, left: Float[Array, "n k"], right: Float[Array, "k d"], summary: Callable[[Array], Any]
) -> Any:
    """`summary` of A − LR, block by block; it maps m rows to arrays of m rows."""
    return map_rows(lambda rows, left: summary(rows - left @ right), problem.rows, left)


def row_measures(problem: Scaled, residual: Float[Array, "m d"], over: Over) -> Float[Array, " m"]:
    """The terms of `whole_measure`: Σ_j |r_ij|^p or ‖r_i‖^p of each row; for p > 2 their p-th roots."""
    return (row_sizes if problem.high else power_sums)(residual, problem.p, over)


def whole_measure(problem: Scaled, measures: Float[Array, " n"]) -> Scalar:
    """The ℓp objective from `row_measures` of all rows."""
    return root_of_powers(problem, measures) if problem.high else root_of_sum(problem, measures)


def root_of_powers(problem: Scaled, sizes: Float[Array, " n"]) -> Scalar:
    """(Σ_i ω_i sizes_i^p)^{1/p} for p > 2; at ∞ the largest size of the rows with ω_i > 0."""
    return _root_of_powers(sizes, problem.row_weights, problem.p, problem.rows.axes)


def _root_of_powers(
    sizes: Float[Array, " n"], weights: Float[Array, " n"] | None, p: Scalar, axes: tuple[str, ...]
) -> Scalar:
    if weights is not None:
        sizes = roots(weights, p) * sizes
    largest = over_devices(jax.lax.pmax, jnp.max(sizes), axes)
    total = over_devices(jax.lax.psum, blocked_sum(unit_power(over_largest(sizes, largest), p)), axes)
    return jnp.where(largest > 0, largest * jnp.where(largest > 0, total, 1) ** (1 / p), largest)


def root_of_sum(problem: Scaled, sums: Float[Array, " n"]) -> Scalar:
    """(Σ_i ω_i sums_i)^{1/p}."""
    if problem.row_weights is not None:
        sums = problem.row_weights * sums
    return over_devices(jax.lax.psum, blocked_sum(sums), problem.rows.axes) ** (1 / problem.p)


def on_either_side(core: Callable[..., Solution]) -> Callable[..., Solution]:
    """Extend a core that needs `problem.high` to problems in which it is None.

    The program then has a branch for p ≤ 2 and one for p > 2, and chooses at run time. Each branch gets a p of its own
    range, even if it is not taken.
    """

    @functools.wraps(core)
    def solve(problem: Problem, *given: Any, **static: Any) -> Solution:
        if problem.high is not None:
            return core(problem, *given, **static)
        p = problem.p
        low = dataclasses.replace(problem, p=jnp.where(p > 2, 2, p), high=False)
        high = dataclasses.replace(problem, p=jnp.where(p > 2, p, 3), high=True)
        run = functools.partial(core, **static)
        return jax.lax.cond(p > 2, lambda: run(high, *given), lambda: run(low, *given))

    return solve


def finish(solution: Solution, scaling: Scaling, p: Scalar) -> Solution:
    """Undo `normalize` on a solution.

    The scale of A goes to left, unless left would overflow or be subnormal: then both factors share it.
    """
    ellipsoid, lower_bound, dtype = solution.ellipsoid, solution.lower_bound, solution.left.dtype
    left, right = _rescaled(solution, scaling)
    factor, root = root_of_scale(scaling.row_weights, p)
    exponent = scaling.matrix + scaling.metric + root
    if ellipsoid is not None:
        ellipsoid = ellipsoid._replace(values=ldexp(ellipsoid.values * factor, exponent))
    if lower_bound is not None:
        if scaling.slack is not None:
            lower_bound = jnp.maximum(lower_bound - scaling.slack, 0)
        # A bound above the dtype's largest number may be lowered to it.
        lower_bound = jnp.minimum(ldexp(lower_bound * factor, exponent), jnp.finfo(dtype).max)
        lower_bound = jnp.where(scaling.finite, lower_bound, 0)
    return solution._replace(
        left=left,
        right=right,
        objective=jnp.where(scaling.finite, ldexp(solution.objective * factor, exponent), jnp.inf),
        converged=solution.converged & scaling.finite,
        ellipsoid=ellipsoid,
        lower_bound=lower_bound,
    )


def _rescaled(solution: Solution, scaling: Scaling) -> tuple[Float[Array, "n k"], Float[Array, "k d"]]:
    """The factors with the scales of A and of the metric; zeros for a problem that is not finite."""
    left, right, info = solution.left, solution.right, jnp.finfo(solution.left.dtype)
    if scaling.metric_inverse_half is not None:
        right = right @ scaling.metric_inverse_half
    a, b = scaling.matrix + scaling.metric, -scaling.metric
    largest = over_devices(jax.lax.pmax, largest_bits(left), scaling.axes)
    sizes = exponent_of(largest, left.dtype), largest_exponent(right)
    inside = [(i + e < info.maxexp) & (i + e > info.minexp + info.nmant) for i, e in zip(sizes, (a, b), strict=True)]
    alone = (inside[0] & inside[1]) | (largest == 0)
    shared = (scaling.matrix + sizes[1] - sizes[0]) // 2
    a, b = jnp.where(alone, a, shared), jnp.where(alone, b, scaling.matrix - shared)
    return jnp.where(scaling.finite, scaled(left, a), 0), jnp.where(scaling.finite, scaled(right, b), 0)
