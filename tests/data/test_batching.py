"""Batches: every text once and in its place, padded as its model wants it, in few shapes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from lpjax._mesh import data_mesh
from lpjax.data.batching import (
    LENGTHS,
    Batch,
    Tokens,
    by_length,
    check_known,
    collate,
    padded_length,
    round_up,
    shuffled,
    tokenize,
)
from lpjax.models import ModelConfig
from tests.helpers.goldens import NETS, load_golden
from tests.helpers.texts import FIRST_ID, WORDS, make_tokenizer, some_texts


def with_positions(name: str, positions: int) -> ModelConfig:
    """The config of a golden model, with more positions."""
    config = load_golden(name).checkpoint.config
    limited = "max_position_embeddings" in {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **({"max_position_embeddings": positions} if limited else {}))


def plain_tokens(lengths: list[int] | np.ndarray, max_length: int = 512) -> Tokens:
    """Texts of the given lengths, each of its own number over and over."""
    return Tokens([np.full(n, i + 1, np.int32) for i, n in enumerate(lengths)], None, 0, False, max_length)


@pytest.fixture(params=NETS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return with_positions(request.param, 70)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 32, 1000])
@pytest.mark.parametrize("way", ["by_length", "shuffled"])
def test_every_text_is_in_one_batch_that_it_fits_in(way, batch_size):
    lengths = np.random.default_rng(3).integers(1, 513, size=101)
    tokens = plain_tokens(lengths)
    assert len(tokens) == 101
    rng = np.random.default_rng(0)
    batches = list(by_length(tokens, batch_size)) if way == "by_length" else shuffled(tokens, batch_size, rng, span=3)
    assert sorted(np.concatenate([batch.rows for batch in batches]).tolist()) == list(range(101))
    for batch in batches:
        assert 1 <= len(batch.rows) <= batch_size
        assert batch.length == padded_length(int(lengths[batch.rows].max()), 512)
        inputs = collate(tokens, batch, batch_size)
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (batch_size, batch.length)
        assert inputs["attention_mask"].sum(axis=1)[: len(batch.rows)].tolist() == lengths[batch.rows].tolist()
        assert not inputs["attention_mask"][len(batch.rows) :].any()
    assert sorted(len(batch.rows) for batch in batches)[1:] == [batch_size] * (len(batches) - 1)
    if way == "by_length":
        shortest = [lengths[batch.rows].min() for batch in batches]
        assert shortest == sorted(shortest)


def test_shapes_are_few():
    for limit in (3, 9, 16, 40, 128, 512):
        lengths = np.arange(1, limit + 1)
        tokens = plain_tokens(lengths, limit)
        rng = np.random.default_rng(0)
        padded = {b.length for size in (1, 3, 32) for b in (*by_length(tokens, size), *shuffled(tokens, size, rng))}
        assert padded <= {*(length for length in LENGTHS if length < limit), limit}
        assert len(padded) <= len(LENGTHS)
    assert padded_length(700, 1024) == 1024
    assert padded_length(17, 512) == 24


def test_rows_that_are_lacking_are_short_ones():
    batches = [(batch.rows.tolist(), batch.length) for batch in by_length(plain_tokens([60, 4, 61, 5, 6, 63]), 4)]
    assert batches == [([1, 3], 8), ([4, 0, 2, 5], 64)]


def test_shuffling_follows_from_the_seed():
    tokens = plain_tokens(np.random.default_rng(3).integers(1, 100, size=200))

    def order(*seed: int) -> list[int]:
        return np.concatenate([b.rows for b in shuffled(tokens, 8, np.random.default_rng(seed))]).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2) != order(1, 1)


@pytest.mark.parametrize("pairs", [False, True])
def test_tokens_are_what_transformers_makes(config, pairs):
    tokenizer = make_tokenizer(config)
    first, second = some_texts(9), some_texts(9, seed=1) if pairs else None
    tokens = tokenize(tokenizer, config, first, second, max_length=33)
    batch = Batch(np.array([4, 0, 8, 2]), 33)
    inputs = collate(tokens, batch, 5)
    texts = [[part[i] for i in batch.rows] for part in ((first,) if second is None else (first, second))]
    expected = tokenizer(
        *texts, truncation=True, max_length=33, padding="max_length", return_token_type_ids=True, return_tensors="np"
    )
    for name in ("input_ids", "attention_mask"):
        assert np.array_equal(inputs[name][:4], expected[name])
    assert (inputs["input_ids"][4] == tokenizer.pad_token_id).all()
    assert tokens.lengths[batch.rows].tolist() == expected["attention_mask"].sum(axis=1).tolist()
    assert tokens.left == (config.model_type == "xlnet")
    # One text has one segment, but XLNet's last token always has its own; only pairs have more, where the model does.
    kinds = {"bert": [False, True], "albert": [False, True], "electra": [False, True], "xlnet": [True, True]}
    assert ("token_type_ids" in inputs) == kinds.get(config.model_type, [False, False])[pairs]
    if "token_type_ids" in inputs:
        seen = expected["attention_mask"] == 1
        assert np.array_equal(inputs["token_type_ids"][:4][seen], expected["token_type_ids"][seen])
        assert (inputs["token_type_ids"][:4][~seen] == 0).all()


def test_roberta_pads_with_the_id_of_its_config():
    """For its positions are counted by that; the tokenizer may say what it likes."""
    config = with_positions("roberta_classifier", 70)
    assert getattr(config, "pad_token_id") == 4  # noqa: B009, not of every model
    tokenizer = make_tokenizer(config)
    tokenizer.pad_token = "<unk>"
    assert tokenizer.pad_token_id != 4
    tokens = tokenize(tokenizer, config, ["a b", "c"])
    ids = collate(tokens, Batch(np.array([1, 0]), 6), 3)["input_ids"]
    assert ids.tolist() == [[0, 9, 1, 4, 4, 4], [0, 7, 8, 1, 4, 4], [4] * 6]


def test_a_limit_cuts_the_longer_of_two_texts(config):
    tokenizer = make_tokenizer(config)
    long, short = " ".join(WORDS), "a b"
    tokens = tokenize(tokenizer, config, [long, short, long], [short, long, long], max_length=15)
    assert tokens.lengths.tolist() == [15, 15, 15]
    special = tokenizer.num_special_tokens_to_add(pair=True)
    for row in tokens.ids[:2]:
        letters = row[row >= FIRST_ID]
        assert len(letters) == 15 - special
        assert np.sum(letters == FIRST_ID) == 2  # the "a" of both: the short one is whole
    assert tokenize(tokenizer, config, [long], max_length=15).lengths.tolist() == [15]


def test_the_limit_is_what_the_net_has():
    bert = with_positions("bert_base", 70)
    assert tokenize(make_tokenizer(bert), bert, ["a"]).max_length == 70
    roberta = with_positions("roberta_base", 70)
    assert tokenize(make_tokenizer(roberta), roberta, ["a"]).max_length == 68
    xlnet = with_positions("xlnet_base", 70)
    assert tokenize(make_tokenizer(xlnet), xlnet, ["a"]).max_length == LENGTHS[-1]
    assert tokenize(make_tokenizer(xlnet), xlnet, ["a " * 900], max_length=1000).lengths.tolist() == [902]


@pytest.mark.parametrize(
    ("first", "second", "max_length", "words"),
    [
        ([], None, None, "`sentences` is empty"),
        ("a b", None, None, "expected a list of strings"),
        (["a", None], None, None, "holds something other than strings"),
        (["a"], [3], None, "holds something other than strings"),
        (["a", "b"], ["c"], None, "there are 2 first texts and 1 second ones"),
        (["a"], None, 2, "`max_length` is 2; expected 3 to 70"),
        (["a"], None, 71, "`max_length` is 71; expected 3 to 70"),
    ],
)
def test_misuse_is_told(first, second, max_length, words):
    config = with_positions("bert_base", 70)
    with pytest.raises(ValueError) as caught:
        tokenize(make_tokenizer(config), config, first, second, max_length=max_length)
    assert words in str(caught.value)


def test_a_limit_without_room_is_told():
    config = with_positions("roberta_base", 70)
    with pytest.raises(ValueError, match="10 to 10 tokens of a text, but `max_length` is 3"):
        tokenize(make_tokenizer(config), config, ["a b c"], ["d e f"], max_length=3)
    with pytest.raises(ValueError, match="`max_length` is 2; expected 3 or more"):
        tokenize(make_tokenizer(config), with_positions("xlnet_base", 0), ["a"], max_length=2)


def test_tokens_of_another_net_are_told():
    config = with_positions("bert_base", 70)
    with pytest.raises(ValueError, match="ids up to 28, but the model has 28, from 0"):
        tokenize(make_tokenizer(config), dataclasses.replace(config, vocab_size=28), ["a v"])
    xlnet = make_tokenizer(with_positions("xlnet_base", 0))
    with pytest.raises(ValueError, match="segments up to 2, but the model has 2, from 0"):
        tokenize(xlnet, config, ["a"], ["b"])
    check_known(config, [np.array([28])], [np.array([1])])
    check_known(config, [], None)


@pytest.mark.parametrize("name", ["bert_base", "xlnet_both_directions"])
def test_rows_are_spread_evenly(name):
    config = load_golden(name).checkpoint.config
    unit = 2 if name == "xlnet_both_directions" else 1
    mesh = data_mesh(jax.devices()[:1])
    assert [round_up(n, mesh, config) for n in (1, 2, 5)] == [unit, 2, 5 + (unit - 1)]
