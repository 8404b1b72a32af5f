"""Two factors of one matrix, under weights, and what they lose: what a program runs for each of its tasks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lpjax._lapack import qr
from lpjax._numbers import solving_dtype
from lpjax.objectives import blocked_sum, entries_bound, lp_norm, power_sums
from lpjax.solvers import Solution, Solver, with_entries
from lpjax.weighting.metric import Roots, on_both_sides, on_the_left

_ENTRIES = 2**20  # of a product, at a time


class Goal(NamedTuple):
    """What all tasks of a program have in common.

    Attributes:
        solver: an entry of `SOLVERS`, or a like one.
        rank: the largest rank of all tasks.
        smaller: whether some task has a smaller rank, of a nested solver.
        sparse: whether single entries are kept beside the pairs.
        options: (name, type, value) of the solver's further keywords; types tell programs apart, as 1 from True.
    """

    solver: Solver
    rank: int
    smaller: bool
    sparse: bool
    options: tuple[tuple[str, type, Any], ...]

    def solve(self, matrix: Array, weights: Array | None, p: Array) -> Solution:
        """The solver's solution at the largest rank, under weights of rows if there are any."""
        options = {name: value for name, _, value in self.options}
        return self.solver(matrix, self.rank, p=p, **with_weights(options, weights))


class FactorResult(NamedTuple):
    """Factors of one matrix A, as the task scales it, and what they lose.

    Attributes:
        left, right: in the leaf's dtype.
        sparse: matrix of single entries, 0 elsewhere; None without any.
        error_entries, error_rows: ‖A − Â‖_p over entries and over rows, as shares of `norms`.
        bound: on `error_entries`, or None.
        norms: ‖A‖_p over entries and over rows.
        squares: weighted ‖·‖_F² of A − Â and of A; None without weights.
        num_iters, converged: of the solver.
    """

    left: Array
    right: Array
    sparse: Array | None
    error_entries: Array
    error_rows: Array
    bound: Array | None
    norms: tuple[Array, Array]
    squares: tuple[Array, Array] | None
    num_iters: Array
    converged: Array


def with_weights(options: dict[str, Any], weights: Any) -> dict[str, Any]:
    """The solver's keywords, with weights of rows if there are any."""
    return options if weights is None else options | {"row_weights": weights}


def factor(
    goal: Goal,
    matrix: Array | tuple[Array, Array],
    weights: Array | None,
    roots: Sequence[Roots | None],
    sizes: Array,
    p: Array,
) -> FactorResult:
    """Least ‖B (A − LR) Dᵀ‖ for the metrics BᵀB of rows and DᵀD of columns: the solution for B A Dᵀ, taken back.

    Args:
        goal: of the program.
        matrix: A, or two factors of it.
        weights: ω of rows, or None.
        roots: B and D with their inverses; None for the identity.
        sizes: rank of the task, and its number of single entries.
        p: exponent.
    """
    if isinstance(matrix, tuple):
        return _factor_pair(goal, matrix, weights, roots, sizes, p)
    return _factor_matrix(goal, matrix, weights, roots, sizes, p)


def _factor_matrix(
    goal: Goal, matrix: Array, weights: Array | None, roots: Sequence[Roots | None], sizes: Array, p: Array
) -> FactorResult:
    wide = matrix.astype(solving_dtype(matrix.dtype))
    halves, inverses = _split(roots)
    weighted = functools.partial(on_both_sides, halves)

    def solve(matrix: Array) -> Solution:
        solution = goal.solve(weighted(matrix), weights, p)
        left, right = _unweighted(goal, solution.left, solution.right, inverses, sizes[0])
        return solution._replace(left=left, right=right)

    if goal.sparse:
        power = p if goal.solver.uses_p else jnp.asarray(2, p.dtype)
        solution, sparse = with_entries(solve, wide, sizes[1], _importance(wide, weights, halves, power), power)
    else:
        solution, sparse = solve(wide), None
    left, right = solution.left.astype(matrix.dtype), solution.right.astype(matrix.dtype)
    # Measured on the factors as they will be stored, after any rounding to half precision.
    residual = wide - jnp.matmul(left.astype(wide.dtype), right.astype(wide.dtype), precision="highest")
    if sparse is not None:
        sparse = jnp.where(sparse != 0, residual, 0).astype(matrix.dtype)
        residual = residual - sparse.astype(wide.dtype)
    norms = lp_norm(wide, p), lp_norm(wide, p, "rows")
    errors = lp_norm(residual, p), lp_norm(residual, p, "rows")
    squares = None
    if weights is not None or any(roots):
        scale = None if weights is None else jnp.sqrt(weights.astype(wide.dtype))
        lost, whole = (jnp.sum(on_the_left(scale, weighted(part)) ** 2) for part in (residual, wide))
        squares = lost, whole
    bounded = squares is None and sparse is None
    return _result(goal, left, right, sparse, errors, norms, squares, solution, wide.shape[1] if bounded else None, p)


