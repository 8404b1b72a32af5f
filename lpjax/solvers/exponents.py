"""Whether a traced exponent is above 2, if the caller knows: programs for p ≤ 2 and for p > 2 differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_ABOVE_TWO: ContextVar[bool | None] = ContextVar("above_two", default=None)


@contextlib.contextmanager
def exponent_above_two(known: bool) -> Iterator[None]:
    """Declare whether traced exponents are above 2, so that only one of the two programs is compiled."""
    token = _ABOVE_TWO.set(known)
    try:
        yield
    finally:
        _ABOVE_TWO.reset(token)


def known_above_two() -> bool | None:
    """Whether a traced p is above 2; None if unknown."""
    return _ABOVE_TWO.get()
