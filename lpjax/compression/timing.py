"""Times of several runs, to be compared with each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def least_seconds(
    runs: Sequence[Callable[[], Any]], *, rounds: int, seconds: float = 0.0, in_a_row: int = 1
) -> list[float]:
    """Least seconds of each run; runs take turns, so that a machine that slows down slows all of them.

    Each is first run twice, to compile and to warm up, and every result is waited for. The least time counts, because
    disturbances only add time.

    Args:
        runs: functions whose results JAX may still be computing when they return.
        rounds: the least number of rounds.
        seconds: further rounds follow until this time is over.
        in_a_row: how often each is run in a round.
    """
    for run in (*runs, *runs):
        jax.block_until_ready(run())
    least = [np.inf] * len(runs)
    began, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - began < seconds:
        done += 1
        for i, run in enumerate(runs):
            for _ in range(in_a_row):
                start = time.perf_counter()
                jax.block_until_ready(run())
                least[i] = min(least[i], time.perf_counter() - start)
    return least
