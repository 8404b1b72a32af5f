"""keras-hub's models in lpjax's terms: their config, and the Keras layer at each path of the tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras

from lpjax.models import ARCHITECTURES, ModelConfig

PAD = 1
"""RoBERTa's padding id, for a model without a preprocessor; in lpjax, positions of tokens begin after it."""

_ENCODER = {
    "self_attention_layer.query_dense": "attention/self/query",
    "self_attention_layer.key_dense": "attention/self/key",
    "self_attention_layer.value_dense": "attention/self/value",
    "self_attention_layer.output_dense": "attention/output/dense",
    "self_attention_layer_norm": "attention/output/LayerNorm",
    "feedforward_intermediate_dense": "intermediate/dense",
    "feedforward_output_dense": "output/dense",
    "feedforward_layer_norm": "output/LayerNorm",
}
_TABLES = {
    "embeddings/word_embeddings": "embeddings.token_embedding",
    "embeddings/position_embeddings": "embeddings.position_embedding",
    "embeddings/LayerNorm": "embeddings_layer_norm",
}
_DISTILBERT = {
    "self_attention_layer.query_dense": "attention/q_lin",
    "self_attention_layer.key_dense": "attention/k_lin",
    "self_attention_layer.value_dense": "attention/v_lin",
    "self_attention_layer.output_dense": "attention/out_lin",
    "self_attention_layer_norm": "sa_layer_norm",
    "feedforward_intermediate_dense": "ffn/lin1",
    "feedforward_output_dense": "ffn/lin2",
    "feedforward_layer_norm": "output_layer_norm",
}


class Net(NamedTuple):
    """One of keras-hub's models.

    Attributes:
        model_types: lpjax's model types of the same model; `from_keras` gives the first.
        tables: path in the tree -> attribute of the backbone, for the modules before and after the layers.
        layer: path of a layer in the tree, with a placeholder for its number.
        names: attribute of a layer, without its leading underscore -> path below that of the layer.
        head: path in the tree -> attribute of the classifier; a dot leads into the backbone.
        activations: attribute of the classifier -> the activation that lpjax computes there.
        epsilon: epsilon of layer normalizations, if it is not in lpjax's config.
    """

    model_types: tuple[str, ...]
    tables: Mapping[str, str]
    layer: str
    names: Mapping[str, str]
    head: Mapping[str, str]
    activations: Mapping[str, str]
    epsilon: float | None = None


_BERT = Net(
    model_types=("bert",),
    tables={
        "embeddings/word_embeddings": "token_embedding",
        "embeddings/position_embeddings": "position_embedding",
        "embeddings/token_type_embeddings": "segment_embedding",
        "embeddings/LayerNorm": "embeddings_layer_norm",
        "pooler/dense": "pooled_dense",
    },
    layer="encoder/layer/{}",
    names=_ENCODER,
    head={"classifier": "output_dense"},
    activations={"backbone.pooled_dense": "tanh", "output_dense": "linear"},
)
_ROBERTA = Net(
    model_types=("roberta", "xlm-roberta", "camembert"),
    tables=_TABLES,
    layer="encoder/layer/{}",
    names=_ENCODER,
    head={"classifier/dense": "pooled_dense", "classifier/out_proj": "output_dense"},
    activations={"pooled_dense": "tanh", "output_dense": "linear"},
)
_NETS = {
    "BertBackbone": _BERT,
    "DistilBertBackbone": Net(
        model_types=("distilbert",),
        tables=_TABLES,
        layer="transformer/layer/{}",
        names=_DISTILBERT,
        head={"pre_classifier": "pooled_dense", "classifier": "output_dense"},
        activations={"pooled_dense": "relu", "output_dense": "linear"},
        epsilon=1e-12,
    ),
    "XLMRobertaBackbone": _ROBERTA._replace(model_types=("xlm-roberta", "roberta", "camembert")),
    "RobertaBackbone": _ROBERTA,
}


class Parts(NamedTuple):
    """The parts of a keras-hub model.

    Attributes:
        net: description of the model.
        config: config of lpjax's model that computes the same.
        base, head: path in the base model's tree, or in the whole tree for the head -> Keras layer.
    """

    net: Net
    config: Any
    base: dict[str, Any]
    head: dict[str, Any]


def taken_apart(model: Any) -> Parts:
    """The parts of a backbone or a text classifier.

    Raises:
        ValueError: it is another model, or computes something that lpjax does not; names it.
    """
    backbone, net = _backbone(model)
    base = {path: _attribute(backbone, name) for path, name in net.tables.items()}
    for i, block in enumerate(backbone.transformer_layers):
        layer = net.layer.format(i)
        base |= {f"{layer}/{path}": _attribute(block, f"_{name}") for name, path in net.names.items()}
    head = {} if model is backbone else {path: _attribute(model, name) for path, name in net.head.items()}
    faults = [*_faults(backbone, net, base)]
    if head:
        for name, expected in net.activations.items():
            if not _is(activation := _attribute(model, name).activation, expected):
                faults.append(f"{name} has the activation {_name(activation)}, expected {expected}")
    if faults:
        raise ValueError(f"`model` {model.name} computes what lpjax does not: {'; '.join(faults)}")
    return Parts(net, _config(model, backbone, net, base), base, head)


