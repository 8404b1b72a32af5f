"""Singular values under weights, against roots of the metrics by SciPy in double precision."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lpjax.allocation._spectra import weighted_singular_values
from lpjax.weighting.metric import UNWEIGHTED, Metric, Metrics


def metric(size, kind, power=1.0, shrinkage=1e-3, seed=0):
    if kind is None:
        return None
    rng = np.random.default_rng([size, seed])
    if kind == "diagonal":
        base = rng.uniform(0, 9, size)
    else:  # if singular, of half the rank; its scale is far from 1
        tokens = rng.standard_normal((-(-size // 2) if kind == "singular" else 4 * size, size))
        base = tokens.T @ tokens * 1e-5
    return Metric(base.astype(np.float32), np.asarray(shrinkage), power)


def expected(matrix, sides):
    weighted = np.asarray(matrix, np.float64)
    for axis, side in enumerate(sides):
        if side is not None:
            base = side.base.astype(np.float64)
            base = np.diag(base) if base.ndim == 1 else base
            base = base / np.diagonal(base).mean() + side.shrinkage * np.eye(len(base))
            root = np.real(scipy.linalg.fractional_matrix_power(base, side.power / 2))
            weighted = root @ weighted if axis == 0 else weighted @ root
    return np.linalg.svd(weighted, compute_uv=False)


@pytest.mark.covering
@pytest.mark.parametrize("shape", [(90, 40), (40, 90), (40, 40), (1, 30), (30, 1)])
@pytest.mark.parametrize("rows", [None, "diagonal", "full", "singular"])
@pytest.mark.parametrize("columns", [None, "full"])
@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_under_metrics(shape, rows, columns, power, dtype):
    matrix = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    sides = Metrics(metric(shape[0], rows, power), metric(shape[1], columns, power))
    values, reference = weighted_singular_values(matrix, sides), expected(matrix, sides)
    assert values.shape == (min(shape),)
    assert np.all(np.diff(values) <= 0)
    assert np.allclose(values, reference, rtol=1e-4, atol=1e-5 * reference[0])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(90, 40), (40, 90)])
def test_values_in_double_precision(shape):
    matrix = np.random.default_rng(1).standard_normal(shape)
    sides = Metrics(metric(shape[0], "full"), metric(shape[1], "full"))
    values, reference = weighted_singular_values(matrix, sides), expected(matrix, sides)
    assert np.allclose(values, reference, rtol=1e-10)


@pytest.mark.parametrize("sides", [UNWEIGHTED, Metrics(metric(90, "full"), metric(40, "full"))])
def test_small_values_are_told_from_rounding(sides):
    rng = np.random.default_rng(2)
    pair = rng.standard_normal((90, 6)) @ rng.standard_normal((6, 40))
    values = weighted_singular_values(pair.astype(np.float32), sides)
    assert values[5] > 1e-2 * values[0]
    assert np.all(values[6:] < 1e-5 * values[0])


def test_zero_scales_and_half_precision():
    sides = Metrics(metric(90, "full"), metric(40, "full"))
    assert not weighted_singular_values(np.zeros((90, 40), np.float32), sides).any()
    matrix = np.random.default_rng(3).standard_normal((90, 40)).astype(np.float32)
    reference = weighted_singular_values(matrix, sides)
    for scale in (1e-18, 1e18):
        values = weighted_singular_values((scale * matrix).astype(np.float32), sides)
        assert np.allclose(values, scale * reference, rtol=1e-4)
    half = np.asarray(jnp.asarray(matrix, jnp.bfloat16))
    assert np.allclose(weighted_singular_values(half, sides), reference, rtol=0.02)
