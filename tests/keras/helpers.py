"""Tiny models of keras-hub, and inputs for Keras and for lpjax."""

from __future__ import annotations

from typing import Any

import numpy as np

HUB = ("Bert", "DistilBert", "Roberta", "XLMRoberta")
SIZES = {"vocabulary_size": 29, "num_layers": 1, "num_heads": 3, "hidden_dim": 12, "intermediate_dim": 17}
LENGTH = 9
PAD = 1


def backbone(name: str, **sizes: Any) -> Any:
    """A backbone of odd sizes with random weights, wide enough for attention not to be even."""
    import keras_hub

    model = getattr(keras_hub.models, f"{name}Backbone")(**{**SIZES, "max_sequence_length": LENGTH, **sizes})
    return scrambled(model)


def classifier(name: str, base: Any = None, **options: Any) -> Any:
    """A text classifier of three classes."""
    import keras_hub

    kind = getattr(keras_hub.models, f"{name}TextClassifier")
    return scrambled(kind(backbone(name) if base is None else base, num_classes=3, **options))


def scrambled(model: Any, seed: int = 0) -> Any:
    """The model with random weights; scales of layer normalizations are about one."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        drawn = 0.4 * rng.normal(size=variable.shape)
        variable.assign(drawn + 1 if variable.name == "gamma" else drawn)
    return model


def batch(name: str, lengths: tuple[int, ...] = (7, 4, 1)) -> tuple[dict[str, Any], dict[str, Any]]:
    """Padded texts as Keras and as lpjax take them; a BERT's have two segments."""
    rng = np.random.default_rng(1)
    mask = (np.arange(max(lengths))[None] < np.asarray(lengths)[:, None]).astype(np.int32)
    ids = np.where(mask == 1, rng.integers(3, 29, mask.shape), PAD).astype(np.int32)
    theirs, ours = {"token_ids": ids, "padding_mask": mask}, {"input_ids": ids, "attention_mask": mask}
    if name == "Bert":
        theirs["segment_ids"] = ours["token_type_ids"] = rng.integers(0, 2, mask.shape).astype(np.int32)
    return theirs, ours


def hidden_of(model: Any, inputs: dict[str, Any]) -> np.ndarray:
    """Keras's hidden states of the tokens that are there."""
    outputs = model(inputs)
    hidden = outputs["sequence_output"] if isinstance(outputs, dict) else outputs
    return np.asarray(hidden)[inputs["padding_mask"] == 1]
