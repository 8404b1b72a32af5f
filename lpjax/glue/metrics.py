"""GLUE's own metrics without a download: the scores of a task, and their average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy import stats

from lpjax._check import check_all_finite
from lpjax._extras import require
from lpjax.glue.tasks import Task, find_task

if TYPE_CHECKING:
    from lpjax.glue.metric_module import Glue

# The two validation splits of MNLI give two scores of one task.
_MNLI = ("mnli_matched", "mnli_mismatched")


def glue_metric(task: str | Task) -> Glue:
    """The `evaluate` module of a task: call `add_batch` repeatedly, then `compute`. It writes no file.

    Args:
        task: task, or its name or title; also "mnli_matched" and "mnli_mismatched".

    Raises:
        ValueError: an unknown task.
        ModuleNotFoundError: `lpjax[glue]` is not installed.
    """
    require("glue", "`lpjax.glue.glue_metric`")
    from lpjax.glue.metric_module import Glue  # `evaluate` and `datasets` are slow to import

    return Glue(config_name=task.name if isinstance(task, Task) else task, keep_in_memory=True)


def score(task: str | Task, predictions: Sequence[Any] | Any, references: Sequence[Any] | Any) -> dict[str, float]:
    """GLUE's metrics of a task, over all examples.

    Args:
        task: task, or its name or title; also "mnli_matched" and "mnli_mismatched".
        predictions: indices into `task.labels`, or for STS-B scores of any scale, shape (n,).
        references: gold labels or scores, shape (n,).

    Returns:
        `task.metrics` -> value. Matthews, Pearson and Spearman correlation of constant predictions are 0, and so is
        F1 if nothing is positive.

    Raises:
        ValueError: an unknown task; different lengths; no example; a NaN, an infinity, or a label that the task
            does not have; for STS-B also fewer than two examples or equal references, whose correlation is undefined.
        ModuleNotFoundError: `lpjax[glue]` is not installed.
    """
    return compute(scored_task(task), predictions, references)


def compute(task: Task, predictions: Any, references: Any) -> dict[str, float]:
    """`score` for a `Task`."""
    predictions, references = _checked(task, predictions, references)
    if task.is_regression:
        return _correlations(predictions, references)
    require("glue", "`lpjax.glue.score`", "sklearn")
    from sklearn import metrics  # slow to import

    measures = {
        # scikit-learn warns if both are constant, and gives 0.
        "matthews_correlation": lambda: (
            metrics.matthews_corrcoef(references, predictions) if np.ptp(predictions) and np.ptp(references) else 0.0
        ),
        "accuracy": lambda: metrics.accuracy_score(references, predictions),
        "f1": lambda: metrics.f1_score(references, predictions, zero_division=cast(Any, 0)),
    }
    return {name: float(measures[name]()) for name in task.metrics}


def glue_average(scores: Mapping[str, Mapping[str, float]]) -> float:
    """GLUE's overall score in the units of `scores`: the mean over tasks of the mean of each task's metrics.

    Args:
        scores: task -> result of `score`. "mnli_matched" and "mnli_mismatched" are averaged into one MNLI first; "mnli"
            stands for both. Keys other than the task's metrics are ignored.

    Raises:
        ValueError: no task, an unknown task, or one that occurs twice; a metric that is missing or not finite.
    """
    tasks: dict[str, dict[str, float]] = {}
    for name, values in scores.items():
        task = scored_task(name)
        metrics = [values.get(metric) if isinstance(values, Mapping) else None for metric in task.metrics]
        if not all(isinstance(value, int | float | np.number) and math.isfinite(value) for value in metrics):
            raise ValueError(f"`scores` has {values!r:.200} for {name}; expected numbers {', '.join(task.metrics)}")
        part = name.lower() if name.lower() in _MNLI else task.name
        parts = tasks.setdefault(task.name, {})
        if parts and (part in parts or task.name in (part, *parts)):
            raise ValueError(f"`scores` has {task.title} twice, as {', '.join(parts)} and {name}; expected it once")
        parts[part] = float(np.mean(np.asarray(metrics, np.float64)))
    if not tasks:
        raise ValueError("`scores` is empty; expected at least one task")
    return float(np.mean([np.mean(list(parts.values())) for parts in tasks.values()]))


def scored_task(name: str | Task) -> Task:
    """The task with a name, which may be that of a validation split of MNLI.

    Raises:
        ValueError: as `find_task`.
    """
    return find_task("mnli" if str(name).lower() in _MNLI else name)


def _checked(task: Task, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    arrays = {"predictions": np.asarray(predictions), "references": np.asarray(references)}
    for name, array in arrays.items():
        if array.ndim != 1 or array.dtype.kind not in "biuf":
            raise ValueError(f"`{name}` has shape {array.shape}, {array.dtype}; expected a list of numbers")
        with np.errstate(over="ignore"):
            # Correlations are computed from float32, as in GLUE's script; doubles can become equal or infinite there.
            kept = array.astype(np.float32 if task.is_regression else np.float64)
        check_all_finite(f"`{name}`", np.isfinite(kept).all())
        if not task.is_regression and not np.isin(kept, np.arange(task.num_outputs)).all():
            wrong = kept[~np.isin(kept, np.arange(task.num_outputs))][0]
            raise ValueError(f"`{name}` holds {wrong:g}; expected labels 0 to {task.num_outputs - 1} of {task.title}")
        arrays[name] = kept if task.is_regression else kept.astype(np.int64)
    predicted, gold = arrays["predictions"], arrays["references"]
    if len(predicted) != len(gold):
        raise ValueError(f"`predictions` has {len(predicted)} rows and `references` {len(gold)}; expected the same")
    least = 2 if task.is_regression else 1
    if len(gold) < least:
        raise ValueError(f"`references` has {len(gold)} rows; expected at least {least}")
    if task.is_regression and gold.min() == gold.max():
        raise ValueError(f"`references` are all {gold[0]:g}; expected different scores to correlate with")
    return predicted, gold


def _correlations(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    if predictions.min() == predictions.max():
        return {"pearson": 0.0, "spearmanr": 0.0}
    predictions, references = predictions.astype(np.float64), references.astype(np.float64)
    return {
        "pearson": float(cast(Any, stats.pearsonr(predictions, references)).statistic),
        "spearmanr": float(cast(Any, stats.spearmanr(predictions, references)).statistic),
    }
