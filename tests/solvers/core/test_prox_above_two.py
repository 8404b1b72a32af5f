"""The proximal operators for p above 2 and of the largest magnitude, against root search and sorting."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from lpjax.solvers._core.prox import prox, prox_above_two, prox_largest

EXPONENTS = [2.001, 2.5, 3.0, 3.3, 4.0, 6.0, 10.0, 100.0, 1000.0]
MAGNITUDES = np.concatenate([np.logspace(-12, 12, 33), np.logspace(-1, 1, 21)])


@jax.jit
def run(y, p, rho):
    return prox_above_two(y, p, rho)


def share(y: float, p: float, rho: float) -> float:
    """t in [0, 1] with p(ty)^{p−1} = ρ(y − ty), in logarithms."""
    log_c = np.log(p / rho) + (p - 2) * np.log(y)
    low = min(0.0, -log_c / (p - 1)) - 1

    def balance(u: float) -> float:
        return float(np.logaddexp(u, log_c + (p - 1) * u))

    return float(np.exp(brentq(balance, low, 1e-9, xtol=1e-300, rtol=np.float64(1e-15), maxiter=500)))  # pyright: ignore


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("rho", [1e-3, 0.7, 20.0, 1e3])
def test_agrees_with_root_search(p, rho, dtype):
    y = MAGNITUDES.astype(dtype)
    exact = [float(np.dtype(dtype).type(x)) for x in (p, rho)]
    truth = np.array([share(float(each), *exact) for each in y])
    shrunk = np.asarray(run(jnp.asarray(y), jnp.asarray(p, dtype), jnp.asarray(rho, dtype)))
    assert shrunk.dtype == dtype
    # log |y| has a rounding of its own, 28 times eps at 10¹².
    assert np.abs(shrunk / y.astype(np.float64) / truth - 1).max() <= 100 * float(np.finfo(dtype).eps)


@pytest.mark.parametrize("p", EXPONENTS)
def test_is_odd_and_zero_at_zero(p):
    y, rho = jnp.asarray(MAGNITUDES, jnp.float32), jnp.float32(0.7)
    assert np.array_equal(run(-y, jnp.float32(p), rho), -np.asarray(run(y, jnp.float32(p), rho)))
    assert np.all(np.asarray(run(jnp.zeros(3), jnp.float32(p), rho)) == 0)


def test_meets_the_other_operator_at_two(x64):
    y, rho = jnp.asarray(MAGNITUDES), jnp.asarray(1.3)
    low, high = prox(y, jnp.asarray(2.0), rho), run(y, jnp.asarray(2 + 1e-9), rho)
    assert np.allclose(low, high, rtol=1e-7)


def clipped_at(magnitudes: np.ndarray, radius: float) -> float:
    """τ with Σ (|y| − τ)₊ = radius, from the sorted magnitudes (Held, Wolfe & Crowder 1974)."""
    order = np.sort(magnitudes)[::-1]
    levels = (np.cumsum(order) - radius) / np.arange(1, order.size + 1)
    return max(0.0, float(levels[order > levels][-1]))


@pytest.mark.parametrize("rho", [1e-6, 0.01, 1.0, 50.0])
def test_largest_is_the_residual_of_a_projection(rho, dtype):
    y = np.random.default_rng(0).standard_t(2, size=(17, 7)).astype(dtype)
    counted = np.arange(17) != 3
    residual = np.asarray(jax.jit(prox_largest)(jnp.asarray(y), jnp.asarray(rho, dtype), jnp.asarray(counted)))
    magnitudes = np.abs(y[counted]).ravel().astype(np.float64)
    tau = clipped_at(magnitudes, 1 / rho) if magnitudes.sum() > 1 / rho else 0.0
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert np.allclose(residual[counted], np.clip(y[counted], -tau, tau), atol=tolerance * np.abs(y).max())
    assert np.array_equal(residual[3], y[3])


def test_largest_of_equal_and_of_no_entries():
    counted, rho = jnp.ones(2, bool), jnp.float32(0.5)
    assert np.allclose(prox_largest(jnp.full((2, 2), 3.0), rho, counted), 2.5)
    assert np.all(np.asarray(prox_largest(jnp.zeros((2, 2)), rho, counted)) == 0)
    kept = jnp.full((2, 2), 3.0)
    assert np.array_equal(prox_largest(kept, rho, jnp.zeros(2, bool)), kept)
