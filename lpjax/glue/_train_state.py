"""The state of a fine-tuning run on disk: one file, whole or not there."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lpjax._replacing import replacing
from lpjax.glue._train_step import Params, TrainState


@dataclasses.dataclass
class Log:
    """What a run has done so far, besides its weights.

    Attributes:
        about: what makes the run what it is: the net, task, splits, settings; compared when it goes on.
        step: updates made.
        losses: of the updates since the last evaluation.
        curve: an entry an evaluation.
        best: index of the best of them.
        stopped: whether patience ran out.
        seconds: spent.
    """

    about: dict[str, Any]
    step: int = 0
    losses: list[Any] = dataclasses.field(default_factory=list)
    curve: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: int | None = None
    stopped: bool = False
    seconds: float = 0.0


def save_state(path: Path, state: TrainState, best: Params, log: Log) -> None:
    """Write all of it as a safetensors file, under a temporary name that is then renamed."""
    from safetensors.numpy import save_file

    log.losses = [float(loss) for loss in jax.device_get(log.losses)]
    tensors = {name: np.asarray(leaf, order="C") for name, leaf in _named(state, best)}
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.new"):
        left.unlink(missing_ok=True)  # of a run that was killed while it wrote
    with replacing(path) as fresh:
        save_file(tensors, fresh, metadata={"log": json.dumps(dataclasses.asdict(log))})
        with fresh.open("rb") as file:
            os.fsync(file.fileno())


def load_state(path: Path, state: TrainState, best: Params, log: Log) -> tuple[TrainState, Params, Log]:
    """What `save_state` wrote, for the run that `state`, `best` and `log` begin.

    Raises:
        ValueError: the file is none of these, or of another run; says what differs.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            found = _read_log(file.metadata())
            if found.about != log.about:
                raise ValueError(f"it is of another run: {_difference(found.about, log.about)}")
            named = list(_named(state, best))
            leaves = [file.get_tensor(name) for name, _ in named]
        strange = [name for (name, leaf), got in zip(named, leaves, strict=True) if not _alike(leaf, got)]
        if strange:
            raise ValueError(f"the weights {', '.join(strange[:3])} have another shape or format")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} can't be gone on from: {error}; delete it (--force) to start over") from None
    state, best = jax.tree.unflatten(jax.tree.structure((state, best)), leaves)
    return state, best, found


def _read_log(metadata: dict[str, str] | None) -> Log:
    try:
        found = Log(**json.loads((metadata or {})["log"]))
    except (KeyError, TypeError, ValueError):
        found = None
    if found is None or not isinstance(found.about, dict):
        raise ValueError("it holds no record of a run, as `lpjax finetune` writes it")
    return found


def _alike(leaf: Any, got: np.ndarray) -> bool:
    return got.shape == np.shape(leaf) and got.dtype == leaf.dtype


def _named(state: TrainState, best: Params) -> list[tuple[str, Any]]:
    pairs, _ = jax.tree_util.tree_flatten_with_path((state, best))
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in pairs]


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    def flat(tree: dict[str, Any]) -> dict[str, Any]:
        for key in ("net", "settings"):
            if isinstance(tree.get(key), dict):
                tree = {name: value for name, value in tree.items() if name != key} | tree[key]
        return tree

    old, new = flat(before), flat(now)
    keys = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    return "; ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in keys)
