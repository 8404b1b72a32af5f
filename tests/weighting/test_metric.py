"""Roots of metrics against SciPy's in double precision, and what is done where Cholesky's triangle is of no use."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lpjax._lapack import triangle
from lpjax.weighting.metric import Metric, on_both_sides, roots_of_batch, symmetric_roots

SIZE, BATCH = 24, 3


def batch(rank=4 * SIZE, shrinkage=1e-3, power=1.0, diagonal=False):
    rng = np.random.default_rng(rank)
    tokens = rng.standard_normal((BATCH, rank, SIZE)) * np.geomspace(1, 30, SIZE)
    base = 1e-5 * np.swapaxes(tokens, 1, 2) @ tokens
    if diagonal:
        base = np.diagonal(base, axis1=1, axis2=2)
    return Metric(base.astype(np.float32), np.full(BATCH, shrinkage, np.float32), power)


def one_of(metric, i):
    return dataclasses.replace(metric, base=metric.base[i], shrinkage=metric.shrinkage[i])


def matrix_of(metric):
    """M in double precision."""
    base = metric.base.astype(np.float64)
    base = np.diag(base) if base.ndim == 1 else base
    shrunk = base / (np.trace(base) / SIZE) + float(metric.shrinkage) * np.eye(SIZE)
    return np.real(scipy.linalg.fractional_matrix_power(shrunk, metric.power))


def as_matrix(root):
    root = np.asarray(root, np.float64)
    return np.diag(root) if root.ndim == 1 else root


CASES = {
    "triangles": {},
    "as many tokens as half the inputs": {"rank": SIZE // 2},
    "a power": {"power": 0.5},
    "a diagonal": {"diagonal": True},
    "no shrinkage": {"shrinkage": 0},
}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_roots_are_roots(case, symmetric):
    metrics = batch(**CASES[case])
    halves, inverses = roots_of_batch(metrics, jnp.float32, symmetric=symmetric)
    for i in range(BATCH):
        half, inverse, expected = as_matrix(halves[i]), as_matrix(inverses[i]), matrix_of(one_of(metrics, i))
        assert np.allclose(half.T @ half, expected, rtol=1e-4, atol=1e-6 * expected.max())
        assert np.allclose(half @ inverse, np.eye(SIZE), atol=2e-3)
        # To float32's rounding, which differs from processor to processor.
        alike = np.allclose(half, half.T, atol=1e-6 * np.abs(half).max())
        assert alike == (symmetric or case in ("a power", "a diagonal", "no shrinkage"))


@pytest.mark.parametrize("bad", ["singular without shrinkage", "not quite semidefinite"])
def test_one_without_a_triangle_sends_all_to_eigenvectors(bad):
    metrics = batch()
    base, shrinkage = metrics.base.copy(), metrics.shrinkage.copy()
    if bad == "singular without shrinkage":
        base[1], shrinkage[1] = np.diag(np.arange(SIZE)), 0
    else:  # by more than shrinkage mends
        base[1] = np.diag([-0.01, *range(1, SIZE)]) * np.trace(base[1])
    metrics = dataclasses.replace(metrics, base=base, shrinkage=shrinkage)
    halves, inverses = roots_of_batch(metrics, jnp.float32, symmetric=False)
    for i in range(BATCH):
        half, inverse = symmetric_roots(one_of(metrics, i), jnp.float32)
        assert np.all(np.isfinite(halves[i]))
        assert np.all(np.isfinite(inverses[i]))
        assert np.allclose(halves[i], half, rtol=1e-4, atol=1e-4 * np.abs(half).max())
        assert np.allclose(inverses[i], inverse, rtol=1e-3, atol=1e-3 * np.abs(inverse).max())


def test_nothing_seen_is_the_shrinkage_alone():
    metrics = Metric(np.zeros((1, 4, 4), np.float32), np.full(1, 0.25, np.float32), 1.0)
    half, inverse = roots_of_batch(metrics, jnp.float32, symmetric=False)
    assert np.allclose(half[0], 0.5 * np.eye(4))
    assert np.allclose(inverse[0], 2 * np.eye(4))


def test_a_triangle_in_double_precision_mapped_and_not():
    with jax.enable_x64(True):
        matrices = np.stack([matrix_of(one_of(batch(), i)) for i in range(BATCH)])
        upper, inverse = jax.vmap(triangle)(jnp.asarray(matrices))
        for i in range(BATCH):
            assert np.allclose(upper[i], np.linalg.cholesky(matrices[i]).T, rtol=1e-10)
            assert np.allclose(upper[i] @ inverse[i], np.eye(SIZE), atol=1e-10)
            assert np.allclose(triangle(jnp.asarray(matrices[i]))[0], upper[i], rtol=1e-12)


def test_both_sides():
    rng = np.random.default_rng(0)
    matrix, rows, columns = rng.standard_normal((5, 3)), rng.standard_normal((5, 5)), rng.uniform(1, 2, 3)
    product = on_both_sides((jnp.asarray(rows, jnp.float32), None), jnp.asarray(matrix, jnp.float32))
    assert np.allclose(product, rows @ matrix, rtol=1e-4, atol=1e-5)
    product = on_both_sides((None, jnp.asarray(columns, jnp.float32)), jnp.asarray(matrix, jnp.float32))
    assert np.allclose(product, matrix * columns, rtol=1e-5)
