"""Every solver at p > 2, ∞ included: what holds for p ≤ 2 holds there, too, and the optima of tiny matrices."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.optimize import linprog, minimize

import lpjax
from tests.helpers import ITERATIVE, OBJECTIVE, SOLVERS, heavy_tailed, low_rank, product

pytestmark = pytest.mark.covering(1)

POWERS = [2.5, 3.0, 4.0, 10.0, 1000.0, np.inf]


def size(residual: np.ndarray, p: float, over: str, weights: np.ndarray | None = None) -> float:
    """The objective by its definition, in double precision, with powers of numbers up to 1."""
    residual = np.asarray(residual, np.float64)
    weights = np.ones(len(residual)) if weights is None else np.asarray(weights, np.float64)
    parts = np.linalg.norm(residual, axis=1, keepdims=True) if over == "rows" else np.abs(residual)
    parts = parts[weights > 0] * weights[weights > 0, None] ** (1 / p)
    largest = float(parts.max(initial=0))
    return largest if largest == 0 or p == np.inf else largest * float(((parts / largest) ** p).sum() ** (1 / p))


def solve(name: str, matrix, rank: int, **options):
    return lpjax.SOLVERS[name](jnp.asarray(matrix), rank, **options)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("weighted", [False, True])
def test_objective_is_that_of_the_factors(name, weighted, dtype):
    matrix = heavy_tailed(17, 7).astype(dtype)
    weights = np.random.default_rng(2).uniform(0, 2, 17).astype(dtype) if weighted else None
    if weights is not None:
        weights[[3, 5]] = 0, 1e-30
    over, tolerance = OBJECTIVE[name], 1e-4 if dtype == "float32" else 1e-10
    for p in POWERS:
        solution = solve(name, matrix, 3, p=p, row_weights=weights)
        assert solution.objective.dtype == solution.left.dtype == jnp.dtype(dtype)
        expected = size(matrix - product(solution), p, over, weights)
        assert float(solution.objective) == pytest.approx(expected, rel=tolerance)
        assert np.allclose(solution.right @ solution.right.T, np.eye(3), atol=1e-5)
        if name in ITERATIVE:
            svd = lpjax.svd(jnp.asarray(matrix), 3, p=p, over=over, row_weights=weights).objective
            assert float(solution.objective) <= float(svd) * (1 + 1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_deficient_zero_and_odd_matrices(name):
    deficient, odd = low_rank(17, 7, 2), heavy_tailed(17, 7)
    odd[3:8], odd[:, 2], odd[10:] = 0, 0, odd[10]
    for p in (3.0, np.inf):
        for matrix in (deficient, np.zeros((17, 7))):
            solution = solve(name, matrix.astype(np.float32), 3, p=p)
            assert np.allclose(product(solution), matrix, atol=2e-5 * np.abs(matrix).max())
            assert np.isfinite(solution.objective)
        solution = solve(name, odd.astype(np.float32), 3, p=p)
        assert np.all(np.isfinite(solution.left))
        assert size(odd - product(solution), p, OBJECTIVE[name]) <= size(odd, p, OBJECTIVE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_wide_thin_and_full_matrices(name):
    for p in (3.0, np.inf):
        full = [(heavy_tailed(17, 7), 7), (heavy_tailed(7, 17), 7), (heavy_tailed(1, 5), 1), (heavy_tailed(5, 1), 1)]
        for matrix, rank in (*full, (low_rank(7, 17, 2), 3)):
            solution = solve(name, matrix.astype(np.float32), rank, p=p)
            assert np.allclose(product(solution), matrix, atol=2e-5 * np.abs(matrix).max())
        wide = heavy_tailed(7, 17).astype(np.float32)
        solution = solve(name, wide, 3, p=p)
        expected = size(wide - product(solution), p, OBJECTIVE[name])
        assert float(solution.objective) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_scale(name):
    matrix = heavy_tailed(17, 7).astype(np.float32)
    for p in (3.0, np.inf):
        plain = solve(name, matrix, 3, p=p)
        for exponent in (2.0**-130, 2.0**-60, 2.0**60, 2.0**120):
            scaled = solve(name, matrix * np.float32(exponent), 3, p=p)
            assert float(scaled.objective) == pytest.approx(float(plain.objective) * exponent, rel=1e-4)
            assert np.all(np.isfinite(scaled.left))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_row_of_weight_zero_has_no_say(name, x64):
    matrix = heavy_tailed(17, 7)
    weights = np.random.default_rng(4).uniform(0.5, 2, 17)
    weights[5] = 0
    changed = matrix.copy()
    changed[5] = -3 * changed[5] + 1
    limit = 1000 if name == "lowner" else 5  # whose limit is static
    for p in (3.0, np.inf):
        run = functools.partial(solve, name, rank=3, p=p, num_iters=limit)
        first, second = (run(a, row_weights=weights).right for a in (matrix, changed))
        assert np.allclose(first.T @ first, second.T @ second, atol=1e-6)
        if p == np.inf:  # any weights above 0 are alike
            third = run(matrix, row_weights=(weights > 0) * 1e-3).right
            if name != "svd":
                assert np.allclose(first.T @ first, third.T @ third, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("mapped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_p_may_be_traced_and_mapped(name, mapped, x64):
    """Below and above 2 in one program."""
    matrix, exponents = jnp.asarray(heavy_tailed(17, 7)), [1.5, 3.0, np.inf]
    run = functools.partial(lpjax.SOLVERS[name], matrix, 3, num_iters=10)
    traced = jax.jit(lambda p: run(p=p))
    several = jax.vmap(lambda p: run(p=p))(jnp.asarray(exponents)) if mapped else None
    for i, p in enumerate(exponents):
        eager, other = run(p=p), jax.tree.map(lambda x, i=i: x[i], several) if mapped else traced(p)
        assert np.allclose(product(eager), product(other), atol=1e-8 * np.abs(matrix).max())
        assert float(eager.objective) == pytest.approx(float(other.objective), rel=1e-8)


@pytest.mark.parametrize("name", SOLVERS)
def test_matrices_may_be_mapped(name, x64):
    matrix = jnp.asarray(heavy_tailed(17, 7))
    run = functools.partial(lpjax.SOLVERS[name], rank=3, num_iters=10)
    for p in (3.0, np.inf):
        several = jax.vmap(lambda a, p=p: run(a, p=p))(jnp.stack([matrix, 2 * matrix]))
        assert np.allclose(several.objective, np.array([1, 2]) * float(run(matrix, p=p).objective), rtol=1e-8)


@pytest.mark.parametrize("name", SOLVERS)
def test_not_finite_inside_jit_is_data(name):
    matrix = heavy_tailed(17, 7).astype(np.float32)
    matrix[2, 1] = np.nan
    solution = jax.jit(lambda a: lpjax.SOLVERS[name](a, 3, p=np.inf))(matrix)
    assert np.isinf(solution.objective)
    assert not solution.converged
    assert np.all(np.asarray(solution.left) == 0)


@pytest.mark.parametrize("name", ITERATIVE)
def test_never_worse_than_the_start_and_monotone(name, x64):
    matrix, over = jnp.asarray(heavy_tailed(17, 7)), OBJECTIVE[name]
    plan = {"schedule": 30} if name == "admm_entries" else {}  # without it, each limit has a schedule of its own
    for p in (3.0, np.inf):
        run = functools.partial(solve, name, matrix, 3, p=p, init="svd", tol=0.0, **plan)
        values = [float(run(num_iters=i).objective) for i in (0, 1, 2, 3, 5, 8, 13, 30)]
        assert values[0] == pytest.approx(float(lpjax.svd(matrix, 3, p=p, over=over).objective), rel=1e-9)
        assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(values))
        assert values[-1] < 0.999 * values[0]
        first = run()
        assert solve(name, matrix, 3, p=p, init=first).objective <= first.objective * (1 + 1e-12)


def best_of_many(matrix: np.ndarray, rank: int, p: float, over: str, starts: int) -> float:
    """The least objective that SciPy finds from random starts: by BFGS, or at p = 1 and ∞ by SLSQP, which minimises
    the sum of bounds t ≥ |residual|, one for each entry or row, or one for all."""
    (n, d), rng = matrix.shape, np.random.default_rng(0)
    split, count = n * rank, (n + d) * rank

    def residual(x: np.ndarray) -> np.ndarray:
        return matrix - x[:split].reshape(n, rank) @ x[split:count].reshape(rank, d)

    def room(x: np.ndarray) -> np.ndarray:
        rest, tops = residual(x), x[count:]
        if over == "rows":
            return np.concatenate([tops**2 - (rest**2).sum(axis=1), tops])
        return np.concatenate([tops - rest.ravel(), tops + rest.ravel()])

    def power(x: np.ndarray) -> float:
        parts = np.linalg.norm(residual(x), axis=1) if over == "rows" else np.abs(residual(x))
        return float((parts**p).sum())

    objectives = []
    for _ in range(starts):
        x = rng.normal(size=count)
        if 1 < p < np.inf:
            x = minimize(power, x, method="BFGS", options={"gtol": 1e-8}).x
        else:
            rest = np.linalg.norm(residual(x), axis=1) if over == "rows" else np.abs(residual(x)).ravel()
            tops = rest if p == 1 else [rest.max()]
            limit = {"type": "ineq", "fun": room}
            x = minimize(lambda x: x[count:].sum(), np.r_[x, tops], constraints=limit, options={"maxiter": 300}).x
        objectives.append(size(residual(x), p, over))
    return min(objectives)


@pytest.mark.parametrize("seed", [0, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("p", [1.0, 3.0, np.inf])
@pytest.mark.parametrize("name", ITERATIVE)
def test_the_optimum_of_a_tiny_matrix(name, p, seed, x64):
    """Not below it, and near it: a smooth objective to many digits, a largest one to what stages and ADMM reach.

    At p = 1, where SciPy itself is right to 1e-5 only, other seeds have local optima that alternating IRLS ends in.
    """
    matrix, over = np.random.default_rng(seed).normal(size=(4, 3)), OBJECTIVE[name]
    optimum = best_of_many(matrix, 1, p, over, starts=20)
    objective = float(solve(name, matrix, 1, p=p, num_iters=1000, tol=1e-12).objective)
    tolerance = {1.0: 1e-5, 3.0: 1e-8, np.inf: 1e-6 if name == "admm_entries" else 1e-3}[p]
    assert optimum * (1 - (1e-5 if p == 1 else 1e-8)) <= objective <= optimum * (1 + tolerance)


@pytest.mark.parametrize("name", ["irls_entries", "admm_entries"])
def test_left_is_nearly_the_best_for_right(name, x64):
    """At p = ∞, with right fixed, the best left is a linear program a row: exact, by HiGHS."""
    matrix = heavy_tailed(20, 7)
    solution = solve(name, matrix, 2, p=np.inf, num_iters=1000)
    right = np.asarray(solution.right, np.float64)
    worst = []
    for row in matrix:
        # min t with −t ≤ a − xᵀR ≤ t.
        sides = np.vstack([np.c_[right.T, -np.ones(7)], np.c_[-right.T, -np.ones(7)]])
        bounds = [(None, None)] * 2 + [(0, None)]
        worst.append(linprog([0, 0, 1], sides, np.r_[row, -row], bounds=bounds).fun)
    assert max(worst) * (1 - 1e-12) <= float(solution.objective) <= 1.01 * max(worst)


@pytest.mark.parametrize("name", ITERATIVE)
def test_a_stationary_point_of_a_smooth_power(name, x64):
    """p = 4: the gradient with respect to both factors is small beside what it is at the SVD."""
    matrix, over = heavy_tailed(17, 7), OBJECTIVE[name]

    def gradient(solution) -> float:
        objective = jax.grad(lambda pair: lpjax.lp_norm(matrix - pair[0] @ pair[1], 4.0, over))
        left, right = objective((solution.left, solution.right))
        return float(jnp.linalg.norm(left @ solution.right) + jnp.linalg.norm(solution.left @ right))

    options = {"num_iters": 2000, "tol": 1e-14}
    assert gradient(solve(name, matrix, 3, p=4.0, **options)) <= 1e-2 * gradient(lpjax.svd(matrix, 3))


@pytest.mark.parametrize("over", ["entries", "rows"])
def test_norms_of_large_exponents(over, dtype):
    rng = np.random.default_rng(0)
    residual, weights = rng.normal(size=(9, 5)), rng.uniform(size=9)
    weights[2] = 0
    measure = jax.jit(lambda r, w, p: lpjax.lp_norm(r, p, over, row_weights=w))
    for scale in (1e-42, 1e-30, 1.0, 1e37):
        matrix = (residual * scale).astype(dtype)
        for p in (*POWERS, 1e6):
            expected = size(matrix, p, over, weights.astype(dtype))
            tolerance = {"rel": 1e-5 if dtype == "float32" else 1e-12, "abs": 1.5e-45}
            assert float(measure(matrix, weights.astype(dtype), p)) == pytest.approx(expected, **tolerance)
    for p in (3.0, np.inf):
        assert lpjax.lp_norm(np.zeros((5, 3), np.float32), p, over) == 0
        assert lpjax.lp_norm(np.zeros((0, 3), np.float32), p, over) == 0
        assert np.isnan(lpjax.lp_norm(np.array([[1, np.nan]], np.float32), p, over))
        assert np.isinf(lpjax.lp_norm(np.array([[1, np.inf]], np.float32), p, over))


def test_gradients_of_norms(x64):
    residual = jnp.asarray(heavy_tailed(5, 4))
    for p in (3.0, 10.0):
        for over in ("entries", "rows"):
            check_grads(lambda r, p=p, over=over: lpjax.lp_norm(r, p, over), (residual,), 1, ["rev"])
    slope = jax.grad(lambda r: lpjax.lp_norm(r, np.inf))(residual)
    largest = np.abs(residual) == np.abs(residual).max()
    assert np.array_equal(slope, np.where(largest, np.sign(residual), 0))
