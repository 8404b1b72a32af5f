"""What objects with arrays print: a line of shapes and dtypes, whatever their fields hold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax._repr import short_repr
from lpjax.compression.latency import LayerTiming
from lpjax.compression.weights_only import WeightRecord
from lpjax.evaluation import Embeddings
from lpjax.glue import TASKS, Examples, Logits, Pairs
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


def test_lists_are_counted():
    assert short_repr(["a", "b"]) == "['a', 'b']"
    assert short_repr(["a text"] * 100) == "100 of `str`"
    assert short_repr([{"step": 1, "epoch": 0.5, "loss": 0.25}] * 9) == "9 of `dict`"
    assert short_repr([np.zeros(2)] * 9) == "9 of `ndarray`"
    assert short_repr((lpjax.Recovery(),) * 2) == "2 of `Recovery`"
    assert short_repr([0.1 + 0.2, (), 3]) == "[0.3, (), 3]"


def test_a_record_prints_what_is_not_its_default():
    record = lpjax.LayerRecord("a/kernel", (32, 24), 6, 768, 336, error_entries=0.65323424339)
    text = (
        "LayerRecord(path='a/kernel', shape=(32, 24), rank=6, dense_size=768, stored_size=336, error_entries=0.653234)"
    )
    assert repr(record) == text
    assert repr(lpjax.Compressed([PAIR.left], (record,))) == "Compressed(params=[f32[9,2]], records=1 of `LayerRecord`)"


def test_public_results_fit_a_line_or_two():
    rng = np.random.default_rng(0)
    params = {f"layer_{i}": {"kernel": rng.normal(size=(32, 24)).astype(np.float32)} for i in range(9)}
    compressed = lpjax.compress(params, select="kernel", keep=0.5, num_iters=2)
    inspection = lpjax.inspect_params(params, keep=(0.5, 0.3))
    checkpoint = load_golden("bert_base").checkpoint
    curve = ({"step": 1, "epoch": 0.1, "divergence": 0.123456789, "loss": 0.25, "learning_rate": 1e-4},) * 30
    examples = Examples(TASKS["sst2"], "train", ["a text"] * 500, None, np.zeros(500, np.int32), "a file", True)
    weights = WeightRecord("layers.0.mlp.down_proj", (64, 48), 7, 0.1234567891, 6144, 1568)
    timing = LayerTiming((32, 24), False, 1.234567e-6, tuple(range(1, 9)), tuple(1 / np.arange(9, 1, -1)))
    results = [
        compressed,
        *compressed.records,
        inspection,
        *inspection.leaves,
        lpjax.uniform_plan(params, select="kernel", keep=0.5),
        lpjax.BreakEven(64, (timing,) * 9),
        lpjax.CompressedWeights("svd", 2.0, (weights,) * 99, 10**9, 10**8),
        lpjax.Calibration({"a/kernel": lpjax.Statistics(9, np.eye(9))}, "embedding", 9, 99, 0),
        lpjax.Statistics(9, np.eye(9)),
        lpjax.WEIGHTINGS["fwsvd"],
        lpjax.Recovery(),
        Embeddings(jnp.zeros((500, 384)), 10**5, 1.23456789),
        Logits(np.zeros((500, 2), np.float32), 10**5, 1.23456789),
        Pairs(["a text"] * 500, ["another"] * 500, np.zeros(500)),
    ]
    for result in results:
        text = repr(result)
        assert "\n" not in text
        assert len(text) < 256, text
        assert text.startswith(f"{type(result).__name__}(")
    inner = len(repr(checkpoint))
    recovered = lpjax.Recovered(checkpoint, curve, curve[0], 1000, 50, 123.456789)
    assert len(repr(recovered)) < 240 + inner
    assert "curve=30 of `dict`" in repr(recovered)
    assert len(repr(examples)) < 480


def test_a_checkpoint_fits_a_line_or_two():
    checkpoint = load_golden("bert_base").checkpoint
    text = repr(checkpoint)
    assert text.startswith("Checkpoint(params={39 arrays, ")
    assert "config=BertConfig(…), source=" in text
    assert len(text) - len(str(checkpoint.source)) < 160
