"""`LowRank`: a product of two thin matrices that stands where a dense weight stood."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from lpjax._repr import short_repr
from lpjax.weights.quantized import Quantized
from lpjax.weights.sparse import Sparse

if TYPE_CHECKING:
    Left = Float[Array | np.ndarray, "*batch n rank"]
    Right = Float[Array | np.ndarray, "*batch rank d"]
    Entries = Sparse | None
else:  # what tree functions put there may be anything: shapes, None, marks of a checkpointer
    Left = Right = Entries = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no single truth value, nor a hash
class LowRank:
    """The weight `left @ right`, kept as its two factors, plus single entries if there are any.

    A registered pytree, so jit, vmap, tree_map and optimizers see two arrays where there was one. Leading
    dimensions, if any, are batch dimensions (a stack of layers, or under vmap). With single entries there are five
    arrays, two of which hold indices: `floats_of` leaves these out, for gradients, and `astype` does not convert them.

    Attributes:
        left: shape (..., in, rank).
        right: shape (..., rank, out).
        sparse: entries that are added to the product of one pair, (in, out); None for none.
    """

    left: Left
    right: Right
    sparse: Entries = None

    # Else a NumPy array on the left of `@` would try to convert this to an array. Now it calls `__rmatmul__`.
    __array_ufunc__ = None

    def __repr__(self) -> str:
        return short_repr(self)

    def __rmatmul__(self, x: Any) -> Array:
        """`x @ self`, so that a model that ties its head by `x @ embedding.T` need not change."""
        return matmul(jnp.asarray(x), self)

    @property
    def T(self) -> LowRank:
        """The transposed weight, also a `LowRank`; batch dimensions stay in front."""
        sparse = None if self.sparse is None else self.sparse.transposed(self.shape[-1])
        return LowRank(self.right.mT, self.left.mT, sparse)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight this stands for."""
        return (*self.left.shape[:-1], self.right.shape[-1])

    @property
    def ndim(self) -> int:
        """Number of dimensions of the dense weight."""
        return len(self.shape)

    @property
    def dtype(self) -> jnp.dtype:
        """Common dtype of the factors."""
        return jnp.result_type(self.left, self.right)

    @property
    def rank(self) -> int:
        """Inner dimension of the product."""
        return self.left.shape[-1]

    @property
    def size(self) -> int:
        """Number of stored parameters: those of both factors and of the single entries with their indices."""
        return self.left.size + self.right.size + (0 if self.sparse is None else self.sparse.size)

    @property
    def entries(self) -> int:
        """Number of single entries."""
        return 0 if self.sparse is None else self.sparse.values.size

    def astype(self, dtype: Any) -> LowRank:
        """The same weight in another dtype, of JAX arrays."""
        left, right = (jnp.asarray(factor).astype(dtype) for factor in (self.left, self.right))
        return LowRank(left, right, None if self.sparse is None else self.sparse.astype(dtype))

    def blocks(self, height: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of the dense matrix, on the host and in double precision, `height` rows at a time."""
        right = np.concatenate([rows for _, rows in _blocks(self.right, height)])
        for start, left in _blocks(self.left, height):
            rows = left @ right
            if self.sparse is not None:
                rows += self.sparse.rows(start, start + len(rows), rows.shape[1])
            yield start, rows


def _blocks(factor: Any, height: int) -> Iterator[tuple[int, np.ndarray]]:
    """As `LowRank.blocks`, of an array or a quantized matrix."""
    if isinstance(factor, Quantized):
        yield from factor.blocks(height)
    else:
        rows = np.asarray(factor)
        yield from ((start, rows[start : start + height].astype(np.float64)) for start in range(0, len(rows), height))


def is_lowrank(leaf: Any) -> bool:
    """Whether `leaf` is a `LowRank`; the `is_leaf` of tree functions that must not look inside one."""
    return isinstance(leaf, LowRank)


def floats_of(tree: Any) -> Any:
    """`tree` without the indices of single entries, which have no gradient."""

    def bare(leaf: Any) -> Any:
        if not is_lowrank(leaf) or leaf.sparse is None:
            return leaf
        return dataclasses.replace(leaf, sparse=dataclasses.replace(leaf.sparse, columns=None, starts=None))

    return jax.tree.map(bare, tree, is_leaf=is_lowrank)


def with_places(floats: Any, tree: Any) -> Any:
    """`floats`, as `floats_of` returns it, with the indices of `tree`."""

    def whole(leaf: Any, before: Any) -> Any:
        if not is_lowrank(leaf) or leaf.sparse is None:
            return leaf
        sparse = dataclasses.replace(before.sparse, values=leaf.sparse.values)
        return dataclasses.replace(leaf, sparse=sparse)

    return jax.tree.map(whole, floats, tree, is_leaf=is_lowrank)


def matmul(x: Float[Array, "*batch n"], weight: Array | LowRank) -> Float[Array, "*batch d"]:
    """`x @ weight`; for a `LowRank` as two thin products, `rank·(in + out)` multiply-adds a row of x.

    Single entries save no time. With them, an x of few rows is multiplied by the factors and by the entries, and one of
    many rows by the dense matrix.
    """
    if not isinstance(weight, LowRank):
        return x @ weight
    if weight.sparse is None:
        return (x @ weight.left) @ weight.right
    n, d = weight.shape
    entries = weight.sparse.dense(d)
    if math.prod(x.shape[:-1]) * (n + d) > n * d:
        return x @ (weight.left @ weight.right + entries)
    return (x @ weight.left) @ weight.right + x @ entries


def matmul_transposed(x: Float[Array, "*batch d"], weight: Array | LowRank) -> Float[Array, "*batch n"]:
    """`x @ weight.T`, also under jit and with single entries; for a word head that is tied to a table."""
    if not isinstance(weight, LowRank):
        return x @ weight.T
    if weight.sparse is not None:
        return x @ (weight.left @ weight.right + weight.sparse.dense(weight.shape[-1])).T
    return (x @ weight.right.T) @ weight.left.T


def take_rows(weight: Array | LowRank, ids: Integer[Array | np.ndarray, "*batch"]) -> Float[Array, "*batch d"]:
    """Rows `ids` of `weight`: an embedding lookup.

    For a `LowRank` this gathers rows of `left`, multiplies them by `right`, and adds the single entries of those rows;
    the dense table is never formed. Ids outside the table, negative ones included, are clamped to it.

    Raises:
        ValueError: `weight` is not a matrix; use vmap for a stack of tables.
    """
    if weight.ndim != 2:
        raise ValueError(f"`weight` has shape {weight.shape}; expected a table (n, d): vmap over a stack")
    if not isinstance(weight, LowRank):
        return jnp.take(weight, ids, axis=0, mode="clip")
    rows = jnp.take(weight.left, ids, axis=0, mode="clip") @ weight.right
    return rows if weight.sparse is None else rows + weight.sparse.take(ids, weight.shape[-1])


def densify(weight: Array | LowRank) -> Array:
    """The dense matrix that `weight` stands for, multiplied at the highest precision the device has."""
    if not isinstance(weight, LowRank):
        return weight
    product = jnp.matmul(weight.left, weight.right, precision=jax.lax.Precision.HIGHEST)
    return product if weight.sparse is None else product + weight.sparse.dense(weight.shape[-1])
