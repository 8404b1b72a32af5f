"""The devices of all processes, and how arrays are sharded over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, "data", over `devices`; over all of them by default."""
    return Mesh(np.array(list(jax.devices() if devices is None else devices)), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Sharding over the devices along `axis`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def put_sharded(tree: Any, sharding: Sharding) -> Any:
    """Host arrays, the same in every process, as arrays on the devices of all processes."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # Each process copies its own part; device_put would first compare the whole arrays of all processes.
    return jax.tree.map(lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda at: x[at]), tree)


def fetch(tree: Any) -> Any:
    """Whole arrays as NumPy on every host."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
