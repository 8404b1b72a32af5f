"""Arguments and options that several commands have."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from lpjax._check import MOST, MOST_SEED

T = TypeVar("T")


def at_most(value: float | None) -> float | None:
    """The value of an option, refused above `MOST`. Typer's `max` would print that bound in every line of help."""
    return _at_most(value, MOST)


def at_most_seed(value: int | None) -> int | None:
    """As `at_most`, for a seed."""
    return _at_most(value, MOST_SEED)


def _at_most(value: Any, most: int) -> Any:
    if value is not None and value > most:
        raise typer.BadParameter(f"Input should be less than or equal to {most}")
    return value


ALIAS = "all-MiniLM-L6-v2"

Model = Annotated[str, typer.Argument(help=f"Folder, hub id, or {ALIAS}.")]
Smaller = Annotated[Path, typer.Argument(help="Folder that `lpjax compress` wrote.")]
Out = Annotated[Path, typer.Argument(help="Folder to write.")]
Baseline = Annotated[str | None, typer.Option(metavar="MODEL", help="Dense net to compare with.")]
Layers = Annotated[str, typer.Option(metavar="NAMES", help="Groups or regexes.")]
Glue = Annotated[Path | None, typer.Option(metavar="DIR", help="GLUE; default: $LPJAX_GLUE_DIR or the hub.")]
Text = Annotated[Path | None, typer.Option(metavar="FILE", help="Text, one a line; default: Python's manual.")]
TaskName = Annotated[str | None, typer.Option("--task", metavar="NAME", help="GLUE task to take texts from instead.")]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Split of the task; default: train.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, callback=at_most, help="Texts of a batch.")]
MaxLength = Annotated[int, typer.Option(metavar="N", min=3, callback=at_most, help="Most tokens of a text.")]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(metavar="NAME", help="float32 or bfloat16.")]
LearningRate = Annotated[float, typer.Option("--lr", metavar="X", help="Peak learning rate.")]
Seed = Annotated[int, typer.Option(metavar="N", min=0, callback=at_most_seed, help="Seed of all that is random.")]
SaveEvery = Annotated[float, typer.Option(metavar="X", min=0, callback=at_most, help="Seconds between snapshots.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it is a checkpoint.")]
ForceFile = Annotated[bool, typer.Option("--force", help="Replace the file if it is of this command.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


def settings_from(context: typer.Context, kind: type[T]) -> T:
    """A dataclass of settings made of the command's options of the same names."""
    names = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    return kind(**{name: context.params[name] for name in names if name in context.params})
