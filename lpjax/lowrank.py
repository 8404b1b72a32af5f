"""`LowRank`: a product of two thin matrices that stands where a dense weight stood."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no single truth value, nor a hash
class LowRank:
    """The weight `left @ right`, kept as its two factors.

    A registered pytree, so jit, vmap, tree_map and optimizers see two arrays where there was one. Leading
    dimensions, where present, are batch dimensions (a stack of layers, or under vmap).

    Attributes:
        left: shape (..., in, rank).
        right: shape (..., rank, out).
    """

    left: Float[Array | np.ndarray, "*batch n rank"]
    right: Float[Array | np.ndarray, "*batch rank d"]

    # A NumPy array on the left of `@` would try to make an array of this; so it leaves the product to `__rmatmul__`.
    __array_ufunc__ = None

    def __rmatmul__(self, x: Any) -> Array:
        """`x @ self`, so that a model that is tied by `x @ embedding.T` need not know."""
        return matmul(jnp.asarray(x), self)

    @property
    def T(self) -> LowRank:
        """The transposed weight, as a pair too; batch dimensions stay in front."""
        return LowRank(self.right.mT, self.left.mT)

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
        """Number of stored parameters, `left.size + right.size`."""
        return self.left.size + self.right.size


def is_lowrank(leaf: Any) -> bool:
    """Whether `leaf` is a `LowRank`; the `is_leaf` of tree functions that must not look inside one."""
    return isinstance(leaf, LowRank)


def matmul(x: Float[Array, "*batch n"], weight: Array | LowRank) -> Float[Array, "*batch d"]:
    """`x @ weight`; for a `LowRank` as two thin products, `rank·(in + out)` multiply-adds a row of x."""
    if isinstance(weight, LowRank):
        return (x @ weight.left) @ weight.right
    return x @ weight


def take_rows(weight: Array | LowRank, ids: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
    """Rows `ids` of `weight`: an embedding lookup.

    For a `LowRank` this gathers rows of `left` and multiplies them by `right`; the dense table is never
    formed. Ids outside the table, negative ones included, are clamped to it.

    Raises:
        ValueError: `weight` is no matrix; a stack of tables wants vmap.
    """
    if weight.ndim != 2:
        raise ValueError(f"`weight` has shape {weight.shape}; expected a table (n, d): vmap over a stack")
    if isinstance(weight, LowRank):
        return jnp.take(weight.left, ids, axis=0, mode="clip") @ weight.right
    return jnp.take(weight, ids, axis=0, mode="clip")


def densify(weight: Array | LowRank) -> Array:
    """The dense matrix that `weight` stands for, multiplied at the highest precision the device has."""
    if isinstance(weight, LowRank):
        return jnp.matmul(weight.left, weight.right, precision=jax.lax.Precision.HIGHEST)
    return weight
