"""stdout and stderr that do not fail: characters outside their encoding are replaced, closed pipes are ignored."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class _Lasting:
    """A text stream that discards what is written once its reader has closed (`lpjax … | head`)."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        # Discard what is still in the buffers, also at exit. Errors other than a closed reader are raised.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        finally:
            os.close(nowhere)
        if not isinstance(error, BrokenPipeError) and not (sys.platform == "win32" and error.errno == errno.EINVAL):
            raise error


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Replace characters that stdout or stderr cannot encode by question marks, and ignore closed readers.

    Raises:
        OSError: output cannot be written, for example to a full disk.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        with suppress(AttributeError, OSError, ValueError):  # no stream at all (`>&-`), or a custom one
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.stdout, sys.stderr = (None if stream is None else _Lasting(stream) for stream in before)  # pyright: ignore[reportAttributeAccessIssue]
    lasting = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in lasting:
            if stream is not None:
                stream.flush()
