"""Selection of the leaves of a params tree to factor, and of their ranks."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from lpjax._check import check_share
from lpjax._tree import leaves_with_paths
from lpjax.models import ARCHITECTURES
from lpjax.weights.dispatch import is_quantized
from lpjax.weights.low_rank import LowRank

Pattern: TypeAlias = str | re.Pattern[str] | Callable[[str, Any], bool]
Select: TypeAlias = Pattern | Sequence[Pattern]
InputAxes: TypeAlias = Mapping[str, int | tuple[int, int]]
"""path -> number of leading axes that a kernel contracts with its input; for a stack of kernels, such as that of
`nn.scan`, the pair (leading axes of the stack, contracted axes after them)."""

_GROUPS = {
    # Token tables only: position and type tables are small, and all texts share their rows. Keras has a
    # token_and_position_embedding that contains a token_embedding.
    "embeddings": r"^(?!.*((?<!token_and_)position|pos_|wpe|token_type|segment|seg_|type_emb|relative)).*embedding$",
    "attention": r"(^|/)\w*(attention|attn)\w*/(.*/)?kernel$",
    "feed_forward": r"(^|/)(\w*_)?(ffn?|feed_?forward|mlp)\w*/(.*/)?kernel$",
}
"""Names that most Flax models use; models with other names have `groups` of their own."""

GROUPS = {name: (name,) for name in _GROUPS} | {"encoder": ("attention", "feed_forward")}
"""group of `select` -> its parts."""


def in_group(path: str, group: str) -> bool:
    """Whether a path belongs to one of `GROUPS` by its name, ignoring case, under the names of any model of lpjax."""
    nets = (net.config.groups for net in ARCHITECTURES.values())
    patterns = [known[part] for known in (_GROUPS, *nets) for part in GROUPS[group] if part in known]
    return re.search("|".join(dict.fromkeys(patterns)), path, re.IGNORECASE) is not None


def exactly(paths: Iterable[str]) -> Callable[[str, Any], bool]:
    """A `select` function for exactly these paths."""
    chosen = frozenset(paths)
    return lambda path, _: path in chosen


def select_paths(params: Any, select: Select, input_axes: InputAxes | None = None) -> list[str]:
    """Paths of the matrices that `select` names, in tree order.

    Groups ignore case and skip leaves that are not matrices, such as the 3-D kernels of flax's own attention layers
    unless `input_axes` says how to view them.

    Args:
        params: nested containers of arrays.
        select: group ("embeddings", "attention", "feed_forward", or "encoder" for the latter two), regular
            expression to search for in paths, function (path, leaf) -> bool, or a sequence of these.
        input_axes: see `compress`; leaves of more than two axes that it names count as matrices.

    Raises:
        ValueError: a pattern is not a regular expression or matches nothing, or a leaf that it matches is not a
            floating matrix; the nearest paths are named. Also if two selected leaves have the same path.
    """
    viewed = input_axes or {}

    def fits(path: str, leaf: Any) -> bool:
        return _is_matrix(leaf) or (path in viewed and _is_floating(leaf) and leaf.ndim > 2)

    leaves = leaves_with_paths(params)
    patterns = list(select) if isinstance(select, Sequence) and not isinstance(select, str) else [select]
    if not patterns:
        raise ValueError("`select` is empty; expected a group name, a regular expression or a function")
    chosen: set[str] = set()
    for pattern in patterns:
        matches = _matcher(pattern, fits)
        matched = {path for path, leaf in leaves if matches(path, leaf)}
        if not matched:
            raise ValueError(
                f"`select` {_name(pattern)} matches no leaf; nearest: {_nearest(_name(pattern), leaves)}. "
                f"Groups are {', '.join(GROUPS)}; "
                f"anything else is searched for in the paths as a regular expression"
            )
        chosen |= matched
    unfit = [(path, leaf) for path, leaf in leaves if path in chosen and not fits(path, leaf)]
    if unfit:
        named = [f"{path} {_describe(leaf)}" for path, leaf in unfit]
        kernels = [(path, leaf) for path, leaf in leaves if fits(path, leaf)]
        hint = ""
        if any(_is_floating(leaf) and leaf.ndim > 2 for _, leaf in unfit):
            hint = (
                ". A kernel of more axes can be factored if `input_axes` says how many of them are inputs: "
                "`lpjax.flax.input_axes` finds that for a linen module; `lpjax.flax.compress_nnx` knows it of NNX"
            )
        raise ValueError(
            f"`select` matches leaves that are not floating matrices: {', '.join(named[:5])}"
            f"{', …' if len(unfit) > 5 else ''}; nearest matrices: {_nearest(named[0], kernels)}{hint}"
        )
    paths = [path for path, _ in leaves if path in chosen]
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        raise ValueError(f"`select` matches different leaves of one path: {', '.join(twice)}; rename a key with a /")
    return paths


def parse_shares(text: str) -> tuple[float, ...]:
    """The shares `keep` in a text such as "0.75,0.5".

    Raises:
        ValueError: a part is not a number, or out of range.
    """
    try:
        shares = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"`keep` is {text!r}; expected numbers by commas, e.g. 0.75,0.5,0.25") from None
    for share in shares:
        check_share("keep", share)
    return shares


def rank_for(shape: tuple[int, int], keep: float) -> int:
    """Largest rank whose pair holds at most `keep` of the parameters: floor(keep·nd/(n + d)); may be 0.

    Raises:
        ValueError: `keep` is not in (0, 1], or a side of `shape` is below 1.
    """
    check_share("keep", keep)
    n, d = shape
    if min(n, d) < 1:
        raise ValueError(f"`shape` is {tuple(shape)}; expected (n, d), both 1 or more")
    # Guards against rounding: 0.1·30 must not floor to 2.
    return int(np.floor(keep * n * d / (n + d) * (1 + 4 * np.finfo(float).eps)))


def max_rank(shape: Sequence[int]) -> int:
    """The largest rank whose factors store less than the dense matrix; 0 if none do."""
    n, d = shape
    return (n * d - 1) // (n + d)


class MatrixView(NamedTuple):
    """A leaf as a stack of matrices of shape (inputs, outputs); `stack` is the stack's shape, () for a single one."""

    stack: tuple[int, ...]
    inputs: int
    outputs: int


