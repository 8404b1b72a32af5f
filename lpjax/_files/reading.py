"""Untrusted files as bytes and as text: only regular files of a limited size, and text in UTF-8."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

TEXT_LIMIT = 1 << 30
"""Largest text file that is read, in bytes."""
LINE_LIMIT = 1_000_000
"""Longest line that is read, in characters; a file with a longer line does not hold one text per line."""

_OTHER_ENCODINGS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def read_bytes(path: Path, limit: int) -> bytes:
    """All bytes of a file.

    Raises:
        ValueError: it is not a regular file (a pipe or a device may never end), or has more than `limit` bytes.
        OSError: it cannot be read.
    """
    _require_regular(path)
    with path.open("rb") as file:
        data = file.read(limit + 1)
    check_length(len(data), limit)
    return data


def check_length(length: int, limit: int) -> None:
    """Refuse a length above `limit` bytes.

    Raises:
        ValueError: `length` is above it; names the limit.
    """
    if length > limit:
        raise ValueError(f"it is longer than {limit} bytes")


def map_file(path: Path, *, copy: bool = False) -> mmap.mmap | bytes:
    """The file's bytes, read-only: memory-mapped, or with `copy` read into memory.

    Mapped bytes change if another process writes to the file; if the file is truncated, reading beyond its end kills
    the process (SIGBUS). A copy is safe from both.

    Raises:
        OSError, ValueError: it cannot be read, is empty, or changes while it is copied.
    """
    _require_regular(path)
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        if before.st_size == 0:
            raise ValueError("it is empty")
        if not copy:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = file.read()
        after = os.fstat(file.fileno())
    if len(content) != before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ValueError("it changed while it was read")
    return content


def _require_regular(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")  # a pipe would never end


def decode(data: bytes) -> str:
    """Decode UTF-8 text, with or without a byte order mark.

    Raises:
        ValueError: the data is binary or in another encoding; the message names UTF-16 and UTF-32.
    """
    for mark, name in _OTHER_ENCODINGS:
        if data.startswith(mark):
            raise ValueError(f"it is {name} text; save it as UTF-8")
    if data[:1] == b"\0" or data[1:2] == b"\0":
        raise ValueError("it begins with NUL bytes, so it is UTF-16 or not text; save it as UTF-8")
    return data.decode("utf-8-sig")


class TextError(ValueError):
    """A file is not text; `line` is the number of the first line that is not, from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def read_lines(path: Path) -> list[str]:
    r"""The lines of a text file, without their ends; only "\n" and "\r\n" end a line, and empty lines are kept.

    Unlike `str.splitlines`, it does not split at Unicode's other line separators, which occur in texts.

    Raises:
        TextError: it is not UTF-8, holds a NUL byte, or a line longer than `LINE_LIMIT`.
        ValueError, OSError: as `read_bytes`.
    """
    data = read_bytes(path, TEXT_LIMIT)
    try:
        text = decode(data)
    except UnicodeDecodeError as error:
        raise TextError(data.count(b"\n", 0, error.start) + 1, str(error)) from None
    except ValueError as error:
        raise TextError(1, str(error)) from None
    if (place := text.find("\0")) >= 0:
        raise TextError(text.count("\n", 0, place) + 1, "it holds a NUL byte, so it is not text")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    for number, line in enumerate(lines, start=1):
        if len(line) > LINE_LIMIT:
            raise TextError(number, f"it has {len(line)} characters; expected {LINE_LIMIT} at most")
    return lines[:-1] if lines[-1] == "" else lines
