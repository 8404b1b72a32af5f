"""Matrices that stay in their file: every pass reads the rows block by block, never all at once."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Scalar

_files: weakref.WeakValueDictionary[int, np.memmap] = weakref.WeakValueDictionary()
_handles = itertools.count()
_CHECKED_ENTRIES = 2**22  # at a time: 16 MiB in float32


@functools.partial(jax.tree_util.register_dataclass, data_fields=["handle", "largest"], meta_fields=["shape", "dtype"])
@dataclasses.dataclass(frozen=True)
class Mapped:
    """A memory-mapped matrix as compiled programs see it: a handle of the file, and its shape.

    The file itself is not part of a program, so all files of one shape share one program.

    Attributes:
        handle: key of the file in `_files`.
        largest: largest magnitude of its entries.
        shape: (n, d).
        dtype: dtype of the rows as read, which the file's may differ from.
    """

    handle: Int[Array, ""]
    largest: Scalar
    shape: tuple[int, int]
    dtype: Any

    def read(self, start: Any, count: int) -> Float[Array, "m d"]:
        """Rows `start` to `start + count`."""
        piece = jax.ShapeDtypeStruct((count, self.shape[1]), self.dtype)
        return jax.pure_callback(functools.partial(_read, count=count, dtype=self.dtype), piece, self.handle, start)


def map_matrix(matrix: np.memmap, dtype: Any) -> Mapped:
    """A memory-mapped matrix, read once for its largest magnitude, which is NaN or infinite if an entry is.

    The caller must keep `matrix` until the results are ready.
    """
    height = max(1, _CHECKED_ENTRIES // matrix.shape[1])
    largest = np.zeros((), dtype)
    for start in range(0, matrix.shape[0], height):
        piece = np.abs(matrix[start : start + height].astype(dtype))
        largest = np.maximum(largest, piece.max())  # keeps a NaN
    handle = next(_handles)
    _files[handle] = matrix
    return Mapped(jnp.asarray(handle, jnp.int32), jnp.asarray(largest), matrix.shape, jnp.dtype(dtype))


def _read(handle: Any, start: Any, *, count: int, dtype: Any) -> np.ndarray:
    matrix = _files.get(int(handle))
    if matrix is None:
        raise RuntimeError("a memory-mapped matrix was closed before it was solved: keep a reference to it until then")
    return np.asarray(matrix[int(start) : int(start) + count], dtype)
