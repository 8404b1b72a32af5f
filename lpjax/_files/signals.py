"""SIGTERM and SIGHUP end a process like Ctrl-C: by an exception, so that files are cleaned up."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

_STOPPING = ("SIGTERM", "SIGHUP")  # from `docker stop`, systemd and Slurm; from a terminal that closes
_AGAIN = 0.1  # seconds


class Stopped(BaseException):
    """A signal asked the process to end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def stopped_by_signals() -> Iterator[list[int]]:
    """Raise `Stopped` in the main thread at SIGTERM and SIGHUP; a second such signal ends the process at once.

    Python runs handlers between two of its own instructions, so the exception comes only after a long computation in
    compiled code. Signals that are ignored (nohup) or already handled stay so, and nothing changes outside the main
    thread. The handlers are restored at the end.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def stop(number: int, _: Any) -> NoReturn:
        if received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        received.append(number)
        raise Stopped(number)

    def swallowed(unraisable: Any) -> None:  # sys.UnraisableHookArgs exists for type checkers only
        # Raised in a destructor or a garbage-collector callback, from which no exception propagates: send it again.
        if isinstance(unraisable.exc_value, Stopped):
            received.clear()
            threading.Timer(_AGAIN, os.kill, (os.getpid(), unraisable.exc_value.number)).start()
        else:
            hook(unraisable)

    before: dict[int, Any] = {}
    hook = sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        for name in _STOPPING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    if before:
        sys.unraisablehook = swallowed
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if before:
            sys.unraisablehook = hook
