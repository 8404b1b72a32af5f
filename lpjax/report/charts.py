"""Charts, each drawn on one axis. They contain only numbers; the page puts names around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lpjax.report.figure import SERIES, series_style

_SHIFT = 0.35  # horizontal distance between methods, in percent
_MOST_TICKS = 8  # compressions that are marked one by one
_MOST_POINTS = 200  # of a line: a screen shows no more
_LINE = {"linewidth": 1.3, "markersize": 4.5}


def draw_scores(axis: Any, points: Sequence[tuple[float, float, int]], dense: float | None) -> None:
    """Draw a score against stored parameters, with a marker for each run and a dashed line for the dense model.

    Args:
        axis: an axis of matplotlib.
        points: (share of the parameters, score, number of the run).
        dense: score of the dense model.
    """
    if dense is not None:
        _draw_dense(axis, dense)
        ink = axis.xaxis.label.get_color()
        axis.plot([100], [dense], "o", color="none", markeredgecolor=ink, markersize=6, clip_on=False, zorder=3)
    for share, score, number in points:
        axis.plot([100 * share], [score], **series_style(number) | {"linestyle": ""}, markersize=7, zorder=4)
    axis.set_xlim(min([100 * share for share, *_ in points] + [90]) - 4, 103)
    _few_ticks(axis.xaxis)
    set_range(axis, [score for _, score, _ in points], dense)
    axis.set_xlabel("stored parameters, % of the dense model's")


def draw_curves(axis: Any, curves: Mapping[int, Sequence[tuple[float, float]]], dense: float | None) -> None:
    """Draw a score against compression, with a line for each method.

    Args:
        axis: an axis of matplotlib.
        curves: number of the method -> (compression, score), ascending.
        dense: score of the dense model.
    """
    if dense is not None:
        _draw_dense(axis, dense)
    for i, (number, curve) in enumerate(curves.items()):
        # The methods lie close together: a small horizontal shift keeps every marker visible.
        shift = min(_SHIFT, 4 / len(curves)) * (i - (len(curves) - 1) / 2)
        axis.plot([100 * share + shift for share, _ in curve], [y for _, y in curve], **series_style(number), **_LINE)
    shares = sorted({round(100 * share, 1) for curve in curves.values() for share, _ in curve})
    margin = max(4.0, 0.06 * (max(shares) - min(shares)))
    axis.set_xlim(min(shares) - margin, max(shares) + margin)
    set_range(axis, [score for curve in curves.values() for _, score in curve], dense)
    if len(shares) <= _MOST_TICKS and (len(shares) < 2 or min(np.diff(shares)) > 3):
        axis.set_xticks(shares, [f"{share:.0f}" for share in shares])
    else:
        _few_ticks(axis.xaxis)
    axis.set_xlabel("smaller by, % of these layers' parameters")


def draw_sizes(axis: Any, curves: Sequence[Sequence[tuple[float, float]]], dense: tuple[float, float]) -> None:
    """Draw a score against megabytes on a log axis, with a line for each method and a dashed one for the dense model.

    Args:
        axis: an axis of matplotlib.
        curves: (megabytes, score) of each method, ascending.
        dense: (megabytes, score) of the dense model.
    """
    _draw_dense(axis, dense[1])
    for number, curve in enumerate(curves):
        axis.plot([size for size, _ in curve], [value for _, value in curve], **series_style(number), **_LINE)
    axis.set_xscale("log")
    sizes = [size for curve in curves for size, _ in curve]
    low, high = min([*sizes, dense[0]]) / 1.15, max([*sizes, dense[0]]) * 1.15
    axis.set_xlim(low, high)
    ticks = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 1.5, 2, 3, 5, 7)]
    axis.set_xticks([tick for tick in ticks if low <= tick <= high])
    plain_logarithms(axis.xaxis)
    set_range(axis, [value for curve in curves for _, value in curve], dense[1])
    axis.set_xlabel("weights' file, MB")


def draw_spectra(axis: Any, spectra: Sequence[np.ndarray], ranks: Sequence[int]) -> None:
    """Draw singular values over the largest, with a line for each layer, and the ranks that cut them off."""
    lowest = 1.0
    for values in spectra:
        shares = relative_spectrum(values)
        shown = np.unique(np.linspace(0, len(shares) - 1, min(len(shares), _MOST_POINTS)).astype(int))
        axis.plot(shown + 1, shares[shown], color=SERIES[0], linewidth=1.1, alpha=max(0.55, 1 / len(spectra)))
        lowest = min(lowest, float(np.nanquantile(shares, 0.02)))
    end = max(map(len, spectra)) * 1.01 + 0.5
    set_spectrum_axes(axis, lowest, end)
    for rank in sorted(set(ranks)):
        axis.axvline(rank + 0.5, color=SERIES[1], linestyle="--", linewidth=1.3)
        axis.axvspan(rank + 0.5, end, color=SERIES[1], alpha=0.08, linewidth=0)
    axis.set_xlabel("number of the singular value")


def draw_errors(axis: Any, lines: Mapping[int, Sequence[tuple[int, float]]]) -> None:
    """Draw a relative error against the layer number, with a line for each kind of matrix."""
    for number, line in lines.items():
        axis.plot(*zip(*line, strict=True), **series_style(number), **_LINE)
    layers = sorted({layer for line in lines.values() for layer, _ in line})
    axis.set_xticks(layers[:: max(1, len(layers) // 12)])
    set_range(axis, [error for line in lines.values() for _, error in line])
    axis.set_xlabel("layer")


def relative_spectrum(values: np.ndarray) -> np.ndarray:
    """Singular values over the largest; NaN, a gap in the line, for those that are only rounding errors."""
    shares = values / values[..., :1]
    return np.where(shares > 1e-7, shares, np.nan)


def set_spectrum_axes(axis: Any, lowest: float, end: float, top: float = 1.6) -> None:
    """Set up a log axis for σᵢ/σ₁ down to `lowest`."""
    axis.set_yscale("log")
    axis.set_ylim(max(lowest / 2, 1e-6), top)
    axis.set_xlim(0, end)
    plain_logarithms(axis.yaxis)
    axis.set_ylabel("σᵢ / σ₁")


def plain_logarithms(axis: Any) -> None:
    """Label the ticks of a log axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw_dense(axis: Any, dense: float) -> None:
    frame = axis.spines["left"].get_edgecolor()
    axis.axhline(dense, color=frame, linestyle="--", linewidth=1, label="dense")


def set_range(axis: Any, values: Sequence[float], dense: float | None = None) -> None:
    """Set the limits of the y axis around values, even if all are equal."""
    values = [*values] if dense is None else [*values, dense]
    low, high = min(values), max(values)
    margin = max(0.15 * (high - low), 0.002 * max(abs(low), abs(high)), 1e-6)
    axis.set_ylim(low - margin, high + margin)


def _few_ticks(axis: Any) -> None:
    """Put ticks at a few round numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=5, steps=(1, 2, 5, 10)))
