"""The page's charts. They hold numbers and words of the program only; names stand in the page around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lpjax.report._figure import MARKERS
from lpjax.report._svg import INK, MUTED, SERIES, drawing, series_style

_SIZE = (3.5, 2.5)  # inches: as wide as a phone, where letters keep their size
_SHIFT = 0.35  # between methods, in percent
_MOST_TICKS = 8  # where compressions are marked one by one
_MOST_POINTS = 200  # of a line: more are no finer on a screen


def score_chart(points: Sequence[tuple[float, float, int]], dense: float | None) -> str:
    """A score against stored parameters, a marker for each run and a dashed line for the dense net.

    Args:
        points: (share of the parameters, score, number of the run).
        dense: score of the dense net.
    """
    with drawing(*_SIZE) as (figure, result):
        axis = figure.subplots()
        if dense is not None:
            axis.axhline(dense, color=MUTED, linestyle="--", linewidth=1)
            axis.plot([100], [dense], "o", color="none", markeredgecolor=INK, markersize=6, clip_on=False, zorder=3)
        for share, score, number in points:
            colour, _ = series_style(number)
            marker = MARKERS[number % len(MARKERS)]
            axis.plot([100 * share], [score], marker, color=colour, markersize=7, zorder=4)
        least = min([100 * share for share, *_ in points] + [90])
        axis.set_xlim(least - 4, 103)
        _few_ticks(axis.xaxis)
        _range(axis, [score for _, score, _ in points] + ([] if dense is None else [dense]))
        axis.set_xlabel("stored parameters, % of the dense net's")
    return result[0]


def curves_chart(lines: Mapping[int, Sequence[tuple[float, float]]], dense: float | None) -> str:
    """A score against compression, a line for each method.

    Args:
        lines: number of the method -> (compression, score), ascending.
        dense: score of the dense net.
    """
    with drawing(*_SIZE) as (figure, result):
        axis = figure.subplots()
        if dense is not None:
            axis.axhline(dense, color=MUTED, linestyle="--", linewidth=1)
        for order, (number, line) in enumerate(lines.items()):
            colour, dashes = series_style(number)
            # The methods lie close together: a small sideways step keeps every marker in sight.
            shift = min(_SHIFT, 4 / len(lines)) * (order - (len(lines) - 1) / 2)
            places, scores = [100 * place + shift for place, _ in line], [score for _, score in line]
            marker = MARKERS[number % len(MARKERS)]
            axis.plot(places, scores, color=colour, linestyle=dashes, linewidth=1.3, marker=marker, markersize=4.5)
        shares = sorted({round(100 * place, 1) for line in lines.values() for place, _ in line})
        room = max(4.0, 0.06 * (max(shares) - min(shares)))
        axis.set_xlim(min(shares) - room, max(shares) + room)
        _range(axis, [score for line in lines.values() for _, score in line] + ([] if dense is None else [dense]))
        if len(shares) <= _MOST_TICKS and (len(shares) < 2 or min(np.diff(shares)) > 3):
            axis.set_xticks(shares, [f"{share:.0f}" for share in shares])
        else:
            _few_ticks(axis.xaxis)
        axis.set_xlabel("smaller by, % of these layers' parameters")
    return result[0]


def spectra_chart(spectra: Sequence[np.ndarray], ranks: Sequence[int]) -> str:
    """Singular values over the largest, a line for each layer, and where the ranks cut them."""
    with drawing(*_SIZE) as (figure, result):
        axis = figure.subplots()
        lowest = 1.0
        for values in spectra:
            shares = values / values[0]
            shares = np.where(shares > 1e-7, shares, np.nan)  # below is rounding
            chosen = np.unique(np.linspace(0, len(shares) - 1, min(len(shares), _MOST_POINTS)).astype(int))
            axis.plot(chosen + 1, shares[chosen], color=SERIES[0], linewidth=1.1, alpha=max(0.55, 1 / len(spectra)))
            lowest = min(lowest, float(np.nanquantile(shares, 0.02)))
        longest = max(map(len, spectra))
        axis.set_yscale("log")
        axis.set_ylim(max(lowest / 2, 1e-6), 1.6)
        axis.set_xlim(0, longest * 1.01 + 0.5)
        for rank in sorted(set(ranks)):
            axis.axvline(rank + 0.5, color=SERIES[1], linestyle="--", linewidth=1.3)
            axis.axvspan(rank + 0.5, longest * 1.01 + 0.5, color=SERIES[1], alpha=0.08, linewidth=0)
        _plain_logarithms(axis.yaxis)
        axis.set_xlabel("number of the singular value")
        axis.set_ylabel("σᵢ / σ₁")
    return result[0]


def errors_chart(lines: Mapping[int, Sequence[tuple[int, float]]]) -> str:
    """A relative error against the number of the layer, a line for each kind of matrix."""
    with drawing(*_SIZE) as (figure, result):
        axis = figure.subplots()
        for number, line in lines.items():
            colour, dashes = series_style(number)
            marker = MARKERS[number % len(MARKERS)]
            axis.plot(
                [layer for layer, _ in line],
                [error for _, error in line],
                color=colour,
                linestyle=dashes,
                linewidth=1.3,
                marker=marker,
                markersize=4.5,
            )
        layers = sorted({layer for line in lines.values() for layer, _ in line})
        axis.set_xticks(layers[:: max(1, len(layers) // 12)])
        _range(axis, [error for line in lines.values() for _, error in line])
        axis.set_xlabel("layer")
    return result[0]


def _range(axis: Any, values: Sequence[float]) -> None:
    """Limits around values that may be one and the same."""
    low, high = min(values), max(values)
    room = max(0.15 * (high - low), 0.002 * max(abs(low), abs(high)), 1e-6)
    axis.set_ylim(low - room, high + room)


def _few_ticks(axis: Any) -> None:
    """Round numbers that leave each other room."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=5, steps=(1, 2, 5, 10)))


def _plain_logarithms(axis: Any) -> None:
    """Ticks of a logarithmic axis as numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
