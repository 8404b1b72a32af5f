"""The nine GLUE tasks: their texts, labels, metrics and official sizes."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from types import MappingProxyType


@dataclasses.dataclass(frozen=True)
class Task:
    """What is fixed about a task, as `nyu-mll/glue` on the hub has it.

    Attributes:
        name: configuration on the hub, "sst2" say.
        title: name in papers and of the folder in GLUE's own download, "SST-2" say.
        columns: names of the one or two texts of an example.
        labels: label names in the order of their numbers; empty for the regression STS-B, scored from 0 to 5.
        metrics: GLUE's own, keys of what `lpjax.glue.score` gives.
        splits: labelled split -> its official number of rows.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: Mapping[str, int] = dataclasses.field(hash=False)

    @property
    def is_regression(self) -> bool:
        """Whether the net predicts a score instead of a label."""
        return not self.labels

    @property
    def num_outputs(self) -> int:
        """Outputs of a net's head: one a label, or the score alone."""
        return len(self.labels) or 1

    @property
    def leading(self) -> str:
        """The metric that chooses among checkpoints: the last one, F1 for MRPC and QQP, Spearman for STS-B."""
        return self.metrics[-1]


_MATTHEWS, _ACCURACY, _BOTH = ("matthews_correlation",), ("accuracy",), ("accuracy", "f1")
_ONE, _TWO = ("sentence",), ("sentence1", "sentence2")
_ENTAILED = ("entailment", "not_entailment")


def _task(
    name: str,
    title: str,
    columns: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    train: int,
    validation: int,
) -> Task:
    splits = MappingProxyType({"train": train, "validation": validation})
    return Task(name, title, columns, labels, metrics, splits)


_MNLI_SPLITS = MappingProxyType({"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832})

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task("cola", "CoLA", _ONE, ("unacceptable", "acceptable"), _MATTHEWS, 8551, 1043),
        _task("sst2", "SST-2", _ONE, ("negative", "positive"), _ACCURACY, 67349, 872),
        _task("mrpc", "MRPC", _TWO, ("not_equivalent", "equivalent"), _BOTH, 3668, 408),
        _task("stsb", "STS-B", _TWO, (), ("pearson", "spearmanr"), 5749, 1500),
        _task("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), _BOTH, 363846, 40430),
        Task(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            _ACCURACY,
            _MNLI_SPLITS,
        ),
        _task("qnli", "QNLI", ("question", "sentence"), _ENTAILED, _ACCURACY, 104743, 5463),
        _task("rte", "RTE", _TWO, _ENTAILED, _ACCURACY, 2490, 277),
        # WNLI counts the other way round than RTE and QNLI.
        _task("wnli", "WNLI", _TWO, _ENTAILED[::-1], _ACCURACY, 635, 71),
    )
}


def find_task(name: str) -> Task:
    """The task of a name or title, whatever its case: "sst2", "SST-2".

    Raises:
        ValueError: there is no such task; names the nearest.
    """
    known = {key: task for task in TASKS.values() for key in (task.name, task.title.lower())}
    task = known.get(name.lower()) if isinstance(name, str) else None
    if task is None:
        near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
        hint = f"; did you mean {known[near[0]].name!r}?" if near else ""
        raise ValueError(f"`task` is {name!r}; expected one of {', '.join(TASKS)}{hint}")
    return task
