"""Flax's trees, in memory and in files: what is taken, and what is refused with which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file

import lpjax
from lpjax._tree import walk
from lpjax.checkpoint import CheckpointError, export_checkpoint, from_tree, load_checkpoint, save_checkpoint
from lpjax.models import config_from_json
from lpjax.weights.low_rank import LowRank
from tests.checkpoint.hostile_files import FLAX, array, flax_leaves, packed
from tests.conftest import GOLDENS
from tests.helpers.checkpoints import GOLDEN_NAMES, assert_same, set_leaf

TABLE = "embeddings/word_embeddings/embedding"


def config_of(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / name / "config.json").read_text())


def proxied(tree: Any) -> Any:
    """Mappings that are neither dicts nor pytrees."""
    return MappingProxyType({k: proxied(v) for k, v in tree.items()}) if isinstance(tree, dict) else tree


@pytest.mark.parametrize("name", GOLDEN_NAMES)
@pytest.mark.parametrize(
    "wrap", [dict, proxied, lambda tree: {"params": tree}, lambda tree: jax.tree.map(jnp.asarray, tree)]
)
def test_trees_of_every_net(name: str, wrap: Callable[[Any], Any]):
    loaded = load_checkpoint(GOLDENS / name)
    made = from_tree(wrap(loaded.params), config_of(name))
    assert_same(made.params, loaded.params)
    assert made.config == loaded.config
    assert made.config_json == loaded.config_json
    assert (made.source, made.compression) == (None, None)


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_prefix_may_be_there_or_not(prefix: bool, head: bool):
    loaded = load_checkpoint(GOLDENS / "bert_classifier")
    base, classifier = loaded.params["bert"], loaded.params["classifier"]
    tree = ({"bert": base} if prefix else dict(base)) | ({"classifier": classifier} if head else {})
    made = from_tree(tree, config_of("bert_classifier") | {"architectures": ["BertModel"]})
    # As when a file is read: with a head, the base is under its prefix.
    assert made.params.keys() == ({"bert"} if prefix or head else base.keys()) | ({"classifier"} if head else set())
    assert_same(made.params["bert"] if prefix or head else made.params, base)


@pytest.mark.parametrize("kind", ["object", "transformers", "lpjax"])
def test_configs_of_every_kind(kind: str, tmp_path: Path):
    data = config_of("bert_base")
    loaded = load_checkpoint(GOLDENS / "bert_base")
    config: Any = {"object": data, "lpjax": config_from_json(data), "transformers": None}[kind]
    if kind == "transformers":
        config = transformers.BertConfig.from_pretrained(GOLDENS / "bert_base")
        config.name_or_path = "/somebody/s/folder"
    made = from_tree(loaded.params, config)
    assert made.config == loaded.config
    save_checkpoint(made, tmp_path / "saved")
    again = load_checkpoint(tmp_path / "saved")
    assert again.config == loaded.config
    assert_same(again.params, loaded.params)
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not any(key.startswith("_") for key in written)
    if kind != "lpjax":
        assert written["initializer_range"] == 0.02


def test_tree_in_memory_is_compressed_saved_and_run(folder: Path, tmp_path: Path):
    loaded = load_checkpoint(folder)
    made = from_tree(proxied(loaded.params), config_of("bert_base"), source=folder)
    params, records = lpjax.compress(made.params, select="embeddings", rank=3, solver="svd")
    assert records[0].rank == 3
    smaller = from_tree(params, made.config_json, source=folder)
    save_checkpoint(smaller, tmp_path / "saved")
    again = load_checkpoint(tmp_path / "saved")
    assert_same(again.params, params)
    assert (tmp_path / "saved" / "vocab.txt").exists()
    batch = {"input_ids": np.arange(6).reshape(2, 3)}
    np.testing.assert_array_equal(
        lpjax.encode(made.params, made.config, batch), lpjax.encode(loaded.params, loaded.config, batch)
    )


def test_tied_weights_are_dropped_as_from_a_file():
    loaded = load_checkpoint(GOLDENS / "bert_pretraining")
    table = loaded.params["bert"]["embeddings"]["word_embeddings"]["embedding"]
    tree = loaded.params | {
        "cls": loaded.params["cls"]
        | {"predictions": loaded.params["cls"]["predictions"] | {"decoder": {"kernel": table.T}}}
    }
    assert_same(from_tree(tree, config_of("bert_pretraining")).params, loaded.params)


def without(tree: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: child for name, child in tree.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: without(tree, "embeddings"), r"does not fit `config`:\n  missing \(5\): embeddings/word_embedd"),
        (lambda tree: tree | {"extra": np.ones(3)}, r"unknown \(1\): extra"),
        (lambda tree: set_leaf(tree, TABLE, np.ones((2, 3))), r"mis-shaped \(1\): .* is \(2, 3\), expected \(29, 12\)"),
        (lambda tree: set_leaf(tree, TABLE, "text"), r"unusable \(1\): .* is str, expected floating-point numbers"),
        (
            lambda tree: set_leaf(tree, TABLE, np.full((29, 12), np.nan)),
            r"NaN or infinite weights: embeddings/word_embeddings/embedding \(348 of 348\)",
        ),
        (
            lambda tree: set_leaf(tree, TABLE, LowRank(jnp.ones((29, 1)), jnp.full((1, 12), jnp.inf))),
            r"NaN or infinite weights: embeddings/word_embeddings/embedding.right \(12 of 12\)",
        ),
        (lambda tree: dict(walk(tree)), r"key '.*/.*' in its root, expected a plain name; .*unflatten_dict"),
        (lambda tree: {"encoder": {("layer", "0"): 1}}, r"key \('layer', '0'\) in encoder, expected a plain name"),
        (lambda tree: [tree], r"`params` is list, expected nested dicts of arrays"),
    ],
)
def test_trees_that_are_none(change: Callable[[Any], Any], message: str):
    tree = load_checkpoint(GOLDENS / "bert_base").params
    with pytest.raises(ValueError, match=message):
        from_tree(change(tree), config_of("bert_base"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"`config` lacks `model_type`"),
        ({"model_type": "gpt2"}, r"`config` `model_type` is 'gpt2', expected one of"),
        (
            config_of("bert_base") | {"num_hidden_layers": 10**9},
            r"`num_hidden_layers` is 1000000000, expected a",
        ),
        (None, r"`config` is builtins.NoneType, expected"),
    ],
)
def test_configs_that_are_none(config: Any, message: str):
    with pytest.raises(ValueError, match=message):
        from_tree(load_checkpoint(GOLDENS / "bert_base").params, config)


# --- files


@pytest.fixture
def flax_folder(folder: Path) -> Path:
    """The good checkpoint, with flax_model.msgpack in the place of model.safetensors."""
    leaves = flax_leaves(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / FLAX).write_bytes(packed(leaves))
    return folder


def test_msgpack_is_loaded_and_compressed(flax_folder: Path, tmp_path: Path):
    loaded = load_checkpoint(flax_folder)
    assert_same(loaded.params, load_checkpoint(GOLDENS / "bert_base").params)
    assert loaded.source == flax_folder
    params, _ = lpjax.compress(loaded.params, select="attention", rank=2, solver="svd")
    save_checkpoint(from_tree(params, loaded.config, source=flax_folder), tmp_path / "saved")
    assert_same(load_checkpoint(tmp_path / "saved").params, params)


def test_safetensors_come_before_msgpack(flax_folder: Path):
    (flax_folder / FLAX).write_bytes(b"never read")
    shutil.copyfile(GOLDENS / "bert_base" / "model.safetensors", flax_folder / "model.safetensors")
    load_checkpoint(flax_folder)


@pytest.mark.parametrize("prefix", ["bert/", ""])
def test_msgpack_with_and_without_prefix(flax_folder: Path, prefix: str):
    leaves = {prefix + path: leaf for path, leaf in flax_leaves(GOLDENS / "bert_base" / "model.safetensors").items()}
    (flax_folder / FLAX).unlink()
    (flax_folder / FLAX).write_bytes(packed(leaves))
    expected = load_checkpoint(GOLDENS / "bert_base").params
    assert_same(load_checkpoint(flax_folder).params, {"bert": expected} if prefix else expected)


def test_shards_of_msgpack(flax_folder: Path):
    """As transformers 4 saves a Flax model of more than max_shard_size."""
    leaves = flax_leaves(GOLDENS / "bert_base" / "model.safetensors")
    (flax_folder / FLAX).unlink()
    index = {}
    for number, names in enumerate((sorted(leaves)[::2], sorted(leaves)[1::2]), 1):
        file = f"flax_model-0000{number}-of-00002.msgpack"
        (flax_folder / file).write_bytes(packed({name: leaves[name] for name in names}))
        index |= dict.fromkeys(names, file)
    (flax_folder / f"{FLAX}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    assert_same(load_checkpoint(flax_folder).params, load_checkpoint(GOLDENS / "bert_base").params)


def test_safetensors_of_a_flax_model(flax_folder: Path):
    """As transformers 4 saves a Flax model with safe_serialization=True."""
    (flax_folder / FLAX).unlink()
    leaves = flax_leaves(GOLDENS / "bert_base" / "model.safetensors")
    tensors = {path.replace("/", "."): np.ascontiguousarray(leaf) for path, leaf in leaves.items()}
    save_file(tensors, flax_folder / "model.safetensors", metadata={"format": "flax"})
    assert_same(load_checkpoint(flax_folder).params, load_checkpoint(GOLDENS / "bert_base").params)
    tensors["pooler.dense.kernel"] = np.ones((3, 3), np.float32)
    (flax_folder / "model.safetensors").unlink()
    save_file(tensors, flax_folder / "model.safetensors", metadata={"format": "flax"})
    with pytest.raises(
        CheckpointError, match=r"mis-shaped \(1\): pooler/dense/kernel is \(3, 3\), expected \(12, 12\)"
    ):
        load_checkpoint(flax_folder)


def test_misfits_of_a_msgpack_are_named_by_path(flax_folder: Path):
    leaves: dict[str, Any] = flax_leaves(GOLDENS / "bert_base" / "model.safetensors")
    del leaves["pooler/dense/bias"]
    leaves["encoder/layer/7/output/dense/bias"] = np.ones(3, np.float32)
    leaves[TABLE] = array(np.ones((3, 4), np.float16))
    (flax_folder / FLAX).unlink()
    (flax_folder / FLAX).write_bytes(packed(leaves))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(flax_folder)
    assert str(caught.value).splitlines() == [
        f"{flax_folder}/flax_model.msgpack does not fit the bert of {flax_folder}/config.json:",
        "  missing (1): pooler/dense/bias",
        "  unknown (1): encoder/layer/7/output/dense/bias",
        f"  mis-shaped (1): {TABLE} is (3, 4), expected (29, 12)",
        "  the file has more layers than its config.json says",
    ]


def test_msgpack_may_be_replaced_by_an_export(flax_folder: Path, tmp_path: Path):
    loaded = load_checkpoint(flax_folder)
    export_checkpoint(loaded, tmp_path / "out", format="msgpack")
    export_checkpoint(loaded, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / FLAX).exists()
