"""Division of a budget of bytes among all matrices: the rounding step at which their codes fill it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from lpjax._tree import is_table, leaves_with_paths
from lpjax.allocation._size import checked_size
from lpjax.allocation._sizes import MARGIN, Sizes, Sketch, sketch_of
from lpjax.checkpoint.safetensors import ENTRY
from lpjax.compression import compress, require_finite
from lpjax.compression.plan import Choice, Plan
from lpjax.compression.rounding import Moments, damped_moments_of, narrows, round_layer
from lpjax.compression.threads import as_done
from lpjax.select import Select
from lpjax.weighting.statistics import Calibration
from lpjax.weighting.weightings import DEFAULT, Weighting, leaf_metrics, require_statistics
from lpjax.weights.coded import stored_bytes
from lpjax.weights.low_rank import LowRank
from lpjax.weights.quantized import Quantized

Progress = Callable[[int, int, str], None]

_BITS = {True: Choice(None, bits=6, group=32), False: Choice(None, bits=4, group=32)}
"""Choices for tables and for kernels without statistics."""
_LARGE = 1 << 24  # entries of the largest table that is rounded whole to correct its estimate
_PARTS = {"step": 3, "pair": 5}  # number of arrays of a rounded matrix
_ROUNDS = 4  # largest number of corrections of the estimate


def plan_for_size(
    params: Any,
    size: float | str,
    *,
    statistics: Calibration | None = None,
    weighting: str | Weighting | None = None,
    select: Select | None = None,
    ranks: Plan | None = None,
    other_bytes: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """The plan with which the file of a model's weights has a given size in bytes.

    All matrices in `statistics` are rounded by one step under the weights, tables in a rotated basis, and their codes
    are entropy coded in the file (`lpjax.rounding`). One step for all is optimal: a further byte then lowers the error
    by the same amount in every matrix. So matrices with more influence on the model's outputs get more bits, and tables
    more directions. Matrices that are missing in `statistics`, or had no effect on the outputs for the calibration
    texts, get 6 bits (tables) or 4 bits (kernels) in groups of 32. Without any statistics, the step is in units of each
    matrix's root mean square, so that all have the same relative error. All other arrays become float16, unless a
    number is too large for it.

    The size is estimated from the entropy of codes rounded without feedback. Then all matrices are rounded, and the
    estimates are corrected by the actual sizes.

    Args:
        params: nested containers of arrays.
        size: size of the file of weights in bytes; a number up to 1 is a share of its present size; or a text such as
            "9MB" or "10%", see `parse_size`.
        statistics: result of `calibrate`, with gradients.
        weighting: weighting under which errors of matrices are comparable, as the default; its smoothing is used.
        select: matrices to round; by default all with 8,192 parameters or more.
        ranks: a plan, such as one from `allocate` for multiply-adds, whose pairs are solved first and then rounded, for
            a model that is both fast and small. Its other layers are ignored.
        other_bytes: bytes of the file besides `params`, such as the `extra` tensors of a checkpoint.
        progress: called with (steps done, steps in all, the next step).

    Raises:
        ValueError: `size` is not a positive number, not below the present size, or below the size at the largest step,
            which is named; a leaf is not finite; `statistics` are those of another model; or `ranks` has single entries
            or rounded layers.
    """
    paths, limit = checked_size(params, size, statistics, weighting, select, other_bytes)
    bases = {} if ranks is None else {path: choice for path, choice in ranks.layers.items() if choice.rank is not None}
    tree = dict(leaves_with_paths(params if ranks is None else _factored(params, ranks, bases, statistics)))
    paths = [path for path, leaf in tree.items() if path in paths or (path in bases and isinstance(leaf, LowRank))]
    kinds = kinds_of(tree, paths)
    done, total = 0, 2 * len(paths) + (_ROUNDS - 1) * len(kinds)

    def tell(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(min(done, total - 1), total, what)
        done += 1

    rest, fixed, layers, sizes = sketched(tree, paths, statistics, weighting, other_bytes, kinds, tell)
    step = sizes.step_of(MARGIN * limit - fixed, limit, fixed)
    for number in range(_ROUNDS if sizes.paths else 0):
        # All matrices first, then only those that represent others, as the step changes little.
        before = sizes.total(step)
        to_round = [path for path in sizes.paths if number == 0 or sizes.stands_for_others(path)]

        def rounded_size(path: str, step: float = step) -> tuple[str, float]:
            moments = damped_moments_of(statistics, path, weighting)
            return path, _rounded_bytes(path, tree[path], sizes.step_for(path, step), moments)

        for path, size in as_done(rounded_size, _with_progress(to_round, "rounding", tell)):
            sizes.correct(path, step, size, alone=number == 0)
        if abs(sizes.total(step) / before - 1) < 0.002:
            break
        step = sizes.step_of(MARGIN * limit - fixed, limit, fixed)
    layers |= {
        path: (bases[path] if path in bases and isinstance(tree[path], LowRank) else Choice(None))._replace(
            step=sizes.step_for(path, step)
        )
        for path in sizes.paths
    }
    return Plan(
        {path: layers[path] for path in paths},
        weighting=(weighting or DEFAULT) if statistics is not None else None,
        rest=rest,
    )


class Sketched(NamedTuple):
    """What a model takes in a file.

    Attributes:
        rest: dtype for unrounded arrays; None for their own.
        fixed: bytes that do not depend on the step.
        layers: choices of matrices that have no step.
        sizes: bytes of all others as functions of the step.
    """

    rest: Literal["float16"] | None
    fixed: float
    layers: dict[str, Choice]
    sizes: Sizes


def sketched(
    tree: dict[str, Any],
    paths: Sequence[str],
    statistics: Calibration | None,
    weighting: str | Weighting | None,
    other_bytes: int,
    kinds: list[list[str]],
    tell: Callable[[str], None],
) -> Sketched:
    """Look at every matrix and array of a model once.

    Raises:
        ValueError: a leaf is not finite, or `statistics` are of another model or of none of the matrices.
    """
    if statistics is not None:
        known = {path: tree[path] for path in paths if path in statistics.statistics}
        leaf_metrics(statistics, weighting or DEFAULT, known)
        if not known:
            require_statistics(statistics, paths)
    rest = _rest_dtype(leaf for path, leaf in tree.items() if path not in paths)
    fixed = float(other_bytes) + sum(_rest_bytes(path, tree[path], rest) for path in tree if path not in paths)

    for path in paths:
        require_finite(path, tree[path])

    def look(path: str) -> tuple[str, Sketch | None, int]:
        """The sketch of a matrix, if it has a step, and its bytes that do not depend on the step."""
        leaf, moments = tree[path], damped_moments_of(statistics, path, weighting)
        if statistics is not None and moments.columns is None:
            rounded = round_layer(path, leaf, _BITS[is_table(path)], moments)
            return path, None, stored_bytes(rounded) + _arrays(rounded) * _header(path)
        sketch = sketch_of(path, leaf, moments)
        bytes_ = _PARTS["pair" if len(sketch.parts) > 1 else "step"] * _header(path)
        if isinstance(leaf, LowRank) and leaf.sparse is not None:
            bytes_ += sum(part.nbytes + _header(path) for part in jax.tree.leaves(leaf.sparse))
        return path, sketch, bytes_

    sketches, layers = {}, {}
    for path, sketch, bytes_ in as_done(look, _with_progress(paths, "looking at", tell)):
        fixed += bytes_
        if sketch is None:
            layers[path] = _BITS[is_table(path)]
        else:
            sketches[path] = sketch
    return Sketched(rest, fixed, layers, Sizes({path: sketches[path] for path in paths if path in sketches}, kinds))


def _with_progress(paths: Iterable[str], what: str, tell: Callable[[str], None]) -> Iterator[str]:
    """The paths; calls `tell` before each one."""
    for path in paths:
        tell(f"{what} {path}")
        yield path


def _factored(params: Any, ranks: Plan, bases: dict[str, Choice], statistics: Calibration | None) -> Any:
    """`params` with the pairs of a plan; `bases` are its layers with a rank."""
    if any(choice.sparse_share or choice.rounds for choice in bases.values()):
        raise ValueError("`ranks` has single entries or rounded layers; expected pairs of floating-point numbers")
    return compress(params, dataclasses.replace(ranks, layers=bases), statistics).params if bases else params


def kinds_of(tree: dict[str, Any], paths: Sequence[str]) -> list[list[str]]:
    """Paths of matrices of one shape whose names differ only in numbers."""
    kinds: dict[Any, list[str]] = {}
    for path in paths:
        kinds.setdefault((re.sub(r"\d+", "#", path), tuple(tree[path].shape)), []).append(path)
    return list(kinds.values())


def _rounded_bytes(path: str, leaf: Any, step: float, moments: Moments) -> float:
    """Bytes of a matrix rounded by `step`; those of a large table are extrapolated from some of its rows."""
    choice = Choice(None, step=step)
    if not is_table(path) or isinstance(leaf, LowRank) or leaf.size <= _LARGE:
        rounded = round_layer(path, leaf, choice, moments)
        parts = (rounded.left, rounded.right) if isinstance(rounded, LowRank) else (rounded,)
        return sum(map(stored_bytes, parts))
    some = slice(None, None, -(-leaf.size // _LARGE))
    part = round_layer(
        path,
        np.asarray(leaf)[some],
        choice,
        moments._replace(rows=None if moments.rows is None else moments.rows[some]),
    )
    share = len(leaf) / len(np.asarray(leaf)[some])
    # With all rows the basis has finer steps, as its error counts `share` times as much.
    basis = stored_bytes(part.right) + math.prod(part.right.shape) * math.log2(share) / 2 / 8
    return share * stored_bytes(part.left) + basis


def _rest_dtype(leaves: Iterable[Any]) -> Literal["float16"] | None:
    """The dtype of all unrounded arrays: float16 if it can hold their numbers, else None for their own."""
    most = float(np.finfo(np.float16).max)
    fits = all(np.abs(np.asarray(leaf)).max(initial=0) <= most for leaf in leaves if narrows(leaf))
    return "float16" if fits else None


def _rest_bytes(path: str, leaf: Any, rest: str | None) -> int:
    """Bytes of an unrounded array or weight in its new dtype, with its entries in the header."""
    size = leaf.size * 2 if rest is not None and narrows(leaf) else stored_bytes(leaf)
    return size + _arrays(leaf) * _header(path)


def _arrays(weight: Any) -> int:
    """The number of arrays of a weight of any kind in a file."""
    if isinstance(weight, Quantized):
        return 2 if weight.steps is None else 3
    if isinstance(weight, LowRank):
        return sum(_arrays(part) for part in (weight.left, weight.right, *jax.tree.leaves(weight.sparse)))
    return 1


def _header(path: str) -> int:
    """Bytes of an array's entry in the header of a file."""
    return len(path) + ENTRY
