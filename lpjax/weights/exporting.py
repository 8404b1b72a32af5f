"""Tracing of programs for another runtime, which changes how weights are read."""

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
    """Trace programs for export: large quantized matrices are expanded whole, and row ids are not clamped.

    Other runtimes expand constants once, when they load a program, and treat ids outside a table in their own way.
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
