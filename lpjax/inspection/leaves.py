"""Statistics of every leaf of a params tree: spectra, tails and outliers, and the rank that each `keep` gives."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lpjax._check import check_name
from lpjax._tree import is_table, leaves_with_paths
from lpjax.inspection.numerics import (
    Range,
    all_finite,
    entry_statistics,
    range_of,
    row_norms,
    singular_values,
    triangle,
)
from lpjax.inspection.records import ENERGY, Inspection, KeepRecord, LeafRecord
from lpjax.models.names import NameTable
from lpjax.select import InputAxes, Select, axes_of_leaves, rank_for, select_paths
from lpjax.weights.low_rank import LowRank
from lpjax.weights.parts import parts_of
from lpjax.weights.quantized import Quantized, host_array

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
    """Compute statistics of the leaves of a params tree, and the rank that each `keep` would give.

    Works on the host in double precision, one leaf at a time. Besides the tree, memory holds a copy of one leaf's
    magnitudes and a square matrix of the size of its smaller side.

    Args:
        params: nested containers of arrays (NumPy or JAX), `LowRank` and `Quantized`; not changed.
        select: matrices to inspect, as for `select_paths`; by default all leaves, including vectors and scalars.
        keep: shares of a matrix's parameters, each in (0, 1], for which to give ranks.
        rows: axis that holds the rows, "first", "last", or "auto", as for `compress`.
        input_axes: how to view leaves of more than two axes as matrices (inputs, outputs), as for `compress`. Each
            matrix of a stack, or of stacked factors, has its own record, "path[0]" and so on.
        tied: path of a weight that is not in the tree -> path of the leaf that it shares, see `tied_paths`. Equal
            matrices in the tree are found without it.
        progress: called with (leaves done, leaves in all, path) after each leaf.

    Raises:
        ValueError: before any work: `select` as for `select_paths`, `keep` out of range, an unknown `rows`,
            `input_axes` or `tied` that do not fit the tree, a leaf that is not an array, or selected leaves that hold
            NaN or infinite entries, by name.
    """
    keeps = tuple(map(float, np.ravel(np.asarray(keep, np.float64))))
    for share in keeps:
        rank_for((1, 1), share)
    check_name("rows", rows, ("auto", "first", "last"))
    leaves = _leaves(params)
    known = {path for path, _ in leaves}
    if unknown := sorted(set((tied or {}).values()) - known):
        raise ValueError(f"`tied` names leaves that are not in `params`: {', '.join(unknown[:5])}")
    by_path = dict(leaves)
    axes = axes_of_leaves(by_path, input_axes)
    chosen = known if select is None else set(select_paths(params, select, input_axes))
    items = [item for path, leaf in leaves for item in _items(path, leaf, axes.get(path), rows, path in chosen)]
    selected = [item for item in items if item.chosen]
    bad = [item.path for item in selected if not all_finite(item.ranges)]
    if bad:
        raise ValueError(
            f"`params` holds NaN or infinite entries: {', '.join(bad[:5])}{', …' if len(bad) > 5 else ''}; "
            f"expected finite weights: repair the checkpoint"
        )

    parameters = sum(_size(item.leaf) for item in items)
    equal = _equal_leaves(items, tied or {})
    records: list[LeafRecord] = []
    for item in selected:
        record = _record(item, keeps)
        share = record.size / parameters if parameters else 0.0
        records.append(dataclasses.replace(record, share=share, tied=tuple(equal.get(item.path, ()))))
        if progress is not None:
            progress(len(records), len(selected), item.path)
    return Inspection(tuple(records), parameters, len(items))


def tied_paths(params: Mapping[str, Any], table: NameTable) -> dict[str, str]:
    """Paths of tied weights that are not in `params` -> paths of the leaves that they share.

    A head's weight counts only if the rest of the head is in the tree, as for the tied decoder of a word head.
    """
    weights = [(path, weight) for weight, _, path in table.located(table.prefix in params)]
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


def _leaves(params: Any) -> list[tuple[str, Any]]:
    """Paths and leaves, with Python numbers as arrays.

    Raises:
        ValueError: a leaf is not an array, or its factors do not fit together.
    """
    leaves = leaves_with_paths(params)
    leaves = [(path, np.asarray(leaf) if isinstance(leaf, int | float | complex) else leaf) for path, leaf in leaves]
    for path, leaf in leaves:
        parts = parts_of(leaf).values()
        if any(isinstance(part, Tracer) for part in parts):
            raise ValueError(f"{path} is traced and has no values; inspect outside of jit, vmap and grad")
        if not all(hasattr(part, "dtype") and hasattr(part, "__array__") for part in parts):
            kinds = " and ".join(type(part).__name__ for part in parts)
            raise ValueError(f"{path} is {kinds}; expected arrays and `LowRank` pairs")
        if isinstance(leaf, LowRank):
            left, right = (tuple(part.shape) for part in (leaf.left, leaf.right))
            if len(left) < 2 or len(left) != len(right) or left[-1] != right[-2]:
                raise ValueError(f"{path} has factors of shapes {left} and {right}; expected (n, rank) and (rank, d)")
    return leaves


class _Item(NamedTuple):
    """A leaf, or a matrix of a stack.

    Attributes:
        path: path of the leaf, with the index in the stack.
        leaf: array or factors.
        ranges: range of the array, or of each factor; None if it is empty or not floating point.
        transpose: whether A is the transpose of the leaf, if that is a matrix.
        chosen: whether the leaf is selected.
    """

    path: str
    leaf: Any
    ranges: tuple[Range, ...] | None
    transpose: bool
    chosen: bool


def _items(path: str, leaf: Any, axes: tuple[int, int] | None, rows: str, chosen: bool) -> Iterator[_Item]:
    # As in `compress`, a kernel (in, out) is factored as its transpose.
    transpose = rows == "last" or (rows == "auto" and not is_table(path))
    shape = tuple(leaf.shape)
    pair = isinstance(leaf, LowRank)
    if pair and leaf.sparse is not None:
        axes = None  # it is one matrix already
    if not (axes or (pair and len(shape) > 2)):
        yield _Item(path, leaf, _ranges(leaf), transpose, chosen)
        return
    stacked, inputs = axes if axes and not pair else (len(shape) - 2, 1)
    sides = [math.prod(shape[stacked : stacked + inputs]), math.prod(shape[stacked + inputs :])]
    arrays = tuple(map(np.asarray, _parts(leaf)))
    for index in np.ndindex(shape[:stacked]):
        part = LowRank(arrays[0][index], arrays[1][index]) if pair else arrays[0][index].reshape(sides)
        name = f"{path}[{','.join(map(str, index))}]" if index else path
        yield _Item(name, part, _ranges(part), transpose, chosen)


def _parts(leaf: Any) -> tuple[Any, ...]:
    """The leaf, or its two factors; the dense matrix for factors with single entries.

    Quantized matrices are expanded at every call: to keep all of them would take the memory of the dense model.
    """
    if isinstance(leaf, Quantized):
        return (host_array(leaf),)
    if not isinstance(leaf, LowRank):
        return (leaf,)
    if leaf.sparse is None:
        return tuple(host_array(part) if isinstance(part, Quantized) else part for part in (leaf.left, leaf.right))
    wide = np.promote_types(leaf.left.dtype, np.float32)
    return (np.concatenate([rows.astype(wide) for _, rows in leaf.blocks(2048)]),)


def _size(leaf: Any) -> int:
    return leaf.size if isinstance(leaf, LowRank) else math.prod(leaf.shape)


def _format(part: Any) -> str:
    """The dtype of an array, or the number of bits of codes."""
    if not isinstance(part, Quantized):
        return str(part.dtype)
    bits = [bits for bits, _ in part.runs]
    return f"{min(bits)}-bit" if min(bits) == max(bits) else f"{min(bits)} to {max(bits)}-bit"


def _ranges(leaf: Any) -> tuple[Range, ...] | None:
    """Range of the leaf, or of each factor; None if it is empty or not floating point."""
    parts = _parts(leaf)
    if not all(jnp.issubdtype(part.dtype, jnp.floating) and math.prod(part.shape) for part in parts):
        return None
    return tuple(range_of(np.asarray(part)) for part in parts)


def _record(item: _Item, keeps: tuple[float, ...]) -> LeafRecord:
    """The record of one leaf, without its share and its tied weights."""
    leaf, ranges = item.leaf, item.ranges
    stored = (leaf.left, leaf.right) if isinstance(leaf, LowRank) else (leaf,)
    dtype = "/".join(dict.fromkeys(map(_format, stored)))
    known: dict[str, Any] = {"rank": leaf.rank} if isinstance(leaf, LowRank) else {}
    if ranges is not None:
        arrays = tuple(map(np.asarray, _parts(leaf)))
        if len(arrays) == 1:
            known |= entry_statistics(arrays[0], ranges[0])
        if leaf.ndim == 2:
            if item.transpose:
                arrays, ranges = tuple(array.T for array in arrays[::-1]), ranges[::-1]
            known |= _matrix(arrays, tuple(ends.factor for ends in ranges), keeps, _size(leaf))
    return LeafRecord(item.path, tuple(leaf.shape), dtype, _size(leaf), 0.0, **known)


def _matrix(
    arrays: tuple[np.ndarray, ...], factors: tuple[float, ...], keeps: tuple[float, ...], stored: int
) -> dict[str, Any]:
    """Statistics of the rows and singular values of A, one array or the product of two; it has `stored` parameters."""
    if len(arrays) == 1:
        norms = row_norms(arrays[0], factors[0])
        values = singular_values(arrays[0], factors[0])
    else:
        # LR = Q₁ T₁ T₂ᵀ Q₂ᵀ: its row norms are those of L T₂ᵀ, its singular values those of T₁ T₂ᵀ, (rank, rank).
        left, right = (triangle(array, f) for array, f in zip((arrays[0], arrays[1].T), factors, strict=True))
        norms = row_norms(arrays[0], factors[0], right.T)
        values = np.linalg.svd(left @ right.T, compute_uv=False)
    n, d = arrays[0].shape[0], arrays[-1].shape[1]
    energies = np.cumsum((values / (values[0] or 1)) ** 2)  # entry k is that of rank k + 1, relative to rank 1
    total = float(energies[-1])
    # Rounding must not make 9 of 10 equal singular values miss a share of 0.9.
    rank_90 = int(np.searchsorted(energies, ENERGY * total * (1 - 1e-12))) + 1 if total else 0
    records = []
    for keep in keeps:
        rank = rank_for((n, d), keep)
        size = rank * (n + d)
        energy = float(energies[min(rank, energies.size) - 1]) / total if rank and total else float(not total)
        records.append(KeepRecord(keep, rank, size, 0 < size < stored, energy))
    median = float(np.median(norms))
    with np.errstate(over="ignore"):
        unscaled, unscaled_norms = values, norms
        for factor in factors:
            unscaled, unscaled_norms = unscaled / factor, unscaled_norms / factor
    return {
        "stable_rank": total,
        "rank_90": rank_90,
        "keep_90": rank_90 * (n + d) / (n * d),
        "keeps": tuple(records),
        "row_ratio": float(norms.max()) / median if median else None,
        "row": int(np.argmax(norms)),
        "singular_values": unscaled,
        "row_norms": unscaled_norms,
    }


def _equal_leaves(items: list[_Item], tied: Mapping[str, str]) -> dict[str, list[str]]:
    """Path -> paths of the same weight elsewhere: equal matrices, transposed or not, and `tied`."""
    alike: dict[Any, list[tuple[str, Any]]] = {}
    for path, leaf, ranges, *_ in items:
        # Zero biases and scales of one are equal but not tied; neither are constant matrices.
        if leaf.ndim == 2 and ranges is not None and all_finite(ranges) and any(low < high for low, high in ranges):
            key = (frozenset(leaf.shape), frozenset(ranges), *(str(part.dtype) for part in _parts(leaf)))
            alike.setdefault(key, []).append((path, leaf))
    equal: dict[str, list[str]] = {}
    for members in alike.values():
        for (path, leaf), (other, other_leaf) in itertools.combinations(members, 2):
            if _equal(leaf, other_leaf):
                equal.setdefault(path, []).append(other)
                equal.setdefault(other, []).append(path)
    for path, other in tied.items():
        equal.setdefault(other, []).append(path)
    return equal


def _equal(leaf: Any, other: Any) -> bool:
    """Whether two matrices, or their factors, are equal, or one is the transpose of the other."""
    ours, theirs = (tuple(map(np.asarray, _parts(x))) for x in (leaf, other))
    return len(ours) == len(theirs) and any(
        all(map(np.array_equal, ours, candidate)) for candidate in (theirs, tuple(array.T for array in theirs[::-1]))
    )
