"""ModernBERT (Warner et al., arXiv 2412.13663): config, names of its weights, forward pass, heads.

Layers are normalized before attention and before the feed-forward part, whose inner activations are gated (GeGLU,
Shazeer, arXiv 2002.05202). Positions are rotary (Su et al., arXiv 2104.09864). Every n-th layer attends to all tokens,
the others to nearby ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lpjax.models.config import Activation, Architecture, Flag, Layers, ModelConfig, Rule, Share, Size, one_of
from lpjax.models.layers import (
    ACTIVATIONS,
    Dropout,
    Inputs,
    at_least_float32,
    embed,
    join_heads,
    layer_norm,
    linear,
    split_heads,
    unembed,
    weighted_mean,
)
from lpjax.models.names import NameTable, Weight, decoder, dense, embedding, norm

_FULL, _SLIDING = "full_attention", "sliding_attention"
_THETAS = {_FULL: "global_rope_theta", _SLIDING: "local_rope_theta"}
_Theta = Annotated[
    float, Rule("a number above 0", lambda value: type(value) in (int, float) and value > 0 and math.isfinite(value))
]


@dataclasses.dataclass(frozen=True)
class ModernBertConfig(ModelConfig):
    """Config of a ModernBERT; fields as in its config.json of transformers 4.

    transformers 5 writes `layer_types` in place of `global_attn_every_n_layers`, and `rope_parameters` in place of the
    two thetas. These are read if the old keys can express them, and written, too.

    Raises:
        ValueError: on a size below 1, a hidden size that the number of heads does not divide into even sizes, or an
            unknown activation or pooling.
    """

    model_type: ClassVar[str] = "modernbert"
    class_name: ClassVar[str] = "ModernBert"
    has_flax_class: ClassVar[bool] = False
    unsupported: ClassVar[Mapping[str, Any]] = {
        "rope_scaling": ((None,), "only rotary positions without scaling are supported")
    }

    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    intermediate_size: Size
    max_position_embeddings: Size = 8192
    hidden_activation: Activation = "gelu"
    norm_eps: Share = 1e-5
    norm_bias: Flag = False
    attention_bias: Flag = False
    mlp_bias: Flag = False
    decoder_bias: Flag = True
    classifier_bias: Flag = False
    classifier_activation: Activation = "gelu"
    classifier_pooling: Annotated[str, one_of(("cls", "mean"))] = "cls"
    global_attn_every_n_layers: Size = 3
    local_attention: Size = 128
    global_rope_theta: _Theta = 160000.0
    local_rope_theta: _Theta = 10000.0
    embedding_dropout: Share = 0.0
    attention_dropout: Share = 0.0
    mlp_dropout: Share = 0.0
    classifier_dropout: Share = 0.0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return super().from_json({**data, **_in_old_keys(data)})

    @classmethod
    def conflicts(cls, values: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
        yield from super().conflicts(values, data)
        hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
        if hidden and heads and hidden % heads == 0 and hidden // heads % 2:
            yield f"`hidden_size` / `num_attention_heads` is {hidden // heads}, expected an even number"
        layers, every = values.get("num_hidden_layers"), values.get("global_attn_every_n_layers")
        types = data.get("layer_types")
        if types is not None and layers and every and types != _layer_types(layers, every):
            yield (
                f"`layer_types` is {types!r}, expected {_FULL!r} for the first and every n-th of {layers} layers and "
                f"{_SLIDING!r} for the others"
            )
        ropes = data.get("rope_parameters")
        if ropes is not None and not (isinstance(ropes, Mapping) and all(map(_is_plain, ropes, ropes.values()))):
            yield (
                f"`rope_parameters` is {ropes!r}, expected a `rope_theta` of `rope_type` 'default' for {_FULL!r} and "
                f"{_SLIDING!r}"
            )

    def to_json(self) -> dict[str, Any]:
        ropes = {kind: {"rope_type": "default", "rope_theta": getattr(self, key)} for kind, key in _THETAS.items()}
        types = _layer_types(self.num_hidden_layers, self.global_attn_every_n_layers)
        return {**super().to_json(), "layer_types": types, "rope_parameters": ropes}

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings

    @property
    def num_token_types(self) -> int:
        return 1


def _layer_types(layers: int, every: int) -> list[str]:
    return [_SLIDING if i % every else _FULL for i in range(layers)]


def _is_plain(kind: Any, rope: Any) -> bool:
    """Whether an entry of `rope_parameters` means rotary positions without scaling."""
    known = isinstance(rope, Mapping) and rope.keys() <= {"rope_type", "rope_theta"}
    return kind in _THETAS and (rope is None or (known and rope.get("rope_type", "default") == "default"))


def _in_old_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """`layer_types` and `rope_parameters` in the keys of transformers 4, as far as these can express them."""
    translated: dict[str, Any] = {}
    ropes, types = data.get("rope_parameters"), data.get("layer_types")
    for kind, key in _THETAS.items():
        rope = ropes.get(kind) if isinstance(ropes, Mapping) else None
        if isinstance(rope, Mapping) and "rope_theta" in rope:
            translated[key] = rope["rope_theta"]
    if isinstance(types, list):
        declared = data.get("global_attn_every_n_layers", 3)
        candidates = [declared if type(declared) is int and declared > 0 else 3, *range(1, len(types) + 1)]
        every = next((n for n in candidates if _layer_types(len(types), n) == types), None)
        translated |= {} if every is None else {"global_attn_every_n_layers": every}
    return translated


def name_table(config: ModernBertConfig) -> NameTable:
    """The names, paths and shapes of ModernBERT's weights, with the heads that its checkpoints come with."""
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    table = "embeddings.tok_embeddings"
    base: list[Weight] = [
        *embedding(table, vocab, hidden),
        *norm("embeddings.norm", hidden, bias=config.norm_bias),
    ]
    for i in range(config.num_hidden_layers):
        layer = f"layers.{i}"
        # The embeddings are normalized already.
        base += norm(f"{layer}.attn_norm", hidden, bias=config.norm_bias) if i else ()
        base += dense(f"{layer}.attn.Wqkv", hidden, 3 * hidden, bias=config.attention_bias)
        base += dense(f"{layer}.attn.Wo", hidden, hidden, bias=config.attention_bias)
        base += norm(f"{layer}.mlp_norm", hidden, bias=config.norm_bias)
        base += dense(f"{layer}.mlp.Wi", hidden, 2 * inner, bias=config.mlp_bias)
        base += dense(f"{layer}.mlp.Wo", inner, hidden, bias=config.mlp_bias)
    base += norm("final_norm", hidden, bias=config.norm_bias)
    kernel, bias = decoder("decoder", hidden, vocab, "decoder", f"{table}.weight", tied=config.tie_word_embeddings)
    heads: list[Weight] = [
        *dense("head.dense", hidden, hidden, group="head", bias=config.classifier_bias),
        *norm("head.norm", hidden, group="head", bias=config.norm_bias),
        *((kernel, bias) if config.decoder_bias else (kernel,)),
        *dense("classifier", hidden, "labels", group="classifier"),
    ]
    return NameTable(
        prefix="model",
        base=tuple(base),
        heads=tuple(heads),
        head_groups={
            "sequence": ("head", "classifier"),
            "tokens": ("head", "classifier"),
            "spans": ("head", "classifier"),
            "words": ("head", "decoder"),
        },
    )


