"""A model that lpjax does not have, all in one file: the mean of word vectors, through one dense layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lpjax.models.config import Activation, Architecture, ModelConfig, Size
from lpjax.models.layers import ACTIVATIONS, Dropout, Inputs, embed, linear
from lpjax.models.names import NameTable, dense, embedding


@dataclasses.dataclass(frozen=True)
class BagConfig(ModelConfig):
    model_type: ClassVar[str] = "bag"
    class_name: ClassVar[str] = "Bag"
    groups: ClassVar[Mapping[str, str]] = {"feed_forward": r"(^|/)mix/kernel$"}

    width: Size
    activation: Activation = "gelu"

    @property
    def hidden_size(self) -> int:
        return self.width

    @property
    def max_length(self) -> None:
        return None

    @property
    def num_token_types(self) -> int:
        return 1

    @property
    def batch_multiple(self) -> int:
        return 3


def name_table(config: BagConfig) -> NameTable:
    return NameTable(
        prefix="bag",
        base=(*embedding("words", config.vocab_size, config.width), *dense("mix", config.width, config.width)),
        heads=dense("classifier", config.width, "labels", group="classifier"),
        head_groups={"sequence": ("classifier",)},
    )


def forward(params: Mapping[str, Any], config: BagConfig, inputs: Inputs) -> Float[Array, "batch tokens hidden"]:
    words = embed(inputs.ids, params["words"], inputs.dtype)
    mean = jnp.sum(jnp.where(inputs.mask[..., None], words, 0), axis=1, keepdims=True)
    mean = mean / jnp.maximum(inputs.mask.sum(axis=1)[:, None, None], 1).astype(inputs.dtype)
    return ACTIVATIONS[config.activation](linear(words + mean, params["mix"]))[:, inputs.tokens]


def classify(params: Mapping[str, Any], config: BagConfig, hidden: jax.Array, dropout: Dropout) -> jax.Array:
    return linear(hidden, params["classifier"])[:, 0]


BAG = Architecture(BagConfig, name_table, forward, lambda _: slice(1), {"sequence": classify})
