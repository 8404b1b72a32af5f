"""One budget of bytes for all matrices of a model: the rounding step at which their codes fill it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from lpjax._tree import is_table, leaves_with_paths
from lpjax.compression import compress, require_finite
from lpjax.compression.plan import Choice, Plan
from lpjax.compression.rounding import Moments, moments_of, round_layer, step_scale
from lpjax.rounding import DEAD_ZONE, rotation, triangle_of
from lpjax.select import Select, require_unquantized, select_paths
from lpjax.weighting.statistics import Calibration
from lpjax.weighting.weightings import DEFAULT, Weighting, check_weighting, leaf_metrics, weighting_named
from lpjax.weights.coded import stored_bytes
from lpjax.weights.entropy import estimated_bytes
from lpjax.weights.low_rank import LowRank

Progress = Callable[[int, int, str], None]

_BITS = {True: Choice(None, bits=6, group=32), False: Choice(None, bits=4, group=32)}
"""Choices for tables and for kernels that statistics lack."""
_FEWEST = 1 << 13  # parameters of a matrix that is worth rounding
_SAMPLE = {True: 1 << 20, False: 1 << 17}  # entries of a table, and of a kernel, from which its size is estimated
_LARGE = 1 << 24  # entries of a table that is rounded whole to correct its estimate
_NAME = 78  # bytes of an array's entry in the header of a file, beside the name of its leaf
_PARTS = {"bits": 2, "step": 3, "pair": 5}  # arrays of a rounded matrix
_MARGIN = 0.997  # share of the size that is aimed at, since the size is a limit
_ROUNDS = 4  # corrections of the estimate


def plan_for_size(
    params: Any,
    size: float,
    *,
    statistics: Calibration | None = None,
    weighting: str | Weighting | None = None,
    select: Select | None = None,
    ranks: Plan | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The plan with which the file of a model's weights has a given size in bytes.

    All matrices that `statistics` have are rounded by one step under the weights, tables in a rotated basis. Their
    codes are entropy coded in the file (`lpjax.rounding`). One step for all is optimal: one more byte then lowers the
    error equally much wherever it is spent. So a matrix whose errors matter more in the model's outputs gets more bits,
    and a table more directions. Matrices that `statistics` lack get 6 bits (tables) or 4 bits (kernels) in groups of
    32. Without any statistics, the step is in units of each matrix's root mean square, so all have the same relative
    error. All other arrays become float16.

    The size is estimated from the entropy of codes rounded without feedback. The estimates of some matrices are
    compared with their actual sizes, and corrected.

    Args:
        params: nested containers of arrays.
        size: size of the file of weights, in bytes; up to 1, a share of its present size.
        statistics: from `calibrate`, with gradients.
        weighting: only the default one, under which errors of matrices are comparable; its smoothing is used.
        select: the matrices that are rounded; by default all of at least 8,192 parameters.
        ranks: a plan, such as one by `allocate` for multiply-adds, whose pairs are made first and then rounded: for a
            model that is fast and small. Its other layers are ignored.
        progress: called with (steps done, steps in all, the next step).

    Raises:
        ValueError: `size` is not a positive number, larger than the present size, or smaller than the size at the
            largest step, which is named; a leaf is not finite, `statistics` are of another model, or `ranks` has single
            entries.
    """
    check_size(size)
    check_weighting(weighting, calibrated=statistics is not None)
    if weighting is not None and not weighting_named(weighting).compares_layers:
        raise ValueError(f"`weighting` is {weighting!r}; expected {DEFAULT} for a `size`: errors of its layers compare")
    paths, limit = check_sized(params, size, select)
    tree = dict(leaves_with_paths(_factored(params, ranks, statistics)))
    paths = [path for path, leaf in tree.items() if path in paths or isinstance(leaf, LowRank)]
    if statistics is not None:
        known = {path: tree[path] for path in paths if path in statistics.statistics}
        leaf_metrics(statistics, weighting or DEFAULT, known)
        if not known:
            raise ValueError("`statistics` has none of the selected matrices; calibrate with the same `select`")
    kinds = _kinds(tree, paths)
    done, total = 0, 2 * len(paths) + _ROUNDS * len(kinds)

    def tell(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(min(done, total - 1), total, what)
        done += 1

    layers, sketches, fixed = {}, {}, 0.0
    for path in paths:
        tell(f"looking at {path}")
        require_finite(path, tree[path])
        moments = moments_of(statistics, path, weighting)
        if statistics is not None and moments.columns is None:
            layers[path] = _BITS[is_table(path)]
            fixed += stored_bytes(round_layer(path, tree[path], layers[path], moments)) + _header(path, _PARTS["bits"])
        else:
            sketches[path] = _sketch(path, tree[path], moments)
    fixed += sum(leaf.size * 2 + _header(path, 1) for path, leaf in tree.items() if path not in paths)
    room = (
        _MARGIN * limit
        - fixed
        - sum(_header(path, _PARTS["pair" if len(sketch.parts) > 1 else "step"]) for path, sketch in sketches.items())
    )
    sizes = _Sizes(sketches, kinds)
    step = sizes.step_of(room, limit)
    for _ in range(_ROUNDS):
        before = sizes.total(step)
        for kind in kinds:
            path = max((path for path in kind if path in sketches), key=lambda path: tree[path].size, default=None)
            if path is not None:
                tell(f"rounding {path}")
                moments = moments_of(statistics, path, weighting)
                sizes.correct(path, step, _rounded_bytes(path, tree[path], step, moments))
        if abs(sizes.total(step) / before - 1) < 0.002:
            break
        step = sizes.step_of(room, limit)
    bases = {} if ranks is None else ranks.layers
    layers |= {
        path: (bases[path] if isinstance(tree[path], LowRank) and path in bases else Choice(None))._replace(step=step)
        for path in sketches
    }
    return Plan(
        {path: layers[path] for path in paths},
        weighting=(weighting or DEFAULT) if statistics is not None else None,
        rest="float16",
    )


def _factored(params: Any, ranks: Plan | None, statistics: Calibration | None) -> Any:
    """`params` with the pairs of a plan."""
    if ranks is None:
        return params
    layers = {path: choice for path, choice in ranks.layers.items() if choice.rank is not None}
    if any(choice.sparse_share or choice.rounds for choice in layers.values()):
        raise ValueError("`ranks` has single entries or rounded layers; expected pairs of floating-point numbers")
    return compress(params, dataclasses.replace(ranks, layers=layers), statistics).params if layers else params


def check_size(size: float) -> None:
    """Refuse a size that no model can have.

    Raises:
        ValueError: it is not a number above 0.
    """
    if not 0 < size < math.inf:
        raise ValueError(f"`size` is {size}; expected bytes, or a share from 0 to 1")


def parse_size(text: str) -> float:
    """Bytes, or a share of at most 1, of a text such as "9MB", "512 KiB", "9000000" or "10%".

    Raises:
        ValueError: it is none of these.
    """
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*(%|[kmg]?i?b?)", text.strip(), re.IGNORECASE)
    try:
        number = float(found[1]) if found else math.nan
    except ValueError:
        number = math.nan
    if found is None or not 0 < number < math.inf:
        raise ValueError(f"`size` is {text!r}; expected bytes or a share, such as 9MB, 512KiB or 10%")
    unit = found[2].lower()
    if unit == "%":
        if number >= 100:
            raise ValueError(f"`size` is {text!r}; expected less than 100%")
        return number / 100
    base = 1024 if "i" in unit else 1000
    size = number * base ** " kmg".index(unit[0] if unit[:1] in ("k", "m", "g") else " ")
    if size <= 1:
        raise ValueError(f"`size` is {text!r}; expected more than one byte, or a share such as 10%")
    return size


def check_sized(params: Any, size: float, select: Select | None) -> tuple[list[str], float]:
    """Paths of the matrices that are rounded, in tree order, and the size in bytes.

    Raises:
        ValueError: the model has no such matrix, one is quantized already, or the model is no larger than `size`.
    """
    tree = dict(leaves_with_paths(params))
    whole = sum(leaf.nbytes for leaf in tree.values())
    limit = size * whole if size <= 1 else size
    if limit >= whole:
        raise ValueError(f"`size` is {limit / 1e6:.4g} MB, but the net has {whole / 1e6:.4g} MB; expected less")
    if select is not None:
        paths = select_paths(params, select)
    else:
        paths = [
            path
            for path, leaf in tree.items()
            if len(leaf.shape) == 2 and leaf.size >= _FEWEST and jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
    require_unquantized({path: tree[path] for path in paths})
    if not paths:
        raise ValueError("the net has no matrix that is worth rounding")
    return paths, limit


def _kinds(tree: dict[str, Any], paths: Sequence[str]) -> list[list[str]]:
    """Paths of matrices of one shape whose names differ only in numbers."""
    kinds: dict[Any, list[str]] = {}
    for path in paths:
        kinds.setdefault((re.sub(r"\d+", "#", path), tuple(tree[path].shape)), []).append(path)
    return list(kinds.values())


def _rounded_bytes(path: str, leaf: Any, step: float, moments: Moments) -> float:
    """Bytes of a matrix that is rounded by `step`; a large table is represented by some of its rows."""
    choice = Choice(None, step=step)
    if not is_table(path) or isinstance(leaf, LowRank) or leaf.size <= _LARGE:
        return stored_bytes(round_layer(path, leaf, choice, moments))
    some = slice(None, None, -(-leaf.size // _LARGE))
    part = round_layer(
        path,
        np.asarray(leaf)[some],
        choice,
        moments._replace(rows=None if moments.rows is None else moments.rows[some]),
    )
    share = len(leaf) / len(np.asarray(leaf)[some])
    # All rows determine the basis more finely: its error counts `share` times as much.
    basis = stored_bytes(part.right) + math.prod(part.right.shape) * math.log2(share) / 2 / 8
    return share * stored_bytes(part.left) + basis


def _header(path: str, parts: int) -> int:
    return parts * (len(path) + _NAME)


class _Sketch(NamedTuple):
    """A matrix in units in which every step is 1.

    Attributes:
        parts: some rows of the matrices that are rounded; for a table or pair, of its coefficients and of its basis.
        shares: for each part, the number of all rows over the number of these.
        dead_zone: dead zone of the first part.
    """

    parts: tuple[np.ndarray, ...]
    shares: tuple[float, ...]
    dead_zone: float


def _sketch(path: str, leaf: Any, moments: Moments) -> _Sketch:
    rows, columns = moments
    scale = 1 / step_scale(leaf, moments)
    if not is_table(path) and not isinstance(leaf, LowRank):
        matrix = np.asarray(leaf, np.float32)
        sides = [
            np.sqrt(triangle_of(metric, length).pivots) for metric, length in zip(moments, matrix.shape, strict=True)
        ]
        stride = _stride(matrix, table=False)
        sides[0] = sides[0][::stride]
        return _Sketch((_times(matrix[::stride], sides, scale),), (len(matrix) / len(sides[0]),), 0.0)
    left, right = (leaf.left, leaf.right) if isinstance(leaf, LowRank) else (leaf, None)
    left, right = np.asarray(left), None if right is None else np.asarray(right)
    turn, basis = rotation(left, right, rows, columns)
    triangle = triangle_of(rows, len(left))
    stride = _stride(left, table=is_table(path))
    weights = np.sqrt(triangle.pivots[::stride])
    coefficients = _times((left[::stride] @ turn).astype(np.float32), (weights, np.ones(turn.shape[1])), scale)
    energies = np.sqrt(np.mean(np.square(coefficients), axis=0) * len(left))
    outer = np.sqrt(triangle_of(columns, basis.shape[1]).pivots)
    dead_zone = DEAD_ZONE if triangle.upper is None else 0.0
    return _Sketch(
        (coefficients, _times(basis, (energies, outer), 1.0)), (len(left) / len(coefficients), 1.0), dead_zone
    )


def _stride(matrix: np.ndarray, *, table: bool) -> int:
    return max(1, matrix.size // _SAMPLE[table])


def _times(matrix: np.ndarray, sides: Sequence[np.ndarray], scale: float) -> np.ndarray:
    return (matrix * (scale * sides[0])[:, None] * sides[1]).astype(np.float32)


class _Sizes:
    """Bytes of codes as a function of the step: estimates, corrected by the actual sizes of some matrices."""

    def __init__(self, sketches: dict[str, _Sketch], kinds: Sequence[Sequence[str]]) -> None:
        self._sketches, self._kinds = sketches, kinds
        self._factors = dict.fromkeys(sketches, 1.0)
        self._known: dict[tuple[str, float], float] = {}

    def total(self, step: float) -> float:
        """Bytes of all matrices."""
        return sum(self._factors[path] * self._estimate(path, step) for path in self._sketches)

    def correct(self, path: str, step: float, size: float) -> None:
        """Note that a matrix takes `size` bytes, and assume the same correction for all matrices of its kind."""
        factor = size / self._estimate(path, step)
        for kind in self._kinds:
            if path in kind:
                self._factors |= {other: factor for other in kind if other in self._sketches}

    def step_of(self, room: float, limit: float) -> float:
        """The step, to a thousandth, whose codes take `room` bytes; `limit` is what messages say.

        Raises:
            ValueError: even at the largest step they do not.
        """
        # Codes beyond 15 bits are refused; at the other end nothing but zeros is left.
        most = max(float(np.abs(part).max(initial=0)) for sketch in self._sketches.values() for part in sketch.parts)
        low, high = math.log(max(most, 1e-30) / 2**14), math.log(max(most, 1e-30))
        if (least := self.total(math.exp(high))) > room:
            needed = (limit - room + least) / 1e6
            raise ValueError(
                f"`size` is {limit / 1e6:.4g} MB; expected at least {needed:.4g} MB, what zeros would take"
            )
        if self.total(math.exp(low)) <= room:
            return math.exp(low)
        level: Any = brentq(lambda level: self.total(math.exp(level)) - room, low, high, xtol=5e-4)
        return math.exp(level)

    def _estimate(self, path: str, step: float) -> float:
        if (path, step) not in self._known:
            sketch, size, used = self._sketches[path], 64.0, None
            for number, (part, share) in enumerate(zip(sketch.parts, sketch.shares, strict=True)):
                part = part if used is None else part[used]
                scaled = part / step
                if number == 0:
                    scaled = np.where(np.abs(scaled) < 0.5 + sketch.dead_zone, 0, scaled)
                codes = np.round(scaled).astype(np.int32).clip(-(2**15), 2**15 - 1)
                if number == 0 and len(sketch.parts) > 1:
                    used = np.flatnonzero(np.any(codes, axis=0))
                    used = used if used.size else np.array([0])
                    codes = codes[:, used]
                size += share * estimated_bytes(codes) + 2 * sum(codes.shape)
            self._known[path, step] = size
        return self._known[path, step]
