"""Pairs and tables: against the rate–distortion bound of Gaussian tables, and against plain rounding of factors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

from lpjax.rounding import rotation, round_kernel, round_pair, round_pair_groups
from lpjax.weights.coded import stored_bytes
from lpjax.weights.quantized import host_array
from tests.helpers.lattice import damped, random_metric, weighted_error

pytestmark = pytest.mark.optimized


def gaussian_table(rows: int, variances: np.ndarray, seed: int = 0) -> np.ndarray:
    """Independent rows of known variances in a random basis."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(len(variances),) * 2))
    return (rng.normal(size=(rows, len(variances))) * np.sqrt(variances)) @ basis


def least_rate(variances: np.ndarray, distortion: float) -> float:
    """Bits a row that any code needs for a mean squared error a row (reverse water-filling)."""
    level = brentq(lambda level: np.minimum(level, variances).sum() - distortion, 0, variances.max())
    return float(np.sum(np.maximum(0, np.log2(variances / level) / 2)))


@pytest.mark.parametrize("step", [2.0, 1.0, 0.3, 0.1])
def test_tables_are_within_a_quarter_bit_of_the_bound(step):
    """A quarter of a bit for each direction that has any codes, the known loss of uniform steps with entropy coding
    (Gish & Pierce, 1968), and a little for what describes them."""
    variances = np.geomspace(1, 1e-3, 24)
    table = gaussian_table(20_000, variances)
    pair = round_pair(table, None, step)
    dense = host_array(pair.left) @ host_array(pair.right)
    distortion = np.mean(np.sum((table - dense) ** 2, axis=1))
    rate = 8 * stored_bytes(pair.left) / len(table)
    least = least_rate(variances, distortion)
    assert least * 0.98 <= rate <= least + 0.27 * pair.rank + 0.3


def test_directions_that_round_to_zero_are_left_out():
    table = gaussian_table(2_000, np.geomspace(1, 1e-6, 20))
    ranks = [round_pair(table, None, step).rank for step in (0.01, 0.1, 1.0, 100.0)]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > ranks[2]
    assert ranks[-1] == 1
    assert not np.any(host_array(round_pair(table, None, 100.0).left))


@pytest.mark.parametrize("rows", ["none", "diagonal", "full"])
@pytest.mark.parametrize("factored", [False, True])
def test_rotation_keeps_the_product_and_makes_steps_equal(rows, factored):
    rng = np.random.default_rng(1)
    left, right = rng.normal(size=(40, 6)), rng.normal(size=(6, 9)) if factored else None
    size = 9 if factored else 6
    metric = {"none": None, "diagonal": rng.uniform(0.1, 2, 40), "full": random_metric(40, 2)}[rows]
    columns = random_metric(size, 3)
    turn, basis, singular = rotation(left, right, metric, columns)
    np.testing.assert_allclose(left @ turn @ basis, left if right is None else left @ right, atol=1e-9)
    np.testing.assert_allclose(basis @ damped(columns) @ basis.T, np.eye(6), atol=1e-9)
    whole = np.eye(40) if metric is None else np.diag(metric) if metric.ndim == 1 else metric
    energies = (left @ turn).T @ whole @ (left @ turn)
    np.testing.assert_allclose(energies, np.diag(singular**2), atol=1e-9 * energies.max())
    assert np.all(np.diff(singular) <= 1e-9 * singular.max())


