"""Weights of keras-hub's models -> a checkpoint, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import keras
import numpy as np
from keras import ops

from lpjax._tree import put, walk
from lpjax.checkpoint import Checkpoint, densified, from_tree
from lpjax.keras._layers import factors_of, fault_of, is_embedding, is_factored, put_factors, view_of
from lpjax.keras._nets import Parts, taken_apart
from lpjax.keras._saving import make_saveable
from lpjax.models import name_table
from lpjax.models.layers import ACTIVATIONS
from lpjax.weights.low_rank import LowRank
from lpjax.weights.quantized import Quantized, expanded

_POSITIONS = "embeddings/position_embeddings/embedding"
_TYPES = "embeddings/token_type_embeddings/embedding"


def from_keras(model: Any) -> Checkpoint:
    """Make a checkpoint from a keras-hub model in memory; it computes the same as the model.

    For RoBERTa, the table of positions gets zero rows for the positions up to that of padding, which Keras does not
    have, and the one token type is a zero vector. Keras counts positions from the first token, while lpjax skips
    padding ids; both agree if padding is on the right. Layers that `compress_keras` factored become `LowRank`.

    Args:
        model: a `BertBackbone`, `DistilBertBackbone`, `RobertaBackbone` or `XLMRobertaBackbone`, or a `TextClassifier`
            of one. Its weights are copied.

    Returns:
        A `Checkpoint`, for `encode`, `classify`, `calibrate`, `compress` and `save_checkpoint`, without a tokenizer.
        Its activation is "gelu_new" for Keras's tanh approximation of gelu, as in BERT, and "gelu" for the exact one.

    Raises:
        ValueError: `model` is another model, or computes something that lpjax does not, such as an activation of the
            logits.
    """
    parts = taken_apart(model)
    prefix = f"{name_table(parts.config).prefix}/" if parts.head else ""
    leaves = {f"{prefix}{path}": leaf for path, leaf in _leaves(parts.base).items()}
    leaves |= _leaves(parts.head)
    if hasattr(parts.config, "pad_token_id"):
        positions = leaves[f"{prefix}{_POSITIONS}"]
        padding = np.zeros((parts.config.pad_token_id + 1, positions.shape[1]), positions.dtype)
        leaves[f"{prefix}{_POSITIONS}"] = np.concatenate([padding, positions])
        leaves[f"{prefix}{_TYPES}"] = np.zeros_like(padding[:1])
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        put(tree, path.split("/"), leaf)
    return from_tree(tree, parts.config)


def to_keras(checkpoint: Checkpoint, model: Any, *, factored: bool = False, approximate_gelu: bool = False) -> None:
    """Set the weights of a keras-hub model, in place, to those of a checkpoint.

    Factored and quantized weights are multiplied out. RoBERTa's vector of its one token type, which Keras does not
    have, is added to the table of positions. Weights that Keras's model does not have are left out: RoBERTa's pooler,
    word heads, and the head of a classifier if `model` is a backbone.

    Args:
        checkpoint: checkpoint of the same architecture and sizes.
        model: as for `from_keras`; it changes only after everything is checked.
        factored: whether layers whose weight in the checkpoint is factored, without single entries, become factored
            layers, as by `compress_keras`. Quantized factors are expanded.
        approximate_gelu: whether checkpoint and model may differ in that one has the exact gelu and the other its tanh
            approximation, which keras-hub's BERT has for every checkpoint. Outputs then differ by about 1e-3.

    Raises:
        ValueError: as `from_keras`; the model is of another architecture, has other sizes, or has factors or LoRA
            weights; or the checkpoint lacks a weight of the model, or has several token types that Keras cannot hold.
    """
    parts = taken_apart(model)
    _check_configs(checkpoint, parts, approximate_gelu)
    table = name_table(checkpoint.config)
    base = checkpoint.params.get(table.prefix, checkpoint.params)
    leaves = {**{f"{table.prefix}/{path}": leaf for path, leaf in walk(base)}, **dict(walk(checkpoint.params))}
    leaves = {path: _wide(leaf) for path, leaf in leaves.items()}
    layers = {**{f"{table.prefix}/{path}": layer for path, layer in parts.base.items()}, **parts.head}
    dense = dict(walk(densified(leaves)))
    if hasattr(checkpoint.config, "pad_token_id"):
        positions, types = (f"{table.prefix}/{path}" for path in (_POSITIONS, _TYPES))
        dense[positions] = leaves[positions] = _positions(checkpoint.config, dense[positions], dense[types])
    factors: list[tuple[Any, np.ndarray, np.ndarray]] = []
    values: list[tuple[Any, np.ndarray]] = []
    for path, layer in layers.items():
        for name, variable in _variables(layer).items():
            leaf = leaves.get(f"{path}/{name}")
            if leaf is None:
                raise ValueError(f"`checkpoint` has no {path}/{name}, which `model` {model.name} has")
            shape = _shape(layer, name, variable)
            if tuple(leaf.shape) != shape:
                raise ValueError(f"`checkpoint` has {path}/{name} of shape {tuple(leaf.shape)}, `model` {shape}")
            if factored and isinstance(leaf, LowRank) and leaf.sparse is None and not fault_of(layer):
                factors.append((layer, _expanded(leaf.left), _expanded(leaf.right)))
            elif name in ("kernel", "embedding") and (fault := _fault(layer)):
                raise ValueError(f"`model` {model.name} cannot take {path}/{name}: {fault}")
            else:
                values.append((variable, _value(layer, name, np.asarray(dense[f"{path}/{name}"]), variable)))
    for variable, value in values:
        variable.assign(value)
    for layer, left, right in factors:
        put_factors(layer, left, right)
    make_saveable(model)


def _leaves(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Path in the tree -> array or `LowRank`, of all weights of layers by path."""
    leaves = {}
    for path, layer in layers.items():
        for name, variable in _variables(layer).items():
            if variable is None:
                leaves[f"{path}/{name}"] = LowRank(*factors_of(layer))
            elif name == "kernel":  # `kernel` includes the product of LoRA weights
                view = view_of(layer)
                assert view is not None
                leaves[f"{path}/{name}"] = view.matrix(ops.convert_to_numpy(layer.kernel))
            else:
                value = ops.convert_to_numpy(variable)
                leaves[f"{path}/{name}"] = value.reshape(-1) if name in ("bias", "scale") else value
    return leaves


