"""Another order of labels is named if it fits far better, and not by chance; scores tell what they assume."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

import lpjax
from lpjax.evaluation.scores import task_scorer
from lpjax.glue.data import Examples
from lpjax.glue.evaluate import TaskResult, check_head, evaluate_task, predict, prepare
from lpjax.glue.labels import is_assumed, label_config
from lpjax.glue.order import _beyond_chance, likelier_order
from lpjax.glue.tasks import TASKS
from lpjax.models.heads import with_head
from tests.helpers.examples import make_examples
from tests.helpers.goldens import load_golden
from tests.helpers.nets import net_with_head
from tests.helpers.texts import make_tokenizer, texts_of


def planted(classes: int, n: int, accuracy: float, seed: int, order: tuple[int, ...]):
    """Predictions with an accuracy, and labels in another order."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    predictions = np.where(rng.random(n) < accuracy, labels, rng.integers(0, classes, n))
    return np.argsort(order)[predictions], labels


@pytest.mark.parametrize("classes", [2, 3])
def test_every_planted_order_is_found(classes):
    for order in itertools.permutations(range(classes)):
        predictions, labels = planted(classes, 200, 0.8, 1, order)
        likelier = likelier_order(predictions, labels, classes)
        if order == tuple(range(classes)):
            assert likelier is None
        else:
            assert likelier == list(order)
            assert np.mean(np.asarray(likelier)[predictions] == labels) > 0.8


