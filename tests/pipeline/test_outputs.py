"""Divergence of models against SciPy and against texts run one by one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, rel_entr, softmax

import lpjax
from lpjax.evaluation.divergence import Divergence
from lpjax.pipeline.outputs import Classes, Embedding, Labels, Regression, outputs_of
from lpjax.select import select_paths
from tests.helpers.goldens import NETS
from tests.helpers.nets import base_net, net_with_head
from tests.helpers.texts import LONGEST, TEXTS, make_tokenizer, one_at_a_time


@pytest.mark.parametrize(
    ("mean", "expected"), [(-1e-9, "0.0"), (-0.0, "0.0"), (0.5, "0.5"), (np.nan, "nan"), (np.inf, "inf")]
)
def test_rounding_makes_no_divergence_negative(mean: float, expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Divergence, "_mean", lambda self, params, agreement: mean)
    assert str(object.__new__(Divergence)({})) == expected


def test_divergences_are_those_of_scipy():
    rng = np.random.default_rng(0)
    small, dense = map(jnp.asarray, rng.normal(size=(2, 5, 3)).astype(np.float32))
    entropy = rel_entr(softmax(dense, axis=1), softmax(small, axis=1)).sum(axis=1)
    assert np.allclose(Classes(3).divergence(small, dense, {}), entropy, atol=1e-6)
    assert np.allclose(Regression(1).divergence(small[:, :1], dense[:, :1], {}), (small - dense)[:, 0] ** 2)
    assert np.allclose(Regression(3).divergence(small, dense, {}), np.sum((small - dense) ** 2, axis=1))
    yes, no = ((expit(x * dense), expit(x * small)) for x in (1, -1))
    assert np.allclose(Labels(3).divergence(small, dense, {}), (rel_entr(*yes) + rel_entr(*no)).sum(axis=1), atol=1e-6)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (small, dense))
    assert np.allclose(Embedding().divergence(a, b, {}), 1 - (a * b).sum(axis=1), atol=1e-6)


@pytest.mark.covering(0)
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
    for output, dense_output in zip(outputs(smaller), outputs(checkpoint.params), strict=True):
        if headed:
            logs = log_softmax(dense_output)
            expected.append(np.sum(np.exp(logs) * (logs - log_softmax(output))))
        else:
            expected.append(np.sum((output - dense_output) ** 2) / 2)
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
    dense_states, small_states = (
        [np.asarray(lpjax.encode(params, checkpoint.config, batch), np.float64)[0] for batch in batches]
        for params in (checkpoint.params, smaller)
    )
    if headed:
        last = checkpoint.config.model_type == "xlnet"
        dense_states, small_states = (
            [states[-1:] if last else states[:1] for states in net] for net in (dense_states, small_states)
        )
    shares = [np.sum((a - b) ** 2) / np.sum(a**2) for a, b in zip(dense_states, small_states, strict=True)]
    with_hidden = Divergence(checkpoint, TEXTS, **options, hidden=2.0)(smaller)
    assert with_hidden == pytest.approx(without + 2 * np.mean(shares), rel=1e-3)
    default = Divergence(checkpoint, TEXTS, **options)(smaller)
    assert default == pytest.approx(without + (np.mean(shares) if headed else 0), rel=1e-3, abs=1e-7)


@pytest.mark.covering(0)
@pytest.mark.parametrize("name", ["bert_base", "distilbert_base"])
def test_a_head_for_tokens_is_no_head(name):
    """Files of models that classify tokens have a classifier and nothing that would read the first token for it."""
    headed, base = net_with_head(name, "mnli"), base_net(name)
    assert outputs_of(headed) == Classes(3)
    tokens = {key: leaf for key, leaf in headed.params.items() if key != "pre_classifier"}
    tokens |= {key: {k: v for k, v in leaf.items() if k != "pooler"} for key, leaf in tokens.items() if key == "bert"}
    named = {**(headed.config_json or {}), "architectures": ["BertForTokenClassification"]}
    for net in (
        dataclasses.replace(headed, params=tokens, config_json=None),
        dataclasses.replace(headed, config_json=named),
    ):
        assert outputs_of(net) == Embedding()
        tokenizer = make_tokenizer(net.config)
        other = lpjax.compress(net.params, select="encoder", keep=0.5, solver="svd").params
        expected = lpjax.compress(base.params, select="encoder", keep=0.5, solver="svd").params
        options = {"tokenizer": tokenizer, "max_length": LONGEST}
        assert Divergence(net, TEXTS, **options)(other) == pytest.approx(
            Divergence(base, TEXTS, **options)(expected), rel=1e-4
        )
        assert lpjax.calibrate(net, TEXTS, **options).target == "embedding"


def several_labels(name: str, problem: str = "multi_label_classification"):
    """A model of three outputs that do not exclude each other."""
    net = net_with_head(name, "mnli")
    return dataclasses.replace(net, config_json={**(net.config_json or {}), "problem_type": problem})


def test_directions_are_gradients_of_the_likelihood():
    """Directions of given labels are gradients; drawn ones have the Fisher information p(1 − p)."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3)).astype(np.float32))
    labels = jnp.asarray([[1.0, 0.0, 1.0]])

    def cost(x):
        return -jnp.sum(labels * jax.nn.log_sigmoid(x) + (1 - labels) * jax.nn.log_sigmoid(-x))

    key = jax.random.key(0)
    assert np.allclose(Labels(3).direction(logits, {}, key, labels), jax.grad(cost)(logits), atol=1e-6)
    many = jnp.tile(logits, (20000, 1))
    drawn = np.asarray(Labels(3).direction(many, {}, key, None), np.float64)
    share = expit(np.asarray(logits, np.float64)[0])
    assert np.allclose(drawn.T @ drawn / len(drawn), np.diag(share * (1 - share)), atol=0.01)
    drawn = np.asarray(Classes(3).direction(many, {}, key, None), np.float64)
    share = softmax(np.asarray(logits, np.float64)[0])
    assert np.allclose(drawn.T @ drawn / len(drawn), np.diag(share) - np.outer(share, share), atol=0.01)


