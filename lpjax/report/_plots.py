"""Results as a PNG: score against compression."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lpjax._provenance import method_label
from lpjax.report._figure import COLOURS, MARKERS, new_figure, save_png


def plot_results(path: str | Path, rows: Sequence[Mapping[str, Any]], *, score: str, dense: float) -> None:
    """Score against compression of the layers at work, a panel for each choice of layers, a line for each method.

    Args:
        path: PNG to be written, under a temporary name first.
        rows: as for `results_table`, without the dense net.
        score: label of the vertical axis.
        dense: score of the dense net, drawn as a dashed line.
    """
    panels = list(dict.fromkeys(row["layers"] for row in rows))
    labels = list(dict.fromkeys(_label(row) for row in rows))
    figure = new_figure(4.6 * len(panels) + 2.2, 4.6)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, panel in zip(axes, panels, strict=True):
        axis.axhline(dense, color="0.4", linestyle="--", linewidth=1.2, label="dense")
        for i, label in enumerate(labels):
            chosen = [row for row in rows if row["layers"] == panel and _label(row) == label]
            chosen.sort(key=lambda row: row["compression"])
            # The methods lie close together: a small sideways step keeps every marker in sight.
            shift = 0.35 * (i - (len(labels) - 1) / 2)
            axis.plot(
                [100 * row["compression"] + shift for row in chosen],
                [row["score"] for row in chosen],
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=6,
                linewidth=1.4,
                label=label,
            )
        shares = sorted({100 * row["compression"] for row in rows if row["layers"] == panel})
        axis.set_xticks(shares, [f"{share:.0f}" for share in shares])
        axis.set_xlim(math.floor(shares[0]) - 6, math.ceil(shares[-1]) + 6)
        axis.set_title(panel)
        axis.set_xlabel("smaller by, % of these layers' parameters")
        axis.grid(visible=True, axis="y", color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(score)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False)
    save_png(figure, path)


def _label(row: Mapping[str, Any]) -> str:
    return method_label(row["method"], row["p"])
