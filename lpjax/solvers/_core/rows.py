"""Row blocks: one pass over a matrix in pieces that stay in cache, with no temporary of the matrix's size.

If rows are sharded, each device passes over its own rows, and sums are taken over all devices.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax._exponents import largest_bits, scaled
from lpjax.solvers._core.mapped import Mapped

_CPU_ENTRIES = 2**20  # 4 MiB in float32: a block and its two or three temporaries fit a last-level cache
_ACCELERATOR_ENTRIES = 2**26  # large enough to fill any accelerator, small enough to bound its memory


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["matrix", "exponent", "finite", "limit", "row_factors", "turn"],
    meta_fields=["axes"],
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a matrix as an algorithm sees them: scaled, clipped and weighted as they are read, never copied.

    Attributes:
        matrix: given matrix, shape (n, d), or one that stays in its file; inside `shard_map` the rows of this device.
        exponent: power of 2 by which entries, subnormal ones included, are multiplied; None for 0.
        finite: if false, all rows read as zeros; None for true.
        turn: matrix by which rows are multiplied after that, shape (d, d), or None.
        limit: magnitude that entries are clipped to after that, or None.
        row_factors: factor of every row, applied last, shape (n,), or None.
        axes: names of the mesh axes over which the rows are sharded; none on one device.
    """

    matrix: Float[Array, "n d"] | Mapped
    exponent: Int[Array, ""] | None = None
    finite: Bool[Array, ""] | None = None
    limit: Scalar | None = None
    row_factors: Float[Array, " n"] | None = None
    turn: Float[Array, "d d"] | None = None
    axes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the whole matrix, on all devices."""
        n, d = self.matrix.shape
        return n * (jax.lax.axis_size(self.axes) if self.axes else 1), d

    @property
    def dtype(self) -> Any:
        return self.matrix.dtype

    def largest_bits(self) -> Int[Array, ""]:
        """`largest_bits` of the whole matrix as given, on all devices."""
        own = self.matrix.largest if isinstance(self.matrix, Mapped) else self.matrix
        return over_devices(jax.lax.pmax, largest_bits(own), self.axes)

    def largest(self) -> Scalar:
        """Largest magnitude of the scaled matrix, before `turn`, `limit` and `row_factors`."""
        return self._scaled(jax.lax.bitcast_convert_type(self.largest_bits(), self.dtype))

    def _scaled(self, piece: Array) -> Array:
        piece = piece if self.exponent is None else scaled(piece, self.exponent, once=True)
        return piece if self.finite is None else jnp.where(self.finite, piece, 0)

    def strided(self, stride: int) -> Rows:
        """Every `stride`-th row of a matrix in memory that has no row factors."""
        assert not isinstance(self.matrix, Mapped)
        assert self.row_factors is None
        return dataclasses.replace(self, matrix=self.matrix[::stride])

    def read(self, start: Any = 0, count: int | None = None) -> Float[Array, "m d"]:
        """Rows `start` to `start + count`; all of them by default, for small matrices."""
        rows, row_factors = self.matrix, self.row_factors
        if isinstance(rows, Mapped):
            rows = rows.read(start, rows.shape[0] if count is None else count)
        elif count is not None:
            rows = jax.lax.dynamic_slice_in_dim(rows, start, count)
        if count is not None and row_factors is not None:
            row_factors = jax.lax.dynamic_slice_in_dim(row_factors, start, count)
        rows = self._scaled(rows)
        if self.turn is not None:
            rows = rows @ self.turn
        if self.limit is not None:
            rows = jnp.clip(rows, -self.limit, self.limit)
        return rows if row_factors is None else rows * row_factors[:, None]


def map_rows(f: Callable[..., Any], rows: Rows, *given: Array) -> Any:
    """Apply `f` to all rows, a block at a time.

    Args:
        f: (m rows, *their rows of `given`) -> pytree of arrays (m, …).
        rows: the matrix.
        given: arrays (n, …).

    Returns:
        The same pytree of arrays (n, …), for the n rows of this device.
    """
    return _visit(lambda _, piece, __, *parts: ((), f(piece, *parts)), rows, (), None, given, updated=0)[1]


def fold_rows(
    block: Callable[..., tuple[Any, ...]], rows: Rows, total: Any, weights: Float[Array, " n"] | None, *state: Array
) -> tuple[Any, ...]:
    """Sum over all rows, a block at a time; the same pass computes arrays with a row for each.

    Args:
        block: (total, m rows, their weights, *their rows of `state`) -> (total, *arrays (m, …)). All blocks have the
            same length, so the last one may repeat rows of the one before it; their weight is then 0.
        rows: the matrix.
        total: initial sum, a pytree of zeros.
        weights: weights of the rows, shape (n,); None for ones.
        state: arrays (n, …), which the first arrays of `block` replace in place.

    Returns:
        (total, *arrays (n, …)): the sum over all devices, and arrays for the n rows of this one.
    """
    weights = jnp.ones(rows.matrix.shape[0], rows.dtype) if weights is None else weights
    total, *arrays = _visit(block, rows, total, weights, state, updated=len(state))
    return over_devices(jax.lax.psum, total, rows.axes), *arrays


def over_devices(collective: Callable[..., Any], tree: Any, axes: tuple[str, ...]) -> Any:
    """A collective over mesh axes, such as `jax.lax.psum`; on one device the tree itself."""
    return collective(tree, axes) if axes and jax.tree.leaves(tree) else tree


def _visit(
    block: Callable[..., tuple[Any, ...]], rows: Rows, total: Any, weights: Any, given: tuple[Array, ...], updated: int
) -> tuple[Any, ...]:
    """`fold_rows` on the rows of this device; the first `updated` of the arrays `given` are replaced."""
    n, d = rows.matrix.shape
    count = max(1, math.ceil(n * d / (_CPU_ENTRIES if jax.default_backend() == "cpu" else _ACCELERATOR_ENTRIES)))
    height = math.ceil(n / count)
    if count == 1:
        return block(total, rows.read(), weights, *given)

    def pieces(tree: Any, start: Any) -> Any:
        return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, start, height), tree)

    def visit(total: Any, given: tuple[Array, ...], start: Any, unvisited: Array) -> tuple[Any, ...]:
        weight = None if weights is None else jnp.where(unvisited, pieces(weights, start), 0)
        return block(total, rows.read(start, height), weight, *pieces(given, start))

    def step(index: Any, carry: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
        total, arrays = carry
        start = jnp.minimum(index * height, n - height)
        unvisited = start + jnp.arange(height) >= index * height
        total, *new = visit(total, (*arrays[:updated], *given[updated:]), start, unvisited)
        if updated:
            # Repeated rows were computed from arrays already replaced: their first results are kept.
            new = jax.tree.map(lambda a, b: jnp.where(_along(unvisited, a), a, b), new, pieces(arrays, start))
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return total, jax.tree.map(write, arrays, new)

    shapes = jax.eval_shape(visit, total, given, 0, jnp.ones(height, bool))[1 + updated :]
    made = jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape[1:]), leaf.dtype), list(shapes))
    total, arrays = jax.lax.fori_loop(0, count, step, (total, [*given[:updated], *made]))
    return total, *arrays


def multiply(rows: Rows, right: Float[Array, "d k"]) -> Float[Array, "n k"]:
    """A times a narrow matrix."""
    return map_rows(lambda piece: piece @ right, rows)


def _along(mask: Bool[Array, " m"], array: Array) -> Array:
    return mask.reshape(-1, *(1,) * (array.ndim - 1))
