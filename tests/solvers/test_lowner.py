"""The cut ellipsoid: it encloses, it shrinks, and each cut is the least ellipsoid there is."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import lpjax
from tests.helpers import heavy_tailed, low_rank, norm


@pytest.fixture(autouse=True)
def _double(x64):
    return x64


def boundary_points(matrix: np.ndarray, p: float, count: int, seed: int = 0) -> np.ndarray:
    """Points with ‖Ax‖_p = 1, among them vertices of the ℓ1 ball's preimage."""
    rng = np.random.default_rng(seed)
    d = matrix.shape[1]
    points = [rng.normal(size=d) for _ in range(count)]
    for _ in range(count):
        rows = matrix[rng.choice(len(matrix), d - 1, replace=False)]
        points.append(np.linalg.svd(rows)[2][-1])
    return np.stack([x / norm((matrix @ x)[None], p) for x in points])


def least_enclosing(points: np.ndarray) -> np.ndarray:
    """H of the least ellipsoid xᵀHx ≤ 1, centre 0, around points: SciPy's SLSQP on the convex program."""
    d = points.shape[1]
    lower = np.tril_indices(d)
    start = np.eye(d) / np.linalg.norm(points, axis=1).max()

    def unpack(v):
        factor = np.zeros((d, d))
        factor[lower] = v
        return factor

    # maximise log det(FᵀF) s.t. ‖Fx‖² ≤ 1, H = FᵀF, F lower triangular with positive diagonal
    result = minimize(
        lambda v: -np.log(np.abs(np.diag(unpack(v)))).sum(),
        start[lower],
        jac=lambda v: -np.divide(1.0, v, out=np.zeros_like(v), where=lower[0] == lower[1]),
        constraints={
            "type": "ineq",
            "fun": lambda v: 1 - ((points @ unpack(v).T) ** 2).sum(axis=1),
            "jac": lambda v: -2 * (points @ unpack(v).T)[:, lower[0]] * points[:, lower[1]],
        },
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-9},
    )
    assert result.success, result.message
    factor = unpack(result.x)
    return factor.T @ factor


@pytest.mark.covering(0)
@pytest.mark.parametrize("p", [1.0, 1.25, 1.5, 2.0])
@pytest.mark.parametrize("shape", [(30, 2), (40, 5), (60, 12)])
def test_encloses_and_is_enclosed(p, shape):
    matrix = heavy_tailed(*shape)
    solution = lpjax.lowner(matrix, 1, p=p)
    ellipsoid = solution.ellipsoid
    assert solution.converged
    assert ellipsoid.lower == 1
    assert 1 <= ellipsoid.upper <= shape[1]
    points = boundary_points(matrix, p, 500)
    squared = np.einsum("ij,jk,ik->i", points, np.asarray(ellipsoid.matrix), points)
    assert np.all(squared <= 1 + 1e-9)  # the level set lies inside
    assert np.all(squared >= 1 / float(ellipsoid.upper) ** 2 - 1e-9)  # and holds the shrunk ellipsoid


@pytest.mark.parametrize("p", [3.0, 10.0, np.inf])
def test_encloses_and_is_enclosed_above_two(p):
    matrix = heavy_tailed(40, 5)
    matrix[7:9] = 0
    solution = lpjax.lowner(matrix, 1, p=p)
    ellipsoid = solution.ellipsoid
    assert solution.converged
    assert ellipsoid.lower == 1
    if p == np.inf:  # John: r^{1/2}
        assert ellipsoid.upper <= 1.01 * np.sqrt(5)
    points = boundary_points(matrix, p, 500)
    squared = np.einsum("ij,jk,ik->i", points, np.asarray(ellipsoid.matrix), points)
    assert np.all(squared <= 1 + 1e-9)
    assert np.all(squared >= 1 / float(ellipsoid.upper) ** 2 - 1e-9)
    volumes = np.r_[0.0, np.asarray(ellipsoid.log_volumes)[: int(solution.num_iters)]]
    assert np.all(np.diff(volumes) < 0)


