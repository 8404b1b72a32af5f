"""An inspection as a PNG: spectra and row norms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lpjax.report._figure import COLOURS, new_figure, save_png

if TYPE_CHECKING:
    from lpjax.inspection import Inspection, Kind, LeafRecord

_MOST_KINDS = 14  # two rounds of seven colours
_RATIO_TICKS = {  # by the ratio of the ends of the axis
    2: (0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.6),
    20: (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7),
    math.inf: (0.001, 0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 100, 1000),
}
_LEAST_VALUES = 4  # two or three, as of a table of token types, make no spectrum


def plot_inspection(path: str | Path, inspection: Inspection, *, title: str = "") -> None:
    """Spectra and row norms of the matrices, a line and a bar for each kind of leaf.

    Left, σ_i/σ_1 against (i − ½)/min(n, d): the median over a kind's layers, shaded from the least to the largest.
    Right, row norms over the median of their leaf, of all layers of a kind: a bar from the first to the third
    quartile, a line from the 1st to the 99th percentile, and a dot for every row beyond.

    Args:
        path: PNG to be written, under a temporary name first.
        inspection: from `inspect_params`. Of more than 14 kinds those with the most parameters are drawn.
        title: of the figure.

    Raises:
        ValueError: no leaf is a matrix of four singular values and not 0.
    """
    from lpjax.inspection import kinds_of

    kinds = [kind for kind in kinds_of(inspection.leaves) if any(map(_drawable, kind.leaves))]
    if not kinds:
        raise ValueError("no leaf has a spectrum to draw; expected a matrix of 4 singular values or more, not all 0")
    largest = sorted(kinds, key=_parameters, reverse=True)[:_MOST_KINDS]
    shown = [kind for kind in kinds if kind in largest]
    figure = new_figure(12.5, 2 + 0.36 * max(8, len(shown)))
    spectra, norms = figure.subplots(1, 2, width_ratios=(1, 0.9))
    # Yellow, the last, is too faint for a thin line.
    colours = COLOURS[:-1]
    lowest = 1.0
    for i, kind in enumerate(shown):
        colour, dashes = colours[i % len(colours)], ("-", (0, (4, 1.5)))[i // len(colours)]
        height = len(shown) - 1 - i
        lowest = min(lowest, _draw_spectra(spectra, kind, colour, dashes))
        _draw_norms(norms, kind, height, colour, dashes)
    spectra.set_yscale("log")
    spectra.set_ylim(max(lowest / 2, 1e-6), 1.3)
    spectra.set_xlim(0, 100)
    spectra.set_xlabel("singular values, % of the smaller side")
    spectra.set_ylabel("σᵢ / σ₁")
    spectra.set_title("spectra in the colours of the bars: median over layers, shaded to the extremes", fontsize=10)
    norms.set_xscale("log")
    norms.set_yticks(range(len(shown)), [_two_lines(kind.name) for kind in reversed(shown)], fontsize=8)
    norms.set_ylim(-0.7, len(shown) - 0.3)
    low, high = norms.get_xlim()
    fits = next(ticks for reach, ticks in _RATIO_TICKS.items() if high <= reach * low)
    ticks = [tick for tick in fits if low <= tick <= high]
    norms.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    norms.set_xticks([], minor=True)
    norms.set_xlabel("row norm / median row norm of its leaf")
    norms.set_title("rows: quartiles, 1st to 99th percentile, dots beyond", fontsize=10)
    for axis in (spectra, norms):
        axis.grid(visible=True, axis="both", color="0.92")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    if len(shown) < len(kinds):
        title = f"{title}{': ' if title else ''}the {len(shown)} largest of {len(kinds)} kinds of matrices"
    figure.suptitle(title, fontsize=11, parse_math=False)  # a name may hold dollar signs
    save_png(figure, path)


def _drawable(leaf: LeafRecord) -> bool:
    values = leaf.singular_values
    return values is not None and values.size >= _LEAST_VALUES and bool(values[0] > 0)


def _parameters(kind: Kind) -> int:
    return sum(leaf.size for leaf in kind.leaves)


def _draw_spectra(axis: Any, kind: Kind, colour: str, dashes: Any) -> float:
    """Draw the spectra of a kind; returns a value that should be seen, short of the plunge at the very end."""
    values = np.stack([leaf.singular_values for leaf in kind.leaves if _drawable(leaf)])  # pyright: ignore
    shares = values / values[:, :1]
    shares = np.where(shares > 1e-7, shares, np.nan)  # what is but rounding is a gap on a logarithmic axis
    seen = ~np.all(np.isnan(shares), axis=0)
    places = 100 * (np.arange(shares.shape[1]) + 0.5)[seen] / min(kind.leaves[0].shape)
    shares = shares[:, seen]
    median = np.nanmedian(shares, axis=0)
    axis.plot(places, median, color=colour, linestyle=dashes, linewidth=1.5)
    if len(shares) > 1:
        axis.fill_between(places, np.nanmin(shares, axis=0), np.nanmax(shares, axis=0), color=colour, alpha=0.12, lw=0)
    return float(np.quantile(median, 0.02))


def _draw_norms(axis: Any, kind: Kind, height: float, colour: str, dashes: Any) -> None:
    """Draw the row norms of a kind at one height."""
    pairs = [(leaf.row_norms, float(np.median(leaf.row_norms))) for leaf in kind.leaves if leaf.row_norms is not None]
    ratios = np.concatenate([norms / median for norms, median in pairs if median > 0] or [np.zeros(0)])
    ratios = ratios[ratios > 0]
    if not ratios.size:
        axis.text(1, height, "more than half of the rows are 0", color="0.4", fontsize=8, ha="center", va="center")
        return
    low, first, third, high = np.quantile(ratios, (0.01, 0.25, 0.75, 0.99))
    axis.hlines(height, low, high, color=colour, linestyle=dashes, linewidth=1.5)
    axis.barh(height, third - first, left=first, height=0.44, color=colour, alpha=0.55)
    axis.vlines(1, height - 0.22, height + 0.22, color="0.2", linewidth=1)
    beyond = ratios[(ratios < low) | (ratios > high)]
    axis.plot(beyond, np.full(beyond.size, height), ".", color=colour, markersize=4, markeredgewidth=0, alpha=0.8)


def _two_lines(name: str) -> str:
    """A long path broken at the slash nearest to its middle."""
    slashes = [i for i, letter in enumerate(name) if letter == "/"]
    if len(name) <= 32 or not slashes:
        return name
    cut = min(slashes, key=lambda i: abs(i - len(name) / 2)) + 1
    return f"{name[:cut]}\n{name[cut:]}"
