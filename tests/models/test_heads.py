"""Heads for tokens, answers and masked words against PyTorch's transformers."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax import _tree
from lpjax.glue.tasks import TASKS
from lpjax.models import config_from_json
from lpjax.models.heads import num_outputs, output_path
from lpjax.models.names import HEADS, head_named, names_classifier, walk
from lpjax.pipeline.outputs import Embedding, outputs_of
from lpjax.training.classifier import for_texts, starting_weights
from lpjax.weights.sparse import Sparse
from tests.helpers.goldens import Golden, load_golden
from tests.helpers.heads import CASES, load_head, run, there

WORDS = [name for name in CASES if name.endswith("words")]


def table_of(golden: Golden) -> str:
    return next(path for path, _ in walk(golden.checkpoint.params) if "word_embedding" in path)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_pytorch(name):
    golden, expected = load_head(name)
    assert golden.checkpoint.config.head == name.split("_")[-1]
    got = run(golden.checkpoint.params, golden)
    assert (got.dtype, got.shape) == (jnp.float32, expected.shape)
    np.testing.assert_allclose(np.asarray(got)[there(golden)], expected[there(golden)], rtol=0, atol=1e-5)


@pytest.mark.two_models
@pytest.mark.parametrize(
    "name",
    [
        "bert_words",
        "bert_untied_words",
        "roberta_spans",
        "distilbert_tokens",
        "modernbert_words",
        "albert_words",
        "mpnet_words",
        "electra_words",
    ],
)
def test_factored_nets_are_saved_exported_and_run(name, tmp_path):
    """The table too, whose product a tied decoder is the transpose of; an untied one stays as it is."""
    golden, _ = load_head(name)
    net = golden.checkpoint
    select = ["encoder", "embeddings"]
    small = lpjax.compress(net.params, select=select, rank=2, solver="svd").params
    small = jax.tree.map(jnp.asarray, small)
    dense = jax.tree.map(lpjax.densify, small, is_leaf=lambda leaf: isinstance(leaf, lpjax.LowRank))
    expected = run(dense, golden)
    np.testing.assert_allclose(run(small, golden), expected, rtol=0, atol=1e-5)
    lpjax.save_checkpoint(dataclasses.replace(net, params=small), tmp_path / "small")
    loaded = lpjax.load_checkpoint(tmp_path / "small")
    assert loaded.config == net.config
    assert {path for path, _ in walk(loaded.params)} == {path for path, _ in walk(net.params)}
    np.testing.assert_allclose(run(loaded.params, golden), expected, rtol=0, atol=1e-5)
    lpjax.export_checkpoint(loaded, tmp_path / "dense")
    again = lpjax.load_checkpoint(tmp_path / "dense")
    assert again.config == net.config
    np.testing.assert_allclose(run(again.params, golden), expected, rtol=0, atol=1e-5)


def test_a_decoder_tied_to_a_table_with_single_entries():
    golden, _ = load_head("roberta_words")
    path = table_of(golden)
    table = np.asarray(dict(walk(golden.checkpoint.params))[path])
    rng = np.random.default_rng(0)
    entries = np.where(rng.random(table.shape) < 0.2, table, 0)
    u, s, vt = np.linalg.svd(table - entries, full_matrices=False)
    pair = lpjax.LowRank((u * s).astype(np.float32), vt.astype(np.float32), Sparse.of(entries))
    small = _tree.replace_leaves(golden.checkpoint.params, {path: pair})
    np.testing.assert_allclose(run(small, golden), run(golden.checkpoint.params, golden), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["bert_tokens", "distilbert_spans", "roberta_words"])
def test_bfloat16_and_dropout(name):
    golden, expected = load_head(name)
    got = run(golden.checkpoint.params, golden, dtype=jnp.bfloat16)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.08 * np.abs(expected).max() + 0.08)
    first, two = (run(golden.checkpoint.params, golden, dropout_key=jax.random.key(i)) for i in (0, 1))
    assert jnp.abs(first - two).max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_the_class_in_architectures_tells_the_head(name):
    golden, expected = load_head(name)
    config = golden.checkpoint.config
    data = json.loads(json.dumps(config.to_json()))
    assert data["architectures"][0].startswith(config.class_name)
    assert "head" not in data
    assert config_from_json(data) == config
    assert num_outputs(golden.checkpoint.params, config, config.head) == expected.shape[-1]


def test_names_of_classes():
    assert head_named(["BertForPreTraining"]) == "words"
    assert head_named(["ElectraForPreTraining"]) is None  # tells replaced tokens
    assert head_named(["XLNetForQuestionAnsweringSimple"]) == "spans"
    assert head_named(["BertForSequenceClassification"]) == "sequence"
    for other in (None, [], "BertForMaskedLM", ["BertModel"], [3]):
        assert head_named(other) is None
        assert not names_classifier(other)
    with pytest.raises(ValueError, match="`head` is 'token', expected one of sequence, tokens, spans, words"):
        dataclasses.replace(load_golden("bert_base").checkpoint.config, head="token")
    assert set(HEADS) == {"sequence", "tokens", "spans", "words"}


@pytest.mark.parametrize("name", ["bert_tokens", "roberta_spans"])
def test_a_file_without_the_head_that_its_class_has_is_refused(name, tmp_path):
    golden, _ = load_head(name)
    net = golden.checkpoint
    prefix = "bert" if name.startswith("bert") else "roberta"
    lpjax.save_checkpoint(dataclasses.replace(net, params={prefix: net.params[prefix]}), tmp_path / "base")
    assert lpjax.load_checkpoint(tmp_path / "base").config.head == "sequence"  # saved as the base model that it is
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["architectures"] = (net.config_json or {})["architectures"]
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(lpjax.CheckpointError, match=r"missing \(2\): (classifier|qa_outputs).weight"):
        lpjax.load_checkpoint(tmp_path / "base")


def test_heads_that_are_not_there_are_refused():
    golden, _ = load_head("bert_tokens")
    base = load_golden("bert_base")
    with pytest.raises(ValueError, match="base model's tree, without a head"):
        lpjax.fill_mask(base.checkpoint.params, base.checkpoint.config, base.batch)
    with pytest.raises(ValueError, match=r"missing \(5\): cls/predictions/bias"):
        lpjax.fill_mask(golden.checkpoint.params, golden.checkpoint.config, golden.batch)
    spans = dataclasses.replace(golden.checkpoint.config, head="spans")
    with pytest.raises(ValueError, match=r"missing \(2\): qa_outputs/kernel"):
        lpjax.classify(golden.checkpoint.params, spans, golden.batch)
    three = {**golden.checkpoint.params, "qa_outputs": golden.checkpoint.params["classifier"]}
    with pytest.raises(ValueError, match="`qa_outputs` has 3 outputs; expected 2"):
        lpjax.classify(three, spans, golden.batch)
    permuted = load_golden("xlnet_same_length")
    with pytest.raises(ValueError, match="xlnet, whose word head fills no masks; expected one of bert, distilbert"):
        lpjax.fill_mask(permuted.checkpoint.params, permuted.checkpoint.config, permuted.batch)


def test_a_discriminator_is_an_encoder_whose_head_is_kept_and_not_run():
    (net, batch, *_) = load_golden("electra_pretraining")
    assert {path.split("/")[0] for path, _ in walk(net.params)} == {"electra", "discriminator_predictions"}
    assert outputs_of(net) == Embedding()
    with pytest.raises(ValueError, match=r"missing \(4\): classifier/dense/kernel"):
        lpjax.classify(net.params, net.config, batch)
    with pytest.raises(ValueError, match=r"missing \(5\): generator_predictions/LayerNorm/scale"):
        lpjax.fill_mask(net.params, net.config, batch)


@pytest.mark.parametrize("name", ["bert_tokens", "roberta_words", "distilbert_spans"])
def test_fine_tuning_begins_with_a_fresh_headfor_texts(name):
    """Also if a head for tokens has weights of the same name and shape."""
    net = load_head(name)[0].checkpoint
    begun = for_texts(net)
    params, data, added = starting_weights(begun, TASKS["mnli"], 0)
    assert begun.config.head == "sequence"
    assert output_path(net.config) in added
    assert data["architectures"] == [f"{net.config.class_name}ForSequenceClassification"]
    assert config_from_json(data) == begun.config
    assert num_outputs(params, begun.config) == 3


def test_a_head_that_was_set_by_hand_is_written(tmp_path):
    net = load_head("bert_tokens")[0].checkpoint
    bare = dataclasses.replace(net, config_json={**(net.config_json or {}), "architectures": ["BertModel"]})
    lpjax.save_checkpoint(bare, tmp_path / "set")
    assert lpjax.load_checkpoint(tmp_path / "set").config.head == "tokens"
