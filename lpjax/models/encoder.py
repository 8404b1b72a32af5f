"""Encoders as pure functions over a parameter tree and a static config.

A new architecture is a module like `bert.py` and one entry of `ARCHITECTURES`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lpjax.models import bert, distilbert, roberta, xlnet
from lpjax.models.bert import BertConfig as BertConfig
from lpjax.models.config import ModelConfig as ModelConfig
from lpjax.models.distilbert import DistilBertConfig as DistilBertConfig
from lpjax.models.layers import NO_DROPOUT, Dropout, at_least_float32, cast
from lpjax.models.names import NameTable, walk
from lpjax.models.roberta import CamembertConfig as CamembertConfig
from lpjax.models.roberta import RobertaConfig as RobertaConfig
from lpjax.models.roberta import XLMRobertaConfig as XLMRobertaConfig
from lpjax.models.xlnet import XLNetConfig as XLNetConfig
from lpjax.select import is_table, replace_leaves
from lpjax.weights.low_rank import LowRank, densify, is_lowrank


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What lpjax knows of one `model_type`: how to read its config, name its weights and run it.

    Attributes:
        config: its `ModelConfig`.
        name_table: config -> `NameTable`.
        forward: (base params, config, ids, mask, token types or None, dtype, dropout, slice of the tokens wanted) ->
            hidden states of those.
        summarized: config -> slice of the tokens that the head reads.
        classify: (params, config, hidden states of those, dropout) -> logits.
        label_tokens, find_spans: (params, config, hidden states, dropout) -> logits of every token.
        fill_words: (params, config, hidden states) -> logits of words; None without a head for masked words.
    """

    config: type[ModelConfig]
    name_table: Callable[[Any], NameTable]
    forward: Callable[..., Array]
    summarized: Callable[[Any], slice]
    classify: Callable[..., Array]
    label_tokens: Callable[..., Array]
    find_spans: Callable[..., Array]
    fill_words: Callable[..., Array] | None


ARCHITECTURES: dict[str, Architecture] = {
    config.model_type: Architecture(
        config,
        module.name_table,
        module.forward,
        module.summarized,
        module.classify,
        module.label_tokens,
        module.find_spans,
        module.fill_words,
    )
    for config, module in (
        (BertConfig, bert),
        (DistilBertConfig, distilbert),
        (RobertaConfig, roberta),
        (XLMRobertaConfig, roberta),
        (CamembertConfig, roberta),
        (XLNetConfig, xlnet),
    )
}
"""The architectures by the `model_type` of a config.json."""

CLASS_NAMES = {
    "bert": "Bert",
    "distilbert": "DistilBert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "xlnet": "XLNet",
}
"""How transformers begins the names of the classes of each `model_type`."""

_ENDINGS = "Model$|For[A-Z]|LMHeadModel$|PreTrainedModel$"  # of the names of transformers' classes
_TOKENS = 1024  # at a time, on one CPU
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def architecture(config: Any) -> Architecture:
    """The architecture of `config`.

    Raises:
        ValueError: where `config` is no config of lpjax (a dict, or one of another library).
    """
    found = ARCHITECTURES.get(getattr(config, "model_type", ""))
    if found is None or type(config) is not found.config:
        known = ", ".join(a.config.__name__ for a in ARCHITECTURES.values())
        raise ValueError(
            f"`config` is {type(config).__module__}.{type(config).__name__}, expected lpjax's {known}; "
            "load_checkpoint(...).config is one, and so is lpjax.config_from_json of a config.json's object"
        )
    return found


