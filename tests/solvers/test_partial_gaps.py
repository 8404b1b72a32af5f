"""What one factor alone can gain: never less than the bound says, and close to it after enough steps."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.optimize

import lpjax
from tests.helpers import heavy_tailed, low_rank, norm, product


def least_l1(row: np.ndarray, basis: np.ndarray) -> float:
    """min over x of ‖row − xB‖₁, by linear programming."""
    k, d = basis.shape
    sides = np.block([[basis.T, -np.eye(d)], [-basis.T, -np.eye(d)]])
    costs, bounds = np.r_[np.zeros(k), np.ones(d)], [(None, None)] * k + [(0, None)] * d
    result = scipy.optimize.linprog(costs, A_ub=sides, b_ub=np.r_[row, -row], bounds=bounds)
    assert result.success
    return result.fun


def least_lp(row: np.ndarray, basis: np.ndarray, p: float) -> float:
    """min over x of Σ |row − xB|^p, from where least squares is."""
    start = np.linalg.lstsq(basis.T, row)[0]

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        rest = row - x @ basis
        return np.sum(np.abs(rest) ** p), -p * basis @ (np.sign(rest) * np.abs(rest) ** (p - 1))

    return scipy.optimize.minimize(value, start, jac=True, method="BFGS", options={"gtol": 1e-9}).fun


@pytest.mark.parametrize("start", ["svd", "admm"])
def test_against_linear_programs(x64, start):
    for seed in range(3):
        matrix, rng = heavy_tailed(17, 9, seed), np.random.default_rng(seed)
        weights = rng.uniform(0, 2, 17)
        solution = lpjax.svd(matrix, 3) if start == "svd" else lpjax.admm_entries(matrix, 3, row_weights=weights)
        left, right = np.asarray(solution.left), np.asarray(solution.right)
        rest = matrix - product(solution)
        # A weight on a row of |·|₁ is one on the row.
        best_left = sum(w * least_l1(row, right) for w, row in zip(weights, matrix, strict=True))
        heavy = weights[:, None]
        best_right = sum(least_l1(column, (heavy * left).T) for column in (heavy * matrix).T)
        for count, near in ((0, 0.5), (60, 0.03), (600, 2e-3)):
            gaps = lpjax.partial_gaps(matrix, solution, row_weights=weights, num_iters=count)
            assert best_left * (1 - near) < gaps.left_bound <= best_left
            assert best_right * (1 - near) < gaps.right_bound <= best_right
            assert float(gaps.objective) == pytest.approx(norm(rest, 1.0, weights=weights), rel=1e-12)
            assert float(gaps.left) == pytest.approx(float(1 - gaps.left_bound / gaps.objective))
        if start == "admm":
            assert max(gaps.left, gaps.right) < 0.01  # alternating has come to an end


def test_against_smooth_minimisation(x64):
    matrix = heavy_tailed(15, 8)
    solution = lpjax.svd(matrix, 2)
    left, right = np.asarray(solution.left), np.asarray(solution.right)
    for p in (1.5, 2.0):
        best_left = sum(least_lp(row, right, p) for row in matrix) ** (1 / p)
        best_right = sum(least_lp(column, left.T, p) for column in matrix.T) ** (1 / p)
        gaps = lpjax.partial_gaps(matrix, solution, p=p)
        assert best_left * (1 - 1e-4) < gaps.left_bound <= best_left * (1 + 1e-9)
        assert best_right * (1 - 1e-4) < gaps.right_bound <= best_right * (1 + 1e-9)
    assert gaps.left < 1e-9  # at p = 2 the SVD is optimal


def test_single_precision_stays_below():
    for seed in range(5):
        matrix = heavy_tailed(30, 12, seed).astype(np.float32)
        solution = lpjax.admm_entries(matrix, 4)
        gaps = lpjax.partial_gaps(matrix, solution, num_iters=1000)
        best = sum(least_l1(row, np.asarray(solution.right, np.float64)) for row in matrix.astype(np.float64))
        assert best * (1 - 1e-3) < float(gaps.left_bound) <= best


def test_odd_matrices():
    """Wide, of a rank below that of the pair, and far from order one."""
    wide = heavy_tailed(6, 15).astype(np.float32)
    solution = lpjax.admm_entries(wide, 2)
    assert lpjax.partial_gaps(wide, solution).left < 0.05
    for scale in (2.0**90, 2.0**-90):
        scaled = solution._replace(left=solution.left * np.float32(scale))
        gaps = lpjax.partial_gaps(wide * np.float32(scale), scaled)
        plain = lpjax.partial_gaps(wide, solution)
        assert float(gaps.left_bound) == pytest.approx(float(plain.left_bound) * scale, rel=1e-3)
    exact = low_rank(9, 7, 2).astype(np.float32)
    gaps = lpjax.partial_gaps(exact, lpjax.svd(exact, 4))
    assert gaps.left_bound <= gaps.objective < 1e-3


def test_transformations():
    stack = np.stack([heavy_tailed(9, 7, seed) for seed in range(3)]).astype(np.float32)
    solutions = [lpjax.svd(matrix, 2) for matrix in stack]
    pairs = np.stack([s.left for s in solutions]), np.stack([s.right for s in solutions])

    def run(matrix, pair):
        return lpjax.partial_gaps(matrix, pair, num_iters=30)

    mapped = jax.vmap(run)(stack, pairs)
    assert "left_bound=f32[3]" in repr(mapped)
    for i, matrix in enumerate(stack):
        alone = run(matrix, (pairs[0][i], pairs[1][i]))
        assert float(mapped.left_bound[i]) == pytest.approx(float(alone.left_bound), rel=1e-4)
        assert float(mapped.right[i]) == pytest.approx(float(alone.right), abs=1e-4)


def test_refusals():
    matrix = heavy_tailed(9, 5).astype(np.float32)
    with pytest.raises(ValueError, match="`init` has factors of shapes"):
        lpjax.partial_gaps(matrix[:8], lpjax.svd(matrix, 2))
    with pytest.raises(ValueError, match="`matrix` holds NaN or infinite entries"):
        lpjax.partial_gaps(matrix * np.nan, lpjax.svd(matrix, 2))
    for p in (2.5, np.inf, 0.5):
        with pytest.raises(ValueError, match=r"`p` is .*; expected a number in \[1, 2\]"):
            lpjax.partial_gaps(matrix, lpjax.svd(matrix, 2), p=p)
