"""The computations of linen's and NNX's layers on a `LowRank`, by two thin products, and on a `Quantized`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lpjax.weights.dispatch import matmul_transposed
from lpjax.weights.low_rank import LowRank
from lpjax.weights.quantized import Quantized, expanded

Promote = Callable[..., Any]
"""(*arrays, **options) -> arrays in the layer's dtype; may be a custom function."""


def normalize(axes: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Axes, nonnegative and sorted, as in flax's general layers."""
    return tuple(sorted(axis % ndim for axis in sizes_of(axes)))


def sizes_of(features: int | Sequence[int]) -> tuple[int, ...]:
    """One number or several, as a tuple."""
    return (features,) if isinstance(features, int) else tuple(features)


def _factors(weight: LowRank | Quantized) -> list[Any]:
    """The one or two matrices whose product `weight` is: JAX arrays or quantized matrices of one dtype."""
    factors = (weight.left, weight.right) if isinstance(weight, LowRank) else (weight,)
    return [
        factor.astype(weight.dtype) if isinstance(factor, Quantized) else jnp.asarray(factor, weight.dtype)
        for factor in factors
    ]


def dense(
    layer: Any,
    promote: Promote,
    x: Any,
    weight: LowRank | Quantized,
    bias: Any,
    *,
    axes: tuple[int, ...],
    batch_axes: tuple[int, ...],
    features: tuple[int, ...],
    **last: Any,
) -> Array:
    """The output of a `DenseGeneral` with a kernel of shape (*batch, ∏ x.shape[axes], ∏ features).

    Args:
        layer: layer whose `precision` and `dot_general` (or `dot_general_cls`) are used, once for each factor.
        promote: function of (input, kernel, bias), called with each factor as the kernel, expanded if it is quantized.
        x, weight, bias: input, kernel and bias of the layer; the bias may be None.
        axes, batch_axes: axes of x, normalized: the contracted ones, and those shared with the kernel's leading axes.
        features: sizes of the output axes.
        **last: further keywords of the last product.

    Returns:
        (*batch, *other axes of x, *features).

    Raises:
        ValueError: `weight` has single entries.
    """
    if isinstance(weight, LowRank) and weight.sparse is not None:
        raise ValueError("a kernel with single entries does not run in flax modules; compress it with `sparse_share=0`")
    promoted = [promote(x, expanded(factor), bias) for factor in _factors(weight)]
    (wide, left, shift), right = promoted[0], promoted[-1][1]
    make = getattr(layer, "dot_general_cls", None)
    dot_general = (layer.dot_general if make is None else make()) or lax.dot_general
    batch = tuple(range(len(batch_axes)))
    inputs = tuple(wide.shape[axis] for axis in axes)
    leading = left.shape[: len(batch)]
    contracted = (axes, tuple(range(len(batch), len(batch) + len(axes)))), (batch_axes, batch)
    precision = layer.precision
    if len(promoted) == 1:
        kernel = left.reshape(*leading, *inputs, *features)
        out = dot_general(wide, kernel, contracted, precision=precision, **last)
    else:
        left = left.reshape(*leading, *inputs, left.shape[-1])
        right = right.reshape(*leading, right.shape[-2], *features)
        inner = dot_general(wide, left, contracted, precision=precision)
        rest = ((inner.ndim - 1,), (len(batch),)), (batch, batch)
        out = dot_general(inner, right, rest, precision=precision, **last)
    if shift is not None:
        others = out.ndim - len(batch) - len(features)
        out = out + shift.reshape(*leading, *(1,) * others, *features)
    return out


def lookup(promote: Promote, weight: LowRank | Quantized, ids: Array, num_embeddings: int, **last: Any) -> Array:
    """Rows of a table; NaN for ids out of range, as in `Embed`.

    For a `LowRank`, they are rows of `left`, times `right`, plus single entries.

    Raises:
        ValueError: ids are not integers.
    """
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"`inputs` of Embed have dtype {ids.dtype}; expected integers")
    if num_embeddings == 1:  # as in flax, every id then means the one row
        ids = jnp.zeros_like(ids)
    left, *right = _factors(weight)
    rows = promote(_rows(left, ids), inexact=False)[0]
    if isinstance(weight, Quantized):
        sharding = last.get("out_sharding")
        return rows if sharding is None else jax.sharding.reshard(rows, sharding)
    rows = jnp.matmul(rows, promote(expanded(right[0]), inexact=False)[0], **last)
    return rows if weight.sparse is None else rows + weight.sparse.astype(rows.dtype).take(ids, rows.shape[-1])


def _rows(table: Array | Quantized, ids: Array) -> Array:
    """Rows of an array or a quantized matrix, as by `jnp.take`: NaN out of range, negative ids count from the end."""
    if not isinstance(table, Quantized):
        return jnp.take(table, ids, axis=0)
    wide, count = ids.astype(jnp.int32), table.shape[0]
    places = jnp.where(wide < 0, wide + count, wide)
    inside = (places >= 0) & (places < count)
    return jnp.where(inside[..., None], table.take(places), jnp.nan)


def attend(promote: Promote, weight: LowRank | Quantized, query: Array, **last: Any) -> Array:
    """Inner products of `query` (..., features) with all rows of a table: (..., num_embeddings)."""
    left, *right = _factors(weight)
    wide = inner = promote(query, jnp.zeros((), weight.dtype))[0]
    for factor in right:
        inner = jnp.dot(inner, promote(query, expanded(factor))[1].T)
    if isinstance(left, Quantized) and all(option is None for option in last.values()):
        scores = matmul_transposed(inner, left.astype(inner.dtype))  # a large table block by block
    else:
        scores = jnp.dot(inner, promote(query, expanded(left))[1].T, **last)
    if isinstance(weight, Quantized) or weight.sparse is None:
        return scores
    return scores + jnp.dot(wide, weight.sparse.astype(wide.dtype).dense(wide.shape[-1]).T)
