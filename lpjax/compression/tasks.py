"""Tasks for the solvers from the matrices of a leaf, and the leaf from their results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.dtypes import canonicalize_dtype

from lpjax._numbers import solving_dtype
from lpjax._powers import size_on_host
from lpjax._tree import is_table
from lpjax.compression.factors import FactorResult
from lpjax.compression.plan import Choice
from lpjax.compression.record import LayerRecord
from lpjax.select import MatrixView
from lpjax.solvers import SOLVERS, Solver, solver_named
from lpjax.weighting.metric import UNWEIGHTED, Metrics
from lpjax.weights.low_rank import LowRank
from lpjax.weights.sparse import Sparse, entries_for


class MatrixTask(NamedTuple):
    """A matrix A to be factored, `leaf[place]` of a stack, after any transposition.

    Attributes:
        path, leaf, place: path of the leaf, the leaf, and index of the matrix in its stack.
        height: number of matrices of the leaf.
        shape: shape of A.
        transposed: whether A is the leaf's transpose.
        solve, p: the solver and its exponent.
        rank: rank of the pair.
        weights: ω of the rows, shape (n,), or None.
        metrics: metrics BᵀB of the rows and DᵀD of the columns; the solver gets B A Dᵀ.
        nnz: number of single entries of A beside the pair.
        exponent: exponent e of the exact scaling A·2^−e that is solved; 0 except near the ends of the dtype's range.
        as_factors: whether the leaf is a pair that is solved from its factors, without forming the product.
    """

    path: str
    leaf: Any
    place: tuple[int, ...]
    height: int
    shape: tuple[int, int]
    transposed: bool
    solve: Solver
    p: float
    rank: int
    weights: np.ndarray | None = None
    metrics: Metrics = UNWEIGHTED
    nnz: int = 0
    exponent: int = 0
    as_factors: bool = False

    @property
    def factor_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of left and right."""
        return (self.shape[0], self.rank), (self.rank, self.shape[1])

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the stored leaf, with x64 or without."""
        if isinstance(self.leaf, LowRank):
            return np.promote_types(self.leaf.left.dtype, self.leaf.right.dtype)
        return self.leaf.dtype

    def matrix(self) -> Any:
        """A·2^−exponent on the host, or two factors of it, each of order one."""
        if isinstance(self.leaf, LowRank):
            return self._factors() if self.as_factors else self._product()
        matrix = np.asarray(self.leaf[self.place] if self.place else self.leaf)
        matrix = matrix.reshape(self.shape[::-1]).T if self.transposed else matrix.reshape(self.shape)
        return shifted(matrix, -self.exponent) if self.exponent else matrix

    def _pair(self) -> LowRank:
        left, right = (np.asarray(part)[self.place] for part in (self.leaf.left, self.leaf.right))
        return LowRank(left, right, self.leaf.sparse)

    def _factors(self) -> tuple[np.ndarray, np.ndarray]:
        pair = self._pair()
        pair = pair.T if self.transposed else pair
        # The exponents of both factors add up to that of the matrix.
        inner = exponent_of(pair.right)
        dtype = self.dtype
        return tuple(  # pyright: ignore[reportReturnType]
            np.ascontiguousarray(shifted(np.asarray(part), by).astype(dtype))
            for part, by in ((pair.left, inner - self.exponent), (pair.right, -inner))
        )

    def _product(self) -> np.ndarray:
        dense = np.concatenate([rows for _, rows in self._pair().blocks(2048)])
        dense = np.ldexp(dense.T if self.transposed else dense, -self.exponent)
        return dense.astype(solving_dtype(canonicalize_dtype(self.dtype)))


class TaskResult(NamedTuple):
    """A solved task, and its solve time excluding compilation, divided by the batch size."""

    task: MatrixTask
    factors: FactorResult
    seconds: float


def unchanged_record(path: str, leaf: Any, reason: str) -> LayerRecord:
    """The record of a leaf that stays unchanged."""
    size, shape = math.prod(leaf.shape), tuple(leaf.shape)
    if isinstance(leaf, LowRank):
        return LayerRecord(path, shape, leaf.rank, size, leaf.size, note=f"stays as it is: {reason}", nnz=leaf.nnz)
    return LayerRecord(path, shape, None, size, size, note=f"stays dense: {reason}")


def tasks_of_leaf(
    path: str,
    leaf: Any,
    view: MatrixView,
    choice: Choice,
    *,
    rows: str,
    row_weights: Any = None,
    metrics: Metrics = UNWEIGHTED,
    options: Mapping[str, Any],
) -> list[MatrixTask]:
    """The matrices of a leaf to be solved; a pair counts as the matrix that it represents.

    Args:
        path, leaf, view: path of the leaf, the leaf, and its view as matrices.
        choice: choice with a rank.
        rows, row_weights, options: see `compress`.
        metrics: metrics of the leaf, in the model's orientation.

    Raises:
        ValueError: the leaf is not finite, or `row_weights` do not fit.
    """
    rank, nnz = _split(choice, view, leaf.dtype)
    largest = require_finite(path, leaf)
    transposed = rows == "last" or (rows == "auto" and not is_table(path))
    shape = (view.outputs, view.inputs) if transposed else (view.inputs, view.outputs)
    weights = None if row_weights is None else _checked_row_weights(path, row_weights, (*view.stack, shape[0]))
    if transposed:
        metrics = Metrics(metrics.columns, metrics.rows)
    if metrics.rows is not None and metrics.rows.base.ndim == 1 and weights is None:
        # Passed as row weights, which multiply ‖·‖^p of a row's error; a metric would enter to the power p/2.
        base = metrics.rows.base
        weights = (base / np.mean(base, dtype=np.float64) + metrics.rows.shrinkage) ** metrics.rows.power
        weights = weights.astype(jax.dtypes.canonicalize_dtype(np.float64))
        metrics = Metrics(None, metrics.columns)
    solve = solver_named(choice.method)
    # A start or a metric from the caller applies to the whole matrix.
    as_factors = isinstance(leaf, LowRank) and leaf.sparse is None and not nnz and solve.equivariant
    as_factors = as_factors and not options.keys() & {"init", "metric"}
    task = MatrixTask(
        path, leaf, (), math.prod(view.stack), shape, transposed, solve, choice.p, rank, weights, metrics, nnz,
        exponent=0 if isinstance(leaf, LowRank) else _exponent(largest, leaf.dtype), as_factors=as_factors,
    )  # fmt: skip
    tasks = [
        task._replace(place=place, weights=None if weights is None else weights[place])
        for place in np.ndindex(view.stack)
    ]
    if isinstance(leaf, LowRank):
        tasks = [task._replace(exponent=_pair_exponent(leaf, task.place)) for task in tasks]
    return tasks


def _split(choice: Choice, view: MatrixView, dtype: Any) -> tuple[int, int]:
    """The rank of the pair and the number of single entries beside it."""
    rank, (n, d) = int(choice.rank or 0), view[1:]
    if not choice.sparse_share:
        return rank, 0
    # Guards against rounding: a share of 0.1 of rank 10 is a whole rank.
    smaller = max(1, rank - int(choice.sparse_share * rank * (1 + 1e-12)))
    nnz = entries_for((rank - smaller) * (n + d), (n, d), dtype)
    return (smaller, nnz) if nnz else (rank, 0)


def _checked_row_weights(path: str, row_weights: Any, shape: tuple[int, ...]) -> np.ndarray:
    weights = np.asarray(row_weights, np.float32)
    if weights.shape != shape or not np.all(np.isfinite(weights)) or np.any(weights < 0):
        got = f"`row_weights` of {path} has shape {weights.shape}"
        raise ValueError(f"{got}; expected {shape}, finite and not negative")
    if not np.all(np.any(weights, axis=-1)):
        raise ValueError(f"`row_weights` of {path} is all zero; expected a weight above 0")
    return weights


def shifted(array: np.ndarray, exponent: int) -> np.ndarray:
    """array·2^exponent on the host, in its dtype, subnormal numbers included."""
    wide = array.astype(np.promote_types(array.dtype, np.float32)) if array.dtype.itemsize < 4 else array
    return np.ldexp(wide, exponent).astype(array.dtype)


def exponent_of(array: Any) -> int:
    """The least e with |x| < 2^e for all entries of a host array; 0 for zeros."""
    largest = max((float(np.max(np.abs(array[i : i + 4096]))) for i in range(0, len(array), 4096)), default=0.0)
    return int(np.frexp(largest)[1])


def require_finite(path: str, leaf: Any) -> float:
    """The largest magnitude in a leaf, or in the factors of a pair.

    Raises:
        ValueError: it holds NaN or infinity; names the path.
    """
    if isinstance(leaf, LowRank):
        parts = (leaf.left, leaf.right) if leaf.sparse is None else (leaf.left, leaf.right, leaf.sparse.values)
        return max(require_finite(path, part) for part in parts)
    largest = 0.0
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)  # without x64, numbers beyond float32 are infinite
    for start in range(0, leaf.shape[0], 4096):  # in pieces, as a mask of the whole array needs memory
        with np.errstate(over="ignore"):
            whole = np.asarray(leaf[start : start + 4096])
            piece = whole.astype(dtype)
        if not np.all(np.isfinite(piece)):
            raise ValueError(
                f"{path} holds NaN or infinite entries (as {dtype}); expected finite weights: repair the checkpoint"
            )
        if whole.size:
            largest = max(largest, float(np.max(whole)), -float(np.min(whole)))
    return largest


def _comfortable(dtype: Any) -> tuple[float, float]:
    """The range of a matrix's largest entry in which computations with it neither overflow nor underflow."""
    info = jax.numpy.finfo(jax.dtypes.canonicalize_dtype(dtype))
    # Subnormal numbers of half precision are normal in the dtype that computes with them.
    least = 8 * float(info.tiny) if info.bits == 16 and info.nmant > 8 else float(info.tiny) / float(info.eps)
    return least, float(info.max) * 2.0**-12