def test_chance_is_no_order():
    """Nets that tell nothing, that always say the same, and too few examples."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        classes = int(rng.integers(2, 4))
        n = int(rng.integers(5, 400))
        shares = rng.dirichlet(np.ones(classes), size=2)  # frequencies of its own each
        predictions, labels = (rng.choice(classes, n, p=share) for share in shares)
        assert likelier_order(predictions, labels, classes) is None
    assert likelier_order(np.zeros(400, int), np.repeat([0, 1], [40, 360]), 2) is None
    assert likelier_order(np.array([1, 0, 1, 0, 1, 0]), np.array([0, 1, 0, 1, 0, 1]), 2) is None
    assert likelier_order(np.zeros(0, int), np.zeros(0, int), 2) is None


def test_standard_deviations_are_those_of_random_permutations():
    rng = np.random.default_rng(0)
    predictions, labels = rng.choice(3, 60, p=[0.5, 0.3, 0.2]), rng.choice(3, 60, p=[0.2, 0.2, 0.6])
    order = (1, 2, 0)
    counts = np.zeros((3, 3))
    np.add.at(counts, (predictions, labels), 1)
    right = np.asarray(order)[predictions]
    random = [np.sum(right == rng.permutation(labels)) for _ in range(20000)]
    expected = (np.sum(right == labels) - np.mean(random)) / np.std(random)
    assert _beyond_chance(counts, order) == pytest.approx(expected, abs=0.05)


def test_which_names_are_none():
    mnli = TASKS["mnli"]
    assert is_assumed(mnli, None)
    assert is_assumed(mnli, {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}})
    assert is_assumed(mnli, {"label2id": {"0": 0, "1": 1, "2": 2}})
    assert not is_assumed(mnli, label_config(mnli))
    assert not is_assumed(TASKS["stsb"], None)


def right_examples(net, tokenizer, order: list[int]) -> Examples:
    """Texts with the labels that the model gives them if its outputs are in this order."""
    texts = texts_of(1, 3, n=64)
    examples = make_examples("mnli", texts, texts[::-1])
    logits = predict(net.params, net.config, prepare(net, examples, tokenizer=tokenizer).tokens).values
    return examples._replace(labels=np.asarray(order, np.int32)[np.argmax(logits - logits.mean(0), 1)])


def scored(**names) -> tuple[TaskResult, TaskResult]:
    """A model whose outputs are contradiction, entailment, neutral, scored under `names` and under the right ones."""
    net = net_with_head("bert_base", "mnli")
    bias = dict(net.params["classifier"])
    tokenizer = make_tokenizer(net.config)
    examples = right_examples(net, tokenizer, [2, 0, 1])
    logits = predict(net.params, net.config, prepare(net, examples, tokenizer=tokenizer).tokens).values
    bias["bias"] = (np.asarray(bias["bias"]) - logits.mean(axis=0)).astype(np.float32)  # so that each comes up
    net = dataclasses.replace(net, params={**net.params, "classifier": bias})
    bare = {key: value for key, value in (net.config_json or {}).items() if key not in ("id2label", "label2id")}
    right = {"id2label": {"0": "contradiction", "1": "entailment", "2": "neutral"}}
    renamed, other = (
        evaluate_task(dataclasses.replace(net, config_json=bare | label_names), examples, tokenizer=tokenizer)
        for label_names in (names, right)
    )
    return renamed, other


def test_scores_tell_the_order_that_they_assume_and_the_one_that_fits():
    assumed, right = scored()
    assert right.metrics["accuracy"] == 1
    assert (right.labels_assumed, right.likelier_labels, right.truncated) == (False, None, 0)
    assert right.warnings() == []
    assert assumed.metrics["accuracy"] < 0.5
    assert assumed.labels == ("entailment", "neutral", "contradiction")
    assert assumed.labels_assumed
    assert assumed.likelier_labels == right.labels == ("contradiction", "entailment", "neutral")
    (warning,) = assumed.warnings()
    assert "taken for entailment, neutral, contradiction (assumed" in warning
    assert "contradiction, entailment, neutral fits the examples far better" in warning


def test_named_labels_that_fit_badly_are_told_too():
    named, _ = scored(id2label={"0": "neutral", "1": "contradiction", "2": "entailment"})
    assert not named.labels_assumed
    assert named.likelier_labels == ("contradiction", "entailment", "neutral")
    assert "(as config.json says)" in named.warnings()[0]


def test_other_reasons_to_doubt_a_score():
    net = net_with_head("bert_base", "rte")
    tokenizer = make_tokenizer(net.config)
    examples = make_examples("qnli", ["a b c d e f g h i j k l m n", "a"] * 2, ["b", "c"] * 2)
    config = {
        **(net.config_json or {}),
        "architectures": ["BertForSequenceClassification"],
        "problem_type": "multi_label_classification",
    }
    result = evaluate_task(dataclasses.replace(net, config_json=config), examples, tokenizer=tokenizer)
    assert (result.truncated, result.max_length) == (2, 9)
    assert result.warnings() == [
        "2 of 4 examples were cut off at 9 tokens",
        "config.json says that the model was fine-tuned on RTE, not on QNLI",
        "the model gives several labels per text (`problem_type`); the likeliest one was taken",
        "the biases of the head are all 0, like those of a new one: it may never have been trained",
    ]


def test_heads_that_score_nothing_of_a_task_are_refused():
    tokens = load_golden("heads/bert_tokens").checkpoint
    with pytest.raises(ValueError, match=r"head classifies tokens .* but MNLI is of whole texts"):
        check_head(tokens, TASKS["mnli"])
    net = net_with_head("bert_base", "rte")
    values = dataclasses.replace(net, config_json={**(net.config_json or {}), "problem_type": "regression"})
    with pytest.raises(ValueError, match=r"one of a regression .* and RTE has classes"):
        check_head(values, TASKS["rte"])
    with pytest.raises(ValueError, match="`num_outputs` is 2; expected 3"):
        check_head(net, TASKS["mnli"])
    # The head has one output, like a regression: how well a choice answers a question.
    choices = net_with_head("bert_base", "stsb")
    config = {**(choices.config_json or {}), "architectures": ["BertForMultipleChoice"]}
    with pytest.raises(ValueError, match=r"head scores the choices of a question .* but STS-B is of whole texts"):
        check_head(dataclasses.replace(choices, config_json=config), TASKS["stsb"])


def test_results_are_json():
    result = TaskResult("rte", "x", 3, False, {"accuracy": 1.0}, 1.0, 1.0, ("a", "b"), True, ("b", "a"), 1)
    assert json.loads(json.dumps(dataclasses.asdict(result)))["likelier_labels"] == ["b", "a"]


def test_the_command_and_the_page_tell(command, folder, tmp_path, monkeypatch):
    """A model whose two outputs are the other way round than LABEL_0 and LABEL_1 say."""
    base = lpjax.load_checkpoint(folder)
    params, _ = with_head(base.params, base.config, 2, seed=1)
    texts = [f"{a} {b}" for a in "abcdefg" for b in "abcdef"]
    tokens = prepare(base, make_examples("sst2", texts)).tokens
    logits = predict(params, base.config, tokens).values
    params["classifier"] = {**params["classifier"], "bias": -np.median(logits, axis=0)}
    data = {**(base.config_json or {}), "architectures": ["BertForSequenceClassification"]}
    lpjax.save_checkpoint(dataclasses.replace(base, params=params, config_json=data), tmp_path / "net")
    labels = 1 - np.argmax(predict(params, base.config, tokens).values, axis=1)
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    rows = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in zip(texts, labels, strict=True))]
    (tmp_path / "glue" / "SST-2" / "some.tsv").write_text("\n".join(rows) + "\n")
    options = ["--task", "sst2", "--glue", tmp_path / "glue", "--split", "some"]
    status, output, errors = command("evaluate", tmp_path / "net", *options, "--json")
    assert status == 0, errors
    result = json.loads(output)["result"]
    assert result["metrics"]["accuracy"] == 0
    assert (result["labels_assumed"], result["likelier_labels"]) == (True, ["positive", "negative"])
    status, output, _ = command("evaluate", tmp_path / "net", *options)
    assert status == 0
    assert all(line in output for line in result["warnings"])

    options = [*options, "--labels", "--layers", "encoder", "--json"]
    status, output, errors = command("calibrate", tmp_path / "net", tmp_path / "s.safetensors", *options)
    assert status == 0, errors
    assert json.loads(output)["labels_assumed"]

    net = lpjax.load_checkpoint(tmp_path / "net")
    examples = make_examples("sst2", texts, labels=labels)
    monkeypatch.setattr("lpjax.evaluation.scores.load_examples", lambda *_: examples)
    assert task_scorer(net, TASKS["sst2"])(net) == {"SST-2 dev, accuracy (order of the labels assumed)": 0}
