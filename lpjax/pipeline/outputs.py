"""Outputs of a model: one class for each kind.

A kind defines how outputs are computed from hidden states, along which random directions u their gradients are taken
for the Fisher information, and how far apart the outputs of two models are. Kinds are hashable, hence static under jit.
A new kind is a class here and a line in `outputs_of`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lpjax.checkpoint import Checkpoint
from lpjax.checkpoint.stages import read_stages
from lpjax.data.batching import Tokens, tokenize
from lpjax.data.tokenizer import tokenizer_of
from lpjax.models import ModelConfig, check_span_outputs, hidden_states, logits_of, name_table, tokens_of
from lpjax.models.heads import num_outputs
from lpjax.models.layers import NO_DROPOUT
from lpjax.models.names import names_classifier, names_of
from lpjax.pipeline import MEAN, Stage, read_pipeline, sentence_vectors, tokenize_sentences

Inputs = dict[str, Array]
States: TypeAlias = Float[Array, "batch places hidden"]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """A kind of output.

    Attributes:
        kind: name of the kind.
        target: name of its gradients in `Calibration.target`.
        hidden: default weight of the relative squared error of the hidden states, which is added to the divergence of
            the outputs when two models are compared. A head's few outputs on few texts say little about a model: models
            with very different hidden states can agree in them by chance.
        wide: whether outputs are so large that hidden states are kept instead.
    """

    kind: ClassVar[str]
    wide: ClassVar[bool] = False
    target: ClassVar[str] = "predictions"
    hidden: ClassVar[float] = 1.0

    def prepare(self, inputs: dict[str, np.ndarray], tokens: Tokens, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The inputs of a batch for this kind, on the host; extra keys are for its other methods."""
        return inputs

    def tokenize(
        self,
        checkpoint: Checkpoint,
        first: Sequence[str],
        second: Sequence[str] | None = None,
        *,
        tokenizer: Any = None,
        max_length: int | None = None,
    ) -> tuple[Tokens, Outputs]:
        """Tokenize texts, or pairs, for these outputs; returns the tokens, and the kind for these texts.

        Args:
            checkpoint: the model.
            first, second: as in `tokenize`.
            tokenizer: a tokenizer of transformers; by default the one in `checkpoint.source`.
            max_length: largest number of tokens of a text; at most the number of positions of the model.
        """
        config = checkpoint.config
        tokenizer = tokenizer_of(checkpoint) if tokenizer is None else tokenizer
        limits = [limit for limit in (max_length, config.max_length) if limit is not None]
        return tokenize(tokenizer, config, first, second, max_length=min(limits, default=None)), self

    def reads(self, config: ModelConfig) -> slice:
        """The tokens from whose last hidden states the outputs are computed."""
        return slice(None)

    def pick(self, hidden: Float[Array, "batch length d"], inputs: Inputs) -> States:
        """Select, from the hidden states of `reads`, those from which the outputs are computed."""
        return hidden

    def counted(self, states: States, inputs: Inputs) -> Float[Array, "batch places"]:
        """1 for each hidden state from `pick` that counts, 0 for padding."""
        mask = inputs["attention_mask"].astype(states.dtype)
        return mask if states.shape[1] == mask.shape[1] else jnp.max(mask, axis=1, keepdims=True)

    def places(self, inputs: Inputs) -> Float[Array, "batch places"] | None:
        """1 for each place that counts, 0 for padding, if `pick` selects tokens that differ by text; else None."""
        return None

    def outputs(self, params: Any, config: ModelConfig, states: States, inputs: Inputs) -> Array:
        """Compute the outputs, text by text."""
        raise NotImplementedError

    def direction(self, outputs: Array, inputs: Inputs, key: Array, labels: Array | None) -> Array:
        """u, of the outputs' shape: Σ (uᵀ ∂outputs)² estimates the Fisher information.

        It is the gradient of the loss with respect to the outputs, for `labels` or, without these, for labels drawn
        from the model's predictions.
        """
        raise NotImplementedError

    def divergence(self, outputs: Array, reference: Array, inputs: Inputs) -> Float[Array, " batch"]:
        """Divergence of one model's outputs from another's, text by text."""
        raise NotImplementedError

    def agreement(self, outputs: Array, reference: Array, inputs: Inputs) -> Float[Array, " batch"] | None:
        """Share of equal predictions, text by text; None if outputs are not classes."""
        return None

    def check_labels(self, labels: Any, texts: int) -> np.ndarray:
        """Check and convert `labels` for `direction`, one row per text.

        Raises:
            ValueError: they are not labels for these outputs.
        """
        raise ValueError(
            f"`labels` are given, but the model has no head for classification of texts: its outputs are {self.kind}; "
            "leave them out"
        )


