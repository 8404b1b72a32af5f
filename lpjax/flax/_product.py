"""What linen's and NNX's layers compute with a `LowRank`: two thin products in place of a dense one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lpjax.weights.low_rank import LowRank

Promote = Callable[..., Any]
"""(*arrays, **options) -> arrays in the layer's dtype; may be a custom function."""


def normalize(axes: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Axes as flax's general layers take them: nonnegative and sorted."""
    return tuple(sorted(axis % ndim for axis in sizes_of(axes)))


def sizes_of(features: int | Sequence[int]) -> tuple[int, ...]:
    """One number or several, as a tuple."""
    return (features,) if isinstance(features, int) else tuple(features)


def _factors(weight: LowRank) -> tuple[Array, Array]:
    """Both factors as JAX arrays of one dtype."""
    return jnp.asarray(weight.left, weight.dtype), jnp.asarray(weight.right, weight.dtype)


def dense(
    layer: Any,
    promote: Promote,
    x: Any,
    weight: LowRank,
    bias: Any,
    *,
    axes: tuple[int, ...],
    batch_axes: tuple[int, ...],
    features: tuple[int, ...],
    **last: Any,
) -> Array:
    """What `DenseGeneral` computes, for a kernel left @ right of shape (*batch, ∏ x.shape[axes], ∏ features).

    Args:
        layer: its `precision` and `dot_general` (or `dot_general_cls`) are used, once for each factor.
        promote: called with (input, kernel, bias), each factor as the kernel.
        x, weight, bias: of the layer; the bias may be None.
        axes, batch_axes: of x, normalized: those that are contracted, and those shared with the kernel's leading axes.
        features: sizes of the output.
        **last: further keywords of the second product.

    Returns:
        (*batch, *other axes of x, *features).

    Raises:
        ValueError: `weight` has single entries.
    """
    if weight.sparse is not None:
        raise ValueError("a kernel with single entries does not run in flax modules; compress it with `sparse_share=0`")
    left, right = _factors(weight)
    wide, left, shift = promote(x, left, bias)
    right = promote(x, right, bias)[1]
    make = getattr(layer, "dot_general_cls", None)
    dot_general = (layer.dot_general if make is None else make()) or lax.dot_general
    batch = tuple(range(len(batch_axes)))
    inputs = tuple(wide.shape[axis] for axis in axes)
    leading = left.shape[: len(batch)]
    left = left.reshape(*leading, *inputs, left.shape[-1])
    right = right.reshape(*leading, right.shape[-2], *features)
    contracted = tuple(range(len(batch), len(batch) + len(axes)))
    precision = layer.precision
    inner = dot_general(wide, left, ((axes, contracted), (batch_axes, batch)), precision=precision)
    out = dot_general(inner, right, (((inner.ndim - 1,), (len(batch),)), (batch, batch)), precision=precision, **last)
    if shift is not None:
        others = out.ndim - len(batch) - len(features)
        out = out + shift.reshape(*leading, *(1,) * others, *features)
    return out


def lookup(promote: Promote, weight: LowRank, ids: Array, num_embeddings: int, **last: Any) -> Array:
    """Rows of a table: rows of `left`, times `right`, plus single entries; NaN for ids outside, as in `Embed`.

    Raises:
        ValueError: ids are not integers.
    """
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"`inputs` of Embed have dtype {ids.dtype}; expected integers")
    left, right = (promote(factor, inexact=False)[0] for factor in _factors(weight))
    if num_embeddings == 1:  # as in flax: then every id means the one row
        ids = jnp.zeros_like(ids)
    rows = jnp.matmul(jnp.take(left, ids, axis=0), right, **last)
    return rows if weight.sparse is None else rows + weight.sparse.astype(rows.dtype).take(ids, rows.shape[-1])


def attend(promote: Promote, weight: LowRank, query: Array, **last: Any) -> Array:
    """Inner products of `query` (..., features) with all rows of a table: (..., num_embeddings)."""
    left, right = _factors(weight)
    wide, right = promote(query, right)
    _, left = promote(query, left)
    scores = jnp.dot(jnp.dot(wide, right.T), left.T, **last)
    if weight.sparse is None:
        return scores
    return scores + jnp.dot(wide, weight.sparse.astype(wide.dtype).dense(wide.shape[-1]).T)
