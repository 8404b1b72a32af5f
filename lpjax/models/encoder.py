"""Encoders as pure functions over a parameter tree and a static config."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lpjax._tree import check_tree, is_table, replace_leaves, walk
from lpjax.models.architecture import ARCHITECTURES, Architecture, architecture_of
from lpjax.models.config import ModelConfig
from lpjax.models.layers import NO_DROPOUT, Dropout, Inputs, at_least_float32
from lpjax.weights.dispatch import cast, densify, is_weight
from lpjax.weights.low_rank import LowRank
from lpjax.weights.quantized import Quantized, expanded

_TOKENS = 1024  # tokens computed at a time on one CPU, about
_LARGE_TABLE = 2**20  # entries
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def encode(
    params: Mapping[str, Any],
    config: ModelConfig,
    batch: Mapping[str, Any],
    *,
    dtype: DTypeLike = jnp.float32,
    dropout_key: Array | None = None,
) -> Float[Array, "batch length hidden"]:
    """Hidden states of the encoder's last layer.

    Compiled once per shape of `batch` and per structure of `params`; differentiable, and usable inside jit.
    Before many calls, put the params on the device once, by `device_params`.

    Args:
        params: the base model's tree, or the tree of a model with a head; dense and `LowRank` leaves alike.
        config: its config.
        batch: `input_ids` (batch, length), and optionally `attention_mask` (1 for a token, 0 for padding;
            default all ones) and `token_type_ids` (default all zeros) of the same shape. Hidden states of
            padding are computed but meaningless; those of tokens do not depend on padding. RoBERTa and MPNet count
            positions from ids that are not `config.padding_id`, so pad with that.
        dtype: float32, bfloat16, float16, or float64 under x64. Layer normalization, softmax and GELU are computed
            in float32 at least. float32 means float32 on an accelerator too, unless
            `jax.default_matmul_precision` says otherwise.
        dropout_key: a PRNG key, for dropout at the rates of `config`; without it there is no dropout.

    Returns:
        (batch, length, hidden), of `dtype`.

    Raises:
        ValueError: on a wrong shape, dtype or key in `batch`, a length above `config.max_length`, ids outside
            their table (checked for NumPy arrays; JAX arrays are not read back), or params that do not fit the
            config; names every such path.
    """
    return _run(params, config, batch, dtype, dropout_key, None)


def classify(
    params: Mapping[str, Any],
    config: ModelConfig,
    batch: Mapping[str, Any],
    *,
    dtype: DTypeLike = jnp.float32,
    dropout_key: Array | None = None,
) -> Array:
    """Logits of the model's head: for texts, for their tokens, or for the first and last token of an answer.

    `config.head` selects the head, because weights do not identify it: in BERT and DistilBERT, heads for sequences,
    tokens and multiple choice have the same names. `load_checkpoint` and `config_from_json` read it from the class in
    `architectures`. A head for sequences, the default, reads the output of BERT's and ALBERT's pooler, of XLNet's
    `config.summary_type` or ModernBERT's `config.classifier_pooling`, or else the first token; for a regression, its
    output is the value.

    Args:
        params: tree of a model with a classification head.
        config, batch, dtype, dropout_key: as for `encode`. XLNet's summary of the last token needs padding on the
            left, where its tokenizer puts it.

    Returns:
        float32, or float64 if `dtype` is: (batch, labels); for `head="tokens"` (batch, length, labels); for
        `head="spans"` (batch, length, 2), logits of each token as the first and the last of the answer. Logits of
        padding are meaningless.

    Raises:
        ValueError: as `encode`; params without the head (names what is missing); and for an XLNet whose summary is the
            last token, a NumPy mask that hides the last token of a text.
    """
    head = getattr(config, "head", "sequence")
    return _run(params, config, batch, dtype, dropout_key, "sequence" if head == "words" else head)


def fill_mask(
    params: Mapping[str, Any],
    config: ModelConfig,
    batch: Mapping[str, Any],
    *,
    dtype: DTypeLike = jnp.float32,
    dropout_key: Array | None = None,
) -> Float[Array, "batch length vocab"]:
    """Logits of a masked language model over the vocabulary, for every token, masked or not.

    A decoder that is tied to the word embedding uses it, dense or factored.

    Args:
        params: tree of a model with a word head; an ELECTRA must be a generator.
        config, batch, dtype, dropout_key: as for `encode`.

    Returns:
        (batch, length, vocab), float32, or float64 if `dtype` is: 4 or 8 bytes per token and vocabulary entry. Logits
        of padding are meaningless.

    Raises:
        ValueError: as `encode`; params without the head (names what is missing); an XLNet, whose word head predicts
            permuted words.
    """
    if "words" not in architecture_of(config).heads:
        known = ", ".join(kind for kind, net in ARCHITECTURES.items() if "words" in net.heads)
        raise ValueError(f"`config` is of {config.model_type}, whose word head fills no masks; expected one of {known}")
    return _run(params, config, batch, dtype, dropout_key, "words")


def _run(
    params: Mapping[str, Any],
    config: ModelConfig,
    batch: Mapping[str, Any],
    dtype: DTypeLike,
    dropout_key: Array | None,
    head: str | None,
) -> Array:
    """Logits of a head, or hidden states without one; all arguments are checked."""
    net = architecture_of(config)
    check_tree(params)
    inputs = _checked(batch, config)
    mask = inputs["attention_mask"]
    last = head == "sequence" and net.head_slice(config) == slice(-1, None)
    if last and isinstance(mask, np.ndarray) and np.any((mask[:, -1] == 0) & (mask != 0).any(axis=1)):
        raise ValueError(
            "`attention_mask` hides the last token of a row, which the model's head reads; pad on the left: "
            'tokenizer.padding_side = "left"'
        )
    return _compiled(params, net, config, inputs, _dtype(dtype), dropout_key, head)


def device_params(params: Mapping[str, Any], dtype: DTypeLike | None = None, *, expand: bool = False) -> dict[str, Any]:
    """`params` as JAX arrays on the default device, with floating-point leaves cast to `dtype` if it is given.

    `load_checkpoint` gives views of the file, which every call of a compiled function would copy to the device again.
    With `expand`, formats that save memory but not time are expanded once instead of in every forward pass: codes
    become arrays, and kernels with single entries dense. The codes of a large table stay packed, because a forward pass
    looks up only few rows.
    """
    if expand:
        slow = {path: leaf for path, leaf in walk(params) if _is_slow(path, leaf)}
        params = replace_leaves(params, _expand(slow)) if slow else params
    kind = None if dtype is None else _dtype(dtype)
    if kind is None:
        return jax.tree.map(jnp.asarray, dict(params))
    # Each weight as one leaf: indices and codes stay integers.
    return jax.tree.map(lambda leaf: jax.tree.map(jnp.asarray, cast(leaf, kind)), dict(params), is_leaf=is_weight)


def _is_slow(path: str, leaf: Any) -> bool:
    if isinstance(leaf, LowRank):
        entries = leaf.sparse is not None and not is_table(path)
        return entries or any(isinstance(factor, Quantized) for factor in (leaf.left, leaf.right))
    return isinstance(leaf, Quantized)


@jax.jit
def _expand(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Expand leaves to dense kernels and dense factors, in the leaves' dtypes."""
    return {path: _expand_leaf(leaf, is_table(path)) for path, leaf in leaves.items()}


