"""Short representations of objects that hold arrays: shapes and dtypes in place of numbers, as Equinox prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import wadler_lindig as wl
from jax.core import Tracer

_LONGEST_MAPPING = 60  # characters


def short_repr(value: Any) -> str:
    """One line for a dataclass, a NamedTuple or a tree of them, such as `LowRank(left=f32[30522,100], …)`.

    Scalars that are known are printed as numbers, a mapping of arrays as their count. Fields of a dataclass that have
    their default are left out. Fields may hold tracers, shapes and anything else that a tree function puts there.
    """
    return wl.pformat(value, width=2**31, custom=_document)


def _document(value: Any) -> wl.AbstractDoc | None:
    """How `value` is printed; None to print it as `wadler_lindig` does."""
    if isinstance(value, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic):
        text = _scalar(value)
        if text is None:
            kind = "numpy" if isinstance(value, np.ndarray) else None
            return wl.array_summary(value.shape, np.dtype(value.dtype).name, kind)
        return wl.TextDoc(text)
    return wl.TextDoc(_mapping(value)) if isinstance(value, Mapping) else None


def _scalar(value: Any) -> str | None:
    """The number that a scalar is, if it can be read."""
    unreadable = isinstance(value, Tracer | jax.ShapeDtypeStruct) or (
        isinstance(value, jax.Array) and (value.is_deleted() or not value.is_fully_addressable)
    )
    if value.ndim or unreadable or not isinstance(number := np.asarray(value).item(), bool | int | float):
        return None
    return f"{number:.6g}" if isinstance(number, float) else str(number)


def _mapping(value: Mapping[Any, Any]) -> str:
    arrays = [leaf for leaf in jax.tree.leaves(dict(value)) if hasattr(leaf, "dtype") and hasattr(leaf, "size")]
    if arrays:
        return f"{{{len(arrays)} arrays, {sum(leaf.size for leaf in arrays):,} numbers}}"
    text = repr(dict(value))
    return text if len(text) <= _LONGEST_MAPPING else f"{{{len(value)} items}}"