def config_from_json(data: Mapping[str, Any]) -> ModelConfig:
    """The config in the object of a config.json, of the architecture that its `model_type` names.

    Raises:
        ValueError: for an architecture that lpjax does not know, or a fault in the config; names every key.
    """
    kind = data.get("model_type")
    if kind is None:
        # The first checkpoints carry no model_type; where there is nothing, the class name tells.
        names = data.get("architectures")
        name = str(names[0]) if isinstance(names, list) and names else ""
        # Not by the beginning alone: XLMRobertaXLModel and RobertaPreLayerNormModel are other nets.
        kind = next((kind for kind, start in CLASS_NAMES.items() if re.match(f"{start}({_ENDINGS})", name)), None)
    if kind is None:
        raise ValueError(f"lacks `model_type`, expected one of {', '.join(map(repr, ARCHITECTURES))}")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ValueError(f"`model_type` is {kind!r}, expected one of {', '.join(map(repr, ARCHITECTURES))}")
    return ARCHITECTURES[kind].config.from_json(data)


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
    Where it is called many times, put the params on the device once, by `device_params`.

    Args:
        params: the base model's tree, or the tree of a model with a head; dense and `LowRank` leaves alike.
        config: its config.
        batch: `input_ids` (batch, length), and optionally `attention_mask` (1 for a token, 0 for padding;
            default all ones) and `token_type_ids` (default all zeros) of the same shape. Hidden states of
            padding are computed and mean nothing; those of tokens do not depend on it. RoBERTa counts positions
            from ids that are not `config.pad_token_id`, so pad with that.
        dtype: float32, bfloat16, float16, or float64 under x64. Layer normalization and softmax are computed
            in float32 at least. float32 means float32 on an accelerator too, unless
            `jax.default_matmul_precision` says otherwise.
        dropout_key: a PRNG key in training, for the dropout that `config` tells; without it there is none.

    Returns:
        (batch, length, hidden), of `dtype`.

    Raises:
        ValueError: on a wrong shape, dtype or key in `batch`, a length above `config.max_length`, ids outside
            their table (checked for numpy arrays; jax arrays are not read back), or params that do not fit the
            config, with every path that does not.
    """
    arch = architecture(config)
    _require_tree(params)
    return _encode(params, arch, config, *_inputs(batch, config), _dtype(dtype), dropout_key)


def classify(
    params: Mapping[str, Any],
    config: ModelConfig,
    batch: Mapping[str, Any],
    *,
    dtype: DTypeLike = jnp.float32,
    dropout_key: Array | None = None,
) -> Array:
    """Logits of the net's head: of texts, of their tokens, or of where an answer begins and ends.

    `config.head` says which head it is, for the weights of BERT and DistilBERT do not: heads for sequences, tokens and
    multiple choice have the same names. `load_checkpoint` and `config_from_json` read it from the class in
    `architectures`. A head for sequences, the default, reads BERT's pooler, DistilBERT's and RoBERTa's first token, and
    XLNet's `config.summary_type`; one of a regression gives its value.

    Args:
        params: tree of a model with a classification head.
        config, batch, dtype, dropout_key: as for `encode`. XLNet's summary of the last token wants padding on the
            left, as its tokenizer pads.

    Returns:
        float32, or float64 where `dtype` is: (batch, labels); for `head="tokens"` (batch, length, labels); for
        `head="spans"` (batch, length, 2), logits of each token as the first and the last of the answer. Logits of
        padding mean nothing.

    Raises:
        ValueError: as `encode`; params without the head, naming what is missing; and for XLNet a mask (numpy) that
            hides a text's last token while that is its summary.
    """
    head = config.head if getattr(config, "head", "") in ("tokens", "spans") else "sequence"
    arch = architecture(config)
    _require_tree(params)
    ids, mask, types = _inputs(batch, config)
    last = isinstance(config, XLNetConfig) and head == "sequence" and config.summary_type in ("last", "cls_index")
    if last and isinstance(mask, np.ndarray) and np.any((mask[:, -1] == 0) & (mask != 0).any(axis=1)):
        raise ValueError(
            "`attention_mask` hides the last token of a row, of which XLNet's summary is made; pad on the left: "
            'tokenizer.padding_side = "left"'
        )
    return _classify(params, arch, config, ids, mask, types, _dtype(dtype), dropout_key, head)


def fill_mask(
    params: Mapping[str, Any],
    config: ModelConfig,
    batch: Mapping[str, Any],
    *,
    dtype: DTypeLike = jnp.float32,
    dropout_key: Array | None = None,
) -> Float[Array, "batch length vocab"]:
    """Logits of the words that a masked language model puts in the place of each token, masked or not.

    A decoder that is tied to the table of words uses that, dense or factored.

    Args:
        params: tree of a BERT, DistilBERT or RoBERTa with a head for words.
        config, batch, dtype, dropout_key: as for `encode`.

    Returns:
        (batch, length, vocab), float32, or float64 if `dtype` is: 4 bytes for each word of the vocabulary and each
        token. Logits of padding mean nothing.

    Raises:
        ValueError: as `encode`; params without the head, naming what is missing; an XLNet, whose word head predicts
            permuted words.
    """
    arch = architecture(config)
    if arch.fill_words is None:
        known = ", ".join(one.config.model_type for one in ARCHITECTURES.values() if one.fill_words is not None)
        raise ValueError(f"`config` is of {config.model_type}, whose word head fills no masks; expected one of {known}")
    _require_tree(params)
    return _classify(params, arch, config, *_inputs(batch, config), _dtype(dtype), dropout_key, "words")


def _require_tree(params: Any) -> None:
    if not isinstance(params, Mapping):
        raise ValueError(f"`params` is {type(params).__name__}, expected a nested dict such as Checkpoint.params")


def device_params(params: Mapping[str, Any], dtype: DTypeLike | None = None, *, expand: bool = False) -> dict[str, Any]:
    """`params` as jax arrays on the default device, floating leaves cast to `dtype` where it is given.

    `load_checkpoint` gives views of the file, which every call of a compiled function would copy to the
    device anew. With `expand`, for many passes forward, kernels with single entries are made dense, once and not in
    every pass: these save no time, and to put them in their places takes more than a short text's product.
    """
    if expand:
        params = replace_leaves(params, {path: _dense(leaf) for path, leaf in walk(params) if _to_expand(path, leaf)})
    kind = None if dtype is None else _dtype(dtype)
    if kind is None:
        return jax.tree.map(jnp.asarray, dict(params))
    # Pairs as one leaf: the places of single entries stay whole numbers.
    return jax.tree.map(lambda leaf: jax.tree.map(jnp.asarray, cast(leaf, kind)), dict(params), is_leaf=is_lowrank)


def _to_expand(path: str, leaf: Any) -> bool:
    return is_lowrank(leaf) and leaf.sparse is not None and not is_table(path)


def _dense(leaf: LowRank) -> Array:
    """In the leaf's dtype, rounded once."""
    wide = leaf.astype(at_least_float32(leaf.dtype))
    return densify(wide).astype(leaf.dtype)


