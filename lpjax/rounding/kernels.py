"""Rounding of a kernel in its own basis, by one step under metrics of rows and columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from lpjax.rounding.feedback import Lattice, round_with_feedback
from lpjax.rounding.triangle import Triangle, present, triangle_of
from lpjax.weights.quantized import Quantized, narrowed

_SMALLEST = 1e-37  # smaller float32 numbers have fewer bits


def round_kernel(
    matrix: Float[Array | np.ndarray, "n d"], step: float, rows: Any = None, columns: Any = None, *, axis: int = 0
) -> Quantized:
    """Round a matrix with an error of at most half of `step` in every coordinate under the metrics (see `feedback`).

    Entry (i, j) has the step step/√(d_i e_j), with the pivots d of H and e of G. At high rates the weighted error is
    nd·step²/12, and one step for all matrices is optimal for entropy-coded codes, because the slope of error over rate
    is then the same everywhere (reverse water-filling; Cover & Thomas, Elements of Information Theory, §10.3).

    Args:
        matrix: W, shape (n, d).
        step: rounding step, above 0, in units of H^{1/2} W G^{1/2}.
        rows, columns: metrics H (n, n) and G (d, d), or their diagonals; None for the identity.
        axis: 0 if the lines of the result are columns, as for kernels; 1 if they are rows.

    Raises:
        ValueError: the step is not a positive number, or so small that codes need more than 16 bits; a metric does not
            fit; or an entry is not finite.
    """
    check_step(step)
    matrix = np.asarray(matrix, np.float32)
    require_entries(matrix)
    rows, columns = present(rows), present(columns)
    triangles = [triangle_of(metric, size) for metric, size in zip((rows, columns), matrix.shape, strict=True)]
    return on_lattice(matrix, step, *triangles, axis=axis)


def require_entries(*matrices: np.ndarray) -> None:
    """Refuse empty arrays and arrays that are not matrices.

    Raises:
        ValueError: there is one; gives its shape.
    """
    for matrix in matrices:
        if matrix.ndim != 2 or not matrix.size:
            raise ValueError(f"a matrix has shape {matrix.shape}; expected rows and columns to round")


def check_step(step: float) -> None:
    """Refuse a step that is not a positive number.

    Raises:
        ValueError: `step` is not a positive number.
    """
    if not 0 < step < np.inf:
        raise ValueError(f"`step` is {step}; expected a number above 0")


def on_lattice(matrix: np.ndarray, step: float, rows: Triangle, columns: Triangle, *, axis: int) -> Quantized:
    """`round_kernel` from the triangles of the metrics."""
    sides = side_steps(step, rows.pivots, columns.pivots)
    codes = round_with_feedback(matrix, Lattice(np.outer(*sides)), rows, columns)
    return of_codes(codes, sides, axis=axis)


def side_steps(step: float, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps of rows and of columns as stored (`narrowed`); their outer product gives the steps of entries.

    A side with equal steps is all ones and need not be stored.

    Raises:
        ValueError: the steps are outside of float32's range.
    """
    sides = [1 / np.sqrt(pivots) for pivots in (rows, columns)]
    even = [bool(np.all(side == side[:1])) for side in sides]
    means = [float(np.exp(np.mean(np.log(side)))) if side.size else 1.0 for side in sides]
    whole = step * means[0] * means[1]
    first = 1.0 if even[0] else whole if even[1] else float(np.sqrt(whole))
    with np.errstate(over="ignore", under="ignore"):
        stored = [
            narrowed(side / mean * part).astype(np.float32)
            for side, mean, part in zip(sides, means, (first, whole / first), strict=True)
        ]
    if not all(np.all((side > _SMALLEST) & np.isfinite(side)) for side in stored):
        raise ValueError(f"`step` is {step:g}, so that entries have steps of about {whole:.2g}: beyond float32's range")
    return stored[0], stored[1]


def of_codes(codes: np.ndarray, sides: tuple[np.ndarray, np.ndarray], *, axis: int) -> Quantized:
    """The `Quantized` matrix of codes times the outer product of two sides.

    Raises:
        ValueError: a code is at the end of the range, so that it may have been clipped.
    """
    if codes.max(initial=0) >= 2**15 - 1 or codes.min(initial=0) <= -(2**15 - 1):
        raise ValueError("`step` is too small: codes need more than 16 bits; expected a larger step")
    lines, along = sides[1 - axis], sides[axis]
    steps = None if np.all(along == 1) else along
    return Quantized.from_codes(codes if axis == 1 else codes.T, lines[:, None], steps, axis=axis)
