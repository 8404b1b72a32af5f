"""RoBERTa (Liu et al., arXiv 1907.11692): BERT's encoder with positions that skip padding, and a head of its own.

XLM-RoBERTa (Conneau et al., arXiv 1911.02116) and CamemBERT (Martin et al., arXiv 1911.03894) are the same net with
other vocabularies; transformers gives them model types and classes of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lpjax.models import bert
from lpjax.models.bert import BertConfig, classifier_dropout
from lpjax.models.config import ConfigReader
from lpjax.models.layers import ACTIVATIONS, Dropout, layer_norm, linear, unembed
from lpjax.models.names import NameTable, Weight, decoder, dense, norm


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """Config of a RoBERTa; fields as in its config.json.

    Raises:
        ValueError: as `BertConfig`, and where padding leaves no position for a token.
    """

    model_type: ClassVar[str] = "roberta"

    pad_token_id: int = 1

    @classmethod
    def check(cls, reader: ConfigReader) -> None:
        super().check(reader)
        pad = reader.get("pad_token_id", int, 1)
        if pad is not None and pad < 0:
            reader.fault(f"`pad_token_id` is {pad}, expected 0 or more")
        positions = reader.get("max_position_embeddings", int, 512)
        if pad is not None and pad >= 0 and positions is not None and 1 <= positions < pad + 2:
            reader.fault(
                f"`max_position_embeddings` is {positions}, expected at least {pad + 2}: "
                f"positions of tokens begin after `pad_token_id`, {pad}"
            )

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings - self.pad_token_id - 1


@dataclasses.dataclass(frozen=True)
class XLMRobertaConfig(RobertaConfig):
    """Config of an XLM-RoBERTa; fields and errors as `RobertaConfig`."""

    model_type: ClassVar[str] = "xlm-roberta"


@dataclasses.dataclass(frozen=True)
class CamembertConfig(RobertaConfig):
    """Config of a CamemBERT; fields and errors as `RobertaConfig`."""

    model_type: ClassVar[str] = "camembert"


def name_table(config: RobertaConfig) -> NameTable:
    """The names, paths and shapes of RoBERTa's weights, with the heads that its checkpoints come with."""
    hidden, vocab, tied = config.hidden_size, config.vocab_size, config.tie_word_embeddings
    heads: list[Weight] = [
        Weight("lm_head.bias", "lm_head/bias", (vocab,), group="lm_head"),
        *dense("lm_head.dense", hidden, hidden, group="lm_head"),
        *norm("lm_head.layer_norm", hidden, group="lm_head"),
        *decoder("lm_head.decoder", hidden, vocab, "lm_head", bert.WORDS, "lm_head.bias", tied=tied),
        *dense("classifier.dense", hidden, hidden, group="classifier"),
        *dense("classifier.out_proj", hidden, "labels", group="classifier"),
        *dense("classifier", hidden, "labels", group="token classifier"),
        *dense("qa_outputs", hidden, "outputs", group="qa_outputs"),
    ]
    return NameTable(
        prefix="roberta",
        base=bert.encoder_weights(config),
        heads=tuple(heads),
        renames=bert.RENAMES,
        ignored=bert.IGNORED,
        classifier=("classifier",),
        tokens=("token classifier",),
        spans=("qa_outputs",),
        words=("lm_head",),
    )


def forward(
    params: Mapping[str, Any],
    config: RobertaConfig,
    input_ids: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    token_type_ids: Int[Array, "batch length"] | None,
    dtype: Any,
    dropout: Dropout,
    wanted: slice = slice(None),
) -> Float[Array, "batch wanted hidden"]:
    """Hidden states of the last layer, of the `wanted` tokens; `params` is the base model's tree."""
    # From the ids, not from the mask: a token that is masked takes up a position all the same.
    counted = (input_ids != config.pad_token_id).astype(jnp.int32)
    positions = jnp.cumsum(counted, axis=1) * counted + config.pad_token_id
    return bert.forward(params, config, input_ids, mask, token_type_ids, dtype, dropout, wanted, positions)


summarized = bert.summarized


def classify(
    params: Mapping[str, Any], config: RobertaConfig, hidden: Float[Array, "batch 1 hidden"], dropout: Dropout
) -> Float[Array, "batch labels"]:
    """Logits of the head over the first token, which is all of `hidden`; `params` is the whole tree."""
    rate, head = classifier_dropout(config), params["classifier"]
    x = jnp.tanh(linear(dropout(hidden, rate), head["dense"]))
    return linear(dropout(x, rate), head["out_proj"])[:, 0]


label_tokens = bert.label_tokens
find_spans = bert.find_spans


def fill_words(
    params: Mapping[str, Any], config: RobertaConfig, hidden: Float[Array, "batch places hidden"]
) -> Float[Array, "batch places vocab"]:
    """Logits of the words; `params` is the whole tree. Its activation is gelu, whatever the encoder's is."""
    head = params["lm_head"]
    x = layer_norm(ACTIVATIONS["gelu"](linear(hidden, head["dense"])), head["layer_norm"], config.layer_norm_eps)
    return unembed(x, params["roberta"]["embeddings"]["word_embeddings"], head.get("decoder", {}), head["bias"])
