"""Numbers and names as a page shows them: the filters of the templates."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

from markupsafe import Markup, escape

_UNKNOWN = Markup('<span class="unknown" title="not known">–</span>')


def _shown(value: Any, text: Callable[[Any], str]) -> Markup:
    """A number in its element, exact in `value` and rounded to the eye; a dash where it is not known."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return _UNKNOWN
    exact = repr(float(value)) if isinstance(value, float) else str(value)
    return Markup('<data value="{}">{}</data>').format(exact, text(value))


def decimal(value: float | None, digits: int = 4) -> Markup:
    """0.8672"""
    return _shown(value, lambda x: f"{x:.{digits}f}")


def signed(value: float | None, digits: int = 4) -> Markup:
    """−0.0042"""
    return _shown(value, lambda x: f"{x:+.{digits}f}".replace("-", "−"))


def short(value: float | None) -> Markup:
    """As few digits as tell it."""
    return _shown(value, lambda x: f"{x:.4g}")


def count(value: int | None) -> Markup:
    """1 234, or 22.71 M."""
    return _shown(value, lambda x: f"{x / 1e6:.2f} M" if x >= 1e5 else f"{x:,}".replace(",", " "))


def size(value: int | None) -> Markup:
    """62.6 MB, of 10⁶ bytes."""

    def text(x: int) -> str:
        return f"{x / 1e6:.1f} MB" if x >= 1e5 else f"{x / 1e3:.1f} kB"

    return _shown(value, text)


def percent(value: float | None, digits: int = 1) -> Markup:
    """72.0 %"""
    return _shown(value, lambda x: f"{100 * x:.{digits}f} %")


def milliseconds(value: float | None) -> Markup:
    """Seconds as 12.3 ms."""

    def text(seconds: float) -> str:
        number = 1000 * seconds
        return f"{number:.0f} ms" if number >= 100 else f"{number:.1f} ms" if number >= 10 else f"{number:.2f} ms"

    return _shown(value, text)


def seconds(value: float | None) -> Markup:
    """1.25 s"""
    return _shown(value, lambda x: f"{x:.2f} s" if x < 100 else f"{x:.0f} s")


def path(value: str) -> Markup:
    """A path that may be broken behind its slashes and underscores."""
    return Markup("").join(escape(part) + Markup("<wbr>") for part in re.split(r"(?<=[/_])", value) if part)


def shape(value: tuple[int, ...]) -> Markup:
    """30522 × 384"""
    return Markup(" × ").join(str(side) for side in value)


def mean(items: Iterable[Any], attribute: str) -> float | None:
    """Mean of an attribute, of those that have it; None of none."""
    get = operator.attrgetter(attribute)
    values = [value for item in items if (value := get(item)) is not None]
    return sum(values) / len(values) if values else None


FILTERS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (decimal, signed, short, count, size, percent, milliseconds, seconds, path, shape, mean)
}
