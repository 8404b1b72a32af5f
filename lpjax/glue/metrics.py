"""GLUE's own metrics, without a download: an `evaluate` module, scores of a task, and their average."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import datasets
import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lpjax.glue.tasks import Task, find_task


@contextmanager
def _without_advice() -> Iterator[None]:
    """No remark of transformers, which `evaluate` imports, that PyTorch is not installed."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = name in os.environ
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if not before:
            del os.environ[name]


with _without_advice():
    import evaluate

# The two validation splits of MNLI are two scores of one task.
_MNLI = ("mnli_matched", "mnli_mismatched")

_DESCRIPTION = """Metrics of GLUE, the General Language Understanding Evaluation benchmark (Wang et al., ICLR 2019):
Matthews correlation for CoLA, accuracy and F1 for MRPC and QQP, Pearson and Spearman correlation for STS-B, accuracy
for the others."""
_INPUTS = """
Args:
    predictions, references: numbers of labels in the hub's order, or for STS-B scores.
"""


class Glue(evaluate.Metric):
    """What `evaluate.load("glue", name)` gives, from this package instead of the hub.

    `config_name` is a task's name or title, "mnli_matched" or "mnli_mismatched". A correlation with constant
    predictions, which the formulas leave undefined, is 0: they say nothing of the references.
    """

    def _info(self) -> evaluate.MetricInfo:
        kind = "float32" if _find(self.config_name).is_regression else "int64"
        features = datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)})
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features, format="numpy"
        )

    def _build_data_dir(self) -> str:
        # The base class makes a folder in the cache, also where nothing will be written to it.
        return self._data_dir_root if self.keep_in_memory else super()._build_data_dir()

    def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict[str, float]:
        task = _find(self.config_name)
        predictions, references = _checked(task, predictions, references)
        if task.is_regression:
            return _correlations(predictions, references)
        measures = {
            "matthews_correlation": lambda: _matthews(predictions, references),
            "accuracy": lambda: accuracy_score(references, predictions),
            "f1": lambda: f1_score(references, predictions, zero_division=cast(Any, 0)),
        }
        return {name: float(measures[name]()) for name in task.metrics}


def glue_metric(task: str | Task) -> Glue:
    """The `evaluate` module of a task: `add_batch` as you go, then `compute`. It writes no file.

    Args:
        task: name, title or task; also "mnli_matched" and "mnli_mismatched".

    Raises:
        ValueError: an unknown task.
    """
    return Glue(config_name=task.name if isinstance(task, Task) else task, keep_in_memory=True)


def score(task: str | Task, predictions: Sequence[Any] | Any, references: Sequence[Any] | Any) -> dict[str, float]:
    """GLUE's metrics of a task, over all examples.

    Args:
        task: name, title or task; also "mnli_matched" and "mnli_mismatched".
        predictions: shape (n,), numbers of labels in `task.labels`, or for STS-B scores of any scale.
        references: shape (n,), the gold ones.

    Returns:
        `task.metrics` -> value. Matthews, Pearson and Spearman of constant predictions are 0, and so is F1 where
        nothing is positive.

    Raises:
        ValueError: an unknown task; lengths that differ; no example; a NaN, an infinity, or a label that the task
            doesn't have; for STS-B also fewer than two examples or equal references, for there is no correlation.
    """
    name = task.name if isinstance(task, Task) else task
    predictions, references = _checked(_find(name), predictions, references)
    return cast(dict[str, float], glue_metric(name).compute(predictions=predictions, references=references))


def glue_average(scores: Mapping[str, Mapping[str, float]]) -> float:
    """The mean over tasks of the mean of each task's metrics, GLUE's overall score (here in the units of `scores`).

    Args:
        scores: task -> what `score` gave. "mnli_matched" and "mnli_mismatched" are averaged into one MNLI first;
            "mnli" stands for both. Keys besides the task's metrics are left out.

    Raises:
        ValueError: no task, an unknown one or one twice; a metric that is missing or no finite number.
    """
    tasks: dict[str, dict[str, float]] = {}
    for name, values in scores.items():
        task = _find(name)
        found = [values.get(metric) if isinstance(values, Mapping) else None for metric in task.metrics]
        if not all(isinstance(value, int | float | np.number) and math.isfinite(value) for value in found):
            raise ValueError(f"`scores` has {values!r:.200} for {name}; expected numbers {', '.join(task.metrics)}")
        part = name.lower() if name.lower() in _MNLI else task.name
        parts = tasks.setdefault(task.name, {})
        if parts and (part in parts or task.name in (part, *parts)):
            raise ValueError(f"`scores` has {task.title} twice, as {', '.join(parts)} and {name}; expected it once")
        parts[part] = float(np.mean(np.asarray(found, np.float64)))
    if not tasks:
        raise ValueError("`scores` is empty; expected at least one task")
    return float(np.mean([np.mean(list(parts.values())) for parts in tasks.values()]))


def _find(name: str) -> Task:
    return find_task("mnli" if str(name).lower() in _MNLI else name)


def _checked(task: Task, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    # Features of int64 would cut 0.5 to 0, so this comes before they see it.
    arrays = {"predictions": np.asarray(predictions), "references": np.asarray(references)}
    for name, array in arrays.items():
        if array.ndim != 1 or array.dtype.kind not in "biuf":
            raise ValueError(f"`{name}` has shape {array.shape}, {array.dtype}; expected a list of numbers")
        with np.errstate(over="ignore"):
            # What correlates is float32, as in GLUE's script: doubles may be equal or infinite there.
            kept = array.astype(np.float32 if task.is_regression else np.float64)
        if not np.isfinite(kept).all():
            raise ValueError(f"`{name}` holds a NaN or an infinity; expected finite numbers")
        if not task.is_regression and not np.isin(kept, np.arange(task.num_outputs)).all():
            wrong = kept[~np.isin(kept, np.arange(task.num_outputs))][0]
            raise ValueError(f"`{name}` holds {wrong:g}; expected labels 0 to {task.num_outputs - 1} of {task.title}")
        arrays[name] = kept if task.is_regression else kept.astype(np.int64)
    guessed, gold = arrays["predictions"], arrays["references"]
    if len(guessed) != len(gold):
        raise ValueError(f"`predictions` has {len(guessed)} rows and `references` {len(gold)}; expected as many")
    least = 2 if task.is_regression else 1
    if len(gold) < least:
        raise ValueError(f"`references` has {len(gold)} rows; expected at least {least}")
    if task.is_regression and gold.min() == gold.max():
        raise ValueError(f"`references` are all {gold[0]:g}; expected different scores to correlate with")
    return guessed, gold


def _matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    # 0 by scikit-learn as well, which warns if both are constant.
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return float(matthews_corrcoef(references, predictions))


def _correlations(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    if predictions.min() == predictions.max():
        return {"pearson": 0.0, "spearmanr": 0.0}
    predictions, references = predictions.astype(np.float64), references.astype(np.float64)
    return {
        "pearson": float(cast(Any, stats.pearsonr(predictions, references)).statistic),
        "spearmanr": float(cast(Any, stats.spearmanr(predictions, references)).statistic),
    }