def _factor_pair(
    goal: Goal,
    factors: tuple[Array, Array],
    weights: Array | None,
    roots: Sequence[Roots | None],
    sizes: Array,
    p: Array,
) -> FactorResult:
    """As `_factor_matrix`, of a product LR: with the weighted Rᵀ = QT, an equivariant solver gets LTᵀ."""
    dtype = solving_dtype(factors[0].dtype)
    outer, inner = (part.astype(dtype) for part in factors)
    halves, inverses = _split(roots)
    basis, triangle = qr(on_the_left(halves[1], inner.T))
    small = jnp.matmul(on_the_left(halves[0], outer), triangle.T, precision="highest")
    solution = goal.solve(small, weights, p)
    right = jnp.matmul(solution.right, basis.T, precision="highest")
    left, right = _unweighted(goal, solution.left, right, inverses, sizes[0])
    left, right = left.astype(factors[0].dtype), right.astype(factors[0].dtype)
    # A − LR as one product, whose rows are formed a block at a time.
    residual = (
        jnp.concatenate([outer, -left.astype(dtype)], axis=1),
        jnp.concatenate([inner, right.astype(dtype)]),
    )
    lost, whole = _row_sums(*residual, p), _row_sums(outer, inner, p)
    errors, norms = ((blocked_sum(sums[0]) ** (1 / p), blocked_sum(sums[1]) ** (1 / p)) for sums in (lost, whole))
    squares = None
    if weights is not None or any(roots):
        scale = jnp.ones(outer.shape[0], dtype) if weights is None else weights.astype(dtype)

        def square(x: Array, y: Array) -> Array:
            return blocked_sum(scale * _row_sums(on_the_left(halves[0], x), on_the_left(halves[1], y.T).T, p)[2])

        squares = square(*residual), square(outer, inner)
    columns = inner.shape[1] if squares is None else None
    return _result(goal, left, right, None, errors, norms, squares, solution, columns, p)


def _split(roots: Sequence[Roots | None]) -> tuple[tuple[Array | None, ...], tuple[Array | None, ...]]:
    """The roots, and their inverses."""
    halves, inverses = zip(*((None, None) if root is None else root for root in roots), strict=True)
    return halves, inverses


def _unweighted(
    goal: Goal, left: Array, right: Array, inverses: Sequence[Array | None], rank: Array
) -> tuple[Array, Array]:
    """Factors of the weighted matrix taken back, and cut to the task's rank."""
    left, right = on_the_left(inverses[0], left), on_the_left(inverses[1], right.T).T
    if goal.smaller:
        left = jnp.where(jnp.arange(goal.rank)[None, :] < rank, left, 0)
    return left, right


def _result(
    goal: Goal,
    left: Array,
    right: Array,
    sparse: Array | None,
    errors: tuple[Array, Array],
    norms: tuple[Array, Array],
    squares: tuple[Array, Array] | None,
    solution: Solution,
    columns: int | None,
    p: Array,
) -> FactorResult:
    """The result, with the ellipsoid's bound if the number of columns says that it holds."""
    bound, ellipsoid = None, solution.ellipsoid
    if ellipsoid is not None and columns is not None:
        bound = entries_bound(ellipsoid.values, goal.rank, ellipsoid.upper, columns, p)
        bound = _share(jnp.where(p <= 2, bound, jnp.inf), norms[0])
    shares = _share(errors[0], norms[0]), _share(errors[1], norms[1])
    return FactorResult(left, right, sparse, *shares, bound, norms, squares, solution.num_iters, solution.converged)


def _row_sums(x: Array, y: Array, p: Array) -> tuple[Array, Array, Array]:
    """Σ |·|^p, ‖·‖^p and ‖·‖² of each row of XY; rows are formed a block at a time."""

    def of_row(row: Array) -> tuple[Array, Array, Array]:
        product = jnp.matmul(row[None], y, precision="highest")
        return tuple(  # pyright: ignore[reportReturnType]
            sums[0] for sums in (power_sums(product, p), power_sums(product, p, "rows"), jnp.sum(product**2, axis=1))
        )

    return jax.lax.map(of_row, x, batch_size=max(1, _ENTRIES // y.shape[1]))


def _importance(matrix: Array, weights: Array | None, halves: Sequence[Array | None], p: Array) -> Array:
    """What an error of each entry counts, to be multiplied by its size; metrics enter by their diagonals."""
    sides = []
    for root, length in zip(halves, matrix.shape, strict=True):
        half = jnp.ones(length, matrix.dtype) if root is None else root
        sides.append(half if half.ndim == 1 else jnp.sqrt(jnp.sum(half**2, axis=0)))
    if weights is not None:
        sides[0] = sides[0] * weights.astype(matrix.dtype) ** (1 / p)
    return sides[0][:, None] * sides[1][None, :]


def _share(part: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)
