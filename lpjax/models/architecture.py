"""The table of architectures. A new one is a file such as `bert.py` and a line here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lpjax.models import albert, bert, distilbert, electra, modernbert, mpnet, roberta, xlnet
from lpjax.models.config import Architecture as Architecture
from lpjax.models.config import ModelConfig
from lpjax.models.names import NameTable

ARCHITECTURES: dict[str, Architecture] = {
    net.config.model_type: net
    for net in (
        bert.BERT,
        distilbert.DISTILBERT,
        roberta.ROBERTA,
        roberta.XLM_ROBERTA,
        roberta.CAMEMBERT,
        xlnet.XLNET,
        modernbert.MODERNBERT,
        albert.ALBERT,
        mpnet.MPNET,
        electra.ELECTRA,
    )
}
"""The architectures by the `model_type` of a config.json."""

_ENDINGS = "Model$|For[A-Z]|LMHeadModel$|PreTrainedModel$"  # endings of class names in transformers


def architecture_of(config: Any) -> Architecture:
    """The architecture of `config`.

    Raises:
        ValueError: `config` is not a config of lpjax (but a dict, or a config of another library).
    """
    architecture = ARCHITECTURES.get(getattr(config, "model_type", ""))
    if architecture is None or type(config) is not architecture.config:
        known = ", ".join(net.config.__name__ for net in ARCHITECTURES.values())
        raise ValueError(
            f"`config` is {type(config).__module__}.{type(config).__name__}, expected lpjax's {known}; "
            "load_checkpoint(...).config is one, and so is lpjax.config_from_json of a config.json's object"
        )
    return architecture


def name_table(config: ModelConfig) -> NameTable:
    """The names, paths and shapes of the weights of the model of `config`.

    Raises:
        ValueError: as `architecture_of`.
    """
    return architecture_of(config).name_table(config)


class UnknownModel(ValueError):
    """A config.json is of an architecture that lpjax does not support."""


def config_from_json(data: Mapping[str, Any]) -> ModelConfig:
    """Read the config from the contents of a config.json, for the architecture that its `model_type` names.

    Raises:
        UnknownModel: lpjax does not support the architecture.
        ValueError: the config has faults; names every key.
    """
    kind = data.get("model_type")
    if kind is None:
        # The first checkpoints have no model_type, only the name of a class.
        names = data.get("architectures")
        name = str(names[0]) if isinstance(names, list) and names else ""
        # A common prefix is not enough: XLMRobertaXLModel and RobertaPreLayerNormModel are other models.
        starts = {kind: net.config.class_name for kind, net in ARCHITECTURES.items()}
        kind = next((kind for kind, start in starts.items() if re.match(f"{start}({_ENDINGS})", name)), None)
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        problem = "lacks `model_type`" if kind is None else f"`model_type` is {kind!r}"
        raise UnknownModel(f"{problem}, expected one of {', '.join(map(repr, ARCHITECTURES))}")
    return ARCHITECTURES[kind].config.from_json(data)
