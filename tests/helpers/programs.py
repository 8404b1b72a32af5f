"""Golden models with weights of every kind, and what lpjax computes with them, for exported programs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

import lpjax
from lpjax._tree import leaves_with_paths, replace_leaves
from lpjax.weights.sparse import Sparse
from tests.helpers.goldens import Golden, load_golden
from tests.helpers.nets import factor, quantize

FORWARD = {
    "bert_base": lpjax.encode,
    "distilbert_masked_lm": lpjax.fill_mask,
    "roberta_classifier": lpjax.classify,
    "xlnet_base": lpjax.encode,
    "modernbert_mean": lpjax.classify,
    "albert_base": lpjax.encode,
    "mpnet_base": lpjax.encode,
    "heads/electra_words": lpjax.fill_mask,
}


def case_of(name: str, kind: str) -> tuple[Golden, lpjax.Checkpoint, np.ndarray]:
    """A golden, its model with weights of one of `KINDS`, and what lpjax computes of the golden's batch."""
    golden = load_golden(name)
    net = dataclasses.replace(golden.checkpoint, params=KINDS[kind](golden.checkpoint.params), source=None)
    return golden, net, np.asarray(FORWARD[name](net.params, net.config, golden.batch))


def counted(golden: Golden, array: np.ndarray) -> np.ndarray:
    """Without what belongs to padding."""
    return array[golden.batch["attention_mask"].astype(bool)] if array.ndim == 3 else array


def with_entries(params: Any, share: float = 0.8) -> Any:
    """Every kernel and table as factors and single entries, all but a `share` of those that are left."""

    def factor_leaf(path: str, leaf: Any) -> Any:
        matrix = np.asarray(leaf, np.float32)
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        left, right = u[:, :3] * s[:3], vt[:3]
        rest = matrix - left @ right
        rest[np.abs(rest) <= np.quantile(np.abs(rest), share)] = 0
        return lpjax.LowRank(left, right, Sparse.of(rest))

    return _replaced(params, factor_leaf)


def in_runs(params: Any, *, zero: bool = False) -> Any:
    """Kernels and tables with positions whose codes are all 0, or none but those."""

    def quantize_leaf(path: str, leaf: Any) -> Any:
        table = path.endswith("embedding")
        lines = np.asarray(leaf, np.float32) if table else np.asarray(leaf, np.float32).T
        codes = np.round(100 * lines / np.abs(lines).max()).astype(int)
        codes[:, :: 1 if zero else 2] = 0
        return lpjax.Quantized.from_codes(codes, np.full((len(codes), 1), 0.01), axis=int(table))

    return _replaced(params, quantize_leaf)


def _replaced(params: Any, change: Any) -> Any:
    names = ("kernel", "embedding")
    leaves = {path: change(path, leaf) for path, leaf in leaves_with_paths(params) if path.endswith(names)}
    return replace_leaves(params, leaves)


KINDS = {
    "some codes of 0 bits": in_runs,
    "all codes of 0 bits": lambda params: in_runs(params, zero=True),
    "no entries": lambda params: with_entries(params, share=1.0),
    "factors": lambda params: factor(params, 3),
    "entries": with_entries,
    "8 bits": quantize,
    "many bits": lambda params: quantize(params, None),
    "factors in 5 bits": lambda params: quantize(params, 5, rank=4),
    "float16": lambda params: jax.tree.map(lambda leaf: leaf.astype(np.float16), factor(params, 3)),
}