def _backbone(model: Any) -> tuple[Any, Net]:
    """The backbone of a model, and its description."""
    known = f"expected one of {', '.join(_NETS)} of keras-hub, or a TextClassifier of one"
    kinds = _hub_classes(model)
    if not kinds:
        raise ValueError(f"`model` is a {type(model).__name__}, {known}")
    classifier = any(kind.endswith("TextClassifier") for kind in kinds)
    backbone = model.backbone if classifier else model
    net = next((_NETS[kind] for kind in _hub_classes(backbone) if kind in _NETS), None)
    if net is None:
        hint = "; pass its `backbone`" if hasattr(model, "backbone") else ""
        raise ValueError(f"`model` is a {kinds[0]}, {known}{hint}")
    return backbone, net


def _hub_classes(model: Any) -> list[str]:
    """Names of the model's classes that are keras-hub's, most derived first; does not import keras-hub."""
    return [kind.__name__ for kind in type(model).__mro__ if _is_hubs(kind)]


def _is_hubs(thing: Any) -> bool:
    return getattr(thing, "__module__", "").partition(".")[0] == "keras_hub"


def _attribute(owner: Any, path: str) -> Any:
    for name in path.split("."):
        owner = getattr(owner, name)
    return owner


def _faults(backbone: Any, net: Net, base: Mapping[str, Any]) -> Iterator[str]:
    """Descriptions of what a backbone computes differently from lpjax."""
    blocks = backbone.transformer_layers
    if any(block.normalize_first for block in blocks):
        yield "its layers normalize first"
    activations = [block._feedforward_intermediate_dense.activation for block in blocks]
    if unknown := {_name(activation) for activation in activations if _activation(activation) is None}:
        yield f"its layers have the activation {', '.join(sorted(unknown))}, expected {', '.join(_ACTIVATIONS)}"
    if len({*map(_activation, activations)}) > 1:
        yield "its layers have several activations"
    epsilons = {layer.epsilon for layer in base.values() if isinstance(layer, keras.layers.LayerNormalization)}
    if len(epsilons) > 1:
        yield "its layer normalizations have several values of epsilon"
    elif net.epsilon is not None and epsilons != {net.epsilon}:
        yield f"its layer normalizations have the epsilon {epsilons.pop()}, expected {net.epsilon}"
    if quantized := [layer.name for layer in base.values() if layer.quantization_mode is not None]:
        yield f"its layers are quantized by Keras: {', '.join(quantized[:5])}"


_ACTIVATIONS = {"gelu": "gelu", "gelu_approximate": "gelu_new", "relu": "relu", "silu": "silu"}
"""Keras's names of activations -> lpjax's; `gelu_approximate` is a function of keras-hub."""


def _name(activation: Any) -> str:
    return getattr(activation, "__name__", type(activation).__name__)


def _is(activation: Any, name: str) -> bool:
    """Whether an activation is Keras's own function of this name."""
    return activation is keras.activations.get(name)


def _activation(activation: Any) -> str | None:
    """lpjax's name of an activation; None if it has none."""
    name = _name(activation)
    if name == "gelu_approximate":
        return _ACTIVATIONS[name] if _is_hubs(activation) else None
    return _ACTIVATIONS[name] if name in _ACTIVATIONS and _is(activation, name) else None


def _config(model: Any, backbone: Any, net: Net, base: Mapping[str, Any]) -> ModelConfig:
    """The config of lpjax's model."""
    blocks = backbone.transformer_layers
    activation = _activation(blocks[0]._feedforward_intermediate_dense.activation) if blocks else "gelu"
    length, rate = backbone.max_sequence_length, float(backbone.dropout)
    kind, head_rate = net.model_types[0], None if model is backbone else float(model.dropout)
    if kind == "distilbert":
        fields = {"dim": backbone.hidden_dim, "n_layers": backbone.num_layers, "n_heads": backbone.num_heads}
        fields |= {"hidden_dim": backbone.intermediate_dim, "activation": activation}
        fields |= {"dropout": rate, "attention_dropout": rate, "seq_classif_dropout": 0.2}
        fields |= {} if head_rate is None else {"seq_classif_dropout": head_rate}
    else:
        fields = {"hidden_size": backbone.hidden_dim, "num_hidden_layers": backbone.num_layers}
        fields |= {"num_attention_heads": backbone.num_heads, "intermediate_size": backbone.intermediate_dim}
        fields |= {"hidden_act": activation, "layer_norm_eps": base["embeddings/LayerNorm"].epsilon}
        fields |= {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate, "classifier_dropout": head_rate}
        fields |= {"type_vocab_size": getattr(backbone, "num_segments", 1)}
    if net is not _BERT and kind != "distilbert":
        pad = getattr(getattr(getattr(model, "preprocessor", None), "tokenizer", None), "pad_token_id", None)
        fields["pad_token_id"] = PAD if pad is None else int(pad)
        length += fields["pad_token_id"] + 1
    fields |= {"vocab_size": backbone.vocabulary_size, "max_position_embeddings": length}
    return ARCHITECTURES[kind].config(**fields)
