"""The state of a run of training on disk: one file, whole or not there."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lpjax._check import MOST
from lpjax._files.json import Fields, parse_object
from lpjax._files.replacing import replacing
from lpjax.checkpoint.safetensors import not_finite, read_tensors, write_tensors
from lpjax.training.step import TrainState


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


def save_state(path: Path, state: TrainState, best: Any, log: Log) -> None:
    """Write all of it as a safetensors file, whole or not at all."""
    log.losses = [float(loss) for loss in jax.device_get(log.losses)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        text = json.dumps(_without_infinities(dataclasses.asdict(log)), allow_nan=False)
        write_tensors(fresh, _named(state, best), {"log": text})


def load_state(
    path: Path, state: TrainState, best: Any, log: Log, *, from_start: bool = False
) -> tuple[TrainState, Any, Log]:
    """What `save_state` wrote, for the run that `state`, `best` and `log` begin.

    Args:
        path: the file.
        state, best, log: of the run as it begins.
        from_start: the run is one of `recover`: its curve begins before the first update, its losses may be
            infinite, and it may have gone back to an earlier state, with the moments of that.

    Raises:
        ValueError: the file is none of these, or of another run; says what differs.
    """
    try:
        tensors, metadata = read_tensors(path)
        found = _read_log(metadata, from_start)
        if found.about != log.about:
            raise ValueError(f"it is of another run: {_difference(found.about, log.about)}")
        named = list(_named(state, best))
        if odd := sorted(tensors.keys() ^ {name for name, _ in named}):
            raise ValueError(f"it lacks weights of this run, or has others: {', '.join(odd[:3])}")
        leaves = [tensors[name] for name, _ in named]
        strange = [name for (name, leaf), got in zip(named, leaves, strict=True) if not _alike(leaf, got)]
        if strange:
            raise ValueError(f"the weights {', '.join(strange[:3])} have another shape or format")
        for (name, _), got in zip(named, leaves, strict=True):
            _check_values(name, got, found.step, from_start)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be gone on from: {error}; delete it (--force) to start over") from None
    state, best = jax.tree.unflatten(jax.tree.structure((state, best)), leaves)
    return state, best, found


def _without_infinities(value: Any) -> Any:
    """`value` with None for what is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_infinities(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_log(metadata: dict[str, str] | None, from_start: bool) -> Log:
    """What a snapshot says of its run, checked as far as that can be without the run."""
    try:
        return _log(parse_object((metadata or {}).get("log", ""), "log"), from_start)
    except ValueError as error:
        raise ValueError(f"it holds no record of a run, as lpjax writes it: {error}") from None


def _log(fields: Fields, from_start: bool) -> Log:
    step = fields.need("step", fields.count("step", 0, MOST))
    if not (about := fields.anything("about")):
        raise fields.refuse("about", "an object")
    curve, last = [], 0
    for entry in fields.objects("curve"):
        begins = from_start and not curve
        least, most = (0, 0) if begins else (last + 1, max(step, last + 1))
        last = entry.need("step", entry.count("step", least, most))
        curve.append(_of_recovery(entry, begins) if from_start else _of_tuning(entry))
    if len({frozenset(entry) for entry in curve[from_start:]}) > 1 or (from_start and not curve):
        raise fields.refuse("curve", "entries of the same numbers")
    losses = fields.data.get("losses")
    if from_start and isinstance(losses, list):
        losses = [math.inf if one is None else one for one in losses]
    fits = isinstance(losses, list) and all(
        type(one) is float and (math.isfinite(one) or (from_start and one == math.inf)) for one in losses
    )
    if not isinstance(losses, list) or not fits or len(losses) != step - last:
        raise fields.refuse("losses", f"a list of {step - last} finite numbers")
    best = fields.count("best", 0, max(len(curve) - 1, 0))
    if (best is None) == bool(curve):
        raise fields.refuse("best", "the number of an entry of the curve, or null without one")
    seconds = fields.need("seconds", fields.number("seconds"))
    stopped = fields.need("stopped", fields.flag("stopped"))
    if seconds < 0:
        raise fields.refuse("seconds", "a number, 0 or more")
    return Log(about, step, losses, curve, best, stopped, seconds)


def _of_tuning(entry: Fields) -> dict[str, Any]:
    """An entry of the curve of `finetune`: numbers, metrics among them."""
    for name in dict.fromkeys(("epoch", "loss", "learning_rate", *entry.data)):
        entry.need(name, entry.number(name))
    if len(entry.data) < 5:
        raise entry.refuse("step", "metrics beside it")
    return dict(entry.data)


def _of_recovery(entry: Fields, first: bool) -> dict[str, Any]:
    """An entry of the curve of `recover`; what is null there is infinite."""
    names = ("step", "epoch", "divergence") if first else ("step", "epoch", "divergence", "loss", "learning_rate")
    if entry.data.keys() != set(names):
        raise entry.refuse("step", f"beside it {', '.join(names[1:])}")
    found = dict(entry.data)
    for name in names:
        if found[name] is None and name in ("divergence", "loss"):
            found[name] = math.inf
        else:
            entry.need(name, entry.number(name))
    return found


def _check_values(name: str, array: np.ndarray, step: int, from_start: bool) -> None:
    """Refuse numbers that training never has."""
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
