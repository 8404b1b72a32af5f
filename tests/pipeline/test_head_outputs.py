"""Heads of tokens, answers and masked words: divergence and Fisher information by their definitions, text by text."""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

import lpjax
from lpjax import _tree
from lpjax.checkpoint import Checkpoint
from lpjax.data.batching import by_length, collate, tokenize
from lpjax.evaluation.divergence import Divergence
from lpjax.models.taps import TappedWeight, Taps
from lpjax.pipeline.outputs import Embedding, Labels, Spans, TokenClasses, Words, outputs_of
from lpjax.weighting._calibrate import _with_decoder
from lpjax.weighting.statistics import Statistics
from lpjax.weights.low_rank import LowRank
from tests.helpers.goldens import load_golden
from tests.helpers.nets import net_with_head
from tests.helpers.texts import LONGEST, TEXTS, make_tokenizer, one_at_a_time, some_texts


def net_of(name: str) -> Checkpoint:
    return dataclasses.replace(load_golden(f"heads/{name}").checkpoint, source=None)


def options_of(net: Checkpoint) -> dict:
    return {"tokenizer": make_tokenizer(net.config), "max_length": LONGEST}


def smaller(net: Checkpoint):
    return lpjax.compress(net.params, select="encoder", rank=2, solver="svd").params


def logits_of(params, net: Checkpoint, batch) -> np.ndarray:
    run = lpjax.fill_mask if net.config.head == "words" else lpjax.classify
    return np.asarray(run(params, net.config, batch), np.float64)


def divergence_of(logits: np.ndarray, dense_logits: np.ndarray) -> np.ndarray:
    return rel_entr(softmax(dense_logits, axis=-1), softmax(logits, axis=-1)).sum(axis=-1)


@pytest.mark.parametrize("name", ["bert_tokens", "xlnet_tokens"])
def test_classes_of_tokens_but_special_ones(name):
    net = net_of(name)
    assert outputs_of(net) == TokenClasses(3)
    small, expected, same = smaller(net), [], []
    for batch in one_at_a_time(net, TEXTS):
        text = slice(None, -2) if name.startswith("xlnet") else slice(1, -1)
        logits, dense_logits = (logits_of(params, net, batch)[0, text] for params in (small, net.params))
        expected.append(np.mean(divergence_of(logits, dense_logits)) if len(logits) else 0)
        same.append(np.mean(logits.argmax(-1) == dense_logits.argmax(-1)) if len(logits) else 1)
    measure = Divergence(net, TEXTS, **options_of(net), batch_size=4, hidden=0)
    assert measure(small) == pytest.approx(np.mean(expected), rel=1e-3)
    assert measure.agreement(small) == pytest.approx(np.mean(same), abs=1e-6)
    assert measure(net.params) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["roberta_spans", "xlnet_spans"])
def test_the_first_and_the_last_token_of_an_answer(name):
    net = net_of(name)
    assert outputs_of(net) == Spans()
    small, expected, same = smaller(net), [], []
    for batch in one_at_a_time(net, TEXTS):
        logits, dense_logits = (logits_of(params, net, batch)[0].T for params in (small, net.params))
        expected.append(divergence_of(logits, dense_logits).sum())
        same.append(np.all(logits.argmax(-1) == dense_logits.argmax(-1)))
    measure = Divergence(net, TEXTS, **options_of(net), batch_size=4, hidden=0)
    assert measure(small) == pytest.approx(np.mean(expected), rel=1e-3)
    assert measure.agreement(small) == pytest.approx(np.mean(same), abs=1e-6)


def masked(net: Checkpoint, texts: list[str], seed: int = 0):
    """The batch that all texts make, as `Words` masks it."""
    tokens = tokenize(make_tokenizer(net.config), net.config, texts, max_length=LONGEST)
    (batch,) = by_length(tokens, len(texts))
    inputs = collate(tokens, batch, len(texts))
    return tokens, inputs, Words().prepare(inputs, tokens, np.random.default_rng(seed))


