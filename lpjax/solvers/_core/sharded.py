"""Rows sharded over devices and hosts: a solver's core runs on every device, on that device's rows.

Devices exchange sums of small matrices and of scalars, whose size does not depend on n. `Rows` and `Problem` have the
names of the mesh axes of these sums.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from lpjax._mesh import put_sharded, replicated
from lpjax.solvers._core.checks import require_products
from lpjax.solvers._core.mapped import Mapped
from lpjax.solvers._core.problem import Problem
from lpjax.solvers._core.solution import Solution

Core = Callable[..., Solution]


def run_sharded(core: Core, problem: Problem, *given: Array, whole: bool = False, **static: Any) -> Solution:
    """Run a jitted core on the devices that have the rows of its matrix.

    All its products have the highest precision of the device, whatever precision the caller has set. It is set outside
    the core, because jit's cache depends on it: a caller's setting neither leaks in nor recompiles.

    If a matrix has fewer rows than columns, every device solves all of it. Inside a caller's jit shardings are unknown,
    and XLA partitions the core.

    Args:
        core: (problem, *given, **static) -> `Solution`.
        problem: arguments of the core. `left` and other results with n rows are sharded like the matrix.
        given: further scalar arguments.
        whole: whether the core needs all rows, so that every device solves the whole matrix.
        static: further static arguments.

    Raises:
        ValueError: the columns of the matrix are sharded.
    """
    with jax.default_matmul_precision("highest"):
        if not problem.at_the_end:
            return _run(core, problem, given, whole, static)
        return require_products(_run(core, dataclasses.replace(problem, at_the_end=False), given, whole, static))


def _run(core: Core, problem: Problem, given: tuple[Array, ...], whole: bool, static: dict[str, Any]) -> Solution:
    if isinstance(problem.matrix, Mapped):
        return jax.block_until_ready(core(problem, *given, **static))  # while the file is sure to be open
    placement = row_mesh(problem.matrix)
    if placement is None:
        return core(problem, *given, **static)
    mesh, axes = placement
    if whole or problem.matrix.shape[0] < problem.matrix.shape[1]:
        axes = ()
    problem = dataclasses.replace(problem, axes=axes)
    problem = jax.tree.map(lambda leaf, spec: _place(leaf, NamedSharding(mesh, spec)), problem, _specs(problem))
    given = tuple(_place(leaf, replicated(mesh)) for leaf in given)
    return _on_devices(problem, given, core=core, mesh=mesh, static=tuple(static.items()))


def row_mesh(matrix: Any) -> tuple[Mesh, tuple[str, ...]] | None:
    """The mesh of a matrix, and the axes over which its rows are sharded; None without a mesh.

    Raises:
        ValueError: the columns of the matrix are sharded.
    """
    if isinstance(matrix, jax.core.Tracer) or not isinstance(matrix.sharding, NamedSharding):
        return None
    sharding = matrix.sharding
    rows, columns = (*sharding.spec, None, None)[:2]
    if columns not in (None, ()):
        raise ValueError(
            f"`matrix` is sharded by {sharding.spec}; expected sharded rows and no sharded columns, "
            f"such as PartitionSpec({rows!r}, None)"
        )
    mesh: Any = sharding.mesh  # of an array, never an abstract one
    axes = (rows,) if isinstance(rows, str) else tuple(rows or ())
    return mesh, tuple(name for name in axes if mesh.shape[name] > 1)


@functools.partial(jax.jit, static_argnames=("core", "mesh", "static"))
def _on_devices(
    problem: Problem, given: tuple[Array, ...], *, core: Core, mesh: Mesh, static: tuple[tuple[str, Any], ...]
) -> Solution:
    run = functools.partial(core, **dict(static))
    # From shapes alone: on a mesh with explicit axes, types of arrays outside of `shard_map` include their sharding.
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (dataclasses.replace(problem, axes=()), given)
    )
    rows: Any = P(problem.axes or None)
    out_specs = jax.tree.map(lambda _: P(), jax.eval_shape(run, shapes[0], *shapes[1]))._replace(left=rows)
    if out_specs.ellipsoid is not None and out_specs.ellipsoid.weights is not None:
        out_specs = out_specs._replace(ellipsoid=out_specs.ellipsoid._replace(weights=rows))
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(_specs(problem), *(P() for _ in given)),
        out_specs=out_specs,
        check_vma=False,  # else every carry of a while loop would have to be cast to varying
    )(problem, *given)


def _specs(problem: Problem) -> Problem:
    """The sharding of each leaf of a problem: arrays of n rows over `axes`, others replicated."""
    specs = jax.tree.map(lambda _: P(), problem)
    rows: Any = P(problem.axes or None)
    return dataclasses.replace(
        specs,
        matrix=rows,
        row_weights=None if problem.row_weights is None else rows,
        init=None if problem.init is None else (rows, specs.init[1]),
    )


def _place(leaf: Array, sharding: NamedSharding) -> Array:
    """`leaf` with this sharding; if it is local to each process, all processes must have the same."""
    if leaf.is_fully_addressable and not sharding.is_fully_addressable:
        return put_sharded(np.asarray(leaf), sharding)
    return jax.device_put(leaf, sharding)
