"""Whether a program is traced for another runtime, which changes how weights are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

_EXPORTING: ContextVar[bool] = ContextVar("exporting", default=False)


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Inside, large quantized matrices are expanded whole, not a block at a time, and ids of rows are not clamped.

    Another runtime expands constants once, when it loads a program, and treats ids outside a table in its own way.
    """
    token = _EXPORTING.set(True)
    try:
        yield
    finally:
        _EXPORTING.reset(token)


def is_exporting() -> bool:
    """Whether a program is traced inside `exporting`."""
    return _EXPORTING.get()


def rows_of(array: Array | np.ndarray, ids: Integer[Array | np.ndarray, "*batch"]) -> Array:
    """Rows `ids` of an array; ids outside it are clamped, unless the program is exported."""
    if is_exporting():
        return jnp.asarray(array).at[ids].get(mode="promise_in_bounds")
    return jnp.take(array, ids, axis=0, mode="clip")
