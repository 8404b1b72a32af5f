"""Saving `LowRank`, `Sparse` and `Quantized` by `flax.serialization`, and rebuilding pairs without a target."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import serialization
from jax.core import Tracer

from lpjax.weights.low_rank import LowRank
from lpjax.weights.quantized import Quantized
from lpjax.weights.sparse import Sparse, fault_of

_SPARSE = ("values", "columns", "starts")
_QUANTIZED = ("codes", "scales", "steps", "order")


def register() -> None:
    """Register the conversions with flax. Called once, when `lpjax.flax` is imported."""
    serialization.register_serialization_state(LowRank, _state_of_pair, _pair_of_state, override=True)
    serialization.register_serialization_state(Sparse, _state_of_sparse, _sparse_of_state, override=True)
    serialization.register_serialization_state(Quantized, _state_of_quantized, _quantized_of_state, override=True)


def with_pairs(tree: Any) -> Any:
    """`tree` with a `LowRank` for each dict that `flax.serialization` made of one.

    For trees that were read without a factored target: by `flax.serialization.msgpack_restore`, or by `from_bytes`
    into dense params, which flax silently replaces by such dicts. A dict counts as a pair if its keys are `left` and
    `right`, and perhaps `sparse`, and the factors' shapes fit.

    Args:
        tree: nested dicts, as flax's state dicts are.

    Returns:
        A new tree; arrays are the same objects.

    Raises:
        ValueError: single entries do not fit their pair.
    """
    if not isinstance(tree, Mapping):
        return tree
    if set(tree) in ({"left", "right"}, {"left", "right", "sparse"}) and _fits(tree["left"], tree["right"]):
        return LowRank(tree["left"], tree["right"], _entries(tree))
    return {key: with_pairs(value) for key, value in tree.items()}


def _entries(state: Mapping[str, Any]) -> Sparse | None:
    """The single entries in the state of a pair.

    Raises:
        ValueError: they do not fit the pair.
    """
    sparse = state.get("sparse")
    if sparse is None:
        return None
    if not isinstance(sparse, Mapping) or set(sparse) != set(_SPARSE):
        raise ValueError(f"`sparse` holds {_keys(sparse)}; expected {', '.join(_SPARSE)}")
    values, columns, starts = (sparse[name] for name in _SPARSE)
    shape = (state["left"].shape[-2], state["right"].shape[-1])
    if fault := fault_of(np.asarray(values), np.asarray(columns), np.asarray(starts), shape):
        raise ValueError(f"`sparse` does not fit a pair of shape {shape}: {fault}")
    return Sparse.from_parts(values, columns, starts)


def _fits(left: Any, right: Any) -> bool:
    shapes: list[Any] = [getattr(part, "shape", ()) for part in (left, right)]
    return min(map(len, shapes)) >= 2 and shapes[0][:-2] == shapes[1][:-2] and shapes[0][-1] == shapes[1][-2]


def _state_of_pair(pair: LowRank) -> dict[str, Any]:
    state = {name: serialization.to_state_dict(getattr(pair, name)) for name in ("left", "right")}
    return state if pair.sparse is None else state | {"sparse": serialization.to_state_dict(pair.sparse)}


def _pair_of_state(target: LowRank, state: Any) -> LowRank:
    expected = ["left", "right"] + ([] if target.sparse is None else ["sparse"])
    if not isinstance(state, Mapping) or set(state) != set(expected):
        raise ValueError(
            f"the target has a pair with {', '.join(expected)} at {serialization.current_path()}, the file "
            f"{_keys(state)}; expected a target that was compressed in the same way, or `lpjax.flax.with_pairs` of "
            "`flax.serialization.msgpack_restore`"
        )
    parts = {name: serialization.from_state_dict(getattr(target, name), state[name], name=name) for name in expected}
    return dataclasses.replace(target, **parts)


def _state_of_sparse(sparse: Sparse) -> dict[str, Any]:
    return {name: serialization.to_state_dict(getattr(sparse, name)) for name in _SPARSE}


def _sparse_of_state(target: Sparse, state: Any) -> Sparse:
    if not isinstance(state, Mapping) or set(state) != set(_SPARSE):
        raise ValueError(
            f"the target has single entries at {serialization.current_path()}, the file {_keys(state)}; expected "
            f"{', '.join(_SPARSE)}"
        )
    parts = {name: serialization.from_state_dict(getattr(target, name), state[name], name=name) for name in _SPARSE}
    starts = parts["starts"]
    # An optimizer's moments have no indices, and linen also calls this with traced leaves.
    if not hasattr(starts, "shape") or isinstance(starts, Tracer):
        return dataclasses.replace(target, **parts)
    return Sparse.from_parts(*(parts[name] for name in _SPARSE))


def _state_of_quantized(matrix: Quantized) -> dict[str, Any]:
    return {name: serialization.to_state_dict(getattr(matrix, name)) for name in _QUANTIZED}


def _quantized_of_state(target: Quantized, state: Any) -> Quantized:
    """The target with the arrays of the file; static fields, such as the bits of each run, stay."""
    if not isinstance(state, Mapping) or set(state) != set(_QUANTIZED):
        raise ValueError(
            f"the target has a quantized matrix at {serialization.current_path()}, the file {_keys(state)}; expected "
            f"{', '.join(_QUANTIZED)}"
        )
    parts = {name: serialization.from_state_dict(getattr(target, name), state[name], name=name) for name in _QUANTIZED}
    known = {name: getattr(target, name) for name in _QUANTIZED}
    if jax.tree.map(np.shape, parts) != jax.tree.map(np.shape, known):
        raise ValueError(
            f"the target has a quantized matrix of other bits or groups at {serialization.current_path()} than the file"
        )
    return dataclasses.replace(target, **parts)


def _keys(state: Any) -> str:
    if isinstance(state, Mapping):
        return "a dict of " + (", ".join(map(str, list(state)[:5])) or "nothing")
    return f"an array of shape {state.shape}" if hasattr(state, "shape") else f"a {type(state).__name__}"
