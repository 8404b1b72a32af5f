"""The two thin products that both of flax's APIs make of a dense one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lpjax.weights.low_rank import LowRank


def normalize(axes: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Axes of an array as flax's general layers take them: not negative, and sorted, whatever their order was."""
    axes = (axes,) if isinstance(axes, int) else axes
    return tuple(sorted(axis % ndim for axis in axes))


def factors(weight: LowRank) -> tuple[Array, Array]:
    """Both factors as JAX arrays of one dtype."""
    return jnp.asarray(weight.left, weight.dtype), jnp.asarray(weight.right, weight.dtype)


def promoted(promote: Callable[..., Any], x: Any, weight: LowRank, bias: Any) -> tuple[Array, Array, Array, Any]:
    """x, left, right and bias in the layer's dtype.

    `promote` takes (input, kernel, bias), and may be the user's: so each factor goes in as the kernel.

    Raises:
        ValueError: there are single entries besides.
    """
    if weight.sparse is not None:
        raise ValueError("a kernel with single entries does not run in flax modules; compress it with `sparse_share=0`")
    left, right = factors(weight)
    wide, left, shift = promote(x, left, bias)
    return wide, left, promote(x, right, bias)[1], shift


def product(
    x: Array,
    left: Array,
    right: Array,
    bias: Array | None,
    *,
    axes: tuple[int, ...],
    batch_axes: tuple[int, ...],
    features: tuple[int, ...],
    dot_general: Callable[..., Array],
    precision: Any,
    **last: Any,
) -> Array:
    """What `DenseGeneral` computes, for a kernel left @ right of shape (*batch, ∏ x.shape[axes], ∏ features).

    Args:
        axes, batch_axes: of x, normalized; contracted, and shared with the kernel's leading ones.
        dot_general: called twice, once a factor.
        **last: further keywords for the product that makes the output.

    Returns:
        (*batch, *other axes of x, *features).
    """
    batch = tuple(range(len(batch_axes)))
    inputs = tuple(x.shape[axis] for axis in axes)
    leading = left.shape[: len(batch)]
    left = left.reshape(*leading, *inputs, left.shape[-1])
    right = right.reshape(*leading, right.shape[-2], *features)
    contracted = tuple(range(len(batch), len(batch) + len(axes)))
    inner = dot_general(x, left, ((axes, contracted), (batch_axes, batch)), precision=precision)
    out = dot_general(inner, right, (((inner.ndim - 1,), (len(batch),)), (batch, batch)), precision=precision, **last)
    if bias is not None:
        others = out.ndim - len(batch) - len(features)
        out = out + bias.reshape(*leading, *(1,) * others, *features)
    return out
