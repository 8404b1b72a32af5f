"""ℓp sizes for p above 2, ∞ included: powers are taken of numbers up to 1, so that none overflows or vanishes."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar
from numpy.typing import ArrayLike

from lpjax._exponents import magnitude_bits


def unit_power(x: Array, exponent: Scalar) -> Array:
    """x^exponent for x in [0, 1]; at ∞ it is 1 at x = 1, and 0 below, but a rounding below counts as either."""
    infinite = jnp.isinf(exponent)
    # Not x**∞: an implementation by exp(∞·log x) has NaN at x = 1.
    return jnp.where(infinite, (x >= 1).astype(x.dtype), x ** jnp.where(infinite, 1, exponent))


def over_largest(values: Array, largest: Array) -> Array:
    """|values| / largest; 0 if that is 0."""
    return jnp.abs(values) / jnp.where(largest > 0, largest, 1)


def size(values: Array, p: Scalar, axis: int | None = None) -> Array:
    """(Σ |x|^p)^{1/p} along an axis; at ∞ the largest |x|.

    Its gradient is that of the norm; at ∞ it is shared by the largest entries.
    """
    largest = jnp.max(jnp.abs(values), axis=axis, keepdims=True, initial=0)
    # The norm does not depend on the scale that it is computed in, and neither does its gradient.
    unit = jax.lax.stop_gradient(jnp.where(jnp.isinf(p), 0, largest))
    largest, unit = (jnp.squeeze(x, axis) if axis is not None else x.reshape(()) for x in (largest, unit))
    kept = unit if axis is None else jnp.expand_dims(unit, axis)
    finite = jnp.where(jnp.isinf(p), 2, p)
    shares = over_largest(values, kept)
    sums = jnp.sum(shares**finite, axis=axis)
    norm = unit * jnp.where(sums > 0, sums, 1) ** (1 / finite)
    return jnp.where(jnp.isinf(p) | ~jnp.isfinite(largest) | (largest == 0), largest, norm)


def at_exponent(weights: Float[Array, " n"], p: Scalar) -> Float[Array, " n"]:
    """Weights of rows as they count: ω, and at ∞, where ω^{1/p} is 1 for every ω > 0, however small, 1 instead."""
    return jnp.where(jnp.isinf(p), (magnitude_bits(weights) > 0).astype(weights.dtype), weights)


def roots(weights: Float[Array, " n"], p: Scalar) -> Float[Array, " n"]:
    """ω^{1/p}: what a row's size counts by."""
    return jnp.where(weights > 0, jnp.where(weights > 0, weights, 1) ** (1 / p), 0)


def by_exponent(p: Scalar, low: Callable[[Scalar], Array], high: Callable[[Scalar], Array]) -> Array:
    """`low` of p up to 2, `high` of p above; each is given a p of its own range whatever p is."""
    return jax.lax.cond(p > 2, lambda: high(jnp.where(p > 2, p, 3)), lambda: low(jnp.where(p > 2, 2, p)))


def size_on_host(values: ArrayLike, p: float) -> float:
    """(Σ |x|^p)^{1/p}, in double precision; at ∞ the largest |x|. Powers are taken of numbers up to 1."""
    magnitudes = np.abs(np.asarray(values, np.float64))
    largest = float(magnitudes.max(initial=0))
    if largest == 0 or p == math.inf or not math.isfinite(largest):
        return largest
    return largest * float(np.sum((magnitudes / largest) ** p)) ** (1 / p)
