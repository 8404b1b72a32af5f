"""matplotlib figures in lpjax's style, as a PNG file or as an SVG element of a page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpjax._extras import require
from lpjax._files.replacing import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe & Ito, which colour-blind readers can distinguish, and a marker for each colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SERIES = COLOURS[:-1]  # yellow, the last, is too faint for a thin line
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))

# Text, frame and grid. In an SVG, placeholders for the variables of the page's style sheet.
_PNG = ("#1b2026", "#5b6570", "#e6e9ec")
_SVG = ("#010203", "#040506", "#070809")
_VARIABLES = dict(zip(_SVG, ("ink", "muted", "grid"), strict=True)) | {c.lower(): f"c{i}" for i, c in enumerate(SERIES)}


def series_style(i: int) -> dict[str, Any]:
    """Colour, dashes and marker of the i-th series."""
    return {
        "color": SERIES[i % len(SERIES)],
        "linestyle": DASHES[i // len(SERIES) % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
    }


@contextmanager
def style(ink: str, frame: str, grid: str, **changes: Any) -> Iterator[None]:
    """A context with matplotlib's defaults and lpjax's style, independent of the caller's settings."""
    require("report", "a figure", "matplotlib")
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), ink),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), frame),
        "grid.color": grid,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "text.parse_math": False,
        "legend.frameon": False,
        **changes,
    }
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font may lack letters; a reader's browser has other fonts
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    # The object interface draws with Agg and leaves the caller's own matplotlib state alone.
    require("report", "a figure", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def png_style() -> Iterator[None]:
    """The style of a figure that is shown in a notebook or saved as a PNG."""
    with style(*_PNG):
        yield


def save_png(figure: Figure, path: str | Path) -> None:
    """Write a PNG under a temporary name and rename it."""
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def svg_of(draw: Callable[..., None], *arguments: Any, number: int, title: str) -> str:
    """A chart as an SVG element of a page, without links and with colours from the page's style sheet.

    Args:
        draw: function that draws on an axis, its first argument; it must not draw text from files.
        *arguments: further arguments of `draw`.
        number: number of the figure on its page, which makes its ids unique.
        title: description of the chart for screen readers; without `"`, `<` or `&`.
    """
    with style(*_SVG, **{"svg.fonttype": "none", "svg.hashsalt": "lpjax", "font.size": 8}):
        figure = new_figure(3.5, 2.5)  # as wide as a phone, so letters keep their size there
        axis = figure.subplots()
        draw(axis, *arguments)
        figure.patch.set_visible(False)
        axis.patch.set_visible(False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)  # a style here would be the whole page's
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None  # matplotlib writes one
    for pattern, replacement in (
        # Positions to a hundredth of a point are finer than any screen and take half as many letters.
        (r"(?<=[ \"\n(])-?\d+\.\d{3,}(?=[ \"\n)])", lambda match: f"{float(match[0]):.2f}"),
        (r"\n *", "\n"),
        (r'\bid="([^"]*)"', rf'id="f{number}-\1"'),
        (r'href="#([^"]*)"', rf'href="#f{number}-\1"'),
        (r"url\(#([^)]*)\)", rf"url(#f{number}-\1)"),
        (r'style="[^"]*"', lambda match: _themed(match[0])),
    ):
        body = re.sub(pattern, replacement, body)
    return f'<svg {box[0]} role="img" aria-label="{title}">{body}'


def _themed(css: str) -> str:
    css = re.sub(r"#[0-9a-f]{6}", lambda m: f"var(--{_VARIABLES[m[0]]})" if m[0] in _VARIABLES else m[0], css)
    # The font is the page's own; sizes and anchors stay. Older versions of matplotlib write the first form.
    css = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", css)
    return re.sub(r"font-family: [^;\"]*;? ?", "", css)
