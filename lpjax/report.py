"""What a run leaves behind: a JSON record with its circumstances, a table, a plot."""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

_PACKAGES = ("lpjax", "jax", "jaxlib", "numpy", "scipy", "transformers", "safetensors")

# Okabe & Ito's palette, told apart by colour-blind readers, and a marker each besides.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def run_record(seed: int) -> dict[str, Any]:
    """Seed, versions and machine of this run: what a reader needs to repeat it, and no name of anybody's."""
    import jax

    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "seed": seed,
        "versions": versions,
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "device": f"{device.platform}: {device.device_kind}",
            "devices": jax.device_count(),
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON under a temporary name and rename it: an interrupted run leaves the old file or none.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot say.
        OSError: the folder cannot be written to.
    """
    path = Path(path)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def results_table(rows: Sequence[Mapping[str, Any]], *, score: str, dense: float, title: str = "") -> Table:
    """A rich table of demo or experiment rows.

    Args:
        rows: mappings with keys layers, method, p (None for dense), compression (share), parameters, score,
            seconds (None for dense).
        score: what the score is, for the title.
        dense: score of the uncompressed net, which losses are taken from.
        title: of the table.
    """
    # One line a row in 80 columns: what is long goes into the title.
    table = Table(title=f"{title}\n{score}" if title else score, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("layers", "method"):
        table.add_column(heading, no_wrap=True)
    for heading in ("smaller", "M params", "score", "loss", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        group = (row["layers"], row["compression"])
        if (previous is not None and group[0] != previous[0]) or (previous and group[1] != previous[1]):
            table.add_section()
        previous = group
        seconds = row.get("seconds")
        table.add_row(
            row["layers"],
            row["method"] if row["p"] is None else f"{row['method']} p={row['p']:g}",
            f"{100 * row['compression']:.0f} %",
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['score']:.4f}",
            f"{dense - row['score']:+.4f}",
            "" if seconds is None else f"{seconds:.1f}",
        )
    return table


def plot_results(path: str | Path, rows: Sequence[Mapping[str, Any]], *, score: str, dense: float) -> None:
    """Score against compression of the layers at work, a panel for each choice of layers, a line for each method.

    Args:
        path: PNG to be written, under a temporary name first.
        rows: as for `results_table`, without the dense net.
        score: label of the vertical axis.
        dense: score of the dense net, drawn as a dashed line.
    """
    # The object interface draws with Agg and leaves the caller's own matplotlib state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(row["layers"] for row in rows))
    labels = list(dict.fromkeys(_label(row) for row in rows))
    figure = Figure(figsize=(4.6 * len(panels) + 2.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
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
                color=_COLOURS[i % len(_COLOURS)],
                marker=_MARKERS[i % len(_MARKERS)],
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
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format="png", dpi=130)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _label(row: Mapping[str, Any]) -> str:
    return row["method"] if row["method"] == "svd" else f"{row['method']}, p = {row['p']:g}"
