"""Golden models whose matrices are near the dense ones, in every form that a compressed file has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lpjax import Checkpoint, LowRank, Quantized, save_checkpoint
from lpjax._tree import walk
from lpjax.weights.sparse import Sparse
from tests.helpers.checkpoints import set_leaf

RANK = 5


def factored(matrix: np.ndarray, table: bool) -> LowRank:
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    pair = ((left * values)[:, :RANK], right[:RANK])
    return LowRank(*(factor.astype(matrix.dtype) for factor in pair))


def with_entries(matrix: np.ndarray, table: bool) -> LowRank:
    pair = factored(matrix, table)
    rest = matrix - np.asarray(pair.left) @ np.asarray(pair.right)
    large = np.abs(rest) >= np.quantile(np.abs(rest), 0.9)
    large[len(large) // 2] = False  # a row without entries
    return dataclasses.replace(pair, sparse=Sparse.of(np.where(large, rest, 0).astype(matrix.dtype)))


def grouped(matrix: np.ndarray, table: bool, group: int = 5, bits: int = 6) -> Quantized:
    lines = matrix if table else matrix.T
    starts = np.arange(0, lines.shape[1], group)
    scales = np.maximum.reduceat(np.abs(lines), starts, axis=1).astype(np.float16) / np.float16(2 ** (bits - 1) - 1)
    wide = np.repeat(np.maximum(scales, 1e-7).astype(np.float64), group, axis=1)[:, : lines.shape[1]]
    codes = np.clip(np.round(lines / wide), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(int)
    return Quantized.from_codes(codes, scales, axis=int(table), group=group, bits=bits, dtype=matrix.dtype)


def stepped(matrix: np.ndarray, table: bool) -> Any:
    """Codes of many widths, in units of one step; tables in a rotated basis, as `plan_for_size` has them."""
    if table:
        left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        return LowRank(_stepped(left * values, 1, matrix.dtype), right.astype(matrix.dtype))
    return _stepped(matrix.T, 0, matrix.dtype)


def _stepped(lines: np.ndarray, axis: int, dtype: Any) -> Quantized:
    length = lines.shape[1]
    steps = np.geomspace(0.01, 1.5, length)[np.random.default_rng(length).permutation(length)]
    scales = np.full((len(lines), 1), 2.0**-4)
    return Quantized.from_codes(np.round(lines / scales / steps).astype(int), scales, steps, axis=axis, dtype=dtype)


KINDS: dict[str, Callable[[np.ndarray, bool], Any]] = {
    "factored": factored,
    "factored with entries": with_entries,
    "groups": grouped,
    "one step": stepped,
    "int8": factored,
}


def in_kind(net: Checkpoint, kind: str) -> Checkpoint:
    """`model` with all of its matrices of one of `KINDS`."""
    params = net.params
    for path, leaf in walk(params):
        if path.endswith(("kernel", "embedding")) and np.ndim(leaf) == 2:
            params = set_leaf(params, path, KINDS[kind](np.asarray(leaf), path.endswith("embedding")))
    return dataclasses.replace(net, params=params)


def saved_in_kind(net: Checkpoint, kind: str, folder: Path) -> Path:
    """The folder of `in_kind`."""
    save_checkpoint(in_kind(net, kind), folder, int8=kind == "int8")
    return folder
