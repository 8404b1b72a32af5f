"""Rows spread over devices and hosts: a solver's core runs on every device, on the rows that are there.

What the devices tell each other are sums of small matrices and numbers, whose size does not depend on n. `Rows` and
`Problem` carry the names of the mesh axes, and the collectives are where the sums are made.
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
    """Run a jitted core where the rows of its matrix are: on one device, or on each with the rows it has.

    All products in it have the highest precision that the device has, whatever precision the caller has set. It is set
    out here, for jit's cache tells programs apart by it: a caller's setting neither leaks in nor compiles anew.

    A matrix with fewer rows than columns is solved whole by every device: its rows are no long dimension. Inside
    somebody's jit shardings are not known here, and XLA partitions the core as it sees fit.

    Args:
        core: (problem, *given, **static) -> `Solution`.
        problem: its arguments. `left` and what else has n rows comes back spread like the matrix.
        given: further arguments, scalars.
        whole: whether the core must see all rows, and every device solves the whole.
        static: static arguments.

    Raises:
        ValueError: a matrix whose columns are spread.
    """
    with jax.default_matmul_precision("highest"):
        if not problem.at_the_end:
            return _run(core, problem, given, whole, static)
        return require_products(_run(core, dataclasses.replace(problem, at_the_end=False), given, whole, static))


def _run(core: Core, problem: Problem, given: tuple[Array, ...], whole: bool, static: dict[str, Any]) -> Solution:
    if isinstance(problem.matrix, Mapped):
        return jax.block_until_ready(core(problem, *given, **static))  # while the file is sure to be open
    found = row_mesh(problem.matrix)
    if found is None:
        return core(problem, *given, **static)
    mesh, axes = found
    if whole or problem.matrix.shape[0] < problem.matrix.shape[1]:
        axes = ()
    problem = dataclasses.replace(problem, axes=axes)
    problem = jax.tree.map(lambda leaf, spec: _place(leaf, NamedSharding(mesh, spec)), problem, _specs(problem))
    given = tuple(_place(leaf, replicated(mesh)) for leaf in given)
    return _on_devices(problem, given, core=core, mesh=mesh, static=tuple(static.items()))


def row_mesh(matrix: Any) -> tuple[Mesh, tuple[str, ...]] | None:
    """The mesh that a matrix is on, and those of its axes that the rows are spread over; None without a mesh.

    Raises:
        ValueError: a matrix whose columns are spread.
    """
    if isinstance(matrix, jax.core.Tracer) or not isinstance(matrix.sharding, NamedSharding):
        return None
    sharding = matrix.sharding
    rows, columns = (*sharding.spec, None, None)[:2]
    if columns not in (None, ()):
        raise ValueError(
            f"`matrix` is spread over devices by {sharding.spec}; expected its rows to be spread and no columns, "
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
    # Of shapes alone: of a mesh with explicit axes, arrays outside of `shard_map` tell their sharding by their type.
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
        check_vma=False,  # what a while loop carries would have to be cast to varying, one by one
    )(problem, *given)


def _specs(problem: Problem) -> Problem:
    """How each leaf of a problem is spread: what has n rows over `axes`, all else the same everywhere."""
    specs = jax.tree.map(lambda _: P(), problem)
    rows: Any = P(problem.axes or None)
    return dataclasses.replace(
        specs,
        matrix=rows,
        row_weights=None if problem.row_weights is None else rows,
        init=None if problem.init is None else (rows, specs.init[1]),
    )


def _place(leaf: Array, sharding: NamedSharding) -> Array:
    """`leaf` spread so; where it is known to this process, every process must know the same."""
    if leaf.is_fully_addressable and not sharding.is_fully_addressable:
        return put_sharded(np.asarray(leaf), sharding)
    return jax.device_put(leaf, sharding)