def _expand_leaf(leaf: Quantized | LowRank, table: bool) -> Any:
    def whole(part: Any) -> Any:
        return part if table and part.size > _LARGE_TABLE else expanded(part)

    if not isinstance(leaf, LowRank):
        return whole(leaf)
    if table or leaf.sparse is None:
        return LowRank(whole(leaf.left), whole(leaf.right), leaf.sparse)
    wide = leaf.astype(at_least_float32(leaf.dtype))
    return densify(wide).astype(leaf.dtype)  # rounded once


def _dtype(dtype: DTypeLike) -> np.dtype:
    kind = np.dtype(dtype)
    if not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"`dtype` is {kind}, expected a floating-point type such as jnp.float32 or jnp.bfloat16")
    if kind == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError("`dtype` is float64 but jax's x64 mode is off; jax.config.update('jax_enable_x64', True)")
    return kind


def _checked(batch: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The arrays of `batch`, with a mask; values that are not arrays become NumPy's."""
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
    limit = config.max_length
    if limit is not None and ids.shape[1] > limit:
        raise ValueError(
            f"`input_ids` is {ids.shape[1]} tokens long, but the model has {limit} positions; truncate, "
            f"e.g. tokenizer(..., truncation=True, max_length={limit})"
        )
    for name, array in arrays.items():
        if array.shape != ids.shape:
            raise ValueError(f"`{name}` has shape {array.shape}, expected that of `input_ids`, {ids.shape}")
    for name, size in (("input_ids", config.vocab_size), ("token_type_ids", config.num_token_types)):
        if (array := arrays.get(name)) is None:
            continue
        most = np.inf if size is None else size - 1
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"`{name}` has dtype {array.dtype}, expected integers")
        if isinstance(array, np.ndarray) and array.size and not 0 <= array.min() <= array.max() <= most:
            raise ValueError(f"`{name}` holds {array.min()} to {array.max()}, expected 0 to {most}")
    return {"attention_mask": np.ones(ids.shape, bool), **arrays}


