"""Nets whose kernels and tables are quantized: run, trained, inspected, saved, as the densified ones are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax import Quantized, Recovery, densify, export_checkpoint, load_checkpoint, recover, save_checkpoint
from lpjax._tree import leaves_with_paths, replace_leaves
from lpjax.evaluation.errors import check_dense, relative_errors
from lpjax.inspection import inspect_params
from lpjax.models import device_params, encode
from lpjax.weights.dispatch import is_weight
from tests.helpers.examples import train_on_toy
from tests.helpers.goldens import NETS, load_golden
from tests.helpers.nets import base_net, net_with_head, quantize
from tests.helpers.texts import LONGEST, make_tokenizer

TEXTS = [" ".join(np.random.default_rng(i).choice(list("abcdefghijklmnop"), 1 + i % 6)) for i in range(40)]


def dense_of(params: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(densify(leaf)), params, is_leaf=is_weight)


def batch(config: Any, rows: int = 3, length: int = 9) -> dict[str, np.ndarray]:
    mask = np.ones((rows, length), np.int32)
    mask[1, 5:] = 0
    return {
        "input_ids": np.random.default_rng(1).integers(6, 23, (rows, length)).astype(np.int32),
        "attention_mask": mask,
    }


@pytest.mark.two_models
@pytest.mark.covering(1)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("bits", "rank"), [(8, None), (None, None), (None, 5)])
def test_vectors_are_those_of_the_densified_net(name: str, bits: int | None, rank: int | None):
    net = base_net(name, layers=2)
    params = quantize(net.params, bits, rank)
    inputs = batch(net.config)
    hidden, expected = (encode(tree, net.config, inputs) for tree in (params, dense_of(params)))
    np.testing.assert_allclose(hidden, expected, atol=2e-5 * float(np.abs(expected).max()))
    half = encode(params, net.config, inputs, dtype=jnp.bfloat16)
    assert np.abs(np.asarray(half, np.float32) - expected).max() < 0.1 * np.abs(expected).max()
    # Codes stay packed, also on the device and cast.
    dense = {
        tuple(leaf.shape) for path, leaf in leaves_with_paths(net.params) if path.endswith(("kernel", "embedding"))
    }
    for tree in (params, device_params(params), device_params(params, jnp.bfloat16)):
        big = {tuple(leaf.shape) for leaf in jax.tree.leaves(tree) if leaf.dtype.kind != "u"}
        assert not big & {shape for shape in dense if min(shape) > 2}


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize(("bits", "rank"), [(8, None), (None, 5)])
def test_kernels_are_expanded_once_for_many_passes(bits: int | None, rank: int | None, dtype: Any):
    net = base_net("bert_base", layers=1)
    params = quantize(net.params, bits, rank)
    once = device_params(params, dtype, expand=True)
    exact = dict(leaves_with_paths(dense_of(params)))
    pairs = {path for path, leaf in leaves_with_paths(params) if isinstance(leaf, lpjax.LowRank)}
    for path, leaf in leaves_with_paths(once):
        assert leaf.dtype == (dtype or np.float32)
        # A pair stays one: its two products take less time than that of a dense kernel.
        assert isinstance(leaf, lpjax.LowRank) == (path in pairs)
        parts = (leaf.left, leaf.right) if isinstance(leaf, lpjax.LowRank) else (leaf,)
        assert not any(isinstance(part, Quantized) for part in parts)
        limit = 1e-6 if dtype is None else 1e-2
        np.testing.assert_allclose(np.asarray(densify(leaf), np.float32), exact[path], atol=limit, rtol=limit)


def test_codes_of_a_large_table_stay_packed():
    codes, scales = np.ones((2**17 + 1, 8), np.int16), np.ones((2**17 + 1, 1), np.float16)
    table, right = (Quantized.from_codes(codes[:n], scales[:n], axis=1) for n in (None, 8))
    params = {"words": {"embedding": table}, "pair": {"embedding": lpjax.LowRank(table, right)}}
    once = device_params(params, expand=True)
    assert isinstance(once["words"]["embedding"], Quantized)
    assert isinstance(once["pair"]["embedding"].left, Quantized)
    np.testing.assert_array_equal(once["pair"]["embedding"].right, np.ones((8, 8)))


@pytest.mark.covering(1)
@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("name", ["distilbert_masked_lm", "roberta_masked_lm", "modernbert_masked_lm"])
def test_words_by_a_tied_table(name: str, rank: int | None):
    golden = load_golden(name)
    params = quantize(golden.checkpoint.params, None, rank)
    logits, expected = (
        np.asarray(lpjax.fill_mask(tree, golden.checkpoint.config, golden.batch)) for tree in (params, dense_of(params))
    )
    np.testing.assert_allclose(logits, expected, atol=2e-5 * float(np.abs(expected).max()))


def assert_only_scales_moved(before: Any, after: Any) -> None:
    """Only scales and steps of quantized matrices change, and they keep their dtypes."""
    assert jax.tree.structure(before) == jax.tree.structure(after)
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    moved = {jax.tree_util.keystr(path): not np.array_equal(old, new) for (path, old), new in pairs}
    assert not any(value for path, value in moved.items() if ".codes" in path or ".order" in path)
    assert any(value for path, value in moved.items() if ".scales" in path)
    assert any(value for path, value in moved.items() if ".steps" in path)
    matrices = jax.tree.leaves(after, is_leaf=lambda leaf: isinstance(leaf, Quantized))
    assert {leaf.scales.dtype for leaf in matrices if isinstance(leaf, Quantized)} == {np.dtype(np.float16)}


@pytest.mark.covering(0)
@pytest.mark.parametrize("rank", [None, 5])
def test_recover_trains_scales_and_keeps_codes(rank: int | None):
    dense = base_net("bert_base")
    smaller = dataclasses.replace(dense, params=quantize(dense.params, 4, rank))
    settings = Recovery(epochs=2, batch_size=8, learning_rate=3e-3, max_length=LONGEST)
    tokenizer = make_tokenizer(dense.config)
    done = recover(smaller, dense, TEXTS, settings=settings, tokenizer=tokenizer)
    assert done.best["divergence"] < 0.9 * done.curve[0]["divergence"]
    assert_only_scales_moved(smaller.params, done.checkpoint.params)


@pytest.mark.parametrize("rank", [None, 5])
def test_finetune_trains_scales_and_keeps_codes(rank: int | None, tmp_path: Path):
    net = net_with_head("bert_base", "sst2")
    net = dataclasses.replace(net, params=quantize(net.params, 4, rank))
    done = train_on_toy(net, snapshot=tmp_path / "snapshot")
    assert_only_scales_moved(net.params, done.checkpoint.params)
    again = train_on_toy(net, snapshot=tmp_path / "snapshot")  # goes on from the end
    assert again.curve == done.curve
    for leaf, other in zip(*map(jax.tree.leaves, (again.checkpoint.params, done.checkpoint.params)), strict=True):
        assert np.array_equal(leaf, other)


@pytest.mark.parametrize("rank", [None, 5])
def test_statistics_are_those_of_the_densified_net(rank: int | None):
    net = base_net("bert_base")
    params = quantize(net.params, None, rank)
    options: dict[str, Any] = {"tokenizer": make_tokenizer(net.config), "max_length": LONGEST, "select": "encoder"}
    statistics, expected = (
        lpjax.calibrate(dataclasses.replace(net, params=tree), TEXTS, **options).statistics
        for tree in (params, dense_of(params))
    )
    for path, known in expected.items():
        for array, other in zip(jax.tree.leaves(vars(statistics[path])), jax.tree.leaves(vars(known)), strict=True):
            np.testing.assert_allclose(array, other, rtol=1e-3, atol=1e-4 * float(np.abs(other).max()))


def test_inspection_and_errors_are_those_of_the_matrix():
    net = base_net("bert_base")
    for rank in (None, 5):
        params = quantize(net.params, None, rank)
        whole = dict(leaves_with_paths(dense_of(params)))
        records = {record.path: record for record in inspect_params(params, select="encoder").leaves}
        expected = {record.path: record for record in inspect_params(whole, select="encoder").leaves}
        assert records.keys() == expected.keys()
        for path, record in records.items():
            assert record.dtype.endswith("to 8-bit")
            assert record.shape == expected[path].shape
            assert record.stable_rank == pytest.approx(expected[path].stable_rank, rel=1e-4)
    params = quantize(net.params)
    leaves, dense = dict(leaves_with_paths(params)), dict(leaves_with_paths(net.params))
    path = next(path for path in leaves if path.endswith("query/kernel"))
    matrix = np.asarray(dense[path], np.float64)
    error = np.linalg.norm(matrix - np.asarray(densify(leaves[path]))) / np.linalg.norm(matrix)
    errors = relative_errors(dense[path], leaves[path], transpose=True)
    assert errors.frobenius == pytest.approx(error, rel=1e-4)
    with pytest.raises(ValueError, match="it is itself quantized, at "):
        check_dense(dataclasses.replace(net, params=params), "it")


@pytest.mark.parametrize("rank", [None, 5])
def test_quantized_weights_are_not_factored(rank: int | None):
    params = quantize(base_net("bert_base").params, 8, rank)
    for change in (
        lambda: lpjax.compress(params, select="attention", keep=0.5),
        lambda: lpjax.allocate(params, select="attention", budget=0.5),
    ):
        with pytest.raises(ValueError, match=r"`select` matches quantized weights: .*query/kernel"):
            change()
    half = replace_leaves(params, {path: densify(leaf) for path, leaf in leaves_with_paths(params) if is_weight(leaf)})
    assert lpjax.compress(half, select="attention", keep=0.5, solver="svd").records


@pytest.mark.parametrize("rank", [None, 5])
def test_saved_loaded_and_exported(rank: int | None, tmp_path: Path):
    net = dataclasses.replace(base := base_net("bert_base"), params=quantize(base.params, None, rank))
    save_checkpoint(net, tmp_path / "net")
    loaded = load_checkpoint(tmp_path / "net")
    assert jax.tree.structure(loaded.params) == jax.tree.structure(net.params)
    inputs = batch(net.config)
    vectors = encode(net.params, net.config, inputs)
    assert np.array_equal(encode(loaded.params, loaded.config, inputs), vectors)
    export_checkpoint(net, tmp_path / "dense")
    exported = load_checkpoint(tmp_path / "dense")
    assert not any(is_weight(leaf) for _, leaf in leaves_with_paths(exported.params))
    np.testing.assert_allclose(encode(exported.params, net.config, inputs), vectors, atol=2e-5)
