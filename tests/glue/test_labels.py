"""Heads whose labels are named, ordered and spelt in every way that checkpoints show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lpjax.glue import TASKS, label_config, label_order
from lpjax.glue.labels import output_labels


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_what_is_written_is_read(task):
    order = label_order(task, label_config(task), task.num_outputs)
    assert order.dtype == np.int32
    assert order.tolist() == list(range(task.num_outputs))
    assert label_order(task, None, task.num_outputs).tolist() == order.tolist()
    assert label_order(task, {}, task.num_outputs).tolist() == order.tolist()


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_labels_are_put_as_the_head_has_them(task):
    """Whatever the order of the names: output i of the head is called what label the answer i is of."""
    if task.is_regression:
        assert output_labels(task, [0.5, 4], {"id2label": {"0": "score"}}, 1).tolist() == [0.5, 4.0]
        return
    for names in itertools.permutations(task.labels):
        config = {"id2label": dict(enumerate(names))}
        outputs = output_labels(task, [0, 1, 1], config, len(names))
        assert [names[output] for output in outputs] == [task.labels[number] for number in (0, 1, 1)]


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_transformers_understands_it(task):
    from transformers import BertConfig

    config = BertConfig(**label_config(task))
    assert config.num_labels == task.num_outputs
    assert config.problem_type == ("regression" if task.is_regression else "single_label_classification")
    assert label_order(task, config.to_dict(), task.num_outputs).tolist() == list(range(task.num_outputs))


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.labels], ids=lambda task: task.name)
def test_every_permutation_under_every_spelling(task):
    spellings = [str.upper, str.title, lambda name: name.replace("_", "-"), lambda name: name.replace("_", " ")]
    for order in itertools.permutations(range(task.num_outputs)):
        for spell in spellings:
            names = {str(i): spell(task.labels[number]) for i, number in enumerate(order)}
            positions = label_order(task, {"id2label": names}, task.num_outputs)
            assert positions.tolist() == list(order)
            by_int = {int(i): name for i, name in names.items()}
            assert label_order(task, {"id2label": by_int}, task.num_outputs).tolist() == list(order)
            inverse = {name: int(i) for i, name in names.items()}
            assert label_order(task, {"label2id": inverse}, task.num_outputs).tolist() == list(order)
        numbered = {str(i): f"LABEL_{number}" for i, number in enumerate(order)}
        assert label_order(task, {"id2label": numbered}, task.num_outputs).tolist() == list(order)


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        # As roberta-large-mnli and other models on the hub have them.
        ("mnli", {"0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT"}, [2, 1, 0]),
        ("mnli", {"0": "contradict", "1": "entail", "2": "neutral"}, [2, 0, 1]),
        ("sst2", {"0": "POSITIVE", "1": "NEGATIVE"}, [1, 0]),
        ("sst2", {"0": "neg", "1": "pos"}, [0, 1]),
        ("sst2", {"1": 1, "0": 0}, [0, 1]),
        ("sst2", {"0": "1", "1": "0"}, [1, 0]),
        ("cola", {"0": "acceptable", "1": "unacceptable"}, [1, 0]),
        ("mrpc", {"0": "paraphrase", "1": "not paraphrase"}, [1, 0]),
        ("qqp", {"0": "duplicate", "1": "not_duplicate"}, [1, 0]),
        ("rte", {"0": "not_entailment", "1": "entailment"}, [1, 0]),
        ("wnli", {"0": "not_entailment", "1": "entailment"}, [0, 1]),
    ],
)
def test_names_that_nets_have(name, labels, expected):
    assert label_order(TASKS[name], {"id2label": labels}, len(labels)).tolist() == expected


def test_the_score_may_be_called_anything():
    assert label_order(TASKS["stsb"], {"id2label": {"0": "similarity"}}, 1).tolist() == [0]


@pytest.mark.parametrize(
    ("name", "config", "outputs", "words"),
    [
        ("rte", None, 3, "`num_outputs` is 3; expected 2 for RTE (entailment, not_entailment)"),
        ("stsb", None, 2, "expected 1 for STS-B (a score)"),
        ("sst2", {"id2label": {"0": "good", "1": "bad"}}, 2, "{0: 'good', 1: 'bad'}"),
        ("sst2", {"id2label": {"0": "positive", "1": "POS"}}, 2, "each once"),
        ("sst2", {"id2label": {"0": "negative", "1": "good"}}, 2, "edit `id2label` in config.json"),
        ("sst2", {"id2label": {"0": "negative", "2": "positive"}}, 2, "{0: 'negative', 1: 'positive'} in any order"),
        ("sst2", {"id2label": {"0": "negative"}}, 2, "each once"),
        ("sst2", {"id2label": {"0": "negative", "1": "positive", "2": "x"}}, 2, "each once"),
        ("sst2", {"id2label": {"zero": "negative", "one": "positive"}}, 2, "keyed by the output"),
        ("sst2", {"id2label": {}}, 2, "`id2label` is {}"),
        ("sst2", {"id2label": ["negative", "positive"]}, 2, "expected an object"),
        ("sst2", {"label2id": ["negative", "positive"]}, 2, "`label2id` is"),
        ("qnli", {"id2label": {"0": "LABEL_0", "1": "LABEL_2"}}, 2, "each once"),
        ("rte", {"id2label": {"0": "negative", "1": "positive"}}, 2, "the labels of RTE"),
    ],
)
def test_other_heads_are_refused(name, config, outputs, words):
    with pytest.raises(ValueError) as caught:
        label_order(TASKS[name], config, outputs)
    assert words in str(caught.value)
