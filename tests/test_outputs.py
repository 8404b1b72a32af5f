"""Divergence of nets against SciPy and against texts run one by one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

import lpjax
from lpjax.outputs import Divergence, divergence, outputs_of
from tests.glue.test_evaluate import base_net, net_with_head
from tests.models.golden_cases import NETS
from tests.test_batching import make_tokenizer
from tests.test_calibrate import LONGEST, TEXTS, one_at_a_time

pytestmark = pytest.mark.usefixtures("quick_compilations")


def test_divergences_are_those_of_scipy():
    rng = np.random.default_rng(0)
    found, wanted = rng.normal(size=(2, 5, 3)).astype(np.float32)
    entropy = rel_entr(softmax(wanted, axis=1), softmax(found, axis=1)).sum(axis=1)
    assert np.allclose(divergence(found, wanted, headed=True), entropy, atol=1e-6)
    assert np.allclose(divergence(found[:, :1], wanted[:, :1], headed=True), (found - wanted)[:, 0] ** 2)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (found, wanted))
    assert np.allclose(divergence(a, b, headed=False), 1 - (a * b).sum(axis=1), atol=1e-6)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("headed", [False, True])
def test_the_mean_over_texts_one_by_one(name, headed):
    checkpoint = net_with_head(name, "mnli") if headed else base_net(name)
    smaller = lpjax.compress(checkpoint.params, select="encoder", keep=0.5, solver="svd").params

    def outputs(params):
        for batch in one_at_a_time(checkpoint, TEXTS):
            if headed:
                yield np.asarray(lpjax.classify(params, checkpoint.config, batch), np.float64)[0]
            else:
                mean = np.asarray(lpjax.encode(params, checkpoint.config, batch), np.float64)[0].mean(axis=0)
                yield mean / np.linalg.norm(mean)

    expected = []
    for found, wanted in zip(outputs(smaller), outputs(checkpoint.params), strict=True):
        if headed:
            logs = log_softmax(wanted)
            expected.append(np.sum(np.exp(logs) * (logs - log_softmax(found))))
        else:
            expected.append(np.sum((found - wanted) ** 2) / 2)
    tokenizer = make_tokenizer(checkpoint.config)
    options = {"tokenizer": tokenizer, "batch_size": 4, "max_length": LONGEST}
    measure = Divergence(checkpoint, TEXTS, **options, hidden=0)
    assert measure(smaller) == pytest.approx(np.mean(expected), rel=1e-3, abs=1e-7)
    assert measure(checkpoint.params) == pytest.approx(0, abs=1e-7)
    dense = jax.tree.map(
        lpjax.densify, jax.tree.map(jnp.asarray, smaller), is_leaf=lambda leaf: isinstance(leaf, lpjax.LowRank)
    )
    assert measure(dense) == pytest.approx(measure(smaller), rel=1e-3, abs=1e-7)
    assert_hidden_states_count(checkpoint, smaller, headed, measure(smaller), options)


def assert_hidden_states_count(checkpoint, smaller, headed, without, options):
    """By their relative squared error, text by text: of the token that a head reads, or of all."""
    batches = list(one_at_a_time(checkpoint, TEXTS))
    wanted, found = (
        [np.asarray(lpjax.encode(params, checkpoint.config, batch), np.float64)[0] for batch in batches]
        for params in (checkpoint.params, smaller)
    )
    if headed:
        last = checkpoint.config.model_type == "xlnet"
        wanted, found = ([states[-1:] if last else states[:1] for states in net] for net in (wanted, found))
    shares = [np.sum((a - b) ** 2) / np.sum(a**2) for a, b in zip(wanted, found, strict=True)]
    with_hidden = Divergence(checkpoint, TEXTS, **options, hidden=2.0)(smaller)
    assert with_hidden == pytest.approx(without + 2 * np.mean(shares), rel=1e-3)
    default = Divergence(checkpoint, TEXTS, **options)(smaller)
    assert default == pytest.approx(without + (np.mean(shares) if headed else 0), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("name", ["bert_base", "distilbert_base"])
def test_a_head_for_tokens_is_no_head(name):
    """Files of nets that classify tokens have a classifier and nothing that would read the first token for it."""
    headed, base = net_with_head(name, "mnli"), base_net(name)
    assert outputs_of(headed) == 3
    tokens = {key: leaf for key, leaf in headed.params.items() if key != "pre_classifier"}
    tokens |= {key: {k: v for k, v in leaf.items() if k != "pooler"} for key, leaf in tokens.items() if key == "bert"}
    named = {**(headed.config_json or {}), "architectures": ["BertForTokenClassification"]}
    for net in (
        dataclasses.replace(headed, params=tokens, config_json=None),
        dataclasses.replace(headed, config_json=named),
    ):
        assert outputs_of(net) is None
        tokenizer = make_tokenizer(net.config)
        other = lpjax.compress(net.params, select="encoder", keep=0.5, solver="svd").params
        expected = lpjax.compress(base.params, select="encoder", keep=0.5, solver="svd").params
        options = {"tokenizer": tokenizer, "max_length": LONGEST}
        assert Divergence(net, TEXTS, **options)(other) == pytest.approx(
            Divergence(base, TEXTS, **options)(expected), rel=1e-4
        )
        assert lpjax.calibrate(net, TEXTS, **options).target == "embedding"


def test_several_labels_at_a_time_are_refused():
    headed = net_with_head("bert_base", "mnli")
    named = {**(headed.config_json or {}), "problem_type": "multi_label_classification"}
    net = dataclasses.replace(headed, config_json=named)
    tokenizer = make_tokenizer(net.config)
    for run in (Divergence, lpjax.calibrate):
        with pytest.raises(ValueError, match="several labels at a time"):
            run(net, TEXTS, tokenizer=tokenizer)


def test_what_is_refused():
    checkpoint = base_net("bert_base")
    tokenizer = make_tokenizer(checkpoint.config)
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        Divergence(checkpoint, TEXTS, tokenizer=tokenizer, batch_size=0)
    with pytest.raises(ValueError, match="`hidden` is -1; expected a finite number, 0 or more"):
        Divergence(checkpoint, TEXTS, tokenizer=tokenizer, hidden=-1)
    with pytest.raises(ValueError, match="`sentences` is empty"):
        Divergence(checkpoint, [], tokenizer=tokenizer)
