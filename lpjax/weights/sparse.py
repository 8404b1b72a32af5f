"""`Sparse`: single entries of a matrix, kept beside its low-rank factors."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Integer

from lpjax._repr import short_repr

if TYPE_CHECKING:
    Values = Float[Array | np.ndarray, " count"]
    Columns = Integer[Array | np.ndarray, " count"]
    Starts = Integer[Array | np.ndarray, " n+1"]
else:  # what tree functions put there may be anything, as with `LowRank`
    Values = Columns = Starts = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Sparse:
    """Entries of a matrix (n, d) as compressed sparse rows (CSR).

    Attributes:
        values: entries, shape (nnz,); SciPy's `data`.
        columns: column of each entry, ascending within a row, shape (nnz,); uint16 if that suffices, else int32;
            SciPy's `indices`.
        starts: index of the first entry of each row, then nnz, shape (n + 1,); int32; SciPy's `indptr`.
        most: largest number of entries of a row; static, so that shapes are known under jit.
    """

    values: Values
    columns: Columns
    starts: Starts
    most: int = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        return short_repr(self)

    @classmethod
    def of(cls, matrix: np.ndarray) -> Sparse:
        """The nonzero entries of a matrix on the host."""
        rows, columns = np.nonzero(matrix)
        starts = np.searchsorted(rows, np.arange(matrix.shape[0] + 1)).astype(np.int32)
        return cls.from_parts(matrix[rows, columns], columns.astype(index_dtype(matrix.shape[1])), starts)

    @classmethod
    def from_parts(cls, values: Any, columns: Any, starts: Any) -> Sparse:
        """A `Sparse` whose `most` is computed from `starts`, on the host."""
        return cls(values, columns, starts, max(np.diff(np.asarray(starts)).tolist(), default=0))

    @property
    def size(self) -> int:
        """Stored parameters: the number of values, and the bytes of the indices in units of one value."""
        width = np.dtype(self.values.dtype).itemsize
        indices = sum(part.size * np.dtype(part.dtype).itemsize for part in (self.columns, self.starts))
        return self.values.size + -(-indices // width)

    def astype(self, dtype: Any) -> Sparse:
        """The same entries in another dtype."""
        return dataclasses.replace(self, values=jnp.asarray(self.values).astype(dtype))

    def dense(self, width: int) -> Float[Array, "n d"]:
        """The matrix with these entries and `width` columns, 0 elsewhere."""
        n, starts = self.starts.shape[0] - 1, jnp.asarray(self.starts)
        rows = jnp.repeat(jnp.arange(n), jnp.diff(starts), total_repeat_length=self.values.shape[0])
        zero = jnp.zeros((n, width), self.values.dtype)
        columns = jnp.asarray(self.columns).astype(jnp.int32)
        return zero.at[rows, columns].add(jnp.asarray(self.values), indices_are_sorted=True, unique_indices=True)

    def rows(self, start: int, stop: int, width: int) -> np.ndarray:
        """Rows `start` to `stop` of `dense(width)`, on the host and in double precision."""
        starts = np.asarray(self.starts).astype(np.int64)[start : stop + 1]
        inside = slice(starts[0], starts[-1])
        rows = np.repeat(np.arange(stop - start), np.diff(starts))
        dense = np.zeros((stop - start, width))
        dense[rows, np.asarray(self.columns)[inside]] = np.asarray(self.values)[inside].astype(np.float64)
        return dense

    def take(self, ids: Integer[Array | np.ndarray, "*batch"], width: int) -> Float[Array, "*batch d"]:
        """Rows `ids` of `dense(width)`; ids outside it are clamped."""
        starts, values, columns = jnp.asarray(self.starts), jnp.asarray(self.values), jnp.asarray(self.columns)
        # In the dtype of `starts`, as that of `ids` may not hold the number of rows.
        flat = jnp.clip(jnp.ravel(ids).astype(starts.dtype), 0, starts.shape[0] - 2)
        places = starts[flat][:, None] + jnp.arange(self.most, dtype=starts.dtype)[None]
        in_row = places < starts[flat + 1][:, None]
        added = jnp.where(in_row, jnp.take(values, places, mode="clip"), 0)
        at = jnp.where(in_row, jnp.take(columns, places, mode="clip").astype(jnp.int32), width)  # outside: dropped
        rows = jnp.zeros((flat.shape[0], width), values.dtype)
        rows = rows.at[jnp.arange(flat.shape[0])[:, None], at].add(added, mode="drop")
        return rows.reshape(*jnp.shape(ids), width)

    def transposed(self, width: int) -> Sparse:
        """The entries of the transpose of `dense(width)`, sorted on the host.

        Raises:
            ValueError: called under jit, as indices are sorted on the host.
        """
        if isinstance(self.starts, Tracer) or isinstance(self.columns, Tracer):
            raise ValueError("single entries can't be transposed under jit; transpose before it, or `densify`")
        starts, columns = np.asarray(self.starts), np.asarray(self.columns)
        rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        order = np.argsort(columns, kind="stable")
        new_starts = np.searchsorted(columns[order], np.arange(width + 1)).astype(np.int32)
        values = self.values[order] if isinstance(self.values, np.ndarray) else jnp.asarray(self.values)[order]
        return Sparse.from_parts(values, rows[order].astype(index_dtype(len(starts) - 1)), new_starts)


def index_dtype(width: int) -> np.dtype:
    """Dtype of column indices below `width`."""
    return np.dtype(np.uint16 if width <= 1 << 16 else np.int32)


def entries_for(parameters: float, shape: tuple[int, int], dtype: Any) -> int:
    """The number of entries that, with their indices, take the bytes of `parameters` numbers of `dtype`."""
    width = np.dtype(dtype).itemsize
    left = parameters * width - 4 * (shape[0] + 1)
    return max(0, int(left // (width + index_dtype(shape[1]).itemsize)))


def fault_of(values: Any, columns: Any, starts: Any, shape: tuple[int, ...], *, look_inside: bool = True) -> str | None:
    """The fault of the arrays of a `Sparse` for a matrix of this shape; None if they are valid.

    Without `look_inside`, as for traced arrays, only shapes and dtypes are checked.
    """
    n, d = shape
    for name, part, size in (("values", values, None), ("columns", columns, values.size), ("starts", starts, n + 1)):
        if part.ndim != 1 or (size is not None and part.size != size):
            return f"{name} has the shape {tuple(part.shape)}, expected ({'count' if size is None else size},)"
        if name == "columns" and np.dtype(part.dtype).kind not in "iu":
            return f"{name} is {part.dtype}, expected whole numbers"
        if name == "starts" and part.dtype not in (np.int32, np.int64):
            return f"{name} is {part.dtype}, expected int32"
    if not look_inside:
        return None
    columns, starts = np.asarray(columns).astype(np.int64), np.asarray(starts).astype(np.int64)
    # The range is checked first, as differences of huge numbers wrap around.
    inside = starts.min() >= 0 and starts.max() <= values.size
    if not inside or starts[0] != 0 or starts[-1] != values.size or np.any(np.diff(starts) < 0):
        return f"starts goes from {starts[0]} to {starts[-1]}, expected to rise from 0 to {values.size}"
    outside = columns.size and (columns.min() < 0 or columns.max() >= d)
    if outside or np.any(np.diff(np.repeat(np.arange(n), np.diff(starts)) * d + columns) <= 0):
        return f"columns is not below {d} and rising in each row"
    return None
