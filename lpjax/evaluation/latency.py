"""Latency of the forward pass, dense and factored."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from lpjax.checkpoint import Checkpoint
from lpjax.models import device_params, encode

SHAPES = ((32, 64), (1, 32))
"""Batch shapes (texts, tokens): many texts, and a single one."""

_LEAST, _MOST = 5, 40  # number of runs of each model
_SECONDS = 2.5  # after this time no further run starts


@dataclasses.dataclass(frozen=True)
class Latency:
    """Seconds of one forward pass.

    Attributes:
        batch, length: number of texts, and tokens of each.
        dense, factored: seconds of each run after compilation and warm-up.
    """

    batch: int
    length: int
    dense: tuple[float, ...]
    factored: tuple[float, ...]

    @property
    def medians(self) -> tuple[float, float]:
        """Median of the dense and of the factored model."""
        return statistics.median(self.dense), statistics.median(self.factored)

    @property
    def ratio(self) -> float:
        """Time of the factored model over that of the dense one."""
        dense, factored = self.medians
        return factored / dense


def measure_latency(
    dense: Checkpoint, factored: Checkpoint, *, shapes: Sequence[tuple[int, int]] = SHAPES, seed: int = 0
) -> list[Latency]:
    """Time the computation of hidden states of random tokens in float32, after compilation and one warm-up run.

    The models take turns, so that other work on the machine slows both.

    Args:
        dense, factored: two models with the same config.
        shapes: (texts, tokens) of each batch; lengths are cut to the model's number of positions.
        seed: random seed of the tokens.
    """
    nets = [device_params(net.params, jnp.float32, expand=True) for net in (dense, factored)]
    config = dense.config
    rng = np.random.default_rng(seed)
    results = []
    for batch, tokens in shapes:
        length = min(tokens, config.max_length or tokens)
        ids = rng.integers(0, config.vocab_size, (batch, length), dtype=np.int32)
        # RoBERTa does not count padding in positions.
        if config.padding_id is not None:
            ids[ids == config.padding_id] = config.vocab_size - 1
        inputs = {"input_ids": jnp.asarray(ids)}

        def run(net: int, inputs: Mapping[str, object] = inputs) -> float:
            began = time.perf_counter()
            encode(nets[net], config, inputs).block_until_ready()
            return time.perf_counter() - began

        for net in (0, 1, 0, 1):  # the first compiles, the second warms up
            run(net)
        times: tuple[list[float], list[float]] = ([], [])
        began = time.perf_counter()
        while len(times[0]) < _LEAST or (len(times[0]) < _MOST and time.perf_counter() - began < _SECONDS):
            for net in (0, 1) if len(times[0]) % 2 == 0 else (1, 0):
                times[net].append(run(net))
        results.append(Latency(batch, length, tuple(times[0]), tuple(times[1])))
    return results