@functools.partial(jax.jit, static_argnums=(1, 2, 4, 6))
def _compiled(
    params: dict,
    net: Architecture,
    config: ModelConfig,
    batch: dict[str, Array],
    dtype: np.dtype,
    key: Array | None,
    head: str | None,
) -> Array:
    table = net.name_table(config)
    if head is not None and table.prefix not in params:
        raise ValueError(f"`params` is a base model's tree, without a head; expected `{table.prefix}` and a head in it")
    # Shapes are static: this costs nothing once compiled.
    misfits = table.write(params, table.head_groups.get(head or "", ()), look_inside=False)[1]
    misfits.unknown.clear()  # The caller may have a head of their own.
    misfits.refuse()
    with _precision(dtype):
        base, dropout, tokens = params.get(table.prefix, params), Dropout(key), tokens_of(config, head)
        hidden = _in_pieces(net, base, config, _inputs(batch, dtype, dropout, tokens))
        if head is None:
            return hidden
        logits = logits_of(params, config, hidden, batch["attention_mask"], dropout, head)
        return logits.astype(at_least_float32(dtype))


def tokens_of(config: ModelConfig, head: str | None) -> slice:
    """The tokens that a head, one of `HEADS`, reads; all tokens without a head."""
    return architecture_of(config).head_slice(config) if head == "sequence" else slice(None)


def logits_of(
    params: Mapping[str, Any],
    config: ModelConfig,
    hidden: Float[Array, "batch places hidden"],
    mask: Array,
    dropout: Dropout,
    head: str,
) -> Array:
    """Logits of a head, one of `HEADS`, over the hidden states of the tokens that it reads; nothing is checked.

    `mask` is the attention mask of whole texts.

    Raises:
        ValueError: the head is for spans and does not have two outputs.
    """
    net = architecture_of(config)
    if head == "sequence":
        hidden = net.pool(config, hidden, jnp.asarray(mask)[:, net.head_slice(config)].astype(bool))
    logits = net.heads[head](params, config, hidden, dropout)
    if head == "spans":
        check_span_outputs(logits.shape[-1])
    return logits


def check_span_outputs(count: int) -> None:
    """Refuse a head for spans that does not have two outputs.

    Raises:
        ValueError: it has another number of outputs.
    """
    if count != 2:
        raise ValueError(f"`qa_outputs` has {count} outputs; expected 2, an answer's first and last token")


def hidden_states(
    base: Mapping[str, Any],
    config: ModelConfig,
    inputs: Mapping[str, Array],
    tokens: slice = slice(None),
    *,
    in_pieces: bool = False,
) -> Float[Array, "batch tokens hidden"]:
    """Hidden states of the last layer, in float32, inside jit; nothing is checked.

    Args:
        base: the base model's tree, whose weights may be `TappedWeight`s.
        config: its config.
        inputs: model inputs, as from `collate`; other keys are ignored.
        tokens: slice of the tokens that are computed in the last layer.
        in_pieces: whether to run a few texts at a time on one CPU, which takes half the time; not for gradients.
    """
    net, read = architecture_of(config), _inputs(inputs, np.dtype("float32"), NO_DROPOUT, tokens)
    return _in_pieces(net, base, config, read) if in_pieces else net.forward(base, config, read)


def _inputs(batch: Mapping[str, Array], dtype: np.dtype, dropout: Dropout, tokens: slice) -> Inputs:
    """The `Inputs` of a batch; other keys are ignored."""
    arrays = {name: jnp.asarray(batch[name]) for name in _INPUTS if name in batch}
    mask, types = arrays["attention_mask"].astype(bool), arrays.get("token_type_ids")
    return Inputs(arrays["input_ids"], mask, types, dtype, dropout, tokens)


def _in_pieces(net: Architecture, base: Mapping[str, Any], config: ModelConfig, inputs: Inputs) -> Array:
    """The model's `forward`; on one CPU, a large batch is run a few texts at a time, which takes half the time.

    Their activations then stay in the cache. With dropout the batch stays whole, since the zeroed entries depend on it.
    """
    rows, length = inputs.ids.shape
    height = math.ceil(rows / min(rows, math.ceil(rows * length / _TOKENS))) if rows else 0
    one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    if height == rows or not one_cpu or inputs.dropout.acts or config.batch_multiple > 1:
        return net.forward(base, config, inputs)
    arrays = {"ids": inputs.ids, "mask": inputs.mask, "token_types": inputs.token_types}

    def piece(start: Array) -> Array:
        part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, height), arrays)
        return net.forward(base, config, dataclasses.replace(inputs, **part))

    count = math.ceil(rows / height)
    pieces = jax.lax.map(piece, np.minimum(np.arange(count) * height, rows - height))
    if rows % height == 0:
        return pieces.reshape(rows, *pieces.shape[2:])
    # The last piece overlaps the one before it.
    return jnp.concatenate([*pieces[:-1], pieces[-1, count * height - rows :]])


def _precision(dtype: np.dtype) -> contextlib.AbstractContextManager[Any]:
    """Full matmul precision for float32, unless the caller has set another one."""
    unset = jax.config.jax_default_matmul_precision is None  # pyright: ignore[reportAttributeAccessIssue]
    full = unset and dtype == np.float32
    return jax.default_matmul_precision("highest") if full else contextlib.nullcontext()
