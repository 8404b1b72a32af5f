"""GLUE's metrics against their definitions, written out in NumPy."""

from __future__ import annotations

import socket
import subprocess
import sys

import numpy as np
import pytest

from lpjax.glue import TASKS, glue_average, glue_metric, score
from lpjax.glue.metric_module import Glue


def matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews' correlation from the table of counts; 0 if a row or a column of it is empty."""
    hits, misses = np.sum((predictions == 1) & (references == 1)), np.sum((predictions == 0) & (references == 1))
    alarms, rest = np.sum((predictions == 1) & (references == 0)), np.sum((predictions == 0) & (references == 0))
    product = float(hits + alarms) * float(hits + misses) * float(rest + alarms) * float(rest + misses)
    return float((float(hits) * rest - float(alarms) * misses) / np.sqrt(product)) if product else 0.0


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    hits = np.sum((predictions == 1) & (references == 1))
    wrong = np.sum(predictions != references)
    return float(2 * hits / (2 * hits + wrong)) if hits else 0.0


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def ranks(x: np.ndarray) -> np.ndarray:
    """From 1; equal values share the average of theirs."""
    less, equal = (x[:, None] > x).sum(axis=1), (x[:, None] == x).sum(axis=1)
    return less + (equal + 1) / 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_two_classes(seed, share):
    rng = np.random.default_rng(seed)
    references = (rng.random(71) < share).astype(int)
    predictions = np.where(rng.random(71) < 0.3, 1 - references, references)
    accuracy = float(np.mean(predictions == references))
    assert score("cola", predictions, references) == pytest.approx(
        {"matthews_correlation": matthews(predictions, references)}
    )
    for name in ("mrpc", "qqp"):
        expected = {"accuracy": accuracy, "f1": f1(predictions, references)}
        assert score(name, predictions, references) == pytest.approx(expected)
    for name in ("sst2", "qnli", "rte", "wnli"):
        assert score(name, predictions, references) == pytest.approx({"accuracy": accuracy})


def test_three_classes():
    assert score("mnli", [0, 1, 2, 2], [0, 2, 2, 1]) == {"accuracy": 0.5}
    assert score("mnli_mismatched", [0, 1, 2, 2], [0, 2, 2, 2]) == {"accuracy": 0.75}


@pytest.mark.parametrize("seed", range(5))
def test_correlations_with_ties(seed):
    rng = np.random.default_rng(seed)
    references = rng.integers(0, 6, 43) * 1.0
    predictions = np.round(references + rng.normal(size=43), 0)
    scores = score("stsb", predictions, references)
    assert scores["pearson"] == pytest.approx(pearson(predictions, references))
    assert scores["spearmanr"] == pytest.approx(pearson(ranks(predictions), ranks(references)))
    # Neither sees the scale, the second sees the order alone.
    assert score("stsb", 3 * predictions - 7, references) == pytest.approx(scores)
    assert score("stsb", np.exp(predictions), references)["spearmanr"] == pytest.approx(scores["spearmanr"])
    assert score("stsb", -predictions, references) == pytest.approx({name: -value for name, value in scores.items()})


