"""Predicted sizes: their steps and errors are those that compression has then.

In so small a model, headers and models of codes are much of the size, so that steps differ by a fifth; in
all-MiniLM-L6-v2 they differ by 2 %. Errors are compared at the same step.
"""

from __future__ import annotations

import numpy as np
import pytest

import lpjax
from lpjax._tree import leaves_with_paths
from lpjax.allocation import plan_for_size, predict_sizes
from lpjax.compression.rounding import moments_of

pytestmark = pytest.mark.optimized

SIZES = (0.3, 0.25, 0.2)


def weighted_error(before: np.ndarray, after: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    """tr(Eᵀ H E G), H diagonal for a table."""
    error = np.asarray(before, np.float64) - after
    heavy = rows[:, None] * error if rows.ndim == 1 else rows @ error
    return float(np.sum(heavy * (error @ columns)))


def test_errors_are_those_of_the_compressed_net(checkpoint, statistics):
    predicted = predict_sizes(checkpoint.params, SIZES, statistics=statistics)
    for size, prediction in zip(SIZES, predicted, strict=True):
        plan = plan_for_size(checkpoint.params, size, statistics=statistics)
        step = next(choice.step for choice in plan.layers.values() if choice.step)
        assert prediction.step == pytest.approx(step, rel=0.3)
        small = dict(leaves_with_paths(lpjax.compress(checkpoint.params, plan, statistics).params))
        total = 0.0
        for path, leaf in leaves_with_paths(checkpoint.params):
            moments = moments_of(statistics, path)
            if path in plan.layers and moments.rows is not None:
                dense = np.asarray(lpjax.densify(small[path]), np.float64)
                total += weighted_error(leaf, dense, moments.rows, moments.columns)
        expected = total * statistics.tokens / statistics.texts * (prediction.step / step) ** 2
        # The error of a larger step is smaller than its square.
        assert prediction.error == pytest.approx(expected, rel=0.35)
    assert predicted[0].error < predicted[1].error < predicted[2].error


def test_without_text_errors_are_relative(checkpoint):
    (prediction,) = predict_sizes(checkpoint.params, [0.2])
    plan = plan_for_size(checkpoint.params, 0.2)
    small = dict(leaves_with_paths(lpjax.compress(checkpoint.params, plan).params))
    shares = []
    for path, leaf in leaves_with_paths(checkpoint.params):
        if path in plan.layers:
            matrix = np.asarray(leaf, np.float64)
            shares.append(np.sum((np.asarray(lpjax.densify(small[path])) - matrix) ** 2) / np.sum(matrix**2))
    step = next(choice.step for choice in plan.layers.values() if choice.step)
    assert prediction.error == pytest.approx(np.mean(shares) * (prediction.step / step) ** 2, rel=0.25)


def test_misuse_is_refused(checkpoint):
    with pytest.raises(ValueError, match="`sizes` is empty"):
        predict_sizes(checkpoint.params, [])
    with pytest.raises(ValueError, match="`size` is '9 apples'"):
        predict_sizes(checkpoint.params, ["10%", "9 apples"])
    with pytest.raises(ValueError, match="expected at least"):
        predict_sizes(checkpoint.params, [100])
