"""The lp objectives by their definition, and the bounds against many matrices of low rank."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import lpjax
from lpjax._exponents import largest_exponent, ldexp, scaled
from lpjax.objectives import blocked_sum, tail
from tests.helpers import heavy_tailed, norm, product

lp_norm: Any = lpjax.lp_norm  # NumPy arrays do as well, but are not in its signature
EXPONENTS = [1.0, 1.25, 1.5, 2.0, 3.0]


def tolerance(dtype: str) -> float:
    return 2e-6 if dtype == "float32" else 1e-13


@pytest.mark.covering
@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("over", ["entries", "rows"])
@pytest.mark.parametrize("shape", [(17, 7), (1, 5), (5, 1)])
def test_norm_is_its_definition(p, over, shape, dtype):
    residual = heavy_tailed(*shape).astype(dtype)
    weights = np.random.default_rng(1).uniform(0, 3, shape[0]).astype(dtype)
    measured = lp_norm(jnp.asarray(residual), p, over)
    assert measured.dtype == dtype
    assert measured.shape == ()
    assert measured == pytest.approx(norm(residual, p, over), rel=tolerance(dtype))
    measured = lp_norm(residual, p, over, row_weights=weights)
    assert measured == pytest.approx(norm(residual, p, over, weights), rel=tolerance(dtype))


@pytest.mark.parametrize("p", EXPONENTS)
def test_metric(p, x64):
    residual = heavy_tailed(17, 6)
    rng = np.random.default_rng(1)
    weights = rng.uniform(0, 3, 17)
    for rank in (6, 3):  # of C
        half = rng.normal(size=(6, rank))
        expected = norm(residual @ half, p, "rows", weights)
        measured = lp_norm(residual, p, "rows", row_weights=weights, metric=half @ half.T)
        assert measured == pytest.approx(expected, rel=1e-12)
    # A residual that C does not see is of size zero, and no rounding below zero makes it NaN.
    unseen = rng.normal(size=(17, 3)) @ np.linalg.svd(half)[0][:, 3:].T
    assert 0 <= lp_norm(unseen, p, "rows", metric=half @ half.T) <= 1e-6
    assert lp_norm(residual, p, "rows", metric=np.zeros((6, 6))) == 0


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("over", ["entries", "rows"])
def test_scale(p, over):
    residual = heavy_tailed(17, 7).astype(np.float32)
    weights = np.random.default_rng(1).uniform(0, 3, 17).astype(np.float32)
    for exponent in (-100, -33, 33, 66, 100):
        scaled = residual * np.float32(2.0**exponent)
        measured = float(lp_norm(scaled, p, over, row_weights=weights))
        assert measured == float(lp_norm(residual, p, over, row_weights=weights)) * 2.0**exponent


def test_scale_next_to_the_largest_number():
    for value in (2.0**126, 1.5 * 2.0**126, 2.0**127, 3e38):
        assert lp_norm(np.full((1, 1), value, np.float32), 2.0) == pytest.approx(value, rel=1e-6)
    assert np.isinf(lp_norm(np.full((3, 2), 3e38, np.float32), 2.0))  # the true one is not a float32
    smallest = np.finfo(np.float32).tiny
    assert lp_norm(np.full((2, 2), smallest, np.float32), 2.0) == pytest.approx(2 * smallest, rel=1e-6)


def test_zero_empty_and_not_finite():
    for over in ("entries", "rows"):
        assert lp_norm(np.zeros((5, 3), np.float32), 1.3, over) == 0
        assert lp_norm(np.zeros((0, 3), np.float32), 1.3, over) == 0
        assert np.isnan(lp_norm(np.array([[1, np.nan]], np.float32), 1.3, over))
        assert np.isinf(lp_norm(np.array([[1, np.inf]], np.float32), 1.3, over))


def test_a_row_of_weight_zero_does_not_count():
    """Not even to the scale: beside 1e30, 1e-10 would vanish."""
    residual = np.array([[1e30, 1e30], [3e-10, 4e-10]], np.float32)
    weights = np.array([0, 1], np.float32)
    for over in ("entries", "rows"):
        assert lp_norm(residual, 2.0, over, row_weights=weights) == pytest.approx(5e-10, rel=1e-6)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_is_measured_in_float32(half):
    residual = jnp.asarray(heavy_tailed(17, 7), jnp.float32).astype(half)
    for p in (1.0, 1.1):
        measured = lp_norm(residual, p)
        assert measured.dtype == jnp.float32
        assert measured == pytest.approx(norm(np.asarray(residual), p), rel=2e-6)


def test_p_may_be_traced_and_batched():
    residual = jnp.asarray(heavy_tailed(17, 7), jnp.float32)
    run = jax.jit(lp_norm, static_argnums=2)
    for over in ("entries", "rows"):
        for p in EXPONENTS:
            assert run(residual, p, over) == pytest.approx(norm(np.asarray(residual), p, over), rel=2e-6)
        batched = jax.vmap(lambda p, over=over: lp_norm(residual, p, over))(jnp.asarray(EXPONENTS))
        expected = [norm(np.asarray(residual), p, over) for p in EXPONENTS]
        assert np.allclose(batched, expected, rtol=2e-6)
    # A p that is known while somebody else's function is traced.
    known = jnp.float32(1.5)
    assert jax.jit(lambda r: lp_norm(r, known))(residual) == pytest.approx(norm(np.asarray(residual), 1.5), rel=2e-6)


@pytest.mark.parametrize(
    ("residual", "options", "words"),
    [
        (np.ones((3, 2), np.float32), {"over": "columns"}, "`over` is 'columns'"),
        (np.ones(3, np.float32), {}, "`residual` has shape (3,)"),
        (np.ones((2, 3, 2), np.float32), {}, "`residual` has shape (2, 3, 2)"),
        (np.ones((3, 2), np.complex64), {}, "`residual` has dtype complex64"),
        (np.ma.masked_array(np.ones((3, 2))), {}, "`residual` is a masked array"),
        (np.ones((3, 2), np.float32), {"row_weights": ["a", "b", "c"]}, "`row_weights` has dtype <U1"),
        (np.ones((3, 2), np.float32), {"metric": [[1, 2], [3]], "over": "rows"}, "`metric` is a list whose parts"),
        (np.ones((3, 2), np.float32), {"p": 0.0}, "`p` is 0.0"),
        (np.ones((3, 2), np.float32), {"p": float("nan")}, "`p` is nan"),
        (np.ones((3, 2), np.float32), {"p": np.ones(2)}, "expected a number"),
        (
            np.ones((3, 2), np.float32),
            {"row_weights": np.ones(2, np.float32)},
            "`row_weights` has shape (2,)",
        ),
        (np.ones((3, 2), np.float32), {"row_weights": np.ones((3, 1))}, "`row_weights` has shape (3, 1)"),
        (
            np.ones((3, 2), np.float32),
            {"metric": np.eye(2)},
            '`metric` measures whole rows; pass over="rows"',
        ),
        (np.ones((3, 2), np.float32), {"metric": np.eye(3), "over": "rows"}, "`metric` has shape (3, 3)"),
    ],
)
def test_misuse(residual, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        lp_norm(residual, **{"p": 1.0} | options)


@pytest.mark.parametrize("n", [0, 1, 2, 10, 1000, 10_000_000])
def test_blocked_sum(n):
    values = np.random.default_rng(0).uniform(0, 1, n).astype(np.float32)
    total = float(jax.jit(blocked_sum)(values))
    assert total == pytest.approx(math.fsum(values.tolist()), rel=1e-6)


@pytest.mark.parametrize("exponent", [-149, -130, -126, -70, -1, 0, 1, 70, 127])
def test_powers_of_two(exponent):
    """The least one above a number, and scaling by it and back, subnormal numbers included."""
    for mantissa in (1, 1.25, 1.9999999):
        value = np.float32(mantissa * 2.0**exponent)
        least = math.floor(math.log2(value)) + 1
        assert int(jax.jit(largest_exponent)(value)) == least
        unit = jax.jit(scaled)(value, -least)
        assert float(unit) == float(value) / 2.0**least
        assert np.asarray(jax.jit(ldexp)(unit, least)) == value
        assert np.asarray(ldexp(-unit, least)) == -value


def test_powers_of_two_of_nothing():
    for value in (0.0, np.inf, np.nan):
        assert largest_exponent(jnp.float32(value)) == 0
        for scale in (scaled, ldexp):
            np.testing.assert_array_equal(scale(jnp.float32(value), 3), np.float32(value))


def best_entries(matrix: np.ndarray, rank: int, p: float, seed: int) -> np.ndarray:
    """A rank-k matrix of small ‖A − B‖_p, by SciPy's L-BFGS on the smoothed objective from a random start."""
    n, d = matrix.shape
    split = n * rank

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        left, right = x[:split].reshape(n, rank), x[split:].reshape(rank, d)
        residual = matrix - left @ right
        smooth = np.sqrt(residual**2 + 1e-10)
        slope = -p * smooth ** (p - 2) * residual
        return float((smooth**p).sum()), np.concatenate([(slope @ right.T).ravel(), (left.T @ slope).ravel()])

    start = np.random.default_rng(seed).normal(size=split + rank * d)
    solution = minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
    return solution[:split].reshape(n, rank) @ solution[split:].reshape(rank, d)


