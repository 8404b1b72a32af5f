"""The table of kinds of weights: the arrays of each, and how these are named, written, read and checked.

In a file, a dense weight N is one array, N; any other kind has several, such as `N.left` and `N.right`. A new kind of
weight is a class with the `shape`, `dtype` and `blocks` of `LowRank`, and an entry here. A quantized matrix may replace
an array, so that factors may have parts of their own: `N.left.codes` and `N.left.scales` (`Coded`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lpjax.weights.coded import Coded
from lpjax.weights.low_rank import LowRank
from lpjax.weights.quantized import Quantized
from lpjax.weights.sparse import Sparse, fault_of


def _product_shape(*factors: Any) -> tuple[int, ...] | None:
    """Shape of one array, or of the product of two; None if two do not fit."""
    if len(factors) == 1:
        return tuple(factors[0].shape)
    left, right = (factor.shape for factor in factors)
    fits = len(left) == len(right) == 2 and left[1] == right[0] >= 1
    return (left[0], right[1]) if fits else None


def _low_rank_plus_sparse(left: Any, right: Any, values: Any, columns: Any, starts: Any) -> LowRank:
    return LowRank(left, right, Sparse.from_parts(values, columns, starts))


def _entries_fault(
    shape: tuple[int, ...], look_inside: bool, left: Any, right: Any, values: Any, columns: Any, starts: Any
) -> str | None:
    return fault_of(values, columns, starts, shape, look_inside=look_inside)


class Kind(NamedTuple):
    """A kind of weight. Functions take its arrays in the order of `parts`.

    Attributes:
        parts: names of its arrays: `N.left` for "left", N itself for "".
        holds: whether a leaf of a tree is of this kind.
        split: leaf -> its arrays, without a copy.
        join: arrays -> leaf.
        factors: number of leading arrays that are factors of a product, for messages about shapes.
        floating: number of leading arrays that must hold floating-point numbers.
        shape: factors -> shape of the dense weight, or None if they do not fit each other.
        fault: (shape of the dense weight, look_inside, arrays) -> any other fault, or None. If `look_inside` is false,
            only shapes and dtypes are checked, as arrays may be traced.
        transpose: arrays -> those of the transpose; None if that needs more than views.
    """

    parts: tuple[str, ...]
    holds: Callable[[Any], bool]
    split: Callable[[Any], tuple[Any, ...]]
    join: Callable[..., Any]
    factors: int = 1
    floating: int = 1
    shape: Callable[..., tuple[int, ...] | None] = _product_shape
    fault: Callable[..., str | None] = lambda *_: None
    transpose: Callable[..., tuple[Any, ...]] | None = None


DENSE = Kind(
    parts=("",),
    holds=lambda _: True,
    split=lambda leaf: (leaf,),
    join=lambda array: array,
    transpose=lambda array: (array.T,),
)
QUANTIZED = Kind(
    parts=("",),
    holds=lambda leaf: isinstance(leaf, Quantized | Coded),
    split=lambda leaf: (leaf,),
    join=lambda matrix: matrix,
    transpose=lambda matrix: (matrix.T,),
)
KINDS = {
    "quantized": QUANTIZED,
    "low rank": Kind(
        parts=("left", "right"),
        holds=lambda leaf: isinstance(leaf, LowRank) and leaf.sparse is None,
        split=lambda leaf: (leaf.left, leaf.right),
        join=LowRank,
        factors=2,
        floating=2,
        transpose=lambda left, right: (right.T, left.T),
    ),
    "low rank plus sparse": Kind(
        parts=("left", "right", "values", "columns", "starts"),
        holds=lambda leaf: isinstance(leaf, LowRank) and leaf.sparse is not None,
        split=lambda leaf: (leaf.left, leaf.right, leaf.sparse.values, leaf.sparse.columns, leaf.sparse.starts),
        join=_low_rank_plus_sparse,
        factors=2,
        floating=3,
        fault=_entries_fault,
    ),
}
"""Kinds of weights other than dense ones, by name. If the names of two kinds overlap, the one with fewer is first."""


def kind_of(leaf: Any) -> Kind:
    """The kind of a leaf of a tree."""
    return next((kind for kind in KINDS.values() if kind.holds(leaf)), DENSE)


def kind_with(parts: Mapping[str, Any]) -> Kind:
    """The kind of a weight, given some of its arrays by the names of their parts.

    It is the kind that has all of these parts; if none has, the first kind that has one of them.
    """
    if parts.keys() == {""}:
        return kind_of(parts[""])
    kinds = (DENSE, *KINDS.values())
    whole = (kind for kind in kinds if set(parts) <= set(kind.parts))
    return next(whole, None) or next(kind for kind in kinds if set(parts) & set(kind.parts))


def parts_of(leaf: Any) -> dict[str, Any]:
    """The arrays of a leaf by the names of their parts, such as "left.scales"; {"": leaf} for a dense one.

    Those of a quantized matrix are scales, steps and order, and the packed codes of each run: "codes.0", …
    """
    if isinstance(leaf, Quantized):
        arrays = {"scales": leaf.scales, "steps": leaf.steps, "order": leaf.order}
        runs = {f"codes.{number}": run for number, run in enumerate(leaf.codes or ())}
        return {part: array for part, array in (arrays | runs).items() if array is not None}
    kind = kind_of(leaf)
    pairs = zip(kind.parts, kind.split(leaf), strict=True)
    if kind.parts == ("",):
        return dict(pairs)
    return {part_name(part, inner): array for part, whole in pairs for inner, array in parts_of(whole).items()}


def part_name(name: str, part: str) -> str:
    """The name of a part of the weight `name`."""
    return f"{name}.{part}" if part else name


def split_name(array_name: str) -> tuple[str, str]:
    """(name of the weight, part) from the name of an array; the inverse of `part_name`."""
    names = {part for kind in KINDS.values() for part in kind.parts}
    part = max((part for part in names if array_name.endswith(f".{part}")), key=len, default="")
    return (array_name.removesuffix(f".{part}"), part) if part else (array_name, "")
