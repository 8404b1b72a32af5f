"""The training loop: updates, checks on held-out examples, and snapshots from which an interrupted run resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from lpjax._check import check_settings
from lpjax._files.replacing import check_space, claimed
from lpjax._mesh import put_sharded, replicated
from lpjax.data.batching import Batch, Tokens, shuffled
from lpjax.models import ModelConfig, device_params
from lpjax.training.snapshot import Log, load_state, save_state
from lpjax.training.step import Schedule, TrainState, begin, loss_sum, make_optimizer, train_step
from lpjax.weights.dispatch import with_scales

_SLOWER = 1 / 3  # factor of the learning rate at each restart

Progress = Callable[[int, int, str], None]


class SnapshotWarning(RuntimeWarning):
    """A snapshot could not be written; training goes on."""


@dataclasses.dataclass(frozen=True)
class CommonSettings:
    """Settings that all training shares; `Settings` and `Recovery` document them."""

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    max_length: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"epochs": 1, "batch_size": 1, "max_length": 1, "seed": 0}
        check_settings(self, counts, ("learning_rate", "warmup", "weight_decay", "clip"))


class Problem(NamedTuple):
    """A training problem: the loss to minimise, and the metric that measures the result.

    Attributes:
        config: the model's config.
        tokens: the training texts.
        parts: (batch, updates made) -> inputs, targets and weights of `train_step`.
        measure: params -> metrics by name, on held-out examples.
        leading: name of the metric that chooses the best check.
        sign: 1 if a larger metric is better, −1 if a smaller one is.
        every: number of updates between checks.
        span: number of updates after which the count for `every` restarts; each span ends with a check.
        about: values that must be equal for a run to resume from a snapshot, besides config and settings.
        start: function that gives the metrics before training. If it is given, the start may be the best, and after a
            check that is no better than the best so far, training restarts from the best state at a third of the
            learning rate; losses that are not finite become infinite. Otherwise a loss that is not finite ends the run.
        patience: number of checks without improvement after which training stops; None for no limit.
        loss: loss summed over the rows, with the arguments of `loss_sum`.
        dtype: dtype of the computation; weights and moments are float32.
        title: title of the run, for `progress`.
    """

    config: ModelConfig
    tokens: Tokens
    parts: Callable[[Batch, int], tuple[Any, Any, Any]]
    measure: Callable[[Any], Mapping[str, float]]
    leading: str
    sign: int
    every: int
    span: int
    about: dict[str, Any]
    start: Callable[[], Mapping[str, float]] | None = None
    patience: int | None = None
    loss: Callable[..., Array] = loss_sum
    dtype: str = "float32"
    title: str = ""

    def is_due(self, step: int) -> bool:
        """Whether a check is due after `step` updates."""
        at = (step - 1) % self.span + 1
        return at % self.every == 0 or at == self.span

    def is_better(self, entry: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """Whether one check is better than another."""
        return self.sign * entry[self.leading] > self.sign * other[self.leading]


@dataclasses.dataclass
class Run:
    """The state of a run.

    Attributes:
        state: weights and moments, on the devices.
        best: weights of the best check, on the host; if training restarts from it, the whole `TrainState`.
        log: progress of the run.
    """

    state: TrainState
    best: Any
    log: Log


def fingerprint(params: Any) -> list[Any]:
    """Number of leaves, number of entries, and their sum, to distinguish the weights of two models."""
    leaves = jax.tree.leaves(params)
    sums = (np.sum(np.asarray(leaf), dtype=np.float64) for leaf in leaves)
    return [len(leaves), sum(leaf.size for leaf in leaves), float(sum(sums))]


def updates_per_epoch(tokens: Tokens, settings: CommonSettings) -> int:
    """Number of batches in one pass over the texts."""
    return -(-len(tokens) // settings.batch_size)


def fit(
    problem: Problem,
    params: Any,
    settings: CommonSettings,
    *,
    mesh: Mesh,
    snapshot: str | Path | None,
    save_every: float,
    progress: Progress | None,
) -> Run:
    """Train until all epochs are done or patience runs out.

    A snapshot is written at every check and each `save_every` seconds. If that fails, the last snapshot stays, and
    there is a `SnapshotWarning`.

    Args:
        problem: the training problem.
        params: the initial weights.
        settings: settings of the training.
        mesh: devices, along an axis "data".
        snapshot: file to save the state in, and to resume from if it exists; None for no snapshots.
        save_every: seconds between snapshots.
        progress: called with (updates made, updates in all, what) after each update.

    Raises:
        ValueError: the snapshot is of another run, or a loss is not finite.
        OSError: there is too little disk space for snapshots, or another running process writes them.
    """
    restarts, per_epoch = problem.start is not None, updates_per_epoch(problem.tokens, settings)
    total = settings.epochs * per_epoch
    schedule = Schedule(settings.learning_rate, min(round(settings.warmup * total), total - 1), total)
    optimizer = make_optimizer(settings.weight_decay, settings.clip, problem.config.no_decay)
    state = begin(with_scales(device_params(params, jnp.float32), jnp.float32), optimizer)
    # The best weights are kept on the host, since the devices may have no room for a second copy.
    about = problem.about | {"net": problem.config.to_json(), "settings": dataclasses.asdict(settings)}
    run = Run(state, jax.device_get(state if restarts else state.params), Log(about))
    began = time.perf_counter()
    if snapshot is not None and Path(snapshot).exists():
        run = Run(*load_state(Path(snapshot), run.state, run.best, run.log, from_start=restarts))
    elif problem.start is not None:
        run.log.curve.append({"step": 0, "epoch": 0, **problem.start()})
        run.log.best = 0
    run.state, log = jax.device_put(run.state, replicated(mesh)), run.log
    earlier, key = log.seconds, jax.random.key(settings.seed)

    def rate(step: int) -> float:
        return _rate_factor(problem, log.curve) * schedule(step)

    with _snapshots(run, None if snapshot is None else Path(snapshot)) as save:
        epoch, order, saved = -1, [], time.perf_counter()
        while log.step < total and not log.stopped:
            if log.step // per_epoch != epoch:
                epoch = log.step // per_epoch
                order = shuffled(problem.tokens, settings.batch_size, np.random.default_rng([settings.seed, epoch]))
            run.state, loss = train_step(
                run.state,
                *problem.parts(order[log.step % per_epoch], log.step),
                jax.random.fold_in(key, log.step),
                jnp.float32(rate(log.step)),
                config=problem.config,
                optimizer=optimizer,
                dtype=np.dtype(problem.dtype),
                loss=problem.loss,
            )
            log.losses.append(loss)
            log.step += 1
            # Wait for the previous update only: the device stays busy, and no inputs pile up there.
            jax.block_until_ready(log.losses[-2:-1])
            if progress is not None:
                progress(log.step, total, f"{problem.title}epoch {epoch + 1}")
            if due := problem.is_due(log.step):
                _check(run, problem, epoch=log.step / per_epoch, rate=rate(log.step - 1), mesh=mesh)
                log.stopped = log.step < total and _lost_patience(problem, log)
            if due or (save and time.perf_counter() - saved > save_every and _is_sound(run, restarts)):
                log.seconds = earlier + time.perf_counter() - began
                if save:
                    save()
                saved = time.perf_counter()
    return run


def _check(run: Run, problem: Problem, *, epoch: float, rate: float, mesh: Mesh) -> None:
    """Measure the model; keep it if it is the best, else go back to the best if the problem restarts."""
    log, restarts = run.log, problem.start is not None
    entry = {"step": log.step, "epoch": epoch, "loss": _mean_loss(log, restarts), "learning_rate": rate}
    log.curve.append({**entry, **problem.measure(run.state.params)})
    log.losses = []
    if log.best is None or problem.is_better(log.curve[-1], log.curve[log.best]):
        run.best, log.best = jax.device_get(run.state if restarts else run.state.params), len(log.curve) - 1
    elif restarts:
        run.state = put_sharded(run.best, replicated(mesh))


def _lost_patience(problem: Problem, log: Log) -> bool:
    assert log.best is not None
    return problem.patience is not None and len(log.curve) - 1 - log.best >= problem.patience


def _rate_factor(problem: Problem, curve: Sequence[Mapping[str, float]]) -> float:
    """Factor of the learning rate, from the restarts in the curve."""
    factor, best = 1.0, None
    for entry in curve if problem.start is not None else ():
        if best is None or problem.is_better(entry, best):
            best = entry
        else:
            factor *= _SLOWER
    return factor


def _mean_loss(log: Log, restarts: bool) -> float:
    """Mean of the losses since the last check, summed in double precision, with or without interruptions."""
    mean = float(np.mean(np.asarray(jax.device_get(log.losses), np.float64)))
    if not math.isfinite(mean):
        if restarts:
            return math.inf
        raise ValueError(f"the loss is {mean} at update {log.step}; try a lower learning rate, or dtype float32")
    return mean


def _is_sound(run: Run, restarts: bool) -> bool:
    """Whether a run can continue from its current state.

    Raises:
        ValueError: a loss is not finite, and there is no restart.
    """
    if restarts:
        return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(run.state))
    return math.isfinite(_mean_loss(run.log, restarts))


@contextlib.contextmanager
def _snapshots(run: Run, path: Path | None) -> Iterator[Callable[[], None] | None]:
    """Yield a function that writes a snapshot of the run; None without a file, and in all processes but the first."""
    if path is None or jax.process_index() != 0:
        yield None
        return

    def save() -> None:
        try:
            save_state(path, run.state, run.best, run.log)
        except OSError as error:
            text = f"no snapshot of update {run.log.step} could be written ({error}); training goes on"
            warnings.warn(text, SnapshotWarning, stacklevel=3)

    with claimed(path):
        size = sum(leaf.nbytes for leaf in jax.tree.leaves((run.state, run.best)))
        # A new snapshot is written beside the last one before it replaces that.
        check_space(path, size if path.exists() else 2 * size)
        yield save
