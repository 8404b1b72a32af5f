"""Starts of iterative solvers, and the loop that returns their best iterate."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax._lapack import complete_basis, descending_eigh
from lpjax.solvers._above_two.lewis import design
from lpjax.solvers._core.geometry import Coordinates, coordinates
from lpjax.solvers._core.problem import Init, Scaled, objective, project
from lpjax.solvers._core.rows import Rows, multiply, over_devices
from lpjax.solvers._lewis import fixed_point
from lpjax.solvers._svd import svd_right, svd_vectors

# One map brings the weights of a tall matrix within 20 % of Lewis's, and the objective within 1e-5: enough here.
_LEWIS_MAPS = 1
# A start is chosen on a sample of rows, at least this many and eight times the columns: all rows of a small matrix.
_SAMPLED_ROWS = 2048
_CLEARLY = 0.99

T = TypeVar("T")


class Pair(NamedTuple):
    """A candidate factorization and its objective."""

    left: Float[Array, "n k"]
    right: Float[Array, "k d"]
    objective: Scalar


def starting_bases(problem: Scaled) -> list[Float[Array, "d d"]]:
    """Orthonormal bases whose first k columns span a start: the given pair, svd, lewis, or the last two; n ≥ d."""
    if problem.init is not None:
        return [complete_basis(problem.init[1].T)]
    return _svd_and_lewis(problem) if problem.start == "best" else [_vectors(problem, problem.start)]


def starting_pair(problem: Scaled) -> Pair:
    """The named start, or the best of three by entrywise error, which is measured on a sample of a tall matrix.

    The three are svd, lewis, and the SVD of the matrix clipped at three times its median magnitude. If a few entries
    are huge, the first two fit them exactly, and no iteration leaves such a start. With planted outliers only the third
    led to an exact recovery in every case tried.
    """
    if problem.init is not None:
        left, right = problem.init
        return Pair(left, right, objective(problem, left, right, "entries"))
    start, rank = problem.start, problem.rank
    limit = 3 * _median_magnitude(problem.rows) if start in ("best", "clipped") else jnp.zeros_like(problem.tol)

    def pair(name: Init) -> Pair:
        if name == "clipped":
            return _clipped(problem, limit)
        return _projected(problem, _vectors(problem, name, rank).T)

    def pairs(problem: Scaled) -> list[Pair]:
        bases = _svd_and_lewis(problem)
        return [*(_projected(problem, basis[:, :rank].T) for basis in bases), _clipped(problem, limit)]

    if start != "best":
        return pair(start)
    sample = _sample(problem)
    if sample is None:
        return functools.reduce(lambda a, b: select_tree(b.objective < a.objective, b, a), pairs(problem))
    return _switch([candidate.objective for candidate in pairs(sample)], ("svd", "lewis", "clipped"), pair)


def _sample(problem: Scaled) -> Scaled | None:
    """At least an eighth of the rows, evenly spaced, to choose the start on; None if the matrix has few rows."""
    (n, d), own = problem.rows.shape, problem.rows.matrix.shape[0]
    stride = min(8, n // max(_SAMPLED_ROWS, 8 * d))
    if stride < 2 or own < stride:
        return None
    weights = problem.row_weights
    rows = problem.rows.strided(stride)
    return problem._replace(rows=rows, row_weights=None if weights is None else weights[::stride])


def _switch(values: list[Scalar], names: tuple[Init, ...], make: Callable[[Init], T]) -> T:
    """`make` of the name with the least value, or of the first (the SVD) unless another value is clearly less.

    A slightly better start saves no iteration, and the SVD costs least.
    """
    least = jnp.argmin(jnp.stack([_CLEARLY * values[0], *values[1:]]))
    return jax.lax.switch(least, [functools.partial(make, name) for name in names])


def _svd_and_lewis(problem: Scaled) -> list[Float[Array, "d r"]]:
    """Bases of both starts, which share one spectrum without row weights; for n ≤ d that of the SVD alone.

    For n ≤ d, Lewis weights of independent rows are 1, and both starts are equal.
    """
    n, d = problem.rows.shape
    if n <= d:
        return [svd_vectors(problem)]
    shared = coordinates(problem, for_start=True)
    svd = shared.vectors if problem.row_weights is None else svd_vectors(problem)
    return [svd, _lewis_vectors(problem, shared)]


def _lewis_vectors(problem: Scaled, shared: Coordinates) -> Float[Array, "d r"]:
    """Axes of an ellipsoid near Lewis's. Eigenvectors are accurate enough for a start."""
    maps, none = jnp.asarray(_LEWIS_MAPS, jnp.int32), jnp.zeros_like(problem.tol)
    if problem.high:
        factor = design(shared, problem.p, none, maps + 1)[0].factor  # weights are measured one pass later
    else:
        factor = fixed_point(shared, problem.p, none, maps).factor
    root = factor * shared.singular_values[None, :]
    _, vectors = descending_eigh(root.T @ root)
    return shared.vectors @ vectors