def forward(params: Mapping[str, Any], config: ModernBertConfig, inputs: Inputs) -> Float[Array, "batch tokens hidden"]:
    """Hidden states of the last layer; `params` is the base model's tree."""
    eps, activation, dropout = config.norm_eps, ACTIVATIONS[config.hidden_activation], inputs.dropout
    tables, tokens = params["embeddings"], slice(None)
    x = layer_norm(embed(inputs.ids, tables["tok_embeddings"], inputs.dtype), tables["norm"], eps)
    x = dropout(x, config.embedding_dropout)
    places = jnp.arange(inputs.ids.shape[1])
    near = jnp.abs(places[:, None] - places[None]) <= config.local_attention // 2
    for i in range(config.num_hidden_layers):
        layer = params["layers"][str(i)]
        local = i % config.global_attn_every_n_layers != 0
        normed = layer_norm(x, layer["attn_norm"], eps) if i else x
        projected = linear(normed, layer["attn"]["Wqkv"])
        if i == config.num_hidden_layers - 1:
            tokens = inputs.tokens
            x = x[:, tokens]
        visible = inputs.mask[:, None] & near[None, tokens] if local else inputs.mask[:, None]
        theta = config.local_rope_theta if local else config.global_rope_theta
        context = _attention(projected, places, theta, visible, tokens, config, dropout)
        x = x + dropout(linear(context, layer["attn"]["Wo"]), config.attention_dropout)
        inner = linear(layer_norm(x, layer["mlp_norm"], eps), layer["mlp"]["Wi"])
        inner = activation(inner[..., : config.intermediate_size]) * inner[..., config.intermediate_size :]
        x = x + linear(dropout(inner, config.mlp_dropout), layer["mlp"]["Wo"])
    return layer_norm(x, params["final_norm"], eps)


