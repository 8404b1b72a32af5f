"""Figures of results, of an inspection, and of one matrix with its factorizations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lpjax._provenance import method_label
from lpjax.inspection import Inspection, Kind, LeafRecord, kinds_of, singular_values
from lpjax.report.charts import (
    draw_curves,
    draw_sizes,
    plain_logarithms,
    relative_spectrum,
    set_range,
    set_spectrum_axes,
)
from lpjax.report.figure import new_figure, png_style, save_png, series_style
from lpjax.solvers import Solution
from lpjax.weights import LowRank, densify

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_KINDS = 14  # two rounds of seven colours
_RATIO_TICKS = {  # by the ratio of the ends of the axis
    2: (0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.6),
    20: (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7),
    math.inf: (0.001, 0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 100, 1000),
}
_LEAST_VALUES = 4  # fewer singular values, as of a table of token types, make no spectrum


def plot_results(path: str | Path, rows: Sequence[Mapping[str, Any]], *, score: str, dense: float) -> None:
    """Plot score against compression: a panel for each choice of layers, a line for each method.

    Args:
        path: PNG to write, under a temporary name first.
        rows: as for `results_table`, without the dense model.
        score: label of the vertical axis.
        dense: score of the dense model, drawn as a dashed line.
    """
    panels = list(dict.fromkeys(row["layers"] for row in rows))
    labelled = [(row, method_label(row["method"], row["p"])) for row in rows]
    labels = list(dict.fromkeys(label for _, label in labelled))
    with png_style():
        figure = new_figure(4.6 * len(panels) + 2.2, 4.6)
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, panel in zip(axes, panels, strict=True):
            chosen = [(row, label) for row, label in labelled if row["layers"] == panel]
            curves = {
                i: sorted((row["compression"], row["score"]) for row, label in chosen if label == name)
                for i, name in enumerate(labels)
            }
            draw_curves(axis, curves, dense)
            axis.set_title(panel)
        set_range(axes[0], [row["score"] for row in rows], dense)
        axes[0].set_ylabel(score)
        figure.legend(axes[0].get_lines(), ["dense", *labels], loc="outside right center")
        save_png(figure, path)


def plot_sizes(path: str | Path, rows: Sequence[Mapping[str, Any]], *, score: str, dense: tuple[float, float]) -> None:
    """Plot score against bytes of the weight file, a line for each method.

    Args:
        path: PNG to write, under a temporary name first.
        rows: mappings with keys method, bytes and score.
        score: label of the vertical axis.
        dense: bytes and score of the dense model.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(row["method"], []).append((row["bytes"] / 1e6, row["score"]))
    with png_style():
        figure = new_figure(6.8, 4.2)
        axis = figure.subplots()
        draw_sizes(axis, [sorted(curve) for curve in curves.values()], (dense[0] / 1e6, dense[1]))
        axis.set_ylabel(score)
        figure.legend(axis.get_lines(), ["dense", *curves], loc="outside right center")
        save_png(figure, path)


