"""The command line: one command a file, registered here."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from lpjax._extras import MissingExtra
from lpjax.cli._bench import bench
from lpjax.cli._calibrate import calibrate
from lpjax.cli._common import ALIAS, Misuse, errors, in_options
from lpjax.cli._compress import compress
from lpjax.cli._evaluate import evaluate
from lpjax.cli._export import export
from lpjax.cli._finetune import finetune
from lpjax.cli._inspect import inspect
from lpjax.cli._notes import prints_notes
from lpjax.cli._quantize import quantize
from lpjax.cli._recover import recover
from lpjax.cli._report import report
from lpjax.cli._signals import ends_by_signals
from lpjax.cli._streams import lasting_streams

app = typer.Typer(
    help="Compress transformer checkpoints by robust lp low-rank factorization, and measure what that cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for command, example in (
    (inspect, f"lpjax inspect {ALIAS} --plot spectra.png"),
    (compress, f"lpjax compress {ALIAS} smaller --layers embeddings --keep 0.72 --method lewis"),
    (calibrate, f"lpjax calibrate {ALIAS} found.safetensors --text sentences.txt"),
    (bench, f"lpjax bench {ALIAS} --out break_even.json"),
    (export, "lpjax export smaller dense"),
    (evaluate, f"lpjax evaluate smaller --baseline {ALIAS}"),
    (finetune, f"lpjax finetune {ALIAS} tuned --task sst2"),
    (recover, "lpjax recover smaller recovered --text sentences.txt"),
    (quantize, "lpjax quantize recovered smallest"),
    (report, f"lpjax report smaller --baseline {ALIAS}"),
):
    app.command(epilog=f"Example: [bold]{example}[/]")(command)


@ends_by_signals
@prints_notes
def main(commands: typer.Typer = app) -> None:
    """Entry point: errors become one line and an exit status, never a traceback unless LPJAX_TRACEBACK is set."""
    try:
        with lasting_streams():
            _run(commands)
    except OSError as error:  # what was printed could not be written
        _fail(error, 1)


def _run(commands: typer.Typer) -> None:
    try:
        commands(standalone_mode=True)
    except Misuse as error:
        _fail(error, 2)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Typer turns Ctrl-C into a silent exit of its own.
        if isinstance(stop, KeyboardInterrupt) or stop.code == 130:
            errors.print("interrupted; nothing is left half written", highlight=False)
            sys.exit(130)
        raise
    except (ValueError, OSError, MissingExtra) as error:
        _fail(error, 1)
    except MemoryError:
        _fail(_OUT_OF_MEMORY, 1)
    except Exception as error:
        # XLA's own exception for a device that has no memory left.
        if "RESOURCE_EXHAUSTED" in str(error):
            _fail(_OUT_OF_MEMORY, 1)
        if os.environ.get("LPJAX_TRACEBACK"):
            raise
        _fail(_bug(error), 1)


def _bug(error: Exception) -> str:
    """What is no fault of the input, as far as anybody knew."""
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[0]:.300}" if lines else type(error).__name__
    return f"{INTERNAL}, {what}; please report it with the traceback, which LPJAX_TRACEBACK=1 before the command shows"


INTERNAL = "a fault inside lpjax"
_OUT_OF_MEMORY = "out of memory; select fewer layers, or run on a machine or device that has more"


def _fail(error: object, status: int) -> NoReturn:
    from lpjax.checkpoint.error import printable

    # Names in it come from files, and may not drive the terminal.
    message = escape(printable(in_options(str(error), _options())))
    errors.print(f"[bold red]error:[/] {message}", highlight=False, soft_wrap=True)
    sys.exit(status)


def _options() -> dict[str, str]:
    """argument -> option, of all commands."""
    group = typer.main.get_command(app)
    parameters = [option for command in getattr(group, "commands", {}).values() for option in command.params]
    return {option.name: option.opts[0] for option in parameters if option.opts[0].startswith("--")}


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"lpjax {version('lpjax')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
