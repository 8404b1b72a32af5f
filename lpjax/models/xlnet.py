"""XLNet (Yang et al., arXiv 1906.08237), content stream only: config, names of its weights, forward pass, heads.

Attention scores are those of Transformer-XL (Dai et al., arXiv 1901.02860, §3.3) plus a term for whether two tokens are
in one segment.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lpjax.models.config import Activation, Architecture, Flag, Layers, ModelConfig, Share, Size, one_of, whole
from lpjax.models.layers import (
    ACTIVATIONS,
    Dropout,
    Inputs,
    at_least_float32,
    cast,
    embed,
    join_heads,
    layer_norm,
    linear,
    per_token,
    shift_by_query,
    split_heads,
    weighted_mean,
)
from lpjax.models.names import NameTable, Weight, decoder, dense, embedding, norm

_SUMMARIES = ("last", "first", "mean", "cls_index")


@dataclasses.dataclass(frozen=True)
class XLNetConfig(ModelConfig):
    """Config of an XLNet; fields as in its config.json.

    `mem_len`, `reuse_len` and `same_length` are not among them: without memories of earlier segments, they do not
    change bidirectional attention.

    Raises:
        ValueError: on a size below 1, a hidden size that the number of heads does not divide, or an unknown activation
            or summary.
    """

    model_type: ClassVar[str] = "xlnet"
    class_name: ClassVar[str] = "XLNet"
    has_flax_class: ClassVar[bool] = False
    heads_divide: ClassVar[tuple[str, str]] = ("d_model", "n_head")
    padding_side: ClassVar[Literal["left", "right"]] = "left"
    wants_token_types: ClassVar[bool] = True
    no_decay: ClassVar[frozenset[str]] = ModelConfig.no_decay | {"r_w_bias", "r_r_bias", "r_s_bias"}
    unsupported: ClassVar[Mapping[str, Any]] = {
        "attn_type": (("bi",), "only bidirectional attention is supported"),
        "summary_proj_to_labels": ((False, None), "the head projects the summary to the hidden size"),
    }

    d_model: Size
    n_layer: Layers
    n_head: Size
    d_inner: Size
    ff_activation: Activation = "gelu"
    layer_norm_eps: Share = 1e-12
    clamp_len: Annotated[int, whole(-(2**31))] = -1
    bi_data: Flag = False
    summary_type: Annotated[str, one_of(_SUMMARIES)] = "last"
    summary_use_proj: Flag = True
    summary_activation: Activation | None = "tanh"
    dropout: Share = 0.1
    summary_first_dropout: Share = 0.0
    summary_last_dropout: Share = 0.1

    @classmethod
    def conflicts(cls, values: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
        yield from super().conflicts(values, data)
        hidden, heads = values.get("d_model"), values.get("n_head")
        if hidden and heads and hidden % heads == 0 and data.get("d_head") not in (hidden // heads, None):
            yield f"`d_head` is {data['d_head']!r}, expected {hidden // heads}: heads share the hidden size"

    @property
    def hidden_size(self) -> int:
        """Size of the hidden states."""
        return self.d_model

    @property
    def max_length(self) -> None:
        return None

    @property
    def num_token_types(self) -> None:
        return None

    @property
    def batch_multiple(self) -> int:
        """`bi_data` reads the second half of a batch backwards."""
        return 2 if self.bi_data else 1


def name_table(config: XLNetConfig) -> NameTable:
    """The names, paths and shapes of XLNet's weights, with the heads that its checkpoints come with.

    Files hold the attention's q, k, v, o and r as (hidden, heads, head size). Here they are kernels, (hidden, hidden),
    inputs first: o maps heads to the hidden size and is stored the other way round.
    """
    hidden, inner, vocab = config.d_model, config.d_inner, config.vocab_size
    heads, size = config.n_head, config.d_model // config.n_head
    base: list[Weight] = [
        Weight("mask_emb", "mask_emb", (1, 1, hidden)),
        *embedding("word_embedding", vocab, hidden),
    ]
    for layer in (f"layer.{i}" for i in range(config.n_layer)):
        part = f"{layer}.rel_attn"
        path = part.replace(".", "/")
        for name in ("q", "k", "v", "o", "r"):
            shape = (hidden, heads, size)
            base += [Weight(f"{part}.{name}", f"{path}/{name}/kernel", (hidden, hidden), name == "o", file_shape=shape)]
        base += [Weight(f"{part}.{name}", f"{path}/{name}", (heads, size)) for name in ("r_r_bias", "r_s_bias")]
        base += [
            Weight(f"{part}.r_w_bias", f"{path}/r_w_bias", (heads, size)),
            Weight(f"{part}.seg_embed", f"{path}/seg_embed", (2, heads, size)),
        ]
        base += norm(f"{part}.layer_norm", hidden)
        base += norm(f"{layer}.ff.layer_norm", hidden)
        base += dense(f"{layer}.ff.layer_1", hidden, inner)
        base += dense(f"{layer}.ff.layer_2", inner, hidden)
    return NameTable(
        prefix="transformer",
        base=tuple(base),
        heads=(
            *decoder("lm_loss", hidden, vocab, "lm_loss", "word_embedding.weight", tied=config.tie_word_embeddings),
            *dense("sequence_summary.summary", hidden, hidden, group="summary"),
            *dense("logits_proj", hidden, "labels", group="logits_proj"),
            *dense("classifier", hidden, "labels", group="token classifier"),
            *dense("qa_outputs", hidden, "outputs", group="qa_outputs"),
        ),
        renames=((r"layer_norm\.gamma$", "layer_norm.weight"), (r"layer_norm\.beta$", "layer_norm.bias")),
        head_groups={
            "sequence": ("logits_proj", "summary") if config.summary_use_proj else ("logits_proj",),
            "tokens": ("token classifier",),
            "spans": ("qa_outputs",),
        },
    )


def forward(params: Mapping[str, Any], config: XLNetConfig, inputs: Inputs) -> Float[Array, "batch tokens hidden"]:
    """Hidden states of the last layer; `params` is the base model's tree."""
    batch, length = inputs.ids.shape
    dtype, dropout, token_types = inputs.dtype, inputs.dropout, inputs.token_types
    if config.bi_data and batch % 2:
        raise ValueError(
            f"`input_ids` has {batch} rows; expected an even number, because `bi_data` reads the second half backwards"
        )
    rate, eps, activation = config.dropout, config.layer_norm_eps, ACTIVATIONS[config.ff_activation]
    positions = dropout(_positions(config, length, dtype), rate)
    # A token sees itself, padding too, whatever the mask.
    visible = inputs.mask[:, None, :] | jnp.eye(length, dtype=bool)[None]
    other = None if token_types is None else token_types[:, :, None] != token_types[:, None, :]
    x = dropout(embed(inputs.ids, params["word_embedding"], dtype), rate)
    for i in range(config.n_layer):
        layer = params["layer"][str(i)]
        heads, feed = layer["rel_attn"], layer["ff"]
        context = _attention(heads, x, positions, visible, other, config.n_head, dropout, rate)
        if i == config.n_layer - 1:
            x, context = x[:, inputs.tokens], context[:, inputs.tokens]
        x = layer_norm(x + dropout(linear(context, heads["o"]), rate), heads["layer_norm"], eps)
        inner = dropout(activation(linear(x, feed["layer_1"])), rate)
        x = layer_norm(x + dropout(linear(inner, feed["layer_2"]), rate), feed["layer_norm"], eps)
    return dropout(x if config.n_layer else x[:, inputs.tokens], rate)


