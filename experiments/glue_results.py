"""Tables and plots of the GLUE experiment, from its records: imported by `experiments.readme`.

`python -m experiments.glue_results` draws experiments/results/glue/*.png.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from lpjax.glue import TASKS
from lpjax.report import method_label
from lpjax.report._figure import COLOURS, MARKERS, new_figure, save_png

RESULTS = Path(__file__).parent / "results"
LAYERS = {"embeddings": "embedding", "encoder": "encoder", "both": "both"}
METHODS = ("svd", "lewis", "irls_rows", "admm_entries")

Record = dict[str, Any]


def read_records(net: str) -> dict[str, list[Record]]:
    """Task -> records of a net, the dense one first; tasks in GLUE's order."""
    found = {}
    for task in TASKS:
        path = RESULTS / "glue" / f"{net}-{task}.jsonl"
        if path.exists():
            found[task] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return found


def score(metrics: dict[str, float]) -> float:
    """Mean of a task's metrics, in points."""
    return 100 * fmean(metrics.values())


def choose_p(records: Iterable[Record]) -> Record | None:
    """The record with the best score on what was held out of train; the smaller p among equals. Dev has no say."""
    known = [record for record in records if record["held_out"]]
    return max(known, key=lambda record: (score(record["held_out"]), -record["p"]), default=None)


def finetune_table() -> str:
    """Dev scores of the nets as they were fine-tuned."""
    lines = ["| net | task | learnt from | dev | metrics | epochs, lr | minutes |", "|---|---|---|---|---|---|---|"]
    for path in sorted((RESULTS / "finetune").glob("*.json"), key=_order):
        record = json.loads(path.read_text(encoding="utf-8"))
        best, dev, settings = record["best"], record["dev"], record["settings"]
        names = TASKS[record["task"]].metrics
        scores = ", ".join(f"{_METRICS[name]} {best[name]:.4f}" for name in names)
        subset = "" if dev["complete"] else " (subset)"
        lines.append(
            f"| {path.stem.rpartition('-')[0]} | {TASKS[record['task']].title} | {record['train']['rows']} of "
            f"{TASKS[record['task']].splits['train']} | {dev['rows']}{subset} | {scores} "
            f"| {settings['epochs']}, {settings['learning_rate']:g} | {record['seconds'] / 60:.0f} |"
        )
    return "\n".join(lines)


_METRICS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews_correlation": "Matthews",
    "pearson": "Pearson",
    "spearmanr": "Spearman",
}


def _order(path: Path) -> tuple[bool, str, int]:
    net, _, task = path.stem.rpartition("-")
    return net != "minilm", net, list(TASKS).index(task)


def headline_table(net: str, layers: str = "embeddings", compression: int = 28) -> str:
    """Scores of every task at one compression: dense, then each method at the p chosen for the task."""
    found = read_records(net)
    rows = []
    for task, records in found.items():
        dense = score(records[0]["metrics"])
        cells = []
        for method in METHODS:
            chosen = choose_p(_cells(records, layers, compression, method))
            if chosen is None:
                cells.append(None)
            else:
                cells.append((score(chosen["metrics"]), chosen["p"]))
        rows.append((TASKS[task].title, dense, cells))
    lines = [f"| task | dense | {' | '.join(METHODS)} |", "|---" * (len(METHODS) + 2) + "|"]
    for title, dense, cells in rows:
        told = ["–" if cell is None else _told(*cell) for cell in cells]
        lines.append(f"| {title} | {dense:.2f} | {' | '.join(told)} |")
    means = []
    for i in range(len(METHODS)):
        drops = [cells[i][0] - dense for _, dense, cells in rows if cells[i] is not None]
        means.append(f"{fmean(drops):+.2f}" if drops and len(drops) == len(rows) else "–")
    return "\n".join([*lines, f"| mean change | | {' | '.join(means)} |"])


def _told(value: float, p: float) -> str:
    return f"{value:.2f} (p = {p:g})" if p != 2 else f"{value:.2f}"


def _cells(records: list[Record], layers: str, compression: int, method: str) -> list[Record]:
    return [r for r in records if (r["layers"], r["compression"], r["method"]) == (layers, compression, method)]


def change_table(net: str, layers: str) -> str:
    """Mean change over tasks, in points, by method and p, against compression; only where all tasks have the cell."""
    found = read_records(net)
    compressions = sorted({r["compression"] for records in found.values() for r in records[1:]})
    ways = sorted(
        {(r["method"], r["p"]) for records in found.values() for r in records[1:]},
        key=lambda way: (METHODS.index(way[0]), way[1]),
    )
    lines = [f"| method | {' | '.join(f'−{c} %' for c in compressions)} |", "|---" * (len(compressions) + 1) + "|"]
    for method in METHODS:
        exponents = [p for name, p in ways if name == method]
        for p in exponents:
            name = method_label(method, p)
            cells = [mean_change(found, layers, c, method, p) for c in compressions]
            lines.append(f"| {name} | {' | '.join('–' if c is None else f'{c:+.2f}' for c in cells)} |")
        if len(exponents) > 1:
            cells = [mean_change(found, layers, c, method, None) for c in compressions]
            lines.append(f"| **{method}, best p** | {' | '.join('–' if c is None else f'{c:+.2f}' for c in cells)} |")
    return "\n".join(lines)


def mean_change(
    found: dict[str, list[Record]], layers: str, compression: int, method: str, p: float | None
) -> float | None:
    """Mean over all tasks of the change against dense; p None means the one chosen for each task."""
    changes = []
    for records in found.values():
        cells = _cells(records, layers, compression, method)
        if p is None:
            cell = choose_p(cells) if len(cells) > 1 else None
        else:
            cell = next((r for r in cells if r["p"] == p), None)
        if cell is None:
            return None
        changes.append(score(cell["metrics"]) - score(records[0]["metrics"]))
    return fmean(changes) if changes else None


def plot(net: str, path: Path) -> None:
    """Mean change against compression, a panel for each choice of layers, a line for each method at its chosen p."""
    found = read_records(net)
    figure = new_figure(10, 3.6)
    panels = figure.subplots(1, 3)
    for panel, (layers, name) in zip(panels, LAYERS.items(), strict=True):
        for method, colour, marker in zip(METHODS, COLOURS, MARKERS, strict=False):
            points = []
            for compression in sorted({r["compression"] for records in found.values() for r in records[1:]}):
                value = mean_change(found, layers, compression, method, 2.0 if method == "svd" else None)
                if value is not None:
                    points.append((compression, value))
            if points:
                panel.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, lw=1.5, label=method)
        panel.axhline(0, color="0.7", lw=1)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("compression of these layers, %")
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean change, points")
    panels[0].legend(frameon=False, fontsize=9)
    figure.suptitle(f"{net}: score on {len(found)} tasks against dense, no fine-tuning after compression", fontsize=11)
    save_png(figure, path)


def nets() -> list[str]:
    """The nets that have records."""
    return sorted({path.stem.rpartition("-")[0] for path in (RESULTS / "glue").glob("*.jsonl")})


if __name__ == "__main__":
    for name in nets():
        plot(name, RESULTS / "glue" / f"{name}.png")
