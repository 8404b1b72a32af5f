"""Arrays over devices: whole again on the host."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import PartitionSpec

from lpjax._mesh import by_rows, data_mesh, fetch, put_sharded, replicated


def test_arrays_are_spread_and_come_back_whole():
    mesh = data_mesh(jax.devices()[:1])
    assert by_rows(mesh, axis=1).spec == PartitionSpec(None, "data")
    tree = {"a": np.arange(6).reshape(3, 2), "b": np.float32(2)}
    for sharding in (replicated(mesh), by_rows(mesh)):
        arrays = put_sharded(tree if sharding == replicated(mesh) else {"a": tree["a"]}, sharding)
        assert arrays["a"].sharding == sharding
        assert isinstance(fetch(arrays)["a"], np.ndarray)
        assert np.array_equal(fetch(arrays)["a"], tree["a"])
