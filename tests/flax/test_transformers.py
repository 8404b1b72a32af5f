"""transformers' own Flax models, factored; only before version 5, which drops them.

Last passed with transformers 4.57.6, flax 0.12.8 and jax 0.10.2, in an environment of its own:

    python -m venv ENV && ENV/bin/pip install -e . --group dev 'transformers==4.57.*'
    ENV/bin/python -m pytest tests/flax/test_transformers.py
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
import lpjax.flax
from lpjax import LowRank
from lpjax._tree import leaves_with_paths
from tests.flax import helpers
from tests.flax.helpers import near

if int(version("transformers").partition(".")[0]) > 4:
    pytest.skip("transformers 5 has no Flax models", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 15,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 29,
    "max_position_embeddings": 17,
    "num_labels": 4,
}
DISTILBERT: dict[str, Any] = {"vocab_size": 61, "dim": 15, "n_layers": 2, "n_heads": 3, "hidden_dim": 29}
DISTILBERT |= {"max_position_embeddings": 17, "num_labels": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "FlaxBertForSequenceClassification": ("BertConfig", SIZES),
    "FlaxBertForMaskedLM": ("BertConfig", SIZES),  # whose decoder is a Dense on the embedding's transpose
    "FlaxRobertaForSequenceClassification": ("RobertaConfig", SIZES),
    "FlaxDistilBertForSequenceClassification": ("DistilBertConfig", DISTILBERT),
}

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "FlaxDistilBertForMaskedLM": ("DistilBertConfig", DISTILBERT),
    "FlaxGPT2LMHeadModel": (
        "GPT2Config",
        {"vocab_size": 61, "n_embd": 15, "n_layer": 1, "n_head": 3, "n_positions": 17},
    ),
}


@pytest.fixture(autouse=True)
def usual_promotion(promoting) -> Iterator[None]:
    """transformers' code promotes ranks, too."""
    with jax.numpy_rank_promotion("allow"):
        yield


def make(name: str) -> Any:
    import transformers

    config, options = (MODELS | REFUSED)[name]
    return getattr(transformers, name)(getattr(transformers, config)(**options), seed=0)


def batch() -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(5, 61, (2, 7))
    mask = np.asarray([[1] * 7, [1] * 4 + [0] * 3])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", MODELS)
def test_factored_models_are_the_densified_ones(name):
    model = make(name)
    dense = model.params
    small, records = lpjax.compress(dense, select=["embeddings", "encoder"], keep=0.7, solver="svd", p=2.0)
    assert len(records) == 13
    assert all(record.rank for record in records)
    whole = helpers.densified(small, dense)
    with lpjax.flax.factored():
        logits = model(**batch(), params=small).logits
    expected = model(**batch(), params=whole).logits
    assert near(logits, expected)
    assert not near(logits, model(**batch()).logits, 1e-3)
    # As the model's own params, too, which it checks against its names.
    model.params = small
    with lpjax.flax.factored():
        assert np.array_equal(model(**batch()).logits, logits)


def test_a_classifier_learns_factored():
    """Jitted, with gradients by both factors, and no dense weight in the program."""
    name = "FlaxBertForSequenceClassification"
    model, inputs = make(name), batch()
    small = lpjax.compress(
        model.params, select=["embeddings", "encoder"], keep=0.7, solver=helpers.first_columns
    ).params
    whole = helpers.densified(small, model.params)
    ids, mask = jnp.asarray(inputs["input_ids"]), jnp.asarray(inputs["attention_mask"])
    positions = jnp.broadcast_to(jnp.arange(7), ids.shape)

    def loss(apply: Any, params: Any) -> Any:
        logits = apply({"params": params}, ids, mask, jnp.zeros_like(ids), positions, None).logits
        return jnp.mean(jnp.sin(logits))

    factored = functools.partial(loss, functools.partial(lpjax.flax.apply, model.module))
    factored_gradients = jax.jit(jax.grad(factored))(small)
    gradients = jax.jit(jax.grad(functools.partial(loss, model.module.apply)))(whole)
    pairs = {path: leaf for path, leaf in leaves_with_paths(small) if isinstance(leaf, LowRank)}
    assert len(pairs) == 13
    for path, pair in pairs.items():
        chained = helpers.by_the_chain_rule(pair, dict(leaves_with_paths(gradients))[path])
        gradient = dict(leaves_with_paths(factored_gradients))[path]
        assert near(gradient.left, chained.left, 1e-4), path
        assert near(gradient.right, chained.right, 1e-4), path
    shapes = {*helpers.shapes_in(jax.make_jaxpr(jax.grad(factored))(small))}
    dense = {pair.shape for pair in pairs.values()} - {(15, 15)}
    assert not shapes & {*dense, *(shape[::-1] for shape in dense)}


def test_what_transformers_made_itself_is_named():
    """GPT-2's linear layers are not nn.Dense, but its table is an nn.Embed."""
    model = make("FlaxGPT2LMHeadModel")
    ids = batch()["input_ids"]
    table = lpjax.compress(model.params, select="wte", keep=0.7, solver=helpers.first_columns).params
    with lpjax.flax.factored():
        logits = model(ids, params=table).logits
    assert near(logits, model(ids, params=helpers.densified(table, model.params)).logits)
    small = lpjax.compress(model.params, select="c_fc/kernel", keep=0.7, solver=helpers.first_columns).params
    words = "transformer/h/0/mlp/c_fc/kernel is a LowRank, but belongs to FlaxConv1D"
    with lpjax.flax.factored(), pytest.raises(ValueError, match=words):
        model(ids, params=small)


def test_a_decoder_that_computes_with_the_table_by_itself_is_named():
    """DistilBERT's takes the transposed table for an array; without the table, all else runs factored."""
    model = make("FlaxDistilBertForMaskedLM")
    tied = lpjax.compress(model.params, select="embeddings", keep=0.7, solver=helpers.first_columns).params
    words = "vocab_projector, a FlaxDistilBertLMDecoder, was handed a LowRank"
    with lpjax.flax.factored(), pytest.raises(ValueError, match=words):
        model(**batch(), params=tied)
    small = lpjax.compress(model.params, select="encoder", keep=0.7, solver=helpers.first_columns).params
    with lpjax.flax.factored():
        logits = model(**batch(), params=small).logits
    assert near(logits, model(**batch(), params=helpers.densified(small, model.params)).logits)