@pytest.mark.covering(0)
@pytest.mark.parametrize("name", NETS)
def test_several_labels_at_a_time(name):
    """Divergence text by text by its definition; Fisher information is that of the labels' likelihood."""
    net = several_labels(name)
    assert outputs_of(net) == Labels(3)
    options = {"tokenizer": make_tokenizer(net.config), "max_length": LONGEST}
    smaller = lpjax.compress(net.params, select="encoder", keep=0.5, solver="svd").params
    expected = []
    for batch in one_at_a_time(net, TEXTS):
        logits, dense_logits = (
            np.asarray(lpjax.classify(params, net.config, batch), float) for params in (smaller, net.params)
        )
        expected.append(sum(rel_entr(expit(x * dense_logits), expit(x * logits)).sum() for x in (1, -1)))
    assert Divergence(net, TEXTS, **options, hidden=0)(smaller) == pytest.approx(np.mean(expected), rel=1e-3)
    labels = np.random.default_rng(0).integers(0, 2, (len(TEXTS), 3))
    (path,) = select_paths(net.params, r"^(classifier(/out_proj)?|logits_proj)/kernel$")
    calibration = lpjax.calibrate(net, TEXTS, labels=labels, select=path, **options)
    assert calibration.target == "labels"
    of = [
        expit(np.asarray(lpjax.classify(net.params, net.config, batch), float)) - labels[i]
        for i, batch in enumerate(one_at_a_time(net, TEXTS))
    ]
    moment = np.mean([gradient.T @ gradient for gradient in of], axis=0)
    assert np.allclose(calibration.statistics[path].outputs, moment, rtol=1e-4, atol=1e-6)
    assert lpjax.calibrate(net, TEXTS, select=path, **options).target == "predictions"


def test_several_values_of_a_regression():
    net = several_labels("bert_base", "regression")
    assert outputs_of(net) == Regression(3)
    options = {"tokenizer": make_tokenizer(net.config), "max_length": LONGEST, "select": "^classifier/kernel$"}
    values = np.random.default_rng(0).normal(size=(len(TEXTS), 3))
    calibration = lpjax.calibrate(net, TEXTS, labels=values, **options)
    of = [
        2 * (np.asarray(lpjax.classify(net.params, net.config, batch), float) - values[i])
        for i, batch in enumerate(one_at_a_time(net, TEXTS))
    ]
    moment = np.mean([gradient.T @ gradient for gradient in of], axis=0)
    assert np.allclose(calibration.statistics["classifier/kernel"].outputs, moment, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(len(TEXTS)), r"`labels` has shape \(9,\); expected \(9, 3\), a row per text, a column per label"),
        (np.full((len(TEXTS), 3), 2), "`labels` holds 2; expected 0 and 1"),
        ([["yes"] * 3] * len(TEXTS), "`labels` holds a value that is not a number"),
    ],
)
def test_labels_that_are_no_matrix_of_0_and_1_are_refused(labels, message):
    net = several_labels("bert_base")
    with pytest.raises(ValueError, match=message):
        lpjax.calibrate(net, TEXTS, labels=labels, tokenizer=make_tokenizer(net.config))


def test_what_is_refused():
    checkpoint = base_net("bert_base")
    tokenizer = make_tokenizer(checkpoint.config)
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        Divergence(checkpoint, TEXTS, tokenizer=tokenizer, batch_size=0)
    with pytest.raises(ValueError, match=r"`hidden` is -1\.0; expected a number, 0 or more"):
        Divergence(checkpoint, TEXTS, tokenizer=tokenizer, hidden=-1)
    with pytest.raises(ValueError, match="`sentences` is empty"):
        Divergence(checkpoint, [], tokenizer=tokenizer)
