"""The heads of a model: their outputs, and a fresh one for classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpjax._check import check_seed, check_whole
from lpjax._tree import put, walk
from lpjax.models.architecture import name_table
from lpjax.models.config import ModelConfig

SCALE = 0.02
"""Standard deviation of fresh kernels, as in the initialization of all models in the table."""


def output_path(config: ModelConfig) -> str:
    """Path of the last kernel of a head for sequence classification, whose columns are its outputs."""
    return next(path for weight, path in name_table(config).weights_of("sequence") if "labels" in weight.shape)


def num_outputs(params: Mapping[str, Any], config: ModelConfig, head: str = "sequence") -> int | None:
    """Number of outputs of a head, one of `HEADS`: labels, 2 for spans, or words; None if it is absent or incomplete.

    Heads for sequences and for tokens share the name of their last layer; a head for tokens lacks BERT's pooler or
    DistilBERT's inner layer.
    """
    leaves = dict(walk(params))
    weights = [(weight, path) for weight, path in name_table(config).weights_of(head) if weight.tied_to is None]
    if not weights or any(path not in leaves for _, path in weights):
        return None
    if head == "words":
        return config.vocab_size
    last = next(path for weight, path in weights if path.endswith("kernel") and isinstance(weight.shape[-1], str))
    return int(leaves[last].shape[-1])


def with_head(
    params: Mapping[str, Any], config: ModelConfig, num_outputs: int, *, seed: int = 0
) -> tuple[dict[str, Any], list[str]]:
    """`params` with a head for sequence classification of `num_outputs` outputs, and the paths of fresh weights.

    A head with that many outputs is kept; of a head with another number, only the other layers (such as a pooler) are.
    Other heads (for words, spans) are left out. Fresh kernels are normal with standard deviation 0.02, scales of
    layer normalizations 1, biases 0.

    Args:
        params: a base model's tree, or one with heads; leaves may be `LowRank`.
        config: the model's config.
        num_outputs: number of labels, or 1 for a regression.
        seed: random seed of the fresh kernels.

    Returns:
        (params, paths): a new tree that shares the leaves, base model under its prefix; sorted paths of fresh leaves.

    Raises:
        ValueError: `num_outputs` or `seed` out of range.
    """
    check_whole("`num_outputs`", num_outputs, 1)
    check_seed("`seed`", seed)
    table = name_table(config)
    present = dict(walk(params if table.prefix in params else {table.prefix: params}))
    leaves = {path: leaf for path, leaf in present.items() if path.startswith(f"{table.prefix}/")}
    key = jax.random.key(seed)
    new_paths: list[str] = []
    for i, (weight, path) in enumerate(table.weights_of("sequence")):
        shape = tuple(num_outputs if isinstance(n, str) else n for n in weight.shape)
        leaf = present.get(path)
        if leaf is None or tuple(leaf.shape) != shape:
            new_paths.append(path)
            leaf = jnp.full(shape, float(path.endswith("/scale")))
            if len(shape) == 2:
                leaf = SCALE * jax.random.normal(jax.random.fold_in(key, i), shape)
            leaf = np.asarray(leaf, np.float32)
        leaves[path] = leaf
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        put(tree, path.split("/"), leaf)
    return tree, sorted(new_paths)
