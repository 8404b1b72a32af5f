"""Matrices of one shape, solved together: several at a time on each device, all devices at once."""

from __future__ import annotations

import collections
import functools
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype
from jax.sharding import Mesh, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array
from threadpoolctl import threadpool_limits

from lpjax._lapack import qr
from lpjax._mesh import by_rows, data_mesh, fetch, replicated, spread
from lpjax._numbers import solving_dtype
from lpjax.objectives import blocked_sum, entries_bound, lp_norm, power_sums
from lpjax.solvers import Solution, Solver, with_entries
from lpjax.weighting.metric import UNWEIGHTED, Metric, Metrics, Roots, on_both_sides, on_the_left, roots_of_batch
from lpjax.weights.low_rank import LowRank

_ENTRIES = 2**20  # of a product, at a time

T = TypeVar("T")
U = TypeVar("U")


class MatrixTask(NamedTuple):
    """A matrix A to be factored, `leaf[place]` of a stack, after any transposition.

    Attributes:
        path, leaf, place: where it is.
        height: of the stack: how many matrices the leaf has.
        shape: of A.
        transposed: whether A is the leaf's transpose.
        solve, p: the solver and its exponent.
        rank: of the pair.
        weights: ω of its rows, or None.
        metrics: metrics BᵀB of its rows and DᵀD of its columns; the solver gets B A Dᵀ.
        nnz: how many single entries of A are kept beside the pair.
        exponent: A is solved as A·2^−exponent, which is exact; not 0 near either end of its dtype's range.
        as_factors: whether the leaf is a pair that the solver gets as its two factors, never multiplied out.
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
    def dtype(self) -> np.dtype:
        """Of the leaf, as it is stored, with x64 or without."""
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
        # What one side has more than its share of the exponent, the other has less.
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


class FactorResult(NamedTuple):
    """Factors of one matrix A, as the task scales it, and what they lose.

    Attributes:
        left, right: in the leaf's dtype.
        sparse: matrix of single entries, 0 elsewhere; None without any.
        error_entries, error_rows: what is lost, as shares of `norms`.
        bound: on `error_entries`, or None.
        norms: ‖A‖_p over entries and over rows.
        squares: weighted ‖·‖_F² of A − LR and of A; None without weights.
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


class TaskResult(NamedTuple):
    """A solved task, and its solve time excluding compilation, divided by the batch size."""

    task: MatrixTask
    factors: FactorResult
    seconds: float


def program_key(task: MatrixTask) -> Hashable:
    """Tasks of one key are solved by one program."""
    weighted = jax.tree.structure((task.weights, task.metrics))
    dimensions = tuple(leaf.ndim for leaf in jax.tree.leaves(task.metrics))
    rank = None if task.solve.nested else task.rank
    inner = task.leaf.rank if task.as_factors else None
    kind = rank, bool(task.nnz), inner, isinstance(task.leaf, LowRank)
    return task.solve, task.p, task.shape, task.dtype, kind, weighted, dimensions


def rehearse(tasks: Sequence[MatrixTask], options: dict[str, Any]) -> None:
    """Run the solver's own checks of tasks of one program, without solving, and check what it would return.

    Raises:
        ValueError: as the solver, or it returns no `Solution` of the right shapes.
    """
    task = max(tasks, key=lambda task: task.rank)
    dtype = solving_dtype(canonicalize_dtype(task.dtype))
    matrix = jax.ShapeDtypeStruct(task.shape, dtype)
    weights = None if task.weights is None else jax.ShapeDtypeStruct(task.shape[:1], task.weights.dtype)

    def run(matrix: Array, weights: Array | None) -> Solution:
        return task.solve(matrix, task.rank, p=task.p, **_with_weights(options, weights))

    found = jax.eval_shape(run, matrix, weights)
    if not isinstance(found, Solution):
        raise ValueError(f"`solver` returned a {type(found).__name__}; expected a `Solution`")
    shapes, expected = (
        (found.left.shape, found.right.shape),
        ((task.shape[0], task.rank), (task.rank, task.shape[1])),
    )
    if shapes != expected:
        raise ValueError(f"`solver` returned factors of shapes {shapes}; expected {expected}")


def _with_weights(options: dict[str, Any], weights: Array | None) -> dict[str, Any]:
    return options if weights is None else options | {"row_weights": weights}


