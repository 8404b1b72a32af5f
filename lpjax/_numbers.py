"""Conversion of arguments to arrays of numbers, with error messages for others."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype
from jax.experimental.sparse import JAXSparse


def numbers(name: str, value: Any) -> Any:
    """`value` as a JAX or NumPy array of real numbers; an `np.memmap` is returned unchanged.

    Accepts arrays of JAX and NumPy, lists, data frames, CPU tensors of PyTorch and anything with `__array__`, with any
    real dtype. Integers and booleans become floating-point, except those of an `np.memmap`.

    Args:
        name: name of the argument, for messages.
        value: the argument.

    Raises:
        ValueError: it is not an array of real numbers; the message names its type, not its content.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"`{name}` is a masked array; expected numbers alone: fill it, such as by .filled(0)")
    if isinstance(value, JAXSparse):
        raise ValueError(f"`{name}` is a sparse {_kind(value)} of JAX; expected a dense array: call .todense()")
    if type(value).__module__.startswith("scipy.sparse"):
        raise ValueError(f"`{name}` is a sparse {_kind(value)} of SciPy; expected a dense array: call .toarray()")
    if hasattr(value, "left") and hasattr(value, "right"):
        raise ValueError(f"`{name}` is a {_kind(value)}; expected an array: expand it with `lpjax.densify`")
    if isinstance(value, jax.Array | np.memmap):
        array = value
    elif hasattr(value, "__jax_array__"):
        array = jnp.asarray(value)
    else:
        array = _read(name, value)
    dtype = array.dtype
    if dtype == np.dtype(object):
        what = (
            f"is a {_kind(value)}"
            if array.ndim == 0
            else f"holds objects, such as a {_kind(np.asarray(array).flat[0])}"
        )
        raise ValueError(f"`{name}` {what}; expected an array of numbers")
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"`{name}` has dtype {dtype}; expected real numbers: take the real part, or the magnitude")
    whole = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, np.bool_)
    if not whole and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`{name}` has dtype {dtype}; expected numbers")
    if isinstance(array, np.memmap):
        return array
    if whole:
        return array.astype(canonicalize_dtype(np.float64))
    if isinstance(array, np.ndarray) and not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array.astype(np.float64) if array.dtype.itemsize > 8 else array


def check_fit(shape: tuple[int, ...], row_weights: Any = None, metric: Any = None) -> None:
    """Refuse row weights or a metric that do not fit a matrix of this shape.

    Raises:
        ValueError: naming the first.
    """
    if row_weights is not None and row_weights.shape != shape[:1]:
        raise ValueError(f"`row_weights` has shape {row_weights.shape}; expected {shape[:1]}, one a row")
    if metric is not None and metric.shape != (shape[1], shape[1]):
        raise ValueError(f"`metric` has shape {metric.shape}; expected {(shape[1], shape[1])}")


def require_representable(name: str, array: Any, dtype: Any) -> None:
    """Refuse a host array with numbers outside the range of a narrower dtype; NaN and infinity are refused elsewhere.

    Raises:
        ValueError: it has such numbers; says how large they are.
    """
    if isinstance(array, jax.Array) or not jnp.issubdtype(array.dtype, jnp.floating) or not array.size:
        return
    if jnp.finfo(array.dtype).bits <= jnp.finfo(dtype).bits:
        return
    largest = max(float(array.max()), -float(array.min()))  # NaN compares false, and is refused elsewhere
    info = jnp.finfo(dtype)
    if np.isfinite(largest) and (largest > float(info.max) or 0 < largest < float(info.tiny)):
        raise ValueError(
            f"`{name}` holds numbers of size {largest:.1e}, beyond {dtype}, in which JAX computes here; scale it, or "
            "set jax_enable_x64"
        )


def _read(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return jnp.asarray(value)  # pyright: ignore[reportReturnType], a list with traced numbers
    except Exception as error:
        if isinstance(value, list | tuple):
            raise ValueError(
                f"`{name}` is a {_kind(value)} whose parts have different lengths; expected rows of one length"
            ) from None
        lines = str(error).strip().splitlines()
        why = f": {lines[0][:200]}" if lines else ""
        raise ValueError(f"`{name}` is a {_kind(value)} that NumPy cannot read{why}") from None


def _kind(value: Any) -> str:
    return type(value).__name__


def solving_dtype(dtype: Any) -> jnp.dtype:
    """The dtype in which a matrix of `dtype` is solved, as LAPACK has no half precision."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return canonicalize_dtype(np.float64)  # integers
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)
