"""Matrices at both ends of their dtype's range give the factors of the same matrix in the middle of it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax.solvers._core.checks import require_products
from tests.helpers import OBJECTIVE, SOLVERS, heavy_tailed, norm, product

P, RANK = 1.5, 3
SCALES = (1.0, 3e38, 1e-38, 1e-40)  # the last two are below the least normal float32, 1.2e-38


def unit() -> np.ndarray:
    """Entries up to one in magnitude, of which the largest are not many."""
    matrix = heavy_tailed(17, 7)
    return matrix / np.abs(matrix).max()


def mixed() -> np.ndarray:
    """Rows of size 3e38 beside rows of size 1e-38."""
    return unit() * np.where(np.arange(17) % 2, 3e38, 1e-38)[:, None]


def error(name: str, matrix: np.ndarray, solution, weights=None) -> float:
    """The objective in double precision."""
    return norm(matrix.astype(np.float64) - product(solution), P, OBJECTIVE[name], weights)


def check(name: str, matrix: np.ndarray, solution, best: float, weights=None) -> None:
    """Factors are finite, the objective is `best`, infinite beyond float32, and no product is NaN."""
    actual = error(name, matrix, solution, weights)
    assert np.all(np.isfinite(solution.left))
    assert np.all(np.isfinite(solution.right))
    assert actual == pytest.approx(best, rel=1e-4)
    objective = float(solution.objective)
    if actual > float(np.finfo(np.float32).max):
        assert np.isinf(objective)
    else:
        assert objective == pytest.approx(actual, rel=1e-4)
    with np.errstate(over="ignore"):
        assert not np.any(np.isnan(np.asarray(solution.left) @ np.asarray(solution.right)))


@pytest.mark.covering(0)
@pytest.mark.parametrize("name", SOLVERS)
def test_both_ends_of_float32(name):
    solve = functools.partial(lpjax.SOLVERS[name], rank=RANK, p=P)
    plain = solve(unit().astype(np.float32))
    # In one program, where nothing is known of the values, and with row weights at the ends of their range, too.
    cases = [(unit() * scale).astype(np.float32) for scale in SCALES] + [mixed().astype(np.float32)]
    ends = np.array([1.0, 1e38, 1e-40, 1e-30, 1.0])
    weights = [(np.linspace(0.5, 1, 17) * end).astype(np.float32) for end in ends]
    mapped = jax.vmap(lambda a, w: solve(a, row_weights=w))(jnp.stack(cases), jnp.stack(weights))
    alone = [solve(case) for case in cases]
    best = error(name, cases[0], jax.tree.map(lambda x: x[0], mapped), weights[0])
    for i, (case, scale) in enumerate(zip(cases, SCALES, strict=False)):
        check(name, case, alone[i], float(plain.objective) * scale)
        assert bool(alone[i].converged) == bool(plain.converged)
        under = best * scale * float(ends[i]) ** (1 / P)
        check(name, case, jax.tree.map(lambda x, i=i: x[i], mapped), under, weights[i])
    # What is left of mixed rows is that of the large ones; the small ones are below rounding.
    large = np.where(np.arange(17)[:, None] % 2, cases[-1], 0).astype(np.float32)
    check(name, cases[-1], alone[-1], error(name, large, solve(large)))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1e39, 1e300])
def test_doubles_that_float32_has_no_numbers_for_are_refused(name, scale):
    with pytest.raises(ValueError, match=r"`matrix` holds numbers of size \d\.\de[+-]\d+, beyond float32"):
        lpjax.SOLVERS[name](unit() * scale, RANK, p=P)
    # Few of them beside larger ones are rounding.
    assert np.isfinite(lpjax.svd(unit() + 1e-300, RANK).objective)


@pytest.mark.parametrize("name", ["svd", "irls_rows"])
def test_both_ends_of_float64(name, x64):
    solve = functools.partial(lpjax.SOLVERS[name], rank=RANK, p=P)
    plain = solve(unit())
    for scale in (2.0**1023, 2.0**-1020, 2.0**-1050):
        solution = solve(unit() * scale)
        left, right = np.asarray(solution.left), np.asarray(solution.right)
        assert np.all(np.isfinite(left))
        assert np.all(np.isfinite(right))
        power = int(np.log2(np.abs(left).max()))
        scaled = np.ldexp(left, -power) @ np.ldexp(right, power - int(np.log2(scale)))
        assert np.allclose(scaled, product(plain), atol=1e-6 if scale < 1e-310 else 1e-12)
    assert float(solve(unit() * 2.0**-1020).objective) == pytest.approx(float(plain.objective) * 2.0**-1020, rel=1e-2)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("largest", [True, False])
def test_both_ends_of_half_precision(half, largest):
    info = jnp.finfo(half)
    matrix = jnp.asarray(unit() * (float(info.max) if largest else 2.0**6 * float(info.smallest_subnormal)), half)
    wide = np.asarray(matrix).astype(np.float64)
    scale = 2.0 ** np.floor(np.log2(np.abs(wide).max()))
    plain = lpjax.svd((wide / scale).astype(np.float32), RANK)
    solution = lpjax.svd(matrix, RANK)
    assert np.all(np.isfinite(solution.left))
    assert np.allclose(product(solution) / scale, product(plain), atol=1e-5)


def test_a_metric_at_both_ends():
    matrix, half = unit().astype(np.float32), np.random.default_rng(1).normal(size=(7, 7))
    metric = half @ half.T / 20
    plain = lpjax.svd(matrix, RANK, metric=metric.astype(np.float32))
    for scale in (2.0**126, 2.0**-130):
        solution = lpjax.svd(matrix, RANK, metric=(metric * scale).astype(np.float32))
        assert np.allclose(product(solution), product(plain), atol=1e-4)
        assert float(solution.objective) == pytest.approx(float(plain.objective) * np.sqrt(scale), rel=1e-4)
        right = np.asarray(solution.right, np.float64)
        assert np.allclose(right @ (metric * scale) @ right.T, np.eye(RANK), atol=1e-3)


def test_a_start_with_its_scale_on_either_side():
    matrix = unit().astype(np.float32)
    large = lpjax.admm_entries(matrix * np.float32(3e38), RANK, p=P, num_iters=5)
    assert np.abs(large.right).max() > 2**30  # it shares the scale
    again = lpjax.admm_entries(matrix * np.float32(3e38), RANK, p=P, num_iters=0, init=large)
    plain = lpjax.admm_entries(matrix, RANK, p=P, num_iters=5)
    assert error("admm_entries", matrix * np.float32(3e38), again) == pytest.approx(
        float(plain.objective) * 3e38, rel=1e-4
    )


def test_a_product_that_is_no_number_is_refused():
    """+∞ and −∞ among the terms of left @ right; what fits is handed back as it is."""
    left, right = np.array([[2.0**64, 2.0**64]], np.float32), np.array([[2.0**64], [-(2.0**64)]], np.float32)
    solution = lpjax.Solution(*map(jnp.asarray, (left, right, np.float32(0), np.int32(0), np.bool_(True))))
    with pytest.raises(ValueError, match="`matrix` is so near the end of the range of float32 that sums"):
        require_products(solution)
    fits = solution._replace(right=solution.right / 4)
    assert require_products(fits) is fits


@pytest.mark.covering(0)
@pytest.mark.parametrize("over", ["entries", "rows"])
def test_lp_norm_at_both_ends(over):
    rng = np.random.default_rng(0)
    residual, weights = rng.normal(size=(9, 5)), rng.uniform(size=9)
    for p in (1.0, 1.5, 2.0):
        for size, weight in ((1e-40, 1.0), (1e-44, 1.0), (1e37, 1e-30), (3e38, 1e-6), (1e-38, 1e38)):
            matrix, own = (residual * size / 5).astype(np.float32), (weights * weight).astype(np.float32)
            expected = norm(matrix, p, over, own)
            value = float(jax.jit(lambda r, w, p=p: lpjax.lp_norm(r, p, over, row_weights=w))(matrix, own))
            # A subnormal number has fewer digits.
            assert value == pytest.approx(expected, rel=1e-5, abs=1.5e-45)
    assert np.isinf(lpjax.lp_norm(np.full((9, 5), 3e38, np.float32), 1.0, over))
    assert float(lpjax.objectives.tail(np.array([3e38, 2e38, 1e-40], np.float32), 1)) == pytest.approx(2e38)
    assert float(lpjax.objectives.tail(np.array([3e38, 2e38, 1e-40], np.float32), 2)) == pytest.approx(1e-40, rel=1e-4)
