"""Checks of ranges and names of arguments, with their error messages."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": (lambda x: 0 < x < math.inf, "above 0"),
    "warmup": (lambda x: 0 <= x <= 1, "from 0 to 1"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "0 or more"),
    "clip": (lambda x: 0 < x < math.inf, "above 0"),
    "hidden": (lambda x: 0 <= x < math.inf, "0 or more"),
}
_SHARES: dict[str, tuple[Callable[[float], bool], str]] = {
    "keep": (lambda x: 0 < x <= 1, "a share of the dense parameters in (0, 1], such as 0.72"),
    "budget": (lambda x: 0 < x < 1, "a share of the whole model, above 0 and below 1, such as 0.5"),
    "time": (lambda x: 0 < x < 1, "a share of the dense matrices' time, above 0 and below 1, such as 0.7"),
    "sparse_share": (lambda x: 0 <= x < 1, "a share of what a pair stores in [0, 1), such as 0.2"),
}

MOST = 2**31 - 1
"""Largest integer setting, as sizes and counts are int32 on devices."""
MOST_SEED = 2**32 - 1
"""Largest seed, as JAX uses only the last 32 bits: 2³² would be equivalent to 0."""


def check_whole(name: str, value: Any, least: int, most: int = MOST) -> None:
    """Refuse anything but a whole number from `least` to `most`.

    Raises:
        ValueError: naming it and the range.
    """
    if type(value) is int and least <= value <= most:
        return
    range_ = f"{least} or more" if type(value) is int and value < least else f"from {least} to {most}"
    raise ValueError(f"{name} is {shown(value)}; expected a whole number, {range_}")


def check_seed(name: str, value: Any) -> None:
    """Refuse anything but a seed.

    Raises:
        ValueError: as `check_whole`.
    """
    check_whole(name, value, 0, MOST_SEED)


def check_share(name: str, value: Any) -> None:
    """Refuse a share out of its range.

    Args:
        name: a key of `_SHARES`.
        value: anything.

    Raises:
        ValueError: naming it and the range.
    """
    fits, expected = _SHARES[name]
    if not isinstance(value, numbers.Real) or not fits(value):  # pyright: ignore[reportArgumentType]
        raise ValueError(f"`{name}` is {shown(value)}; expected {expected}")


def check_name(name: str, value: Any, known: Collection[str]) -> None:
    """Refuse an unknown name.

    Raises:
        ValueError: it is unknown; lists the known names, and the closest one.
    """
    if not isinstance(value, str) or value not in known:
        by_lower = {key.lower(): key for key in known}
        near = difflib.get_close_matches(str(value).lower(), by_lower, 1, cutoff=0.4)
        hint = f"; did you mean {by_lower[near[0]]}?" if near else ""
        raise ValueError(f"`{name}` is {shown(value)}; expected one of {', '.join(known)}{hint}")


def check_number(name: str, value: Any) -> None:
    """Refuse a number out of its range.

    Args:
        name: a key of `_RANGES`.
        value: anything.

    Raises:
        ValueError: naming it and the range.
    """
    fits, expected = _RANGES[name]
    if type(value) not in (int, float) or not fits(value):
        raise ValueError(f"`{name}` is {shown(value)}; expected a number, {expected}")


def check_all_finite(what: str, finite: Any) -> None:
    """Refuse an array with NaN or infinite entries.

    Args:
        what: name of the array, for the message.
        finite: whether all its entries are finite.

    Raises:
        ValueError: naming the array.
    """
    if not finite:
        raise ValueError(f"{what} holds NaN or infinite entries; expected finite numbers")


def shown(value: Any) -> str:
    """`value` as shown in a message, cut to 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:60]}…"


def check_settings(settings: Any, counts: Mapping[str, int], numbers: Sequence[str]) -> None:
    """Refuse a field out of range.

    Args:
        settings: a dataclass.
        counts: integer field -> its smallest value; None is allowed if it is the default.
        numbers: fields whose ranges are in `_RANGES`.

    Raises:
        ValueError: naming the first.
    """
    optional = {field.name for field in dataclasses.fields(settings) if field.default is None}
    for name, least in counts.items():
        value = getattr(settings, name)
        if value is None and name in optional:
            continue
        check_whole(f"`{name}`", value, least, MOST_SEED if name == "seed" else MOST)
    for name in numbers:
        check_number(name, getattr(settings, name))
