"""Errors as one line and an exit status, never a traceback: 2 for an invalid request, 1 for a fault in files."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

from lpjax._extras import MissingExtra

INTERNAL = "a fault inside lpjax"
_OUT_OF_MEMORY = "out of memory; select fewer layers, or run on a machine or device that has more"
_ARGUMENTS = {
    "select": "layers",
    "solver": "method",
    "statistics": "calibrate",
    "sparse_share": "sparse",
    "overwrite=True": "force",
}
"""Argument of the library -> the name of its option, if they differ."""

errors = Console(stderr=True)


class Misuse(Exception):
    """The request is invalid, whatever the files hold: exit status 2."""


class _CommandError(Exception):
    """An error whose message names options, and its exit status."""

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


@contextmanager
def misuse() -> Iterator[None]:
    """Errors raised inside are misuse (exit status 2); others are faults in files (exit status 1)."""
    from lpjax.checkpoint.links import LinkError

    try:
        yield
    except (ConnectionError, LinkError):
        raise
    except (ValueError, OSError) as error:
        raise Misuse(error) from error


class Command(TyperCommand):
    """A command whose errors name its options in place of the library's arguments."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = name_options(error.message, ctx)
            raise

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Misuse, ValueError, OSError) as error:
            raise _CommandError(name_options(str(error), ctx), 2 if isinstance(error, Misuse) else 1) from error


def name_options(message: str, context: typer.Context) -> str:
    """`message` with each argument in backticks replaced by the command's option for it, such as --lr."""
    names = {
        str(parameter.name): parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.name).upper()
        for parameter in context.command.params
    }

    def option(match: re.Match[str]) -> str:
        return names.get(_ARGUMENTS.get(match[1], match[1])) or names.get(match[1]) or match[0]

    return re.sub(r"`(\w+(?:=\w+)?)`", option, message)


def run(commands: typer.Typer) -> None:
    """Run a command line, and exit with a line on stderr if it fails.

    An unexpected error is raised again if LPJAX_TRACEBACK is set.
    """
    try:
        commands(standalone_mode=True)
    except _CommandError as error:
        fail(error, error.status)
    except (OSError, MissingExtra) as error:  # OSError: help that could not be printed
        fail(error, 1)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Typer turns Ctrl-C into a silent exit of its own.
        if isinstance(stop, KeyboardInterrupt) or stop.code == 130:
            errors.print("interrupted; nothing is left half written", highlight=False)
            sys.exit(130)
        raise
    except Exception as error:
        # RESOURCE_EXHAUSTED: XLA's exception for a device without free memory.
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            fail(_OUT_OF_MEMORY, 1)
        if os.environ.get("LPJAX_TRACEBACK"):
            raise
        lines = str(error).strip().splitlines()
        what = ": ".join([type(error).__name__, *(line[:300] for line in lines[:1])])
        advice = "please report it with the traceback, which LPJAX_TRACEBACK=1 before the command shows"
        fail(f"{INTERNAL}, {what}; {advice}", 1)


def fail(error: object, status: int) -> NoReturn:
    """Print an error and exit."""
    from lpjax.checkpoint.error import printable

    # Names in the message come from files, and must not control the terminal.
    errors.print(f"[bold red]error:[/] {escape(printable(str(error)))}", highlight=False, soft_wrap=True)
    sys.exit(status)
