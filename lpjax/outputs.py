"""What a net says of a text, and how far a smaller net is from it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from lpjax._mesh import by_rows, data_mesh, replicated, spread
from lpjax.batching import by_length, collate, round_up, tokenize
from lpjax.checkpoint import Checkpoint
from lpjax.models import ModelConfig, architecture, classify, device_params, encode
from lpjax.models.head import num_outputs
from lpjax.models.layers import NO_DROPOUT, mean_pool
from lpjax.models.names import names_classifier
from lpjax.tokenize import tokenizer_of


def outputs_of(checkpoint: Checkpoint) -> int | None:
    """How many outputs a net has by its head for sequence classification; None of a net without one, or whose
    config.json says that it has another kind of head: the embedding is then what it says of a text.

    Raises:
        ValueError: several labels at a time, which is neither a classification nor a regression.
    """
    data = checkpoint.config_json or {}
    names = data.get("architectures")
    names = [str(name) for name in names] if isinstance(names, list) else []
    if any("For" in name for name in names) and not names_classifier(names):
        return None
    outputs = num_outputs(checkpoint.params, checkpoint.config)
    if outputs is not None and data.get("problem_type") == "multi_label_classification":
        raise ValueError(
            "the net tells several labels at a time (`problem_type` in its config.json), and only classes that exclude "
            "each other, regressions and embeddings can be compared; leave its head out"
        )
    return outputs


def hidden_and_outputs(
    params: dict[str, Any], config: ModelConfig, inputs: dict[str, Array], headed: bool
) -> tuple[Float[Array, "batch length hidden"], Float[Array, "batch outputs"]]:
    """The last hidden states, all or those that a head reads, and the outputs that are made of them.

    Those are logits of a classification head, or of a net without one the mean-pooled embedding at length 1; of padding
    0. Weights may be `Probe`s; nothing is checked.
    """
    arch = architecture(config)
    base = params.get(arch.name_table(config).prefix, params)
    wanted = arch.summarized(config) if headed else slice(None)
    given = inputs["input_ids"], inputs["attention_mask"].astype(bool), inputs.get("token_type_ids")
    hidden = arch.forward(base, config, *given, np.dtype("float32"), NO_DROPOUT, wanted)
    if headed:
        return hidden, arch.classify(params, config, hidden, NO_DROPOUT)
    return hidden, _embedding(hidden, given[1])


def _embedding(hidden: Float[Array, "batch length d"], mask: Bool[Array, "batch length"]) -> Float[Array, "batch d"]:
    """The mean over the tokens, at length 1."""
    pooled = mean_pool(hidden, mask)
    there = jnp.any(mask, axis=1, keepdims=True)
    square = jnp.where(there, jnp.sum(pooled**2, axis=1, keepdims=True), 1)
    return pooled * jax.lax.rsqrt(jnp.maximum(square, jnp.finfo(square.dtype).tiny))


def divergence(
    found: Float[Array, "batch outputs"], wanted: Float[Array, "batch outputs"], headed: bool
) -> Float[Array, " batch"]:
    """How far the outputs of one net are from another's, text by text.

    Of classes KL(wanted ‖ found) in nats, the loss of distillation (Hinton et al., arXiv 1503.02531, at temperature
    1); of a regression the squared difference; of embeddings half the squared distance, 1 − cosine.
    """
    if not headed:
        return jnp.sum((found - wanted) ** 2, axis=1) / 2
    if wanted.shape[1] == 1:
        return (found[:, 0] - wanted[:, 0]) ** 2
    logs, wanted_logs = jax.nn.log_softmax(found), jax.nn.log_softmax(wanted)
    return jnp.sum(jnp.exp(wanted_logs) * (wanted_logs - logs), axis=1)


def disagreement(
    found: tuple[Array, Array],
    wanted: tuple[Array, Array],
    mask: Array,
    headed: bool,
    hidden: float,
) -> Float[Array, " batch"]:
    """The `divergence` of outputs plus `hidden` times the relative squared error of hidden states, text by text.

    Args:
        found, wanted: as `hidden_and_outputs` gives them; without `hidden` states may be anything.
        mask: shape (batch, length), 0 for padding.
        headed: whether the outputs are a head's.
        hidden: share of the hidden states.
    """
    losses = divergence(found[1], wanted[1], headed)
    if not hidden:
        return losses
    states, wanted_states = found[0], wanted[0]
    mask = mask.astype(states.dtype)
    tokens = mask if states.shape[1] == mask.shape[1] else jnp.ones(states.shape[:2], states.dtype)
    errors, sizes = (jnp.sum(x**2, axis=2) for x in (states - wanted_states, wanted_states))
    share = jnp.sum(errors * tokens, axis=1) / jnp.maximum(jnp.sum(sizes * tokens, axis=1), 1e-6)
    return losses + hidden * share


class Divergence:
    """How far nets are from a dense one on some texts: called with params, the mean of `disagreement` over the texts.

    Tokens and outputs of the dense net stay on the devices. Compiled once per shape of a batch and structure of params:
    of many ranks, better call it with dense leaves.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        first: Sequence[str],
        second: Sequence[str] | None = None,
        *,
        hidden: float | None = None,
        tokenizer: Any = None,
        batch_size: int = 32,
        max_length: int | None = 128,
        mesh: Mesh | None = None,
    ) -> None:
        """Run the dense net.

        Args:
            checkpoint: it.
            first: n texts, or the first of n pairs.
            second: the second texts.
            hidden: what the relative squared error of the last hidden states that the outputs are made of counts
                beside the outputs; by default 1 where a head makes them, else 0. The few outputs of a head say little
                of a net on few texts: nets whose hidden states are far apart can agree in them by chance.
            tokenizer: of transformers; by default the one in `checkpoint.source`.
            batch_size: texts of a batch over all devices.
            max_length: tokens of a text at most.
            mesh: devices, along an axis "data"; by default all.

        Raises:
            ValueError: a batch size below 1, a share below 0, or what `tokenize` refuses.
        """
        if hidden is not None and not 0 <= hidden < float("inf"):
            raise ValueError(f"`hidden` is {hidden}; expected a finite number, 0 or more")
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; expected 1 or more")
        self._config, self._texts = checkpoint.config, len(first)
        self._headed = outputs_of(checkpoint) is not None
        self._hidden = float(self._headed) if hidden is None else hidden
        self._mesh = data_mesh() if mesh is None else mesh
        tokenizer = tokenizer_of(checkpoint) if tokenizer is None else tokenizer
        limits = [limit for limit in (max_length, self._config.max_length) if limit is not None]
        tokens = tokenize(tokenizer, self._config, first, second, max_length=min(limits, default=None))
        rows = round_up(batch_size, self._mesh, self._config)
        self._batches = [spread(collate(tokens, batch, rows), by_rows(self._mesh)) for batch in by_length(tokens, rows)]
        params = self._on_devices(checkpoint.params)
        self._wanted = [
            _says(params, self._config, inputs, self._headed, bool(self._hidden)) for inputs in self._batches
        ]

    def _on_devices(self, params: Any) -> Any:
        return jax.device_put(device_params(params, expand=True), replicated(self._mesh))

    def __call__(self, params: Any) -> float:
        """The mean divergence, 0 for the dense net."""
        params = self._on_devices(params)
        parts = [
            _sum_over(params, self._config, inputs, wanted, self._headed, self._hidden)
            for inputs, wanted in zip(self._batches, self._wanted, strict=True)
        ]
        return float(np.sum(np.asarray(jax.device_get(parts), np.float64))) / self._texts


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def _says(
    params: dict[str, Any], config: ModelConfig, inputs: dict[str, Array], headed: bool, hidden: bool
) -> tuple[Array, Array]:
    """Hidden states, where they are asked for, and outputs."""
    if hidden:
        with jax.default_matmul_precision("highest"):
            return hidden_and_outputs(params, config, inputs, headed)
    if headed:
        outputs = classify(params, config, inputs)
    else:
        outputs = _embedding(encode(params, config, inputs), inputs["attention_mask"].astype(bool))
    return jnp.zeros(()), outputs


@functools.partial(jax.jit, static_argnums=(1, 4, 5))
def _sum_over(
    params: dict[str, Any],
    config: ModelConfig,
    inputs: dict[str, Array],
    wanted: tuple[Array, Array],
    headed: bool,
    hidden: float,
) -> Array:
    """The sum over the texts of a batch."""
    found, mask = _says(params, config, inputs, headed, bool(hidden)), inputs["attention_mask"]
    there = jnp.max(mask.astype(found[1].dtype), axis=1)  # 0 for the rows that fill up a batch
    return jnp.sum(disagreement(found, wanted, mask, headed, hidden) * there)