@pytest.mark.parametrize("p", [1.0, 1.25, 1.5, 1.75, 2.0, 3.0, 10.0, np.inf])
@pytest.mark.parametrize("solver", ["lewis", "lowner"])
def test_bounds(p, solver, x64):
    rank = 3
    rng = np.random.default_rng(0)
    for matrix in (heavy_tailed(17, 7), rng.normal(size=(17, 7)) * np.logspace(0, -3, 7)):
        solution = lpjax.SOLVERS[solver](jnp.asarray(matrix), rank, p=p)
        ellipsoid = solution.ellipsoid
        assert ellipsoid is not None
        values = ellipsoid.values
        residual = matrix - product(solution)
        slack = 1 + 1e-6  # the ellipsoid is that of the solver's tolerance

        least = lpjax.lower_bound(values, rank, ellipsoid.lower, 7, p)
        others = [rng.normal(size=(17, rank)) @ rng.normal(size=(rank, 7)) for _ in range(100)]
        others += [product(solution), best_entries(matrix, rank, min(p, 10), seed=0)]
        assert least <= min(norm(matrix - other, p) for other in others) * slack

        most = lpjax.entries_bound(values, rank, ellipsoid.upper, 7, p)
        assert norm(residual, p) <= most * slack

        most = lpjax.operator_bound(values, rank, ellipsoid.upper)
        x = rng.normal(size=(7, 1000))
        for _ in range(50):  # power iteration climbs towards the worst x
            x /= np.linalg.norm(x, axis=0)
            images = residual @ x
            assert max(norm(image[None], p) for image in images.T) <= most * slack
            x = residual.T @ (np.sign(images) * np.abs(images) ** (min(p, 10) - 1))


