"""How far the outputs of a smaller net are from those of the dense one."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lpjax._check import check_whole
from lpjax._mesh import by_rows, data_mesh, put_sharded, replicated
from lpjax.checkpoint import Checkpoint
from lpjax.data.batching import Tokens, by_length, collate, round_up
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
        outputs, targets: of the two nets, as `hidden_and_outputs` returns them; if `hidden` is 0, states are ignored.
        inputs: of both nets.
        kind: of the outputs.
        hidden: share of the hidden states.
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
                beside the outputs; by default 1 if a head makes them, else 0: see `Outputs.hidden`.
            tokenizer: of transformers; by default the one in `checkpoint.source`.
            batch_size: texts of a batch over all devices.
            max_length: tokens of a text at most.
            mesh: devices, along an axis "data"; by default all.

        Raises:
            ValueError: a batch size below 1, a share below 0, or what `tokenize` refuses.
        """
        if hidden is not None and not 0 <= hidden < float("inf"):
            raise ValueError(f"`hidden` is {hidden}; expected a finite number, 0 or more")
        check_whole("`batch_size`", batch_size, 1)
        self._config, self._texts = checkpoint.config, len(first)
        self._kind = outputs_of(checkpoint)
        self._hidden = self._kind.hidden if hidden is None else float(hidden)
        self._mesh = data_mesh() if mesh is None else mesh
        tokens, self._kind = self._kind.tokenize(checkpoint, first, second, tokenizer=tokenizer, max_length=max_length)
        self._tokens = tokens
        rows = round_up(batch_size, self._mesh, self._config)
        rng = np.random.default_rng(0)
        self._batches = [
            put_sharded(self._kind.prepare(collate(tokens, batch, rows), tokens, rng), by_rows(self._mesh))
            for batch in by_length(tokens, rows)
        ]
        params = self._on_devices(checkpoint.params)
        self._dense = params if self._kind.wide else None
        self._wanted = [self._kept(params, inputs) for inputs in self._batches]

    def _kept(self, params: Any, inputs: dict[str, Array]) -> tuple[Array, Array | None]:
        """What is kept of the dense net: outputs, or if these are wide the hidden states that make them."""
        states, outputs = _outputs(params, self._config, inputs, self._kind, self._kind.wide or bool(self._hidden))
        return states, None if self._kind.wide else outputs

    def _on_devices(self, params: Any) -> Any:
        return jax.device_put(device_params(params, expand=True), replicated(self._mesh))

    def __call__(self, params: Any) -> float:
        """The mean divergence, 0 for the dense net."""
        # Rounding leaves the divergence of nets that are nearly equal a little below 0, which none is.
        return float(np.maximum(self._mean(params, agreement=False), 0.0))

    def agreement(self, params: Any) -> float | None:
        """The mean share of a text's predictions that are those of the dense net; None if there are none."""
        if type(self._kind).agreement is Outputs.agreement:
            return None
        return self._mean(params, agreement=True)

    @property
    def tokens(self) -> Tokens:
        """The texts, tokenized."""
        return self._tokens

    @property
    def kind(self) -> Outputs:
        """What outputs are compared."""
        return self._kind

    def _mean(self, params: Any, agreement: bool) -> float:
        params = self._on_devices(params)
        parts = [
            _sum_over(params, self._config, inputs, wanted, self._kind, self._hidden, self._dense, agreement)
            for inputs, wanted in zip(self._batches, self._wanted, strict=True)
        ]
        return float(np.sum(np.asarray(jax.device_get(parts), np.float64))) / self._texts


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def _outputs(
    params: dict[str, Any], config: ModelConfig, inputs: dict[str, Array], kind: Outputs, hidden: bool
) -> tuple[Array, Array]:
    """Hidden states, if they are asked for, and outputs."""
    with jax.default_matmul_precision("highest"):
        states, outputs = hidden_and_outputs(params, config, inputs, kind, in_pieces=True)
    return states if hidden else jnp.zeros(()), outputs


@functools.partial(jax.jit, static_argnums=(1, 4, 5, 7))
def _sum_over(
    params: dict[str, Any],
    config: ModelConfig,
    inputs: dict[str, Array],
    wanted: tuple[Array, Array | None],
    kind: Outputs,
    hidden: float,
    dense: dict[str, Any] | None,
    agreement: bool,
) -> Array:
    """The sum over the texts of a batch, of how far the two nets disagree or how far they agree."""
    found, mask = _outputs(params, config, inputs, kind, bool(hidden)), inputs["attention_mask"]
    states, outputs = wanted
    if outputs is None:
        with jax.default_matmul_precision("highest"):
            outputs = kind.outputs(dense, config, states, inputs)
    there = jnp.max(mask.astype(found[1].dtype), axis=1)  # 0 for the rows that fill up a batch
    if agreement:
        shares = kind.agreement(found[1], outputs, inputs)
        assert shares is not None
        return jnp.sum(shares * there)
    return jnp.sum(disagreement(found, (states, outputs), inputs, kind, hidden) * there)
