"""Arguments and options that several commands share, and functions that declare options."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import typer

from lpjax._check import MOST, MOST_SEED, check_name

T = TypeVar("T")


def option(metavar: str, help: str, *names: str, **more: Any) -> Any:
    """An option with a value; by default its name is that of the argument."""
    return typer.Option(*names, metavar=metavar, help=help, **more)


def flag(name: str, help: str, **more: Any) -> Any:
    """An option without a value."""
    return typer.Option(name, help=help, **more)


def at_least(least: int, help: str, *, metavar: str = "N", most: int = MOST, **more: Any) -> Any:
    """An option for a number in a range. Typer's own `max` would print the upper bound in every line of help.

    Args:
        least, most: range of the number.
        help, metavar, **more: as for `option`.
    """

    def check(value: float | None) -> float | None:
        if value is not None and not value <= most:  # nor NaN, which Typer's `min` lets pass before 0.29
            raise typer.BadParameter(f"{value} is out of range; expected at most {most}")
        return value

    return option(metavar, help, min=least, callback=check, **more)


def name_of(table: str, help: str, **more: Any) -> Any:
    """An option for a name in a table of the library; shells complete it.

    Args:
        table: "module:name" of a mapping or a `Literal`; imported only once a name is given, because it may import JAX.
        help, **more: as for `option`.
    """

    def names() -> list[str]:
        module, _, name = table.partition(":")
        known = getattr(import_module(module), name)
        return list(get_args(known) or known)

    def check(parameter: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None:
            try:
                check_name(str(parameter.name), value, names())
            except ValueError as error:
                raise typer.BadParameter(str(error)) from None
        return value

    def complete(incomplete: str) -> list[str]:
        return sorted(name for name in names() if name.startswith(incomplete))

    return option("NAME", help, callback=check, autocompletion=complete, **more)


ALIAS = "all-MiniLM-L6-v2"

Model = Annotated[str, typer.Argument(help=f"Folder, hub id, or {ALIAS}.")]
Smaller = Annotated[Path, typer.Argument(help="Folder that `lpjax compress` wrote.")]
Out = Annotated[Path, typer.Argument(help="Folder to write.")]
Baseline = Annotated[str | None, option("MODEL", "Dense model to compare with.")]
Layers = Annotated[str, option("NAMES", "Groups of layers, or regexes.")]
Glue = Annotated[Path | None, option("DIR", "GLUE; default: $LPJAX_GLUE_DIR or the hub.")]
Text = Annotated[Path | None, option("FILE", "One text per line; default: Python's manual.")]
TaskName = Annotated[str | None, option("NAME", "GLUE task to take texts from instead.", "--task")]
Split = Annotated[str | None, option("NAME", "Split of the task; default: train.")]
Epochs = Annotated[int, at_least(1, "Passes over the texts.")]
BatchSize = Annotated[int, at_least(1, "Texts per batch.")]
MaxLength = Annotated[int, at_least(3, "Largest number of tokens.")]
Dtype = Annotated[Literal["float32", "bfloat16"], option("NAME", "float32 or bfloat16.")]
LearningRate = Annotated[float, option("X", "Peak learning rate.", "--lr")]
Seed = Annotated[int, at_least(0, "Random seed.", most=MOST_SEED)]
SaveEvery = Annotated[float, at_least(0, "Seconds between snapshots.", metavar="X")]
Resume = Annotated[bool, flag("--resume", "Continue an interrupted run.")]
Force = Annotated[bool, flag("--force", "Replace OUT if it is a checkpoint.")]
ForceFile = Annotated[bool, flag("--force", "Replace the file if this command wrote it.")]
AsJson = Annotated[bool, flag("--json", "Print one JSON document instead.")]


def settings_from(context: typer.Context, kind: type[T]) -> T:
    """Make a dataclass of settings from the command's options of the same names."""
    names = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    return kind(**{name: context.params[name] for name in names if name in context.params})
