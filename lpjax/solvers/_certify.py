"""A sharper lower bound than `Solution.lower_bound`, from the dual of a convex relaxation."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Scalar

from lpjax._lapack import descending_eigh, eigenvalues, qr
from lpjax.objectives import Over, blocked_sum, check_over
from lpjax.solvers._core.certificate import (
    factors_of,
    from_rows,
    holder_weights,
    lowered_root,
    lowered_tail,
    norms,
    residual_norms,
    rows_bound,
    weighted_rows,
)
from lpjax.solvers._core.checks import make_problem
from lpjax.solvers._core.problem import Problem, Scaled, finish, normalize, objective, orthonormalize
from lpjax.solvers._core.rows import Rows, map_rows, over_devices
from lpjax.solvers._core.sharded import run_sharded
from lpjax.solvers._core.solution import Solution
from lpjax.solvers._core.spectrum import gram_of_rows

_NEAR = 0.05  # rows whose residual is within this fraction of their length have the chord as minorant
_BISECTIONS = 60


def certify(
    matrix: ArrayLike,
    solution: Any,
    *,
    p: Any = 1.0,
    over: Over = "rows",
    row_weights: ArrayLike | None = None,
    metric: ArrayLike | None = None,
    num_iters: int = 3,
) -> Solution:
    """Bound the optimum over all pairs of this rank from below, more sharply than `Solution.lower_bound` does.

    The minimum over projections Q of rank d − k is relaxed to one over the Fantope, the symmetric matrices 0 ≼ Q ≼ I of
    trace d − k, of a convex function of Q: at p = 1, Σ ω_i ‖Qx_i‖ (REAPER: Lerman, McCoy, Tropp & Zhang, Robust
    computation of linear models by convex relaxation, arXiv 1202.4044); for p > 2, Σ ω_i (x_iᵀQx_i)^{p/2}. Every
    iteration gives a dual point, by IRLS on the relaxation (ibid., §4) for p ≤ 2 and by a Frank–Wolfe step for p > 2.
    Its bound is valid whether or not the iteration has converged. docs/algorithms/certificate.md has the derivation.

    Args:
        matrix: A, shape (n, d), of finite numbers. An `np.memmap` with n ≥ d stays in its file.
        solution: a `Solution`, a `LowRank` or a pair (left, right). The better it is, the better the bound.
        p: exponent, in the range of `irls_rows`; may be traced.
        over: objective, "rows" or "entries". A bound over rows also bounds entries, but far below the optimum.
        row_weights: ω ≥ 0, shape (n,); ones by default.
        metric: C, symmetric positive semidefinite, shape (d, d); the identity by default. Requires `over="rows"`.
        num_iters: number of dual points, each of which costs about two Gram matrices and two eigendecompositions. The
            first one brings nearly all of the gain.

    Returns:
        A `Solution` of the same factors with their objective and the best lower bound found; see its `gap`.

    Raises:
        ValueError: matrix not 2-D, not numeric, not finite; p out of range; weights, metric or factors of the wrong
            shape, negative or asymmetric; a metric with `over="entries"`; a solution with single entries.
    """
    check_over(over, metric)
    left, right = factors_of(solution)
    problem = make_problem(
        matrix, left.shape[1], "irls_rows",
        p=p, num_iters=num_iters, tol=0.0, row_weights=row_weights, metric=metric, init=(left, right),
    )  # fmt: skip
    certified = run_sharded(_certify, problem, over=over)
    return certified._replace(
        left=jnp.asarray(left, certified.left.dtype), right=jnp.asarray(right, certified.right.dtype)
    )


@functools.partial(jax.jit, static_argnames="over")
def _certify(problem: Problem, over: Over) -> Solution:
    scaled, scaling = normalize(problem)
    assert scaled.init is not None
    left, right = scaled.init
    value = objective(scaled, left, right, over)
    (n, d), small = scaled.rows.shape, scaled
    if n < d:
        # All rows lie in n dimensions, so only the part of R in these matters.
        span, triangle = qr(scaled.rows.read().T)
        small, right = scaled._replace(rows=Rows(triangle.T)), right @ span
    _, right = orthonormalize(left, right)
    sharper = jax.lax.cond(problem.p > 2, lambda: _frank_wolfe(small, right), lambda: _reaper(small, right))
    bound = jnp.maximum(rows_bound(small, right), sharper) * from_rows(scaled, over)
    solution = Solution(*scaled.init, value, scaled.num_iters, jnp.ones((), bool), lower_bound=bound)
    return finish(solution, scaling, problem.p)


class _Minorant(NamedTuple):
    """α, β ≥ 0 and γ of every row, with α t² + β t + γ ≤ t^p for 0 ≤ t ≤ ‖x_i‖."""

    square: Float[Array, " n"]
    linear: Float[Array, " n"]
    constant: Float[Array, " n"]


def _minorant(length: Float[Array, " n"], residual: Float[Array, " n"], p: Scalar) -> _Minorant:
    """The parabola of largest α that is tangent to t^p at t = r and not above it at ‖x_i‖.

    t^p − αt² − βt − γ is first convex, then concave, and vanishes with its slope at r, so it is least at r or at an
    end. At p = 1 the minorant is the line t, at p = 2 the parabola t². If r is near ‖x_i‖ it is ‖x_i‖^{p−2} t².
    """
    eps = jnp.finfo(length.dtype).eps
    chord = (residual > (1 - _NEAR) * length) & (p > 1)
    r = jnp.where(chord, length / 2, residual)
    away = jnp.where(length > 0, length - r, 1)
    above = length**p - r**p - p * r ** (p - 1) * away
    # Lowered by its rounding errors: a smaller curvature keeps the parabola below.
    most = jnp.maximum(above - 16 * eps * length**p, 0) / away**2
    some = jnp.where(r > 0, r, 1)
    square = jnp.where(r > 0, jnp.minimum(most, p / 2 * some ** (p - 2)), most)
    linear = jnp.maximum(p * r ** (p - 1) - 2 * square * r, 0)  # 0⁰ = 1
    constant = (1 - p) * r**p + square * r**2
    whole = jnp.where(length > 0, length, 1)
    return _Minorant(
        jnp.where(chord, whole ** (p - 2), square),
        jnp.where(chord, 0, linear),
        jnp.where(chord, 0, constant),
    )


class _State(NamedTuple):
    """Between iterations: eigenvalues and eigenvectors of the weighted Gram matrix, and the best bound so far."""

    values: Float[Array, " d"]
    vectors: Float[Array, "d d"]
    best: Scalar
    iteration: Int[Array, ""]


def _reaper(problem: Scaled, right: Float[Array, "k d"]) -> Scalar:
    """The bound for 1 ≤ p ≤ 2.

    For y_i = Mx_i/‖Mx_i‖ with any matrix M, ‖Qx_i‖ ≥ x_iᵀQy_i; so with the minorants

        Σ ω_i ‖Qx_i‖^p ≥ tr(Q Σ ω_i (α_i x_i x_iᵀ + β_i x_i y_iᵀ)) + Σ ω_i γ_i,

    whose minimum over Q is a sum of eigenvalues. M minimises tr(M G M) over the Fantope, where G is the Gram matrix
    with weights β_i/‖Mx_i‖ for the previous M; it has the eigenvectors of G, and eigenvalues min(1, θ/λ_j).
    """
    rows, p, (n, d), rank = problem.rows, problem.p, problem.rows.shape, problem.rank
    dtype = rows.dtype
    eps, tiny = jnp.finfo(dtype).eps, jnp.finfo(dtype).tiny
    length = map_rows(norms, rows) * (1 + 8 * eps)
    residual = jnp.minimum(residual_norms(rows, right), length)
    omega = jnp.ones_like(length) if problem.row_weights is None else problem.row_weights
    minorant = _minorant(length, residual, p)
    # A row whose square is below the dtype's range only counts with its constant, which is at most 0.
    seen = length > jnp.sqrt(tiny / eps)

    def gram(weights: Float[Array, " n"]) -> Float[Array, "d d"]:
        return gram_of_rows(weighted_rows(problem, jnp.where(seen, weights, 0)))

    squares = jax.lax.cond(p == 1, lambda: jnp.zeros((d, d), dtype), lambda: gram(minorant.square))
    parts = omega * minorant.constant, omega * jnp.maximum(residual, 0) ** p
    constant, whole = over_devices(jax.lax.psum, tuple(map(blocked_sum, parts)), rows.axes)

    def step(state: _State) -> _State:
        shares = _water_filling(state.values, d - rank)
        # ‖Mx‖, raised by its rounding errors.
        shrunk = map_rows(lambda piece: norms((piece @ state.vectors) * shares[None, :]), rows)
        shrunk = shrunk + 4 * d**0.5 * eps * length
        weighted = gram(minorant.linear / jnp.where(seen, shrunk, 1))
        product = ((weighted @ state.vectors) * shares[None, :]) @ state.vectors.T
        spectrum = eigenvalues((product + product.T) / 2 + squares)  # ascending
        size = jnp.trace(weighted) + jnp.trace(squares)
        # As in `least_tail`, plus a margin for the sums of ω_i γ_i and ω_i r_i^p.
        margin = 4 * eps * ((d - rank) * jnp.max(jnp.abs(spectrum)) + n**0.5 * (size + whole))
        bound = jnp.sum(spectrum[: d - rank]) + constant - margin
        values, vectors = descending_eigh(weighted)
        return _State(values, vectors, jnp.maximum(state.best, bound), state.iteration + 1)

    floor = jnp.sqrt(eps) * length
    first = gram(jnp.where(seen, jnp.maximum(residual, floor), 1) ** (p - 2))
    start = _State(*descending_eigh(first), jnp.zeros((), dtype), jnp.zeros((), jnp.int32))
    best = jax.lax.while_loop(lambda state: state.iteration < problem.num_iters, step, start).best
    return lowered_root(best, p)


def _water_filling(values: Float[Array, " d"], count: int) -> Float[Array, " d"]:
    """argmin Σ λ_j μ_j² over 0 ≤ μ ≤ 1, Σ μ = count: min(1, θ/λ_j), θ by bisection; λ descending."""
    positive = jnp.maximum(values, jnp.finfo(values.dtype).eps * values[0])
    positive = jnp.where(positive > 0, positive, 1)

    def halve(_: Array, ends: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        low, high = ends
        middle = (low + high) / 2
        enough = jnp.sum(jnp.minimum(1, middle / positive)) >= count
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    ends = (jnp.zeros((), values.dtype), positive[0])
    return jnp.minimum(1, jax.lax.fori_loop(0, _BISECTIONS, halve, ends)[1] / positive)


class _Point(NamedTuple):
    """A point Q of the Fantope, and the largest squared bound."""

    point: Float[Array, "d d"]
    best: Scalar
    iteration: Int[Array, ""]


def _frank_wolfe(problem: Scaled, right: Float[Array, "k d"]) -> Scalar:
    """The bound for p > 2, by Hölder's inequality (`certificate.py`) with u_i = (x_iᵀQx_i)^{(p−2)/2}.

    Frank–Wolfe steps minimise Σ ω_i (x_iᵀQx_i)^{p/2} over the Fantope. The gradient is a multiple of the Gram matrix
    with weights ω_i u_i, so a step moves Q towards the projection onto its last d − k eigenvectors.
    """
    rows, (n, d), rank = problem.rows, problem.rows.shape, problem.rank

    def step(state: _Point) -> _Point:
        squares = map_rows(lambda piece: jnp.maximum(jnp.sum((piece @ state.point) * piece, axis=1), 0), rows)
        factors, divisor = holder_weights(problem, squares)
        values, vectors = descending_eigh(gram_of_rows(weighted_rows(problem, factors)))
        best = jnp.maximum(state.best, lowered_tail(values, rank, n) / divisor)
        last = vectors[:, rank:]
        size = 2 / (state.iteration + 3).astype(rows.dtype)
        return _Point(state.point + size * (last @ last.T - state.point), best, state.iteration + 1)

    start = _Point(jnp.eye(d, dtype=rows.dtype) - right.T @ right, jnp.zeros((), rows.dtype), jnp.zeros((), jnp.int32))
    best = jax.lax.while_loop(lambda state: state.iteration < problem.num_iters, step, start).best
    return lowered_root(best, jnp.asarray(2, problem.p.dtype))
