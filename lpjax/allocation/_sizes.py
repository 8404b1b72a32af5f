"""Sizes of rounded matrices as functions of the step, from the entropy of some rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq

from lpjax._tree import is_table
from lpjax.compression.rounding import Moments, step_scale
from lpjax.rounding import DEAD_ZONE, factors_of, rotation, triangle_of
from lpjax.weights.entropy import estimated_bytes
from lpjax.weights.low_rank import LowRank, row_blocks

MARGIN = 0.997  # fraction of the size that is aimed at, as the size is a limit
_SAMPLE = {True: 1 << 20, False: 1 << 17}  # entries of a table, and of a kernel, that its size is estimated from
_BLOCK = 1 << 13  # rows of a table that are rotated at a time


class Sketch(NamedTuple):
    """A sample of a matrix, scaled so that every entry has the same step.

    Attributes:
        parts: some rows of the rounded matrices; for a table or pair, of its coefficients and of its basis.
        shares: number of all rows divided by the number of sampled rows, for each part.
        dead_zone: dead zone of the first part.
        largest: largest magnitude in all rows of all parts.
    """

    parts: tuple[np.ndarray, ...]
    shares: tuple[float, ...]
    dead_zone: float
    largest: float


def sketch_of(path: str, leaf: Any, moments: Moments) -> Sketch:
    """The sketch of a leaf, dense or a pair, under its metrics."""
    rows, columns = moments
    scale = 1 / step_scale(leaf, moments)
    if not is_table(path) and not isinstance(leaf, LowRank):
        matrix = np.asarray(leaf, np.float32)
        sides = [
            np.sqrt(triangle_of(metric, length).pivots) for metric, length in zip(moments, matrix.shape, strict=True)
        ]
        matrix = _times(matrix, sides, scale)
        some = matrix[:: _stride(matrix, table=False)]
        return Sketch((some.copy(),), (len(matrix) / len(some),), 0.0, float(np.abs(matrix).max()))
    left, right = (leaf.left, leaf.right) if isinstance(leaf, LowRank) else (leaf, None)
    left, right = factors_of(np.asarray(left), None if right is None else np.asarray(right))
    turn, basis, singular = rotation(left, right, rows, columns)
    triangle = triangle_of(rows, len(left))
    stride = _stride(left, table=is_table(path))
    weights = np.sqrt(triangle.pivots)
    coefficients = _times(
        (left[::stride] @ turn).astype(np.float32), (weights[::stride], np.ones(turn.shape[1])), scale
    )
    largest = max(
        float(np.abs((block @ turn) * (scale * weights[start : start + len(block), None])).max())
        for start, block in row_blocks(left, _BLOCK)
    )
    outer = np.sqrt(triangle_of(columns, basis.shape[1]).pivots)
    basis = _times(basis, (singular, outer), scale)
    dead_zone = DEAD_ZONE if triangle.upper is None else 0.0
    return Sketch(
        (coefficients, basis), (len(left) / len(coefficients), 1.0), dead_zone, max(largest, float(np.abs(basis).max()))
    )


def _stride(matrix: np.ndarray, *, table: bool) -> int:
    return max(1, matrix.size // _SAMPLE[table])


def _times(matrix: np.ndarray, sides: Sequence[np.ndarray], scale: float) -> np.ndarray:
    return (matrix * (scale * sides[0])[:, None] * sides[1]).astype(np.float32)


class Sizes:
    """Bytes of codes as a function of the step: estimates, corrected by actual sizes of matrices."""

    def __init__(self, sketches: dict[str, Sketch], kinds: Sequence[Sequence[str]]) -> None:
        self._sketches, self._kinds = sketches, [[path for path in kind if path in sketches] for kind in kinds]
        self._factors = dict.fromkeys(sketches, 1.0)
        self._known: dict[tuple[str, float], float] = {}

    @property
    def paths(self) -> list[str]:
        """Paths of the matrices."""
        return list(self._sketches)

    def error(self, step: float, *, relative: bool = False) -> float:
        """The sum over all matrices of squared errors, in units of the step; or of relative squared errors."""
        both = [self._error(path, self.step_for(path, step)) for path in self._sketches]
        return sum(error / square if relative else error for error, square in both if square)

    def total(self, step: float) -> float:
        """Bytes of all matrices."""
        return sum(self._factors[path] * self._estimate(path, step) for path in self._sketches)

    def step_for(self, path: str, step: float) -> float:
        """The step of a matrix: larger for a matrix with large entries, so that its codes are at most 2^14."""
        return max(step, self._sketches[path].largest / 2**14)

    def stands_for_others(self, path: str) -> bool:
        """Whether a matrix is the first of its kind, which represents the others."""
        return any(kind and kind[0] == path for kind in self._kinds)

    def correct(self, path: str, step: float, size: float, *, alone: bool) -> None:
        """Correct the estimate of a matrix that takes `size` bytes and, unless `alone`, those of its kind alike."""
        factor = size / self._estimate(path, step)
        change = factor / self._factors[path]
        others = () if alone else next(kind for kind in self._kinds if path in kind)
        self._factors |= {other: self._factors[other] * change for other in others} | {path: factor}

    def step_of(self, room: float, limit: float, fixed: float) -> float:
        """The step, to a thousandth, at which codes take `room` bytes; `limit` and `fixed` are for the message.

        Raises:
            ValueError: codes take more even at the largest step.
        """
        largest = [max(sketch.largest, 1e-30) for sketch in self._sketches.values()]
        low, high = math.log(min(largest, default=1.0) / 2**14), math.log(max(largest, default=1.0))
        if (least := self.total(math.exp(high))) > room:
            needed = 1.001 * (fixed + least) / MARGIN / 1e6  # rounded up, as the message has four digits
            least_of = "the size if all codes are 0" if self.paths else "the size in which no matrix has a step"
            raise ValueError(f"`size` is {limit / 1e6:.4g} MB; expected at least {needed:.4g} MB, {least_of}")
        if self.total(math.exp(low)) <= room:
            return math.exp(low)
        level: Any = brentq(lambda level: self.total(math.exp(level)) - room, low, high, xtol=5e-4)
        return math.exp(level)

    def _rounded(self, path: str, step: float) -> Iterator[tuple[float, np.ndarray, np.ndarray, np.ndarray]]:
        """(share, part, its codes, its stored codes) of each part of a matrix.

        Stored codes and the basis leave out directions whose coefficients are all 0.
        """
        sketch, used = self._sketches[path], None
        for number, (part, share) in enumerate(zip(sketch.parts, sketch.shares, strict=True)):
            part = part if used is None else part[used]
            codes = _codes(part / step, sketch.dead_zone if number == 0 else 0.0)
            if number == 0 and len(sketch.parts) > 1:
                used = np.flatnonzero(np.any(codes, axis=0))
                used = used if used.size else np.array([0])
            yield share, part, codes, codes[:, used] if number == 0 and used is not None else codes

    def _error(self, path: str, step: float) -> tuple[float, float]:
        """The squared error of a matrix rounded by `step`, and the sum of squares of its entries."""
        sketch = self._sketches[path]
        error = sum(
            share * float(np.sum(np.square(part - step * codes), dtype=np.float64))
            for share, part, codes, _ in self._rounded(path, step)
        )
        squares = float(np.sum(np.square(next(iter(sketch.parts))), dtype=np.float64))
        return error, next(iter(sketch.shares)) * squares

    def _estimate(self, path: str, step: float) -> float:
        if (path, step) not in self._known:
            size = 64.0
            for share, _, _, stored in self._rounded(path, self.step_for(path, step)):
                size += share * estimated_bytes(stored) + 2 * sum(stored.shape)
            self._known[path, step] = size
        return self._known[path, step]


def _codes(scaled: np.ndarray, dead_zone: float) -> np.ndarray:
    """Integers nearest to `scaled`; 0 for magnitudes below 0.5 + dead_zone."""
    scaled = np.where(np.abs(scaled) < 0.5 + dead_zone, 0, scaled)
    return np.round(scaled).astype(np.int32).clip(-(2**15), 2**15 - 1)