def test_bounds_at_p2_are_the_singular_values(x64):
    matrix = heavy_tailed(17, 7)
    ellipsoid = lpjax.lewis(jnp.asarray(matrix), 3, p=2.0).ellipsoid
    assert ellipsoid is not None
    singular = np.linalg.svd(matrix)[1]
    assert lpjax.lower_bound(ellipsoid.values, 3) == pytest.approx(singular[3], rel=1e-10)
    assert lpjax.operator_bound(ellipsoid.values, 3, ellipsoid.upper) == pytest.approx(singular[3], rel=1e-10)
    bound = lpjax.entries_bound(ellipsoid.values, 3, ellipsoid.upper, 7, 2.0)
    assert bound == pytest.approx(np.linalg.norm(singular[3:]), rel=1e-10)


def test_bounds_at_the_ends():
    values = jnp.asarray([3e30, 2e30, 1e30], jnp.float32)
    assert lpjax.lower_bound(values, 0) == 3e30
    assert lpjax.lower_bound(values, 3) == lpjax.operator_bound(values, 7, 2.0) == 0
    assert lpjax.entries_bound(values, 3, 2.0, 7, 1.0) == 0
    assert tail(values, 1) == pytest.approx(5**0.5 * 1e30, rel=1e-6)
    for rank in (-1, 1.0):
        for bound in (tail, lpjax.lower_bound):
            with pytest.raises(ValueError, match="`rank` is"):
                bound(values, rank)  # pyright: ignore[reportArgumentType]
