"""Rounding of the factors of a product by one step; a table is the product of its coefficients and a basis.

Transform coding: under the weights W is C Vᵀ, where columns of C decay like the singular values. One step for all
coefficients is optimal for entropy-coded codes (reverse water-filling); a direction whose coefficients all round to 0
is left out. So the step determines both rate and rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from lpjax._check import check_all_finite
from lpjax.rounding.feedback import Lattice, round_with_feedback
from lpjax.rounding.groups import round_groups
from lpjax.rounding.kernels import check_step, of_codes, on_lattice, require_entries, side_steps
from lpjax.rounding.triangle import Triangle, present, triangle_of, under_metric
from lpjax.weights.low_rank import LowRank
from lpjax.weights.quantized import Quantized

DEAD_ZONE = 0.1
"""Coefficients below 0.5 + `DEAD_ZONE` in units of the step become 0. If most codes are 0, a code of ±1 costs several
bits, more than its error is worth (rate–distortion optimised quantization; Sullivan, IEEE Trans. Inf. Theory 42,
1996)."""

_BLOCK = 1 << 22  # entries of a large left factor held in double precision


def rotation(
    left: Float[np.ndarray, "n k"], right: Float[np.ndarray, "k d"] | None, rows: Any, columns: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T (k, r), R (r, d) and s (r,) with LT·R = L·right, R G Rᵀ = I, and (LT)ᵀ H (LT) = diag(s)², descending.

    Args:
        left, right: factors (n, k) and (k, d); right is None for the identity.
        rows, columns: metrics H and G, or their diagonals; None for the identity. G is damped as for rounding.
    """
    size = left.shape[1] if right is None else right.shape[1]
    triangle = triangle_of(columns, size)
    scales = np.sqrt(triangle.pivots)
    if right is None:
        root = scales[:, None] * (np.eye(size) if triangle.upper is None else triangle.upper)
        turn, basis = root.T, np.linalg.inv(root).T
    elif triangle.upper is None:  # avoids O(d³) work for long rows
        orthonormal, small = np.linalg.qr(np.asarray(right, np.float64).T * scales[:, None])
        turn, basis = small.T, orthonormal.T / scales
    else:
        root = scales[:, None] * triangle.upper
        orthonormal, small = np.linalg.qr((np.asarray(right, np.float64) @ root.T).T)
        turn, basis = small.T, np.linalg.solve(root, orthonormal).T
    squares, vectors = np.linalg.eigh(turn.T @ _moments(left, rows) @ turn)
    vectors = vectors[:, ::-1]
    return turn @ vectors, vectors.T @ basis, np.sqrt(np.maximum(squares[::-1], 0))


