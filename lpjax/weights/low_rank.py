"""`LowRank`: a product of two thin matrices in place of a dense weight."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lpjax._repr import short_repr
from lpjax.weights.exporting import is_exporting
from lpjax.weights.product import product
from lpjax.weights.quantized import Quantized, expanded
from lpjax.weights.sparse import Sparse

if TYPE_CHECKING:
    Left = Float[Array | np.ndarray, "*batch n rank"] | Quantized
    Right = Float[Array | np.ndarray, "*batch rank d"] | Quantized
    Entries = Sparse | None
else:  # what tree functions put there may be anything: shapes, None, marks of a checkpointer
    Left = Right = Entries = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no single truth value, nor a hash
class LowRank:
    """The weight `left @ right`, stored as its two factors, plus optional single entries.

    A registered pytree, so jit, vmap, tree_map and optimizers see two arrays where there was one. Leading
    dimensions, if any, are batch dimensions (a stack of layers, or under vmap). Either factor may be `Quantized`. With
    single entries there are five arrays, two of which are indices: `floats_of` leaves these out, for gradients, and
    `astype` does not convert them.

    Attributes:
        left: first factor, shape (..., in, rank).
        right: second factor, shape (..., rank, out).
        sparse: `Sparse` matrix (in, out) added to the product, without batch dimensions; or None.
    """

    left: Left
    right: Right
    sparse: Entries = None

    # Makes a NumPy array on the left of `@` call `__rmatmul__` instead of converting this to an array.
    __array_ufunc__ = None

    def __repr__(self) -> str:
        return short_repr(self)

    def __rmatmul__(self, x: Any) -> Array:
        """`x @ self`, so that a model with a tied head, `x @ embedding.T`, need not change."""
        x = jnp.asarray(x)
        if self.sparse is None:
            return product(product(x, self.left), self.right)
        n, d = self.shape
        if is_exporting() or math.prod(x.shape[:-1]) * (n + d) > n * d:  # exported programs have no number of rows
            return product(x, self.multiplied())
        return product(product(x, self.left), self.right) + product(x, self.sparse.dense(d))

    def multiplied(self, precision: Any = None) -> Array:
        """The dense matrix (..., in, out), at a precision of `jax.numpy.matmul`."""
        product = jnp.matmul(expanded(self.left), expanded(self.right), precision=precision)
        return product if self.sparse is None else product + self.sparse.dense(self.shape[-1])

    @property
    def T(self) -> LowRank:
        """The transposed weight, also a `LowRank`; batch dimensions stay in front."""
        sparse = None if self.sparse is None else self.sparse.transposed(self.shape[-1])
        return LowRank(self.right.mT, self.left.mT, sparse)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        return (*self.left.shape[:-1], self.right.shape[-1])

    @property
    def ndim(self) -> int:
        """Number of dimensions of the dense weight."""
        return len(self.shape)

    @property
    def dtype(self) -> jnp.dtype:
        """Common dtype of the factors."""
        return jax.dtypes.canonicalize_dtype(jnp.promote_types(self.left.dtype, self.right.dtype))

    @property
    def rank(self) -> int:
        """Inner dimension of the product."""
        return self.left.shape[-1]

    @property
    def size(self) -> int:
        """Number of stored parameters: of both factors, and of the single entries with their indices."""
        return self.left.size + self.right.size + (0 if self.sparse is None else self.sparse.size)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    @property
    def nnz(self) -> int:
        """Number of single entries."""
        return 0 if self.sparse is None else self.sparse.values.size

    def astype(self, dtype: Any) -> LowRank:
        """The same weight in another dtype, as JAX arrays."""
        left, right = (
            factor.astype(dtype) if isinstance(factor, Quantized) else jnp.asarray(factor).astype(dtype)
            for factor in (self.left, self.right)
        )
        return LowRank(left, right, None if self.sparse is None else self.sparse.astype(dtype))

    def blocks(self, height: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of the dense matrix, on the host and in double precision, `height` rows at a time."""
        right = np.concatenate([rows for _, rows in row_blocks(self.right, height)])
        for start, left in row_blocks(self.left, height):
            rows = left @ right
            if self.sparse is not None:
                rows += self.sparse.rows(start, start + len(rows), rows.shape[1])
            yield start, rows


def row_blocks(weight: Any, height: int) -> Iterator[tuple[int, np.ndarray]]:
    """`LowRank.blocks` for a weight of any kind."""
    if isinstance(weight, Quantized | LowRank):
        yield from weight.blocks(height)
    else:
        rows = np.asarray(weight)
        yield from ((start, rows[start : start + height].astype(np.float64)) for start in range(0, len(rows), height))


def is_lowrank(leaf: Any) -> bool:
    """Whether `leaf` is a `LowRank`."""
    return isinstance(leaf, LowRank)
