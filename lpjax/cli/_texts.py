"""Texts that commands run a net on: of a file, of a GLUE task, or those that every Python has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from lpjax.cli._common import misuse

if TYPE_CHECKING:
    from lpjax.glue.data import Examples
    from lpjax.glue.tasks import Task

Text = Annotated[
    Path | None, typer.Option(help="UTF-8 text, one a line; default: the prose of Python's own reference.")
]
TaskName = Annotated[str | None, typer.Option("--task", help="GLUE task whose texts to take, instead of --text.")]
Split = Annotated[str | None, typer.Option(help="Split of the task; default: train.")]


class Texts(NamedTuple):
    """Texts, or pairs of them.

    Attributes:
        source: what they are called.
        first, second: of which the latter is None where there are no pairs.
        examples: of a task, with labels; None of a file.
    """

    source: str
    first: list[str]
    second: list[str] | None
    examples: Examples | None


def check_source(text: Path | None, task: str | None, split: str | None, glue: Path | None) -> Task | None:
    """The task that is named, if one is.

    Raises:
        ValueError: options that do not go together, or no such task.
    """
    from lpjax.glue import find_task

    if task is not None and text is not None:
        raise ValueError("--text and --task both name texts; expected one of them")
    if task is None and (split is not None or glue is not None):
        raise ValueError("--split and --glue are those of a --task; give that, or leave them out")
    return None if task is None else find_task(task)


def load_texts(text: Path | None, task: Task | None, split: str | None, glue: Path | None) -> Texts:
    """The texts of a task, of a file, or Python's own."""
    if task is None:
        return Texts(*read_texts(text), None, None)
    from lpjax.glue.data import load_examples

    examples = load_examples(task, split or "train", glue)
    return Texts(f"{task.title} {examples.split}", examples.first, examples.second, examples)


def read_texts(text: Path | None) -> tuple[str, list[str]]:
    """What a text file is called, and its lines; without one, the prose of Python's own reference."""
    from lpjax.glue.data import load_sentences

    with misuse():
        lines = load_sentences(text)
    return "Python's own reference" if text is None else str(text), lines


def spaced(count: int, most: int) -> list[int]:
    """So many evenly spaced numbers at most, of 0 to count − 1."""
    chosen = min(most, count)
    return [i * count // chosen for i in range(chosen)]