@pytest.mark.parametrize("kind", ["table", "kernel pair"])
def test_a_rotated_basis_takes_fewer_bytes_at_equal_error(kind):
    rng = np.random.default_rng(2)
    if kind == "table":
        matrix = gaussian_table(400, np.geomspace(1, 1e-4, 32))
        left, right, rows = matrix, None, rng.pareto(1.0, 400) + 0.01
    else:
        left, right = rng.normal(size=(200, 12)), rng.normal(size=(12, 160)) * 0.1
        matrix, rows = left @ right, random_metric(200, 4)
    columns = random_metric(matrix.shape[1], 5)
    whole = np.diag(rows) if rows.ndim == 1 else damped(rows)

    def cost(weight):
        dense = host_array(weight.left) @ host_array(weight.right) if hasattr(weight, "left") else host_array(weight)
        return weighted_error(matrix - dense.astype(np.float64), whole, damped(columns)), stored_bytes(weight)

    error, size = cost(round_pair(left, right, 0.05, rows, columns))
    steps = np.geomspace(0.005, 0.1, 12)
    others = [cost(round_kernel(matrix, step, rows, columns)) for step in steps]
    assert size < min(other_size for other_error, other_size in others if other_error <= error)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_right_factor_makes_up_for_the_left(bits, weighted):
    rng = np.random.default_rng(3)
    left, right = rng.normal(size=(60, 8)), rng.normal(size=(8, 50))
    rows, columns = (random_metric(60, 1), random_metric(50, 2)) if weighted else (None, None)
    wholes = (damped(rows), damped(columns)) if rows is not None else (np.eye(60), np.eye(50))
    pair = round_pair_groups(left, right, bits, 16, rows, columns)
    rounded = host_array(pair.left)
    error = weighted_error(left @ right - rounded @ host_array(pair.right), *wholes)
    alone = weighted_error((left - rounded) @ right, *wholes)
    assert pair.rank == 8
    assert error < 3 * alone  # each factor has about the same part of the error
    exact = np.linalg.lstsq(rounded, left @ right, rcond=None)[0]
    assert weighted_error(left @ right - rounded @ exact, *wholes) < alone


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 5), (3, 8)])
def test_odd_shapes(shape):
    matrix = np.random.default_rng(0).normal(size=shape)
    pair = round_pair(matrix, None, 1e-3, np.ones(shape[0]), random_metric(shape[1], 1))
    dense = host_array(pair.left) @ host_array(pair.right)
    np.testing.assert_allclose(dense, matrix, atol=0.05)


def test_zeros_and_rows_that_do_not_count():
    assert round_pair(np.zeros((6, 4)), None, 0.1).rank == 1
    weights = np.array([1.0, 0, 0, 1, 0, 0])
    pair = round_pair(np.random.default_rng(0).normal(size=(6, 4)), None, 0.1, weights)
    assert np.all(np.isfinite(host_array(pair.left) @ host_array(pair.right)))


@pytest.mark.parametrize("scale", [1e-24, 1e-12, 1e-8, 1e8, 1e16])
@pytest.mark.parametrize("side", ["rows", "columns", "weights"])
def test_units_do_not_matter(scale, side):
    rng = np.random.default_rng(0)
    matrix, counts, outer = rng.normal(size=(200, 16)), 1e4 / np.arange(1, 201), random_metric(16, 1)
    plain_pair = round_pair(matrix, None, 0.3, counts, outer)
    if side == "weights":
        other = round_pair(matrix * scale, None, 0.3 * scale, counts, outer)
    else:
        counts, outer = (counts * scale, outer) if side == "rows" else (counts, outer * scale)
        other = round_pair(matrix, None, 0.3 * scale**0.5, counts, outer)
    plain, scaled = (host_array(pair.left) @ host_array(pair.right) for pair in (plain_pair, other))
    errors = [
        weighted_error(matrix - product, np.diag(counts), outer)
        for product in (plain, scaled / (scale if side == "weights" else 1))
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


@pytest.mark.parametrize("factored", [False, True])
def test_metrics_of_zeros_are_none(factored):
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(12, 6)), rng.normal(size=(6, 8)) if factored else None
    outer = random_metric(right.shape[1] if right is not None else 6, 1)
    pair, other = (round_pair(left, right, 0.1, rows, outer) for rows in (None, np.zeros(12)))
    np.testing.assert_array_equal(host_array(pair.left), host_array(other.left))
    np.testing.assert_array_equal(host_array(pair.right), host_array(other.right))
    if right is not None:
        pair, other = (round_pair_groups(left, right, 4, 4, rows, outer) for rows in (None, np.zeros(12)))
        np.testing.assert_array_equal(host_array(pair.right), host_array(other.right))


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="expected rows and columns to round"):
        round_pair(np.ones((0, 2)), None, 1)
    with pytest.raises(ValueError, match="`step` is -1; expected a number above 0"):
        round_pair(np.ones((2, 2)), None, -1)
    with pytest.raises(ValueError, match="a factor holds NaN"):
        round_pair(np.full((2, 2), np.nan), None, 1)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_table_with_few_rows_has_few_directions(weighted: bool):
    """It has as many coefficients as its transpose, whose columns are few."""
    rng = np.random.default_rng(0)
    matrix, rows = rng.standard_normal((3, 500)).astype(np.float32), rng.uniform(0.5, 2, 3)
    columns = random_metric(500, 1) if weighted else None
    pair = round_pair(matrix, None, 1e-3, rows, columns)
    assert pair.rank == 3
    assert pair.left.shape == (3, 3)
    error = host_array(pair.left) @ host_array(pair.right) - matrix
    metric = np.eye(500) if columns is None else damped(columns)
    assert np.einsum("i,ij,jk,ik->", rows, error, metric, error) <= 2 * 1e-6 / 12 * (matrix.size + 9)