@dataclasses.dataclass(frozen=True)
class Embedding(Outputs):
    """The vector of a text, scaled to length 1, for a model without a head.

    Attributes:
        stages: stages from the last hidden states to the vector, as read from a folder of sentence-transformers; by
            default the mean over the tokens.
    """

    kind: ClassVar[str] = "embeddings"
    target: ClassVar[str] = "embedding"
    hidden: ClassVar[float] = 0.0
    stages: tuple[Stage, ...] = MEAN

    def tokenize(
        self, checkpoint: Checkpoint, first: Sequence[str], second: Sequence[str] | None = None, **options: Any
    ) -> tuple[Tokens, Outputs]:
        """Tokenize as `embed_sentences` does, with the folder's default prompt."""
        pipeline, most = read_pipeline(checkpoint), options.pop("max_length", None)
        tokens, stages = tokenize_sentences(checkpoint, pipeline, first, second, most=most, **options)
        return tokens, Embedding(stages)

    def outputs(self, params: Any, config: ModelConfig, states: States, inputs: Inputs) -> Array:
        return at_length_1(sentence_vectors(self.stages, states, inputs["attention_mask"].astype(bool)))

    def direction(self, outputs: Array, inputs: Inputs, key: Array, labels: Array | None) -> Array:
        """Gaussian: the mean of (uᵀδ)² is ‖δ‖²."""
        return jax.random.normal(key, outputs.shape, outputs.dtype)

    def divergence(self, outputs: Array, reference: Array, inputs: Inputs) -> Float[Array, " batch"]:
        """Half the squared distance, 1 − cosine."""
        return jnp.sum((outputs - reference) ** 2, axis=1) / 2


def at_length_1(vectors: Float[Array, "batch d"]) -> Float[Array, "batch d"]:
    """Vectors scaled to length 1; 0 stays 0, with derivative 0."""
    square = jnp.sum(vectors**2, axis=1, keepdims=True)
    return vectors * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


@dataclasses.dataclass(frozen=True)
class _Categorical(Outputs):
    """Logits of mutually exclusive classes, along the last axis, for a text or for several places in it.

    Attributes:
        weights: key of the inputs that holds 1 for each place that counts, else 0; None if all count.
    """

    weights: ClassVar[str | None] = None

    def direction(self, outputs: Array, inputs: Inputs, key: Array, labels: Array | None) -> Array:
        drawn = jax.random.categorical(key, outputs) if labels is None else labels.astype(jnp.int32)
        gradient = against_drawn(outputs, drawn)
        return gradient if self.weights is None else gradient * inputs[self.weights][..., None]

    def divergence(self, outputs: Array, reference: Array, inputs: Inputs) -> Float[Array, " batch"]:
        """KL(reference ‖ outputs) in nats, averaged over the places: the loss of distillation (Hinton et al., arXiv
        1503.02531) at temperature 1."""
        divergence = kl(outputs, reference)
        return divergence if self.weights is None else _mean(divergence, inputs[self.weights])

    def agreement(self, outputs: Array, reference: Array, inputs: Inputs) -> Float[Array, " batch"]:
        """Share of places with equal predictions; 1 for a text without places."""
        same = same_argmax(outputs, reference)
        return same if self.weights is None else 1 - _mean(1 - same, inputs[self.weights])


