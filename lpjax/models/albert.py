"""ALBERT (Lan et al., arXiv 1909.11942): config, names of its weights, forward pass, heads.

Its layers are BERT's, but share their weights: each group of layers is one set of matrices, used several times. Its
embeddings are narrower than the hidden states, and are projected to their size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from lpjax.models import bert
from lpjax.models.config import Activation, Architecture, Layers, ModelConfig, Share, Size
from lpjax.models.layers import ACTIVATIONS, Dropout, Inputs, attention, embed, layer_norm, linear, per_token, unembed
from lpjax.models.names import NameTable, Weight, decoder, dense, embedding, norm


@dataclasses.dataclass(frozen=True)
class AlbertConfig(ModelConfig):
    """Config of an ALBERT; fields as in its config.json.

    Raises:
        ValueError: on a size below 1, a hidden size that the number of heads does not divide, or an unknown activation.
    """

    model_type: ClassVar[str] = "albert"
    class_name: ClassVar[str] = "Albert"
    unsupported: ClassVar[Mapping[str, Any]] = bert.BertConfig.unsupported

    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    intermediate_size: Size
    embedding_size: Size = 128
    num_hidden_groups: Layers = 1
    inner_group_num: Layers = 1
    max_position_embeddings: Size = 512
    type_vocab_size: Size = 2
    hidden_act: Activation = "gelu_new"
    layer_norm_eps: Share = 1e-12
    hidden_dropout_prob: Share = 0.0
    attention_probs_dropout_prob: Share = 0.0
    classifier_dropout_prob: Share = 0.1

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings

    @property
    def num_token_types(self) -> int:
        return self.type_vocab_size


def name_table(config: AlbertConfig) -> NameTable:
    """The names, paths and shapes of ALBERT's weights, with the heads that its checkpoints come with."""
    hidden, inner, narrow, vocab = (
        config.hidden_size,
        config.intermediate_size,
        config.embedding_size,
        config.vocab_size,
    )
    base: list[Weight] = [
        *embedding("embeddings.word_embeddings", vocab, narrow),
        *embedding("embeddings.position_embeddings", config.max_position_embeddings, narrow),
        *embedding("embeddings.token_type_embeddings", config.type_vocab_size, narrow),
        *norm("embeddings.LayerNorm", narrow),
        *dense("encoder.embedding_hidden_mapping_in", narrow, hidden),
    ]
    groups = (f"encoder.albert_layer_groups.{i}" for i in range(config.num_hidden_groups))
    for layer in (f"{group}.albert_layers.{i}" for group in groups for i in range(config.inner_group_num)):
        base += norm(f"{layer}.full_layer_layer_norm", hidden)
        for name in ("query", "key", "value", "dense"):
            base += dense(f"{layer}.attention.{name}", hidden, hidden)
        base += norm(f"{layer}.attention.LayerNorm", hidden)
        base += dense(f"{layer}.ffn", hidden, inner)
        base += dense(f"{layer}.ffn_output", inner, hidden)
    words = "predictions"
    heads: list[Weight] = [
        Weight(f"{words}.bias", f"{words}/bias", (vocab,), group=words),
        *norm(f"{words}.LayerNorm", narrow, group=words),
        *dense(f"{words}.dense", hidden, narrow, group=words),
        *decoder(
            f"{words}.decoder", narrow, vocab, words, bert.WORDS, f"{words}.bias", tied=config.tie_word_embeddings
        ),
        *dense("sop_classifier.classifier", hidden, 2, group="sop_classifier"),
        *dense("classifier", hidden, "labels", group="classifier"),
        *dense("qa_outputs", hidden, "outputs", group="qa_outputs"),
    ]
    return NameTable(
        prefix="albert",
        base=(*base, *dense("pooler", hidden, hidden, group="pooler")),
        heads=tuple(heads),
        renames=bert.RENAMES,
        ignored=bert.IGNORED,
        head_groups={
            "sequence": ("pooler", "classifier"),
            "tokens": ("classifier",),
            "spans": ("qa_outputs",),
            "words": (words,),
        },
    )


def forward(params: Mapping[str, Any], config: AlbertConfig, inputs: Inputs) -> Float[Array, "batch tokens hidden"]:
    """Hidden states of the last layer; `params` is the base model's tree."""
    eps, activation, rate = config.layer_norm_eps, ACTIVATIONS[config.hidden_act], config.hidden_dropout_prob
    ids, dtype, dropout, tables = inputs.ids, inputs.dtype, inputs.dropout, params["embeddings"]
    types = jnp.zeros_like(ids) if inputs.token_types is None else inputs.token_types
    x = embed(ids, tables["word_embeddings"], dtype) + embed(types, tables["token_type_embeddings"], dtype)
    x = x + embed(jnp.arange(ids.shape[1])[None], tables["position_embeddings"], dtype)
    x = dropout(layer_norm(x, tables["LayerNorm"], eps), rate)
    x = linear(x, params["encoder"]["embedding_hidden_mapping_in"])

    layers = _layers_in_order(params["encoder"]["albert_layer_groups"], config)
    for i, layer in enumerate(layers):
        heads = layer["attention"]
        key, value = (linear(x, heads[name]) for name in ("key", "value"))
        x = x[:, inputs.tokens] if i == len(layers) - 1 else x
        query = linear(x, heads["query"])
        drop = config.attention_probs_dropout_prob
        context = attention(query, key, value, inputs.mask, config.num_attention_heads, dropout, drop)
        x = layer_norm(x + dropout(linear(context, heads["dense"]), rate), heads["LayerNorm"], eps)
        inner = linear(activation(linear(x, layer["ffn"])), layer["ffn_output"])
        x = layer_norm(x + inner, layer["full_layer_layer_norm"], eps)
    return x


def _layers_in_order(groups: Mapping[str, Any], config: AlbertConfig) -> list[Mapping[str, Any]]:
    """The weights of each layer; all groups are used by the same number of layers."""
    each = config.num_hidden_layers / config.num_hidden_groups
    used = (groups[str(int(i / each))]["albert_layers"] for i in range(config.num_hidden_layers))
    return [group[str(inner)] for group in used for inner in range(config.inner_group_num)]


def classify(
    params: Mapping[str, Any], config: AlbertConfig, hidden: Float[Array, "batch 1 hidden"], dropout: Dropout
) -> Float[Array, "batch labels"]:
    """Logits of the head over the pooled first token, the only one in `hidden`; `params` is the whole tree."""
    pooled = jnp.tanh(linear(hidden, params["albert"]["pooler"]))
    return linear(dropout(pooled, config.classifier_dropout_prob), params["classifier"])[:, 0]


def fill_words(
    params: Mapping[str, Any], config: AlbertConfig, hidden: Float[Array, "batch places hidden"], dropout: Dropout
) -> Float[Array, "batch places vocab"]:
    """Logits of the word head, without dropout; `params` is the whole tree."""
    head = params["predictions"]
    x = ACTIVATIONS[config.hidden_act](linear(hidden, head["dense"]))
    x = layer_norm(x, head["LayerNorm"], config.layer_norm_eps)
    return unembed(x, params["albert"]["embeddings"]["word_embeddings"], head.get("decoder", {}), head["bias"])


ALBERT = Architecture(
    AlbertConfig,
    name_table,
    forward,
    lambda _: slice(1),
    {
        "sequence": classify,
        "tokens": per_token("classifier", lambda config: config.classifier_dropout_prob),
        "spans": per_token("qa_outputs"),
        "words": fill_words,
    },
)
