"""The nine GLUE tasks: their texts, labels, metrics and official sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lpjax._check import check_name


@dataclasses.dataclass(frozen=True)
class Task:
    """A GLUE task, as in `nyu-mll/glue` on the hub.

    Attributes:
        name: name of the configuration on the hub, such as "sst2".
        title: name in papers and of the folder in GLUE's own download, such as "SST-2".
        columns: names of the one or two texts of an example.
        labels: label names in the order of their numbers; empty for the regression STS-B, scored from 0 to 5.
        metrics: GLUE's metrics, the keys of the result of `lpjax.glue.score`.
        splits: labelled split -> official number of rows.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: Mapping[str, int] = dataclasses.field(hash=False)

    @property
    def is_regression(self) -> bool:
        """Whether the model predicts a score instead of a label."""
        return not self.labels

    @property
    def num_outputs(self) -> int:
        """Number of outputs of a model's head: one per label, or one for the score."""
        return len(self.labels) or 1

    @property
    def leading(self) -> str:
        """The metric that chooses among checkpoints: the last one, F1 for MRPC and QQP, Spearman for STS-B."""
        return self.metrics[-1]


_MATTHEWS, _ACCURACY, _BOTH = ("matthews_correlation",), ("accuracy",), ("accuracy", "f1")
_SENTENCE, _PAIR = ("sentence",), ("sentence1", "sentence2")
_ENTAILED, _DUPLICATES = ("entailment", "not_entailment"), ("not_duplicate", "duplicate")


def _task(*fields: Any, **splits: int) -> Task:
    return Task(*fields, splits=MappingProxyType(splits))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task("cola", "CoLA", _SENTENCE, ("unacceptable", "acceptable"), _MATTHEWS, train=8551, validation=1043),
        _task("sst2", "SST-2", _SENTENCE, ("negative", "positive"), _ACCURACY, train=67349, validation=872),
        _task("mrpc", "MRPC", _PAIR, ("not_equivalent", "equivalent"), _BOTH, train=3668, validation=408),
        _task("stsb", "STS-B", _PAIR, (), ("pearson", "spearmanr"), train=5749, validation=1500),
        _task("qqp", "QQP", ("question1", "question2"), _DUPLICATES, _BOTH, train=363846, validation=40430),
        _task("mnli", "MNLI", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), _ACCURACY,
              train=392702, validation_matched=9815, validation_mismatched=9832),
        _task("qnli", "QNLI", ("question", "sentence"), _ENTAILED, _ACCURACY, train=104743, validation=5463),
        _task("rte", "RTE", _PAIR, _ENTAILED, _ACCURACY, train=2490, validation=277),
        # WNLI has its labels in the opposite order to RTE and QNLI.
        _task("wnli", "WNLI", _PAIR, _ENTAILED[::-1], _ACCURACY, train=635, validation=71),
    )
}  # fmt: skip


def find_task(name: str | Task) -> Task:
    """The task with a name or title, such as "sst2" or "SST-2"; case does not matter. A `Task` is returned unchanged.

    Raises:
        ValueError: there is no such task; names the nearest.
    """
    if isinstance(name, Task):
        return name
    known = {key: task for task in TASKS.values() for key in (task.name, task.title.lower())}
    if isinstance(name, str) and name.lower() in known:
        return known[name.lower()]
    check_name("task", name, TASKS)
    return TASKS[name]
