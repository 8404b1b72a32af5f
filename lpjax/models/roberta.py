"""RoBERTa (Liu et al., arXiv 1907.11692): BERT's encoder with positions that skip padding, and other heads.

XLM-RoBERTa (Conneau et al., arXiv 1911.02116) and CamemBERT (Martin et al., arXiv 1911.03894) are the same model with
other vocabularies; transformers gives them model types and classes of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lpjax.models import bert
from lpjax.models.bert import BertConfig, classifier_dropout
from lpjax.models.config import Architecture, whole
from lpjax.models.layers import ACTIVATIONS, Dropout, Inputs, layer_norm, linear, unembed
from lpjax.models.names import NameTable, Weight, decoder, dense, norm


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """Config of a RoBERTa; fields as in its config.json.

    Raises:
        ValueError: as `BertConfig`, and if padding leaves no position for a token.
    """

    model_type: ClassVar[str] = "roberta"
    class_name: ClassVar[str] = "Roberta"

    pad_token_id: Annotated[int, whole(0)] = 1

    @classmethod
    def conflicts(cls, values: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
        yield from super().conflicts(values, data)
        pad, positions = values.get("pad_token_id"), values.get("max_position_embeddings")
        if pad is not None and positions is not None:
            yield from too_few_positions(positions, pad)

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings - self.pad_token_id - 1

    @property
    def padding_id(self) -> int:
        return self.pad_token_id


@dataclasses.dataclass(frozen=True)
class XLMRobertaConfig(RobertaConfig):
    """Config of an XLM-RoBERTa; fields and errors as `RobertaConfig`."""

    model_type: ClassVar[str] = "xlm-roberta"
    class_name: ClassVar[str] = "XLMRoberta"


@dataclasses.dataclass(frozen=True)
class CamembertConfig(RobertaConfig):
    """Config of a CamemBERT; fields and errors as `RobertaConfig`."""

    model_type: ClassVar[str] = "camembert"
    class_name: ClassVar[str] = "Camembert"
    has_flax_class: ClassVar[bool] = False


HEAD_GROUPS = {
    "sequence": ("classifier",),
    "tokens": ("token classifier",),
    "spans": ("qa_outputs",),
    "words": ("lm_head",),
}


def name_table(config: RobertaConfig) -> NameTable:
    """The names, paths and shapes of RoBERTa's weights, with the heads that its checkpoints come with."""
    return NameTable(
        prefix="roberta",
        base=bert.encoder_weights(config),
        heads=head_weights(config.hidden_size, config.vocab_size, config.tie_word_embeddings),
        renames=bert.RENAMES,
        ignored=bert.IGNORED,
        head_groups=HEAD_GROUPS,
    )


def head_weights(hidden: int, vocab: int, tied: bool) -> tuple[Weight, ...]:
    """The weights of the heads, also of MPNet; `tied`: whether the word decoder is the word table."""
    return (
        Weight("lm_head.bias", "lm_head/bias", (vocab,), group="lm_head"),
        *dense("lm_head.dense", hidden, hidden, group="lm_head"),
        *norm("lm_head.layer_norm", hidden, group="lm_head"),
        *decoder("lm_head.decoder", hidden, vocab, "lm_head", bert.WORDS, "lm_head.bias", tied=tied),
        *dense("classifier.dense", hidden, hidden, group="classifier"),
        *dense("classifier.out_proj", hidden, "labels", group="classifier"),
        *dense("classifier", hidden, "labels", group="token classifier"),
        *dense("qa_outputs", hidden, "outputs", group="qa_outputs"),
    )


def forward(params: Mapping[str, Any], config: RobertaConfig, inputs: Inputs) -> Float[Array, "batch tokens hidden"]:
    """Hidden states of the last layer; `params` is the base model's tree."""
    return bert.forward(params, config, inputs, positions_after(inputs.ids, config.pad_token_id))


def too_few_positions(positions: int, padding: int) -> Iterator[str]:
    """A fault if no position follows that of padding."""
    if positions < padding + 2:
        yield (
            f"`max_position_embeddings` is {positions}, expected at least {padding + 2}: "
            f"positions of tokens begin after that of padding, {padding}"
        )


def positions_after(ids: Int[Array, "batch length"], padding: int) -> Int[Array, "batch length"]:
    """Positions of tokens, counted from `padding` + 1; padding has position `padding`."""
    # From the ids, not from the mask: a masked token still takes up a position.
    counted = (ids != padding).astype(jnp.int32)
    return jnp.cumsum(counted, axis=1) * counted + padding


def classify(
    params: Mapping[str, Any], config: RobertaConfig, hidden: Float[Array, "batch 1 hidden"], dropout: Dropout
) -> Float[Array, "batch labels"]:
    """Logits of the head over the first token, the only one in `hidden`; `params` is the whole tree."""
    return two_layer_logits(params["classifier"], hidden, dropout, classifier_dropout(config), jnp.tanh)


def fill_words(
    params: Mapping[str, Any], config: RobertaConfig, hidden: Float[Array, "batch places hidden"], dropout: Dropout
) -> Float[Array, "batch places vocab"]:
    """Logits of the word head, always with gelu, without dropout; `params` is the whole tree."""
    return word_logits(params["lm_head"], params["roberta"]["embeddings"], hidden, config.layer_norm_eps)


def two_layer_logits(
    head: Mapping[str, Any],
    hidden: Float[Array, "batch 1 hidden"],
    dropout: Dropout,
    rate: float,
    activation: Callable[[Array], Array],
) -> Float[Array, "batch labels"]:
    """Logits of a head of two linear layers, `dense` and `out_proj`, over one token."""
    x = activation(linear(dropout(hidden, rate), head["dense"]))
    return linear(dropout(x, rate), head["out_proj"])[:, 0]


def word_logits(
    head: Mapping[str, Any], tables: Mapping[str, Any], hidden: Float[Array, "batch places hidden"], eps: float
) -> Float[Array, "batch places vocab"]:
    """Logits of the words from an `lm_head`; its decoder is the word table in `tables` if it has none of its own."""
    x = layer_norm(ACTIVATIONS["gelu"](linear(hidden, head["dense"])), head["layer_norm"], eps)
    return unembed(x, tables["word_embeddings"], head.get("decoder", {}), head["bias"])


ROBERTA = Architecture(
    RobertaConfig,
    name_table,
    forward,
    lambda _: slice(1),
    {**bert.BERT.heads, "sequence": classify, "words": fill_words},
)
XLM_ROBERTA = dataclasses.replace(ROBERTA, config=XLMRobertaConfig)
CAMEMBERT = dataclasses.replace(ROBERTA, config=CamembertConfig)
