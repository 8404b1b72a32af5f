"""What a params tree holds, leaf by leaf: spectra, tails and outliers, and what factoring would take."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lpjax.models.names import NameTable, parts_of
from lpjax.select import InputAxes, Select, axes_of_leaves, is_table, leaves_with_paths, rank_for, select_paths
from lpjax.weights.low_rank import LowRank

ENERGY = 0.9
"""Share of ‖A‖_F² that `LeafRecord.rank_90` holds."""

_ENTRIES = 2**20  # of a block in double precision: 8 MiB, small beside a weight and large beside a call


@dataclasses.dataclass(frozen=True)
class KeepRecord:
    """What one `keep` would make of a matrix.

    Attributes:
        keep: share of the dense parameters.
        rank: that `keep` gives, ⌊keep·nd/(n + d)⌋; 0 where even rank 1 keeps more.
        size: parameters of the pair, rank·(n + d).
        smaller: whether there is such a pair, and it has fewer parameters than the leaf has now.
        energy: share of ‖A‖_F² that the best matrix of this rank holds (the SVD's; 1 − relative error²).
    """

    keep: float
    rank: int
    size: int
    smaller: bool
    energy: float


@dataclasses.dataclass(frozen=True)
class LeafRecord:
    """One leaf. What does not apply is None: to no matrix, to no floating numbers, or 0/0.

    A is the matrix as `compress` factors it, its rows being tokens of an embedding, outputs of a kernel.

    Attributes:
        path: keys joined by slashes.
        shape: of the leaf, of the product where it is factored.
        dtype: its name.
        size: parameters that are stored.
        share: of all parameters of the tree.
        rank: of the pair where the leaf is factored, else None.
        tied: paths of weights that are this one: equal leaves, and weights that files repeat or leave out.
        stable_rank: ‖A‖_F²/‖A‖₂², 0 for A = 0.
        rank_90: least rank that holds 90 % of ‖A‖_F².
        keep_90: what a pair of that rank keeps, rank_90·(n + d)/(nd); `rank_for` gives rank_90 at it. Above 1 it
            would have more parameters than A.
        keeps: what every `keep` would give.
        kurtosis: excess kurtosis of the entries, 0 for a Gaussian, in the limit (population moments); None
            where all entries are equal, and for the product of two factors, whose entries are never formed.
        entry_ratio: largest magnitude / median magnitude; None where the median is 0, and for products.
        zeros: share of the entries that are 0; None for products.
        row_ratio: largest row norm / median row norm; None where the median is 0.
        row: the row of the largest norm.
        singular_values: descending, min(n, d) or, of a pair, its rank at most. Values below about 1e-7 of the
            first are rounding unless the leaf is float64.
        row_norms: ‖a_i‖₂ of every row.
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


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Records of the chosen leaves, in tree order.

    Attributes:
        leaves: the records.
        parameters: stored in the whole tree.
        num_leaves: of the whole tree; a factored weight is one, and so is every matrix of a stack.
    """

    leaves: tuple[LeafRecord, ...]
    parameters: int
    num_leaves: int


@dataclasses.dataclass(frozen=True)
class Kind:
    """Leaves of one shape, dtype and rank whose paths differ in one number, that of the layer.

    Attributes:
        before, after: the path around the number; all of it, and "", for a leaf of no layer.
        layers: the numbers, ascending; empty for a leaf of no layer.
        leaves: the records, in that order.
    """

    before: str
    after: str
    layers: tuple[int, ...]
    leaves: tuple[LeafRecord, ...]

    @property
    def span(self) -> str:
        """The layers as ranges, "0–11" or "0–3, 5"."""
        runs: list[list[int]] = []
        for layer in self.layers:
            if runs and layer == runs[-1][-1] + 1:
                runs[-1][1:] = [layer]
            else:
                runs.append([layer])
        return ", ".join("–".join(map(str, run)) for run in runs)

    @property
    def name(self) -> str:
        """The path with its layers as ranges."""
        return f"{self.before}{self.span}{self.after}"


Progress = Callable[[int, int, str], None]


def inspect_params(
    params: Any,
    *,
    select: Select | None = None,
    keep: float | Sequence[float] = (0.75, 0.5, 0.25),
    rows: str = "auto",
    input_axes: InputAxes | None = None,
    tied: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """What the leaves of a params tree are like, and what factoring them would take.

    Works on the host in double precision, one leaf at a time: beside the tree it holds a copy of the
    magnitudes of one leaf and a square matrix of its smaller side.

    Args:
        params: nested containers of arrays (NumPy or JAX) and `LowRank` pairs; not changed.
        select: matrices to look at, as for `select_paths`; by default all leaves, matrices or not.
        keep: shares of a matrix's parameters, each in (0, 1], to give ranks for.
        rows: axis that holds the rows, "first", "last", or "auto", as for `compress`.
        input_axes: how to view leaves of more than two axes as matrices (inputs, outputs), as for `compress`. Every
            matrix of a stack, here or of stacked pairs, has a record of its own, "path[0]" and so on.
        tied: path of a weight that the tree leaves out -> path of the leaf that it is, see `tied_paths`. Equal
            matrices in the tree are found without.
        progress: called with (leaves done, leaves in all, path) after each leaf.

    Raises:
        ValueError: before any work: `select` as for `select_paths`, keep out of range, an unknown `rows`, `input_axes`
            or `tied` that do not fit the tree, a leaf that is no array, or chosen leaves that hold NaN or infinite
            entries, by name.
    """
    keeps = (float(keep),) if isinstance(keep, int | float) else tuple(map(float, keep))
    for share in keeps:
        rank_for((1, 1), share)
    if rows not in ("auto", "first", "last"):
        raise ValueError(f'`rows` is {rows!r}; expected "auto", "first" or "last"')
    whole = _leaves(params)
    known = {path for path, _ in whole}
    if strangers := sorted(set((tied or {}).values()) - known):
        raise ValueError(f"`tied` names leaves that are not in `params`: {', '.join(strangers[:5])}")
    by_path = dict(whole)
    axes = axes_of_leaves(by_path, input_axes)
    chosen = known if select is None else set(select_paths(params, select, input_axes))
    jobs = [job for path, leaf in whole for job in _jobs(path, leaf, axes.get(path), rows, path in chosen)]
    bad = [job.path for job in jobs if job.chosen and not _finite(job.ranges)]
    if bad:
        raise ValueError(
            f"`params` holds NaN or infinite entries: {', '.join(bad[:5])}{', …' if len(bad) > 5 else ''}; "
            f"expected finite weights: mend the checkpoint"
        )

    parameters = sum(_size(job.leaf) for job in jobs)
    twins = _twins(jobs, tied or {})
    records: list[LeafRecord] = []
    total = sum(job.chosen for job in jobs)
    for job in jobs:
        if not job.chosen:
            continue
        record = _record(job, keeps)
        share = record.size / parameters if parameters else 0.0
        records.append(dataclasses.replace(record, share=share, tied=tuple(twins.get(job.path, ()))))
        if progress is not None:
            progress(len(records), total, job.path)
    return Inspection(tuple(records), parameters, len(jobs))


def tied_paths(params: Mapping[str, Any], table: NameTable) -> dict[str, str]:
    """Paths of weights that `params` leaves out because they are tied -> paths of the leaves that they are.

    A weight counts where its group is in the tree: that of a masked-word head, say, without its decoder.
    """
    nested = f"{table.prefix}/" if table.prefix in params else ""
    weights = [(f"{nested}{weight.path}", weight) for weight in table.base]
    weights += [(weight.path, weight) for weight in table.heads]
    known = {path for path, _ in leaves_with_paths(params)}
    groups = {weight.group for path, weight in weights if path in known} | {""}
    by_name = {weight.name: path for path, weight in weights}
    return {
        path: by_name[weight.tied_to]
        for path, weight in weights
        if weight.tied_to in by_name
        and path not in known
        and weight.group in groups
        and by_name[weight.tied_to] in known
    }


def kinds_of(leaves: Iterable[LeafRecord]) -> list[Kind]:
    """Equal-shaped leaves of layers 0, 1, … brought together, in the order in which they first occur.

    The layer is the first number in the path, as a key, at a key's end after an underscore or in brackets, that
    differs among paths that are alike but for their numbers.
    """
    alike: dict[tuple[str, ...], list[tuple[int, list[str], LeafRecord]]] = {}
    for position, leaf in enumerate(leaves):
        parts = re.split(r"((?<![^/_[])\d+(?=/|]|$))", leaf.path)
        alike.setdefault(tuple(parts[::2]), []).append((position, parts, leaf))
    groups: dict[tuple[Any, ...], list[tuple[int, int, LeafRecord]]] = {}
    for template, members in alike.items():
        numbers = range(1, 2 * len(template) - 1, 2)
        star = next((i for i in numbers if len({parts[i] for _, parts, _ in members}) > 1), None)
        for position, parts, leaf in members:
            around = (leaf.path, "") if star is None else ("".join(parts[:star]), "".join(parts[star + 1 :]))
            layer = -1 if star is None else int(parts[star])
            groups.setdefault((*around, leaf.shape, leaf.dtype, leaf.rank), []).append((layer, position, leaf))
    kinds = []
    for (before, after, *_), members in groups.items():
        ordered = sorted(members, key=lambda member: member[:2])
        layers = tuple(layer for layer, *_ in ordered if layer >= 0)
        first = min(position for _, position, _ in members)
        kinds.append((first, Kind(before, after, layers, tuple(leaf for *_, leaf in ordered))))
    return [kind for _, kind in sorted(kinds, key=lambda pair: pair[0])]


class _Range(NamedTuple):
    """Least and largest entry of an array."""

    low: float
    high: float

    @property
    def factor(self) -> float:
        """A power of two that brings the largest magnitude near one: fourth powers neither overflow nor vanish."""
        exponent = math.frexp(max(abs(self.low), abs(self.high)))[1]
        return math.ldexp(1.0, -min(max(exponent, -1000), 1000))  # clipped where its inverse would be infinite


def _leaves(params: Any) -> list[tuple[str, Any]]:
    """Paths and leaves, numbers as arrays.

    Raises:
        ValueError: a leaf is no array, or a pair whose factors do not fit.
    """
    leaves = leaves_with_paths(params)
    leaves = [(path, np.asarray(leaf) if isinstance(leaf, int | float | complex) else leaf) for path, leaf in leaves]
    for path, leaf in leaves:
        parts = tuple(parts_of(leaf).values()) if isinstance(leaf, LowRank) else (leaf,)
        if any(isinstance(part, Tracer) for part in parts):
            raise ValueError(f"{path} is traced and has no values; inspect outside of jit, vmap and grad")
        if not all(hasattr(part, "dtype") and hasattr(part, "__array__") for part in parts):
            found = " and ".join(type(part).__name__ for part in parts)
            raise ValueError(f"{path} is {found}; expected arrays and `LowRank` pairs")
        if isinstance(leaf, LowRank):
            left, right = (tuple(part.shape) for part in (leaf.left, leaf.right))
            if len(left) < 2 or len(left) != len(right) or left[-1] != right[-2]:
                raise ValueError(f"{path} has factors of shapes {left} and {right}; expected (n, rank) and (rank, d)")
    return leaves


class _Job(NamedTuple):
    """A leaf, or a matrix of a stack.

    Attributes:
        path: its own.
        leaf: the array or pair.
        ranges: of the array, or of each factor; None without entries or of no floating numbers.
        turned: whether A is the transpose, if it is a matrix.
        chosen: whether a record is asked for.
    """

    path: str
    leaf: Any
    ranges: tuple[_Range, ...] | None
    turned: bool
    chosen: bool


def _jobs(path: str, leaf: Any, axes: tuple[int, int] | None, rows: str, chosen: bool) -> Iterator[_Job]:
    # As `compress` has it: a kernel (in, out) is factored as its transpose.
    turned = rows == "last" or (rows == "auto" and not is_table(path))
    shape = tuple(leaf.shape)
    pair = isinstance(leaf, LowRank)
    if pair and leaf.sparse is not None:
        axes = None  # a matrix as it is
    if not (axes or (pair and len(shape) > 2)):
        yield _Job(path, leaf, _ranges(leaf), turned, chosen)
        return
    stacked, inputs = axes if axes and not pair else (len(shape) - 2, 1)
    sides = [math.prod(shape[stacked : stacked + inputs]), math.prod(shape[stacked + inputs :])]
    arrays = tuple(map(np.asarray, _parts(leaf)))
    for index in np.ndindex(shape[:stacked]):
        part = LowRank(arrays[0][index], arrays[1][index]) if pair else arrays[0][index].reshape(sides)
        name = f"{path}[{','.join(map(str, index))}]" if index else path
        yield _Job(name, part, _ranges(part), turned, chosen)


def _parts(leaf: Any) -> tuple[Any, ...]:
    """The leaf, or its two factors; of a pair with single entries the dense matrix, whose factors say too little."""
    if not isinstance(leaf, LowRank):
        return (leaf,)
    if leaf.sparse is None:
        return leaf.left, leaf.right
    # Made anew each time: of all leaves together it would take the memory of the dense net.
    wide = np.promote_types(leaf.left.dtype, np.float32)
    return (np.concatenate([rows.astype(wide) for _, rows in leaf.blocks(2048)]),)


def _size(leaf: Any) -> int:
    return leaf.size if isinstance(leaf, LowRank) else math.prod(leaf.shape)


def _ranges(leaf: Any) -> tuple[_Range, ...] | None:
    """Range of the leaf, or of each factor; None without entries or of no floating numbers."""
    parts = _parts(leaf)
    if not all(jnp.issubdtype(part.dtype, jnp.floating) and math.prod(part.shape) for part in parts):
        return None
    return tuple(_range(np.asarray(part)) for part in parts)


def _range(array: np.ndarray) -> _Range:
    lows, highs = zip(*((piece.min(), piece.max()) for piece in _blocks(_as_matrix(array))), strict=True)
    return _Range(float(np.min(lows)), float(np.max(highs)))  # Python's min would lose a NaN


def _finite(ranges: tuple[_Range, ...] | None) -> bool:
    return all(math.isfinite(end) for found in ranges or () for end in found)


def _as_matrix(array: np.ndarray) -> np.ndarray:
    """The same entries as some matrix, its rows along the memory where they lie so."""
    if array.ndim != 2:
        return array.reshape(-1, 1)
    return array if array.flags.c_contiguous else array.T


def _blocks(matrix: np.ndarray, factor: float = 1.0, least: int = 1) -> Iterator[np.ndarray]:
    """Rows times `factor` in double precision, at least `least` at a time where there are as many."""
    height = max(1, least, _ENTRIES // matrix.shape[1])
    for start in range(0, matrix.shape[0], height):
        piece = matrix[start : start + height].astype(np.float64)
        if factor != 1:
            piece *= factor
        yield piece


def _record(job: _Job, keeps: tuple[float, ...]) -> LeafRecord:
    """The record of one leaf, without its share and its twins."""
    leaf, ranges = job.leaf, job.ranges
    stored = (leaf.left, leaf.right) if isinstance(leaf, LowRank) else (leaf,)
    dtype = "/".join(dict.fromkeys(str(part.dtype) for part in stored))
    known: dict[str, Any] = {"rank": leaf.rank} if isinstance(leaf, LowRank) else {}
    if ranges is not None:
        arrays = tuple(map(np.asarray, _parts(leaf)))
        if len(arrays) == 1:
            known |= _entries(arrays[0], ranges[0])
        if leaf.ndim == 2:
            if job.turned:
                arrays, ranges = tuple(array.T for array in arrays[::-1]), ranges[::-1]
            known |= _matrix(arrays, tuple(found.factor for found in ranges), keeps, _size(leaf))
    return LeafRecord(job.path, tuple(leaf.shape), dtype, _size(leaf), 0.0, **known)


def _entries(array: np.ndarray, found: _Range) -> dict[str, Any]:
    """Kurtosis, outlier ratio and zeros of the entries."""
    matrix = _as_matrix(array)
    mean = sum(float(piece.sum()) for piece in _blocks(matrix, found.factor)) / array.size
    second = fourth = 0.0
    zeros = 0
    for piece in _blocks(matrix, found.factor):
        zeros += piece.size - int(np.count_nonzero(piece))
        piece -= mean
        piece *= piece
        second += float(piece.sum())
        piece *= piece
        fourth += float(piece.sum())
    magnitudes = array.astype(np.promote_types(array.dtype, np.float32)).ravel(order="K")
    np.abs(magnitudes, out=magnitudes)
    median = float(np.median(magnitudes, overwrite_input=True))
    return {
        # Of equal entries the second moment is nothing but the rounding of the mean.
        "kurtosis": None if found.low == found.high else fourth * array.size / second**2 - 3,
        "entry_ratio": max(abs(found.low), abs(found.high)) / median if median else None,
        "zeros": zeros / array.size,
    }


def _matrix(
    arrays: tuple[np.ndarray, ...], factors: tuple[float, ...], keeps: tuple[float, ...], stored: int
) -> dict[str, Any]:
    """What follows from the rows and the singular values of A, or of the product of two factors."""
    if len(arrays) == 1:
        norms = _row_norms(arrays[0], factors[0])
        values = singular_values(arrays[0], factors[0])
    else:
        # LR = Q₁ T₁ T₂ᵀ Q₂ᵀ: its rows have the norms of L T₂ᵀ's, and T₁ T₂ᵀ, no larger than the rank, its values.
        left, right = (_triangle(array, f) for array, f in zip((arrays[0], arrays[1].T), factors, strict=True))
        norms = _row_norms(arrays[0], factors[0], right.T)
        values = np.linalg.svd(left @ right.T, compute_uv=False)
    n, d = arrays[0].shape[0], arrays[-1].shape[1]
    energies = np.cumsum((values / (values[0] or 1)) ** 2)  # of the ranks 1, 2, … over that of rank 1
    total = float(energies[-1])
    # An identity's first 9 of 10 values must not miss 0.9 by a rounding.
    rank_90 = int(np.searchsorted(energies, ENERGY * total * (1 - 1e-12))) + 1 if total else 0
    records = []
    for keep in keeps:
        rank = rank_for((n, d), keep)
        size = rank * (n + d)
        held = float(energies[min(rank, energies.size) - 1]) / total if rank and total else float(not total)
        records.append(KeepRecord(keep, rank, size, 0 < size < stored, held))
    median = float(np.median(norms))
    with np.errstate(over="ignore"):
        unscaled, row_norms = values, norms
        for factor in factors:
            unscaled, row_norms = unscaled / factor, row_norms / factor
    return {
        "stable_rank": total,
        "rank_90": rank_90,
        "keep_90": rank_90 * (n + d) / (n * d),
        "keeps": tuple(records),
        "row_ratio": float(norms.max()) / median if median else None,
        "row": int(np.argmax(norms)),
        "singular_values": unscaled,
        "row_norms": row_norms,
    }


def _row_norms(matrix: np.ndarray, factor: float, inner: np.ndarray | None = None) -> np.ndarray:
    """Norms of the rows of a matrix times `factor`, after multiplication by `inner`."""
    squares = []
    for piece in _blocks(matrix, factor):
        seen = piece if inner is None else piece @ inner
        squares.append(np.einsum("ij,ij->i", seen, seen))
    return np.sqrt(np.concatenate(squares))


def singular_values(matrix: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """Singular values of a matrix times `factor`, descending.

    The Gram matrix in double precision loses what lies below about 1e-8 of the largest, where entries of single
    precision or less hold only rounding. It costs a fifth of a QR, which single precision, as in the solvers'
    `right_singular`, needs wherever the spectrum decays.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    if matrix.dtype == np.float64:
        return np.linalg.svd(_triangle(tall, factor), compute_uv=False)
    gram = np.zeros((tall.shape[1], tall.shape[1]))
    for piece in _blocks(tall, factor):
        gram += piece.T @ piece
    return roots_of_gram(gram, max(matrix.shape))


def roots_of_gram(gram: np.ndarray, terms: int) -> np.ndarray:
    """Singular values, descending, from a Gram matrix in double precision, whose entries are sums of so many terms; 0
    for those that may be rounding."""
    values = np.linalg.eigvalsh(gram)[::-1]
    rounding = terms * np.finfo(np.float64).eps * max(values[0], 0)
    return np.sqrt(np.where(values > rounding, values, 0))


def _triangle(matrix: np.ndarray, factor: float) -> np.ndarray:
    """R of the QR factorization of a matrix times `factor`: of all rows so far and the next block, in turn."""
    total = np.zeros((0, matrix.shape[1]))
    for piece in _blocks(matrix, factor, least=matrix.shape[1]):
        total = np.asarray(np.linalg.qr(np.concatenate([total, piece]), mode="r"))
    return total


def _twins(jobs: list[_Job], tied: Mapping[str, str]) -> dict[str, list[str]]:
    """For every leaf the paths of those that are the same: equal matrices, transposed or not, and `tied`."""
    alike: dict[Any, list[tuple[str, Any]]] = {}
    for path, leaf, found, *_ in jobs:
        # Zero biases and scales of one are equal and not tied; neither are constant matrices.
        if leaf.ndim == 2 and found is not None and _finite(found) and any(ends.low < ends.high for ends in found):
            key = (frozenset(leaf.shape), frozenset(found), *(str(part.dtype) for part in _parts(leaf)))
            alike.setdefault(key, []).append((path, leaf))
    twins: dict[str, list[str]] = {}
    for members in alike.values():
        for (path, leaf), (other, same) in itertools.combinations(members, 2):
            if _equal(leaf, same):
                twins.setdefault(path, []).append(other)
                twins.setdefault(other, []).append(path)
    for path, other in tied.items():
        twins.setdefault(other, []).append(path)
    return twins


def _equal(leaf: Any, other: Any) -> bool:
    """Whether two matrices, or pairs, are the same, or one is the other's transpose."""
    ours, theirs = (tuple(map(np.asarray, _parts(x))) for x in (leaf, other))
    return len(ours) == len(theirs) and any(
        all(map(np.array_equal, ours, candidate)) for candidate in (theirs, tuple(array.T for array in theirs[::-1]))
    )
