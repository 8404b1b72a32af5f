"""Products inside solvers have the highest precision, whatever the caller has set; and what is set stays set."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.lax import Precision

import lpjax
from tests.helpers import SOLVERS, heavy_tailed


def precisions(jaxpr: Jaxpr) -> Iterator[Any]:
    """The precision of every product, including those in loops, branches and calls."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn.params["precision"]
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
            if isinstance(value, Jaxpr | ClosedJaxpr):
                yield from precisions(value.jaxpr if isinstance(value, ClosedJaxpr) else value)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("shape", [(17, 7), (7, 17)])
def test_every_product_has_the_highest_precision(name, shape):
    matrix = jnp.asarray(heavy_tailed(*shape), jnp.float32)

    def run(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        solution = lpjax.SOLVERS[name](matrix, 3, p=1.5, num_iters=3)
        return solution.left @ solution.right, solution.left

    for setting in (None, "bfloat16"):
        with jax.default_matmul_precision(setting):
            *inside, own = precisions(jax.make_jaxpr(run)(matrix).jaxpr)
        assert len(inside) >= 3
        assert set(inside) == {(Precision.HIGHEST, Precision.HIGHEST)}
        assert own != (Precision.HIGHEST, Precision.HIGHEST)


def test_a_setting_of_the_caller_compiles_nothing_anew():
    core: Any = importlib.import_module("lpjax.solvers._svd")._svd
    matrix = jnp.asarray(heavy_tailed(17, 7), jnp.float32)
    first = lpjax.svd(matrix, 3)
    compiled = core._cache_size()
    with jax.default_matmul_precision("bfloat16"):
        second = lpjax.svd(matrix, 3)
        assert getattr(jax.config, "jax_default_matmul_precision") == "bfloat16"  # noqa: B009, not in jax's stubs
    assert core._cache_size() == compiled
    np.testing.assert_array_equal(first.left, second.left)
