"""Factorization of one matrix under weights, with its errors: the computation of a program for each task."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lpjax._lapack import qr
from lpjax._numbers import solving_dtype
from lpjax._powers import size
from lpjax.objectives import blocked_sum, entries_bound, lp_norm, power_sums, row_sizes
from lpjax.solvers import Solution, Solver, with_entries
from lpjax.solvers.exponents import exponent_above_two
from lpjax.weighting.metric import Roots, on_both_sides, on_the_left

_ENTRIES = 2**20  # entries of a product formed at a time


class Goal(NamedTuple):
    """The common settings of all tasks of a program.

    Attributes:
        solver: entry of `SOLVERS`, or a custom one.
        rank: largest rank of all tasks.
        smaller: whether some task has a smaller rank, with a nested solver.
        sparse: whether single entries are kept beside the pairs.
        high: whether p is above 2.
        options: (name, type, value) of further keywords of the solver; types distinguish, e.g., 1 and True.
    """

    solver: Solver
    rank: int
    smaller: bool
    sparse: bool
    high: bool
    options: tuple[tuple[str, type, Any], ...]

    def solve(self, matrix: Array, weights: Array | None, p: Array) -> Solution:
        """The solver's solution at the largest rank, under row weights if given."""
        options = {name: value for name, _, value in self.options}
        with exponent_above_two(self.high):
            return self.solver(matrix, self.rank, p=p, **with_weights(options, weights))


class FactorResult(NamedTuple):
    """Factors of one matrix A, as scaled by its task, and their errors.

    Attributes:
        left, right: factors in the leaf's dtype.
        sparse: dense matrix of the single entries, or None.
        error_entries, error_rows: ‖A − Â‖_p over entries and over rows, relative to `norms`.
        bound: upper bound of `error_entries`, or None.
        norms: ‖A‖_p over entries and over rows.
        squares: weighted ‖·‖_F² of A − Â and of A; None without weights.
        num_iters, converged: results of the solver.
        solved: the solver's objective, and its lower bound of the optimum; None without a useful bound.
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
    solved: tuple[Array, Array] | None = None


def with_weights(options: dict[str, Any], weights: Any) -> dict[str, Any]:
    """The solver's keywords, with row weights if given."""
    return options if weights is None else options | {"row_weights": weights}


def factor(
    goal: Goal,
    matrix: Array | tuple[Array, Array],
    weights: Array | None,
    roots: Sequence[Roots | None],
    sizes: Array,
    p: Array,
) -> FactorResult:
    """Minimise ‖B (A − LR) Dᵀ‖ for the metrics BᵀB of rows and DᵀD of columns: solve for B A Dᵀ, and map back.

    Args:
        goal: settings of the program.
        matrix: A, or two factors of it.
        weights: ω, shape (n,), or None.
        roots: B and D with their inverses; None for the identity.
        sizes: rank and number of single entries of the task, shape (2,).
        p: exponent.
    """
    halves, inverses = zip(*((None, None) if root is None else root for root in roots), strict=True)
    under = _Weights(weights, halves, inverses)
    if isinstance(matrix, tuple):
        solved = _factor_pair(goal, matrix, under, sizes, p)
    else:
        solved = _factor_matrix(goal, matrix, under, sizes, p)
    left, right, sparse, lost, whole, solution = solved
    bound, ellipsoid = None, solution.ellipsoid
    if ellipsoid is not None and lost.square is None and sparse is None:
        bound = entries_bound(ellipsoid.values, goal.rank, ellipsoid.upper, right.shape[1], p)
        bound = _share(bound, whole.entries)
    return FactorResult(
        left,
        right,
        sparse,
        _share(lost.entries, whole.entries),
        _share(lost.rows, whole.rows),
        bound,
        (whole.entries, whole.rows),
        None if lost.square is None or whole.square is None else (lost.square, whole.square),
        solution.num_iters,
        solution.converged,
        # Over entries the bound is that of rows, far below any pair. XLA drops it, as it is unused.
        None
        if solution.lower_bound is None or goal.solver.objective == "entries" or sparse is not None
        else (solution.objective, solution.lower_bound),
    )


class _Weights(NamedTuple):
    """The weights of a matrix's errors.

    Attributes:
        rows: ω of the rows, or None.
        halves: B and D; None for the identity.
        inverses: inverses of B and D.
    """

    rows: Array | None
    halves: tuple[Array | None, ...]
    inverses: tuple[Array | None, ...]

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.rows, *self.halves))

    def unweighted(self, goal: Goal, left: Array, right: Array, rank: Array) -> tuple[Array, Array]:
        """Factors of the weighted matrix mapped back, and cut to the task's rank."""
        left, right = on_the_left(self.inverses[0], left), on_the_left(self.inverses[1], right.T).T
        if goal.smaller:
            left = jnp.where(jnp.arange(goal.rank)[None, :] < rank, left, 0)
        return left, right

    def importance(self, matrix: Array, p: Array) -> Array:
        """A factor on the magnitude of each entry's error; metrics enter by their diagonals."""
        sides = []
        for root, length in zip(self.halves, matrix.shape, strict=True):
            half = jnp.ones(length, matrix.dtype) if root is None else root
            sides.append(half if half.ndim == 1 else jnp.sqrt(jnp.sum(half**2, axis=0)))
        if self.rows is not None:
            sides[0] = sides[0] * self.rows.astype(matrix.dtype) ** (1 / p)
        return sides[0][:, None] * sides[1][None, :]


