"""Score against size, of plain rounding, the SVD with factors in 8 bits, and rounding weighted by text."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lpjax import Calibration, Checkpoint, allocate, compress, encode, load_checkpoint, plan_for_size, save_checkpoint
from lpjax.compression import Choice, Plan
from lpjax.compression.outcome import Outcome, outcome_of
from lpjax.compression.timing import least_seconds
from lpjax.models import device_params
from lpjax.select import leaves_with_paths

OURS = "lpjax"
_ROUNDED: list[tuple[str, int, int | None]] = [("8 bits, a scale a row", 8, None), ("4 bits, groups of 32", 4, 32)]
_BUDGET = 0.5  # of the parameters, for the SVD
_SIZES = (0.1, 0.077, 0.055)  # of the dense model's bytes: 9, 7 and 5 MB of all-MiniLM-L6-v2
_BATCH, _ROUNDS = (32, 64), 3  # texts and tokens of the forward pass that is timed


class Sized(NamedTuple):
    """A way to make the file of a model smaller.

    Attributes:
        method, setting: names for the table.
        plan: of the model.
        statistics: for the plan; None for plain rounding.
        int8: whether the factors get 8 bits as they are written.
    """

    method: str
    setting: str
    plan: Callable[[], Plan]
    statistics: Calibration | None
    int8: bool = False


def ways(dense: Checkpoint, calibration: Calibration) -> list[Sized]:
    """The rows of the table, the peers first."""
    params = dense.params

    def rounding(bits: int, group: int | None) -> Callable[[], Plan]:
        return lambda: rounding_plan(params, bits, group)

    def svd() -> Plan:
        return allocate(params, budget=_BUDGET, statistics=calibration)

    def sized(size: float) -> Callable[[], Plan]:
        return lambda: plan_for_size(params, size, statistics=calibration)

    return [
        *(Sized("rounding", setting, rounding(bits, group), None) for setting, bits, group in _ROUNDED),
        Sized("svd, by text", f"{_BUDGET:.0%} of the parameters, 8 bits", svd, calibration, int8=True),
        *(Sized(OURS, f"--size {100 * size:g}%", sized(size), calibration) for size in _SIZES),
    ]


def rounding_plan(params: Any, bits: int, group: int | None) -> Plan:
    """Plain rounding of all matrices; a `group` of None is a whole line."""
    matrices = [path for path, leaf in leaves_with_paths(params) if leaf.ndim == 2]
    return Plan(dict.fromkeys(matrices, Choice(None, bits=bits, group=group)), rest="float16")


def size_row(
    dense: Checkpoint, way: Sized, score: Callable[[Checkpoint], float], model: str
) -> tuple[dict[str, Any], Outcome]:
    """What a way costs, and what it made; scored as its file is when it is loaded again.

    Args:
        dense: the model.
        way: one of `ways`.
        score: of a model.
        model: name of the model for the record.
    """
    began = time.perf_counter()
    plan = way.plan()
    compressed = compress(dense.params, plan, way.statistics)
    seconds = time.perf_counter() - began
    outcome = outcome_of(dense, compressed, plan, way.statistics, model=model, options={})
    with tempfile.TemporaryDirectory() as folder:
        size = save_checkpoint(outcome.checkpoint, Path(folder) / "net", int8=way.int8)
        small = dataclasses.replace(load_checkpoint(Path(folder) / "net"), source=dense.source)
    row = {
        "method": way.method,
        "setting": way.setting,
        "bytes": size,
        "score": score(small),
        "forward": _forward(dense, small),
        "seconds": seconds,
    }
    return row, outcome


def _forward(dense: Checkpoint, small: Checkpoint) -> float:
    """Time of a forward pass as a share of the dense model's; they take turns."""
    texts, tokens = _BATCH
    shape = texts, min(tokens, dense.config.max_length or tokens)
    ids = np.random.default_rng(0).integers(0, dense.config.vocab_size, shape)
    batch = {"input_ids": ids.astype(np.int32)}
    run = jax.jit(lambda params: encode(params, dense.config, batch))
    trees = [device_params(net.params) for net in (dense, small)]
    first, second = least_seconds([lambda tree=tree: run(tree) for tree in trees], rounds=_ROUNDS)
    return second / first
