"""Planted truth: what robust solvers recover and the SVD does not; and agreement of the entrywise two."""

from __future__ import annotations

import importlib

import jax
import numpy as np
import pytest

import lpjax
from lpjax.solvers._core.checks import make_problem
from lpjax.solvers._core.start import Outcome
from tests.helpers import heavy_tailed, low_rank, norm, product, subspace_distance

pytestmark = pytest.mark.optimized


@pytest.fixture(autouse=True)
def _double(x64):
    return x64


def outlier_rows(seed: int, n: int = 1000, d: int = 40, rank: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """A rank-k matrix whose first fifth of the rows is Gaussian of 100 times the scale.

    So many inliers that the planted subspace is the minimiser (Lerman & Maunu, arXiv 1406.6145, §2): with 200 rows
    of 60 columns it is not, and every solver rightly finds a lower objective elsewhere.
    """
    truth = low_rank(n, d, rank, seed)
    matrix = truth.copy()
    matrix[: n // 5] = 100 * np.random.default_rng(seed + 100).normal(size=(n // 5, d))
    return matrix, truth


@pytest.mark.covering(1)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("init", ["best", "svd", "lewis"])
def test_rows_recover_the_subspace(seed, init):
    matrix, truth = outlier_rows(seed)
    right = np.linalg.svd(truth)[2][:5]
    solution = lpjax.irls_rows(matrix, 5, p=1.0, init=init)
    assert subspace_distance(solution.right, right) <= 1e-6
    assert subspace_distance(lpjax.svd(matrix, 5).right, right) > 0.1


@pytest.mark.slow
@pytest.mark.covering(0)
@pytest.mark.parametrize("solver", ["irls_entries", "admm_entries"])
@pytest.mark.parametrize("seed", [0, 1])
def test_entries_recover_the_matrix(solver, seed):
    truth = low_rank(120, 40, 4, seed)
    rng = np.random.default_rng(seed + 100)
    matrix = truth + (rng.random(truth.shape) < 0.05) * rng.normal(size=truth.shape) * 30
    scale = np.abs(truth).max()
    solution = lpjax.SOLVERS[solver](matrix, 4, p=1.0, num_iters=500, tol=1e-12)
    assert np.abs(product(solution) - truth).max() <= 1e-4 * scale
    assert np.abs(product(lpjax.svd(matrix, 4)) - truth).max() > 0.1 * scale


@pytest.mark.slow
@pytest.mark.covering(0)
@pytest.mark.parametrize("p", [1.0, 1.25, 1.5, 1.75])
@pytest.mark.parametrize("kind", ["heavy", "gaussian"])
def test_admm_reaches_irls(p, kind):
    if kind == "heavy":
        matrix = heavy_tailed(200, 60)
    else:
        rng = np.random.default_rng(2)
        matrix = low_rank(200, 60, 15, 1) + 2 * rng.normal(size=(200, 60))
    reference = lpjax.irls_entries(matrix, 15, p=p, num_iters=2000, tol=1e-6)
    assert reference.converged
    fast = lpjax.admm_entries(matrix, 15, p=p, num_iters=1000)
    assert fast.objective <= 1.01 * reference.objective


@pytest.mark.slow
@pytest.mark.parametrize("p", [1.0, 1.5])
def test_admm_reaches_irls_under_very_unequal_weights(p):
    """One row of weight 10⁴: the penalty must follow the residuals' size, not the weighted objective's."""
    matrix = heavy_tailed(60, 20)
    weights = np.ones(60)
    weights[7] = 1e4
    reference = lpjax.irls_entries(matrix, 5, p=p, num_iters=2000, tol=1e-6, row_weights=weights)
    fast = lpjax.admm_entries(matrix, 5, p=p, num_iters=1000, row_weights=weights)
    start = lpjax.admm_entries(matrix, 5, p=p, num_iters=0, row_weights=weights)
    assert fast.objective <= 1.01 * reference.objective
    assert fast.objective < 0.99 * start.objective


@pytest.mark.slow
@pytest.mark.parametrize("name", ["irls_entries", "admm_entries"])
def test_a_clipped_start_is_not_taken_for_the_optimum_at_p2(name):
    matrix = heavy_tailed(17, 7)
    solution = lpjax.SOLVERS[name](matrix, 3, p=2.0, init="clipped", num_iters=3000, tol=1e-14)
    assert solution.num_iters > 0
    assert solution.objective == pytest.approx(np.linalg.norm(np.linalg.svd(matrix)[1][3:]), rel=1e-6)


@pytest.mark.parametrize("name", ["irls_rows", "irls_entries"])
@pytest.mark.parametrize("p", [1.0, 1.4])
def test_every_step_of_irls_lowers_the_objective(name, p, monkeypatch):
    """Each iterate's own objective, not the best so far; and what a step minimises, the objective smoothed at ε."""
    module = importlib.import_module(f"lpjax.solvers._{name}")
    objectives, surrogates = [], []

    def descend(step, state, candidate, value, num_iters, optimal):
        objectives.append(float(value))
        step = jax.jit(step)
        for _ in range(25):
            state, candidate, value, _ = step(state)
            objectives.append(float(value))
            surrogates.append(float(state.surrogate))
        return Outcome(candidate, value, num_iters, optimal)

    monkeypatch.setattr(module, "descend", descend)
    problem = make_problem(heavy_tailed(30, 8), 3, name, p=p, num_iters=25, tol=0.0, init="svd")
    getattr(module, f"_{name}").__wrapped__(problem)
    for values in (objectives, surrogates):
        assert np.all(np.diff(values) <= 1e-12 * values[0])
    assert objectives[-1] < 0.995 * objectives[0]


def test_metric_and_weights_are_a_change_of_variables():
    """Σ ω‖a − lR‖_C^p is Σ ‖b − lS‖^p with b = ω^{1/p} a C^{1/2}; at p = 2 LAPACK knows the answer."""
    rng = np.random.default_rng(0)
    matrix, half = heavy_tailed(40, 6), rng.normal(size=(6, 6))
    metric = half @ half.T
    values, vectors = np.linalg.eigh(metric)
    root = (vectors * np.sqrt(values)) @ vectors.T
    weights = rng.uniform(0.1, 3, size=40)
    for p in (1.0, 1.6, 2.0):
        with_metric = lpjax.irls_rows(matrix, 2, p=p, row_weights=weights, metric=metric, tol=1e-13)
        residual = (matrix - product(with_metric)) @ root
        assert with_metric.objective == pytest.approx(norm(residual, p, "rows", weights), rel=1e-9)
        changed = lpjax.irls_rows(weights[:, None] ** (1 / p) * (matrix @ root), 2, p=p, tol=1e-13)
        assert with_metric.objective == pytest.approx(float(changed.objective), rel=1e-6)
    direct = lpjax.svd(matrix, 2, row_weights=weights, metric=metric)
    tail = np.linalg.svd(np.sqrt(weights)[:, None] * matrix @ root)[1][2:]
    assert direct.objective == pytest.approx(np.linalg.norm(tail), rel=1e-10)
    assert np.allclose(np.asarray(direct.right) @ metric @ np.asarray(direct.right).T, np.eye(2), atol=1e-9)


@pytest.mark.slow
def test_singular_metric_is_no_failure():
    """Cholesky of such a C fails; here directions that C does not see are simply free."""
    matrix = heavy_tailed(30, 6)
    seen = np.random.default_rng(0).normal(size=(6, 3))
    metric = seen @ seen.T
    for name in ("svd", "irls_rows"):
        solution = lpjax.SOLVERS[name](matrix, 2, p=2.0, metric=metric)
        tail = np.linalg.svd(matrix @ np.linalg.svd(metric)[0] @ np.diag(np.sqrt(np.linalg.svd(metric)[1])))[1][2:]
        assert solution.objective == pytest.approx(np.linalg.norm(tail), rel=1e-7)
        assert np.all(np.isfinite(product(solution)))
        full = lpjax.SOLVERS[name](matrix, 3, p=2.0, metric=metric)
        assert full.objective <= 1e-6 * norm(matrix, 2)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (np.eye(5), "`metric` has shape (5, 5)"),
        (np.triu(np.ones((6, 6))), "`metric` is not symmetric"),
        (np.full((6, 6), np.nan), "`metric` holds NaN"),
    ],
)
def test_bad_metrics(metric, words):
    for name in ("svd", "irls_rows"):
        with pytest.raises(ValueError) as caught:
            lpjax.SOLVERS[name](heavy_tailed(9, 6), 2, metric=metric)
        assert words in str(caught.value)
