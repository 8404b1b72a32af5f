"""BERT (Devlin et al., arXiv 1810.04805): config, names of its weights, forward pass, heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lpjax.models.config import Activation, Architecture, Layers, ModelConfig, Share, Size
from lpjax.models.layers import ACTIVATIONS, Dropout, Inputs, attention, embed, layer_norm, linear, per_token, unembed
from lpjax.models.names import NameTable, Weight, decoder, dense, embedding, norm


@dataclasses.dataclass(frozen=True)
class BertConfig(ModelConfig):
    """Config of a BERT; fields as in its config.json.

    Raises:
        ValueError: on a size below 1, a hidden size that the number of heads does not divide, or an unknown activation.
    """

    model_type: ClassVar[str] = "bert"
    class_name: ClassVar[str] = "Bert"
    groups: ClassVar[Mapping[str, str]] = {"feed_forward": r"(^|/)(intermediate|layer/\d+/output)/dense/kernel$"}
    unsupported: ClassVar[Mapping[str, Any]] = {
        "position_embedding_type": (("absolute", None), "only absolute positions are supported")
    }

    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    intermediate_size: Size
    max_position_embeddings: Size
    type_vocab_size: Size = 2
    hidden_act: Activation = "gelu"
    layer_norm_eps: Share = 1e-12
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.1
    classifier_dropout: Share | None = None

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings

    @property
    def num_token_types(self) -> int:
        return self.type_vocab_size


def encoder_weights(config: BertConfig) -> tuple[Weight, ...]:
    """The weights of the base model, also of RoBERTa."""
    hidden = config.hidden_size
    return *table_weights(config, hidden), *layer_weights(config), *dense("pooler.dense", hidden, hidden, "pooler")


def table_weights(config: BertConfig, width: int) -> list[Weight]:
    """The weights of the embeddings, with `width` features each."""
    return [
        *embedding("embeddings.word_embeddings", config.vocab_size, width),
        *embedding("embeddings.position_embeddings", config.max_position_embeddings, width),
        *embedding("embeddings.token_type_embeddings", config.type_vocab_size, width),
        *norm("embeddings.LayerNorm", width),
    ]


def layer_weights(config: BertConfig) -> list[Weight]:
    """The weights of the layers."""
    hidden, inner = config.hidden_size, config.intermediate_size
    weights: list[Weight] = []
    for layer in (f"encoder.layer.{i}" for i in range(config.num_hidden_layers)):
        for name in ("query", "key", "value"):
            weights += dense(f"{layer}.attention.self.{name}", hidden, hidden)
        weights += dense(f"{layer}.attention.output.dense", hidden, hidden)
        weights += norm(f"{layer}.attention.output.LayerNorm", hidden)
        weights += dense(f"{layer}.intermediate.dense", hidden, inner)
        weights += dense(f"{layer}.output.dense", inner, hidden)
        weights += norm(f"{layer}.output.LayerNorm", hidden)
    return weights


RENAMES = ((r"(LayerNorm|layer_norm)\.gamma$", r"\1.weight"), (r"(LayerNorm|layer_norm)\.beta$", r"\1.bias"))
WORDS = "embeddings.word_embeddings.weight"
IGNORED = r"(^|\.)embeddings\.(position_ids|token_type_ids)$"


def name_table(config: BertConfig) -> NameTable:
    """The names, paths and shapes of BERT's weights, with the heads that its checkpoints come with."""
    hidden, vocab, words = config.hidden_size, config.vocab_size, "cls.predictions"
    heads: list[Weight] = [
        Weight(f"{words}.bias", "cls/predictions/bias", (vocab,), group=words),
        *dense(f"{words}.transform.dense", hidden, hidden, group=words),
        *norm(f"{words}.transform.LayerNorm", hidden, group=words),
        *decoder(f"{words}.decoder", hidden, vocab, words, WORDS, f"{words}.bias", tied=config.tie_word_embeddings),
        *dense("cls.seq_relationship", hidden, 2, group="cls.seq_relationship"),
        *dense("classifier", hidden, "labels", group="classifier"),
        *dense("qa_outputs", hidden, "outputs", group="qa_outputs"),
    ]
    return NameTable(
        prefix="bert",
        base=encoder_weights(config),
        heads=tuple(heads),
        renames=RENAMES,
        ignored=IGNORED,
        head_groups={
            "sequence": ("pooler", "classifier"),
            "tokens": ("classifier",),
            "spans": ("qa_outputs",),
            "words": (words,),
        },
    )


