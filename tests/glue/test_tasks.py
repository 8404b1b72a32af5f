"""The table of tasks against what GLUE's paper and the hub say of them."""

from __future__ import annotations

import dataclasses

import pytest

from lpjax.glue import TASKS, find_task


def test_sizes_and_shapes():
    assert list(TASKS) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
    train = [8551, 67349, 3668, 5749, 363846, 392702, 104743, 2490, 635]
    assert [task.splits["train"] for task in TASKS.values()] == train
    assert sum(rows for task in TASKS.values() for split, rows in task.splits.items() if split != "train") == 69711
    assert [len(task.columns) for task in TASKS.values()] == [1, 1, 2, 2, 2, 2, 2, 2, 2]
    assert [task.num_outputs for task in TASKS.values()] == [2, 2, 2, 1, 2, 3, 2, 2, 2]
    assert [task.name for task in TASKS.values() if task.is_regression] == ["stsb"]


def test_the_leading_metric():
    leading = {name: task.leading for name, task in TASKS.items()}
    other = {"cola": "matthews_correlation", "stsb": "spearmanr", "mrpc": "f1", "qqp": "f1"}
    assert leading == dict.fromkeys(TASKS, "accuracy") | other


def test_label_order_of_the_entailment_tasks():
    assert TASKS["rte"].labels == TASKS["qnli"].labels == ("entailment", "not_entailment")
    assert TASKS["wnli"].labels == ("not_entailment", "entailment")
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")


def test_tasks_are_constants():
    assert len(set(TASKS.values())) == 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASKS["rte"].name = "x"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        TASKS["rte"].splits["train"] = 1  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize("name", list(TASKS))
def test_names_and_titles_are_found(name):
    task = TASKS[name]
    for spelling in (name, name.upper(), task.title, task.title.lower()):
        assert find_task(spelling) is task


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sst-3", "did you mean sst2?"),
        ("sts", "did you mean stsb?"),
        ("mnli_", "did you mean mnli?"),
        ("zzzzz", "expected one of cola, sst2"),
        ("", "expected one of cola, sst2"),
        (None, "`task` is None"),
    ],
)
def test_an_unknown_name_says_the_nearest(name, words):
    with pytest.raises(ValueError) as caught:
        find_task(name)
    assert words in str(caught.value)
