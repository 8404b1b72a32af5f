"""Records of training, which are written beside a checkpoint, and the snapshots of an unfinished run."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lpjax._files.json import finite
from lpjax._files.replacing import claimed
from lpjax._provenance import run_record
from lpjax.glue.data import Examples
from lpjax.training._finetune import Finetuned, Settings
from lpjax.training._recover import Recovered, Recovery
from lpjax.training.fit import SnapshotWarning


def tuning_record(tuned: Finetuned, settings: Settings, model: str, train: Examples, dev: Examples) -> dict[str, Any]:
    """The contents of finetune.json, for a run that fine-tuned the model called `model`."""
    splits = {
        name: {"split": examples.split, "rows": len(examples.labels), "complete": examples.complete}
        for name, examples in (("train", train), ("dev", dev))
    }
    record = {
        "model": model,
        "task": train.task.name,
        **splits,
        "settings": dataclasses.asdict(settings),
        "best": tuned.best,
        "curve": list(tuned.curve),
        "steps": tuned.steps,
        "stopped_early": tuned.stopped_early,
        "fresh": list(tuned.fresh),
        "seconds": round(tuned.seconds, 1),
        **run_record(settings.seed),
    }
    return finite(record)


def recovery_record(
    recovered: Recovered, settings: Recovery, model: str, baseline: str, source: str, earlier: Any
) -> dict[str, Any]:
    """The contents of recover.json.

    Args:
        recovered, settings: result and settings of the run.
        model, baseline, source: names of the compressed model, the dense model and the texts.
        earlier: contents of recover.json of the previous run; None without one.
    """
    record = {
        "model": model,
        "baseline": baseline,
        "source": source,
        "texts": recovered.texts,
        "held_out": recovered.held_out,
        "settings": dataclasses.asdict(settings),
        "best": recovered.best,
        "curve": list(recovered.curve),
        "seconds": round(recovered.seconds, 1),
        **run_record(settings.seed),
    }
    return finite(record if earlier is None else record | {"earlier": earlier})


def find_snapshot(target: Path, command: str, *, resume: bool, force: bool) -> Path:
    """The snapshot's path for a command that writes the folder `target`: a file beside it.

    Raises:
        FileExistsError: it exists, and neither `resume` nor `force` is given.
    """
    snapshot = target.with_name(f"{target.name}.{command}.safetensors")
    if snapshot.exists() and not (resume or force):
        raise FileExistsError(f"{snapshot} is from an interrupted run; `resume` continues it, `force` starts over")
    return snapshot


@contextlib.contextmanager
def holding(snapshot: Path, *, start_over: bool) -> Iterator[None]:
    """Lock a run's snapshot against other runs, and remove it once the result is written inside.

    Raises:
        OSError: another running process holds it; or an OSError from inside, which then also names the snapshot.
    """
    with claimed(snapshot), warnings.catch_warnings():
        warnings.simplefilter("always", SnapshotWarning)
        if start_over:
            snapshot.unlink(missing_ok=True)
        try:
            yield
        except OSError as error:
            if not snapshot.exists():
                raise
            raise OSError(
                f"{error}; the trained weights are in {snapshot}: fix the cause and continue with `resume`"
            ) from error
        snapshot.unlink(missing_ok=True)
