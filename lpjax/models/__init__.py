"""Encoders as pure functions over a parameter tree and a static config.

A new architecture is a module like `bert.py` and one entry of `ARCHITECTURES`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lpjax.models import bert
from lpjax.models.bert import BertConfig as BertConfig
from lpjax.models.layers import cast
from lpjax.models.names import NameTable


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What lpjax knows of one `model_type`: how to read its config, name its weights and run it."""

    config: type[BertConfig]
    name_table: Callable[[Any], NameTable]
    forward: Callable[..., Array]


ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(bert.BertConfig, bert.name_table, bert.forward),
}
"""The architectures by the `model_type` of a config.json."""

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def architecture(config: Any) -> Architecture:
    """The architecture of `config`.

    Raises:
        ValueError: where `config` is no config of lpjax (a dict, or one of another library).
    """
    found = ARCHITECTURES.get(getattr(config, "model_type", ""))
    if found is None or not isinstance(config, found.config):
        known = ", ".join(a.config.__name__ for a in ARCHITECTURES.values())
        raise ValueError(
            f"`config` is {type(config).__module__}.{type(config).__name__}, expected lpjax's {known}; "
            "load_checkpoint(...).config is one, and so is BertConfig.from_json of a config.json's object"
        )
    return found


def config_from_json(data: Mapping[str, Any]) -> BertConfig:
    """The config in the object of a config.json, of the architecture that its `model_type` names.

    Raises:
        ValueError: for an architecture that lpjax does not know, or a fault in the config; names every key.
    """
    kind = data.get("model_type")
    if kind is None:
        # The first BERT checkpoints carry no model_type; where there is nothing, the class name tells.
        names = data.get("architectures")
        kind = "bert" if isinstance(names, list) and str(names[:1]).startswith("['Bert") else None
    if kind is None:
        raise ValueError(f"lacks `model_type`, expected one of {', '.join(map(repr, ARCHITECTURES))}")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ValueError(f"`model_type` is {kind!r}, expected one of {', '.join(map(repr, ARCHITECTURES))}")
    return ARCHITECTURES[kind].config.from_json(data)


def encode(
    params: Mapping[str, Any],
    config: BertConfig,
    batch: Mapping[str, Any],
    *,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "batch length hidden"]:
    """Hidden states of the encoder's last layer.

    Compiled once per shape of `batch` and per structure of `params`; differentiable, and usable inside jit.
    Where it is called many times, put the params on the device once, by `device_params`.

    Args:
        params: the base model's tree, or the tree of a model with a head; dense and `LowRank` leaves alike.
        config: its config.
        batch: `input_ids` (batch, length), and optionally `attention_mask` (1 for a token, 0 for padding;
            default all ones) and `token_type_ids` (default all zeros) of the same shape. Hidden states of
            padding are computed and mean nothing; those of tokens do not depend on it.
        dtype: float32, bfloat16, float16, or float64 under x64. Layer normalization and softmax are computed
            in float32 at least. float32 means float32 on an accelerator too, unless
            `jax.default_matmul_precision` says otherwise.

    Returns:
        (batch, length, hidden), of `dtype`.

    Raises:
        ValueError: on a wrong shape, dtype or key in `batch`, a length above
            `config.max_position_embeddings`, ids outside their table (checked for numpy arrays; jax arrays
            are not read back), or params that do not fit the config, with every path that does not.
    """
    arch = architecture(config)
    if not isinstance(params, Mapping):
        raise ValueError(f"`params` is {type(params).__name__}, expected a nested dict such as Checkpoint.params")
    return _encode(params, arch, config, *_inputs(batch, config), _dtype(dtype))


def device_params(params: Mapping[str, Any], dtype: DTypeLike | None = None) -> dict[str, Any]:
    """`params` as jax arrays on the default device, floating leaves cast to `dtype` where it is given.

    `load_checkpoint` gives views of the file, which every call of a compiled function would copy to the
    device anew.
    """
    kind = None if dtype is None else _dtype(dtype)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if kind is None else cast(leaf, kind), dict(params))


def _dtype(dtype: DTypeLike) -> np.dtype:
    kind = np.dtype(dtype)
    if not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"`dtype` is {kind}, expected a floating-point type such as jnp.float32 or jnp.bfloat16")
    if kind == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError("`dtype` is float64 but jax's x64 mode is off; jax.config.update('jax_enable_x64', True)")
    return kind


def _inputs(batch: Mapping[str, Any], config: BertConfig) -> tuple[Any, Any, Any]:
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        got = f"keys {sorted(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"`batch` is {got}, expected a dict with `input_ids` of shape (batch, length)")
    unknown = [repr(key) for key in batch if key not in _INPUTS]
    if unknown:
        raise ValueError(f"`batch` holds {', '.join(unknown)}, expected only {', '.join(_INPUTS)}")

    arrays = {key: value if hasattr(value, "dtype") else np.asarray(value) for key, value in batch.items()}
    ids = arrays["input_ids"]
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(f"`input_ids` has shape {ids.shape}, expected (batch, length)")
    limit = config.max_position_embeddings
    if ids.shape[1] > limit:
        raise ValueError(
            f"`input_ids` is {ids.shape[1]} tokens long, but the model has {limit} positions; truncate, "
            f"e.g. tokenizer(..., truncation=True, max_length={limit})"
        )
    mask = arrays.get("attention_mask", np.ones(ids.shape, bool))
    types = arrays.get("token_type_ids", np.zeros(ids.shape, np.int32))
    for name, array in (("attention_mask", mask), ("token_type_ids", types)):
        if array.shape != ids.shape:
            raise ValueError(f"`{name}` has shape {array.shape}, expected that of `input_ids`, {ids.shape}")
    for name, array, size in (
        ("input_ids", ids, config.vocab_size),
        ("token_type_ids", types, config.type_vocab_size),
    ):
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"`{name}` has dtype {array.dtype}, expected integers")
        if isinstance(array, np.ndarray) and array.size and not 0 <= array.min() <= array.max() < size:
            raise ValueError(f"`{name}` holds {array.min()} to {array.max()}, expected 0 to {size - 1}")
    return ids, mask, types


@functools.partial(jax.jit, static_argnums=(1, 2, 6))
def _encode(
    params: dict,
    arch: Architecture,
    config: BertConfig,
    ids: Array,
    mask: Array,
    types: Array,
    dtype: np.dtype,
) -> Array:
    table = arch.name_table(config)
    params = params.get(table.prefix, params)
    # Shapes are static: this costs nothing once compiled.
    misfits = table.write(params)[1]
    misfits.unknown.clear()  # A head of the caller's own is no business of the encoder.
    if misfits:
        raise ValueError(f"`params` does not fit `config`:\n{misfits}")
    unset = jax.config.jax_default_matmul_precision is None  # pyright: ignore[reportAttributeAccessIssue]
    full = unset and dtype == np.float32
    with jax.default_matmul_precision("highest") if full else contextlib.nullcontext():
        return arch.forward(params, config, ids, mask.astype(bool), types, dtype)
