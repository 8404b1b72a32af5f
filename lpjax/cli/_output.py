"""Output of commands: a table and lines or one JSON document on stdout, progress on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lpjax._files.json import finite, json_line
from lpjax.cli._errors import errors


def show(as_json: bool, document: Mapping[str, Any], *parts: RenderableType) -> None:
    """Print `document` as JSON, or else `parts`: tables and lines of text."""
    if as_json:
        print(json_line(finite(document)))
        return
    console = Console()
    for part in parts:
        if isinstance(part, str):
            console.print(part, highlight=False, markup=False, soft_wrap=True)
        else:
            console.print(part)


def note(lines: Iterable[object]) -> None:
    """Print lines on stderr."""
    for line in lines:
        errors.print(str(line), highlight=False, markup=False, soft_wrap=True)


def sizes(before: int, after: int) -> str:
    """The size of a model's weights before and after, from bytes."""
    return f"weights {before / 1e6:.1f} MB → {after / 1e6:.1f} MB"


@contextmanager
def progress() -> Iterator[Callable[[int, int, str], None]]:
    """A function (done, total, what) that moves a bar on a terminal and prints every tenth elsewhere."""
    if not errors.is_terminal:
        last = -1

        def line(done: int, total: int, what: str) -> None:
            nonlocal last
            tenth = 10 * done // total
            if tenth != last or done == total:
                last = tenth
                errors.print(f"{done}/{total} {what}", highlight=False, markup=False, soft_wrap=True)

        yield line
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
