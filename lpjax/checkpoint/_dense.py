"""Dense weights in place of factored ones; each product is computed only when it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lpjax.weights.parts import DENSE, kind_of

_ROWS = 2048  # rows multiplied at a time, in double precision


class Deferred:
    """An array that is computed each time NumPy reads it.

    Attributes:
        shape, dtype, ndim, size: as in `numpy.ndarray`; known without computing the array.
    """

    def __init__(self, make: Callable[[], np.ndarray], outline: np.ndarray):
        self._make, self._outline = make, outline  # a broadcast scalar with the array's shape and dtype
        self.shape, self.dtype, self.ndim, self.size = outline.shape, outline.dtype, outline.ndim, outline.size

    @property
    def T(self) -> Deferred:
        """The transpose."""
        return Deferred(lambda: self._make().T, self._outline.T)

    def reshape(self, *shape: Any) -> Deferred:
        """The same numbers in another shape."""
        return Deferred(lambda: self._make().reshape(*shape), self._outline.reshape(*shape))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._make().astype(dtype or self.dtype, copy=False)


def densified(params: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`params` with a `Deferred` product in place of every weight that is not dense.

    Products are summed in double precision and rounded once, to the leaf's dtype. If one overflows that dtype,
    computing it raises a ValueError that names the path.
    """
    tree = {}
    for key, child in params.items():
        here = f"{path}/{key}" if path else key
        if isinstance(child, Mapping):
            tree[key] = densified(child, here)
        else:
            tree[key] = child if kind_of(child) is DENSE else _product(here, child)
    return tree


def _product(path: str, weight: Any) -> Deferred:
    kind = kind_of(weight)
    # From the factors: without x64, JAX takes NumPy's float64 for float32.
    dtypes = {np.dtype(factor.dtype) for factor in kind.split(weight)[: kind.factors]}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(weight.dtype)

    def multiply() -> np.ndarray:
        dense = np.empty(weight.shape, dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            for start, rows in weight.blocks(_ROWS):
                dense[start : start + len(rows)] = rows
        if not np.isfinite(dense).all():
            raise ValueError(f"`params` holds factors at {path} whose product overflows {dtype}")
        return dense

    return Deferred(multiply, np.broadcast_to(np.zeros((), dtype), weight.shape))
