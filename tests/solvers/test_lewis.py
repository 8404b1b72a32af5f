"""Lewis weights, their ellipsoid, and the bounds that it gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from tests.helpers import heavy_tailed, low_rank, norm, product

POWERS = [1.0, 1.25, 1.5, 1.75, 2.0]


@pytest.fixture(autouse=True)
def _double(x64):
    return x64


def fixed_point_residual(matrix: np.ndarray, weights: np.ndarray, p: float) -> float:
    """max |w − (aᵀM⁻¹a)^{p/2}| by the definition, rows of weight zero left out."""
    rows = matrix[weights > 0]
    w = weights[weights > 0]
    metric = rows.T @ (rows * w[:, None] ** (1 - 2 / p))
    quadratic = np.einsum("ij,jk,ik->i", rows, np.linalg.pinv(metric, rcond=1e-12), rows)
    return float(np.abs(w - quadratic ** (p / 2)).max())


@pytest.mark.parametrize("p", [0.5, *POWERS, 3.0, 3.5, 4.0, 6.0, 10.0])
@pytest.mark.parametrize("kind", ["heavy", "deficient", "zero rows"])
def test_fixed_point(p, kind):
    matrix = low_rank(40, 7, 5) if kind == "deficient" else heavy_tailed(40, 7)
    if kind == "zero rows":
        matrix[3:6] = 0
    solution = lpjax.lewis(matrix, 3, p=p, tol=1e-12, num_iters=500)
    weights = np.asarray(solution.ellipsoid.weights)
    assert solution.converged
    assert fixed_point_residual(matrix, weights, p) <= 1e-10
    assert weights.sum() == pytest.approx(np.linalg.matrix_rank(matrix), abs=1e-9)
    assert np.all(weights >= 0)
    assert np.all(weights <= 1 + 1e-9)


@pytest.mark.parametrize("kind", ["heavy", "deficient"])
def test_infinity_is_a_d_optimal_design(kind):
    """Kiefer & Wolfowitz 1960: a_iᵀM⁻¹a_i ≤ 1, with equality if the weight is positive."""
    matrix = low_rank(40, 7, 5) if kind == "deficient" else heavy_tailed(40, 7)
    matrix[3:6] = 0
    solution = lpjax.lewis(matrix, 3, p=np.inf, tol=1e-8, num_iters=1000)
    weights = np.asarray(solution.ellipsoid.weights)
    metric = matrix.T @ (matrix * weights[:, None])
    quadratic = np.einsum("ij,jk,ik->i", matrix, np.linalg.pinv(metric, rcond=1e-12), matrix)
    assert solution.converged
    assert quadratic.max() <= 1 + 2e-8
    assert weights.sum() == pytest.approx(np.linalg.matrix_rank(matrix), abs=1e-9)
    assert weights @ (1 - quadratic) == pytest.approx(0, abs=1e-7)
    assert np.allclose(solution.ellipsoid.matrix, metric, rtol=1e-8, atol=1e-8 * np.abs(metric).max())


def test_infinity_is_the_largest_ellipsoid_in_a_polytope():
    """John 1948: in a cube it is the ball, and facets that do not touch it change nothing."""
    loose = heavy_tailed(20, 4)
    matrix = np.vstack([np.eye(4), 0.9 * loose / np.linalg.norm(loose, axis=1, keepdims=True)])
    ellipsoid = lpjax.lewis(matrix, 2, p=np.inf, tol=1e-8, num_iters=1000).ellipsoid
    assert np.allclose(ellipsoid.matrix, np.eye(4), atol=1e-6)
    assert np.allclose(ellipsoid.weights, np.repeat([1, 0], [4, 20]), atol=1e-6)
    assert ellipsoid.lower == pytest.approx(0.5)
    assert ellipsoid.upper == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("p", [3.0, 4.0, 6.0, 10.0, np.inf])
@pytest.mark.parametrize("num_iters", [3, 500])
def test_sandwich_above_two(p, num_iters):
    """lower ‖x‖_M ≤ ‖Ax‖_p ≤ upper ‖x‖_M, also when the iteration has been cut short."""
    matrix = heavy_tailed(60, 7)
    ellipsoid = lpjax.lewis(matrix, 1, p=p, tol=1e-9, num_iters=num_iters).ellipsoid
    lower, upper, metric = float(ellipsoid.lower), float(ellipsoid.upper), np.asarray(ellipsoid.matrix)
    assert lower == pytest.approx(7 ** (1 / p - 0.5), rel=1e-12)
    assert upper >= 1
    assert num_iters == 3 or upper <= 1 + 1e-8
    rng = np.random.default_rng(0)
    # On the ellipsoid |a_iᵀx| is largest at M⁻¹a_i.
    points = np.vstack([rng.normal(size=(1000, 7)), np.asarray(ellipsoid.vectors).T, matrix @ np.linalg.inv(metric)])

    def ratio(x):
        return jnp.log(lpjax.lp_norm((matrix @ x)[None], p) / jnp.sqrt(x @ metric @ x))

    slope, low = jax.jit(jax.vmap(jax.grad(ratio))), jnp.asarray(points[:50])
    for _ in range(60):  # steepest descent
        low = low / jnp.linalg.norm(low, axis=1, keepdims=True)
        low = low - 0.05 * slope(low)
    for x in np.vstack([points, low]):
        outer, inner = np.sqrt(x @ metric @ x), norm((matrix @ x)[None], p)
        assert lower * outer * (1 - 1e-9) <= inner <= upper * outer * (1 + 1e-9)


def test_weights_of_copies_and_of_leverage():
    """p = 2: leverage scores. A row repeated m times shares one weight, for p = 1 too."""
    matrix = heavy_tailed(30, 6)
    leverage = np.linalg.norm(np.linalg.qr(matrix)[0], axis=1) ** 2
    assert np.allclose(lpjax.lewis(matrix, 2, p=2.0).ellipsoid.weights, leverage, atol=1e-12)
    options = {"p": 1.0, "tol": 1e-13, "num_iters": 500}
    single = lpjax.lewis(matrix, 2, **options, row_weights=np.r_[4.0, np.ones(29)]).ellipsoid.weights
    copied = lpjax.lewis(np.vstack([np.tile(matrix[0], (4, 1)), matrix[1:]]), 2, **options).ellipsoid.weights
    assert np.sum(copied[:4]) == pytest.approx(float(single[0]), rel=1e-8)
    assert np.allclose(copied[4:], single[1:], rtol=1e-8)


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("shape", [(60, 7), (7, 7), (5, 9)])
def test_sandwich(p, shape):
    """lower ‖x‖_M ≤ ‖Ax‖_p ≤ upper ‖x‖_M on random, axis, sparse and adversarial x."""
    matrix = heavy_tailed(*shape)
    ellipsoid = lpjax.lewis(matrix, 1, p=p, tol=1e-13, num_iters=500).ellipsoid
    rank = min(shape)
    metric = np.asarray(ellipsoid.matrix)
    assert ellipsoid.lower == 1
    assert ellipsoid.upper == pytest.approx(rank ** (1 / p - 0.5), rel=1e-12)
    rng = np.random.default_rng(0)
    points = [rng.normal(size=(1000, shape[1])), np.asarray(ellipsoid.vectors).T, np.eye(shape[1])]
    points.append(rng.normal(size=(300, shape[1])) * (rng.random((300, shape[1])) < 0.3))
    if shape[0] >= shape[1]:
        # Kinks of ‖Ax‖₁: x with Ax = 0 on d − 1 rows.
        for _ in range(100):
            rows = matrix[rng.choice(shape[0], shape[1] - 1, replace=False)]
            points.append(np.linalg.svd(rows)[2][-1:])
    # Steepest ascent and descent of the ratio.
    ratio = jax.grad(lambda x: jnp.log(jnp.sum(jnp.abs(matrix @ x) ** p)) / p - jnp.log(x @ metric @ x) / 2)
    ratio = jax.jit(jax.vmap(ratio))
    for sign in (1, -1):
        x = jnp.asarray(rng.normal(size=(50, shape[1])))
        for _ in range(60):
            x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
            x = x + sign * 0.05 * ratio(x)
        points.append(np.asarray(x))
    for x in np.vstack(points):
        outer = np.sqrt(max(x @ metric @ x, 0))
        inner = norm((matrix @ x)[None], p)
        assert outer <= inner * (1 + 1e-9) + 1e-12
        assert inner <= float(ellipsoid.upper) * outer * (1 + 1e-9) + 1e-9 * norm(matrix, 2)


@pytest.mark.slow
@pytest.mark.parametrize("p", POWERS)
def test_bounds(p):
    matrix = heavy_tailed(50, 8)
    rng = np.random.default_rng(1)
    for k in (1, 5):
        solution = lpjax.lewis(matrix, k, p=p, tol=1e-12, num_iters=500)
        ellipsoid = solution.ellipsoid
        residual = matrix - product(solution)
        operator = lpjax.operator_bound(ellipsoid.values, k, ellipsoid.upper)
        for x in np.vstack([rng.normal(size=(500, 8)), np.linalg.svd(residual)[2]]):
            assert norm((residual @ x / np.linalg.norm(x))[None], p) <= operator * (1 + 1e-9)
        bound = lpjax.entries_bound(ellipsoid.values, k, ellipsoid.upper, 8, p)
        assert norm(residual, p) <= bound * (1 + 1e-12)  # equal at p = 2
        lowest = lpjax.lower_bound(ellipsoid.values, k)
        for other in ("svd", "admm_entries"):
            assert lowest <= lpjax.SOLVERS[other](matrix, k, p=p, num_iters=50).objective * (1 + 1e-9)


def test_ill_conditioned_ellipsoid():
    """Over ten decades of scale of the columns the axes are those of the well-conditioned matrix."""
    matrix = heavy_tailed(40, 5)
    scales = np.logspace(0, -10, 5)
    plain = lpjax.lewis(matrix, 2, p=1.0, tol=1e-12, num_iters=500).ellipsoid
    scaled = lpjax.lewis(matrix * scales, 2, p=1.0, tol=1e-12, num_iters=500).ellipsoid
    assert np.allclose(plain.weights, scaled.weights, rtol=1e-4)
    undone = np.asarray(scaled.matrix) / np.outer(scales, scales)
    assert np.allclose(undone[:2, :2], np.asarray(plain.matrix)[:2, :2], rtol=1e-4)


def test_a_wide_matrix_has_weights_one():
    """n ≤ d, rows independent: every weight is 1, M = AᵀA, and lewis is the SVD."""
    matrix = heavy_tailed(5, 9)
    solution = lpjax.lewis(matrix, 2, p=1.0)
    assert np.allclose(solution.ellipsoid.weights, 1)
    assert solution.objective == pytest.approx(float(lpjax.svd(matrix, 2, p=1.0).objective), rel=1e-10)
