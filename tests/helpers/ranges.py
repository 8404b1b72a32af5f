"""What Typer says of a number below the least that an option takes; its words changed in version 0.29."""

from __future__ import annotations

from importlib.metadata import version

_WORDS_OF_PYDANTIC = tuple(map(int, version("typer").split(".")[:2])) >= (0, 29)
BELOW = "Input should be" if _WORDS_OF_PYDANTIC else "is not in the range"


def below(value: int, least: int) -> str:
    """The words on `value`, with the least that is allowed."""
    return f"{BELOW} greater than or equal to {least}" if _WORDS_OF_PYDANTIC else f"{value} {BELOW} x>={least}"
