"""Snapshots of the commands that train: a file beside OUT, which --resume goes on from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from lpjax._files.replacing import claimed
from lpjax.cli._common import errors

SaveEvery = Annotated[float, typer.Option(help="Seconds between snapshots, which --resume goes on from.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted, if there is one.")]


def check_save_every(seconds: float) -> None:
    """Refuse what is no time between snapshots.

    Raises:
        ValueError: as said.
    """
    if not 0 <= seconds < math.inf:
        raise ValueError(f"--save-every is {seconds:g}; expected a number, 0 or more")


def find_snapshot(target: Path, command: str, *, resume: bool, force: bool) -> Path:
    """The snapshot of a command that writes `target`.

    Raises:
        ValueError: it is there, and nothing says what to do with it.
    """
    snapshot = target.with_name(f"{target.name}.{command}.safetensors")
    if snapshot.exists() and not (resume or force):
        raise ValueError(f"{snapshot} is left of a run that was interrupted; --resume goes on, --force starts over")
    return snapshot


@contextmanager
def holding(snapshot: Path, *, start_over: bool) -> Iterator[None]:
    """Keep a run's snapshot until its result is written, and from other runs; then remove it.

    Raises:
        OSError: another run that is alive has it; or what is raised inside, with where the trained weights are.
    """
    from lpjax.training.fit import SnapshotWarning  # late: optax takes a while

    with claimed(snapshot), warnings.catch_warnings():
        warnings.simplefilter("always", SnapshotWarning)
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, SnapshotWarning):
                errors.print(f"warning: {escape(str(message))}", highlight=False, soft_wrap=True)
            else:
                shown(message, category, *rest, **more)

        warnings.showwarning = show
        if start_over:
            snapshot.unlink(missing_ok=True)
        try:
            yield
        except OSError as error:
            if not snapshot.exists():
                raise
            raise OSError(f"{error}; what was trained is in {snapshot}: mend that, and go on by --resume") from error
        snapshot.unlink(missing_ok=True)
