"""Rounding with a scale a group, against a search over scales, and against what codes can say exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from lpjax.rounding import round_groups
from lpjax.weights.quantized import BITS, host_array
from tests.helpers.lattice import random_metric, weighted_error

SOME_BITS = [bits for bits in BITS if 2 <= bits <= 8]

pytestmark = pytest.mark.optimized


@pytest.mark.parametrize("bits", SOME_BITS)
@pytest.mark.parametrize("group", [None, 16, 32, 5])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_codes_can_say_is_kept(bits, group, axis):
    rng = np.random.default_rng(bits)
    shape = (7, 33) if axis else (33, 7)
    most = 2 ** (bits - 1) - 1
    codes = rng.integers(-most, most + 1, shape)
    for line in np.moveaxis(codes, 1 - axis, 0):
        for start in range(0, 33, group or 33):
            line[start] = most  # each group uses its range
    quantized = round_groups(codes * 0.25, bits, group, axis=axis)
    assert quantized.shape == shape
    assert quantized.runs == ((bits, 33),)
    np.testing.assert_array_equal(host_array(quantized), codes * 0.25)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_scales_are_nearly_the_best(bits):
    rng = np.random.default_rng(0)
    matrix = rng.standard_t(4, size=(40, 32)).astype(np.float32)
    losses = np.sum((matrix - host_array(round_groups(matrix, bits, 32, axis=1))) ** 2, axis=1)
    most = 2 ** (bits - 1) - 1

    def error(row, scale):
        return np.sum((row - np.clip(np.round(row / scale), -most, most) * scale) ** 2)

    def best(row):
        largest = np.abs(row).max() / most
        grid = min(error(row, share * largest) for share in np.linspace(0.2, 1.1, 400))
        local: Any = minimize_scalar(lambda scale: error(row, scale), bounds=(0.2 * largest, 1.1 * largest))
        return min(grid, local.fun)

    least = np.array([best(row) for row in matrix.astype(np.float64)])
    plain = np.array([error(row, np.abs(row).max() / most) for row in matrix.astype(np.float64)])
    assert losses.sum() <= plain.sum()
    # At 8 bits the error jumps from scale to scale.
    assert losses.sum() <= (1.04 if bits < 8 else 1.25) * least.sum()


def test_feedback_is_used_under_metrics():
    matrix = np.random.default_rng(3).normal(size=(64, 48)).astype(np.float32)
    rows, columns = random_metric(64, 1, 3.0), random_metric(48, 2, 3.0)
    errors = [
        weighted_error(matrix - host_array(round_groups(matrix, 3, 16, axis=0, **metrics)), rows, columns)
        for metrics in ({"rows": rows, "columns": columns}, {"rows": rows}, {})
    ]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-7, 1e5, 1e30])
def test_ends_of_the_range(scale):
    matrix = scale * np.random.default_rng(0).normal(size=(4, 40)).astype(np.float32)
    dense = host_array(round_groups(matrix, 8, 16, axis=1))
    assert np.linalg.norm(dense / (scale or 1) - matrix / (scale or 1)) <= 0.01 * np.linalg.norm(matrix / (scale or 1))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_matrices_are_refused(shape):
    with pytest.raises(ValueError, match="expected rows and columns to round"):
        round_groups(np.zeros(shape), 4, axis=0)


@pytest.mark.parametrize("options", [{"bits": 7}, {"bits": 0}, {"bits": 4, "group": 0}, {"bits": 4, "axis": 2}])
def test_misuse_is_refused(options):
    with pytest.raises(ValueError, match="`bits`, `group`, `axis` are"):
        round_groups(np.ones((4, 4)), **{"axis": 1} | options)


def test_a_group_longer_than_the_lines_is_the_line():
    """Memory does not depend on what was asked for."""
    matrix = np.random.default_rng(0).standard_normal((8, 24)).astype(np.float32)
    long, whole = round_groups(matrix, 4, 1 << 40, axis=1), round_groups(matrix, 4, None, axis=1)
    assert long.group == whole.group == 24
    assert np.array_equal(long.dense(), whole.dense())
