"""The loop of training: updates, checks now and then, and snapshots that an interrupted run goes on from."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from lpjax._files.replacing import check_space, claimed
from lpjax.data.batching import Batch
from lpjax.training.snapshot import Log, load_state, save_state
from lpjax.training.step import TrainState


class SnapshotWarning(RuntimeWarning):
    """A snapshot could not be written; training goes on."""


@dataclasses.dataclass
class Run:
    """A run of training as it stands.

    Attributes:
        state: weights and moments, on the devices.
        best: what is kept of the best check, on the host: a tree of arrays.
        log: what it has done so far.
    """

    state: TrainState
    best: Any
    log: Log


def fingerprint(params: Any) -> list[Any]:
    """Number of leaves, of entries, and their sum: what tells the weights of one net from another's."""
    leaves = jax.tree.leaves(params)
    sums = (np.sum(np.asarray(leaf), dtype=np.float64) for leaf in leaves)
    return [len(leaves), sum(leaf.size for leaf in leaves), float(sum(sums))]


def fit(
    run: Run,
    *,
    total: int,
    per_epoch: int,
    batches: Callable[[int], Sequence[Batch]],
    update: Callable[[TrainState, Batch, int], tuple[TrainState, Array]],
    is_due: Callable[[int], bool],
    check: Callable[[Run], None],
    may_save: Callable[[Run], bool],
    snapshot: Path | None,
    save_every: float,
    progress: Callable[[int, int, str], None] | None,
    title: str = "",
) -> None:
    """Train until `total` updates are made or `check` sets `run.log.stopped`; `run` is changed.

    There is a snapshot at every check and each `save_every` seconds. If one cannot be written, the last one stays,
    and a `SnapshotWarning` says so.

    Args:
        run: as it begins, or as `resumed` found it.
        total: updates in all.
        per_epoch: updates of an epoch.
        batches: the batches of an epoch, from its number alone.
        update: (state, batch, updates made) -> (state, loss).
        is_due: whether there is a check after so many updates.
        check: measures the net, notes that in the log, and empties `log.losses`.
        may_save: whether the run can go on from its present state; asked between checks.
        snapshot: file, or None.
        save_every: seconds.
        progress: called with (updates made, updates in all, what) after each.
        title: of the run, for `progress`.

    Raises:
        OSError: there is too little space for snapshots, or another run that is alive writes them.
    """
    log, writes = run.log, snapshot is not None and jax.process_index() == 0
    began = saved = time.perf_counter()
    earlier = log.seconds

    def keep() -> None:
        nonlocal saved
        log.seconds = earlier + time.perf_counter() - began
        if snapshot is not None and writes:
            try:
                save_state(snapshot, run.state, run.best, log)
            except OSError as error:
                text = f"no snapshot of update {log.step} could be written ({error}); training goes on"
                warnings.warn(text, SnapshotWarning, stacklevel=3)
        saved = time.perf_counter()

    with contextlib.ExitStack() as stack:
        if snapshot is not None and writes:
            stack.enter_context(claimed(snapshot))
            size = sum(leaf.nbytes for leaf in jax.tree.leaves((run.state, run.best)))
            # The next one is written beside the last, before it takes its place.
            check_space(snapshot, size if snapshot.exists() else 2 * size)
        epoch, order = -1, []
        while log.step < total and not log.stopped:
            if log.step // per_epoch != epoch:
                epoch = log.step // per_epoch
                order = batches(epoch)
            run.state, loss = update(run.state, order[log.step % per_epoch], log.step)
            log.losses.append(loss)
            log.step += 1
            # The update before this one: the device never waits for the host, and no inputs pile up there.
            jax.block_until_ready(log.losses[-2:-1])
            if progress is not None:
                progress(log.step, total, f"{title}epoch {epoch + 1}")
            if is_due(log.step):
                check(run)
                keep()
            elif writes and time.perf_counter() - saved > save_every and may_save(run):
                keep()


def resumed(run: Run, snapshot: str | Path | None, *, from_start: bool = False) -> bool:
    """Go on from a snapshot, if it is there: `run` becomes what it was; `from_start` is that of `load_state`.

    Raises:
        ValueError: as `load_state`.
    """
    if snapshot is None or not Path(snapshot).exists():
        return False
    run.state, run.best, run.log = load_state(Path(snapshot), run.state, run.best, run.log, from_start=from_start)
    return True
