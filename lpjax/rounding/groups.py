"""Rounding to few bits with one scale per group, fitted by least squares; larger entries are clipped."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from lpjax.rounding.feedback import Lattice, round_with_feedback
from lpjax.rounding.kernels import require_entries
from lpjax.rounding.triangle import present, triangle_of
from lpjax.weights.quantized import BITS, Quantized, narrowed

_SHARES = np.linspace(0.4, 1.0, 25)  # candidates for the largest code's value, relative to a group's largest entry
_BLOCK = 1 << 20


def round_groups(
    matrix: Float[Array | np.ndarray, "n d"],
    bits: int,
    group: int | None = 32,
    *,
    axis: int,
    rows: Any = None,
    columns: Any = None,
) -> Quantized:
    """Round a matrix to codes of `bits` bits, with one scale for each `group` of entries along a line.

    Each scale is the best of 25 candidates in squared error. Without metrics each entry is then rounded to the nearest
    code; with metrics, with error feedback under them (GPTQ, arXiv 2210.17323).

    Args:
        matrix: W, shape (n, d).
        bits: number of bits of a code, one of `BITS`, at least 2.
        group: number of entries that share a scale; None for a whole line.
        axis: 1 if lines are rows (tables), 0 if they are columns (kernels).
        rows, columns: metrics H (n, n) and G (d, d), or their diagonals; None for the identity.

    Raises:
        ValueError: `bits`, `group` or `axis` out of range, a metric that does not fit, or an entry that is not finite.
    """
    if bits not in BITS or bits < 2 or axis not in (0, 1) or (group is not None and group < 1):
        known = ", ".join(str(b) for b in BITS if b >= 2)
        raise ValueError(
            f"`bits`, `group`, `axis` are {bits}, {group}, {axis}; expected one of {known}, at least 1, and 0 or 1"
        )
    lines = np.asarray(matrix, np.float32)
    require_entries(lines)
    rows, columns = present(rows), present(columns)
    triangles = [triangle_of(metric, size) for metric, size in zip((rows, columns), lines.shape, strict=True)]
    if axis == 0:
        lines, triangles = lines.T, triangles[::-1]
    length = lines.shape[1]
    width = max(length, 1) if group is None else min(group, length)
    most = (1 << bits - 1) - 1
    scales = group_scales(lines, most, width)
    steps = np.repeat(scales.astype(np.float32), width, axis=1)[:, :length]
    codes = round_with_feedback(lines, Lattice(steps, -most, most), *triangles)
    return Quantized.from_codes(codes, scales, axis=axis, group=width, bits=bits)


def group_scales(lines: np.ndarray, most: int, group: int) -> np.ndarray:
    """The scale of each group of `lines` (lines, length) with the smallest squared error, `narrowed`."""
    length = lines.shape[1]
    padded = np.pad(lines, [(0, 0), (0, -length % group)])
    groups = padded.reshape(-1, group)
    scales = np.empty(len(groups), np.float32)
    height = max(1, _BLOCK // group)
    dtype = narrowed(np.abs(groups).max(axis=1, initial=0) * (_SHARES[0] / most)).dtype
    for start in range(0, len(groups), height):
        scales[start : start + height] = _fitted(groups[start : start + height], most, dtype)
    return narrowed(scales).reshape(len(lines), -1)


def _fitted(groups: np.ndarray, most: int, dtype: np.dtype) -> np.ndarray:
    largest = np.abs(groups).max(axis=1) / most
    best, least = largest, np.full(len(groups), np.inf)
    units = np.where(largest > 0, largest, 1)[:, None]  # keeps squares in range
    for share in _SHARES:
        with np.errstate(over="ignore"):
            scale = (share * largest).astype(dtype).astype(np.float32)
        scale = np.where(np.isfinite(scale), scale, largest)
        divisor = np.where(scale > 0, scale, 1)[:, None]
        codes = np.clip(np.round(groups / divisor), -most, most)
        errors = np.sum(((groups - codes * scale[:, None]) / units) ** 2, axis=1)
        better = errors < least
        best, least = np.where(better, scale, best), np.where(better, errors, least)
    return best