def _attention(
    projected: Float[Array, "batch length three_d"],
    places: Any,
    theta: float,
    visible: Bool[Array, "#batch #queries length"],
    tokens: slice,
    config: ModernBertConfig,
    dropout: Dropout,
) -> Float[Array, "batch queries d"]:
    """softmax(QKᵀ/√(d/heads))V, head by head, of the queries of `tokens`; queries and keys are rotated."""
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    parts = (projected[..., start : start + width] for start in (0, width, 2 * width))
    query, key, value = (split_heads(part, config.num_attention_heads) for part in parts)
    wide = at_least_float32(projected.dtype)
    frequency = jnp.asarray(1 / theta ** (np.arange(0, size, 2) / size), wide)
    angle = places.astype(wide)[:, None] * frequency[None]
    query, key = _rotated(query[:, :, tokens], angle[tokens]), _rotated(key, angle)
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=wide) * (1 / math.sqrt(size))
    return join_heads(weighted_mean(scores, visible[:, None], value, dropout, config.attention_dropout))


def _rotated(
    x: Float[Array, "batch heads length size"], angle: Float[Array, "length half"]
) -> Float[Array, "batch heads length size"]:
    """x with entries i and i + size/2 of each token rotated by its i-th angle."""
    half = angle.shape[-1]
    first, second = (part.astype(angle.dtype) for part in (x[..., :half], x[..., half:]))
    cos, sin = jnp.cos(angle)[None, None], jnp.sin(angle)[None, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def head_slice(config: ModernBertConfig) -> slice:
    """The tokens that the head for texts reads."""
    return slice(1) if config.classifier_pooling == "cls" else slice(None)


def pool(
    config: ModernBertConfig, hidden: Float[Array, "batch tokens hidden"], mask: Bool[Array, "batch tokens"]
) -> Float[Array, "batch 1 hidden"]:
    """The first token, then the only one in `hidden`, or the mean of the tokens that are not padding."""
    if config.classifier_pooling == "cls":
        return hidden
    wide = jnp.where(mask[..., None], hidden.astype(at_least_float32(hidden.dtype)), 0)
    count = jnp.maximum(mask.sum(axis=1), 1).astype(wide.dtype)
    return (wide.sum(axis=1, keepdims=True) / count[:, None, None]).astype(hidden.dtype)


def _transformed(
    params: Mapping[str, Any], config: ModernBertConfig, hidden: Float[Array, "batch places hidden"]
) -> Float[Array, "batch places hidden"]:
    """The first layers of every head."""
    head = params["head"]
    x = ACTIVATIONS[config.classifier_activation](linear(hidden, head["dense"]))
    return layer_norm(x, head["norm"], config.norm_eps)


def classify_tokens(
    params: Mapping[str, Any], config: ModernBertConfig, hidden: Float[Array, "batch places hidden"], dropout: Dropout
) -> Float[Array, "batch places outputs"]:
    """Logits of the head over each token; `params` is the whole tree."""
    x = _transformed(params, config, hidden)
    return linear(dropout(x, config.classifier_dropout), params["classifier"])


def classify(
    params: Mapping[str, Any], config: ModernBertConfig, hidden: Float[Array, "batch 1 hidden"], dropout: Dropout
) -> Float[Array, "batch labels"]:
    """Logits of the head over the result of `pool`; `params` is the whole tree."""
    return classify_tokens(params, config, hidden, dropout)[:, 0]


def fill_words(
    params: Mapping[str, Any], config: ModernBertConfig, hidden: Float[Array, "batch places hidden"], dropout: Dropout
) -> Float[Array, "batch places vocab"]:
    """Logits of the word head, without dropout; `params` is the whole tree."""
    x = _transformed(params, config, hidden)
    return unembed(x, params["model"]["embeddings"]["tok_embeddings"], params.get("decoder", {}), None)


MODERNBERT = Architecture(
    ModernBertConfig,
    name_table,
    forward,
    head_slice,
    {"sequence": classify, "tokens": classify_tokens, "spans": classify_tokens, "words": fill_words},
    pool,
)