def _exponent(largest: float, dtype: Any) -> int:
    """The exponent of the power of two by which a matrix is divided; 0 in the comfortable range."""
    least, most = _comfortable(dtype)
    return 0 if largest == 0 or least <= largest <= most else math.frexp(largest)[1]


def _pair_exponent(leaf: LowRank, place: tuple[int, ...]) -> int:
    left, right = (exponent_of(np.asarray(part)[place]) for part in (leaf.left, leaf.right))
    return left + right if leaf.sparse is None else max(left + right, exponent_of(np.asarray(leaf.sparse.values)))


def _rescaled(left: np.ndarray, right: np.ndarray, exponent: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors of 2^exponent·LR: left takes the scale if it stays in the comfortable range, else both share it."""
    sizes = exponent_of(left), exponent_of(right)
    least, most = _comfortable(left.dtype)
    a = exponent
    if np.any(left) and not least <= math.ldexp(1.0, max(min(sizes[0] + a, 1023), -1074)) <= most:
        a = (exponent + sizes[1] - sizes[0]) // 2
    return shifted(left, a), shifted(right, exponent - a)


def leaf_of_results(results: Sequence[TaskResult]) -> tuple[LayerRecord, LowRank]:
    """The record and the pair of a leaf, from the results of all its matrices in order."""
    task, solved = results[0].task, [result.factors for result in results]
    stack = task.leaf.shape[: len(task.place)]

    def stacked(factors: Sequence[jax.Array], shape: tuple[int, ...]) -> np.ndarray:
        # Without x64, float64 was solved in float32.
        arrays = [np.asarray(factor, task.dtype) for factor in factors]
        return np.stack(arrays).reshape(*stack, *shape) if stack else arrays[0]

    factors = [(result.factors.left, result.factors.right) for result in results]
    if any(result.task.exponent for result in results):
        factors = [
            _rescaled(np.asarray(left, task.dtype), np.asarray(right, task.dtype), result.task.exponent)
            for (left, right), result in zip(factors, results, strict=True)
        ]
    lefts, rights = zip(*factors, strict=True)
    left, right = map(stacked, (lefts, rights), task.factor_shapes)
    pair = LowRank(left, right)
    pair = pair.T if task.transposed else pair
    if solved[0].sparse is not None:
        sparse = shifted(np.asarray(solved[0].sparse, task.dtype), task.exponent)
        pair = dataclasses.replace(pair, sparse=Sparse.of(sparse.T if task.transposed else sparse))
    # Scales of a stack's matrices, relative to the largest.
    most = max(result.task.exponent for result in results)
    scales = [math.ldexp(1.0, max(result.task.exponent - most, -1074)) for result in results]
    norms, row_norms = (
        [float(part.norms[i]) * scale for part, scale in zip(solved, scales, strict=True)] for i in (0, 1)
    )
    bounds = [float(part.bound) for part in solved if part.bound is not None and np.isfinite(part.bound)]
    record = LayerRecord(
        path=task.path,
        shape=tuple(task.leaf.shape),
        rank=task.rank,
        dense_size=math.prod(task.leaf.shape),
        stored_size=pair.size,
        error_entries=_joint([float(part.error_entries) for part in solved], norms, task.p),
        error_rows=_joint([float(part.error_rows) for part in solved], row_norms, task.p),
        bound=_joint(bounds, norms, task.p) if len(bounds) == len(solved) else None,
        num_iters=max(int(part.num_iters) for part in solved),
        converged=all(bool(part.converged) for part in solved),
        seconds=sum(result.seconds for result in results),
        error_weighted=_weighted(solved, scales),
        nnz=pair.nnz,
        gap=_gap(results, scales),
    )
    return record, pair


def _gap(results: Sequence[TaskResult], scales: Sequence[float]) -> float | None:
    """1 − lower bound / objective for all solves together; None if a solve has no bound."""
    task, solved = results[0].task, [result.factors for result in results]
    if task.solve is SOLVERS["svd"] and task.p == 2 and not task.nnz:
        return 0.0  # Eckart–Young, at any rank of a nested solve
    pairs = [(part.solved, scale) for part, scale in zip(solved, scales, strict=True) if part.solved is not None]
    if len(pairs) < len(solved):
        return None
    values, bounds = ([float(pair[i]) * scale for pair, scale in pairs] for i in (0, 1))
    most = max(values)
    value, bound = (float(np.sum((np.asarray(part) / (most or 1)) ** task.p)) for part in (values, bounds))
    return max(0.0, 1 - (bound / value) ** (1 / task.p)) if value > 0 and math.isfinite(value) else 0.0


def _weighted(solved: Sequence[FactorResult], scales: Sequence[float]) -> float | None:
    squares = [(part.squares, scale**2) for part, scale in zip(solved, scales, strict=True) if part.squares is not None]
    if not squares:
        return None
    left, whole = (sum(float(pair[i]) * scale for pair, scale in squares) for i in (0, 1))
    return math.sqrt(left / whole) if whole > 0 else 0.0


def _joint(shares: list[float], totals: list[float], p: float) -> float:
    """(Σ (share_i·total_i)^p)^{1/p} / (Σ total_i^p)^{1/p}: the relative error of a stack from those of its matrices."""
    if len(shares) == 1 or not max(totals):
        return shares[0]
    scaled = np.asarray(totals) / max(totals)
    return size_on_host(np.asarray(shares) * scaled, p) / size_on_host(scaled, p)
