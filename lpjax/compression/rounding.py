"""Rounding of the layers of a plan: leaves, or the pairs that they were factored into, to integers times scales."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import msgspec
import numpy as np
from jaxtyping import Float

from lpjax._powers import size_on_host
from lpjax._tree import is_table, leaves_with_paths, replace_leaves
from lpjax.compression.plan import Choice
from lpjax.compression.record import LayerRecord
from lpjax.compression.tasks import require_finite
from lpjax.rounding import DAMPING, round_groups, round_kernel, round_pair, round_pair_groups, under_metric
from lpjax.weighting.statistics import Calibration
from lpjax.weighting.weightings import DEFAULT, Weighting, weighting_named
from lpjax.weights.coded import stored_bytes
from lpjax.weights.dispatch import is_weight
from lpjax.weights.low_rank import LowRank, row_blocks
from lpjax.weights.quantized import check_range

_BLOCK = 4096  # number of rows whose errors are computed at a time
_DAMPING_OF_SAMPLES = 3.0  # damping by d/n of moments (d, d) of n tokens


class Moments(NamedTuple):
    """The metrics under which a matrix is rounded; None for the identity.

    Attributes:
        rows: H, mean x xᵀ of a kernel's inputs, shape (n, n); for a table each row's share of the tokens, shape (n,).
        columns: G, mean g gᵀ, shape (d, d).
    """

    rows: Float[np.ndarray, "*sides"] | None = None
    columns: Float[np.ndarray, "d d"] | None = None


def moments_of(statistics: Calibration | None, path: str, weighting: str | Weighting | None = None) -> Moments:
    """The metrics of a matrix, scaled to the model's loss per token, so that steps of matrices are comparable.

    They are None for a matrix whose statistics are all zeros.

    Args:
        statistics: result of `calibrate`, possibly without this matrix.
        path: path of the leaf.
        weighting: weighting whose `smoothing` is added to each count of a table.

    Raises:
        ValueError: `statistics` have no gradients.
    """
    known = None if statistics is None else statistics.statistics.get(path)
    if statistics is None or known is None:
        return Moments()
    if known.outputs is None:
        raise ValueError("`statistics` has no `outputs`, which rounding needs: calibrate with `gradients=True`")
    table = is_table(path)
    into = known.counts if table else known.inputs
    assert into is not None
    into, outputs = np.asarray(into, np.float64), np.asarray(known.outputs, np.float64)
    if table:
        smooth = into + weighting_named(weighting or DEFAULT).smoothing
        if not smooth.any():
            return Moments()
        total = into.sum()
        rows = smooth * ((total or 1) / smooth.sum() / statistics.tokens)
    else:
        rows = into * (known.tokens / statistics.tokens)
    # Statistics say nothing about a matrix without inputs, or on which no output depends.
    return Moments(rows, outputs) if rows.any() and outputs.any() else Moments()


def damped_moments_of(statistics: Calibration | None, path: str, weighting: str | Weighting | None = None) -> Moments:
    """`moments_of` to round under: second moments of few tokens have a multiple of their mean eigenvalue added.

    Directions that a sample hardly sees get large rounding errors, and other texts see them: the small eigenvalues of
    second moments (d, d) of n tokens are too small by about d/n times the mean. So the damping for rounding (`DAMPING`)
    becomes 3 d/n where that is more. It is largest in the last layer of a classifier, which reads one token per text.
    """
    moments = moments_of(statistics, path, weighting)
    if statistics is None or moments.columns is None:
        return moments

    def damped(metric: Any) -> Any:
        size = len(metric)
        more = max(_DAMPING_OF_SAMPLES * size / statistics.statistics[path].tokens - DAMPING, 0)
        return metric if metric.ndim == 1 else metric + more * np.trace(metric) / size * np.eye(size)

    return Moments(*map(damped, moments))


def round_layer(path: str, leaf: Any, choice: Choice, moments: Moments) -> Any:
    """A leaf, dense or a pair, rounded by its choice; a pair's single entries are kept.

    Without statistics, the step is in units of the root mean square of the matrix.

    Raises:
        ValueError: the leaf is not finite, has more than two axes, or cannot be rounded by this choice; names the path.
    """
    if len(leaf.shape) != 2:
        raise ValueError(f"{path} has shape {tuple(leaf.shape)}; expected a matrix to round")
    require_finite(path, leaf)
    try:
        return _as_dtype(_rounded(leaf, choice, moments, table=is_table(path)), leaf.dtype)
    except ValueError as error:
        raise ValueError(f"{path} cannot be rounded: {error}") from error


def _rounded(leaf: Any, choice: Choice, moments: Moments, *, table: bool) -> Any:
    """`round_layer` with entries in float32."""
    rows, columns = moments
    if isinstance(leaf, LowRank):
        left, right = (np.asarray(part, np.float32) for part in (leaf.left, leaf.right))
        if choice.step is None:
            rounded = round_pair_groups(left, right, choice.bits or 8, choice.group, rows, columns)
        else:
            rounded = round_pair(left, right, choice.step * step_scale(leaf, moments), rows, columns)
        return dataclasses.replace(rounded, sparse=leaf.sparse)
    matrix = np.asarray(leaf, np.float32)  # no copy of a large table
    if choice.step is None:
        return round_groups(matrix, choice.bits or 8, choice.group, axis=int(table), rows=rows, columns=columns)
    known = choice.step * step_scale(leaf, moments), rows, columns
    return round_pair(matrix, None, *known) if table else round_kernel(matrix, *known)


def step_scale(leaf: Any, moments: Moments) -> float:
    """The unit of steps: 1 with statistics, else the root mean square of the matrix; 1 for a matrix of zeros."""
    if moments.columns is not None:
        return 1.0
    square = sum(float(np.sum(np.square(rows))) for _, rows in row_blocks(leaf, _BLOCK))
    return math.sqrt(square / max(math.prod(leaf.shape), 1)) or 1.0


def _as_dtype(rounded: Any, dtype: Any) -> Any:
    """The same quantized matrices, expanding to `dtype`.

    Raises:
        ValueError: `dtype` cannot hold an entry.
    """
    if isinstance(rounded, LowRank):
        left, right = (_as_dtype(part, dtype) for part in (rounded.left, rounded.right))
        return dataclasses.replace(rounded, left=left, right=right)
    rounded = dataclasses.replace(rounded, dtype=np.dtype(dtype))
    check_range(rounded)  # an entry near its limit may be rounded beyond it
    return rounded


def rounded_record(record: LayerRecord, choice: Choice, before: Any, after: Any, moments: Moments) -> LayerRecord:
    """The record of a rounded layer, with the errors of the stored weight.

    Args:
        record: record of the factored or the unchanged leaf.
        choice: choice for this layer.
        before, after: original leaf, and the weight that replaces it.
        moments: metrics of the rounding.
    """
    rows, columns = moments
    table, stored, rank = is_table(record.path), stored_bytes(after), after.rank if isinstance(after, LowRank) else None
    if not table:
        before, after, rows, columns = before.T, after.T, columns, rows
    squares, norms = np.zeros(2), ([], [])  # of A − Â and of A; norms by block, over entries and over rows
    height = before.shape[0] if rows is not None and rows.ndim == 2 else _BLOCK
    for (start, old), (_, new) in zip(row_blocks(before, height), row_blocks(after, height), strict=True):
        for i, part in enumerate((old - new, old)):
            norms[i].append((size_on_host(part, choice.p), size_on_host(np.linalg.norm(part, axis=1), choice.p)))
            if rows is not None and columns is not None:
                heavy = under_metric(rows, part, slice(start, start + height))
                squares[i] += np.sum(heavy * (part @ columns))
    changed, whole = ([size_on_host(each, choice.p) for each in zip(*blocks, strict=True)] for blocks in norms)
    error_entries, error_rows = map(_share, changed, whole)
    return msgspec.structs.replace(
        record,
        rank=rank,
        stored_size=after.size,
        error_entries=error_entries,
        error_rows=error_rows,
        bound=None,
        error_weighted=None if columns is None else math.sqrt(_share(*squares)),
        note="",
        step=choice.step,
        bits=choice.bits,
        stored_bytes=stored,
    )


def _share(part: float, whole: float) -> float:
    return max(float(part / whole), 0.0) if whole > 0 else 0.0


def narrows(leaf: Any) -> bool:
    """Whether `round_rest` gives a leaf a narrower dtype."""
    return not is_weight(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize > 2


def round_rest(params: Any, layers: Mapping[str, Any], dtype: str) -> Any:
    """`params` with all floating-point arrays outside `layers` in a narrower dtype.

    Raises:
        ValueError: an array is not finite in that dtype.
    """
    leaves = {}
    for path, leaf in leaves_with_paths(params):
        if path in layers or not narrows(leaf):
            continue
        with np.errstate(over="ignore"):
            narrow = np.asarray(leaf).astype(dtype)
        if not np.all(np.isfinite(narrow)):
            raise ValueError(f"{path} has values outside the range of {dtype}; omit `rest`")
        leaves[path] = narrow
    return replace_leaves(params, leaves)