def model_inputs(inputs) -> dict:
    return {key: inputs[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in inputs}


@pytest.mark.parametrize("name", ["bert_words", "roberta_words"])
def test_words_behind_masks(name):
    net = net_of(name)
    assert outputs_of(net) == Words()
    small = smaller(net)
    _, _, inputs = masked(net, TEXTS)
    logits, dense_logits = (logits_of(params, net, model_inputs(inputs)) for params in (small, net.params))
    per_text, same = [], []
    for row in range(len(TEXTS)):
        places = inputs["places"][row][inputs["masked"][row] > 0]
        per_text.append(np.mean(divergence_of(logits[row, places], dense_logits[row, places])) if len(places) else 0)
        same.append(
            np.mean(logits[row, places].argmax(-1) == dense_logits[row, places].argmax(-1)) if len(places) else 1
        )
    measure = Divergence(net, TEXTS, **options_of(net), batch_size=len(TEXTS), hidden=0)
    assert measure(small) == pytest.approx(np.mean(per_text), rel=1e-3)
    assert measure.agreement(small) == pytest.approx(np.mean(same), abs=1e-6)
    states = [np.asarray(lpjax.encode(p, net.config, model_inputs(inputs)), np.float64) for p in (small, net.params)]
    picked = [
        np.take_along_axis(hidden, inputs["places"][..., None], 1) * inputs["masked"][..., None] for hidden in states
    ]
    shares = np.sum((picked[0] - picked[1]) ** 2, axis=(1, 2)) / np.maximum(np.sum(picked[1] ** 2, axis=(1, 2)), 1e-6)
    default = Divergence(net, TEXTS, **options_of(net), batch_size=len(TEXTS))(small)
    assert default == pytest.approx(np.mean(per_text) + np.mean(shares), rel=1e-3)


def test_masks_are_a_share_of_the_texts_own_tokens():
    net = net_of("bert_words")
    tokenizer = make_tokenizer(net.config)
    tokens, plain, inputs = masked(net, ["a b c d e f g", "a", "", "h i"])
    counts = inputs["masked"].sum(axis=1)
    assert sorted(counts) == [0, 1, 1, 1]
    changed = inputs["input_ids"] != plain["input_ids"]
    assert np.array_equal(changed.sum(axis=1), counts)
    assert (inputs["input_ids"][changed] == tokenizer.mask_token_id).all()
    assert not np.isin(plain["input_ids"][changed], tokenizer.all_special_ids).any()
    many = dataclasses.replace(tokens, vocab_size=1 << 24)  # of a huge vocabulary few: their logits fit
    assert Words().prepare(plain, many, np.random.default_rng(0))["places"].shape == (4, 1)
    with pytest.raises(ValueError, match="`tokenizer` has no mask token"):
        Words().prepare(plain, dataclasses.replace(tokens, mask=None), np.random.default_rng(0))


def expected_moment(net: Checkpoint, text: str) -> np.ndarray:
    """E u uᵀ of the outputs of one text, summed over its tokens: diag(p) − ppᵀ."""
    (batch,) = one_at_a_time(net, [text])
    rows = softmax(logits_of(net.params, net, batch)[0], axis=-1)[1:-1]
    return np.sum([np.diag(p) - np.outer(p, p) for p in rows], axis=0)


def test_directions_of_tokens_have_their_fisher_information():
    """For the head's kernel, moments of gradients are those of u over the text's own tokens."""
    net = net_of("bert_tokens")
    text = "a b c d e"
    calibration = lpjax.calibrate(net, [text] * 2048, select="^classifier/kernel$", batch_size=2048, **options_of(net))
    statistics = calibration.statistics["classifier/kernel"]
    assert calibration.target == "predictions"
    assert statistics.tokens == 7 * 2048
    got = np.asarray(statistics.outputs, np.float64) * 7
    expected = expected_moment(net, text)
    assert np.linalg.norm(got - expected) < 0.05 * np.linalg.norm(expected)


def test_directions_of_spans_have_their_fisher_information():
    net = net_of("bert_spans")
    calibration = lpjax.calibrate(
        net, ["a b c d e"] * 2048, select="^qa_outputs/kernel$", batch_size=2048, **options_of(net)
    )
    (batch,) = one_at_a_time(net, ["a b c d e"])
    shares = softmax(logits_of(net.params, net, batch)[0], axis=0)  # over the tokens
    expected = np.sum(shares * (1 - shares), axis=0)
    got = np.diagonal(np.asarray(calibration.statistics["qa_outputs/kernel"].outputs, np.float64)) * 7
    assert np.allclose(got, expected, rtol=0.05)


def test_directions_of_words_have_their_fisher_information():
    """For the inner layer of the head, moments are over gradients at the masks alone."""
    net, texts = net_of("bert_untied_words"), ["a b c d e f"] * 1024
    path = "cls/predictions/transform/dense/kernel"
    statistics = lpjax.calibrate(net, texts, select=f"^{path}$", batch_size=1024, **options_of(net)).statistics[path]
    _, _, inputs = masked(net, texts)
    assert statistics.tokens == inputs["masked"].sum() == 1024
    hidden = np.asarray(lpjax.encode(net.params, net.config, model_inputs(inputs)), np.float64)
    x = np.take_along_axis(hidden, inputs["places"][..., None], 1)[:, 0]
    assert np.allclose(statistics.inputs, x.T @ x / len(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_table_that_is_a_decoder_tells_both_uses(rank):
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(5, 2)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    weight = jnp.asarray(left @ right) if rank is None else LowRank(jnp.asarray(left), jnp.asarray(right))
    x, u = (jnp.asarray(rng.normal(size=(2, 4, n)).astype(np.float32)) for n in (3, 5))
    counted = jnp.asarray([[1, 1, 0, 1], [1, 0, 0, 0]], jnp.float32)
    taps = Taps(places=jnp.zeros(()), decoder=jnp.zeros((3, 3)), decoded=jnp.zeros(5), decoded_gradients=jnp.zeros(5))

    def output(taps, x):
        return jnp.sum(u * TappedWeight(weight, taps, jnp.ones((2, 9)), counted).decode(x))

    assert np.allclose(TappedWeight(weight, taps, jnp.ones((2, 9)), counted).decode(x), x @ (left @ right).T, atol=1e-5)
    sums, by_x = jax.grad(output, argnums=(0, 1))(taps, x)
    assert np.allclose(by_x, u @ (left @ right), atol=1e-5)
    rows, us = (np.asarray(array, np.float64)[np.asarray(counted) > 0] for array in (x, u))
    assert sums.places == 4
    assert np.allclose(sums.decoder, rows.T @ rows, atol=1e-5)
    assert np.allclose(sums.decoded, np.sum(us**2, axis=0), atol=1e-5)
    squares = np.sum((us[:, :, None] * rows[:, None]) ** 2, axis=(0, 2))
    assert np.allclose(sums.decoded_gradients, squares, rtol=1e-5)


def test_both_uses_of_a_table_are_one_product_of_the_same_partial_traces():
    rng = np.random.default_rng(0)
    counts, squares = rng.integers(0, 4, 5).astype(np.float32), rng.random(5).astype(np.float32)
    g, x = (rng.normal(size=(n, 3)) for n in (int(counts.sum()), 7))
    before = Statistics(int(counts.sum()), outputs=(g.T @ g / len(g)).astype(np.float32), counts=counts)
    sums = Taps(
        counts=counts, outputs=g.T @ g, gradients=np.ones(5), places=np.float32(7), decoder=x.T @ x, decoded=squares,
        decoded_gradients=np.full(5, 2.0),
    )  # fmt: skip
    statistics = _with_decoder(before, sums)
    whole = np.kron(np.diag(counts), g.T @ g / len(g)) + np.kron(np.diag(squares), x.T @ x / 7)
    product = np.kron(np.diag(np.asarray(statistics.counts)), np.asarray(statistics.outputs))
    blocks, expected = (matrix.reshape(5, 3, 5, 3) for matrix in (product, whole))
    assert np.allclose(np.einsum("iaja->ij", blocks), np.einsum("iaja->ij", expected), rtol=1e-4)
    assert np.allclose(np.einsum("iaib->ab", blocks), np.einsum("iaib->ab", expected), rtol=1e-4)
    assert np.trace(statistics.outputs) == pytest.approx(
        np.trace(before.outputs), rel=1e-5
    )  # so counts stay those of tokens
    assert np.allclose(statistics.gradients, 3)


def test_calibration_weights_the_words_that_a_decoder_predicts(monkeypatch):
    """Words that no text has weigh by what their logits do, so that the tied table is compressed for both its uses."""
    net = net_of("roberta_words")
    options = options_of(net)
    texts = [text.replace("v", "u") for text in some_texts(64, 7)]
    calibration = lpjax.calibrate(net, texts, **options)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["lpjax.weighting._calibrate"], "_with_decoder", lambda statistics, sums: statistics)
        read = lpjax.calibrate(net, texts, **options)
    (path,) = lpjax.select_paths(net.params, "embeddings")
    counts, plain = (np.asarray(result.statistics[path].counts) for result in (calibration, read))
    assert np.all(counts >= plain - 1e-4)
    assert plain[-1] == 0 < counts[-1]
    measure = Divergence(net, some_texts(32, 7, seed=1), **options, hidden=0)

    def loss(**options):
        return measure(lpjax.compress(net.params, select=path, rank=3, solver="svd", sparse_share=0, **options).params)

    assert loss(statistics=calibration) < min(loss(), loss(statistics=read)) / 10


def several_labels() -> Checkpoint:
    """A model whose labels do not exclude each other."""
    net = net_with_head("bert_base", "mnli")
    return dataclasses.replace(
        net, config_json={**(net.config_json or {}), "problem_type": "multi_label_classification"}
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distilbert_spans", "bert_words", "several labels"])
def test_recovery_and_measured_budgets(name):
    net = net_of(name) if name != "several labels" else several_labels()
    assert name != "several labels" or isinstance(outputs_of(net), Labels)
    options = {"tokenizer": make_tokenizer(net.config)}
    texts = TEXTS * 3
    measure = Divergence(net, texts, **options, max_length=LONGEST)
    plan = lpjax.allocate(net.params, budget=0.9, select="encoder", measure=measure, levels=(0.5,))
    small = dataclasses.replace(net, params=lpjax.compress(net.params, plan=plan).params)
    settings = lpjax.Recovery(epochs=3, learning_rate=1e-2, max_length=LONGEST, checks=1)
    recovered = lpjax.recover(small, net, texts, settings=settings, **options)
    assert recovered.best["divergence"] < recovered.curve[0]["divergence"]


def test_decoders_of_many_words_are_refused_before_any_work():
    net = net_of("bert_untied_words")
    params = _tree.replace_leaves(
        net.params, {"cls/predictions/decoder/kernel": np.broadcast_to(np.float32(0), (6, 30522))}
    )
    with pytest.raises(ValueError, match=r"names cls/predictions/decoder/kernel, whose 30522 outputs .* 3.7 GB"):
        lpjax.calibrate(dataclasses.replace(net, params=params), TEXTS, select="decoder/kernel", **options_of(net))


def test_a_sentence_encoder_with_a_word_head_is_one_all_the_same(tmp_path):
    net = net_of("bert_words")
    kinds = {"": "sentence_transformers.models.Transformer", "1_Pooling": "sentence_transformers.models.Pooling"}
    (tmp_path / "modules.json").write_text(json.dumps([{"path": path, "type": kind} for path, kind in kinds.items()]))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 8, "pooling_mode": "cls"}')
    outputs = outputs_of(dataclasses.replace(net, source=tmp_path))
    assert isinstance(outputs, Embedding)
    assert outputs.stages is not None


def test_labels_and_heads_without_their_weights():
    net = net_of("bert_tokens")
    with pytest.raises(ValueError, match="no head for classification of texts: its outputs are classes of tokens"):
        lpjax.calibrate(net, TEXTS, labels=[0] * len(TEXTS), **options_of(net))
    words = net_of("roberta_words")
    base = dataclasses.replace(words, params={"roberta": words.params["roberta"]})
    assert outputs_of(base) == Embedding()  # files of encoders often name the class that they were trained as
    spans = dataclasses.replace(net.config, head="spans")
    three = {**net.params, "qa_outputs": net.params["classifier"]}
    with pytest.raises(ValueError, match="`qa_outputs` has 3 outputs; expected 2"):
        outputs_of(dataclasses.replace(net, params=three, config=spans))
