"""The command line: finds its commands, runs one, and exits as shells expect."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated

import typer

from lpjax._files.streams import lasting_streams
from lpjax.cli._errors import Command, fail, run
from lpjax.cli._notes import ends_by_signals, prints_notes


@ends_by_signals()
@prints_notes()
def main() -> None:
    """Run the command line that `sys.argv` holds."""
    try:
        with lasting_streams():
            run(make_app())
    except OSError as error:  # what was printed could not be written
        fail(error, 1)


def make_app() -> typer.Typer:
    """The app with all commands in this package; JAX is imported only when a command runs."""
    from lpjax import cli

    app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.callback()(_root)
    for module in iter_modules(cli.__path__):
        if not module.name.startswith("_"):
            command = import_module(f"{cli.__name__}.{module.name}")
            app.command(cls=Command, epilog=f"Example: [bold]{command.EXAMPLE}[/]")(vars(command)[module.name])
    return app


def _version(asked: bool) -> None:
    if asked:
        import lpjax

        print(f"lpjax {lpjax.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compress transformer checkpoints by low-rank factors and by rounding, and measure what that costs."""