def plot_matrix(
    matrix: Any, solutions: Mapping[str, Solution | LowRank | Sequence[Solution]], *, title: str = ""
) -> Figure:
    """Plot a matrix A and its factorizations: spectrum, row norms, error by row, and objective by step.

    The four panels are: σᵢ/σ₁, with a line at each rank; the share of rows whose norm is at least x times the median
    row norm; the same for the errors ‖aᵢ − lᵢR‖₂, relative to the same median, with a line for each factorization; and
    for each sequence of solutions the objective over its least value, against the number of iterations.

        steps = [lpjax.irls_rows(matrix, 8, num_iters=t) for t in (1, 2, 4, 8)]
        lpjax.report.plot_matrix(matrix, {"svd": lpjax.svd(matrix, 8), "irls_rows": steps})

    Args:
        matrix: matrix, shape (n, d), not all 0.
        solutions: name -> `Solution`, `LowRank`, or a sequence of solutions with increasing numbers of iterations,
            which gives the line of the fourth panel; its last one gives the errors.
        title: the figure's title.

    Returns:
        A matplotlib figure that belongs to no backend: a notebook shows it, `savefig` writes it.

    Raises:
        ValueError: the matrix does not have two axes, is not finite or is all 0, or a factorization has another shape.
        ModuleNotFoundError: `lpjax[report]` is not installed.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all() or not matrix.any():
        raise ValueError(f"`matrix` has shape {matrix.shape}; expected (n, d), finite, and not all 0")
    steps: dict[str, Sequence[Any]] = {
        name: [value] if isinstance(value, Solution | LowRank) else list(value) for name, value in solutions.items()
    }
    for name, values in steps.items():
        shapes = {(*value.left.shape[:-1], value.right.shape[-1]) for value in values}
        if shapes != {matrix.shape}:
            raise ValueError(f"`solutions` has {name!r} of shapes {sorted(shapes)}; expected {matrix.shape}")
    norms = np.linalg.norm(matrix.astype(np.float64), axis=1)
    unit = float(np.median(norms)) or float(norms.max())
    with png_style():
        figure = new_figure(11, 7)
        (spectrum, rows), (errors, objective) = figure.subplots(2, 2)
        shares = relative_spectrum(singular_values(matrix))
        spectrum.plot(np.arange(1, shares.size + 1), shares, color="black", linewidth=1.5)
        set_spectrum_axes(spectrum, float(np.nanquantile(shares, 0.02)), shares.size + 1)
        _draw_tail(rows, norms / unit, color="black", linewidth=1.5)
        for i, (name, values) in enumerate(steps.items()):
            line = series_style(i) | {"label": name}
            factors = LowRank(values[-1].left, values[-1].right, getattr(values[-1], "sparse", None))
            residuals = np.linalg.norm(matrix - np.asarray(densify(factors), np.float64), axis=1)
            _draw_tail(errors, residuals / unit, **line | {"marker": ""})
            spectrum.axvline(factors.rank + 0.5, **line | {"marker": ""}, linewidth=1)
            if len(values) > 1:
                objectives = np.asarray([float(value.objective) for value in values])
                objective.plot([int(value.num_iters) for value in values], objectives / objectives.min(), **line)
        spectrum.set(xlabel="number of the singular value", title="spectrum, and the ranks")
        rows.set(xlabel="row norm / median row norm", title="row norms")
        errors.set(xlabel="error of the row / median row norm", title="error by row")
        objective.set(xlabel="iterations", ylabel="objective / least objective", title="objective by step")
        if steps:
            figure.legend(*errors.get_legend_handles_labels(), loc="outside lower center", ncols=6)
        figure.suptitle(title)
    return figure


def _draw_tail(axis: Any, values: np.ndarray, **line: Any) -> None:
    """Draw the share of values that are at least x, against x; zeros are left out."""
    ordered = np.sort(values)
    shares = 1 - np.arange(ordered.size) / ordered.size
    axis.plot(ordered[ordered > 0], shares[ordered > 0], **line)
    axis.set(xscale="log", ylabel="share of rows at or above", ylim=(0, 1.05))
    plain_logarithms(axis.xaxis)


def plot_inspection(path: str | Path, inspection: Inspection, *, title: str = "") -> None:
    """Plot spectra and row norms of the matrices, a line and a bar for each kind of leaf.

    Left, σ_i/σ_1 against (i − ½)/min(n, d): the median over a kind's layers, shaded from the least to the largest.
    Right, row norms of all layers of a kind, relative to their leaf's median: a bar from the first to the third
    quartile, a line from the 1st to the 99th percentile, and a dot for every row beyond.

    Args:
        path: PNG to write, under a temporary name first.
        inspection: from `inspect_params`. At most 14 kinds are drawn, those with the most parameters.
        title: the figure's title.

    Raises:
        ValueError: no leaf is a nonzero matrix with at least four singular values.
    """
    kinds = [kind for kind in kinds_of(inspection.leaves) if any(map(_drawable, kind.leaves))]
    if not kinds:
        raise ValueError("no leaf has a spectrum to draw; expected a matrix of 4 singular values or more, not all 0")
    largest = sorted(kinds, key=lambda kind: sum(leaf.size for leaf in kind.leaves), reverse=True)[:_MOST_KINDS]
    shown = [kind for kind in kinds if kind in largest]
    if len(shown) < len(kinds):
        title = f"{title}{': ' if title else ''}the {len(shown)} largest of {len(kinds)} kinds of matrices"
    with png_style():
        figure = new_figure(12.5, 2 + 0.36 * max(8, len(shown)))
        spectra, norms = figure.subplots(1, 2, width_ratios=(1, 0.9))
        lowest = 1.0
        for i, kind in enumerate(shown):
            line = series_style(i) | {"marker": ""}
            lowest = min(lowest, _draw_spectra(spectra, kind, line))
            _draw_norms(norms, kind, len(shown) - 1 - i, line["color"], line["linestyle"])
        set_spectrum_axes(spectra, lowest, 100, top=1.3)
        spectra.set_xlabel("singular values, % of the smaller side")
        spectra.set_title("spectra in the colours of the bars: median over layers, shaded to the extremes", fontsize=10)
        norms.set_xscale("log")
        norms.set_yticks(range(len(shown)), [_two_lines(kind.name) for kind in reversed(shown)], fontsize=8)
        norms.set_ylim(-0.7, len(shown) - 0.3)
        low, high = norms.get_xlim()
        choice = next(ticks for reach, ticks in _RATIO_TICKS.items() if high <= reach * low)
        ticks = [tick for tick in choice if low <= tick <= high]
        norms.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        norms.set_xticks([], minor=True)
        norms.set_xlabel("row norm / median row norm of its leaf")
        norms.set_title("rows: quartiles, 1st to 99th percentile, dots beyond", fontsize=10)
        figure.suptitle(title, fontsize=11)
        save_png(figure, path)


def _drawable(leaf: LeafRecord) -> bool:
    values = leaf.singular_values
    return values is not None and values.size >= _LEAST_VALUES and bool(values[0] > 0)


def _draw_spectra(axis: Any, kind: Kind, line: Mapping[str, Any]) -> float:
    """Draw the spectra of a kind; returns the least value to show, which leaves out the drop at the end."""
    values = np.stack([leaf.singular_values for leaf in kind.leaves if _drawable(leaf)])  # pyright: ignore
    shares = relative_spectrum(values)
    known = ~np.all(np.isnan(shares), axis=0)
    places = 100 * (np.arange(shares.shape[1]) + 0.5)[known] / min(kind.leaves[0].shape)
    shares = shares[:, known]
    median = np.nanmedian(shares, axis=0)
    axis.plot(places, median, **line)
    if len(shares) > 1:
        low, high = np.nanmin(shares, axis=0), np.nanmax(shares, axis=0)
        axis.fill_between(places, low, high, color=line["color"], alpha=0.12, linewidth=0)
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
    """A long path, broken at the slash nearest to its middle."""
    slashes = [i for i, letter in enumerate(name) if letter == "/"]
    if len(name) <= 32 or not slashes:
        return name
    cut = min(slashes, key=lambda i: abs(i - len(name) / 2)) + 1
    return f"{name[:cut]}\n{name[cut:]}"
