"""What settings of training have in common: whole numbers, and the ranges of the others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": (lambda x: 0 < x < math.inf, "above 0"),
    "warmup": (lambda x: 0 <= x <= 1, "from 0 to 1"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "0 or more"),
    "clip": (lambda x: 0 < x < math.inf, "above 0"),
    "hidden": (lambda x: 0 <= x < math.inf, "0 or more"),
}


def check_settings(settings: Any, counts: Mapping[str, int], numbers: Sequence[str]) -> None:
    """Refuse a field out of range.

    Args:
        settings: a dataclass.
        counts: fields that are whole numbers, and their least; None will do where it is the default.
        numbers: fields that are numbers, by the names of `_RANGES`.

    Raises:
        ValueError: naming the first.
    """
    optional = {field.name for field in dataclasses.fields(settings) if field.default is None}
    for name, least in counts.items():
        value = getattr(settings, name)
        if value is None and name in optional:
            continue
        if type(value) is not int or value < least:
            raise ValueError(f"`{name}` is {value!r}; expected a whole number, {least} or more")
    for name in numbers:
        value, (fits, expected) = getattr(settings, name), _RANGES[name]
        if type(value) not in (int, float) or not fits(value):
            raise ValueError(f"`{name}` is {value!r}; expected a number, {expected}")