def _default_batch(task: MatrixTask) -> int:
    """How many such matrices one program solves: 1 on CPU, elsewhere what a quarter of a device's memory holds."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return 1
    available = (device.memory_stats() or {}).get("bytes_limit", 2**33) / 4
    # Seven of each metric's size: itself, scaled, its triangle or eigenvectors, both roots, and what LAPACK works in.
    metrics = sum(7 * metric.base.size for metric in task.metrics if metric is not None)
    matrices = 18 if task.nnz else 8  # of A's size
    return max(1, int(available // (4 * (matrices * task.shape[0] * task.shape[1] + metrics))))


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def solve_group(
    tasks: Sequence[MatrixTask], options: dict[str, Any], batch_size: int | None, mesh: Mesh
) -> Iterator[TaskResult]:
    """Solve tasks of one program, in their order.

    Where the one device is a CPU, a program a core runs at a time, with LAPACK on one thread in each: its eigenvectors
    of one matrix hardly gain from a second core.

    Args:
        tasks: of one `program_key`.
        options: further keywords of the solver.
        batch_size: matrices that a device solves at a time, in one program; None for what its memory or cores allow.
        mesh: devices, along the axis "data".
    """
    rank = max(task.rank for task in tasks)
    kind = rank, any(task.rank < rank for task in tasks), bool(tasks[0].nnz)
    if len(tasks) < mesh.size and jax.process_count() == 1:
        mesh = data_mesh(mesh.devices.flat[: len(tasks)].tolist())  # the others would only repeat the last task
    by_task, everywhere_alike = by_rows(mesh), replicated(mesh)
    if mesh.size == 1:
        # Arrays on a mesh are put together on their way to the host and back: a copy, be it of one device.
        by_task = everywhere_alike = SingleDeviceSharding(mesh.devices.flat[0])
    one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    workers = min(_cores(), len(tasks)) if one_cpu and batch_size is None else 1
    size = (batch_size or _default_batch(tasks[0])) * mesh.size
    exponent = np.asarray(tasks[0].p, solving_dtype(canonicalize_dtype(tasks[0].dtype)))
    exponent = spread(exponent, everywhere_alike)

    def prepared() -> Iterator[tuple[list[MatrixTask], int, tuple[Any, ...]]]:
        for start in range(0, len(tasks), size):
            batch = list(tasks[start : start + size])
            height = -(-len(batch) // mesh.size) * mesh.size
            padded = batch + [batch[-1]] * (height - len(batch))
            matrices = jax.tree.map(lambda *arrays: _stack(arrays), *(task.matrix() for task in padded))
            # Trees of one structure, for what one task of a group has, all have.
            known = jax.tree.map(lambda *arrays: _stack(arrays), *((task.weights, task.metrics) for task in padded))
            sizes = np.array([(task.rank, task.nnz) for task in padded], np.int32)
            arguments = (spread(matrices, by_task), spread(known, by_task), spread(sizes, by_task), exponent)
            if height not in programs:
                programs[height] = _compiled(tasks[0].solve, kind, options, mesh, arguments)
            yield batch, height, arguments

    def run(one: tuple[list[MatrixTask], int, tuple[Any, ...]]) -> list[TaskResult]:
        batch, height, arguments = one
        began = time.perf_counter()
        solved = fetch(programs[height](*arguments))
        seconds = (time.perf_counter() - began) / len(batch) / workers
        every = [solved if height == 1 else jax.tree.map(lambda x, i=i: x[i], solved) for i in range(len(batch))]
        return [TaskResult(task, _cut(own, task.rank), seconds) for task, own in zip(batch, every, strict=True)]

    programs: dict[int, Callable[..., FactorResult]] = {}
    for parts in _in_order(run, prepared(), workers):
        yield from parts


def shifted(array: np.ndarray, exponent: int) -> np.ndarray:
    """array·2^exponent on the host, in its dtype, subnormal numbers included."""
    wide = array.astype(np.promote_types(array.dtype, np.float32)) if array.dtype.itemsize < 4 else array
    return np.ldexp(wide, exponent).astype(array.dtype)


def exponent_of(array: Any) -> int:
    """The least e with |x| < 2^e for all of an array on the host; 0 for zeros."""
    largest = max((float(np.max(np.abs(array[i : i + 4096]))) for i in range(0, len(array), 4096)), default=0.0)
    return int(np.frexp(largest)[1])


def _cut(solved: FactorResult, rank: int) -> FactorResult:
    """Without the part of the factors beyond a rank, which is 0."""
    if solved.left.shape[1] == rank:
        return solved
    left, right = (np.ascontiguousarray(part) for part in (solved.left[:, :rank], solved.right[:rank]))
    return solved._replace(left=left, right=right)  # pyright: ignore[reportArgumentType]


def _in_order(function: Callable[[T], U], items: Iterable[T], workers: int) -> Iterator[U]:
    """`function` of each item, as many at work as there are workers, and one that waits for a core."""
    if workers == 1:
        yield from map(function, items)
        return
    running: collections.deque[Future[U]] = collections.deque()
    pool = ThreadPoolExecutor(workers)
    try:
        with threadpool_limits(1, "blas"):
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _compiled(
    solve: Solver,
    kind: tuple[int, bool, bool],
    options: dict[str, Any],
    mesh: Mesh,
    arguments: tuple[Any, ...],
) -> Callable[..., FactorResult]:
    """What solves arguments like these; compiled once, for whoever asks, where the options can be compared."""
    kinds = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arguments)
    given = tuple((name, type(value), value) for name, value in sorted(options.items()))
    # Of JAX's settings those that a program depends on.
    precision = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009, not in jax's stubs
    settings = canonicalize_dtype(np.float64), precision, jax.config.read("jax_disable_most_optimizations")
    build = _compile if _comparable((solve, given)) else _compile.__wrapped__
    return build(solve, kind, given, mesh, kinds, settings)


def _comparable(options: tuple[Any, ...]) -> bool:
    """Whether there are no arrays among them."""
    try:
        hash(options)
    except TypeError:
        return False
    return True


@functools.lru_cache(maxsize=64)
def _compile(
    solve: Solver,
    kind: tuple[int, bool, bool],
    options: tuple[tuple[str, type, Any], ...],
    mesh: Mesh,
    kinds: tuple[Any, ...],
    settings: tuple[Any, ...],
) -> Callable[..., FactorResult]:
    """What solves arguments of these kinds, for pairs of the largest rank, or some of a smaller one, with entries
    beside them or without.

    Types of options and settings tell programs apart, and are not read.
    """
    given = {name: value for name, _, value in options}
    rank, smaller, entries = kind

    def thin(
        factors: tuple[Array, Array],
        weights: Array | None,
        both: tuple[Roots | None, Roots | None],
        sizes: Array,
        p: Array,
    ) -> FactorResult:
        """As `one`, of the product of two factors: with the weighted right one Rᵀ = QT, the solver gets LTᵀ."""
        dtype = solving_dtype(factors[0].dtype)
        outer, inner = (factor.astype(dtype) for factor in factors)
        halves, inverses = zip(*((None, None) if side is None else side for side in both), strict=True)
        basis, triangle = qr(on_the_left(halves[1], inner.T))
        small = jnp.matmul(on_the_left(halves[0], outer), triangle.T, precision="highest")
        found = solve(small, rank, p=p, **_with_weights(given, weights))
        right = jnp.matmul(found.right, basis.T, precision="highest")
        left, right = on_the_left(inverses[0], found.left), on_the_left(inverses[1], right.T).T
        if smaller:
            left = jnp.where(jnp.arange(rank)[None, :] < sizes[0], left, 0)
        left, right = left.astype(factors[0].dtype), right.astype(factors[0].dtype)
        # A − LR as one product, whose rows are formed a block at a time.
        together = (
            jnp.concatenate([outer, -left.astype(dtype)], axis=1),
            jnp.concatenate([inner, right.astype(dtype)]),
        )
        rest, whole = _sums(*together, p), _sums(outer, inner, p)
        entries, rows, *totals = (blocked_sum(sums) ** (1 / p) for sums in (*rest[:2], *whole[:2]))
        squares = None
        if weights is not None or any(both):
            scale = jnp.ones(outer.shape[0], dtype) if weights is None else weights.astype(dtype)

            def square(x: Array, y: Array) -> Array:
                return blocked_sum(scale * _sums(on_the_left(halves[0], x), on_the_left(halves[1], y.T).T, p)[2])

            squares = square(*together), square(outer, inner)
        bound = None
        if found.ellipsoid is not None and squares is None:
            bound = entries_bound(found.ellipsoid.values, rank, found.ellipsoid.upper, inner.shape[1], p)
            bound = _share(jnp.where(p <= 2, bound, jnp.inf), totals[0])
        shares = _share(entries, totals[0]), _share(rows, totals[1])
        both_totals = totals[0], totals[1]
        return FactorResult(left, right, None, *shares, bound, both_totals, squares, found.num_iters, found.converged)

    def one(
        matrix: Any, weights: Array | None, both: tuple[Roots | None, Roots | None], sizes: Array, p: Array
    ) -> FactorResult:
        if isinstance(matrix, tuple):
            return thin(matrix, weights, both, sizes, p)
        wide = matrix.astype(solving_dtype(matrix.dtype))
        partial = functools.partial(solve, p=p, **_with_weights(given, weights))
        halves, inverses = zip(*((None, None) if side is None else side for side in both), strict=True)
        weighted = functools.partial(on_both_sides, halves)

        def pair(matrix: Array) -> Solution:
            """Of least B (A − LR) Dᵀ, H = BᵀB, G = DᵀD: that of B A Dᵀ, taken back."""
            found = partial(weighted(matrix), rank)
            left, right = on_the_left(inverses[0], found.left), on_the_left(inverses[1], found.right.T).T
            if smaller:
                left = jnp.where(jnp.arange(rank)[None, :] < sizes[0], left, 0)
            return found._replace(left=left, right=right)

        if entries:
            power = p if solve.uses_p else jnp.asarray(2, p.dtype)
            solution, single = with_entries(pair, wide, sizes[1], _importance(wide, weights, halves, power), power)
        else:
            solution, single = pair(wide), None
        left, right = solution.left.astype(matrix.dtype), solution.right.astype(matrix.dtype)
        # Measured on the factors as they will be stored, after any rounding to half precision.
        residual = wide - jnp.matmul(left.astype(wide.dtype), right.astype(wide.dtype), precision="highest")
        if single is not None:
            single = jnp.where(single != 0, residual, 0).astype(matrix.dtype)
            residual = residual - single.astype(wide.dtype)
        total, rows_total = lp_norm(wide, p), lp_norm(wide, p, "rows")
        squares = None
        if weights is not None or any(both):
            scale = None if weights is None else jnp.sqrt(weights.astype(wide.dtype))
            left_over, whole = (jnp.sum(on_the_left(scale, weighted(one)) ** 2) for one in (residual, wide))
            squares = left_over, whole
        bound = None
        if solution.ellipsoid is not None and squares is None and single is None:
            ellipsoid = solution.ellipsoid
            bound = entries_bound(ellipsoid.values, rank, ellipsoid.upper, wide.shape[1], p)
            bound = _share(jnp.where(p <= 2, bound, jnp.inf), total)
        return FactorResult(
            left,
            right,
            single,
            _share(lp_norm(residual, p), total),
            _share(lp_norm(residual, p, "rows"), rows_total),
            bound,
            (total, rows_total),
            squares,
            solution.num_iters,
            solution.converged,
        )

    def several(matrices: Any, known: tuple[Array | None, Metrics], sizes: Array, p: Array) -> FactorResult:
        weights, metrics = known
        first = jax.tree.leaves(matrices)[0]
        dtype = solving_dtype(first.dtype)
        # For sums of squares any roots will do; otherwise the objective is that of the rows under the symmetric ones.
        find = functools.partial(roots_of_batch, dtype=dtype, symmetric=solve.uses_p)
        both = jax.tree.map(find, metrics, is_leaf=lambda part: isinstance(part, Metric))
        if first.shape[0] > 1:
            return jax.vmap(one, in_axes=(0, 0, 0, 0, None))(matrices, weights, both, sizes, p)
        # One alone is not vmapped: under vmap both sides of a solver's branches would be computed.
        matrix, weights, both = jax.tree.map(lambda x: x[0], (matrices, weights, both))
        return one(matrix, weights, both, sizes[0], p)

    def share(matrices: Any, known: tuple[Array | None, Metrics], sizes: Array, p: Array) -> FactorResult:
        solved = several(matrices, known, sizes, p)
        return solved if jax.tree.leaves(matrices)[0].shape[0] > 1 else jax.tree.map(lambda x: x[None], solved)

    everywhere = several  # one alone comes without an axis of its own, which would be a copy of the factors
    if mesh.size > 1:
        specs = (P("data"), P("data"), P("data"), P())
        everywhere = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=False)
    return jax.jit(everywhere).lower(*kinds).compile()


def _sums(x: Array, y: Array, p: Array) -> tuple[Array, Array, Array]:
    """Of each row of XY: Σ |·|^p, ‖·‖^p and ‖·‖²; rows are formed a block at a time."""

    def of_row(row: Array) -> tuple[Array, Array, Array]:
        product = jnp.matmul(row[None], y, precision="highest")
        return tuple(  # pyright: ignore[reportReturnType]
            sums[0] for sums in (power_sums(product, p), power_sums(product, p, "rows"), jnp.sum(product**2, axis=1))
        )

    return jax.lax.map(of_row, x, batch_size=max(1, _ENTRIES // y.shape[1]))


def _importance(matrix: Array, weights: Array | None, halves: Sequence[Array | None], p: Array) -> Array:
    """What an error of an entry counts, to be multiplied by its size; of metrics their diagonals say it."""
    sides = []
    for root, length in zip(halves, matrix.shape, strict=True):
        half = jnp.ones(length, matrix.dtype) if root is None else root
        sides.append(half if half.ndim == 1 else jnp.sqrt(jnp.sum(half**2, axis=0)))
    if weights is not None:
        sides[0] = sides[0] * weights.astype(matrix.dtype) ** (1 / p)
    return sides[0][:, None] * sides[1][None, :]


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(arrays) if len(arrays) > 1 else arrays[0][None]  # of one, no copy


def _share(part: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)