def _positions(config: XLNetConfig, length: int, dtype: Any) -> Float[Array, "direction two_length d"]:
    """Sinusoids of the relative positions length, …, 1 − length; with `bi_data` also of their negatives."""
    distance = length - jnp.arange(2 * length)  # not NumPy's: the length may be a symbol (`lpjax.export`)
    if config.clamp_len > 0:
        distance = jnp.clip(distance, -config.clamp_len, config.clamp_len)
    directions = jnp.stack([distance, -distance] if config.bi_data else [distance])
    frequency = 1 / 10000 ** (np.arange(0, config.d_model, 2) / config.d_model)
    angle = directions.astype(jnp.float32)[:, :, None] * jnp.asarray(frequency, jnp.float32)[None, None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1).astype(dtype)


def _attention(
    params: Mapping[str, Any],
    x: Float[Array, "batch length d"],
    positions: Float[Array, "direction two_length d"],
    visible: Bool[Array, "batch length length"],
    other: Bool[Array, "batch length length"] | None,
    num_heads: int,
    dropout: Dropout,
    rate: float,
) -> Float[Array, "batch length d"]:
    """softmax((content + position + segment scores)/√(d/heads))V, head by head."""
    width = x.shape[-1]
    size, wide = width // num_heads, at_least_float32(x.dtype)
    query, key, value = (linear(x, params[name]) for name in ("q", "k", "v"))
    biased = (query + cast(params[name], x.dtype).reshape(1, 1, width) for name in ("r_w_bias", "r_r_bias", "r_s_bias"))
    content, place, segment = (split_heads(x, num_heads) for x in biased)
    relative = split_heads(linear(positions, params["r"]), num_heads)
    table = cast(params["seg_embed"], x.dtype)
    products = functools.partial(jnp.einsum, preferred_element_type=wide)

    grouped = place.reshape(relative.shape[0], -1, *place.shape[1:])
    shifted = products("gbhqd,ghjd->gbhqj", grouped, relative)
    scores = products("bhqd,bhkd->bhqk", content, split_heads(key, num_heads))
    scores = scores + shift_by_query(shifted.reshape(-1, *shifted.shape[2:]))
    if other is not None:
        same, different = jnp.moveaxis(products("bhqd,shd->bhqs", segment, table), -1, 0)[..., None]
        scores = scores + jnp.where(other[:, None], different, same)
    scores = scores * (1 / math.sqrt(size))
    return join_heads(weighted_mean(scores, visible[:, None], split_heads(value, num_heads), dropout, rate))


def head_slice(config: XLNetConfig) -> slice:
    """The tokens that the head for texts reads."""
    return {"mean": slice(None), "first": slice(1)}.get(config.summary_type, slice(-1, None))


def classify(
    params: Mapping[str, Any], config: XLNetConfig, hidden: Float[Array, "batch length hidden"], dropout: Dropout
) -> Float[Array, "batch labels"]:
    """Logits of the head over the hidden states of the tokens in `head_slice`; `params` is the whole tree."""
    x = hidden.mean(1, keepdims=True)  # one token, or for "mean" all of them: padding too, as in training
    x = dropout(x, config.summary_first_dropout)
    if config.summary_use_proj:
        x = linear(x, params["sequence_summary"]["summary"])
    if config.summary_activation:
        x = ACTIVATIONS[config.summary_activation](x)
    return linear(dropout(x, config.summary_last_dropout), params["logits_proj"])[:, 0]


# No "words": its word head predicts permuted words from a second stream, not masked ones.
XLNET = Architecture(
    XLNetConfig,
    name_table,
    forward,
    head_slice,
    {"sequence": classify, "tokens": per_token("classifier"), "spans": per_token("qa_outputs")},
)
