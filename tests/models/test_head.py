"""A head on every model: a new one if it has none, its own if that fits."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import lpjax
from lpjax._tree import walk
from lpjax.models import name_table
from lpjax.models.heads import num_outputs, output_path, with_head
from tests.helpers.goldens import CASES, NETS, load_golden
from tests.helpers.nets import factor

CLASSIFIERS = [name.replace("base", "classifier") for name in NETS]
FRESH = {
    "bert_base": ["classifier/bias", "classifier/kernel"],
    "distilbert_base": ["classifier/bias", "classifier/kernel", "pre_classifier/bias", "pre_classifier/kernel"],
    "roberta_base": [f"classifier/{layer}/{part}" for layer in ("dense", "out_proj") for part in ("bias", "kernel")],
    "xlnet_base": [
        *(f"logits_proj/{part}" for part in ("bias", "kernel")),
        *(f"sequence_summary/summary/{part}" for part in ("bias", "kernel")),
    ],
    "modernbert_base": ["classifier/bias", "classifier/kernel", "head/dense/kernel", "head/norm/scale"],
    "albert_base": ["classifier/bias", "classifier/kernel"],
}
FRESH |= dict.fromkeys(["mpnet_base", "electra_base"], FRESH["roberta_base"])


def shape_of_logits(params, golden) -> tuple[int, ...]:
    """What `classify` gives, without compiling it; it refuses a tree that does not fit."""
    return jax.eval_shape(lambda tree: lpjax.classify(tree, golden.checkpoint.config, golden.batch), params).shape


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_base_model_gets_a_head(name, outputs):
    golden = load_golden(name)
    checkpoint = golden.checkpoint
    params, added = with_head(checkpoint.params, checkpoint.config, outputs, seed=4)
    assert added == FRESH[name]
    leaves, before = dict(walk(params)), dict(walk(checkpoint.params))
    prefix = name_table(checkpoint.config).prefix
    for path, leaf in before.items():
        assert leaves[f"{prefix}/{path}"] is leaf
    assert leaves.keys() == {f"{prefix}/{path}" for path in before} | set(added)
    for path in added:
        assert leaves[path].dtype == np.float32
        if path.endswith("bias"):
            assert not leaves[path].any()
        elif path.endswith("scale"):
            assert (leaves[path] == 1).all()
        elif leaves[path].size > 100:
            assert 0.015 < leaves[path].std() < 0.025
    assert shape_of_logits(params, golden) == (len(golden.batch["input_ids"]), outputs)
    assert num_outputs(params, checkpoint.config) == outputs
    assert num_outputs(checkpoint.params, checkpoint.config) is None
    again = dict(walk(with_head(checkpoint.params, checkpoint.config, outputs, seed=4)[0]))
    other = dict(walk(with_head(checkpoint.params, checkpoint.config, outputs, seed=5)[0]))
    kernel = output_path(checkpoint.config)
    assert np.array_equal(leaves[kernel], again[kernel])
    assert not np.array_equal(leaves[kernel], other[kernel])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_head_with_as_many_outputs_is_kept(name):
    checkpoint = load_golden(name).checkpoint
    params, added = with_head(checkpoint.params, checkpoint.config, 3)
    assert added == []
    before = dict(walk(checkpoint.params))
    assert {path: id(leaf) for path, leaf in walk(params)} == {path: id(leaf) for path, leaf in before.items()}
    assert num_outputs(checkpoint.params, checkpoint.config) == 3


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_head_with_other_outputs_keeps_its_inner_layer(name):
    checkpoint = load_golden(name).checkpoint
    params, added = with_head(checkpoint.params, checkpoint.config, 2)
    kernel = output_path(checkpoint.config)
    assert added == [kernel.replace("kernel", "bias"), kernel]
    before = dict(walk(checkpoint.params))
    assert all(leaf is before[path] for path, leaf in walk(params) if path not in added)
    assert before[kernel].shape[1] == 3  # the argument is unchanged


@pytest.mark.parametrize(
    "name", ["bert_pretraining", "distilbert_masked_lm", "roberta_masked_lm", "electra_pretraining"]
)
def test_word_heads_are_left_out(name):
    golden = load_golden(name)
    params, added = with_head(golden.checkpoint.params, golden.checkpoint.config, 2)
    table = name_table(golden.checkpoint.config)
    assert table.write(params, table.head_groups["sequence"])[1].unknown == []
    assert set(params) == {table.prefix, *(path.split("/")[0] for path in added if not path.startswith(table.prefix))}
    assert not set(params) & {"cls", "vocab_projector", "lm_head", "discriminator_predictions"}
    assert shape_of_logits(params, golden)[1] == 2


def test_a_pooler_that_is_lacking_is_made():
    checkpoint = load_golden("bert_no_pooler").checkpoint
    params, added = with_head(checkpoint.params, checkpoint.config, 2)
    assert added == [*FRESH["bert_base"], "bert/pooler/dense/bias", "bert/pooler/dense/kernel"][2:] + FRESH["bert_base"]
    assert "pooler" not in checkpoint.params
    assert params["bert"]["embeddings"] == checkpoint.params["embeddings"]


@pytest.mark.parametrize("name", ["xlnet_base", "roberta_classifier"])
def test_factored_leaves_stay(name):
    golden = load_golden(name)
    small = factor(golden.checkpoint.params, 3)
    params, _ = with_head(small, golden.checkpoint.config, 3)
    ranks = [leaf for _, leaf in walk(params) if isinstance(leaf, lpjax.LowRank)]
    assert len(ranks) == sum(isinstance(leaf, lpjax.LowRank) for _, leaf in walk(small)) > 10
    assert shape_of_logits(params, golden)[1] == 3


@pytest.mark.parametrize("name", NETS)
def test_what_is_saved_is_a_classifier(name, tmp_path):
    golden = load_golden(name)
    checkpoint = golden.checkpoint
    params, _ = with_head(checkpoint.params, checkpoint.config, 3)
    class_name = f"{checkpoint.config.class_name}ForSequenceClassification"
    data = {**(checkpoint.config_json or {}), "architectures": [class_name]}
    lpjax.save_checkpoint(dataclasses.replace(checkpoint, params=params, config_json=data), tmp_path / "saved")
    loaded = lpjax.load_checkpoint(tmp_path / "saved")
    assert loaded.config_json is not None
    assert loaded.config_json["architectures"] == [class_name]
    assert len(loaded.config_json["id2label"]) == 3
    assert shape_of_logits(loaded.params, golden)[1] == 3
    leaves, written = dict(walk(loaded.params)), dict(walk(params))
    assert leaves.keys() == written.keys()
    assert all(np.array_equal(leaves[path], written[path]) for path in leaves)


def test_the_outputs_of_every_golden_are_told():
    for name in CASES:
        golden = load_golden(name)
        expected = None if golden.logits is None else golden.logits.shape[1]
        assert num_outputs(golden.checkpoint.params, golden.checkpoint.config) == expected


def test_misuse_is_told():
    checkpoint = load_golden("bert_base").checkpoint
    with pytest.raises(ValueError, match="`num_outputs` is 0; expected a whole number, 1 or more"):
        with_head(checkpoint.params, checkpoint.config, 0)