class _Norms(NamedTuple):
    """‖·‖_p of a matrix over entries and over rows, and its weighted ‖·‖_F², None without weights."""

    entries: Array
    rows: Array
    square: Array | None


_Factored = tuple[Array, Array, Array | None, _Norms, _Norms, Solution]
"""Left, right, single entries or None, norms of A − Â and of A, and the solver's solution."""


def _factor_matrix(goal: Goal, matrix: Array, under: _Weights, sizes: Array, p: Array) -> _Factored:
    wide = matrix.astype(solving_dtype(matrix.dtype))
    weighted = functools.partial(on_both_sides, under.halves)

    def solve(matrix: Array) -> Solution:
        solution = goal.solve(weighted(matrix), under.rows, p)
        left, right = under.unweighted(goal, solution.left, solution.right, sizes[0])
        return solution._replace(left=left, right=right)

    if goal.sparse:
        power = p if goal.solver.uses_p else jnp.asarray(2, p.dtype)
        solution, sparse = with_entries(solve, wide, sizes[1], under.importance(wide, power), power)
    else:
        solution, sparse = solve(wide), None
    left, right = solution.left.astype(matrix.dtype), solution.right.astype(matrix.dtype)
    # Measured on the stored factors, after any rounding to half precision.
    residual = wide - jnp.matmul(left.astype(wide.dtype), right.astype(wide.dtype), precision="highest")
    if sparse is not None:
        sparse = jnp.where(sparse != 0, residual, 0).astype(matrix.dtype)
        residual = residual - sparse.astype(wide.dtype)
    scale = None if under.rows is None else jnp.sqrt(under.rows.astype(wide.dtype))

    def norms(part: Array) -> _Norms:
        square = jnp.sum(on_the_left(scale, weighted(part)) ** 2) if under else None
        return _Norms(lp_norm(part, p), lp_norm(part, p, "rows"), square)

    return left, right, sparse, norms(residual), norms(wide), solution


def _factor_pair(goal: Goal, factors: tuple[Array, Array], under: _Weights, sizes: Array, p: Array) -> _Factored:
    """`_factor_matrix` for a product LR: with the weighted Rᵀ = QT, an equivariant solver gets LTᵀ."""
    dtype = solving_dtype(factors[0].dtype)
    outer, inner = (part.astype(dtype) for part in factors)
    basis, triangle = qr(on_the_left(under.halves[1], inner.T))
    small = jnp.matmul(on_the_left(under.halves[0], outer), triangle.T, precision="highest")
    solution = goal.solve(small, under.rows, p)
    right = jnp.matmul(solution.right, basis.T, precision="highest")
    left, right = under.unweighted(goal, solution.left, right, sizes[0])
    left, right = left.astype(factors[0].dtype), right.astype(factors[0].dtype)
    scale = jnp.ones(outer.shape[0], dtype) if under.rows is None else under.rows.astype(dtype)

    def norms(x: Array, y: Array) -> _Norms:
        """Norms of a product xy, whose rows are formed a block at a time."""
        entries, rows, _ = _row_measures(goal, x, y, p)
        square = None
        if under:
            weighted = on_the_left(under.halves[0], x), on_the_left(under.halves[1], y.T).T
            square = blocked_sum(scale * _row_measures(goal, *weighted, p)[2])
        if goal.high:
            return _Norms(size(entries, p), size(rows, p), square)
        return _Norms(blocked_sum(entries) ** (1 / p), blocked_sum(rows) ** (1 / p), square)

    # A − LR as one product.
    residual = (
        jnp.concatenate([outer, -left.astype(dtype)], axis=1),
        jnp.concatenate([inner, right.astype(dtype)]),
    )
    return left, right, None, norms(*residual), norms(outer, inner), solution


def _row_measures(goal: Goal, x: Array, y: Array, p: Array) -> tuple[Array, Array, Array]:
    """Σ |·|^p, ‖·‖^p and ‖·‖² of each row of XY, formed a block at a time; for p > 2 p-th roots of the first two."""
    measure = row_sizes if goal.high else power_sums

    def of_row(row: Array) -> tuple[Array, Array, Array]:
        product = jnp.matmul(row[None], y, precision="highest")
        return tuple(  # pyright: ignore[reportReturnType]
            part[0] for part in (measure(product, p), measure(product, p, "rows"), jnp.sum(product**2, axis=1))
        )

    return jax.lax.map(of_row, x, batch_size=max(1, _ENTRIES // y.shape[1]))


def _share(part: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)
