"""Tiny models: the golden ones cut, with heads, or factored."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lpjax
from lpjax.checkpoint import Checkpoint
from lpjax.glue import TASKS, label_config
from lpjax.models.heads import output_path, with_head
from tests.helpers.goldens import load_golden


def factor(params, rank: int):
    """Every matrix of the model as a `LowRank`, by NumPy's SVD."""
    if not isinstance(params, dict):
        if params.ndim != 2 or min(params.shape) <= rank:
            return params
        u, s, vt = np.linalg.svd(np.asarray(params, np.float32), full_matrices=False)
        return lpjax.LowRank(u[:, :rank] * s[:rank], vt[:rank])
    # XLNet's biases of attention are matrices to look at, and no weights of a product.
    return {key: child if key.endswith("_bias") else factor(child, rank) for key, child in params.items()}


def factor_losslessly(params: dict) -> dict:
    """Every kernel and table as a `LowRank` of full rank, whose product is the matrix up to rounding."""

    def factor_leaf(path: Any, leaf: Any) -> Any:
        if path[-1].key not in ("kernel", "embedding"):
            return leaf
        u, s, vt = np.linalg.svd(np.asarray(leaf, np.float64), full_matrices=False)
        return lpjax.LowRank(jnp.asarray(u * s, jnp.float32), jnp.asarray(vt, jnp.float32))

    return jax.tree_util.tree_map_with_path(factor_leaf, params)


def round_matrix(matrix: Any, bits: int | None = 8, *, axis: int = 0) -> lpjax.Quantized:
    """A matrix rounded plainly, with a scale a line and steps; in turn to 8, 6, 5 and 4 bits if `bits` is None."""
    lines = np.asarray(matrix, np.float64) if axis else np.asarray(matrix, np.float64).T
    most = 2 ** (np.resize([8, 6, 5, 4] if bits is None else [bits], lines.shape[1]) - 1) - 1
    steps = (127 / most).astype(np.float16)
    scales = (np.abs(lines).max(axis=1, keepdims=True) / 127 + 1e-6).astype(np.float16)
    codes = np.clip(np.round(lines / scales / steps), -most, most).astype(int)
    return lpjax.Quantized.from_codes(codes, scales, steps, axis=axis, bits=bits)


def quantize(params: dict, bits: int | None = 8, rank: int | None = None) -> dict:
    """Every kernel and table rounded; with `rank`, its factors of this rank."""

    def quantize_leaf(path: Any, leaf: Any) -> Any:
        table = path[-1].key == "embedding"
        if path[-1].key not in ("kernel", "embedding"):
            return leaf
        if rank is None or rank >= min(leaf.shape):
            return round_matrix(leaf, bits, axis=int(table))
        u, s, vt = np.linalg.svd(np.asarray(leaf, np.float64), full_matrices=False)
        left, right = u[:, :rank] * s[:rank] ** 0.5, vt[:rank] * s[:rank, None] ** 0.5
        return lpjax.LowRank(round_matrix(left, bits, axis=1), round_matrix(right, bits, axis=0))

    return jax.tree_util.tree_map_with_path(quantize_leaf, params)


def base_net(name: str, *, layers: int = 1, dropout: float = 0.0, rank: int | None = None) -> Checkpoint:
    """A golden model of a layer or two, without dropout unless there is to be some, its matrices factored if asked."""
    checkpoint = load_golden(name).checkpoint
    fields = {field.name: field for field in dataclasses.fields(checkpoint.config)}
    changes = {key: dropout for key in fields if "dropout" in key and key != "classifier_dropout"}
    changes |= {key: layers for key in fields if key in ("num_hidden_layers", "n_layers", "n_layer")}
    config = dataclasses.replace(checkpoint.config, **changes)

    def cut(tree):
        if not isinstance(tree, dict):
            return tree
        kept = {key: child for key, child in tree.items() if not key.isdigit() or int(key) < layers}
        return {key: cut(child) for key, child in kept.items()}

    params = cut(checkpoint.params)
    params = params if rank is None else factor(params, rank)
    named = {key: value for key, value in (checkpoint.config_json or {}).items() if key not in ("id2label", "label2id")}
    data = named | config.to_json()
    return dataclasses.replace(checkpoint, params=params, config=config, config_json=data, source=None)


def net_with_head(name: str, task: str, **options) -> Checkpoint:
    """`base_net` with a head for a task; its outputs are far enough apart to be told from each other."""
    checkpoint = base_net(name, **options)
    params, _ = with_head(checkpoint.params, checkpoint.config, TASKS[task].num_outputs, seed=1)
    *parents, last = output_path(checkpoint.config).split("/")
    layer = params
    for key in parents:
        layer = layer[key]
    layer[last] = 50 * layer[last]
    data = {**(checkpoint.config_json or {}), **label_config(TASKS[task])}
    return dataclasses.replace(checkpoint, params=params, config_json=data)