def _vectors(problem: Scaled, name: Init, count: int | None = None) -> Float[Array, "d r"]:
    if name == "svd":
        return svd_vectors(problem, count)
    return _lewis_vectors(problem, coordinates(problem, for_start=True))[:, :count]


def _projected(problem: Scaled, right: Float[Array, "k d"]) -> Pair:
    left, value = project(problem, right, "entries")
    return Pair(left, right, value)


def _clipped(problem: Scaled, limit: Scalar) -> Pair:
    clipped = problem._replace(rows=dataclasses.replace(problem.rows, limit=limit))
    right = svd_right(clipped)
    left = multiply(clipped.rows, right.T)
    return Pair(left, right, objective(problem, left, right, "entries"))


def _median_magnitude(rows: Rows) -> Scalar:
    """Median |a_ij| of evenly spaced rows, about 2¹⁶ entries at most; the largest magnitude if the median is 0."""
    n, d = rows.shape
    sample = rows.strided(max(1, n * d // 2**16)).read()
    sample = over_devices(functools.partial(jax.lax.all_gather, tiled=True), jnp.abs(sample), rows.axes)
    median = jnp.median(sample)
    return jnp.where(median > 0, median, rows.largest())


def select_tree(condition: Bool[Array, ""], chosen: T, otherwise: T) -> T:
    """`jnp.where` over two trees of the same structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, otherwise)


class Outcome(NamedTuple):
    """The best candidate of `descend`, its objective, the number of steps, and whether they settled."""

    best: Any
    objective: Scalar
    num_iters: Int[Array, ""]
    converged: Bool[Array, ""]


def descend(
    step: Callable[[Any], tuple[Any, Any, Scalar, Bool[Array, ""]]],
    state: Any,
    candidate: Any,
    value: Scalar,
    num_iters: Scalar,
    optimal: Bool[Array, ""],
) -> Outcome:
    """Run `step` until it settles; return the best candidate, never worse than the start.

    Args:
        step: state -> (state, candidate, its objective, whether it settled).
        state: initial state.
        candidate: the start, any pytree; returned if no step improves on it.
        value: objective of the start.
        num_iters: limit on the number of steps.
        optimal: whether the start is known to be optimal, so that no step is needed.
    """

    def unfinished(carry: tuple[Any, Outcome]) -> Bool[Array, ""]:
        _, outcome = carry
        return ~outcome.converged & (outcome.num_iters < num_iters)

    def advance(carry: tuple[Any, Outcome]) -> tuple[Any, Outcome]:
        state, outcome = carry
        state, candidate, value, settled = step(state)
        # A NaN compares false: a step that broke down is never returned.
        improved = value < outcome.objective
        best = select_tree(improved, candidate, outcome.best)
        lowest = jnp.where(improved, value, outcome.objective)
        return state, Outcome(best, lowest, outcome.num_iters + 1, settled | (lowest == 0))

    outcome = Outcome(candidate, value, jnp.zeros((), jnp.int32), optimal | (value == 0))
    return jax.lax.while_loop(unfinished, advance, (state, outcome))[1]
