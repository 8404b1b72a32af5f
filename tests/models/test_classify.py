"""Classification and regression heads against PyTorch's transformers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpjax.checkpoint import Checkpoint
from lpjax.models import classify
from tests.helpers.goldens import CASES, NETS, load_golden
from tests.helpers.nets import factor_losslessly

HEADS = [name for name in CASES if load_golden(name).logits is not None]


def load_head(name: str) -> tuple[Checkpoint, dict[str, np.ndarray], np.ndarray]:
    golden = load_golden(name)
    assert golden.logits is not None
    return golden.checkpoint, golden.batch, golden.logits


def test_every_net_has_a_head_among_the_goldens():
    nets = {"bert", "distilbert", "roberta", "xlm-roberta", "xlnet", "modernbert", "albert", "mpnet", "electra"}
    assert {name.split("_")[0] for name in HEADS} == nets


@pytest.mark.parametrize("name", HEADS)
def test_logits_equal_those_of_pytorch(name: str):
    checkpoint, batch, expected = load_head(name)
    got = classify(checkpoint.params, checkpoint.config, batch)
    assert (got.dtype, got.shape) == (jnp.float32, expected.shape)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    factored = classify(factor_losslessly(checkpoint.params), checkpoint.config, batch)
    np.testing.assert_allclose(factored, expected, rtol=0, atol=2e-5)


@pytest.mark.two_models
@pytest.mark.parametrize("name", [net.replace("base", "classifier") for net in NETS])
def test_bfloat16_and_dropout(name: str):
    checkpoint, batch, expected = load_head(name)
    got = classify(checkpoint.params, checkpoint.config, batch, dtype=jnp.bfloat16)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.05 * np.abs(expected).max() + 0.05)
    first, two = (classify(checkpoint.params, checkpoint.config, batch, dropout_key=jax.random.key(i)) for i in (0, 1))
    assert jnp.abs(first - two).max() > 1e-3


def test_params_without_a_head_are_refused():
    base = load_golden("roberta_base")
    with pytest.raises(ValueError, match="is a base model's tree, without a head; expected `roberta` and a head"):
        classify(base.checkpoint.params, base.checkpoint.config, base.batch)
    words = load_golden("distilbert_masked_lm")
    missing = r"missing \(4\): pre_classifier/kernel, pre_classifier/bias, classifier/kernel, classifier/bias"
    with pytest.raises(ValueError, match=missing):
        classify(words.checkpoint.params, words.checkpoint.config, words.batch)


def test_xlnet_wants_padding_on_the_left():
    (checkpoint, batch, *_) = load_golden("xlnet_classifier")
    flipped = {key: value[:, ::-1] for key, value in batch.items()}
    with pytest.raises(ValueError, match="pad on the left"):
        classify(checkpoint.params, checkpoint.config, flipped)
    first = dataclasses.replace(checkpoint.config, summary_type="first")
    assert jnp.isfinite(classify(checkpoint.params, first, flipped)).all()
