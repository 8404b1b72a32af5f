"""A pair and single entries: planted ones are found, sizes are kept, and what is chosen is what weighs most."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import lpjax
from lpjax import Choice, LowRank, compress, densify
from lpjax._tree import leaves_with_paths, replace_leaves
from lpjax.checkpoint import CheckpointError
from lpjax.compression import break_even_document, load_plan
from lpjax.compression.latency import LayerTiming
from lpjax.compression.record import read_record
from lpjax.models import device_params
from lpjax.solvers._low_rank_plus_sparse import kth_largest, largest
from lpjax.training import Settings
from lpjax.weighting.statistics import Calibration, Statistics
from tests.conftest import Edit
from tests.helpers import norm
from tests.helpers.examples import train_on_toy
from tests.helpers.goldens import NETS
from tests.helpers.nets import base_net
from tests.helpers.texts import LONGEST, make_tokenizer

EXACT = ["svd", "lewis", "irls_rows", "admm_entries"]


def planted(n: int = 60, d: int = 40, rank: int = 5, count: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix of a low rank with a few wild entries, and those."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d))
    wild = np.zeros((n, d))
    wild.ravel()[rng.choice(n * d, count, replace=False)] = 30 * rng.choice([-1, 1], count) + rng.normal(size=count)
    return smooth + wild, wild


def compress_matrix(matrix: np.ndarray, **options: Any) -> tuple[LowRank, lpjax.LayerRecord]:
    params, (record,) = compress({"kernel": matrix}, select=".", **options)
    return params["kernel"], record


@given(arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 2.0**127, width=32)), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_the_kth_largest_is_that_of_sorting(values, k):
    k = min(k, values.size)
    assert kth_largest(jnp.asarray(values), k) == np.sort(values)[::-1][k - 1]


def test_the_kth_largest_in_double_precision(x64):
    values = np.abs(np.random.default_rng(0).standard_cauchy((50, 30)))
    values[3] = values[4] = 0
    for k in (1, 7, 1440, 1441, 1500):
        assert kth_largest(jnp.asarray(values), k) == np.sort(values.ravel())[::-1][k - 1]


@pytest.mark.parametrize("k", [1, 3, 5, 8, 12])
def test_of_equal_numbers_the_first_are_taken(k):
    values = np.array([[1, 3, 1, 2], [2, 1, 2, 0], [2, 3, 1, 1]], np.float32)
    order = np.argsort(-values.ravel(), kind="stable")[:k]
    for mask in (largest(jnp.asarray(values), k), jax.vmap(lambda x: largest(x, k))(jnp.asarray(values)[None])[0]):
        assert np.array_equal(np.flatnonzero(mask), np.sort(order))


@pytest.mark.covering(0)
@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("scale", [1.0, 1e18, 1e-18])
def test_planted_entries_are_found(solver, scale):
    matrix, wild = planted()
    matrix = (scale * matrix).astype(np.float32)
    pair, record = compress_matrix(matrix, rank=10, sparse_share=0.5, solver=solver, p=1.0 if solver != "svd" else 2.0)
    assert pair.sparse is not None
    assert pair.rank == record.rank == 5
    assert record.nnz == pair.sparse.values.size >= 90
    assert pair.size == record.stored_size <= 10 * (60 + 40)
    assert np.all(np.asarray(pair.sparse.dense(40))[wild != 0])
    lost = np.abs(np.asarray(densify(pair)) - matrix).sum() / np.abs(matrix).sum()
    assert lost < (1e-5 if solver == "admm_entries" else 0.02)
    # A pair of as many parameters is far from it.
    assert 10 * lost < compress_matrix(matrix, rank=10, solver=solver)[1].error_entries


@pytest.mark.covering(0)
@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("key", ["kernel", "embedding"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_chosen_weighs_most_and_is_exact(solver, key, dtype):
    """Beside the final pair, no entry that was left misses more than one that was kept."""
    matrix = np.random.default_rng(0).standard_t(3, size=(37, 23)).astype(dtype)
    params, (record,) = compress({key: matrix}, select=".", keep=0.6, sparse_share=0.3, solver=solver, p=1.0)
    pair = params[key]
    assert pair.left.dtype == pair.right.dtype == pair.sparse.values.dtype == dtype
    assert 0.55 < pair.size / matrix.size <= 0.6
    missed = matrix.astype(np.float64) - np.asarray(pair.left, np.float64) @ np.asarray(pair.right, np.float64)
    entries = pair.sparse.rows(0, 37, 23)
    kept = entries != 0
    rounding = 4 * np.finfo(dtype).eps * np.abs(matrix).max()
    assert np.abs(missed)[kept].min() >= np.abs(missed)[~kept].max() - rounding
    np.testing.assert_allclose(entries[kept], missed[kept], rtol=2 * np.finfo(dtype).eps, atol=1e-6)
    shares = norm(missed - entries, 1.0) / norm(matrix, 1.0)
    assert record.error_entries == pytest.approx(shares, rel=1e-2 if dtype == np.float16 else 1e-4)
    # And better than the pair alone of as many parameters, for the tails are heavy.
    assert shares < compress({key: matrix}, select=".", keep=0.6, solver=solver, p=1.0).records[0].error_entries


def test_double_precision(x64):
    matrix, _ = planted()
    pair, record = compress_matrix(matrix, rank=10, sparse_share=0.5, solver="svd", p=2.0)
    assert pair.left.dtype == np.float64
    assert record.error_entries < 0.02


def test_weights_of_rows_draw_entries_to_them():
    matrix = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    weights = np.where(np.arange(40) < 8, 100.0, 1.0)
    params, _ = compress(
        {"embedding": matrix}, select=".", rank=8, sparse_share=0.5, solver="svd", row_weights={"embedding": weights}
    )
    counts = np.diff(params["embedding"].sparse.starts)
    assert counts[:8].min() > counts[8:].max()


@pytest.mark.slow
@pytest.mark.covering(0)
@pytest.mark.parametrize("key", ["kernel", "embedding"])
def test_under_a_calibration_the_weighted_error_is_what_gets_less(key):
    rng = np.random.default_rng(0)
    matrix = rng.standard_t(3, size=(40, 30)).astype(np.float32)
    x, g = rng.normal(size=(60, 40)) * rng.gamma(1, size=40), rng.normal(size=(60, 30))
    known = {"inputs": x.T @ x} if key == "kernel" else {"counts": rng.geometric(0.05, size=40).astype(np.float64)}
    calibration = Calibration({key: Statistics(tokens=60, outputs=g.T @ g, **known)}, "embedding", 1, 60, 0)

    def weighted(**options: Any) -> lpjax.LayerRecord:
        return compress({key: matrix}, select=".", keep=0.5, statistics=calibration, **options).records[0]

    alone, both, less = weighted(sparse_share=0.0), weighted(sparse_share=0.3), weighted(sparse_share=0.15)
    assert both.error_weighted is not None
    assert alone.error_weighted is not None
    assert less.error_weighted is not None
    assert both.error_weighted < less.error_weighted < alone.error_weighted
    assert both.stored_size <= 0.5 * matrix.size


@pytest.mark.slow
def test_by_default_tables_have_some_under_the_default_weights():
    rng = np.random.default_rng(0)
    tree = {"words": {"embedding": rng.normal(size=(60, 30))}, "attention": {"kernel": rng.normal(size=(60, 30))}}
    tree = jax.tree.map(lambda leaf: leaf.astype(np.float32), tree)
    moment, counts = np.eye(30, dtype=np.float32), np.arange(60, dtype=np.float32)
    known = {
        "words/embedding": Statistics(9, counts=counts, gradients=counts, outputs=moment),
        "attention/kernel": Statistics(9, inputs=np.eye(60, dtype=np.float32), outputs=moment),
    }
    calibration = Calibration(known, "embedding", 1, 9, 0)

    def entries(**options: Any) -> dict[str, int]:
        options = {"select": [".*"], "keep": 0.8, **options}
        return {record.path: record.nnz for record in compress(tree, **options).records}

    default = entries(statistics=calibration)
    assert default["words/embedding"] > 0
    assert not default["attention/kernel"]
    assert default["words/embedding"] == entries(statistics=calibration, sparse_share=0.2)["words/embedding"]
    others = [
        {"sparse_share": 0.0},
        {"weighting": "counts", "select": "words"},
        {"solver": "irls_rows"},
        {"solver": "lewis"},
    ]
    for options in ({"solver": "svd"}, *({"statistics": calibration, **other} for other in others)):
        assert not any(entries(**options).values()), options

    options: dict[str, Any] = {"budget": 0.4, "select": [".*"], "statistics": calibration}
    shares = {path: choice.sparse_share for path, choice in lpjax.allocate(tree, **options).layers.items()}
    assert shares == {"words/embedding": 0.2, "attention/kernel": 0.0}
    several = lpjax.allocate(tree, methods=[("irls_rows", 1.0)], **options)
    for plan in (lpjax.allocate(tree, sparse_share=0.0, **options), several):
        assert not any(choice.sparse_share for choice in plan.layers.values())
    work = lpjax.allocate({"encoder": tree}, **options | {"budget_of": "multiply_adds", "statistics": None})
    assert not any(choice.sparse_share for choice in work.layers.values())


@pytest.mark.slow
def test_zero_rank_one_and_nothing_left_for_entries():
    zero, record = compress_matrix(np.zeros((20, 30), np.float32), rank=4, sparse_share=0.5, solver="svd")
    assert not np.any(densify(zero))
    assert record.nnz == 0
    few, record = compress_matrix(planted()[0].astype(np.float32), rank=1, sparse_share=0.9, solver="svd")
    assert (few.rank, few.sparse, record.nnz) == (1, None, 0)
    low = np.outer(np.arange(1, 31), np.ones(20)).astype(np.float32)
    pair, record = compress_matrix(low, rank=6, sparse_share=0.5, solver="svd")
    assert np.abs(np.asarray(densify(pair)) - low).max() < 1e-4
    # Among equal entries, only as many are taken as there is room for.
    equal, record = compress_matrix(
        np.tile(np.eye(30, dtype=np.float32), (2, 1)), rank=4, sparse_share=0.5, solver="svd"
    )
    assert equal.size <= 4 * 90
    assert equal.sparse is not None
    assert record.nnz == equal.sparse.values.size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.5, "sparse_share": 1.0}, "`sparse_share` is 1.0"),
        ({"keep": 0.5, "sparse_share": -0.1}, "`sparse_share` is -0.1"),
        ({"keep": 0.5, "sparse_share": float("nan")}, "`sparse_share` is nan"),
        ({"plan": {"kernel": Choice(3)}, "select": None, "sparse_share": 0.2}, "`plan` and `sparse_share` both choose"),
        ({"plan": {"kernel": Choice(3, sparse_share=2.0)}, "select": None}, "layer kernel: sparse_share is 2.0"),
        ({"keep": 0.5, "sparse_share": 0.2, "input_axes": {"kernel": 2}, "shape": (4, 5, 12)}, "is for matrices"),
    ],
)
def test_misuse(options, message):
    options = {"select": ".", **options}
    matrix = np.ones(options.pop("shape", (20, 30)), np.float32)
    with pytest.raises(ValueError, match=message):
        compress({"kernel": matrix}, **options)


@pytest.mark.slow
def test_allocations_count_entries_and_refuse_what_they_do_not_save():
    params = {"a": {"kernel": planted()[0].astype(np.float32)}, "b": {"kernel": planted(seed=1)[0].astype(np.float32)}}

    def loss(params: Any) -> float:
        return sum(float(jnp.sum((params[key]["kernel"] - planted(seed=i)[0]) ** 2)) for i, key in enumerate("ab"))

    plan = lpjax.allocate(params, budget=0.5, select=".", measure=loss, sparse_share=0.4, levels=(0.2, 0.5, 0.8))
    assert {choice.sparse_share for choice in plan.layers.values() if choice.rank is not None} == {0.4}
    small = compress(params, plan=plan)
    assert sum(record.stored_size for record in small.records) <= 0.5 * 4800
    assert any(record.nnz for record in small.records)
    with pytest.raises(ValueError, match="saves parameters, not time"):
        lpjax.allocate(params, budget=0.5, select=".", budget_of="multiply_adds", sparse_share=0.4)
    with pytest.raises(ValueError, match="`sparse_share` is 1"):
        lpjax.allocate(params, budget=0.5, select=".", sparse_share=1.0)


# In models


def with_entries(name: str) -> tuple[lpjax.Checkpoint, lpjax.Checkpoint]:
    """A model with pairs and single entries, and the same with dense matrices."""
    net = base_net(name)
    options = {"select": ["embeddings", "encoder"], "keep": 0.6, "sparse_share": 0.5, "solver": "svd"}
    small = dataclasses.replace(net, params=compress(net.params, **options).params)
    is_pair = lambda leaf: isinstance(leaf, LowRank)  # noqa: E731
    params = jax.tree.map(lambda leaf: densify(jax.tree.map(jnp.asarray, leaf)), small.params, is_leaf=is_pair)
    assert sum(leaf.sparse is not None for leaf in jax.tree.leaves(small.params, is_leaf=is_pair) if is_pair(leaf)) >= 5
    return small, dataclasses.replace(net, params=params)


def size_of(net: lpjax.Checkpoint) -> int:
    """Bytes of all arrays."""
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(net.params))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETS)
def test_every_net_computes_what_the_dense_matrices_do(name, dtype):
    small, dense = with_entries(name)
    batch = {"input_ids": np.array([[5, 9, 7, 3], [6, 8, 5, 9]]), "attention_mask": np.ones((2, 4), int)}
    states, expected = (np.asarray(lpjax.encode(net.params, net.config, batch, dtype=dtype), np.float32)
                       for net in (small, dense))  # fmt: skip
    np.testing.assert_allclose(states, expected, atol=1e-4 if dtype == "float32" else 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_kernels_are_expanded_once_for_many_passes(dtype):
    small, dense = with_entries("bert_base")
    expanded = dict(leaves_with_paths(device_params(small.params, dtype, expand=True)))
    expected = dict(leaves_with_paths(dense.params))
    pairs = {path for path, leaf in expanded.items() if isinstance(leaf, LowRank)}
    assert pairs == {path for path, leaf in leaves_with_paths(small.params) if isinstance(leaf, LowRank)} & {
        path for path in expanded if path.endswith("embedding")
    }
    for path in expanded.keys() - pairs:
        assert expanded[path].dtype == (dtype or np.float32)
        np.testing.assert_allclose(
            np.asarray(expanded[path], np.float32), expected[path], atol=1e-6 if dtype != "bfloat16" else 2e-2
        )


@pytest.mark.two_models
@pytest.mark.parametrize("name", NETS)
def test_a_checkpoint_comes_back_bit_for_bit_and_exports(name, tmp_path):
    small, dense = with_entries(name)
    lpjax.save_checkpoint(small, tmp_path / "small")
    again = lpjax.load_checkpoint(tmp_path / "small")
    assert jax.tree.structure(again.params) == jax.tree.structure(small.params)
    for a, b in zip(jax.tree.leaves(small.params), jax.tree.leaves(again.params), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert a.dtype == b.dtype
    # But for the header, whose names outweigh what so small a model saves.
    assert size_of(again) < size_of(dense)
    lpjax.export_checkpoint(again, tmp_path / "export")
    exported = dict(leaves_with_paths(lpjax.load_checkpoint(tmp_path / "export").params))
    for path, leaf in leaves_with_paths(dense.params):
        np.testing.assert_allclose(exported[path], leaf, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("columns", lambda x: x + np.uint16(60_000), "columns is not below"),
        ("starts", lambda x: x[::-1].copy(), "starts goes from"),
        ("values", None, "missing .*values"),
        ("left", None, "missing .*left"),
        ("values", lambda x: x.astype(np.int32), "expected floating-point numbers"),
        ("columns", lambda x: x[:-1], "columns has the shape"),
    ],
)
def test_a_damaged_checkpoint_is_refused(part, change, message, folder, edit_weights: Edit, tmp_path):
    net = lpjax.load_checkpoint(folder)
    params = compress(net.params, select="word_embeddings", keep=0.7, sparse_share=0.4, solver="svd").params
    lpjax.save_checkpoint(dataclasses.replace(net, params=params), tmp_path / "small")
    (tmp_path / "small" / "lpjax.safetensors").replace(folder / "model.safetensors")
    name = f"embeddings.word_embeddings.weight.{part}"

    def damage(tensors: dict[str, np.ndarray]) -> None:
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change(tensors[name])

    with pytest.raises(CheckpointError, match=message):
        lpjax.load_checkpoint(edit_weights(damage))


def test_a_tree_with_wrong_places_is_refused():
    small, _ = with_entries("bert_base")
    kernel = "encoder/layer/0/attention/self/query/kernel"
    leaf = dict(leaves_with_paths(small.params))[kernel]
    wrong = dataclasses.replace(leaf, sparse=dataclasses.replace(leaf.sparse, columns=leaf.sparse.columns[::-1]))
    params = replace_leaves(small.params, {kernel: wrong})
    with pytest.raises(ValueError, match="columns is not below"):
        lpjax.from_tree(params, small.config)
    with pytest.raises(ValueError, match="columns is not below"):
        lpjax.save_checkpoint(dataclasses.replace(small, params=params), "never")


@pytest.mark.covering(0)
@pytest.mark.parametrize(("sparse", "rank"), [(0.1, 9), (0.8, 2), (0.9, 1), (0.01, 10)])
def test_the_share_is_kept(sparse, rank):
    pair, record = compress_matrix(planted()[0].astype(np.float32), rank=10, sparse_share=sparse, solver="svd")
    assert record.rank == rank
    assert pair.left.size + pair.right.size >= (1 - sparse) * 10 * 100 - 1e-9


@pytest.mark.slow
def test_training_moves_values_and_leaves_places(tmp_path):
    small, _ = with_entries("bert_base")
    tuned = train_on_toy(small, settings=Settings(epochs=20, batch_size=8, learning_rate=1e-2, eval_every=20))
    assert tuned.best["accuracy"] == 1.0
    before = dict(leaves_with_paths(small.params))
    moved = 0
    for path, leaf in leaves_with_paths(tuned.checkpoint.params["bert"]):
        if isinstance(leaf, LowRank) and leaf.sparse is not None:
            assert np.array_equal(leaf.sparse.columns, before[path].sparse.columns)
            assert np.array_equal(leaf.sparse.starts, before[path].sparse.starts)
            moved += not np.array_equal(leaf.sparse.values, before[path].sparse.values)
    assert moved > 5
    lpjax.save_checkpoint(tuned.checkpoint, tmp_path / "trained")
    assert lpjax.load_checkpoint(tmp_path / "trained").compression is not None


@pytest.mark.slow
def test_recovery():
    small, _ = with_entries("bert_base")
    texts = [" ".join("abcdefgh"[i % 5 : i % 5 + 1 + i % 3]) for i in range(40)]
    options = lpjax.Recovery(epochs=2, batch_size=8, learning_rate=3e-3, max_length=LONGEST)
    dense = base_net("bert_base")
    recovered = lpjax.recover(small, dense, texts, settings=options, tokenizer=make_tokenizer(dense.config))
    assert recovered.best["divergence"] < recovered.curve[0]["divergence"]
    assert jax.tree.structure(recovered.checkpoint.params) == jax.tree.structure(small.params)


def test_inspection_is_of_the_dense_matrix():
    matrix = planted()[0].astype(np.float32)
    pair, _ = compress_matrix(matrix, rank=10, sparse_share=0.5, solver="svd")
    (factored,) = lpjax.inspect_params({"kernel": pair}, select=".").leaves
    (dense,) = lpjax.inspect_params({"kernel": np.asarray(densify(pair))}, select=".").leaves
    assert (factored.rank, factored.size) == (5, pair.size)
    assert factored.singular_values is not None
    assert dense.singular_values is not None
    np.testing.assert_allclose(factored.singular_values, dense.singular_values, rtol=1e-4, atol=1e-3)
    assert factored.row == dense.row


@pytest.mark.covering(0)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tables_with_them_run_in_linen(dtype):
    nn = pytest.importorskip("flax.linen")
    from lpjax.flax import apply

    matrix = planted()[0].astype(np.float32)
    (n, d), module = matrix.shape, nn.Embed(*matrix.shape, dtype=jnp.dtype(dtype))
    small = compress({"embedding": matrix}, select=".", rank=10, sparse_share=0.5, solver="svd").params
    assert small["embedding"].nnz
    dense = {"embedding": np.asarray(lpjax.densify(jax.tree.map(jnp.asarray, small["embedding"])))}
    x, ids = jax.random.normal(jax.random.key(0), (2, d), dtype), jnp.array([[0, 3], [n - 1, 3]])
    for method, argument in ((None, ids), ("attend", x)):
        run = jax.jit(
            lambda params, argument, method=method: apply(module, {"params": params}, argument, method=method)
        )
        expected = module.apply({"params": dense}, argument, method=method)
        actual = run(small, argument)
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        assert np.linalg.norm(actual - expected) < (1e-5 if dtype == "float32" else 0.02) * np.linalg.norm(expected)


def test_flax_modules_refuse_them():
    nn = pytest.importorskip("flax.linen")
    from lpjax.flax import apply, compress_nnx

    pair, _ = compress_matrix(planted()[0].astype(np.float32), rank=10, sparse_share=0.5, solver="svd")
    with pytest.raises(ValueError, match="single entries"):
        apply(nn.Dense(40, use_bias=False), {"params": {"kernel": pair}}, np.ones((2, 60), np.float32))
    with pytest.raises(ValueError, match="`sparse_share` is not for NNX"):
        compress_nnx(None, select=".", keep=0.5, sparse_share=0.2)  # pyright: ignore[reportArgumentType]


def test_nnx_models_have_none_by_default_either():
    nnx = pytest.importorskip("flax.nnx")
    from lpjax.flax import compress_nnx

    counts, moment = np.arange(60, dtype=np.float32), np.eye(30, dtype=np.float32)
    known = {"table/embedding": Statistics(9, counts=counts, gradients=counts, outputs=moment)}
    calibration = Calibration(known, "embedding", 1, 9, 0)
    model = nnx.Dict(table=nnx.Embed(60, 30, rngs=nnx.Rngs(0)))
    options: dict[str, Any] = {"select": ".", "keep": 0.8, "solver": "svd", "statistics": calibration}
    (record,) = compress_nnx(model, **options, sparse_share=None)
    assert (record.nnz, record.rank) == (0, 16)


# The command


@pytest.mark.slow
def test_the_command_its_plan_and_its_page(command, folder, tmp_path):
    options = ["--layers", "word_embeddings,encoder", "--keep", 0.7, "--method", "svd", "--sparse", 0.4]
    plan = tmp_path / "plan.json"
    status, output, errors = command(
        "compress", folder, tmp_path / "out", *options, "--plan-out", plan, "--report", "--json"
    )
    assert status == 0, errors
    layers = json.loads(output)["layers"]
    assert any(layer["entries"] for layer in layers)
    assert all(layer["stored_size"] <= 0.7 * layer["dense_size"] for layer in layers if layer["rank"] is not None)
    step = read_record(tmp_path / "out" / "lpjax_record.json").steps[-1]
    assert step.sparse == 0.4
    assert [layer.nnz for layer in step.layers] == [layer["entries"] for layer in layers]
    assert {choice.sparse_share for choice in load_plan(plan).layers.values() if choice.rank is not None} == {0.4}
    assert command("compress", folder, tmp_path / "again", "--plan", plan)[0] == 0
    first, other = (jax.tree.leaves(lpjax.load_checkpoint(tmp_path / name).params) for name in ("out", "again"))
    assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    status, output, _ = command("compress", folder, tmp_path / "table", *options)
    assert status == 0
    assert "entries" in output
    assert "the single entries subtracted" in " ".join(output.split())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<th>single entries</th>" in page
    assert re.search(
        r'<dt>single entries</dt><dd><data value="0.4">40[^<]*</data> of the parameters of a pair, in ',
        page,
    )
    # A model that has them keeps them in the next record.
    options = ["--layers", "word_embeddings", "--keep", 0.7, "--sparse", 0.2]
    status, _, errors = command("compress", tmp_path / "out", tmp_path / "more", *options)
    assert status == 2
    assert "no layer gets smaller: a pair of rank 5 is no smaller than the present one of rank 3" in " ".join(
        errors.split()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", 0.5, "--sparse", 1], "--sparse is 1"),
        (["--budget", 0.5, "--budget-of", "multiply_adds", "--sparse", 0.2], "--sparse saves parameters, not time"),
        (["--plan", "plan.json", "--sparse", 0.2], "--plan and --sparse both choose"),
        (["--keep", 0.5, "--sparse", 0.2, "--break-even", "bench.json"], "and without --break-even"),
    ],
)
def test_misuse_of_the_command(command, folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    lpjax.save_plan(lpjax.Plan({"embeddings/word_embeddings/embedding": lpjax.Choice(2)}), "plan.json")
    timings = lpjax.BreakEven(64, (LayerTiming((29, 12), True, 1e-4, (1, 4, 8), (0.5, 0.9, 1.2)),))
    Path("bench.json").write_text(json.dumps(break_even_document("net", timings, seed=0)))
    status, _, errors = command("compress", folder, tmp_path / "out", *arguments)
    assert status == 2
    assert message in " ".join(errors.split())
    assert not (tmp_path / "out").exists()
