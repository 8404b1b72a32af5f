"""Lower bounds are never above the optimum, and are exact or near it for matrices with a known optimum."""

# A bound may be None, of solvers from elsewhere; here it never is.
# pyright: reportOptionalOperand=false, reportOperatorIssue=false

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax.solvers import SOLVERS
from lpjax.solvers._certify import _certify
from lpjax.solvers._core.checks import make_problem
from tests.helpers import heavy_tailed, low_rank, norm, product, truncated_svd

pytestmark = pytest.mark.covering(1)

PS = (1.0, 1.3, 2.0)
COUNT = 60


def kinds(n: int, d: int, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Stacks of random matrices of several kinds."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(count, n, d))
    thin = rng.normal(size=(count, n, 2)) @ rng.normal(size=(count, 2, d))
    return {
        "normal": normal,
        "tails": rng.standard_t(1.5, size=(count, n, d)),
        "outlier rows": normal * np.where(rng.uniform(size=(count, n, 1)) < 0.2, 30, 1),
        "decaying": normal * 0.3 ** np.arange(d),
        "deficient": thin,
        "nearly deficient": thin + 1e-4 * normal,
        "equal rows": rng.normal(size=(count, 1, d)) + 0.01 * normal,
    }


def objective(matrix: np.ndarray, solution: Any, p: float, weights: np.ndarray, metric: np.ndarray | None) -> float:
    """Over rows, in double precision."""
    half = np.eye(matrix.shape[1]) if metric is None else np.linalg.cholesky(metric.astype(np.float64))
    return norm((matrix - product(solution)) @ half, p, "rows", weights)


@functools.partial(jax.jit, static_argnames="rank")
def bounds_in_a_stack(stack: Any, weights: Any, metrics: Any, p: Any, rank: int) -> tuple[Any, Any, list[Any]]:
    """The bounds of a solve and of `certify`, and what long runs from several starts find."""

    def solve_one(matrix: Any, weights: Any, metric: Any) -> tuple[Any, Any, list[Any]]:
        known = {"p": p, "row_weights": weights, "metric": metric}
        long = [lpjax.irls_rows(matrix, rank, init=init, num_iters=40, tol=0.0, **known) for init in ("svd", "lewis")]
        sharper = lpjax.certify(matrix, long[0], num_iters=4, **known)
        return long[0].lower_bound, sharper.lower_bound, [(solution.left, solution.right) for solution in long]

    return jax.vmap(solve_one)(stack, weights, metrics)


@pytest.mark.parametrize("with_metric", [False, True])
def test_never_above_the_best_of_long_runs(dtype, with_metric):
    """2,520 matrices for each dtype; those of `with_metric` are measured in metrics of condition up to 1,000."""
    rng = np.random.default_rng(1)
    n, d = 15, 5
    weights = rng.uniform(size=(COUNT, n)).astype(dtype) ** 3
    half = rng.normal(size=(COUNT, d, d)) * 10 ** rng.uniform(-1.5, 0, size=(COUNT, 1, d))
    metrics = (half @ np.swapaxes(half, 1, 2) + 1e-3 * np.eye(d)).astype(dtype) if with_metric else None
    checked = 0
    for p in PS:
        for kind, stack in kinds(n, d, COUNT).items():
            stack = stack.astype(dtype)
            power = jnp.asarray(p, dtype)
            simple, sharper, pairs = jax.device_get(bounds_in_a_stack(stack, weights, metrics, power, rank=2))
            for i, matrix in enumerate(stack):
                candidates = [lpjax.LowRank(*(part[i] for part in pair)) for pair in pairs]
                metric = None if metrics is None else metrics[i]
                wide = matrix.astype(np.float64)
                best = min(objective(wide, pair, p, weights[i].astype(np.float64), metric) for pair in candidates)
                assert 0 <= simple[i] <= best, (kind, p, i)
                assert simple[i] * (1 - 1e-6) <= sharper[i] <= best, (kind, p, i)
                checked += 1
                if p == 2 and kind == "normal":
                    assert simple[i] >= best * (1 - (1e-2 if dtype == "float32" else 1e-11))
    assert checked == len(PS) * 7 * COUNT


def exact_rank_one(matrix: np.ndarray, p: float, weights: np.ndarray) -> float:
    """The optimum over rank 1 of a matrix with two columns: the best of all angles, refined about the best ones."""

    def value(angles: np.ndarray) -> np.ndarray:
        across = np.abs(matrix @ np.stack([-np.sin(angles), np.cos(angles)]))
        return across.max(axis=0) if np.isinf(p) else (weights[:, None] * across**p).sum(axis=0) ** (1 / p)

    # At p = 1 the best angle is that of a row.
    angles = np.concatenate([np.linspace(0, np.pi, 4001), np.arctan2(matrix[:, 1], matrix[:, 0])])
    best = angles[np.argsort(value(angles))[:4]]
    fine = best[:, None] + np.linspace(-1e-3, 1e-3, 1001)[None, :]
    return float(min(value(angles).min(), value(fine.ravel()).min()))


def certified(matrix: np.ndarray, pair: Any, p: float, weights: np.ndarray, num_iters: int) -> lpjax.Solution:
    """`certify` for any p, also beyond what solvers take."""
    known: dict[str, Any] = {"row_weights": weights, "init": pair, "num_iters": num_iters, "tol": 0.0}
    problem = make_problem(matrix, 1, "irls_rows", p=2.0, **known)
    return _certify(dataclasses.replace(problem, p=jnp.asarray(p, problem.p.dtype)), "rows")


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, 6.0, np.inf])
def test_tiny_matrices_against_the_exact_optimum(dtype, p):
    rng = np.random.default_rng(0)
    shares = []
    for stack in kinds(9, 2, 12).values():
        for matrix in stack.astype(dtype):
            weights = rng.uniform(0.1, 1, size=9).astype(dtype)
            best = exact_rank_one(matrix.astype(np.float64), p, weights.astype(np.float64))
            start = lpjax.irls_rows(matrix, 1, p=min(p, 2.0), row_weights=weights)
            certificate = certified(matrix, (start.left, start.right), p, weights, 30)
            assert 0 <= certificate.lower_bound <= best * (1 + 1e-9)
            if p <= 2:
                assert start.lower_bound <= best * (1 + 1e-9)
            shares.append(certificate.lower_bound / best if best > 1e-3 else 1)
    least = {1.0: 0.6, 1.5: 0.85, 2.0: 0.99, 3.0: 0.8, 6.0: 0.7, np.inf: 0.5}[p]
    assert np.median(shares) > least