def _variables(layer: Any) -> dict[str, Any]:
    """lpjax's name of a leaf -> Keras's variable, or None for a factored weight."""
    if isinstance(layer, keras.layers.LayerNormalization):
        return {"scale": layer.gamma, "bias": layer.beta}
    if is_embedding(layer):
        return {"embedding": None if is_factored(layer) else layer.embeddings}
    if hasattr(layer, "position_embeddings"):
        return {"embedding": layer.position_embeddings}
    return {"kernel": None if is_factored(layer) else layer.kernel, "bias": layer.bias}


def _shape(layer: Any, name: str, variable: Any) -> tuple[int, ...]:
    """The shape in lpjax's tree of a variable of Keras."""
    if variable is None:
        return int(np.prod(layer.left.shape[:-1])), int(np.prod(layer.right.shape[1:]))
    shape = tuple(variable.shape)
    if name != "kernel":
        return (int(np.prod(shape)),) if name != "embedding" else shape
    view = view_of(layer)
    assert view is not None
    sizes = [shape[axis] for axis in view.axes]
    return int(np.prod(sizes[: view.inputs])), int(np.prod(sizes[view.inputs :]))


def _value(layer: Any, name: str, leaf: np.ndarray, variable: Any) -> np.ndarray:
    """A leaf of lpjax's tree in the shape of Keras's variable."""
    shape, view = tuple(variable.shape), view_of(layer) if name == "kernel" else None
    return leaf.reshape(shape) if view is None else view.weight(leaf, shape)


def _fault(layer: Any) -> str:
    """Why a layer cannot take a dense weight; empty if it can."""
    if is_factored(layer):
        return "its layer is factored; expected that of a dense model"
    return "its layer has LoRA weights" if getattr(layer, "lora_enabled", False) else ""


def _expanded(factor: Any) -> np.ndarray:
    return np.asarray(expanded(factor) if isinstance(factor, Quantized) else factor)


def _positions(config: Any, positions: Any, types: Any) -> np.ndarray:
    """RoBERTa's table of positions for Keras: without that of padding, and plus the token type's vector.

    Raises:
        ValueError: there are token types that differ.
    """
    table, rows = np.asarray(positions), np.asarray(types)
    if np.any(rows != rows[:1]):
        raise ValueError(f"`checkpoint` has {len(rows)} token types, which differ; Keras's RoBERTa has one")
    wide = table[config.pad_token_id + 1 :].astype(np.float64) + rows[:1].astype(np.float64)
    return wide.astype(np.promote_types(table.dtype, np.float32))  # of two vectors in half precision: not rounded to it


def _wide(leaf: Any) -> Any:
    """A leaf whose factors, if they are of half precision, are in float32, so that their product is not rounded."""
    if not isinstance(leaf, LowRank) or any(isinstance(factor, Quantized) for factor in (leaf.left, leaf.right)):
        return leaf
    return jax.tree.map(lambda part: np.asarray(part, np.promote_types(part.dtype, np.float32)), leaf)


_FREE = {"tie_word_embeddings", "head", "pad_token_id"}
"""Fields of a config that may differ, besides dropout rates."""


def _check_configs(checkpoint: Checkpoint, parts: Parts, approximate_gelu: bool) -> None:
    """Refuse a checkpoint whose architecture, sizes or head are not the model's.

    Raises:
        ValueError: they differ; names what does.
    """
    ours, theirs = checkpoint.config, parts.config
    if ours.model_type not in parts.net.model_types:
        raise ValueError(f"`checkpoint` is a {ours.model_type}, `model` a {theirs.model_type}")
    if parts.head and ours.head != "sequence":
        raise ValueError(f"`checkpoint` has a head for {ours.head}, `model` one for sequences; pass its `backbone`")
    faults = []
    for field in dataclasses.fields(theirs):
        name, (mine, other) = field.name, (getattr(config, field.name) for config in (ours, theirs))
        if name in _FREE or "dropout" in name or (name == "type_vocab_size" and hasattr(theirs, "pad_token_id")):
            continue
        if name == "max_position_embeddings":
            name, mine, other = "max_length", ours.max_length, theirs.max_length
        if name in ("hidden_act", "activation"):
            if ACTIVATIONS[mine] is ACTIVATIONS[other]:
                continue
            kinds = {ACTIVATIONS[act] for act in ("gelu", "gelu_new")}
            if {ACTIVATIONS[mine], ACTIVATIONS[other]} == kinds:
                if approximate_gelu:
                    continue
                faults.append(f"{name} is {mine!r}, expected {other!r}: pass `approximate_gelu=True` to allow it")
                continue
        if mine != other:
            faults.append(f"{name} is {mine!r}, expected {other!r}")
    if faults:
        raise ValueError(f"`checkpoint` does not fit `model`: {'; '.join(faults)}")