@pytest.mark.parametrize("shape", [(30, 2), (40, 5), (60, 12)])
def test_volume_falls_at_every_cut(shape):
    matrix = heavy_tailed(*shape)
    solution = lpjax.lowner(matrix, 1, p=1.0)
    count = int(solution.num_iters)
    volumes = np.asarray(solution.ellipsoid.log_volumes)
    assert count > 0
    steps = np.diff(np.r_[0.0, volumes[:count]])
    assert np.all(steps < 0)
    assert np.all(volumes[count:] == volumes[count - 1])
    # The sum of the cuts is the volume of what is handed back, against that of ‖Ax‖₂ ≤ 1.
    change = np.log(np.linalg.svd(matrix)[1]).sum() - np.log(np.asarray(solution.ellipsoid.values)).sum()
    assert volumes[-1] == pytest.approx(change, rel=1e-8)


@pytest.mark.covering(0)
@pytest.mark.parametrize("d", [2, 3, 5])
def test_a_cut_is_the_least_ellipsoid_around_ball_and_slab(d):
    """One cut against SciPy: the least ellipsoid around {‖x‖ ≤ 1, |gᵀx| ≤ 1}, sampled on its rim."""
    matrix = np.linalg.qr(heavy_tailed(40, d))[0]  # the first ellipsoid is the unit ball
    ellipsoid = lpjax.lowner(matrix, 1, p=1.0, num_iters=1).ellipsoid
    values, vectors = np.linalg.eigh(np.asarray(ellipsoid.matrix))
    g = vectors[:, -1]  # the short axis: half width √d·α
    alpha = 1 / np.sqrt(d * values[-1])
    rng = np.random.default_rng(0)
    side = rng.normal(size=(400, d))
    side -= np.outer(side @ g, g)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    height = rng.uniform(-alpha, alpha, size=400)
    height[:200] = alpha * np.sign(height[:200])
    rim = side * np.sqrt(1 - height**2)[:, None] + np.outer(height, g)
    expected = least_enclosing(rim)
    sampled = np.linalg.slogdet(expected)[1]
    ours = np.linalg.slogdet(np.asarray(ellipsoid.matrix))[1]
    assert ours <= sampled + 1e-6  # ours holds the whole body, SciPy's only samples of it
    assert ours == pytest.approx(sampled, abs=0.1)


@pytest.mark.covering(0)
@pytest.mark.parametrize("d", [2, 3, 5])
def test_against_the_least_enclosing_ellipsoid(d):
    """SciPy's least ellipsoid around the level set is smaller, but by less than the certified factor."""
    matrix = heavy_tailed(25, d, seed=d)
    ours = lpjax.lowner(matrix, 1, p=1.0).ellipsoid
    least = least_enclosing(boundary_points(matrix, 1.0, 300, seed=1))
    gap = (np.linalg.slogdet(least)[1] - np.linalg.slogdet(np.asarray(ours.matrix))[1]) / 2
    assert -0.02 <= gap <= d * np.log(float(ours.upper))
    lewis = lpjax.lewis(matrix, 1, p=1.0, tol=1e-12).ellipsoid
    lewis_gap = (np.linalg.slogdet(least)[1] - np.linalg.slogdet(np.asarray(lewis.matrix))[1]) / 2
    assert -0.02 <= lewis_gap < gap  # why `lewis` is the default


def test_rank_deficient_and_one_dimensional():
    matrix = low_rank(30, 6, 3)
    ellipsoid = lpjax.lowner(matrix, 3, p=1.0).ellipsoid
    assert np.sum(np.asarray(ellipsoid.values) > 1e-9) == 3
    points = np.random.default_rng(0).normal(size=(200, 6))
    for x in points:
        inner = norm((matrix @ x)[None], 1)
        outer = np.sqrt(x @ np.asarray(ellipsoid.matrix) @ x)
        assert outer <= inner * (1 + 1e-9)
        assert inner <= float(ellipsoid.upper) * outer * (1 + 1e-9)
    column = heavy_tailed(9, 1)
    segment = lpjax.lowner(column, 1, p=1.0).ellipsoid
    assert segment.values[0] == pytest.approx(np.abs(column).sum(), rel=1e-9)
    assert segment.upper == pytest.approx(1)


def test_p2_needs_no_cut():
    matrix = heavy_tailed(20, 4)
    solution = lpjax.lowner(jnp.asarray(matrix), 2, p=2.0)
    assert solution.num_iters == 0
    assert np.allclose(np.asarray(solution.ellipsoid.matrix), matrix.T @ matrix)
    assert solution.ellipsoid.upper == 1
