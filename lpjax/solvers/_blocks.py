"""Row blocks: one pass over a matrix in pieces that stay in cache, with no temporary of the matrix's size."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

_CPU_ENTRIES = 2**20  # 4 MiB in float32: a block and its two or three temporaries fit a last-level cache
_ACCELERATOR_ENTRIES = 2**26  # large enough to fill any accelerator, small enough to bound its memory


def split_rows(array: Array, columns: int) -> Array:
    """(n, …) → (blocks, rows, …), padded by rows of zeros; `columns` is the width of the widest block at work."""
    entries = _CPU_ENTRIES if jax.default_backend() == "cpu" else _ACCELERATOR_ENTRIES
    n = array.shape[0]
    blocks = max(1, math.ceil(n * columns / entries))
    rows = math.ceil(n / blocks)
    padded = jnp.pad(array, [(0, blocks * rows - n)] + [(0, 0)] * (array.ndim - 1))
    return padded.reshape(blocks, rows, *array.shape[1:])


def join_rows(blocks: Array, n: int) -> Array:
    """Undo `split_rows`."""
    return blocks.reshape(-1, *blocks.shape[2:])[:n]