def factors_of(left: np.ndarray, right: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The given factors; a matrix with fewer rows than columns is split by QR, so that it has few coefficients."""
    if right is not None or left.shape[0] >= left.shape[1]:
        return left, right
    orthonormal, small = np.linalg.qr(left.T.astype(np.float64))
    return small.T, orthonormal.T


def round_pair(
    left: Float[Array | np.ndarray, "n k"],
    right: Float[Array | np.ndarray, "k d"] | None,
    step: float,
    rows: Any = None,
    columns: Any = None,
    *,
    dead_zone: float = DEAD_ZONE,
) -> LowRank:
    """Round both factors of a product LR by one step under the weights.

    The factors are rotated (`rotation`), so that all coefficients have equal steps. The left factor is rounded under H.
    The right factor is then solved for again, given the rounded left one (CALDERA, Saha et al., arXiv 2405.18886,
    alternates these), and rounded under the Gram matrix of the left factor and G.

    Args:
        left, right: factors of the matrix, (n, k) and (k, d); right is None for the identity, so that left is W itself.
        step: rounding step, above 0, in units of H^{1/2} W G^{1/2}.
        rows, columns: metrics H (n, n) and G (d, d), or their diagonals; None for the identity.
        dead_zone: see `DEAD_ZONE`; only used for a diagonal H.

    Returns:
        A pair of `Quantized` factors; its rank is the number of remaining directions, at least 1.

    Raises:
        ValueError: as `round_kernel`.
    """
    check_step(step)
    left, right = np.asarray(left), None if right is None else np.asarray(right)
    check_all_finite("a factor", all(np.all(np.isfinite(part)) for part in (left, right) if part is not None))
    require_entries(left, *([] if right is None else [right]))
    rows, columns = present(rows), present(columns)
    left, right = factors_of(left, right)
    turn, basis, _ = rotation(left, right, rows, columns)
    triangle = triangle_of(rows, len(left))
    # Scales the left factor so that its steps are about 1, which float16 holds.
    unit = step * float(np.exp(-np.mean(np.log(triangle.pivots)) / 2))
    turn = turn / unit
    sides = side_steps(step / unit, triangle.pivots, np.ones(turn.shape[1]))
    codes = np.empty((len(left), turn.shape[1]), np.int32 if triangle.upper is not None else np.int16)
    for at in _blocks(left) if triangle.upper is None else (slice(None),):
        coefficients, steps = (left[at] @ turn).astype(np.float32), np.outer(sides[0][at], sides[1])
        if triangle.upper is None:  # without feedback no entry compensates for another
            coefficients[np.abs(coefficients) < (0.5 + dead_zone) * steps] = 0
        part = Triangle(triangle.upper, triangle.pivots[at])
        codes[at] = round_with_feedback(coefficients, Lattice(steps), part, triangle_of(None, turn.shape[1]))
    used = np.flatnonzero(np.any(codes, axis=0))
    used = used if used.size else np.array([0])
    if used.size < codes.shape[1]:
        codes, sides = codes[:, used], (sides[0], sides[1][used])
    rounded = of_codes(codes, sides, axis=1)
    gram, turned = _solved_anew(rounded, left, rows)
    solved = unit * (turned @ turn @ basis)
    # The shift keeps the step of a direction that hardly any row uses finite.
    inner = triangle_of(gram + (step / unit) ** 2 / 12 * np.eye(len(gram)), len(used), damping=0)
    outer = triangle_of(columns, basis.shape[1])
    return LowRank(rounded, on_lattice(solved.astype(np.float32), step, inner, outer, axis=1))


def round_pair_groups(
    left: Float[Array | np.ndarray, "n k"],
    right: Float[Array | np.ndarray, "k d"],
    bits: int,
    group: int | None = 32,
    rows: Any = None,
    columns: Any = None,
) -> LowRank:
    """Like `round_pair`, with codes of `bits` bits and one scale per group (`round_groups`); the rank is kept.

    Raises:
        ValueError: as `round_groups`.
    """
    left, right = np.asarray(left), np.asarray(right)
    require_entries(left, right)
    rows, columns = present(rows), present(columns)
    outer = None if columns is None else np.asarray(columns)
    codes = round_groups(left, bits, group, axis=1, rows=rows, columns=_moments(right.T, outer))
    gram, turned = _solved_anew(codes, left, rows)
    return LowRank(codes, round_groups(turned @ right, bits, group, axis=1, rows=gram, columns=columns))


def _solved_anew(rounded: Quantized, left: np.ndarray, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """QᵀHQ for the rounded left factor Q, and the T for which QT is nearest to `left` under H."""
    gram, moments = np.zeros((rounded.shape[1],) * 2), np.zeros((rounded.shape[1], left.shape[1]))
    height = len(left) if rows is not None and np.ndim(rows) == 2 else max(1, _BLOCK // max(left.shape[1], 1))
    for start, block in rounded.blocks(height):
        at = slice(start, start + height)
        weighted = under_metric(rows, block, at)
        gram += weighted.T @ block
        moments += weighted.T @ left[at]
    gram = (gram + gram.T) / 2
    return gram, np.linalg.pinv(gram, rcond=1e-10, hermitian=True) @ moments


def _moments(matrix: np.ndarray, metric: Any) -> np.ndarray:
    """AᵀHA in double precision."""
    full = metric is not None and np.ndim(metric) == 2
    total = np.zeros((matrix.shape[1],) * 2)
    for at in (slice(None),) if full else _blocks(matrix):
        part = matrix[at].astype(np.float64)
        total += part.T @ under_metric(metric, part, at)
    return (total + total.T) / 2


def _blocks(matrix: np.ndarray) -> Iterator[slice]:
    """Slices of rows."""
    height = max(1, _BLOCK // max(matrix.shape[1], 1))
    return (slice(start, start + height) for start in range(0, len(matrix), height))
