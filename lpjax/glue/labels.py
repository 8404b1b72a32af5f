"""The match between the outputs of a model's head and the labels of a task, by the names in config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lpjax.glue.tasks import Task, find_task
from lpjax.models.names import names_classifier

# Other names of the labels in checkpoints, reduced to letters and digits.
_ALIASES = {
    "negative": ("neg",),
    "positive": ("pos",),
    "unacceptable": ("notacceptable", "ungrammatical"),
    "acceptable": ("grammatical",),
    "not_equivalent": ("nonequivalent", "notparaphrase", "nonparaphrase"),
    "equivalent": ("paraphrase",),
    "not_duplicate": ("nonduplicate", "notparaphrase", "nonparaphrase"),
    "duplicate": ("paraphrase",),
    "entailment": ("entail", "entails", "entailed"),
    "not_entailment": ("notentail", "notentails", "notentailed", "nonentailment"),
    "neutral": (),
    "contradiction": ("contradict", "contradicts", "contradictory"),
}


def label_order(task: Task, config_json: Mapping[str, Any] | None, num_outputs: int) -> np.ndarray:
    """The index of the task's label for each output of a head.

    Args:
        task: the task.
        config_json: contents of the model's config.json. `id2label` (or, without it, `label2id`) names the outputs.
            Case, hyphens, underscores and spaces are ignored, and abbreviations such as "pos" are understood. LABEL_0,
            LABEL_1, … and 0, 1, … are numbers in the order of the hub, which is also assumed for a model without names.
        num_outputs: number of outputs of the head.

    Returns:
        order, shape (num_outputs,), int32, a permutation: output i is label `task.labels[order[i]]`. For a regression
        it is array([0]), whatever the name of the output.

    Raises:
        ValueError: the head has another number of outputs than the task, or the names are not a permutation of the
            task's labels.
    """
    if num_outputs != task.num_outputs:
        raise ValueError(
            f"`num_outputs` is {num_outputs}; expected {task.num_outputs} for {task.title} "
            f"({', '.join(task.labels) or 'a score'}): pass a model that was trained for this task"
        )
    if task.is_regression:
        return np.zeros(1, np.int32)
    names = _names(config_json or {})
    if names is None:
        return np.arange(num_outputs, dtype=np.int32)
    known = _known(task)
    order = [known.get(_bare(names[i])) if i in names else None for i in range(num_outputs)]
    numbers = [number for number in order if number is not None]
    if len(names) != num_outputs or sorted(numbers) != list(range(num_outputs)):
        raise ValueError(
            f"`id2label` is {names}; expected the labels of {task.title}, each once, keyed by the output: "
            f"{dict(enumerate(task.labels))} in any order: edit `id2label` in config.json or pass another model"
        )
    return np.asarray(numbers, np.int32)


def is_assumed(task: Task, config_json: Mapping[str, Any] | None) -> bool:
    """Whether a model's config.json does not name its outputs, so the order of the hub is assumed.

    LABEL_0 and 0 count as numbers of outputs, not as names.
    """
    if task.is_regression:
        return False
    names = _names(config_json or {})
    return names is None or all(re.fullmatch("(label)?[0-9]+", _bare(name)) for name in names.values())


def assumption(labels: Sequence[str]) -> str:
    """The warning that the order of a model's outputs is assumed."""
    return f"config.json names no labels; the outputs are assumed to be {', '.join(labels)}, in this order"


def output_labels(task: Task, labels: Any, config_json: Mapping[str, Any] | None, num_outputs: int) -> np.ndarray:
    """The index of the correct output of a model's head for each of the task's `labels`; for a regression the labels.

    Raises:
        ValueError: as `label_order`.
    """
    order = label_order(task, config_json, num_outputs)
    return np.asarray(labels, np.float32) if task.is_regression else np.argsort(order)[np.asarray(labels)]


def label_config(task: Task) -> dict[str, Any]:
    """The entries of config.json for a head trained on the task, with outputs in the order of the hub.

    Returns:
        `id2label` with string keys, `label2id`, `problem_type` and `finetuning_task`, as transformers writes them.
    """
    labels = task.labels or ("LABEL_0",)
    return {
        "id2label": {str(number): name for number, name in enumerate(labels)},
        "label2id": {name: number for number, name in enumerate(labels)},
        "problem_type": "regression" if task.is_regression else "single_label_classification",
        "finetuning_task": task.name,
    }


def own_task(config_json: Mapping[str, Any] | None) -> Task | None:
    """The GLUE task that a model with a head was fine-tuned on, from its config.json; None if it names none."""
    data = config_json or {}
    task = data.get("finetuning_task")
    if not names_classifier(data.get("architectures")):
        return None  # a base model that was taken from a fine-tuned one
    try:
        return find_task(task) if isinstance(task, str) else None
    except ValueError:
        return None


def _names(config: Mapping[str, Any]) -> dict[Any, str] | None:
    """Output -> name; None if the config has no names. A key that is not a number is kept."""
    named, label2id = config.get("id2label"), config.get("label2id")
    if named is None:
        if label2id is None:
            return None
        if not isinstance(label2id, Mapping):
            raise ValueError(f"`label2id` is {label2id!r:.200}; expected an object, name -> output")
        named = {str(output): name for name, output in label2id.items()}
    if not isinstance(named, Mapping):
        raise ValueError(f"`id2label` is {named!r:.200}; expected an object, output -> name")
    return {int(key) if re.fullmatch("[0-9]{1,9}", str(key)) else key: str(name) for key, name in named.items()}


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _known(task: Task) -> dict[str, int]:
    known: dict[str, int] = {}
    for number, label in enumerate(task.labels):
        names = (_bare(label), *_ALIASES[label], f"label{number}", str(number))
        known |= dict.fromkeys(names, number)
    return known
