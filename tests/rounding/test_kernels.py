"""Rounding a kernel by one step: the error at high rates, what is stored, and the ends of the range."""

from __future__ import annotations

import numpy as np
import pytest

from lpjax.rounding import round_kernel
from lpjax.weights.quantized import host_array
from tests.helpers.lattice import damped, random_metric, weighted_error

pytestmark = pytest.mark.optimized


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("metrics", ["both", "rows", "columns", "neither"])
def test_the_error_is_that_of_uniform_rounding(axis, metrics):
    """nd·step²/12 at high rates, whatever the metrics are."""
    shape, step = (90, 70), 0.02
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows = random_metric(90, 1) if metrics in ("both", "rows") else None
    columns = random_metric(70, 2) if metrics in ("both", "columns") else None
    quantized = round_kernel(matrix, step, rows, columns, axis=axis)
    wholes = [np.eye(size) if m is None else damped(m) for m, size in zip((rows, columns), shape, strict=True)]
    error = weighted_error(matrix - host_array(quantized), *wholes)
    assert error == pytest.approx(matrix.size * step**2 / 12, rel=0.05)
    assert quantized.shape == shape
    assert quantized.axis == axis


def test_important_directions_get_finer_steps():
    matrix = np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32)
    weights = np.geomspace(1, 1e-4, 30)
    dense = host_array(round_kernel(matrix, 0.05, np.diag(weights) + 0.0, None))
    errors = np.sqrt(np.mean((matrix - dense) ** 2, axis=1))
    assert errors[0] < errors[-1] / 3


@pytest.mark.parametrize("scale", [1e-60, 1e-30, 1e-6, 1.0, 1e6])
def test_scales_of_weights_and_metrics_do_not_matter(scale):
    matrix = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    plain = round_kernel(matrix, 0.1, random_metric(20, 1), random_metric(30, 2))
    scaled = round_kernel(matrix, 0.1 * scale, scale * random_metric(20, 1), scale * random_metric(30, 2))
    np.testing.assert_allclose(host_array(scaled), host_array(plain), atol=0.2)
    assert np.mean(scaled.host_codes() == plain.host_codes()) > 0.9


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_thin_matrices(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    metrics = [random_metric(size, 3) for size in shape]
    dense = host_array(round_kernel(matrix, 1e-3, *metrics))
    np.testing.assert_allclose(dense, matrix, atol=0.05)


def test_zeros_stay_zeros():
    quantized = round_kernel(np.zeros((8, 8)), 0.1, random_metric(8, 1), np.zeros((8, 8)))
    assert not np.any(host_array(quantized))
    assert quantized.runs == ((0, 8),)


@pytest.mark.parametrize(
    ("matrix", "step", "message"),
    [
        (np.ones((2, 2)), 0.0, "`step` is 0.0; expected a number above 0"),
        (np.ones((2, 2)), np.inf, "`step` is inf; expected a number above 0"),
        (np.ones((2, 2)), np.nan, "`step` is nan; expected a number above 0"),
        (np.ones((2, 2)), 1e-5, "`step` is too small: codes need more than 16 bits"),
        (-np.ones((2, 2)), 1 / 2**15, "`step` is too small: codes need more than 16 bits"),
        (np.ones((2, 2)), 1e-20, "`step` is too small: codes need more than 16 bits"),
        (np.ones((2, 2)), 1e-40, "beyond float32's range"),
        (np.ones((0, 2)), 0.1, "expected rows and columns to round"),
        (np.ones((2, 0)), 0.1, "expected rows and columns to round"),
        (np.full((2, 2), np.nan), 0.1, "NaN or infinite"),
    ],
)
def test_misuse_is_refused(matrix, step, message):
    with pytest.raises(ValueError, match=message):
        round_kernel(matrix, step)
