"""Divergence of a compressed model's outputs from the dense model's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lpjax._check import check_number, check_whole
from lpjax._mesh import by_rows, data_mesh, put_sharded, replicated
from lpjax.checkpoint import Checkpoint
from lpjax.data.batching import by_length, collate, round_up
from lpjax.models import ModelConfig, device_params
from lpjax.pipeline.outputs import Outputs, hidden_and_outputs, outputs_of


def disagreement(
    outputs: tuple[Array, Array],
    targets: tuple[Array, Array],
    inputs: dict[str, Array],
    kind: Outputs,
    hidden: float,
) -> Float[Array, " batch"]:
    """The divergence of outputs plus `hidden` times the relative squared error of hidden states, text by text.

    Args:
        outputs, targets: hidden states and outputs of the two models, as from `hidden_and_outputs`; if `hidden` is 0,
            the states are ignored.
        inputs: inputs of both models.
        kind: kind of the outputs.
        hidden: weight of the hidden states.
    """
    losses = kind.divergence(outputs[1], targets[1], inputs)
    if not hidden:
        return losses
    states, target_states = outputs[0], targets[0]
    tokens = kind.counted(states, inputs)
    errors, sizes = (jnp.sum(x**2, axis=2) for x in (states - target_states, target_states))
    share = jnp.sum(errors * tokens, axis=1) / jnp.maximum(jnp.sum(sizes * tokens, axis=1), 1e-6)
    return losses + hidden * share


class Divergence:
    """Mean of `disagreement` with a dense model over some texts, as a function of params.

    Tokens and the dense model's outputs stay on the devices. The function is compiled once per batch shape and
    structure of params: to compare many ranks without recompilation, call it with dense leaves.

    Attributes:
        tokens: the texts.
        kind: the kind of the compared outputs.
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
        """Run the dense model on the texts.

        Args:
            checkpoint: the dense model.
            first: n texts, or the first of n pairs.
            second: the second texts.
            hidden: weight of the relative squared error of the last hidden states, added to the divergence of the
                outputs; by default 1 with a head, else 0: see `Outputs.hidden`.
            tokenizer: a tokenizer of transformers; by default the one in `checkpoint.source`.
            batch_size: texts of a batch over all devices.
            max_length: largest number of tokens of a text.
            mesh: devices, along an axis "data"; by default all.

        Raises:
            ValueError: a batch size below 1, a weight below 0, or what `tokenize` refuses.
        """
        if hidden is not None:
            check_number("hidden", float(hidden))
        check_whole("`batch_size`", batch_size, 1)
        self._config, self._texts = checkpoint.config, len(first)
        self.kind = outputs_of(checkpoint)
        self._hidden = self.kind.hidden if hidden is None else float(hidden)
        self._mesh = data_mesh() if mesh is None else mesh
        self.tokens, self.kind = self.kind.tokenize(
            checkpoint, first, second, tokenizer=tokenizer, max_length=max_length
        )
        rows = round_up(batch_size, self._mesh, self._config)
        rng = np.random.default_rng(0)
        self._batches = [
            put_sharded(self.kind.prepare(collate(self.tokens, batch, rows), self.tokens, rng), by_rows(self._mesh))
            for batch in by_length(self.tokens, rows)
        ]
        params = self._on_devices(checkpoint.params)
        self._dense = params if self.kind.wide else None
        self._targets = [self._kept(params, inputs) for inputs in self._batches]

    def _kept(self, params: Any, inputs: dict[str, Array]) -> tuple[Array, Array | None]:
        """The dense model's hidden states and outputs to keep; only the states if the outputs are wide."""
        states, outputs = _outputs(params, self._config, inputs, self.kind, self.kind.wide or bool(self._hidden))
        return states, None if self.kind.wide else outputs

    def _on_devices(self, params: Any) -> Any:
        return jax.device_put(device_params(params, expand=True), replicated(self._mesh))

    def __call__(self, params: Any) -> float:
        """The mean divergence, 0 for the dense model."""
        # Rounding can make the divergence of nearly equal models slightly negative.
        return float(np.maximum(self._mean(params, agreement=False), 0.0))

    def agreement(self, params: Any) -> float | None:
        """Mean share of equal predictions per text; None if outputs are not classes."""
        if type(self.kind).agreement is Outputs.agreement:
            return None
        return self._mean(params, agreement=True)

    def _mean(self, params: Any, agreement: bool) -> float:
        params = self._on_devices(params)
        parts = [
            _sum_over(params, self._config, inputs, targets, self.kind, self._hidden, self._dense, agreement)
            for inputs, targets in zip(self._batches, self._targets, strict=True)
        ]
        return float(np.sum(np.asarray(jax.device_get(parts), np.float64))) / self._texts


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def _outputs(
    params: dict[str, Any], config: ModelConfig, inputs: dict[str, Array], kind: Outputs, hidden: bool
) -> tuple[Array, Array]:
    """Hidden states, if requested, and outputs."""
    with jax.default_matmul_precision("highest"):
        states, outputs = hidden_and_outputs(params, config, inputs, kind, in_pieces=True)
    return states if hidden else jnp.zeros(()), outputs


@functools.partial(jax.jit, static_argnums=(1, 4, 5, 7))
def _sum_over(
    params: dict[str, Any],
    config: ModelConfig,
    inputs: dict[str, Array],
    targets: tuple[Array, Array | None],
    kind: Outputs,
    hidden: float,
    dense: dict[str, Any] | None,
    agreement: bool,
) -> Array:
    """Disagreement or agreement, summed over the texts of a batch."""
    compared, mask = _outputs(params, config, inputs, kind, bool(hidden)), inputs["attention_mask"]
    states, outputs = targets
    if outputs is None:
        with jax.default_matmul_precision("highest"):
            outputs = kind.outputs(dense, config, states, inputs)
    there = jnp.max(mask.astype(compared[1].dtype), axis=1)  # 0 for rows of padding
    if agreement:
        shares = kind.agreement(compared[1], outputs, inputs)
        assert shares is not None
        return jnp.sum(shares * there)
    return jnp.sum(disagreement(compared, (states, outputs), inputs, kind, hidden) * there)
