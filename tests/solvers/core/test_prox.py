"""The proximal operator against bracketing root search in double precision."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from lpjax.solvers._core.prox import prox

EXPONENTS = [1.0, 1.001, 1.01, 1.1, 4 / 3, 1.5, 1.75, 1.99, 2.0]
MAGNITUDES = np.concatenate([np.logspace(-30, 12, 43), np.logspace(-3, 3, 25)])
PENALTIES = [1e-3, 0.03, 0.7, 1.0, 20.0, 1e3]


def root(y: float, p: float, rho: float) -> float:
    """t in [0, 1] with s = t·y stationary, p·s^{p−1} + ρ(s − y) = 0, found by bracketing log t; y > 0."""
    if p == 1:
        return max(0.0, 1 - 1 / (rho * y))
    log_c = np.log(p / rho) + (p - 2) * np.log(y)  # divided by ρy: t + c·t^{p−1} = 1

    def balance(u: float) -> float:
        return float(np.logaddexp(u, log_c + (p - 1) * u))

    low = min(-np.log(2), (-np.log(2) - log_c) / (p - 1)) - 1
    log_t: Any = brentq(balance, low, 1e-9, xtol=1e-300, rtol=np.float64(1e-15), maxiter=500)
    return float(np.exp(log_t))


@functools.cache
def roots(p: float, rho: float, dtype: str) -> np.ndarray:
    # The root for the numbers as the dtype rounds them.
    exact = [float(np.dtype(dtype).type(x)) for x in (p, rho)]
    return np.array([root(float(y), *exact) for y in MAGNITUDES.astype(dtype)])


@jax.jit
def run(y, p, rho):
    return prox(y, p, rho)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("rho", PENALTIES)
def test_agrees_with_root_search(p, rho, dtype):
    y = MAGNITUDES.astype(dtype)
    shrunk = np.asarray(run(jnp.asarray(y), jnp.asarray(p, dtype), jnp.asarray(rho, dtype)))
    assert shrunk.dtype == dtype
    assert np.all(np.isfinite(shrunk))
    truth = roots(p, rho, dtype)
    eps = float(np.finfo(dtype).eps)
    # Next to y: a few roundings. Next to s: those of log |y|, magnified by at most 1/(p − 1).
    assert np.abs(shrunk / y.astype(np.float64) - truth).max() <= 16 * eps
    if p > 1:
        known = truth * y > np.finfo(dtype).tiny * 2
        relative = np.abs(shrunk[known] / (truth * y)[known] - 1)
        assert relative.max(initial=0) <= 200 * eps / (p - 1)


@pytest.mark.parametrize("p", EXPONENTS)
def test_is_odd_and_zero_at_zero(p, dtype):
    y = MAGNITUDES.astype(dtype)
    p, rho = jnp.asarray(p, dtype), jnp.asarray(0.7, dtype)
    assert np.array_equal(run(jnp.asarray(-y), p, rho), -np.asarray(run(jnp.asarray(y), p, rho)))
    zero = jnp.zeros_like(jnp.asarray(y))
    assert np.array_equal(run(zero, p, rho), zero)


def test_soft_threshold():
    y = np.array([-3, -0.5, -0.1, 0, 0.1, 0.5, 3], np.float32)
    shrunk = run(jnp.asarray(y), jnp.float32(1), jnp.float32(2))
    assert np.array_equal(shrunk, np.sign(y) * np.maximum(np.abs(y) - 0.5, 0))


@pytest.mark.parametrize("p", [1.0, 1.001, 1.3, 1.7, 2.0])
def test_is_the_least_of_a_fine_grid(p, x64):
    """By the definition, with no use of stationarity."""
    for y, rho in ((0.4, 1.0), (3.0, 0.5), (-2.0, 7.0)):
        grid = np.linspace(-4, 4, 400_001)
        least = grid[np.argmin(np.abs(grid) ** p + rho / 2 * (grid - y) ** 2)]
        assert run(jnp.asarray([y]), jnp.asarray(p), jnp.asarray(rho))[0] == pytest.approx(least, abs=2e-5)


@pytest.mark.parametrize("offset", [2.0**-23, 1e-6, 1e-5, 1e-4])
def test_p_next_to_one_is_nearly_the_soft_threshold(offset):
    y = np.concatenate([np.linspace(-3, 3, 601), [1e12, -1e-30]]).astype(np.float32)
    soft = np.asarray(run(jnp.asarray(y), jnp.float32(1), jnp.float32(1)), np.float64)
    shrunk = run(jnp.asarray(y), jnp.float32(1 + offset), jnp.float32(1))
    # p·|s|^{p−1} differs from 1 by offset·(1 + log |s|), where |s| is not itself minute.
    assert np.abs(shrunk - soft).max(where=np.abs(y) < 10, initial=0) <= 20 * offset + 1e-6
    assert np.allclose(shrunk, soft, rtol=1e-6, atol=20 * offset + 1e-6)


def test_batched_exponents_agree_with_single_ones():
    """Under vmap over p every branch is computed, and none may spoil another."""
    y = jnp.asarray(np.concatenate([MAGNITUDES, -MAGNITUDES]), jnp.float32)
    exponents = jnp.asarray([1.0, 1.001, 1.5, 2.0], jnp.float32)
    rho = jnp.float32(1.3)
    mapped = jax.vmap(lambda p: prox(y, p, rho))(exponents)
    for p, shrunk in zip(exponents, mapped, strict=True):
        assert np.allclose(shrunk, run(y, p, rho), rtol=1e-4 if p < 1.01 else 1e-6, atol=0)
