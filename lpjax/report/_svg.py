"""matplotlib's figures as SVG that a page can hold: no names from elsewhere, no links, colours from its style sheet."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lpjax.report._figure import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Stand for colours of the style sheet, which differ on dark screens and on paper.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
SERIES = COLOURS[:-1]  # yellow, the last, is too faint for a thin line
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {c.lower(): f"c{i}" for i, c in enumerate(SERIES)}


def series_style(i: int) -> tuple[str, object]:
    """Colour and dashes of the i-th line."""
    return SERIES[i % len(SERIES)], DASHES[i // len(SERIES) % len(DASHES)]


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """A figure of so many inches to draw on, and a list in which its SVG is afterwards.

    matplotlib's own defaults are in force, whatever the caller's are, so that a page depends on its data alone.
    """
    import matplotlib as mpl

    result: list[str] = []
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a font's missing letters: the reader's browser has others
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "lpjax",
                "text.parse_math": False,
                "axes.formatter.useoffset": False,
                "font.size": 8,
                "text.color": INK,
                "axes.labelcolor": INK,
                "axes.edgecolor": MUTED,
                "xtick.color": MUTED,
                "ytick.color": MUTED,
                "xtick.labelcolor": INK,
                "ytick.labelcolor": INK,
                "grid.color": GRID,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
            }
        )
        figure = new_figure(width, height)
        figure.patch.set_visible(False)
        yield figure, result
        for axis in figure.axes:
            axis.patch.set_visible(False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
        result.append(stream.getvalue())


def inline(svg: str, number: int, title: str) -> str:
    """An SVG file as an element of a page.

    Args:
        svg: from `drawing`.
        number: of the figure on its page, which sets its ids apart from those of the others.
        title: for those who do not see it; words of the program, without `"`, `<` or `&`.
    """
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)  # a style here would be the whole page's
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    head, _, rest = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None  # matplotlib's own
    # Places to a hundredth of a point, which is finer than any screen, are half as many letters.
    rest = re.sub(r"(?<=[ \"\n(])-?\d+\.\d{3,}(?=[ \"\n)])", lambda match: f"{float(match[0]):.2f}", rest)
    rest = re.sub(r"\n *", "\n", rest)
    rest = re.sub(r'\bid="([^"]*)"', rf'id="f{number}-\1"', rest)
    rest = re.sub(r'href="#([^"]*)"', rf'href="#f{number}-\1"', rest)
    rest = re.sub(r"url\(#([^)]*)\)", rf"url(#f{number}-\1)", rest)
    rest = re.sub(r'style="[^"]*"', lambda match: _themed(match[0]), rest)
    return f'<svg {box[0]} role="img" aria-label="{title}">{rest}'


def _themed(style: str) -> str:
    style = re.sub(r"#[0-9a-f]{6}", lambda m: f"var(--{_VARIABLES[m[0]]})" if m[0] in _VARIABLES else m[0], style)
    # The font is the page's own; sizes and anchors stay. The first form is that of older matplotlibs.
    style = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", style)
    return re.sub(r"font-family: [^;\"]*;? ?", "", style)
