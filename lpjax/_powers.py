"""ℓp norms for p above 2, ∞ included: powers are taken of numbers up to 1, so that none overflows."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Scalar
from numpy.typing import ArrayLike

from lpjax._exponents import magnitude_bits


def unit_power(x: Array, exponent: Scalar) -> Array:
    """x^exponent for x in [0, 1]; at ∞, 1 for x = 1 and 0 for smaller x."""
    infinite = jnp.isinf(exponent)
    # Not x**∞, which is NaN at x = 1 if computed as exp(∞·log x).
    return jnp.where(infinite, (x >= 1).astype(x.dtype), x ** jnp.where(infinite, 1, exponent))


def over_largest(values: Array, largest: Array) -> Array:
    """|values| / largest; 0 if that is 0."""
    return jnp.abs(values) / jnp.where(largest > 0, largest, 1)


def size(values: Array, p: Scalar, axis: int | None = None) -> Array:
    """(Σ |x|^p)^{1/p} along an axis; at ∞ the largest |x|.

    It is differentiable; at ∞ the largest entries share the gradient.
    """
    largest = jnp.max(jnp.abs(values), axis=axis, keepdims=True, initial=0)
    # Neither the norm nor its gradient depends on the scale in which it is computed.
    unit = jax.lax.stop_gradient(jnp.where(jnp.isinf(p), 0, largest))
    largest, unit = (jnp.squeeze(x, axis) if axis is not None else x.reshape(()) for x in (largest, unit))
    kept = unit if axis is None else jnp.expand_dims(unit, axis)
    finite = jnp.where(jnp.isinf(p), 2, p)
    shares = over_largest(values, kept)
    sums = jnp.sum(shares**finite, axis=axis)
    norm = unit * jnp.where(sums > 0, sums, 1) ** (1 / finite)
    return jnp.where(jnp.isinf(p) | ~jnp.isfinite(largest) | (largest == 0), largest, norm)


def at_exponent(weights: Float[Array, " n"], p: Scalar) -> Float[Array, " n"]:
    """Effective row weights: ω, and at p = ∞, where ω^{1/p} = 1 for every ω > 0, 1 instead of ω > 0."""
    return jnp.where(jnp.isinf(p), (magnitude_bits(weights) > 0).astype(weights.dtype), weights)


def roots(weights: Float[Array, " n"], p: Scalar) -> Float[Array, " n"]:
    """ω^{1/p}, the factor on a row's norm; 0 for ω = 0."""
    return jnp.where(weights > 0, jnp.where(weights > 0, weights, 1) ** (1 / p), 0)


def root_of_scale(exponent: Int[Array, ""], p: Scalar) -> tuple[Scalar, Int[Array, ""]]:
    """The p-th root of a scale 2^exponent, as a factor in [1, 2) and an exponent, so that it cannot overflow."""
    root = exponent.astype(p.dtype) / p
    whole = jnp.floor(root)
    return jnp.exp2(root - whole), whole.astype(jnp.int32)


def by_exponent(p: Scalar, low: Callable[[Scalar], Array], high: Callable[[Scalar], Array]) -> Array:
    """`low(p)` for p ≤ 2, `high(p)` for p > 2; each gets a p of its own range even if it is not taken."""
    return jax.lax.cond(p > 2, lambda: high(jnp.where(p > 2, p, 3)), lambda: low(jnp.where(p > 2, 2, p)))


def size_on_host(values: ArrayLike, p: float) -> float:
    """(Σ |x|^p)^{1/p}, in double precision; at ∞ the largest |x|. Powers are taken of numbers up to 1."""
    magnitudes = np.abs(np.asarray(values, np.float64))
    largest = float(magnitudes.max(initial=0))
    if largest == 0 or p == math.inf or not math.isfinite(largest):
        return largest
    return largest * float(np.sum((magnitudes / largest) ** p)) ** (1 / p)
