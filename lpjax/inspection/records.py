"""Records of an inspection."""

from __future__ import annotations

import dataclasses

import numpy as np

from lpjax._repr import short_repr

ENERGY = 0.9
"""Share of ‖A‖_F² that `LeafRecord.rank_90` holds."""


@dataclasses.dataclass(frozen=True)
class KeepRecord:
    """The outcome of one `keep` for a matrix.

    Attributes:
        keep: share of the dense parameters.
        rank: rank ⌊keep·nd/(n + d)⌋; 0 if even rank 1 keeps more.
        size: number of parameters of the factors, rank·(n + d).
        smaller: whether the rank is at least 1 and the factors have fewer parameters than the leaf has now.
        energy: share of ‖A‖_F² in the best matrix of this rank, that of the SVD (1 − relative error²).
    """

    keep: float
    rank: int
    size: int
    smaller: bool
    energy: float


@dataclasses.dataclass(frozen=True)
class LeafRecord:
    """Statistics of one leaf. A statistic is None if it does not apply, as the spectrum of a vector, or is 0/0.

    A is the matrix as `compress` factors it: its rows are the tokens of an embedding, the outputs of a kernel.

    Attributes:
        path: keys joined by slashes.
        shape: shape of the leaf, or of the product if it is factored.
        dtype: name of the dtype, or bits of quantized weights; those of two factors are joined by a slash.
        size: number of stored parameters.
        share: `size` over the parameters of the tree.
        rank: rank of the factors; None for a dense leaf.
        tied: paths of weights that share this one: equal leaves, and weights that files repeat or leave out.
        stable_rank: ‖A‖_F²/‖A‖₂², 0 for A = 0.
        rank_90: smallest rank that holds 90 % of ‖A‖_F².
        keep_90: share of the parameters at that rank, rank_90·(n + d)/(nd), for which `rank_for` returns rank_90.
            Above 1 the factors would have more parameters than A.
        keeps: outcome of each `keep`.
        kurtosis: excess kurtosis of the entries, 0 in the limit for a Gaussian (population moments); None if all
            entries are equal, and for a product of two factors, whose entries are never formed.
        entry_ratio: largest magnitude / median magnitude; None if the median is 0, and for products.
        zeros: share of the entries that are 0; None for products.
        row_ratio: largest row norm / median row norm; None if the median is 0.
        row: index of the row with the largest norm.
        singular_values: singular values, descending, (min(n, d),), or of factors at most (rank,). Values below about
            1e-7 of the first are rounding errors unless the leaf is float64.
        row_norms: ‖a_i‖₂ of every row, (n,).
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    share: float
    rank: int | None = None
    tied: tuple[str, ...] = ()
    stable_rank: float | None = None
    rank_90: int | None = None
    keep_90: float | None = None
    keeps: tuple[KeepRecord, ...] = ()
    kurtosis: float | None = None
    entry_ratio: float | None = None
    zeros: float | None = None
    row_ratio: float | None = None
    row: int | None = None
    singular_values: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    row_norms: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        return short_repr(self)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Records of the chosen leaves, in tree order.

    Attributes:
        leaves: the records.
        parameters: number of stored parameters in the whole tree.
        num_leaves: number of leaves in the tree; a factored weight counts as one, and so does every matrix of a stack.
    """

    leaves: tuple[LeafRecord, ...]
    parameters: int
    num_leaves: int

    def __repr__(self) -> str:
        return short_repr(self)
