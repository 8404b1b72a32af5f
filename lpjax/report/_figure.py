"""Figures by matplotlib's object interface, and the palette that all of them share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lpjax._extras import require
from lpjax._files.replacing import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's palette, told apart by colour-blind readers, and a marker each besides.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches."""
    require("report", "a figure")
    # The object interface draws with Agg and leaves the caller's own matplotlib state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: str | Path) -> None:
    """Write a PNG under a temporary name and rename it."""
    with replacing(Path(path)) as fresh:
        figure.savefig(fresh, format="png", dpi=130)