@pytest.mark.parametrize("name", SOLVERS)
def test_exact_at_two(name, dtype):
    """Whatever the objective, also for a spectrum whose tail is below the rounding of a Gram matrix."""
    matrix = heavy_tailed(17, 7).astype(dtype)
    for case in (matrix, matrix.T, matrix * 1e-3 ** np.arange(7).astype(dtype)):
        solution = SOLVERS[name](case, 3, p=2.0)
        best = np.linalg.norm(np.asarray(case, np.float64) - truncated_svd(case, 3))
        share = solution.lower_bound / best
        assert 1 - (0.02 if dtype == "float32" else 1e-6) < share <= 1 or best < 1e-5
        assert solution.gap < 0.03 or best < 1e-5


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("p", [1.0, 1.5])
def test_entries_have_the_bound_of_rows(name, p):
    matrix = heavy_tailed(17, 7).astype(np.float32)
    weights = np.linspace(0.1, 2, 17).astype(np.float32)
    solution = SOLVERS[name](matrix, 3, p=p, row_weights=weights)
    rows = lpjax.irls_rows(matrix, 3, p=p, row_weights=weights)
    assert float(solution.lower_bound) == pytest.approx(float(rows.lower_bound), rel=1e-5)
    assert solution.lower_bound <= rows.objective <= norm(matrix - product(solution), p, "entries", weights) * 1.0001
    assert 0 < solution.gap < 1


