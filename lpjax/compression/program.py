"""Programs that solve matrices of one shape together: several at a time on each device, on all devices at once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.dtypes import canonicalize_dtype
from jax.sharding import Mesh, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from lpjax._mesh import by_rows, data_mesh, fetch, put_sharded, replicated
from lpjax._numbers import solving_dtype
from lpjax.compression.factors import FactorResult, Goal, factor, with_weights
from lpjax.compression.tasks import MatrixTask, TaskResult
from lpjax.compression.threads import cores, in_order
from lpjax.solvers import Solution
from lpjax.weighting.metric import Metric, Metrics, roots_of_batch
from lpjax.weights.low_rank import LowRank


def program_key(task: MatrixTask) -> Hashable:
    """A key that is equal for tasks of the same program."""
    weighted = jax.tree.structure((task.weights, task.metrics))
    dimensions = tuple(leaf.ndim for leaf in jax.tree.leaves(task.metrics))
    rank = None if task.solve.nested else task.rank
    inner = task.leaf.rank if task.as_factors else None
    kind = rank, bool(task.nnz), inner, isinstance(task.leaf, LowRank)
    return task.solve, task.p, task.shape, task.dtype, kind, weighted, dimensions


def rehearse(tasks: Sequence[MatrixTask], options: dict[str, Any]) -> None:
    """Run the solver's own checks for tasks of one program, and check the shapes of its result, without solving.

    Raises:
        ValueError: as the solver; or it does not return a `Solution` of the right shapes.
    """
    task = max(tasks, key=lambda task: task.rank)
    dtype = solving_dtype(canonicalize_dtype(task.dtype))
    matrix = jax.ShapeDtypeStruct(task.shape, dtype)
    weights = None if task.weights is None else jax.ShapeDtypeStruct(task.shape[:1], task.weights.dtype)

    def run(matrix: Array, weights: Array | None) -> Solution:
        return task.solve(matrix, task.rank, p=task.p, **with_weights(options, weights))

    solution = jax.eval_shape(run, matrix, weights)
    if not isinstance(solution, Solution):
        raise ValueError(f"`solver` returned a {type(solution).__name__}; expected a `Solution`")
    shapes, expected = (solution.left.shape, solution.right.shape), task.factor_shapes
    if shapes != expected:
        raise ValueError(f"`solver` returned factors of shapes {shapes}; expected {expected}")


def _default_batch(task: MatrixTask) -> int:
    """The number of matrices per program: 1 on a CPU, else as many as fit in a quarter of the device's memory."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return 1
    available = (device.memory_stats() or {}).get("bytes_limit", 2**33) / 4
    # Seven times each metric's size: itself, scaled, its triangle or eigenvectors, both roots, LAPACK's workspace.
    metrics = sum(7 * metric.base.size for metric in task.metrics if metric is not None)
    matrices = 18 if task.nnz else 8  # of A's size
    return max(1, int(available // (4 * (matrices * task.shape[0] * task.shape[1] + metrics))))


def solve_group(
    tasks: Sequence[MatrixTask], options: dict[str, Any], batch_size: int | None, mesh: Mesh
) -> Iterator[TaskResult]:
    """Solve tasks of one program, in order.

    If the only device is a CPU, every core runs one program at a time, with LAPACK on one thread, as eigenvectors of
    one matrix hardly gain from a second core.

    Args:
        tasks: tasks of one `program_key`.
        options: further keywords of the solver.
        batch_size: number of matrices that a device solves at a time; None for as many as its memory allows.
        mesh: devices, along the axis "data".
    """
    rank = max(task.rank for task in tasks)
    typed_options = tuple((name, type(value), value) for name, value in sorted(options.items()))
    goal = Goal(
        tasks[0].solve, rank, any(task.rank < rank for task in tasks), bool(tasks[0].nnz), tasks[0].p > 2, typed_options
    )
    if len(tasks) < mesh.size and jax.process_count() == 1:
        mesh = data_mesh(mesh.devices.flat[: len(tasks)].tolist())  # the others would only repeat the last task
    by_task, everywhere_alike = by_rows(mesh), replicated(mesh)
    if mesh.size == 1:
        # On a mesh, transfers to and from the host assemble arrays, which costs a copy even for one device.
        by_task = everywhere_alike = SingleDeviceSharding(mesh.devices.flat[0])
    one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    workers = min(cores(), len(tasks)) if one_cpu and batch_size is None else 1
    size = (batch_size or _default_batch(tasks[0])) * mesh.size
    exponent = np.asarray(tasks[0].p, solving_dtype(canonicalize_dtype(tasks[0].dtype)))
    exponent = put_sharded(exponent, everywhere_alike)

    def prepared() -> Iterator[tuple[list[MatrixTask], int, tuple[Any, ...]]]:
        for start in range(0, len(tasks), size):
            batch = list(tasks[start : start + size])
            height = -(-len(batch) // mesh.size) * mesh.size
            padded = batch + [batch[-1]] * (height - len(batch))
            matrices = jax.tree.map(lambda *arrays: _stack(arrays), *(task.matrix() for task in padded))
            # All tasks of a group have the same structure.
            known = jax.tree.map(lambda *arrays: _stack(arrays), *((task.weights, task.metrics) for task in padded))
            sizes = np.array([(task.rank, task.nnz) for task in padded], np.int32)
            arguments = (*(put_sharded(part, by_task) for part in (matrices, known, sizes)), exponent)
            if height not in programs:
                programs[height] = _compiled(goal, mesh, arguments)
            yield batch, height, arguments

    def run(prepared_batch: tuple[list[MatrixTask], int, tuple[Any, ...]]) -> list[TaskResult]:
        batch, height, arguments = prepared_batch
        began = time.perf_counter()
        solved = fetch(programs[height](*arguments))
        seconds = (time.perf_counter() - began) / len(batch) / workers
        every = [solved if height == 1 else jax.tree.map(lambda x, i=i: x[i], solved) for i in range(len(batch))]
        return [TaskResult(task, _cut(own, task.rank), seconds) for task, own in zip(batch, every, strict=True)]

    programs: dict[int, Callable[..., FactorResult]] = {}
    for parts in in_order(run, prepared(), workers):
        yield from parts


def _cut(solved: FactorResult, rank: int) -> FactorResult:
    """The factors cut to a rank; the rest is 0."""
    if solved.left.shape[1] == rank:
        return solved
    left, right = (np.ascontiguousarray(part) for part in (solved.left[:, :rank], solved.right[:rank]))
    return solved._replace(left=left, right=right)  # pyright: ignore[reportArgumentType]


def _compiled(goal: Goal, mesh: Mesh, arguments: tuple[Any, ...]) -> Callable[..., FactorResult]:
    """The program for arguments like these; compiled once for all calls if the options can be compared."""
    kinds = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arguments)
    # JAX settings that a program depends on.
    precision = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009, not in jax's stubs
    settings = canonicalize_dtype(np.float64), precision, jax.config.read("jax_disable_most_optimizations")
    try:
        hash(goal)
    except TypeError:  # an array among the options
        return _compile.__wrapped__(goal, mesh, kinds, settings)
    return _compile(goal, mesh, kinds, settings)


@functools.lru_cache(maxsize=64)
def _compile(goal: Goal, mesh: Mesh, kinds: tuple[Any, ...], settings: tuple[Any, ...]) -> Callable[..., FactorResult]:
    """The program for arguments of these kinds; `settings` are part of the cache key only."""

    def several(matrices: Any, known: tuple[Array | None, Metrics], sizes: Array, p: Array) -> FactorResult:
        weights, metrics = known
        first = jax.tree.leaves(matrices)[0]
        dtype = solving_dtype(first.dtype)
        # For sums of squares any root will do; otherwise the objective is defined by the symmetric ones.
        find = functools.partial(roots_of_batch, dtype=dtype, symmetric=goal.solver.uses_p)
        roots = jax.tree.map(find, metrics, is_leaf=lambda part: isinstance(part, Metric))
        factor_one = functools.partial(factor, goal)
        if first.shape[0] > 1:
            return jax.vmap(factor_one, in_axes=(0, 0, 0, 0, None))(matrices, weights, roots, sizes, p)
        # A single matrix is not vmapped: vmap computes both branches of a solver's conditionals.
        matrix, weights, roots = jax.tree.map(lambda x: x[0], (matrices, weights, roots))
        return factor_one(matrix, weights, roots, sizes[0], p)

    def shard(matrices: Any, known: tuple[Array | None, Metrics], sizes: Array, p: Array) -> FactorResult:
        solved = several(matrices, known, sizes, p)
        return solved if jax.tree.leaves(matrices)[0].shape[0] > 1 else jax.tree.map(lambda x: x[None], solved)

    everywhere = several  # a single matrix comes without a leading axis: adding one would copy the factors
    if mesh.size > 1:
        specs = (P("data"), P("data"), P("data"), P())
        everywhere = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=False)
    return jax.jit(everywhere).lower(*kinds).compile()


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(arrays) if len(arrays) > 1 else arrays[0][None]  # a single array is not copied