def _dtype(dtype: DTypeLike) -> np.dtype:
    kind = np.dtype(dtype)
    if not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"`dtype` is {kind}, expected a floating-point type such as jnp.float32 or jnp.bfloat16")
    if kind == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError("`dtype` is float64 but jax's x64 mode is off; jax.config.update('jax_enable_x64', True)")
    return kind


def _inputs(batch: Mapping[str, Any], config: ModelConfig) -> tuple[Any, Any, Any]:
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
    mask = arrays.get("attention_mask", np.ones(ids.shape, bool))
    types = arrays.get("token_type_ids")
    for name, array in (("attention_mask", mask), ("token_type_ids", types)):
        if array is not None and array.shape != ids.shape:
            raise ValueError(f"`{name}` has shape {array.shape}, expected that of `input_ids`, {ids.shape}")
    for name, array, size in (
        ("input_ids", ids, config.vocab_size),
        ("token_type_ids", types, config.num_token_types),
    ):
        if array is None:
            continue
        most = np.inf if size is None else size - 1
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"`{name}` has dtype {array.dtype}, expected integers")
        if isinstance(array, np.ndarray) and array.size and not 0 <= array.min() <= array.max() <= most:
            raise ValueError(f"`{name}` holds {array.min()} to {array.max()}, expected 0 to {most}")
    return ids, mask, types


@functools.partial(jax.jit, static_argnums=(1, 2, 6))
def _encode(
    params: dict,
    arch: Architecture,
    config: ModelConfig,
    ids: Array,
    mask: Array,
    types: Array | None,
    dtype: np.dtype,
    key: Array | None,
) -> Array:
    table = arch.name_table(config)
    _require_fit(params, table)
    with _precision(dtype):
        base = params.get(table.prefix, params)
        return _forward(base, arch, config, ids, mask, types, dtype, Dropout(key), slice(None))


@functools.partial(jax.jit, static_argnums=(1, 2, 6, 8))
def _classify(
    params: dict,
    arch: Architecture,
    config: ModelConfig,
    ids: Array,
    mask: Array,
    types: Array | None,
    dtype: np.dtype,
    key: Array | None,
    head: str,
) -> Array:
    table = arch.name_table(config)
    if table.prefix not in params:
        raise ValueError(f"`params` is a base model's tree, without a head; expected `{table.prefix}` and a head in it")
    _require_fit(params, table, table.head_groups(head))
    with _precision(dtype):
        dropout = Dropout(key)
        hidden = _forward(params[table.prefix], arch, config, ids, mask, types, dtype, dropout, tokens_of(config, head))
        return logits_of(params, config, hidden, dropout, head).astype(at_least_float32(dtype))