def forward(
    params: Mapping[str, Any], config: BertConfig, inputs: Inputs, positions: Int[Array, "#batch length"] | None = None
) -> Float[Array, "batch tokens hidden"]:
    """Hidden states of the last layer; `params` is the base model's tree, and positions count from 0 by default."""
    return run_layers(params, config, inputs, embed_tokens(params, config, inputs, positions))


def embed_tokens(
    params: Mapping[str, Any], config: BertConfig, inputs: Inputs, positions: Int[Array, "#batch length"] | None = None
) -> Float[Array, "batch length width"]:
    """The sum of the embeddings of words, token types and positions, normalized; arguments as for `forward`."""
    ids, dtype, tables = inputs.ids, inputs.dtype, params["embeddings"]
    if positions is None:
        positions = jnp.arange(ids.shape[1])[None]
    types = jnp.zeros_like(ids) if inputs.token_types is None else inputs.token_types
    x = embed(ids, tables["word_embeddings"], dtype) + embed(types, tables["token_type_embeddings"], dtype)
    x = x + embed(positions, tables["position_embeddings"], dtype)
    return inputs.dropout(layer_norm(x, tables["LayerNorm"], config.layer_norm_eps), config.hidden_dropout_prob)


def run_layers(
    params: Mapping[str, Any], config: BertConfig, inputs: Inputs, x: Float[Array, "batch length hidden"]
) -> Float[Array, "batch tokens hidden"]:
    """Hidden states of the last layer, from the input x of the first; `params` is the base model's tree."""
    eps, activation, rate = config.layer_norm_eps, ACTIVATIONS[config.hidden_act], config.hidden_dropout_prob
    dropout = inputs.dropout
    for i in range(config.num_hidden_layers):
        layer = params["encoder"]["layer"][str(i)]
        heads, merge = layer["attention"]["self"], layer["attention"]["output"]
        key, value = (linear(x, heads[name]) for name in ("key", "value"))
        x = x[:, inputs.tokens] if i == config.num_hidden_layers - 1 else x
        query = linear(x, heads["query"])
        drop = config.attention_probs_dropout_prob
        context = attention(query, key, value, inputs.mask, config.num_attention_heads, dropout, drop)
        x = layer_norm(x + dropout(linear(context, merge["dense"]), rate), merge["LayerNorm"], eps)
        inner = activation(linear(x, layer["intermediate"]["dense"]))
        inner = dropout(linear(inner, layer["output"]["dense"]), rate)
        x = layer_norm(x + inner, layer["output"]["LayerNorm"], eps)
    return x if config.num_hidden_layers else x[:, inputs.tokens]


def classify(
    params: Mapping[str, Any], config: BertConfig, hidden: Float[Array, "batch 1 hidden"], dropout: Dropout
) -> Float[Array, "batch labels"]:
    """Logits of the head over the pooled first token, the only one in `hidden`; `params` is the whole tree."""
    pooled = jnp.tanh(linear(hidden, params["bert"]["pooler"]["dense"]))
    return linear(dropout(pooled, classifier_dropout(config)), params["classifier"])[:, 0]


def classifier_dropout(config: BertConfig) -> float:
    """Dropout rate of the classifier; by default that of the hidden states."""
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def fill_words(
    params: Mapping[str, Any], config: BertConfig, hidden: Float[Array, "batch places hidden"], dropout: Dropout
) -> Float[Array, "batch places vocab"]:
    """Logits of the word head, without dropout; `params` is the whole tree."""
    head = params["cls"]["predictions"]
    x = ACTIVATIONS[config.hidden_act](linear(hidden, head["transform"]["dense"]))
    x = layer_norm(x, head["transform"]["LayerNorm"], config.layer_norm_eps)
    return unembed(x, params["bert"]["embeddings"]["word_embeddings"], head.get("decoder", {}), head["bias"])


BERT = Architecture(
    BertConfig,
    name_table,
    forward,
    lambda _: slice(1),
    {
        "sequence": classify,
        "tokens": per_token("classifier", classifier_dropout),
        "spans": per_token("qa_outputs"),
        "words": fill_words,
    },
)