def test_what_the_formulas_leave_open_is_zero():
    for constant in ([0, 0, 0], [1, 1, 1]):
        for references in ([0, 1, 1], [0, 0, 0], [1, 1, 1]):
            assert score("cola", constant, references) == {"matthews_correlation": 0.0}
    assert score("cola", [0, 1, 0], [1, 1, 1]) == {"matthews_correlation": 0.0}
    assert score("mrpc", [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0}
    assert score("mrpc", [0, 0], [1, 1]) == {"accuracy": 0.0, "f1": 0.0}
    assert score("mrpc", [1, 1], [1, 1]) == {"accuracy": 1.0, "f1": 1.0}
    assert score("qqp", [1, 1], [0, 0]) == {"accuracy": 0.0, "f1": 0.0}
    assert score("stsb", [2.5, 2.5, 2.5], [0, 1, 2]) == {"pearson": 0.0, "spearmanr": 0.0}
    # Different, but not as the float32 that GLUE's metric takes.
    assert score("stsb", [1, 1 + 1e-12, 1 - 1e-12], [0, 1, 2]) == {"pearson": 0.0, "spearmanr": 0.0}
    assert score("stsb", [1, 1 + 2e-7], [0, 5]) == pytest.approx({"pearson": 1.0, "spearmanr": 1.0})


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_perfect_and_permuted(task):
    rng = np.random.default_rng(0)
    references = rng.uniform(0, 5, 60) if task.is_regression else rng.integers(0, task.num_outputs, 60)
    assert score(task, references, references) == pytest.approx(dict.fromkeys(task.metrics, 1.0))
    predictions, order = rng.permutation(references), rng.permutation(60)
    scores = score(task, predictions, references)
    assert tuple(scores) == task.metrics
    assert all(type(value) is float for value in scores.values())
    assert score(task, predictions[order], references[order]) == pytest.approx(scores)


@pytest.mark.parametrize(
    ("task", "predictions", "references", "words"),
    [
        ("sst2", [0], [0, 1], "`predictions` has 1 rows and `references` 2"),
        ("sst2", [], [], "at least 1"),
        ("sst2", [0, 2], [0, 1], "`predictions` holds 2; expected labels 0 to 1 of SST-2"),
        ("sst2", [0, 1], [0, -1], "`references` holds -1"),
        ("sst2", [0, 0.5], [0, 1], "holds 0.5"),
        ("sst2", [0, np.nan], [0, 1], "`predictions` holds NaN"),
        ("sst2", ["0", "1"], [0, 1], "expected a list of numbers"),
        ("sst2", [[0, 1]], [[0, 1]], "shape (1, 2)"),
        ("stsb", [0, np.nan], [0, 1], "`predictions` holds NaN"),
        ("stsb", [0, 1e300], [0, 1], "infinite"),
        ("stsb", [0, 1], [np.inf, 1], "`references` holds NaN or infinite"),
        ("stsb", [0, 1j], [0, 1], "complex128"),
        ("stsb", [1], [1], "at least 2"),
        ("stsb", [0, 1, 2], [3, 3, 3], "`references` are all 3"),
        ("stsb", [2, 2, 2], [3, 3, 3], "`references` are all 3"),
        ("snli", [1], [1], "`task` is 'snli'"),
    ],
)
def test_misuse(task, predictions, references, words):
    with pytest.raises(ValueError) as caught:
        score(task, predictions, references)
    assert words in str(caught.value)


def test_the_module_goes_by_batches_and_leaves_no_file(tmp_path, monkeypatch):
    import evaluate

    def refuse(*_: object) -> None:
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "cache"))
    metric = glue_metric("QQP")
    assert isinstance(metric, evaluate.EvaluationModule)
    metric.add_batch(predictions=[0, 1], references=np.array([0, 0]))
    metric.add(prediction=1, reference=1)
    assert metric.compute() == score("qqp", [0, 1, 1], [0, 0, 1])
    # A second time from the start.
    assert metric.compute(predictions=[1], references=[1]) == {"accuracy": 1.0, "f1": 1.0}
    assert glue_metric("mnli_matched").compute(predictions=[2], references=[2]) == {"accuracy": 1.0}
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="`references` has 1 rows; expected at least 2"):
        glue_metric("stsb").compute(predictions=[0.5], references=[1])
    with pytest.raises(ValueError, match="holds 7"):
        glue_metric("cola").compute(predictions=[7], references=[1])
    with pytest.raises(ValueError, match="Mismatch"):
        glue_metric("cola").compute(predictions=[0, 1], references=[1])


def test_the_module_has_the_features_of_glue(tmp_path):
    for name in [*TASKS, "mnli_matched", "mnli_mismatched"]:
        metric = Glue(config_name=name, cache_dir=str(tmp_path))
        kinds = {column: feature.dtype for column, feature in metric.features.items()}
        assert kinds == dict.fromkeys(("predictions", "references"), "float32" if name == "stsb" else "int64")
        assert metric.compute(predictions=[1, 0], references=[1, 0])
    with pytest.raises(ValueError, match="`task` is 'default'"):
        Glue()


def test_the_average():
    scores = {
        "cola": {"matthews_correlation": 0.5},
        "mrpc": {"accuracy": 0.8, "f1": 0.9, "loss": 7.0},
        "mnli_matched": {"accuracy": 0.7},
        "mnli_mismatched": {"accuracy": 0.5},
    }
    assert glue_average(scores) == pytest.approx((0.5 + 0.85 + 0.6) / 3)
    assert glue_average(dict(reversed(scores.items()))) == pytest.approx(glue_average(scores))
    assert glue_average({"MNLI": {"accuracy": 0.7}}) == pytest.approx(0.7)
    assert glue_average({"mnli_matched": {"accuracy": 0.7}, "SST-2": {"accuracy": 1}}) == pytest.approx(0.85)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({}, "`scores` is empty"),
        ({"snli": {"accuracy": 1.0}}, "`task` is 'snli'"),
        ({"mrpc": {"accuracy": 1.0}}, "expected numbers accuracy, f1"),
        ({"sst2": {"accuracy": float("nan")}}, "for sst2"),
        ({"sst2": {"accuracy": "0.9"}}, "for sst2"),
        ({"sst2": 0.9}, "`scores` has 0.9 for sst2"),
        ({"sst2": {"accuracy": 1.0}, "SST-2": {"accuracy": 0.0}}, "SST-2 twice, as sst2 and SST-2"),
        ({"mnli": {"accuracy": 1.0}, "mnli_matched": {"accuracy": 0.0}}, "MNLI twice"),
        ({"mnli_matched": {"accuracy": 1.0}, "mnli": {"accuracy": 0.0}}, "MNLI twice"),
    ],
)
def test_an_average_of_what_is_no_score(scores, words):
    with pytest.raises(ValueError) as caught:
        glue_average(scores)
    assert words in str(caught.value)


def test_the_metrics_are_imported_on_first_use():
    code = (
        "import sys, lpjax.glue as glue\n"
        "assert not {'evaluate', 'sklearn', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "assert glue.score('rte', [1], [1]) == {'accuracy': 1.0}\n"
        "assert 'evaluate' not in sys.modules and not hasattr(glue, 'scores')\n"
        "assert glue.glue_metric('rte').compute(predictions=[1], references=[1]) == {'accuracy': 1.0}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
