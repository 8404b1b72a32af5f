"""What is known of an exponent that is traced: programs for p up to 2 and above it differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_ABOVE_TWO: ContextVar[bool | None] = ContextVar("above_two", default=None)


@contextlib.contextmanager
def exponent_above_two(known: bool) -> Iterator[None]:
    """Within it a traced p is known to be above 2, or not, so that a program is compiled for one case only."""
    token = _ABOVE_TWO.set(known)
    try:
        yield
    finally:
        _ABOVE_TWO.reset(token)


def known_above_two() -> bool | None:
    """Whether a traced p is above 2; None if nothing is known of it."""
    return _ABOVE_TWO.get()
