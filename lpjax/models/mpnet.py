"""MPNet (Song et al., arXiv 2004.09297), content stream only: config, names of its weights, forward pass, heads.

Attention scores have a bias for the bucket of the relative position, as in T5 (Raffel et al., arXiv 1910.10683, §2.1);
all layers share the biases. Positions skip padding, as in RoBERTa.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lpjax.models import bert
from lpjax.models.config import Activation, Architecture, Layers, ModelConfig, Share, Size
from lpjax.models.layers import (
    ACTIVATIONS,
    Dropout,
    Inputs,
    attention,
    embed,
    layer_norm,
    linear,
    per_token,
    shift_by_query,
)
from lpjax.models.names import NameTable, Weight, dense, embedding, norm
from lpjax.models.roberta import (
    HEAD_GROUPS,
    head_weights,
    positions_after,
    too_few_positions,
    two_layer_logits,
    word_logits,
)

_PADDING = 1  # id and position of padding, whatever `pad_token_id` of config.json says
_STARTS = np.array([1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91])
"""Smallest distances of buckets 1 to 15. From bucket 8 on they grow by a factor √2, rounded up; bucket 16 would begin
at 128."""
_BUCKETS = 1 + len(_STARTS)  # in each direction


@dataclasses.dataclass(frozen=True)
class MPNetConfig(ModelConfig):
    """Config of an MPNet; fields as in its config.json.

    Raises:
        ValueError: on a size below 1, a hidden size that the number of heads does not divide, an unknown activation, or
            if padding leaves no position for a token.
    """

    model_type: ClassVar[str] = "mpnet"
    class_name: ClassVar[str] = "MPNet"
    has_flax_class: ClassVar[bool] = False
    groups: ClassVar[Mapping[str, str]] = bert.BertConfig.groups
    unsupported: ClassVar[Mapping[str, Any]] = {
        "relative_attention_num_buckets": ((2 * _BUCKETS,), "positions are divided into 32 buckets whatever it is")
    }

    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    intermediate_size: Size
    max_position_embeddings: Size = 512
    hidden_act: Activation = "gelu"
    layer_norm_eps: Share = 1e-12
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.1

    @classmethod
    def conflicts(cls, values: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
        yield from super().conflicts(values, data)
        positions = values.get("max_position_embeddings")
        if positions is not None:
            yield from too_few_positions(positions, _PADDING)

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings - _PADDING - 1

    @property
    def num_token_types(self) -> int:
        return 1

    @property
    def padding_id(self) -> int:
        return _PADDING


def name_table(config: MPNetConfig) -> NameTable:
    """The names, paths and shapes of MPNet's weights, with the heads that its checkpoints come with."""
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    base: list[Weight] = [
        *embedding("embeddings.word_embeddings", vocab, hidden),
        *embedding("embeddings.position_embeddings", config.max_position_embeddings, hidden),
        *norm("embeddings.LayerNorm", hidden),
    ]
    for layer in (f"encoder.layer.{i}" for i in range(config.num_hidden_layers)):
        for name in ("q", "k", "v", "o"):
            base += dense(f"{layer}.attention.attn.{name}", hidden, hidden)
        base += norm(f"{layer}.attention.LayerNorm", hidden)
        base += dense(f"{layer}.intermediate.dense", hidden, inner)
        base += dense(f"{layer}.output.dense", inner, hidden)
        base += norm(f"{layer}.output.LayerNorm", hidden)
    base += embedding("encoder.relative_attention_bias", 2 * _BUCKETS, config.num_attention_heads)
    base += dense("pooler.dense", hidden, hidden, group="pooler")
    return NameTable(
        prefix="mpnet",
        base=tuple(base),
        heads=head_weights(hidden, vocab, config.tie_word_embeddings),
        renames=bert.RENAMES,
        ignored=bert.IGNORED,
        head_groups=HEAD_GROUPS,
    )


def forward(params: Mapping[str, Any], config: MPNetConfig, inputs: Inputs) -> Float[Array, "batch tokens hidden"]:
    """Hidden states of the last layer; `params` is the base model's tree."""
    eps, activation, rate = config.layer_norm_eps, ACTIVATIONS[config.hidden_act], config.hidden_dropout_prob
    ids, dtype, dropout, tables = inputs.ids, inputs.dtype, inputs.dropout, params["embeddings"]
    positions = positions_after(ids, _PADDING)
    x = embed(ids, tables["word_embeddings"], dtype) + embed(positions, tables["position_embeddings"], dtype)
    x = dropout(layer_norm(x, tables["LayerNorm"], eps), rate)
    bias = _position_bias(params["encoder"]["relative_attention_bias"], ids.shape[1], dtype)
    for i in range(config.num_hidden_layers):
        layer = params["encoder"]["layer"][str(i)]
        block = layer["attention"]
        heads = block["attn"]
        key, value = (linear(x, heads[name]) for name in ("k", "v"))
        if i == config.num_hidden_layers - 1:
            x, bias = x[:, inputs.tokens], bias[:, :, inputs.tokens]
        query, drop = linear(x, heads["q"]), config.attention_probs_dropout_prob
        context = attention(query, key, value, inputs.mask, config.num_attention_heads, dropout, drop, bias)
        x = layer_norm(x + dropout(linear(context, heads["o"]), rate), block["LayerNorm"], eps)
        inner = activation(linear(x, layer["intermediate"]["dense"]))
        inner = dropout(linear(inner, layer["output"]["dense"]), rate)
        x = layer_norm(x + inner, layer["output"]["LayerNorm"], eps)
    return x


def _position_bias(params: Mapping[str, Any], length: int, dtype: Any) -> Float[Array, "1 heads length length"]:
    """The bias of the score of query q and key k, from the bucket of k − q."""
    distance = jnp.arange(2 * length) - length  # not NumPy's: the length may be a symbol (`lpjax.export`)
    bucket = jnp.sum(jnp.abs(distance)[:, None] >= jnp.asarray(_STARTS, distance.dtype)[None], axis=1)
    bucket = jnp.where(distance > 0, bucket + _BUCKETS, bucket)
    biases = jnp.moveaxis(embed(bucket[None], params, dtype), 2, 1)[:, :, None]
    return shift_by_query(jnp.broadcast_to(biases, (*biases.shape[:2], length, 2 * length)))


def classify(
    params: Mapping[str, Any], config: MPNetConfig, hidden: Float[Array, "batch 1 hidden"], dropout: Dropout
) -> Float[Array, "batch labels"]:
    """Logits of the head over the first token, the only one in `hidden`; `params` is the whole tree."""
    return two_layer_logits(params["classifier"], hidden, dropout, config.hidden_dropout_prob, jnp.tanh)


def fill_words(
    params: Mapping[str, Any], config: MPNetConfig, hidden: Float[Array, "batch places hidden"], dropout: Dropout
) -> Float[Array, "batch places vocab"]:
    """Logits of the word head, always with gelu, without dropout; `params` is the whole tree."""
    return word_logits(params["lm_head"], params["mpnet"]["embeddings"], hidden, config.layer_norm_eps)


MPNET = Architecture(
    MPNetConfig,
    name_table,
    forward,
    lambda _: slice(1),
    {
        "sequence": classify,
        "tokens": per_token("classifier", lambda config: config.hidden_dropout_prob),
        "spans": per_token("qa_outputs"),
        "words": fill_words,
    },
)