def test_above_two():
    """lewis goes beyond p = 2. The bound of the entries is smaller by d^{1/p − 1/2}, as power means say."""
    matrix = heavy_tailed(17, 7).astype(np.float32)
    rows, entries = (lpjax.lewis(matrix, 3, p=3.0, over=over) for over in ("rows", "entries"))
    assert 0.5 * rows.objective < rows.lower_bound <= rows.objective
    assert float(entries.lower_bound) == pytest.approx(float(rows.lower_bound) * 7 ** (1 / 3 - 0.5), rel=1e-5)
    assert entries.lower_bound <= entries.objective


@pytest.mark.parametrize("scale", [2.0**100, 2.0**-100])
def test_scales_with_the_matrix(scale):
    matrix = (heavy_tailed(17, 7) / 100).astype(np.float32)
    weights = np.linspace(0.1, 2, 17).astype(np.float32)
    for p in PS:
        plain = lpjax.irls_rows(matrix, 3, p=p, row_weights=weights)
        scaled = lpjax.irls_rows(matrix * np.float32(scale), 3, p=p, row_weights=weights)
        sharper = lpjax.certify(matrix * np.float32(scale), scaled, p=p, row_weights=weights)
        assert float(scaled.lower_bound) == pytest.approx(float(plain.lower_bound) * scale, rel=1e-2)
        assert float(scaled.gap) == pytest.approx(float(plain.gap), abs=1e-2)
        assert scaled.lower_bound * 0.99 <= sharper.lower_bound <= scaled.objective
        heavy = lpjax.irls_rows(matrix, 3, p=p, row_weights=weights * np.float32(2.0**100))
        assert float(heavy.lower_bound) == pytest.approx(float(plain.lower_bound) * 2.0 ** (100 / p), rel=1e-4)


def test_zeros_and_exact_matrices():
    zeros = np.zeros((9, 5), np.float32)
    for name in SOLVERS:
        solution = SOLVERS[name](zeros, 2)
        assert solution.lower_bound == 0
        assert solution.gap == 0
    solution = lpjax.irls_rows(zeros, 2)
    assert lpjax.certify(zeros, solution).lower_bound == 0
    assert lpjax.partial_gaps(zeros, solution).left == 0
    exact = low_rank(17, 7, 3).astype(np.float32)
    for p in PS:
        solution = lpjax.irls_rows(exact, 3, p=p)
        assert solution.lower_bound == 0
        assert lpjax.certify(exact, solution, p=p).lower_bound == 0
        assert lpjax.irls_rows(exact, 7, p=p).lower_bound == 0
    assert lpjax.irls_rows(exact, 2, num_iters=0).lower_bound > 0


def test_a_matrix_that_is_not_finite_has_no_bound():
    solution = jax.jit(lambda a: lpjax.irls_rows(a, 2))(jnp.full((9, 5), jnp.nan))
    assert solution.lower_bound == 0
    assert solution.gap == 1


def test_a_wide_matrix_is_that_of_its_rows_span(x64):
    tall = heavy_tailed(17, 7).T
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(17, 17)))[0]
    for p in PS:
        wide, turned = (lpjax.irls_rows(a, 3, p=p) for a in (tall, tall @ turn))
        assert float(turned.lower_bound) == pytest.approx(float(wide.lower_bound), rel=1e-9)
        sharper = lpjax.certify(tall, wide, p=p)
        padded = lpjax.certify(np.concatenate([tall, np.zeros((20, 17))]), lpjax.LowRank(
            np.concatenate([wide.left, np.zeros((20, 3))]), wide.right), p=p)  # fmt: skip
        assert float(sharper.lower_bound) == pytest.approx(float(padded.lower_bound), rel=1e-6)


