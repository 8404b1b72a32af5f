"""Functions of a weight of any kind: an array, a `Quantized` matrix, or a `LowRank` product of either."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from lpjax.weights.exporting import rows_of
from lpjax.weights.low_rank import LowRank
from lpjax.weights.product import product
from lpjax.weights.quantized import Quantized, expanded

Weight = Array | np.ndarray | Quantized | LowRank
"""A weight of any kind. Every kind has `shape`, `ndim`, `size`, `nbytes`, `dtype`, `T`."""


def is_weight(leaf: Any) -> bool:
    """Whether `leaf` is a weight of several arrays; the `is_leaf` of tree functions that must not look inside one."""
    return isinstance(leaf, LowRank | Quantized)


def is_quantized(leaf: Any) -> bool:
    """Whether `leaf` is `Quantized`, or a `LowRank` with such a factor."""
    return isinstance(leaf, Quantized) or (
        isinstance(leaf, LowRank) and (isinstance(leaf.left, Quantized) or isinstance(leaf.right, Quantized))
    )


def matmul(x: Float[Array, "*batch n"], weight: Weight) -> Float[Array, "*batch d"]:
    """`x @ weight`.

    A `LowRank` takes two thin products, `rank·(in + out)` multiply-adds per row of x. With single entries it saves no
    time: few rows of x are multiplied by the factors and the expanded entries, many rows by the dense matrix. A
    `Quantized` matrix is expanded for the product; if it is large and its lines are outputs, a block of lines at a
    time.
    """
    return product(x, weight)


def matmul_transposed(x: Float[Array, "*batch d"], weight: Weight) -> Float[Array, "*batch n"]:
    """`x @ weight.T`, also under jit and with single entries; for a word head tied to an embedding."""
    if isinstance(weight, LowRank) and weight.sparse is not None:
        return product(x, weight.multiplied().T)  # single entries can't be transposed under jit
    return product(x, weight.T)


def take_rows(weight: Weight, ids: Integer[Array | np.ndarray, "*batch"]) -> Float[Array, "*batch d"]:
    """Rows `ids` of `weight`: an embedding lookup.

    For a `LowRank` this gathers rows of `left`, multiplies them by `right`, and adds the single entries of those rows;
    the dense table is never formed. The lines of a `Quantized` table are gathered packed and then expanded. Ids outside
    the table, negative ones included, are clamped to it.

    Raises:
        ValueError: `weight` is not a matrix; use vmap for a stack of tables.
    """
    if weight.ndim != 2:
        raise ValueError(f"`weight` has shape {weight.shape}; expected a table (n, d): vmap over a stack")
    if isinstance(weight, Quantized):
        return weight.take(ids)
    if not isinstance(weight, LowRank):
        return rows_of(weight, ids)
    rows = product(take_rows(weight.left, ids), weight.right)
    return rows if weight.sparse is None else rows + weight.sparse.take(ids, weight.shape[-1])


def densify(weight: Weight) -> Array:
    """The dense matrix that `weight` represents, multiplied at the highest precision of the device."""
    if isinstance(weight, LowRank):
        return weight.multiplied(jax.lax.Precision.HIGHEST)
    return jnp.asarray(expanded(weight))


def cast(weight: Any, dtype: Any) -> Any:
    """A weight of any kind, NumPy or JAX, as JAX arrays of `dtype`; codes and scales of a `Quantized` stay."""
    return weight.astype(dtype) if is_weight(weight) else jnp.asarray(weight).astype(dtype)


def floats_of(tree: Any) -> Any:
    """`tree` without arrays that have no gradient: indices of single entries, codes and their order."""

    def bare(leaf: Any) -> Any:
        if isinstance(leaf, Quantized):
            return dataclasses.replace(leaf, codes=None, order=None)
        if not isinstance(leaf, LowRank):
            return leaf
        sparse = leaf.sparse and dataclasses.replace(leaf.sparse, columns=None, starts=None)
        return LowRank(bare(leaf.left), bare(leaf.right), sparse)

    return jax.tree.map(bare, tree, is_leaf=is_weight)


def with_scales(tree: Any, dtype: Any) -> Any:
    """`tree` with the scales and steps of quantized matrices as arrays of `dtype`."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Quantized):
            scales, steps = jax.tree.map(lambda array: array.astype(dtype), (leaf.scales, leaf.steps))
            return dataclasses.replace(leaf, scales=scales, steps=steps)
        if isinstance(leaf, LowRank):
            return dataclasses.replace(leaf, left=convert(leaf.left), right=convert(leaf.right))
        return leaf

    return jax.tree.map(convert, tree, is_leaf=is_weight)


def with_places(floats: Any, tree: Any) -> Any:
    """`floats`, as `floats_of` returns it, with the indices, codes and orders of `tree`."""

    def whole(leaf: Any, before: Any) -> Any:
        if isinstance(leaf, Quantized):
            return dataclasses.replace(leaf, codes=before.codes, order=before.order)
        if not isinstance(leaf, LowRank):
            return leaf
        sparse = leaf.sparse and dataclasses.replace(before.sparse, values=leaf.sparse.values)
        return LowRank(whole(leaf.left, before.left), whole(leaf.right, before.right), sparse)

    return jax.tree.map(whole, floats, tree, is_leaf=is_weight)
