"""The state of a training run on disk, in one file that is written whole or not at all."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import jax
import msgspec
import numpy as np

from lpjax._check import MOST
from lpjax._files.json import as_type, finite, json_line, parse_object
from lpjax._files.replacing import replacing
from lpjax.checkpoint.safetensors import not_finite, read_tensors, write_tensors
from lpjax.training.step import TrainState


@dataclasses.dataclass
class Log:
    """The progress of a run, besides its weights.

    Attributes:
        about: identity of the run (model, task, splits, settings), compared when it resumes.
        step: number of updates made.
        losses: losses of the updates since the last evaluation.
        curve: entries by evaluation.
        best: index of the best entry; None before the first evaluation.
        stopped: whether patience ran out.
        seconds: training time so far.
    """

    about: dict[str, Any]
    step: int = 0
    losses: list[Any] = dataclasses.field(default_factory=list)
    curve: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: int | None = None
    stopped: bool = False
    seconds: float = 0.0


def save_state(path: Path, state: TrainState, best: Any, log: Log) -> None:
    """Write state, best weights and log as one safetensors file, whole or not at all."""
    log.losses = [float(loss) for loss in jax.device_get(log.losses)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as staging:
        write_tensors(staging, _named(state, best), {"log": json_line(finite(dataclasses.asdict(log)))})


def load_state(
    path: Path, state: TrainState, best: Any, log: Log, *, from_start: bool = False
) -> tuple[TrainState, Any, Log]:
    """Read what `save_state` wrote.

    Args:
        path: the file.
        state, best, log: initial values of the run to resume, which the file must match.
        from_start: whether the run is one of `recover`: its curve begins before the first update, its losses may be
            infinite, and it may have returned to an earlier state and that state's moments.

    Raises:
        ValueError: the file is not a snapshot, or of another run; names the differences.
    """
    try:
        tensors, metadata = read_tensors(path)
        stored = _read_log(metadata, from_start)
        if stored.about != log.about:
            raise ValueError(f"it belongs to another run: {_difference(stored.about, log.about)}")
        named = list(_named(state, best))
        if unmatched := sorted(tensors.keys() ^ {name for name, _ in named}):
            raise ValueError(f"it lacks weights of this run, or has others: {', '.join(unmatched[:3])}")
        leaves = [tensors[name] for name, _ in named]
        misfits = [name for (name, leaf), got in zip(named, leaves, strict=True) if not _alike(leaf, got)]
        if misfits:
            raise ValueError(f"the weights {', '.join(misfits[:3])} have another shape or format")
        for (name, _), got in zip(named, leaves, strict=True):
            _check_values(name, got, stored.step, from_start)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot resume from {path}: {error}; delete it (--force) to start over") from None
    state, best = jax.tree.unflatten(jax.tree.structure((state, best)), leaves)
    return state, best, stored


class _StoredLog(msgspec.Struct):
    about: Annotated[dict[str, Any], msgspec.Meta(min_length=1)]
    step: Annotated[int, msgspec.Meta(ge=0, le=MOST)]
    losses: list[float | None]
    curve: list[dict[str, int | float | None]]
    best: Annotated[int, msgspec.Meta(ge=0)] | None
    stopped: bool
    seconds: Annotated[float, msgspec.Meta(ge=0)]


def _read_log(metadata: dict[str, str] | None, from_start: bool) -> Log:
    """The log in a snapshot, checked as far as possible without the run."""
    try:
        stored = as_type(parse_object((metadata or {}).get("log", ""), "log"), _StoredLog, "log")
        return _log(stored, from_start)
    except ValueError as error:
        raise ValueError(f"it does not hold a record of a run that lpjax wrote: {error}") from None


_NUMBERS = ("epoch", "loss", "learning_rate")


def _log(stored: _StoredLog, from_start: bool) -> Log:
    """The log; null is read as infinity where a run of `recover` may have one.

    Raises:
        ValueError: the parts do not fit together.
    """
    curve: list[dict[str, Any]] = []
    last = 0
    for i, stored_entry in enumerate(stored.curve):
        begins = from_start and i == 0
        entry = _with_infinities(stored_entry, ("divergence", "loss") if from_start else ())
        names = ("epoch", "divergence") if begins else (*_NUMBERS, "divergence") if from_start else _NUMBERS
        step = entry.pop("step", None)
        if type(step) is not int or not (step == 0 if begins else last < step <= max(stored.step, last + 1)):
            raise ValueError(f"log: curve[{i}].step is {step}; expected an update after the one before")
        if None in entry.values() or set(names) - entry.keys() or (from_start and len(entry) > len(names)):
            raise ValueError(f"log: curve[{i}] holds {', '.join(entry)}; expected finite numbers, {', '.join(names)}")
        if not from_start and len(entry) == len(names):
            raise ValueError(f"log: curve[{i}] holds no metric; expected one or more")
        curve.append({name: step if name == "step" else entry[name] for name in stored_entry})
        last = step
    if len({frozenset(entry) for entry in curve[from_start:]}) > 1 or (from_start and not curve):
        raise ValueError("log: curve has entries of different numbers, or none; expected the same in all")
    losses = [math.inf if loss is None and from_start else loss for loss in stored.losses]
    if None in losses or len(losses) != stored.step - last:
        raise ValueError(f"log: losses has {len(losses)} entries; expected {stored.step - last} finite numbers")
    if (stored.best is None) == bool(curve) or (stored.best or 0) >= max(len(curve), 1):
        raise ValueError(f"log: best is {stored.best}; expected the number of an entry of the curve, null without one")
    return Log(stored.about, stored.step, losses, curve, stored.best, stored.stopped, stored.seconds)


def _with_infinities(entry: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: math.inf if value is None and name in names else value for name, value in entry.items()}


def _check_values(name: str, array: np.ndarray, step: int, from_start: bool) -> None:
    """Refuse numbers that training never produces."""
    if array.dtype.kind in "iu":  # Adam's count of updates, or places of single entries, which are checked elsewhere
        fits = (array >= 0) & (array <= step) if from_start else array == step
        if name.endswith("/count") and not np.all(fits):
            raise ValueError(f"{name} is {array}, but {step} updates were made")
    elif any(not_finite([(name, array)])):
        raise ValueError(f"{name} holds NaN or infinity")
    elif "/nu/" in name and np.any(array < 0):
        raise ValueError(f"{name} holds squares below 0")


def _alike(leaf: Any, got: np.ndarray) -> bool:
    return got.shape == np.shape(leaf) and got.dtype == leaf.dtype


def _named(state: TrainState, best: Any) -> list[tuple[str, Any]]:
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
