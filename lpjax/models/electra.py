"""ELECTRA (Clark et al., arXiv 2003.10555): BERT's encoder with embeddings of another width, and other heads.

Discriminators and generators are the same encoder. The head that detects replaced tokens is kept in files but not run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Array, Float

from lpjax.models import bert
from lpjax.models.bert import BertConfig, classifier_dropout
from lpjax.models.config import Architecture, Size
from lpjax.models.layers import ACTIVATIONS, Dropout, Inputs, layer_norm, linear, unembed
from lpjax.models.names import NameTable, Weight, decoder, dense, norm
from lpjax.models.roberta import two_layer_logits


@dataclasses.dataclass(frozen=True)
class ElectraConfig(BertConfig):
    """Config of an ELECTRA; fields as in its config.json.

    Raises:
        ValueError: as `BertConfig`.
    """

    model_type: ClassVar[str] = "electra"
    class_name: ClassVar[str] = "Electra"
    groups: ClassVar[Mapping[str, str]] = {
        # It is applied to every token, like a feed-forward layer.
        "feed_forward": rf"(^|/)embeddings_project/kernel$|{BertConfig.groups['feed_forward']}"
    }

    embedding_size: Size = 128


def name_table(config: ElectraConfig) -> NameTable:
    """The names, paths and shapes of ELECTRA's weights, with the heads that its checkpoints come with."""
    hidden, width, vocab = config.hidden_size, config.embedding_size, config.vocab_size
    project = dense("embeddings_project", width, hidden) if width != hidden else ()
    words, tied, replaced = "generator_lm_head", config.tie_word_embeddings, "discriminator_predictions"
    heads: list[Weight] = [
        *norm("generator_predictions.LayerNorm", width, group=words),
        *dense("generator_predictions.dense", hidden, width, group=words),
        *decoder(words, width, vocab, words, bert.WORDS, tied=tied),
        *dense(f"{replaced}.dense", hidden, hidden, group=replaced),
        *dense(f"{replaced}.dense_prediction", hidden, 1, group=replaced),
        *dense("classifier.dense", hidden, hidden, group="classifier"),
        *dense("classifier.out_proj", hidden, "labels", group="classifier"),
        *dense("sequence_summary.summary", hidden, hidden, group="summary"),
        *dense("classifier", hidden, "labels", group="token classifier"),
        *dense("qa_outputs", hidden, "outputs", group="qa_outputs"),
    ]
    return NameTable(
        prefix="electra",
        base=(*bert.table_weights(config, width), *project, *bert.layer_weights(config)),
        heads=tuple(heads),
        renames=bert.RENAMES,
        ignored=bert.IGNORED,
        head_groups={
            "sequence": ("classifier",),
            "tokens": ("token classifier",),
            "spans": ("qa_outputs",),
            "words": (words,),
        },
    )


def forward(params: Mapping[str, Any], config: ElectraConfig, inputs: Inputs) -> Float[Array, "batch tokens hidden"]:
    """Hidden states of the last layer; `params` is the base model's tree."""
    x = bert.embed_tokens(params, config, inputs)
    x = x if config.embedding_size == config.hidden_size else linear(x, params["embeddings_project"])
    return bert.run_layers(params, config, inputs, x)


def classify(
    params: Mapping[str, Any], config: ElectraConfig, hidden: Float[Array, "batch 1 hidden"], dropout: Dropout
) -> Float[Array, "batch labels"]:
    """Logits of the head over the first token, the only one in `hidden`; `params` is the whole tree."""
    return two_layer_logits(params["classifier"], hidden, dropout, classifier_dropout(config), ACTIVATIONS["gelu"])


def fill_words(
    params: Mapping[str, Any], config: ElectraConfig, hidden: Float[Array, "batch places hidden"], dropout: Dropout
) -> Float[Array, "batch places vocab"]:
    """Logits of the generator's word head, always with gelu, without dropout; `params` is the whole tree."""
    head, last = params["generator_predictions"], params["generator_lm_head"]
    x = layer_norm(ACTIVATIONS["gelu"](linear(hidden, head["dense"])), head["LayerNorm"], config.layer_norm_eps)
    return unembed(x, params["electra"]["embeddings"]["word_embeddings"], last, last["bias"])


ELECTRA = Architecture(
    ElectraConfig,
    name_table,
    forward,
    lambda _: slice(1),
    {**bert.BERT.heads, "sequence": classify, "words": fill_words},
)
