"""Error feedback against conditional minima of the whole quadratic form, its defining property, and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from lpjax.rounding import Lattice, round_with_feedback, triangle_of
from tests.helpers.lattice import damped, least_error, random_metric, successive, weighted_error

pytestmark = pytest.mark.optimized


def diagonal(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.1, 3, size)


def as_matrix(metric: np.ndarray | None, size: int) -> np.ndarray:
    """What is added to a metric before rounding, as a matrix."""
    if metric is None:
        return np.eye(size)
    return np.diag(metric) if metric.ndim == 1 else damped(metric)


KINDS = {
    "both sides": (random_metric, random_metric),
    "rows": (random_metric, None),
    "columns": (None, random_metric),
    "diagonal rows": (diagonal, random_metric),
    "diagonal columns": (random_metric, diagonal),
    "neither": (None, None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 5), (6, 1), (1, 7), (1, 1)])
def test_codes_are_those_of_conditional_minima(kind, shape):
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=shape).astype(np.float32)
    metrics = [make and make(size, seed) for make, size, seed in zip(KINDS[kind], shape, (2, 3), strict=True)]
    steps = rng.uniform(0.1, 0.6, shape)
    triangles = [triangle_of(metric, size) for metric, size in zip(metrics, shape, strict=True)]
    codes = round_with_feedback(matrix, Lattice(steps), *triangles)
    wholes = [as_matrix(metric, size) for metric, size in zip(metrics, shape, strict=True)]
    np.testing.assert_array_equal(codes, successive(matrix, steps, *wholes))


@pytest.mark.parametrize("shape", [(70, 130), (64, 64), (3, 200), (129, 5)])
def test_every_coordinate_is_within_half_a_step_across_tiles(shape):
    rng = np.random.default_rng(4)
    matrix = rng.normal(size=shape).astype(np.float32)
    rows, columns = (triangle_of(random_metric(size, seed), size) for size, seed in zip(shape, (5, 6), strict=True))
    steps = rng.uniform(0.05, 0.2, shape)
    codes = round_with_feedback(matrix, Lattice(steps), rows, columns)
    left = rows.upper @ (matrix - codes * steps) @ columns.upper.T
    assert np.all(np.abs(left) <= 0.5 * steps * (1 + 1e-3) + 1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_no_worse_than_plain_rounding_and_near_the_best(seed):
    shape = (2, 2)
    rng = np.random.default_rng(seed)
    matrix, steps = rng.uniform(-1, 1, shape).astype(np.float32), np.full(shape, 0.5)
    metrics = [random_metric(2, seed + 7, 1.0), random_metric(2, seed + 8, 1.0)]
    wholes = [damped(metric) for metric in metrics]
    triangles = [triangle_of(metric, 2) for metric in metrics]
    codes = round_with_feedback(matrix, Lattice(steps, -3, 3), *triangles)
    error = weighted_error(matrix - codes * steps, *wholes)
    least = least_error(matrix, steps, *wholes, most=3)
    bound = sum(np.outer(triangles[0].pivots, triangles[1].pivots).reshape(-1)) * 0.25**2
    assert least * (1 - 1e-6) <= error <= bound * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(96, 80), (40, 150)])
def test_feedback_beats_plain_rounding_where_directions_differ(shape):
    matrix = np.random.default_rng(9).normal(size=shape).astype(np.float32)
    metrics = [random_metric(size, 10, 3.0) for size in shape]
    steps = np.full(shape, 0.5)
    errors = []
    for known in (metrics, [metrics[0], None], [None, None]):
        triangles = [triangle_of(metric, size) for metric, size in zip(known, shape, strict=True)]
        codes = round_with_feedback(matrix, Lattice(steps), *triangles)
        errors.append(weighted_error(matrix - codes * steps, *metrics))
    assert errors[0] < errors[1] < errors[2]


def test_codes_are_clipped_and_a_step_of_0_gives_0():
    matrix = np.array([[10.0, -10.0, 0.3]], np.float32)
    none = triangle_of(None, 1), triangle_of(None, 3)
    codes = round_with_feedback(matrix, Lattice(np.array([[1.0, 1.0, 0.0]]), -4, 3), *none)
    assert codes.tolist() == [[3, -4, 0]]


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        round_with_feedback(np.array([[np.nan]]), Lattice(np.ones((1, 1))), triangle_of(None, 1), triangle_of(None, 1))
    with pytest.raises(ValueError, match=r"a metric has shape \(3, 3\); expected \(2,\) or \(2, 2\)"):
        triangle_of(np.eye(3), 2)
    with pytest.raises(ValueError, match="finite"):
        triangle_of(np.array([1.0, np.inf]), 2)
    with pytest.raises(ValueError, match="negative diagonal"):
        triangle_of(np.array([1.0, -1.0]), 2)
    with pytest.raises(ValueError, match="not positive semidefinite"):
        triangle_of(np.array([[1.0, 5.0], [5.0, 1.0]]), 2)


def test_the_triangle_is_that_of_the_damped_metric():
    metric = random_metric(6, 11)
    triangle = triangle_of(metric, 6)
    upper = np.asarray(triangle.upper)
    np.testing.assert_allclose(upper.T @ np.diag(triangle.pivots) @ upper, damped(metric), rtol=1e-10)
    assert np.all(np.diagonal(upper) == 1)
    assert np.all(np.abs(np.tril(upper, -1)) < 1e-12)
    zeros = triangle_of(np.zeros((3, 3)), 3)  # no row counts: all count alike
    assert zeros.upper is None
    assert np.all(zeros.pivots == 1)