def tokens_of(config: ModelConfig, head: str) -> slice:
    """The tokens that a head reads, one of `HEADS`."""
    return architecture(config).summarized(config) if head == "sequence" else slice(None)


def logits_of(
    params: Mapping[str, Any],
    config: ModelConfig,
    hidden: Float[Array, "batch places hidden"],
    dropout: Dropout,
    head: str,
) -> Array:
    """Logits of a head, one of `HEADS`, over the hidden states of the tokens that it reads; nothing is checked.

    Raises:
        ValueError: a head for spans that has not two outputs.
    """
    arch = architecture(config)
    if head == "words":
        assert arch.fill_words is not None
        return arch.fill_words(params, config, hidden)
    run = {"sequence": arch.classify, "tokens": arch.label_tokens, "spans": arch.find_spans}[head]
    logits = run(params, config, hidden, dropout)
    if head == "spans" and logits.shape[-1] != 2:
        raise ValueError(f"`qa_outputs` has {logits.shape[-1]} outputs; expected 2, an answer's first and last token")
    return logits


def hidden_states(
    base: Mapping[str, Any],
    config: ModelConfig,
    inputs: Mapping[str, Array],
    wanted: slice = slice(None),
    *,
    in_pieces: bool = False,
) -> Float[Array, "batch wanted hidden"]:
    """Hidden states of the last layer, of the `wanted` tokens, in float32, inside jit; nothing is checked.

    Args:
        base: the base model's tree, whose weights may be `Probe`s.
        config: its config.
        inputs: as `collate` makes them; other keys are left out.
        wanted: slice of the tokens.
        in_pieces: on one CPU, some texts at a time, in half the time; not for gradients.
    """
    arch = architecture(config)
    given = inputs["input_ids"], inputs["attention_mask"].astype(bool), inputs.get("token_type_ids")
    dtype = np.dtype("float32")
    if in_pieces:
        return _forward(dict(base), arch, config, *given, dtype, NO_DROPOUT, wanted)
    return arch.forward(base, config, *given, dtype, NO_DROPOUT, wanted)


def _forward(
    base: dict,
    arch: Architecture,
    config: ModelConfig,
    ids: Array,
    mask: Array,
    types: Array | None,
    dtype: np.dtype,
    dropout: Dropout,
    wanted: slice,
) -> Array:
    """The net's `forward`; on one CPU of a large batch some texts at a time, whose activations then stay in its cache.

    It takes half the time of all of them at a time. Not so in training, where what dropout zeroes depends on the batch.
    """

    def forward(ids: Array, mask: Array, types: Array | None) -> Array:
        return arch.forward(base, config, ids, mask.astype(bool), types, dtype, dropout, wanted)

    batch, length = ids.shape
    height = math.ceil(batch / min(batch, math.ceil(batch * length / _TOKENS))) if batch else 0
    one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    # XLNet's `bi_data` reads the two halves of a batch in two directions.
    if height == batch or not one_cpu or dropout.acts or getattr(config, "bi_data", False):
        return forward(ids, mask, types)

    def piece(start: Array) -> Array:
        part = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=height)
        return forward(part(ids), part(mask), None if types is None else part(types))

    count = math.ceil(batch / height)
    found = jax.lax.map(piece, np.minimum(np.arange(count) * height, batch - height))
    if batch % height == 0:
        return found.reshape(batch, *found.shape[2:])
    # The last piece begins with texts that the one before it has.
    return jnp.concatenate([*found[:-1], found[-1, count * height - batch :]])


def _require_fit(params: dict, table: NameTable, groups: Iterable[str] = ()) -> None:
    # Shapes are static: this costs nothing once compiled.
    misfits = table.write(params, groups, look_inside=False)[1]
    misfits.unknown.clear()  # A head of the caller's own is no business of the encoder.
    if misfits:
        raise ValueError(f"`params` does not fit `config`:\n{misfits}")


def _precision(dtype: np.dtype) -> contextlib.AbstractContextManager[Any]:
    """Full precision for float32, where the caller has said nothing else."""
    unset = jax.config.jax_default_matmul_precision is None  # pyright: ignore[reportAttributeAccessIssue]
    full = unset and dtype == np.float32
    return jax.default_matmul_precision("highest") if full else contextlib.nullcontext()