@dataclasses.dataclass(frozen=True)
class _OfHead(Outputs):
    """Outputs of a head for sequence classification.

    Attributes:
        count: number of outputs.
    """

    count: int

    def reads(self, config: ModelConfig) -> slice:
        return tokens_of(config, "sequence")

    def outputs(self, params: Any, config: ModelConfig, states: States, inputs: Inputs) -> Array:
        return logits_of(params, config, states, inputs["attention_mask"], NO_DROPOUT, "sequence")


@dataclasses.dataclass(frozen=True)
class Classes(_OfHead, _Categorical):
    """Logits of mutually exclusive classes."""

    kind: ClassVar[str] = "classes"

    def check_labels(self, labels: Any, texts: int) -> np.ndarray:
        values = _floats(labels, (texts,), "one per text")
        return _known(values, np.isin(values, np.arange(self.count)), f"whole numbers from 0 to {self.count - 1}")


@dataclasses.dataclass(frozen=True)
class Regression(_OfHead):
    """Values of a regression, one or several."""

    kind: ClassVar[str] = "regression"

    def direction(self, outputs: Array, inputs: Inputs, key: Array, labels: Array | None) -> Array:
        """Gaussian, or the gradient of the squared error."""
        if labels is None:
            return jax.random.normal(key, outputs.shape, outputs.dtype)
        return 2 * (outputs - labels.reshape(outputs.shape))

    def divergence(self, outputs: Array, reference: Array, inputs: Inputs) -> Float[Array, " batch"]:
        """The squared difference, summed over the values."""
        return jnp.sum((outputs - reference) ** 2, axis=1)

    def check_labels(self, labels: Any, texts: int) -> np.ndarray:
        shape = (texts,) if self.count == 1 else (texts, self.count)
        values = _floats(labels, shape, "one per text" if self.count == 1 else "a row per text, a column per value")
        return _known(values, np.isfinite(values), "finite numbers")


@dataclasses.dataclass(frozen=True)
class Labels(_OfHead):
    """Logits of labels that are not exclusive: independent Bernoulli outputs."""

    kind: ClassVar[str] = "labels"

    def direction(self, outputs: Array, inputs: Inputs, key: Array, labels: Array | None) -> Array:
        share = jax.nn.sigmoid(outputs)
        drawn = jax.random.bernoulli(key, share) if labels is None else labels
        return share - drawn.astype(share.dtype)

    def divergence(self, outputs: Array, reference: Array, inputs: Inputs) -> Float[Array, " batch"]:
        """The sum over the labels of KL(reference ‖ outputs), in nats."""
        yes, no = (jax.nn.log_sigmoid(x * reference) - jax.nn.log_sigmoid(x * outputs) for x in (1, -1))
        share = jax.nn.sigmoid(reference)
        return jnp.sum(share * yes + (1 - share) * no, axis=1)

    def agreement(self, outputs: Array, reference: Array, inputs: Inputs) -> Float[Array, " batch"]:
        """Share of labels on which both models agree, at the threshold ½."""
        return jnp.mean(((outputs > 0) == (reference > 0)).astype(outputs.dtype), axis=1)

    def check_labels(self, labels: Any, texts: int) -> np.ndarray:
        values = _floats(labels, (texts, self.count), "a row per text, a column per label")
        return _known(values, np.isin(values, (0, 1)), "0 and 1")


