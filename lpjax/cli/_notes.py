"""Messages of a command besides its results: warnings, and the signal that ended it."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.markup import escape

from lpjax._files.signals import stopped_by_signals
from lpjax.cli._errors import errors


class _Lines(logging.Handler):
    """Prints each message once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.print(record.getMessage(), "note")

    def print(self, text: str, kind: str) -> None:
        if text not in self._printed:
            self._printed.add(text)
            errors.print(f"[bold yellow]{kind}:[/] {escape(text)}", highlight=False, soft_wrap=True)


@contextmanager
def prints_notes() -> Iterator[None]:
    """Print warnings of the logger "lpjax" and of Python, each on one line."""
    logger, lines = logging.getLogger("lpjax"), _Lines()

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        lines.print(str(message), "warning")

    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(lines)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(lines)
        logger.propagate = propagate


@contextmanager
def ends_by_signals() -> Iterator[None]:
    """End the process at SIGTERM and SIGHUP with one line and the exit status 128 + number, as in shells."""
    with stopped_by_signals() as received:
        try:
            yield
        except BaseException as error:
            # Compiled code may have replaced `Stopped` by an exception of its own.
            if not received or (isinstance(error, SystemExit) and not error.code):
                raise
            name = signal.Signals(received[0]).name
            errors.print(f"stopped by {name}; nothing is left half written", highlight=False)
            sys.exit(128 + received[0])
