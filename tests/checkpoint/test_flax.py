"""With flax installed: it reads what is written here, and the other way round; so do transformers' Flax classes (4)."""

# Both are optional, and pyright sees at most one of them.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax._tree import walk
from lpjax.checkpoint import export_checkpoint, from_tree, load_checkpoint
from lpjax.checkpoint import msgpack as _msgpack
from lpjax.checkpoint.msgpack import read_tree, write_tree
from lpjax.models import classify
from tests.conftest import GOLDENS
from tests.helpers.checkpoints import GOLDEN_NAMES, assert_same, factor_all

serialization = pytest.importorskip("flax.serialization")

CLASSES = {
    "bert_base": "FlaxBertModel",
    "bert_bfloat16": "FlaxBertModel",
    "bert_classifier": "FlaxBertForSequenceClassification",
    "bert_pretraining": "FlaxBertForPreTraining",
    "distilbert_base": "FlaxDistilBertModel",  # but for its sinusoidal positions, which Flax computes anew
    "distilbert_classifier": "FlaxDistilBertForSequenceClassification",
    "distilbert_masked_lm": "FlaxDistilBertForMaskedLM",
    "roberta_base": "FlaxRobertaModel",
    "roberta_classifier": "FlaxRobertaForSequenceClassification",
    "roberta_masked_lm": "FlaxRobertaForMaskedLM",
    "xlm-roberta_classifier": "FlaxXLMRobertaForSequenceClassification",
}


def tree(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    leaves = {name: rng.standard_normal((7, 11)) for name in ("float16", "float32", "float64")}
    return {name: {"kernel": leaf.astype(name)} for name, leaf in leaves.items()} | {
        "bfloat16": {"deep": {"er": jnp.asarray(rng.standard_normal((3, 5, 2)), jnp.bfloat16)}},
        "scalar": np.float32(3),
        "empty": np.zeros((0, 4), np.float32),
        "nothing": {},
    }


@pytest.mark.parametrize("chunk", [2**30, 64])
def test_flax_reads_what_is_written(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_msgpack, "_CHUNK_BYTES", chunk)
    write_tree(tmp_path / "tree", tree())
    restored = serialization.msgpack_restore((tmp_path / "tree").read_bytes())
    assert_same(restored, tree())
    assert restored["nothing"] == {}


@pytest.mark.parametrize("chunk", [2**30, 64])
def test_what_flax_writes_is_read(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", chunk)
    (tmp_path / "tree").write_bytes(serialization.to_bytes(tree()))
    assert_same(read_tree(tmp_path / "tree"), dict(walk(tree())))


def test_frozen_dict_in_memory():
    from flax.core import freeze

    loaded = load_checkpoint(GOLDENS / "bert_classifier")
    made = from_tree(freeze(jax.tree.map(jnp.asarray, loaded.params)), loaded.config_json)
    assert_same(made.params, loaded.params)
    assert all(type(part) is dict for part in (made.params, made.params["bert"], made.params["classifier"]))
    # A FrozenDict that was not passed through `from_tree` will do too.
    frozen = dataclasses.replace(loaded, params=freeze(loaded.params))
    params, _ = lpjax.compress(frozen.params, select="embeddings", rank=2, solver="svd")
    assert params["bert"]["embeddings"]["word_embeddings"]["embedding"].rank == 2


@pytest.fixture
def source(name: str, tmp_path: Path) -> Path:
    """A golden checkpoint; one of DistilBERT with learned positions, which the Flax class has in its tree."""
    shutil.copytree(GOLDENS / name, tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | ({"sinusoidal_pos_embds": False} if "distilbert" in name else {})))
    return tmp_path / "source"


@pytest.fixture
def flax_class(name: str) -> Any:
    """transformers' Flax class of a golden checkpoint; version 5 has none."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "FlaxBertModel"):
        pytest.skip("needs transformers<5")
    return getattr(transformers, CLASSES[name])


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """The promotions that transformers' own code needs."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_flax_class_loads_an_export(source: Path, compressed: bool, flax_class: Any, tmp_path: Path):
    checkpoint = load_checkpoint(source)
    if compressed:
        checkpoint = dataclasses.replace(checkpoint, params=factor_all(checkpoint.params, scale=0.1))
    export_checkpoint(checkpoint, tmp_path / "out", format="msgpack")
    with lenient():
        model, params = flax_class.from_pretrained(tmp_path / "out", _do_init=False)
    required = {"/".join(keys) for keys in model.required_params}
    assert required == dict(walk(params)).keys()  # no key missing, none unexpected
    assert_same(params, load_checkpoint(tmp_path / "out").params)


@pytest.mark.parametrize("name", [name for name in CLASSES if "bfloat16" not in name])
@pytest.mark.parametrize("how", [{}, {"max_shard_size": "2KB"}, {"safe_serialization": True}])
@pytest.mark.filterwarnings("ignore")
def test_what_a_flax_class_saves_is_loaded(source: Path, how: dict[str, Any], flax_class: Any, tmp_path: Path):
    loaded = load_checkpoint(source)
    export_checkpoint(loaded, tmp_path / "out", format="msgpack")
    with lenient():
        model = flax_class.from_pretrained(tmp_path / "out")
        model.save_pretrained(tmp_path / "flax", **how)
    assert_same(load_checkpoint(tmp_path / "flax").params, loaded.params)
    assert_same(from_tree(model.params, model.config).params, loaded.params)


@pytest.mark.parametrize("name", [name for name in CLASSES if name.endswith("classifier")])
@pytest.mark.filterwarnings("ignore")
def test_logits_are_those_of_the_flax_class(source: Path, flax_class: Any, tmp_path: Path):
    checkpoint = load_checkpoint(source)
    checkpoint = dataclasses.replace(checkpoint, params=factor_all(checkpoint.params, scale=0.1))
    export_checkpoint(checkpoint, tmp_path / "out", format="msgpack")
    ids = np.arange(5, 15).reshape(2, 5)
    with lenient():
        expected = flax_class.from_pretrained(tmp_path / "out")(ids).logits
    np.testing.assert_allclose(classify(checkpoint.params, checkpoint.config, {"input_ids": ids}), expected, atol=1e-5)


def test_every_golden_of_the_first_nets_that_flax_has_a_class_for_is_covered():
    # XLNet, MPNet and ModernBERT never had a Flax class; those of ALBERT and ELECTRA were not tried.
    others = ("xlnet", "mpnet", "modernbert", "albert", "electra")
    left = {name for name in GOLDEN_NAMES if not name.startswith(others)} - CLASSES.keys()
    assert left == {"bert_no_pooler", "bert_regression", "camembert_base"}
