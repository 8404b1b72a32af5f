"""Logits against one text at a time, on one device and on eight; scores that do not depend on the order of labels."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import lpjax
from lpjax.checkpoint import Checkpoint
from lpjax.glue import TASKS, evaluate
from lpjax.glue.data import Examples
from lpjax.glue.evaluate import Prepared, evaluate_task, predict, prepare, to_predictions
from lpjax.models.heads import with_head
from tests.helpers import on_devices, write_first
from tests.helpers.examples import make_examples
from tests.helpers.goldens import NETS, load_golden
from tests.helpers.nets import base_net, net_with_head
from tests.helpers.texts import WORDS, make_tokenizer, some_texts, texts_of


def one_by_one(checkpoint: Checkpoint, tokenizer, first: list[str], second: list[str] | None = None) -> np.ndarray:
    """Logits of each text alone, without padding."""
    rows = []
    segments = checkpoint.config.model_type == "xlnet" or (second and checkpoint.config.num_token_types != 1)
    for i, text in enumerate(first):
        encoded = tokenizer(text, *([second[i]] if second else []), return_token_type_ids=True)
        names = ["input_ids", *(["token_type_ids"] if segments else [])]
        batch = {name: np.asarray([encoded[name]], np.int32) for name in names}
        rows.append(np.asarray(lpjax.classify(checkpoint.params, checkpoint.config, batch)[0]))
    return np.stack(rows)


@pytest.mark.two_models
@pytest.mark.parametrize("rank", [None, 3], ids=["dense", "factored"])
@pytest.mark.parametrize("name", NETS)
def test_logits_are_those_of_a_text_alone(name, rank):
    checkpoint = net_with_head(name, "mnli", rank=rank)
    tokenizer = make_tokenizer(checkpoint.config)
    pairs = rank is None
    first, second = texts_of(1, 2, 2), texts_of(3, 1, 1, seed=1) if pairs else None
    tokens = prepare(checkpoint, make_examples("mnli", first, second), tokenizer=tokenizer).tokens
    predicted = predict(checkpoint.params, checkpoint.config, tokens, batch_size=4)
    expected = one_by_one(checkpoint, tokenizer, first, second)
    assert predicted.values.dtype == np.float32
    assert np.abs(predicted.values - expected).max() < 1e-5 * max(1, np.abs(expected).max())
    assert np.ptp(expected, axis=0).max() > 0.05  # else the test would not tell much
    assert predicted.tokens == sum(map(len, tokens.ids))
    if pairs:
        rough = predict(checkpoint.params, checkpoint.config, tokens, batch_size=4, dtype="bfloat16").values
        assert 0 < np.abs(rough - predicted.values).max() < 0.1 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_do_not_matter(batch_size):
    checkpoint = net_with_head("bert_base", "sst2")
    tokenizer = make_tokenizer(checkpoint.config)
    first = texts_of(0, 3, 7, n=13)
    tokens = prepare(checkpoint, make_examples("sst2", first), tokenizer=tokenizer).tokens
    calls = []
    predicted = predict(
        checkpoint.params, checkpoint.config, tokens, batch_size=batch_size, progress=lambda *at: calls.append(at)
    )
    assert np.abs(predicted.values - one_by_one(checkpoint, tokenizer, first)).max() < 1e-5
    first_size = 13 % batch_size or batch_size
    assert calls == [(done, 13) for done in range(first_size, 14, batch_size)]
    compiled = getattr(evaluate._logits, "_cache_size")  # noqa: B009, not in jax's stubs
    before = compiled()
    again = predict(checkpoint.params, checkpoint.config, tokens, batch_size=batch_size)
    assert compiled() == before
    assert np.array_equal(again.values, predicted.values)


def test_long_texts_are_cut_off_at_what_the_net_has():
    """By default at 128 tokens or the positions; the logits are those of what is left."""
    checkpoint = net_with_head("bert_base", "mnli")
    tokenizer = make_tokenizer(checkpoint.config)
    long, short = " ".join(WORDS), "a b"
    tokens = prepare(checkpoint, make_examples("mnli", [long] * 2, [short] * 2), tokenizer=tokenizer).tokens
    assert tokens.lengths.tolist() == [9, 9]
    logits = predict(checkpoint.params, checkpoint.config, tokens).values
    expected = one_by_one(checkpoint, tokenizer, [" ".join(WORDS[:4])] * 2, [short] * 2)
    assert np.abs(logits - expected).max() < 1e-5
    xlnet = net_with_head("xlnet_base", "sst2")
    examples = make_examples("sst2", [" ".join(WORDS * 10)])
    tokenizer = make_tokenizer(xlnet.config)
    assert prepare(xlnet, examples, tokenizer=tokenizer).tokens.lengths.tolist() == [128]
    assert prepare(xlnet, examples, tokenizer=tokenizer, max_length=9).tokens.lengths.tolist() == [9]


def test_both_directions_get_an_even_number_of_rows():
    golden = load_golden("xlnet_both_directions").checkpoint
    params, _ = with_head(golden.params, golden.config, 2)
    tokens = prepare(golden, make_examples("sst2", texts_of(2, n=3)), tokenizer=make_tokenizer(golden.config)).tokens
    logits = predict(params, golden.config, tokens, batch_size=3).values
    assert logits.shape == (3, 2)
    assert np.isfinite(logits).all()


def test_nothing_is_run_that_does_not_fit(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("was run")

    for name in ("predict", "prepare", "tokenize"):
        monkeypatch.setattr(evaluate, name, fail)
    checkpoint = net_with_head("bert_base", "sst2")
    examples = make_examples("sst2", ["a", "b"])

    def refused(words: str, checkpoint: Checkpoint = checkpoint, examples: Examples = examples) -> None:
        with pytest.raises(ValueError) as caught:
            evaluate_task(checkpoint, examples)
        assert words in str(caught.value)

    refused("no head for classification", checkpoint=base_net("bert_base"))
    names = {"0": "cat", "1": "dog"}
    data = {**(checkpoint.config_json or {}), "id2label": names}
    refused("expected the labels of SST-2", checkpoint=dataclasses.replace(checkpoint, config_json=data))
    refused("expected 3 for MNLI", examples=make_examples("mnli", ["a"], ["b"]))
    regression = net_with_head("bert_base", "stsb")
    refused("expected at least 2", regression, make_examples("stsb", ["a"], ["b"]))
    refused("expected different scores", regression, make_examples("stsb", ["a", "b"], ["b", "c"], [1, 1]))


def test_misuse_is_told():
    checkpoint = net_with_head("bert_base", "sst2")
    tokenizer = make_tokenizer(checkpoint.config)
    examples = make_examples("sst2", ["a v", "b"])
    with pytest.raises(ValueError, match="pass a tokenizer"):
        evaluate_task(checkpoint, examples)
    with pytest.raises(ValueError, match="`max_length` is 10; expected 3 to 9"):
        evaluate_task(checkpoint, examples, tokenizer=tokenizer, max_length=10)
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        evaluate_task(checkpoint, examples, tokenizer=tokenizer, batch_size=0)
    prepared = prepare(checkpoint, examples, tokenizer=tokenizer)
    fewer = dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, vocab_size=28))
    with pytest.raises(ValueError, match="ids up to 28, but the model has 28"):
        evaluate_task(fewer, prepared)
    with pytest.raises(ValueError, match="NaN or infinite"):
        to_predictions(np.array([[0, np.nan]]), examples, None)


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_scores_are_those_of_the_predictions(task):
    checkpoint = net_with_head("distilbert_base", task)
    tokenizer = make_tokenizer(checkpoint.config)
    first, second = texts_of(1, 2, n=30), texts_of(2, n=30, seed=1) if task == "stsb" else None
    examples = make_examples(task, first, second)
    prepared = prepare(checkpoint, examples, tokenizer=tokenizer)
    result = evaluate_task(checkpoint, prepared)
    logits = predict(checkpoint.params, checkpoint.config, prepared.tokens).values
    if task == "sst2":
        assert result.metrics == {"accuracy": np.mean(logits.argmax(axis=1) == examples.labels)}
    else:
        assert result.metrics["pearson"] == pytest.approx(np.corrcoef(logits[:, 0], examples.labels)[0, 1], abs=1e-6)
        assert np.array_equal(to_predictions(logits, examples, None), logits[:, 0])
    assert (result.task, result.split, result.rows, result.complete) == (task, "toy", 30, False)
    assert result.tokens_per_second > 0
    assert result.seconds > 0
    again = evaluate_task(checkpoint, examples, tokenizer=tokenizer, batch_size=32)
    assert again.metrics == result.metrics


def test_the_order_of_labels_does_not_matter():
    """Outputs and their names are permuted together: the score stays, as models on the hub need it."""
    checkpoint = net_with_head("roberta_base", "mnli")
    task, head = TASKS["mnli"], checkpoint.params["classifier"]
    examples = make_examples("mnli", texts_of(1, n=40), texts_of(2, n=40, seed=1))
    prepared = prepare(checkpoint, examples, tokenizer=make_tokenizer(checkpoint.config))
    logits = predict(checkpoint.params, checkpoint.config, prepared.tokens).values
    even = -logits.mean(axis=0)  # a bias that leaves no label out
    scores = {}
    for order in itertools.permutations(range(3)):
        columns = {"kernel": head["out_proj"]["kernel"][:, order], "bias": even[list(order)]}
        params = checkpoint.params | {"classifier": head | {"out_proj": columns}}
        names = {str(i): task.labels[number].upper() for i, number in enumerate(order)}
        for named in ({"id2label": names}, {"label2id": {name: int(i) for i, name in names.items()}}):
            changed = dataclasses.replace(checkpoint, params=params, config_json=named)
            scores[order, *named] = evaluate_task(changed, prepared).metrics["accuracy"]
    guesses = (logits + even).argmax(axis=1)
    assert set(guesses) == {0, 1, 2}
    assert set(scores.values()) == {float(np.mean(guesses == examples.labels))}


def test_a_split_is_prepared_once_for_many_nets():
    dense, small = net_with_head("bert_base", "sst2"), net_with_head("bert_base", "sst2", rank=2)
    prepared = prepare(dense, make_examples("sst2", texts_of(1, 4)), tokenizer=make_tokenizer(dense.config))
    assert isinstance(prepared, Prepared)
    results = [evaluate_task(net, prepared) for net in (dense, small)]
    assert all(result.rows == 10 for result in results)


def logits_of_all_nets(target: str) -> None:
    """Write logits of the models, in batches of a size that eight does not divide, and how many devices there are."""
    arrays = {"devices": np.array(jax.device_count())}
    for net, batch_size in zip(NETS, (3, 12, 1, 20, 5, 8, 7, 9), strict=True):
        checkpoint = net_with_head(net, "mnli", rank=3)
        first, second = some_texts(21, 2), some_texts(21, 2, seed=1)
        examples = make_examples("mnli", first, second)
        tokens = prepare(checkpoint, examples, tokenizer=make_tokenizer(checkpoint.config)).tokens
        arrays[net] = predict(checkpoint.params, checkpoint.config, tokens, batch_size=batch_size).values
    write_first(arrays, target)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_eight_devices_say_the_same_as_one(processes, tmp_path):
    target = tmp_path / "eight.safetensors"
    eight = on_devices("tests.glue.test_evaluate.logits_of_all_nets", target, processes=processes)
    logits_of_all_nets(str(tmp_path / "one.safetensors"))
    one = load_file(tmp_path / "one.safetensors")
    assert (eight.pop("devices"), one.pop("devices")) == (8, 1)
    assert eight.keys() == one.keys() == set(NETS)
    for name in one:
        assert np.abs(eight[name] - one[name]).max() < 1e-5, name
