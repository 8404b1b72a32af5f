"""Numbers and names in readable form: filters for the page's templates, and a table for the terminal."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from rich.table import Table


def decimal(value: float, digits: int = 4) -> str:
    """0.8672"""
    return f"{value:.{digits}f}"


def signed(value: float, digits: int = 4) -> str:
    """−0.0042"""
    return f"{value:+.{digits}f}".replace("-", "−")


def short(value: float) -> str:
    """At most four digits."""
    return f"{value:.4g}"


def count(value: int) -> str:
    """1 234, or 22.71 M."""
    return f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value:,}".replace(",", " ")


def size(value: int) -> str:
    """62.6 MB, of 10⁶ bytes."""
    return f"{value / 1e6:.1f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB"


def percent(value: float, digits: int = 1) -> str:
    """72.0 %"""
    return f"{100 * value:.{digits}f} %"


def milliseconds(value: float) -> str:
    """Seconds as 12.3 ms, of three digits."""
    number = 1000 * value
    return f"{number:.{0 if number >= 100 else 1 if number >= 10 else 2}f} ms"


def seconds(value: float) -> str:
    """1.25 s"""
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def mean(items: Iterable[Any], attribute: str) -> float | None:
    """Mean of an attribute over the items for which it is not None; None if there are none."""
    get = operator.attrgetter(attribute)
    values = [value for item in items if (value := get(item)) is not None]
    return sum(values) / len(values) if values else None


def filters() -> dict[str, Callable[..., Any]]:
    """The filters of the templates. A number is exact in the element's `value` and rounded in its text; an unknown one
    is a dash."""
    from markupsafe import Markup, escape

    def element(render: Callable[..., str]) -> Callable[..., Markup]:
        def filter_(value: Any, *options: Any) -> Markup:
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                return Markup('<span class="unknown" title="not known">–</span>')
            exact = repr(float(value)) if isinstance(value, float) else str(value)
            return Markup('<data value="{}">{}</data>').format(exact, render(value, *options))

        return filter_

    rounded = element(short)
    numbers = (decimal, signed, short, count, size, percent, milliseconds, seconds)
    return {render.__name__: element(render) for render in numbers} | {
        # A path may be broken after its slashes and underscores.
        "path": lambda value: Markup("").join(
            escape(part) + Markup("<wbr>") for part in re.split(r"(?<=[/_])", value) if part
        ),
        "shape": lambda value: " × ".join(map(str, value)),
        "mean": mean,
        "exponent": lambda value: Markup("∞") if value == math.inf else rounded(value),
    }


def results_table(rows: Sequence[Mapping[str, Any]], *, score: str, dense: float, title: str = "") -> Table:
    """A rich table of rows of the demo or of experiments, with one line per row in 80 columns.

    Args:
        rows: mappings with keys layers, method, p (None for dense), compression (share), parameters, score,
            seconds (None for dense).
        score: name of the score, for the title.
        dense: score of the dense model, from which losses are measured.
        title: the table's title.
    """
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(f"{title}\n{score}" if title else score), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0)
    )
    for heading in ("layers", "method"):
        table.add_column(heading, no_wrap=True)
    for heading in ("smaller", "M params", "score", "loss", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups = [(row["layers"], row["compression"]) for row in rows]
    for i, row in enumerate(rows):
        took = row.get("seconds")
        table.add_row(
            escape(row["layers"]),
            row["method"] if row["p"] is None else f"{row['method']} p={row['p']:g}",
            percent(row["compression"], 0),
            decimal(row["parameters"] / 1e6, 2),
            decimal(row["score"]),
            signed(dense - row["score"]),
            "" if took is None else decimal(took, 1),
            end_section=groups[i] != groups[min(i + 1, len(rows) - 1)],
        )
    return table