def test_transformations():
    stack = np.stack([heavy_tailed(17, 7, seed) for seed in range(3)]).astype(np.float32)

    def run(matrix: Any) -> Any:
        solution = lpjax.irls_rows(matrix, 3, num_iters=5, tol=0.0)
        partial = lpjax.partial_gaps(matrix, solution, num_iters=5)
        return (
            solution.lower_bound,
            lpjax.certify(matrix, solution).lower_bound,
            partial.left_bound,
            partial.right_bound,
        )

    mapped, compiled = jax.vmap(run)(stack), jax.jit(run)(stack[1])
    for batched, jitted, alone in zip(mapped, compiled, run(stack[1]), strict=True):
        assert float(batched[1]) == pytest.approx(float(alone), rel=1e-4)
        assert float(jitted) == pytest.approx(float(alone), rel=1e-4)


def test_derivatives_do_not_go_through_the_bound():
    """A row of zeros has a norm without derivative, and equal eigenvalues have vectors without one."""
    matrix = jnp.asarray(np.concatenate([heavy_tailed(9, 4), np.zeros((2, 4))]), jnp.float32)
    left = jax.grad(lambda a: jnp.sum(lpjax.svd(a, 2, over="rows").left ** 2))(matrix)
    assert np.all(np.isfinite(left))


def test_a_file_is_read_by_blocks(tmp_path):
    matrix = heavy_tailed(3000, 11).astype(np.float32)
    file = np.memmap(tmp_path / "matrix", np.float32, "w+", shape=matrix.shape)
    file[:] = matrix
    for p in (1.0, 2.0):
        mapped, plain = lpjax.irls_rows(file, 3, p=p), lpjax.irls_rows(matrix, 3, p=p)
        assert float(mapped.lower_bound) == pytest.approx(float(plain.lower_bound), rel=1e-4)
        sharper = lpjax.certify(file, mapped, p=p)
        assert float(sharper.lower_bound) == pytest.approx(
            float(lpjax.certify(matrix, plain, p=p).lower_bound), rel=1e-3
        )


def test_certify_is_sharper_and_hands_back_the_pair():
    matrix = (heavy_tailed(200, 30) * 0.9 ** np.arange(30)).astype(np.float32)
    solution = lpjax.irls_rows(matrix, 10)
    gaps = [float(lpjax.certify(matrix, solution, num_iters=count).gap) for count in (0, 1, 3)]
    assert gaps[0] == pytest.approx(float(solution.gap), abs=1e-5)
    assert gaps[2] <= gaps[1] < 0.8 * gaps[0]
    again = lpjax.certify(matrix, (solution.left, solution.right), over="entries")
    assert np.array_equal(again.left, solution.left)
    assert np.array_equal(again.right, solution.right)
    assert float(again.objective) == pytest.approx(norm(matrix - product(solution), 1.0), rel=1e-4)


def test_certify_refuses():
    matrix = heavy_tailed(9, 5).astype(np.float32)
    solution = lpjax.svd(matrix, 2)
    with pytest.raises(ValueError, match="`over` is 'columns'; expected one of entries, rows"):
        lpjax.certify(matrix, solution, over="columns")
    with pytest.raises(ValueError, match="`metric` measures whole rows"):
        lpjax.certify(matrix, solution, over="entries", metric=np.eye(5))
    with pytest.raises(ValueError, match="`init` has factors of shapes"):
        lpjax.certify(matrix[:8], solution)
    with pytest.raises(ValueError, match=r"`p` is 0\.5"):
        lpjax.certify(matrix, solution, p=0.5)


@pytest.mark.parametrize("bound", [lpjax.certify, lpjax.partial_gaps])
def test_single_entries_have_no_certificate(bound: Any):
    """A bound of the factors alone would say nothing of the weight that was given."""
    matrix = heavy_tailed(17, 7).astype(np.float32)
    small = lpjax.compress({"embedding": matrix}, select="embedding", rank=4, solver="svd", sparse_share=0.4).params
    assert small["embedding"].sparse is not None
    with pytest.raises(ValueError, match="`solution` has single entries"):
        bound(matrix, small["embedding"])