@dataclasses.dataclass(frozen=True)
class TokenClasses(_Categorical):
    """Logits of classes for each token; padding and special tokens, such as [CLS], do not count.

    Attributes:
        count: number of classes.
    """

    kind: ClassVar[str] = "classes of tokens"
    weights: ClassVar[str | None] = "labelled"

    count: int

    def prepare(self, inputs: dict[str, np.ndarray], tokens: Tokens, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Add `labelled`: 1 for a token of the text itself, else 0."""
        return inputs | {"labelled": _ordinary(inputs, tokens).astype(np.float32)}

    def outputs(self, params: Any, config: ModelConfig, states: States, inputs: Inputs) -> Array:
        return logits_of(params, config, states, inputs["attention_mask"], NO_DROPOUT, "tokens")


@dataclasses.dataclass(frozen=True)
class Spans(_Categorical):
    """Logits of each token as the first and the last of an answer: two distributions over the tokens of a text."""

    kind: ClassVar[str] = "spans"

    def outputs(self, params: Any, config: ModelConfig, states: States, inputs: Inputs) -> Array:
        """Logits (batch, 2, length); those of padding are so low that it is never drawn."""
        logits = jnp.swapaxes(logits_of(params, config, states, inputs["attention_mask"], NO_DROPOUT, "spans"), 1, 2)
        return jnp.where(inputs["attention_mask"].astype(bool)[:, None], logits, -1e30)

    def divergence(self, outputs: Array, reference: Array, inputs: Inputs) -> Float[Array, " batch"]:
        """KL(reference ‖ outputs) of the first token plus that of the last, in nats."""
        return jnp.sum(kl(outputs, reference), axis=1)

    def agreement(self, outputs: Array, reference: Array, inputs: Inputs) -> Float[Array, " batch"]:
        """1 if both models have the same likeliest first and last token, else 0."""
        return jnp.prod(same_argmax(outputs, reference), axis=1)


@dataclasses.dataclass(frozen=True)
class Words(_Categorical):
    """Logits of masked words: 15 % of the tokens of a text are masked, at least one, as in the training of BERT.

    Fewer are masked for large vocabularies and batches, so that the logits of a batch take at most 256 MB.
    """

    kind: ClassVar[str] = "words"
    weights: ClassVar[str | None] = "masked"
    wide: ClassVar[bool] = True

    def prepare(self, inputs: dict[str, np.ndarray], tokens: Tokens, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Mask tokens in `input_ids`; add their `places`, and `masked`: 1 for a place, 0 for padding.

        Raises:
            ValueError: the tokenizer has no mask token.
        """
        if tokens.mask is None:
            raise ValueError("`tokenizer` has no mask token, but the model fills masks; pass the model's own")
        rows, length = inputs["input_ids"].shape
        most = max(1, min(math.ceil(MASKED * length), _MOST_LOGITS // (rows * max(tokens.vocab_size, 1))))
        places, masked = np.zeros((rows, most), np.int32), np.zeros((rows, most), np.float32)
        ids = inputs["input_ids"].copy()
        for row, free in enumerate(_ordinary(inputs, tokens)):
            known = np.flatnonzero(free)
            count = min(most, max(1, round(MASKED * len(known))), len(known))
            chosen = np.sort(rng.choice(known, count, replace=False)) if count else known
            places[row, :count], masked[row, :count], ids[row, chosen] = chosen, 1, tokens.mask
        return inputs | {"input_ids": ids, "places": places, "masked": masked}

    def pick(self, hidden: Float[Array, "batch length d"], inputs: Inputs) -> States:
        return jnp.take_along_axis(hidden, inputs["places"][..., None], axis=1)

    def places(self, inputs: Inputs) -> Float[Array, "batch places"]:
        return inputs["masked"]

    def counted(self, states: States, inputs: Inputs) -> Float[Array, "batch places"]:
        return inputs["masked"]

    def outputs(self, params: Any, config: ModelConfig, states: States, inputs: Inputs) -> Array:
        return logits_of(params, config, states, inputs["attention_mask"], NO_DROPOUT, "words")


MASKED = 0.15
"""Share of a text's tokens that `Words` masks."""
_MOST_LOGITS = 1 << 26


def _ordinary(inputs: dict[str, np.ndarray], tokens: Tokens) -> Bool[np.ndarray, "batch length"]:
    """Mask of the tokens that are neither padding nor special."""
    return (inputs["attention_mask"] != 0) & ~np.isin(inputs["input_ids"], list(tokens.special))


def _mean(x: Float[Array, "batch places"], counted: Float[Array, "batch places"]) -> Float[Array, " batch"]:
    """The mean over the places that count, 0 if none does."""
    return jnp.sum(x * counted, axis=1) / jnp.maximum(jnp.sum(counted, axis=1), 1)


def against_drawn(logits: Float[Array, "*batch n"], drawn: Array) -> Float[Array, "*batch n"]:
    """The gradient of the cross-entropy of the classes `drawn` with respect to the logits."""
    return jax.nn.softmax(logits) - jax.nn.one_hot(drawn, logits.shape[-1], dtype=logits.dtype)


def kl(outputs: Float[Array, "*batch n"], reference: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """KL(reference ‖ outputs) of two rows of logits, in nats."""
    logs, reference_logs = jax.nn.log_softmax(outputs), jax.nn.log_softmax(reference)
    return jnp.sum(jnp.exp(reference_logs) * (reference_logs - logs), axis=-1)


def same_argmax(outputs: Float[Array, "*batch n"], reference: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """1 if both rows of logits have their maximum at the same index, else 0."""
    return (jnp.argmax(outputs, axis=-1) == jnp.argmax(reference, axis=-1)).astype(outputs.dtype)


def _floats(labels: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    try:
        values = np.asarray(labels, np.float32)
    except (TypeError, ValueError):
        raise ValueError(
            f"`labels` holds a value that is not a number; expected an array of shape {shape}, {what}"
        ) from None
    if values.shape != shape:
        raise ValueError(f"`labels` has shape {values.shape}; expected {shape}, {what}")
    return values


def _known(values: np.ndarray, known: np.ndarray, expected: str) -> np.ndarray:
    if not np.all(known):
        raise ValueError(f"`labels` holds {values[~known].flat[0]:g}; expected {expected}")
    return values


def outputs_of(checkpoint: Checkpoint) -> Outputs:
    """The kind of a model's outputs, from its weights and config; `Embedding` if it has no supported head.

    Raises:
        ValueError: the model's head for spans does not have two outputs.
        CheckpointError, FileNotFoundError: as `read_pipeline`, for an embedding.
    """
    params, config, data = checkpoint.params, checkpoint.config, checkpoint.config_json or {}
    count = num_outputs(params, config, config.head)
    if config.head != "sequence":
        # A sentence encoder often keeps the word head of its pre-training; modules.json shows that it is an encoder.
        encoder = config.head == "words" and checkpoint.source is not None and bool(read_stages(checkpoint.source))
        if count is None or encoder:
            return Embedding(read_pipeline(checkpoint).stages)
        if config.head == "spans":
            check_span_outputs(count)
        return {"tokens": TokenClasses(count), "spans": Spans(), "words": Words()}[config.head]
    names = names_of(data.get("architectures"))
    if count is None or (any("For" in name for name in names) and not names_classifier(names)):
        # For example a head for multiple choice, whose output for a single text is meaningless.
        return Embedding(read_pipeline(checkpoint).stages)
    problem = data.get("problem_type")
    if problem == "multi_label_classification":
        return Labels(count)
    return Regression(count) if count == 1 or problem == "regression" else Classes(count)


def hidden_and_outputs(
    params: dict[str, Any], config: ModelConfig, inputs: Inputs, kind: Outputs, *, in_pieces: bool = False
) -> tuple[Float[Array, "batch places hidden"], Array]:
    """The last hidden states from which the outputs are computed, and the outputs.

    Weights may be `TappedWeight`s; nothing is checked. `in_pieces`: see `hidden_states`.
    """
    base = params.get(name_table(config).prefix, params)
    hidden = hidden_states(base, config, inputs, kind.reads(config), in_pieces=in_pieces)
    states = kind.pick(hidden, inputs)
    return states, kind.outputs(params, config, states, inputs)
