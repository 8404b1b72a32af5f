"""Comparable run times of several functions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def least_seconds(
    runs: Sequence[Callable[[], Any]], *, rounds: int, seconds: float = 0.0, in_a_row: int = 1
) -> list[float]:
    """Minimum seconds of each run; runs take turns, so that a slowdown of the machine affects all of them.

    Each is first run twice, to compile and to warm up, and every result is waited for. The minimum is used, as
    disturbances only add time.

    Args:
        runs: functions to time, whose results JAX may compute asynchronously.
        rounds: smallest number of rounds.
        seconds: smallest total time; further rounds follow until it is over.
        in_a_row: number of times that each is run in a round.
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
