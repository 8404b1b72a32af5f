"""BERT's encoder (Devlin et al., arXiv 1810.04805): config, names of its weights, and the forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lpjax.models.config import ConfigReader
from lpjax.models.layers import ACTIVATIONS, attention, embed, layer_norm, linear
from lpjax.models.names import NameTable, Weight, dense, embedding, norm


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """What the forward pass needs of a BERT's config.json; hashable, so static under jit.

    Raises:
        ValueError: on a size below 1, a hidden size that the heads do not divide, or an unknown activation.
    """

    model_type: ClassVar[str] = "bert"

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        _read(dataclasses.asdict(self)).finish()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BertConfig:
        """The config in the object of a config.json; keys that do not change the hidden states are not read.

        Raises:
            ValueError: listing every key that is missing, of a wrong type or value, or that asks for what
                lpjax does not compute (a decoder, relative positions, pruned heads, quantization).
        """
        reader = _read(data)
        reader.refuse("model_type", ("bert",), "another kind of model")
        reader.refuse("position_embedding_type", ("absolute", None), "only absolute positions are supported")
        reader.refuse("is_decoder", (False, None), "only encoders are supported")
        reader.refuse("add_cross_attention", (False, None), "only encoders are supported")
        reader.refuse("pruned_heads", ({}, [], None), "pruned heads are not supported")
        reader.refuse("quantization_config", (None,), "quantized checkpoints are not supported")
        code = data.get("auto_map")
        if code and (not isinstance(code, Mapping) or "AutoModel" in code):
            reader.fault("`auto_map` names code of its own for the model, which lpjax does not run")
        reader.finish()
        return cls(**{field.name: data[field.name] for field in dataclasses.fields(cls) if field.name in data})

    def to_json(self) -> dict[str, Any]:
        """The object of a config.json that `from_json` reads this config from."""
        return {"model_type": self.model_type, **dataclasses.asdict(self)}


def _read(data: Mapping[str, Any]) -> ConfigReader:
    reader = ConfigReader(data)
    for key in ("vocab_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"):
        reader.size(key)
    reader.size("type_vocab_size", 2)
    hidden, heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    if hidden and heads and hidden % heads:
        reader.fault(f"`hidden_size` is {hidden}, expected a multiple of `num_attention_heads`, {heads}")
    act = reader.get("hidden_act", str, "gelu")
    if act is not None and act not in ACTIVATIONS:
        reader.fault(f"`hidden_act` is {act!r}, expected one of {', '.join(ACTIVATIONS)}")
    eps = reader.get("layer_norm_eps", float, 1e-12)
    if eps is not None and not 0 <= eps < 1:
        reader.fault(f"`layer_norm_eps` is {eps}, expected 0 ≤ eps < 1")
    return reader


def name_table(config: BertConfig) -> NameTable:
    """The names, paths and shapes of BERT's weights, with the heads that its checkpoints come with."""
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    base: list[Weight] = [
        *embedding("embeddings.word_embeddings", vocab, hidden),
        *embedding("embeddings.position_embeddings", config.max_position_embeddings, hidden),
        *embedding("embeddings.token_type_embeddings", config.type_vocab_size, hidden),
        *norm("embeddings.LayerNorm", hidden),
    ]
    for layer in (f"encoder.layer.{i}" for i in range(config.num_hidden_layers)):
        for name in ("query", "key", "value"):
            base += dense(f"{layer}.attention.self.{name}", hidden, hidden)
        base += dense(f"{layer}.attention.output.dense", hidden, hidden)
        base += norm(f"{layer}.attention.output.LayerNorm", hidden)
        base += dense(f"{layer}.intermediate.dense", hidden, inner)
        base += dense(f"{layer}.output.dense", inner, hidden)
        base += norm(f"{layer}.output.LayerNorm", hidden)
    base += dense("pooler.dense", hidden, hidden, group="pooler")

    words = "cls.predictions"
    heads: list[Weight] = [
        Weight(f"{words}.bias", "cls/predictions/bias", (vocab,), group=words),
        *dense(f"{words}.transform.dense", hidden, hidden, group=words),
        *norm(f"{words}.transform.LayerNorm", hidden, group=words),
        # Files repeat the two tied weights of the masked-word head or leave them out.
        Weight(
            f"{words}.decoder.weight",
            "cls/predictions/decoder/kernel",
            (hidden, vocab),
            transposed=True,
            group=words,
            tied_to="embeddings.word_embeddings.weight",
        ),
        Weight(
            f"{words}.decoder.bias",
            "cls/predictions/decoder/bias",
            (vocab,),
            group=words,
            tied_to=f"{words}.bias",
        ),
        *dense("cls.seq_relationship", hidden, 2, group="cls.seq_relationship"),
        *dense("classifier", hidden, "labels", group="classifier"),
        *dense("qa_outputs", hidden, "outputs", group="qa_outputs"),
    ]
    return NameTable(
        prefix="bert",
        base=tuple(base),
        heads=tuple(heads),
        renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
        ignored=r"(^|\.)embeddings\.(position_ids|token_type_ids)$",
    )


def forward(
    params: Mapping[str, Any],
    config: BertConfig,
    input_ids: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    token_type_ids: Int[Array, "batch length"],
    dtype: Any,
) -> Float[Array, "batch length hidden"]:
    """Hidden states of the last layer; `params` is the base model's tree."""
    eps, activation = config.layer_norm_eps, ACTIVATIONS[config.hidden_act]

    tables = params["embeddings"]
    positions = jnp.arange(input_ids.shape[1])[None]
    x = embed(input_ids, tables["word_embeddings"], dtype) + embed(
        token_type_ids, tables["token_type_embeddings"], dtype
    )
    x = layer_norm(x + embed(positions, tables["position_embeddings"], dtype), tables["LayerNorm"], eps)

    for i in range(config.num_hidden_layers):
        layer = params["encoder"]["layer"][str(i)]
        heads, merge = layer["attention"]["self"], layer["attention"]["output"]
        query, key, value = (linear(x, heads[name]) for name in ("query", "key", "value"))
        context = attention(query, key, value, mask, config.num_attention_heads)
        x = layer_norm(x + linear(context, merge["dense"]), merge["LayerNorm"], eps)
        inner = activation(linear(x, layer["intermediate"]["dense"]))
        x = layer_norm(x + linear(inner, layer["output"]["dense"]), layer["output"]["LayerNorm"], eps)
    return x


__all__ = ["BertConfig", "forward", "name_table"]