def matrix_view(leaf: Any, axes: tuple[int, int] = (0, 1)) -> MatrixView:
    """The leaf as a stack of matrices, from its numbers of stacked and of input axes (`axes_of_leaves`)."""
    shape, (stacked, inputs) = tuple(leaf.shape), axes
    if isinstance(leaf, LowRank):  # already a matrix or a stack of matrices
        stacked, inputs = len(shape) - 2, 1
    first_output = stacked + inputs
    return MatrixView(shape[:stacked], math.prod(shape[stacked:first_output]), math.prod(shape[first_output:]))


def matrix_views(
    params: Any, paths: Iterable[str], input_axes: InputAxes | None = None
) -> dict[str, tuple[Any, MatrixView]]:
    """path -> (leaf, its view) of leaves that are matrices or stacks of them.

    Raises:
        ValueError: as `axes_of_leaves` and `require_unquantized`.
    """
    leaves = dict(leaves_with_paths(params))
    axes, paths = axes_of_leaves(leaves, input_axes), list(paths)
    require_unquantized({path: leaves[path] for path in paths})
    return {path: (leaves[path], matrix_view(leaves[path], axes.get(path, (0, 1)))) for path in paths}


def require_unquantized(leaves: Mapping[str, Any]) -> None:
    """Refuse quantized weights, which cannot be factored.

    Raises:
        ValueError: naming them.
    """
    if quantized := [path for path, leaf in leaves.items() if is_quantized(leaf)]:
        raise ValueError(
            f"`select` matches quantized weights: {', '.join(quantized[:5])}{', …' if len(quantized) > 5 else ''}; "
            "expected floating-point numbers: compress the model before it is quantized, or expand them by "
            "`lpjax.densify`"
        )


def axes_of_leaves(leaves: Mapping[str, Any], input_axes: InputAxes | None) -> dict[str, tuple[int, int]]:
    """The entries of `input_axes` as pairs: the number of axes that stack kernels, and of input axes after them.

    Raises:
        ValueError: an entry does not fit its leaf.
    """
    axes = {}
    for path, entry in (input_axes or {}).items():
        if path not in leaves:
            raise ValueError(
                f"`input_axes` names {path}, which is not a leaf of `params`; expected paths from its root"
            )
        shape = tuple(getattr(leaves[path], "shape", ()))
        if isinstance(leaves[path], LowRank):
            axes[path] = len(shape) - 2, 1
            continue
        stacked, inputs = entry if isinstance(entry, tuple) and len(entry) == 2 else (0, entry)
        if not isinstance(inputs, int) or not isinstance(stacked, int) or inputs < 1 or stacked < 0:
            raise ValueError(
                f"`input_axes` of {path} is {entry!r}; expected a number of axes, 1 or more, or a pair "
                "(stacked, inputs)"
            )
        if stacked + inputs >= len(shape):
            raise ValueError(
                f"`input_axes` of {path} is {entry!r}, but its shape is {shape}; expected fewer axes, so that one or "
                "more are left for the outputs"
            )
        axes[path] = stacked, inputs
    return axes


def _matcher(pattern: Any, fits: Callable[[str, Any], bool]) -> Callable[[str, Any], bool]:
    if callable(pattern):
        return lambda path, leaf: bool(pattern(path, leaf))
    if isinstance(pattern, str) and pattern in GROUPS:
        return lambda path, leaf: in_group(path, pattern) and fits(path, leaf)
    if not isinstance(pattern, str | re.Pattern):
        raise ValueError(
            f"`select` holds a {type(pattern).__name__}; expected a group name, a regular expression or a function"
        )
    expression = compiled_pattern(pattern)
    return lambda path, _: bool(expression.search(path))


def compiled_pattern(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    """A compiled regular expression of `select`.

    Raises:
        ValueError: it is invalid.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`select` {pattern!r} is not a valid regular expression: {error}") from None


def _is_matrix(leaf: Any) -> bool:
    return _is_floating(leaf) and leaf.ndim == 2


def _is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "ndim") and jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)


def _describe(leaf: Any) -> str:
    # NumPy cannot read the shape of a `LowRank`.
    return f"({getattr(leaf, 'dtype', type(leaf).__name__)}{list(getattr(leaf, 'shape', np.shape(leaf)))})"


def _name(pattern: Any) -> str:
    return repr(getattr(pattern, "pattern", getattr(pattern, "__name__", pattern)))


def _nearest(name: str, leaves: Sequence[tuple[str, Any]]) -> str:
    paths = [path for path, _ in leaves]
    if not paths:
        return "none, the tree has no such leaf"

    def likeness(path: str) -> float:
        plain = name.strip("'\"").lower()
        parts = [difflib.SequenceMatcher(None, plain, part.lower()).ratio() for part in path.split("/")]
        return max(*parts, difflib.SequenceMatcher(None, plain, path.lower()).ratio())

    return ", ".join(sorted(paths, key=likeness, reverse=True)[:3])
