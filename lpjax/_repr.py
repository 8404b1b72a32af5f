"""Short representations of objects with arrays: shapes and dtypes in place of numbers, as in Equinox."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import msgspec
import numpy as np
import wadler_lindig as wl
from jax.core import Tracer

_LONGEST = 60  # characters of a mapping, or of a list of strings or mappings
_MOST_ARRAYS = 8  # largest number of arrays that a list shows


def short_repr(value: Any) -> str:
    """One line for a dataclass, a NamedTuple or a tree of them, such as `LowRank(left=f32[30522,100], …)`.

    Concrete scalars are printed as numbers; mappings of arrays, lists of records and long lists as their counts. Fields
    of a dataclass with their default are left out. Fields may hold tracers, shapes and anything else that a tree
    function puts there.
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
    if type(value) is float:
        return wl.TextDoc(f"{value:.6g}")
    if isinstance(value, msgspec.Struct):
        return wl.TextDoc(_struct(value))
    if type(value) in (list, tuple) and (count := _count(value)):
        return wl.TextDoc(count)
    return wl.TextDoc(_mapping(value)) if isinstance(value, Mapping) else None


def _struct(value: msgspec.Struct) -> str:
    fields = {field.name: (getattr(value, field.name), field.default) for field in msgspec.structs.fields(value)}
    shown = [f"{name}={short_repr(item)}" for name, (item, default) in fields.items() if item is not default]
    return f"{type(value).__name__}({', '.join(shown)})"


def _count(items: list[Any] | tuple[Any, ...]) -> str:
    """The count of a list of records, or of a long list of strings, mappings or arrays; empty for other lists."""
    counted = all(isinstance(item, msgspec.Struct) or dataclasses.is_dataclass(item) for item in items)
    if all(isinstance(item, str | Mapping) for item in items):
        counted = len(items) > 1 and len(repr(items)) > _LONGEST
    elif all(isinstance(item, np.ndarray) for item in items):
        counted = len(items) > _MOST_ARRAYS
    return f"{len(items)} of `{type(items[0]).__name__}`" if items and counted else ""


def _scalar(value: Any) -> str | None:
    """The value of a scalar as text; None if it cannot be read."""
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
    return text if len(text) <= _LONGEST else f"{{{len(value)} items}}"
