"""Factors in 8 bits, a quarter of the bytes of float32 in a file; loading restores floating-point factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FACTORS, INT8 = "factors", "int8"  # of config.json's block
_AXES = {".left": 0, ".right": 1}  # axes of the maximum: one scale per column of left, one per row of right
_SCALE = "_scale"
_MOST = 127


def rounded_factors(pairs: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The (name, tensor) pairs of a file, with factors as int8 and their scales.

    `N.left` (in, rank) and `N.right` (rank, out) have scales of shape (rank,), `N.left_scale` and `N.right_scale`, in
    the factors' original dtype. An entry's error is at most half a scale, 1/254 of the largest entry of its column or
    row.
    """
    factors = {name for name, _ in pairs}
    rounded: list[tuple[str, Any]] = []
    for name, tensor in pairs:
        stem, dot, part = name.rpartition(".")
        axis = _AXES.get(dot + part)
        if axis is None or not all(f"{stem}{other}" in factors for other in _AXES):
            rounded.append((name, tensor))
            continue
        wide = np.asarray(tensor).astype(np.float64)
        scale = (np.max(np.abs(wide), axis=axis) / _MOST).astype(tensor.dtype)
        divisor = np.expand_dims(scale.astype(np.float64), axis)
        # A scale is 0 if its column is, or if it underflows in its dtype.
        steps = np.divide(wide, divisor, out=np.zeros_like(wide), where=divisor > 0)
        rounded += [(name, np.clip(np.round(steps), -_MOST, _MOST).astype(np.int8)), (name + _SCALE, scale)]
    return rounded


def restored_factors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `rounded_factors`, up to rounding.

    Raises:
        ValueError: a scale lacks its factor, a factor lacks its scale, or the two do not fit each other.
    """
    restored = dict(tensors)
    for part, axis in _AXES.items():
        scales = [name for name in tensors if name.endswith(part + _SCALE)]
        for name in scales:
            factor, scale = tensors.get(name.removesuffix(_SCALE)), restored.pop(name)
            if factor is None or factor.dtype != np.int8:
                raise ValueError(f"{name} has no int8 {name.removesuffix(_SCALE)} beside it")
            if factor.ndim != 2 or scale.shape != (factor.shape[1 - axis],) or scale.dtype.kind in "iub":
                shapes = f"{list(scale.shape)} of {scale.dtype}, and that is {list(factor.shape)}"
                raise ValueError(f"{name} is {shapes}; expected a floating number for each rank")
            values = factor.astype(np.float64) * np.expand_dims(scale.astype(np.float64), axis)
            restored[name.removesuffix(_SCALE)] = values.astype(scale.dtype)
    bare = [name for name, tensor in restored.items() if tensor.dtype == np.int8 and name.endswith(tuple(_AXES))]
    if bare:
        raise ValueError(f"{bare[0]} is int8 and has no {bare[0]}{_SCALE}")
    return restored
