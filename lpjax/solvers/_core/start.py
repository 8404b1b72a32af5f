"""Where iterative solvers begin, and the loop that hands back their best iterate."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax._lapack import complete_basis, descending_eigh
from lpjax.solvers._core.checks import Init
from lpjax.solvers._core.geometry import Coordinates, coordinates
from lpjax.solvers._core.problem import Scaled, objective, project
from lpjax.solvers._core.rows import Rows, multiply, over_devices
from lpjax.solvers._lewis import fixed_point
from lpjax.solvers._svd import svd_right, svd_vectors

# One map brings a tall matrix within 20 % of its Lewis weights, and the objective within 1e-5; a start needs no more.
_LEWIS_MAPS = 1
# A start is chosen by this many rows, at the least, and eight times the columns: all of a small matrix.
_SAMPLED_ROWS = 2048
_CLEARLY = 0.99

T = TypeVar("T")


class Pair(NamedTuple):
    """A candidate factorization and its objective."""

    left: Float[Array, "n k"]
    right: Float[Array, "k d"]
    objective: Scalar


def starting_bases(problem: Scaled, rank: int, init: Init) -> list[Float[Array, "d d"]]:
    """Orthonormal bases whose first k columns are what to begin from: the given pair, svd, lewis, or the last two.

    Of a problem with n ≥ d.
    """
    if problem.init is not None:
        return [complete_basis(problem.init[1].T)]
    return _svd_and_lewis(problem, rank) if init == "best" else [_vectors(problem, rank, init)]


def starting_pair(problem: Scaled, rank: int, init: Init) -> Pair:
    """The pair of least entrywise objective among those that `init` names; of a tall matrix by a sample of its rows.

    Besides svd and lewis, the SVD of the matrix clipped at three times its median magnitude: where a few entries
    are huge, both others fit them exactly, and no iteration leaves such a start. On planted outliers it makes the
    difference between a failed and an exact recovery, in every case tried.
    """
    if problem.init is not None:
        left, right = problem.init
        return Pair(left, right, objective(problem, left, right, "entries"))
    limit = 3 * _median_magnitude(problem.rows) if init in ("best", "clipped") else jnp.zeros_like(problem.tol)

    def pair(name: Init) -> Pair:
        if name == "clipped":
            return _clipped(problem, rank, limit)
        return _projected(problem, _vectors(problem, rank, name, rank).T)

    def pairs(problem: Scaled) -> list[Pair]:
        bases = _svd_and_lewis(problem, rank)
        return [*(_projected(problem, basis[:, :rank].T) for basis in bases), _clipped(problem, rank, limit)]

    if init != "best":
        return pair(init)
    sample = _sample(problem)
    if sample is None:
        return functools.reduce(lambda a, b: select_tree(b.objective < a.objective, b, a), pairs(problem))
    return _switch([one.objective for one in pairs(sample)], ("svd", "lewis", "clipped"), pair)


def _sample(problem: Scaled) -> Scaled | None:
    """Evenly spaced rows, an eighth of them or more, that tell which start is the best; None of a matrix of few."""
    (n, d), own = problem.rows.shape, problem.rows.matrix.shape[0]
    stride = min(8, n // max(_SAMPLED_ROWS, 8 * d))
    if stride < 2 or own < stride:
        return None
    weights = problem.row_weights
    rows = problem.rows.strided(stride)
    return problem._replace(rows=rows, row_weights=None if weights is None else weights[::stride])


def _switch(values: list[Scalar], names: tuple[Init, ...], make: Callable[[Init], T]) -> T:
    """`make` of the name whose value is the least; of the first, the SVD, unless another one's is clearly less.

    A start that is better by little gains an iteration nothing, and the SVD costs the least.
    """
    least = jnp.argmin(jnp.stack([_CLEARLY * values[0], *values[1:]]))
    return jax.lax.switch(least, [functools.partial(make, name) for name in names])


def _svd_and_lewis(problem: Scaled, rank: int) -> list[Float[Array, "d r"]]:
    """Without row weights both begin from one spectrum. Where n ≤ d they are one: each Lewis weight of independent rows
    is 1, and of dependent ones the SVD does as a start."""
    n, d = problem.rows.shape
    if n <= d:
        return [svd_vectors(problem, rank)]
    shared = coordinates(problem, rank)
    svd = shared.vectors if problem.row_weights is None else svd_vectors(problem, rank)
    return [svd, _lewis_vectors(problem, shared)]


def _lewis_vectors(problem: Scaled, shared: Coordinates) -> Float[Array, "d r"]:
    """Axes of an ellipsoid near Lewis's, as eigenvectors: a start needs no small axis to the digit."""
    maps = jnp.asarray(_LEWIS_MAPS, jnp.int32)
    point = fixed_point(shared, problem.p, jnp.zeros_like(problem.tol), maps)
    root = point.factor * shared.singular_values[None, :]
    _, vectors = descending_eigh(root.T @ root)
    return shared.vectors @ vectors


def _vectors(problem: Scaled, rank: int, name: Init, count: int | None = None) -> Float[Array, "d r"]:
    if name == "svd":
        return svd_vectors(problem, rank, count)
    return _lewis_vectors(problem, coordinates(problem, rank))[:, :count]


def _projected(problem: Scaled, right: Float[Array, "k d"]) -> Pair:
    left, value = project(problem, right, "entries")
    return Pair(left, right, value)


def _clipped(problem: Scaled, rank: int, limit: Scalar) -> Pair:
    clipped = problem._replace(rows=dataclasses.replace(problem.rows, limit=limit))
    right = svd_right(clipped, rank)
    left = multiply(clipped.rows, right.T)
    return Pair(left, right, objective(problem, left, right, "entries"))


def _median_magnitude(rows: Rows) -> Scalar:
    """Median |a_ij| of at most about 2¹⁶ entries, of evenly spaced rows; the largest where the median is 0."""
    n, d = rows.shape
    sample = rows.strided(max(1, n * d // 2**16)).read()
    sample = over_devices(functools.partial(jax.lax.all_gather, tiled=True), jnp.abs(sample), rows.axes)
    median = jnp.median(sample)
    return jnp.where(median > 0, median, rows.largest())


def select_tree(condition: Bool[Array, ""], chosen: T, otherwise: T) -> T:
    """`jnp.where` over two trees of the same structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, otherwise)


class Outcome(NamedTuple):
    """What `descend` found: the best candidate, its objective, the steps done, whether they settled."""

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
    """Run `step` until it settles; hand back the best candidate, never worse than the start.

    Args:
        step: state -> (state, candidate, its objective, whether it settled).
        state: first state.
        candidate: what is to be handed back if nothing better comes; any pytree.
        value: its objective.
        num_iters: limit of steps.
        optimal: true where the start is known to be optimal, and no step is needed.
    """

    def unfinished(carry: tuple[Any, Outcome]) -> Bool[Array, ""]:
        _, outcome = carry
        return ~outcome.converged & (outcome.num_iters < num_iters)

    def advance(carry: tuple[Any, Outcome]) -> tuple[Any, Outcome]:
        state, outcome = carry
        state, candidate, value, settled = step(state)
        # A NaN compares false: a step that broke down is never handed back.
        improved = value < outcome.objective
        best = select_tree(improved, candidate, outcome.best)
        lowest = jnp.where(improved, value, outcome.objective)
        return state, Outcome(best, lowest, outcome.num_iters + 1, settled | (lowest == 0))

    outcome = Outcome(candidate, value, jnp.zeros((), jnp.int32), optimal | (value == 0))
    return jax.lax.while_loop(unfinished, advance, (state, outcome))[1]
