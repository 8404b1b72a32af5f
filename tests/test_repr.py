"""What objects with arrays print: a line of shapes and dtypes, whatever their fields hold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax._repr import short_repr
from lpjax.weights import LowRank, Sparse
from tests.helpers.goldens import load_golden

PAIR = LowRank(jnp.zeros((9, 2)), jnp.zeros((2, 4)))


def test_shapes_and_dtypes_stand_for_arrays():
    assert repr(PAIR) == "LowRank(left=f32[9,2], right=f32[2,4])"
    sparse = Sparse.of(np.eye(9, 4, dtype=np.float32))
    inner = "Sparse(values=f32[4](numpy), columns=u16[4](numpy), starts=i32[10](numpy), most=1)"
    assert repr(sparse) == inner
    assert repr(LowRank(PAIR.left, PAIR.right, sparse)) == f"LowRank(left=f32[9,2], right=f32[2,4], sparse={inner})"


def test_a_solution_prints_its_objective():
    solution = lpjax.lewis(jnp.eye(9, 4), 4)
    text = repr(solution)
    assert text.startswith("Solution(left=f32[9,4], right=f32[4,4], objective=")
    assert f"num_iters={int(solution.num_iters)}, converged=True, ellipsoid=Ellipsoid(values=f32[4]" in text
    assert len(text) < 240
    assert "objective=f32[3]" in repr(jax.vmap(lambda a: lpjax.svd(a, 1))(jnp.ones((3, 5, 4))))


@pytest.mark.parametrize("leaf", [None, object(), "a mark", 3, jax.ShapeDtypeStruct((9, 2), jnp.float32), {"a": 1}])
def test_any_leaf_can_be_printed(leaf: Any):
    assert repr(LowRank(leaf, leaf)).startswith("LowRank(left=")


def test_tracers_can_be_printed():
    texts = []

    @jax.jit
    def trace(pair: LowRank, value: jax.Array) -> jax.Array:
        solution = lpjax.Solution(pair.left, pair.right, value, value, value)
        texts.extend((repr(pair), repr(solution)))
        return value

    trace(PAIR, jnp.zeros(()))
    assert texts[0] == repr(PAIR)
    assert "objective=f32[]" in texts[1]


def test_deleted_arrays_can_be_printed():
    value = jnp.ones(())
    value.delete()
    assert short_repr([value]) == "[f32[]]"


def test_mappings_are_counted():
    assert short_repr([{"a": {"b": PAIR}, "c": np.zeros(5)}]) == "[{3 arrays, 31 numbers}]"
    assert short_repr([{"method": "svd"}]) == "[{'method': 'svd'}]"
    assert short_repr([dict.fromkeys(range(100), "a path")]) == "[{100 items}]"


def test_a_checkpoint_fits_a_line_or_two():
    checkpoint = load_golden("bert_base").checkpoint
    text = repr(checkpoint)
    assert text.startswith("Checkpoint(params={39 arrays, ")
    assert "config=BertConfig(…), source=" in text
    assert len(text) - len(str(checkpoint.source)) < 160
