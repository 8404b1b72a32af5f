"""DistilBERT (Sanh et al., arXiv 1910.01108): config, names of its weights, forward pass, heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lpjax.models.config import Activation, Architecture, Layers, ModelConfig, Share, Size
from lpjax.models.layers import ACTIVATIONS, Dropout, Inputs, attention, embed, layer_norm, linear, per_token, unembed
from lpjax.models.names import NameTable, Weight, decoder, dense, embedding, norm

_EPS = 1e-12  # of every layer normalization; not in config.json


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(ModelConfig):
    """Config of a DistilBERT; fields as in its config.json.

    Raises:
        ValueError: on a size below 1, a hidden size that the number of heads does not divide, or an unknown activation.
    """

    model_type: ClassVar[str] = "distilbert"
    class_name: ClassVar[str] = "DistilBert"
    heads_divide: ClassVar[tuple[str, str]] = ("dim", "n_heads")

    dim: Size
    n_layers: Layers
    n_heads: Size
    hidden_dim: Size
    max_position_embeddings: Size = 512
    activation: Activation = "gelu"
    dropout: Share = 0.1
    attention_dropout: Share = 0.1
    seq_classif_dropout: Share = 0.2
    qa_dropout: Share = 0.1

    @property
    def hidden_size(self) -> int:
        """Size of the hidden states."""
        return self.dim

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings

    @property
    def num_token_types(self) -> int:
        return 1


def name_table(config: DistilBertConfig) -> NameTable:
    """The names, paths and shapes of DistilBERT's weights, with the heads that its checkpoints come with."""
    dim, vocab, words = config.dim, config.vocab_size, "vocab_projector"
    base: list[Weight] = [
        *embedding("embeddings.word_embeddings", vocab, dim),
        *embedding("embeddings.position_embeddings", config.max_position_embeddings, dim),
        *norm("embeddings.LayerNorm", dim),
    ]
    for layer in (f"transformer.layer.{i}" for i in range(config.n_layers)):
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            base += dense(f"{layer}.attention.{name}", dim, dim)
        base += norm(f"{layer}.sa_layer_norm", dim)
        base += dense(f"{layer}.ffn.lin1", dim, config.hidden_dim)
        base += dense(f"{layer}.ffn.lin2", config.hidden_dim, dim)
        base += norm(f"{layer}.output_layer_norm", dim)
    heads: list[Weight] = [
        *dense("vocab_transform", dim, dim, group=words),
        *norm("vocab_layer_norm", dim, group=words),
        *decoder(words, dim, vocab, words, "embeddings.word_embeddings.weight", tied=config.tie_word_embeddings),
        *dense("pre_classifier", dim, dim, group="pre_classifier"),
        *dense("classifier", dim, "labels", group="classifier"),
        *dense("qa_outputs", dim, "outputs", group="qa_outputs"),
    ]
    return NameTable(
        prefix="distilbert",
        base=tuple(base),
        heads=tuple(heads),
        renames=((r"(LayerNorm|_norm)\.gamma$", r"\1.weight"), (r"(LayerNorm|_norm)\.beta$", r"\1.bias")),
        ignored=r"(^|\.)embeddings\.position_ids$",
        head_groups={
            "sequence": ("pre_classifier", "classifier"),
            "tokens": ("classifier",),
            "spans": ("qa_outputs",),
            "words": (words,),
        },
    )


def forward(params: Mapping[str, Any], config: DistilBertConfig, inputs: Inputs) -> Float[Array, "batch tokens hidden"]:
    """Hidden states of the last layer, as BERT's but without token types; `params` is the base model's tree."""
    tables, activation = params["embeddings"], ACTIVATIONS[config.activation]
    ids, dtype, dropout = inputs.ids, inputs.dtype, inputs.dropout
    positions = jnp.arange(ids.shape[1])[None]
    x = embed(ids, tables["word_embeddings"], dtype) + embed(positions, tables["position_embeddings"], dtype)
    x = dropout(layer_norm(x, tables["LayerNorm"], _EPS), config.dropout)
    for i in range(config.n_layers):
        layer = params["transformer"]["layer"][str(i)]
        heads, feed = layer["attention"], layer["ffn"]
        key, value = (linear(x, heads[name]) for name in ("k_lin", "v_lin"))
        x = x[:, inputs.tokens] if i == config.n_layers - 1 else x
        query = linear(x, heads["q_lin"])
        context = attention(query, key, value, inputs.mask, config.n_heads, dropout, config.attention_dropout)
        x = layer_norm(x + linear(context, heads["out_lin"]), layer["sa_layer_norm"], _EPS)
        inner = dropout(linear(activation(linear(x, feed["lin1"])), feed["lin2"]), config.dropout)
        x = layer_norm(x + inner, layer["output_layer_norm"], _EPS)
    return x if config.n_layers else x[:, inputs.tokens]


def classify(
    params: Mapping[str, Any], config: DistilBertConfig, hidden: Float[Array, "batch 1 hidden"], dropout: Dropout
) -> Float[Array, "batch labels"]:
    """Logits of the head over the first token, the only one in `hidden`; `params` is the whole tree."""
    x = jax.nn.relu(linear(hidden, params["pre_classifier"]))
    return linear(dropout(x, config.seq_classif_dropout), params["classifier"])[:, 0]


def fill_words(
    params: Mapping[str, Any], config: DistilBertConfig, hidden: Float[Array, "batch places hidden"], dropout: Dropout
) -> Float[Array, "batch places vocab"]:
    """Logits of the word head, without dropout; `params` is the whole tree."""
    x = ACTIVATIONS[config.activation](linear(hidden, params["vocab_transform"]))
    x, decoder = layer_norm(x, params["vocab_layer_norm"], _EPS), params["vocab_projector"]
    return unembed(x, params["distilbert"]["embeddings"]["word_embeddings"], decoder, decoder["bias"])


DISTILBERT = Architecture(
    DistilBertConfig,
    name_table,
    forward,
    lambda _: slice(1),
    {
        "sequence": classify,
        "tokens": per_token("classifier", lambda config: config.dropout),
        "spans": per_token("qa_outputs", lambda config: config.qa_dropout),
        "words": fill_words,
    },
)
