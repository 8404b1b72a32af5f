"""Statistics of a matrix in double precision, one block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

_ENTRIES = 2**20  # entries of a block: 8 MiB in double precision, small beside a weight, large beside a call's cost


class Range(NamedTuple):
    """The smallest and the largest entry of an array."""

    low: float
    high: float

    @property
    def factor(self) -> float:
        """A power of two that scales the largest magnitude to about 1, so fourth powers neither overflow nor vanish."""
        exponent = math.frexp(max(abs(self.low), abs(self.high)))[1]
        return math.ldexp(1.0, -min(max(exponent, -1000), 1000))  # clipped so that its inverse is finite


def range_of(array: np.ndarray) -> Range:
    """The range of a nonempty array; NaN if it holds NaN."""
    lows, highs = zip(*((piece.min(), piece.max()) for piece in blocks(as_matrix(array))), strict=True)
    return Range(float(np.min(lows)), float(np.max(highs)))  # Python's min would lose a NaN


def all_finite(ranges: tuple[Range, ...] | None) -> bool:
    """Whether the ends of all ranges are finite."""
    return all(math.isfinite(end) for ends in ranges or () for end in ends)


def as_matrix(array: np.ndarray) -> np.ndarray:
    """The array or its transpose, whichever has contiguous rows; one column if it does not have two axes."""
    if array.ndim != 2:
        return array.reshape(-1, 1)
    return array if array.flags.c_contiguous else array.T


def blocks(matrix: np.ndarray, factor: float = 1.0, least: int = 1) -> Iterator[np.ndarray]:
    """Blocks of rows times `factor`, in double precision; blocks of at least `least` rows, except for the last."""
    height = max(1, least, _ENTRIES // matrix.shape[1])
    for start in range(0, matrix.shape[0], height):
        piece = matrix[start : start + height].astype(np.float64)
        if factor != 1:
            piece *= factor
        yield piece


def entry_statistics(array: np.ndarray, ends: Range) -> dict[str, Any]:
    """Kurtosis, outlier ratio and zeros of the entries."""
    matrix = as_matrix(array)
    mean = sum(float(piece.sum()) for piece in blocks(matrix, ends.factor)) / array.size
    second = fourth = 0.0
    zeros = 0
    for piece in blocks(matrix, ends.factor):
        zeros += piece.size - int(np.count_nonzero(piece))
        piece -= mean
        piece *= piece
        second += float(piece.sum())
        piece *= piece
        fourth += float(piece.sum())
    magnitudes = array.astype(np.promote_types(array.dtype, np.float32)).ravel(order="K")
    np.abs(magnitudes, out=magnitudes)
    # In double precision: np.median would add the two middle entries in the array's dtype, which may overflow.
    middle = [(array.size - 1) // 2, array.size // 2]
    magnitudes.partition(middle)
    below, above = map(float, magnitudes[middle])
    median = below + (above - below) / 2
    return {
        # If all entries are equal, the second moment is only the mean's rounding error.
        "kurtosis": None if ends.low == ends.high else fourth * array.size / second**2 - 3,
        "entry_ratio": max(abs(ends.low), abs(ends.high)) / median if median else None,
        "zeros": zeros / array.size,
    }


def row_norms(matrix: np.ndarray, factor: float, inner: np.ndarray | None = None) -> np.ndarray:
    """Norms of the rows of `factor` · matrix · `inner`."""
    products = (piece if inner is None else piece @ inner for piece in blocks(matrix, factor))
    return np.sqrt(np.concatenate([np.einsum("ij,ij->i", product, product) for product in products]))


def singular_values(matrix: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """Singular values of a matrix times `factor`, descending.

    The Gram matrix in double precision loses values below about 1e-8 of the largest, which are only rounding errors in
    a matrix of single precision or less. It costs a fifth of the QR factorization that is used for float64.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    if matrix.dtype == np.float64:
        return np.linalg.svd(triangle(tall, factor), compute_uv=False)
    gram = np.zeros((tall.shape[1], tall.shape[1]))
    for piece in blocks(tall, factor):
        gram += piece.T @ piece
    return roots_of_gram(gram, max(matrix.shape))


def roots_of_gram(gram: np.ndarray, terms: int) -> np.ndarray:
    """Singular values, descending, from a Gram matrix in double precision whose entries are sums of `terms` products.

    Values that may be rounding errors are 0.
    """
    values = np.linalg.eigvalsh(gram)[::-1]
    rounding = terms * np.finfo(np.float64).eps * max(values[0], 0)
    return np.sqrt(np.where(values > rounding, values, 0))


def triangle(matrix: np.ndarray, factor: float) -> np.ndarray:
    """R of the QR factorization of `factor` · matrix, updated block of rows by block of rows."""
    total = np.zeros((0, matrix.shape[1]))
    for piece in blocks(matrix, factor, least=matrix.shape[1]):
        total = np.asarray(np.linalg.qr(np.concatenate([total, piece]), mode="r"))
    return total
