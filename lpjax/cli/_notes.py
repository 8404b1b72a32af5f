"""Warnings of the library's logger, as lines on standard error."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec

from rich.markup import escape

from lpjax.cli._common import errors

P = ParamSpec("P")


class _Lines(logging.Handler):
    """Prints each message once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._printed:
            self._printed.add(text)
            errors.print(f"[bold yellow]note:[/] {escape(text)}", highlight=False, soft_wrap=True)


def prints_notes(command: Callable[P, None]) -> Callable[P, None]:
    """`command`, in which warnings of the logger "lpjax" are printed."""

    @functools.wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        logger, lines = logging.getLogger("lpjax"), _Lines()
        propagate, logger.propagate = logger.propagate, False
        logger.addHandler(lines)
        try:
            command(*arguments, **options)
        finally:
            logger.removeHandler(lines)
            logger.propagate = propagate

    return run
