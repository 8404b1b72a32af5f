"""Exact scaling by powers of two, up to both ends of a dtype's range.

XLA flushes subnormal numbers to zero in arithmetic on most devices. Here they are converted through their bits, so that
a matrix of subnormal numbers is not treated as zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

_PIECE = 2**16  # number of entries whose bits are read at a time


class _Layout(NamedTuple):
    """The layout of a floating dtype: the integer dtype of its size, bits of the mantissa, bias of the exponent."""

    integer: Any
    mantissa: int
    bias: int

    @property
    def infinity(self) -> int:
        """The bits of infinity; those of NaN are larger."""
        return (2 * self.bias + 1) << self.mantissa

    @property
    def least(self) -> int:
        """e of the least subnormal number, 2^e."""
        return 1 - self.bias - self.mantissa


def _layout(dtype: Any) -> _Layout:
    if jnp.dtype(dtype) == jnp.float64:
        return _Layout(jnp.int64, 52, 1023)
    return _Layout(jnp.int32, 23, 127)


def magnitude_bits(x: Array) -> Array:
    """|x| as integers in the order of the magnitudes, subnormal ones included; NaN above infinity."""
    kind = _layout(x.dtype)
    return jax.lax.bitcast_convert_type(x, kind.integer) & (2 ** (kind.mantissa + kind.bias.bit_length() + 1) - 1)


def finite_bits(bits: Array, dtype: Any) -> Array:
    """Whether `magnitude_bits` are those of finite numbers."""
    return bits < _layout(dtype).infinity


def exponent_of(bits: Array, dtype: Any) -> Array:
    """The least e with |x| < 2^e, int32, from `magnitude_bits`; 0 for zero, infinity and NaN."""
    kind = _layout(dtype)

    def of_normal(bits: Array) -> Array:
        return (bits >> kind.mantissa).astype(jnp.int32) - (kind.bias - 1)

    whole = magnitude_bits(bits.astype(dtype))  # a subnormal number in units of the least one, as a normal number
    exponent = jnp.where(bits >> kind.mantissa == 0, of_normal(whole) + kind.least, of_normal(bits))
    return jnp.where((bits > 0) & finite_bits(bits, dtype), exponent, 0)


@jax.jit
def largest_bits(x: Array) -> Array:
    """`magnitude_bits` of the largest magnitude in x: those of NaN if x has one, and 0 if x is empty."""
    x = jax.lax.stop_gradient(x)
    # On CPUs an integer maximum takes ten times as long, and a copy of x.
    largest = jnp.max(jnp.abs(x), initial=0)
    subnormal = largest < jnp.finfo(x.dtype).tiny
    return jax.lax.cond(subnormal, lambda: _largest_bits_by_pieces(x), lambda: magnitude_bits(largest))


def _largest_bits_by_pieces(x: Array) -> Array:
    """`largest_bits` from the bits of one piece of x at a time."""
    none = jnp.zeros((), _layout(x.dtype).integer)
    sharded = any(axis is not None for axis in jax.typeof(x).sharding.spec)  # XLA divides it by itself
    if not x.ndim or not x.size or sharded:
        return jnp.max(magnitude_bits(x), initial=0)
    rows = min(x.shape[0], max(1, _PIECE * x.shape[0] // x.size))

    def larger(i: Array, largest: Array) -> Array:
        start = jnp.minimum(i * rows, x.shape[0] - rows)  # the last piece overlaps the one before it
        return jnp.maximum(largest, jnp.max(magnitude_bits(jax.lax.dynamic_slice_in_dim(x, start, rows))))

    return jax.lax.fori_loop(0, -(-x.shape[0] // rows), larger, none)


def largest_exponent(x: Array) -> Array:
    """The least e with |x_i| < 2^e for all i."""
    return exponent_of(largest_bits(x), x.dtype)


def power_of_two(exponent: Array, dtype: Any) -> Array:
    """2^exponent; 0 below the least normal number, and at most the largest power of two."""
    kind = _layout(dtype)
    field = jnp.clip(exponent + kind.bias, 0, 2 * kind.bias).astype(kind.integer)
    return jax.lax.bitcast_convert_type(field << kind.mantissa, jnp.dtype(dtype))


def scaled(x: Array, exponent: Array, *, once: bool = False) -> Array:
    """x·2^exponent, also for subnormal x; results below the least normal number may be flushed to 0.

    Args:
        x: array of float32 or float64.
        exponent: int32 scalar.
        once: whether a single multiplication suffices for normal x, as |exponent| is below the dtype's largest.
    """
    kind = _layout(x.dtype)
    bits = jax.lax.bitcast_convert_type(x, kind.integer)
    subnormal = magnitude_bits(x) < 2**kind.mantissa
    units = (bits & (2**kind.mantissa - 1)).astype(x.dtype)
    units = jnp.where(bits < 0, -units, units)

    def times(y: Array, exponent: Array) -> Array:
        if once:
            return y * power_of_two(exponent, x.dtype)
        first = jnp.clip(exponent, 1 - kind.bias, kind.bias)
        return y * power_of_two(first, x.dtype) * power_of_two(exponent - first, x.dtype)

    return jnp.where(subnormal, times(units, exponent + kind.least), times(x, exponent))


def ldexp(x: Array, exponent: Array) -> Array:
    """x·2^exponent, subnormal results included; infinite if it exceeds the dtype."""
    kind = _layout(x.dtype)
    units = scaled(jnp.abs(x), exponent - kind.least)
    few = units < 2**kind.mantissa
    bits = jnp.round(jnp.where(few, units, 0)).astype(kind.integer)
    tiny = jax.lax.bitcast_convert_type(bits, x.dtype)
    return jnp.where(few, jnp.where(x < 0, -tiny, tiny), scaled(x, exponent))
