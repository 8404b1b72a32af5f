"""Tables and plots of the GLUE experiment, from its records: imported by `experiments.readme`.

`python -m experiments.glue_results` draws experiments/results/glue/*.png.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lpjax._provenance import method_label
from lpjax.glue import TASKS
from lpjax.report.figure import COLOURS, MARKERS, new_figure, save_png

RESULTS = Path(__file__).parent / "results"
LAYERS = {"embeddings": "embedding", "encoder": "encoder", "both": "both"}
METHODS = ("svd", "lewis", "irls_rows", "admm_entries")

Record = dict[str, Any]


def read_records(net: str) -> dict[str, list[Record]]:
    """Task -> records of a net, the dense one first; tasks in GLUE's order."""
    records_by_task = {}
    for task in TASKS:
        if records := read_lines(RESULTS / "glue" / f"{net}-{task}.jsonl"):
            records_by_task[task] = records
    return records_by_task


def whole(records_by_task: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """The tasks of a net that are scored on all of dev: only GLUE's own scores may be averaged."""
    return {task: records for task, records in records_by_task.items() if records[0]["complete"]}


def score(metrics: dict[str, float]) -> float:
    """Mean of a task's metrics, in points."""
    return 100 * fmean(metrics.values())


def choose_p(records: Iterable[Record]) -> Record | None:
    """The record with the best score on held-out train rows, the smaller p among equals. Dev does not count."""
    known = [record for record in records if record["held_out"]]
    return max(known, key=lambda record: (score(record["held_out"]), -record["p"]), default=None)


def finetune_table() -> str:
    """Dev scores of the nets as they were fine-tuned."""
    lines = ["| model | task | trained on | dev | metrics | epochs, lr | minutes |", "|---|---|---|---|---|---|---|"]
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
    records_by_task, rows = read_records(net), []
    for task, records in records_by_task.items():
        dense = score(records[0]["metrics"])
        cells = []
        for method in METHODS:
            chosen = choose_p(_cells(records, layers, compression, method))
            if chosen is None:
                cells.append(None)
            else:
                cells.append((score(chosen["metrics"]), chosen["p"]))
        rows.append((TASKS[task].title, records[0]["complete"], dense, cells))
    lines = [f"| task | dense | {' | '.join(METHODS)} |", "|---" * (len(METHODS) + 2) + "|"]
    for title, complete, dense, cells in rows:
        formatted = ["–" if cell is None else _format_score(*cell) for cell in cells]
        lines.append(f"| {title}{'' if complete else ' (subset)'} | {dense:.2f} | {' | '.join(formatted)} |")
    means = [mean_change(whole(records_by_task), layers, compression, method, None) for method in METHODS]
    formatted = ["–" if mean is None else f"{mean:+.2f}" for mean in means]
    return "\n".join([*lines, f"| mean change, whole tasks | | {' | '.join(formatted)} |"])


def _format_score(value: float, p: float) -> str:
    return f"{value:.2f} (p = {p:g})" if p != 2 else f"{value:.2f}"


def _cells(records: list[Record], layers: str, compression: int, method: str) -> list[Record]:
    """The records of a method at every p; at p = 2 each method is the SVD."""
    here = [r for r in records if (r["layers"], r["compression"]) == (layers, compression)]
    own = [r for r in here if r["method"] == method]
    return own + [r for r in here if r["method"] == "svd" != method] if own else []


def change_table(net: str, layers: str) -> str:
    """Mean change over whole tasks, in points, by method and p; a cell needs a record of every task."""
    records_by_task = whole(read_records(net))
    compressions = [
        c for c in _compressions(records_by_task) if mean_change(records_by_task, layers, c, "svd", 2.0) is not None
    ]
    ways = sorted(
        {(r["method"], r["p"]) for records in records_by_task.values() for r in records[1:]},
        key=lambda way: (METHODS.index(way[0]), way[1]),
    )
    lines = [f"| method | {' | '.join(f'−{c} %' for c in compressions)} |", "|---" * (len(compressions) + 1) + "|"]
    for method in METHODS:
        exponents = [p for name, p in ways if name == method]
        for p in exponents:
            name = method_label(method, p)
            cells = [mean_change(records_by_task, layers, c, method, p) for c in compressions]
            lines.append(f"| {name} | {' | '.join('–' if c is None else f'{c:+.2f}' for c in cells)} |")
        if len(exponents) > 1:
            cells = [mean_change(records_by_task, layers, c, method, None) for c in compressions]
            lines.append(f"| **{method}, best p** | {' | '.join('–' if c is None else f'{c:+.2f}' for c in cells)} |")
    return "\n".join(lines)


def mean_change(
    records_by_task: dict[str, list[Record]], layers: str, compression: int, method: str, p: float | None
) -> float | None:
    """Mean over all tasks of the change against dense; p None means the one chosen for each task."""
    changes = []
    for records in records_by_task.values():
        cells = _cells(records, layers, compression, method)
        cell = choose_p(cells) if p is None else next((r for r in cells if r["p"] == p), None)
        if cell is None:
            return None
        changes.append(score(cell["metrics"]) - score(records[0]["metrics"]))
    return fmean(changes) if changes else None


def against_svd_table(net: str) -> str:
    """Each method at its chosen p against the SVD, cell by cell: a cell is a task at a compression."""
    records_by_task = read_records(net)
    lines = [
        "| layers | method | cells | better | equal | worse | mean difference | without CoLA |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for layers, name in LAYERS.items():
        for method in METHODS[1:]:
            differences: dict[str, list[float]] = {}
            for task, records in records_by_task.items():
                for compression in _compressions(records_by_task):
                    cells = _cells(records, layers, compression, method)
                    chosen, svd = choose_p(cells), next((r for r in cells if r["method"] == "svd"), None)
                    if chosen is not None and svd is not None:
                        differences.setdefault(task, []).append(score(chosen["metrics"]) - score(svd["metrics"]))
            every = [x for of_task in differences.values() for x in of_task]
            if not every:
                continue
            better, worse = sum(x > 0 for x in every), sum(x < 0 for x in every)
            others = [x for task, of_task in differences.items() if task != "cola" for x in of_task]
            lines.append(
                f"| {name} | {method} | {len(every)} | {better} | {len(every) - better - worse} | {worse} "
                f"| {_with_error(every)} | {_with_error(others)} |"
            )
    return "\n".join(lines)


def _with_error(values: list[float]) -> str:
    """The mean and its standard error."""
    if not values:
        return "–"
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{fmean(values):+.2f} ± {error:.2f}"


def small_table() -> str:
    """Change of each small net's score, in points: SVD, then each method at its chosen p."""
    lines = [f"| model | layers | % | {' | '.join(METHODS)} |", "|---" * (len(METHODS) + 3) + "|"]
    for net in (name for name in nets() if name.startswith("small-")):
        records_by_task = read_records(net)
        for layers, name in LAYERS.items():
            for compression in _compressions(records_by_task):
                values = [mean_change(records_by_task, layers, compression, method, None) for method in METHODS]
                if any(value is not None for value in values):
                    formatted = ["–" if value is None else f"{value:+.2f}" for value in values]
                    lines.append(f"| {net} | {name} | −{compression} | {' | '.join(formatted)} |")
    return "\n".join(lines)


def outliers_table() -> str:
    """Scores of every variant of a net, dense and by each method, with how far its rows and entries stand out."""
    records = read_lines(RESULTS / "outliers.jsonl")
    variants = list(dict.fromkeys(record["variant"] for record in records))
    records.sort(key=lambda record: (record["net"], record["layers"], variants.index(record["variant"])))
    ways = list(dict.fromkeys((row["method"], row["p"]) for record in records for row in record["rows"]))
    labels = [method_label(method, p) for method, p in ways]
    lines = [
        f"| net, task | layers | variant | largest row | kurtosis | dense | keep | {' | '.join(labels)} |",
        "|---" * (len(ways) + 7) + "|",
    ]
    for record in records:
        outliers = record["outliers"]
        about = [f"{record['net']}, {TASKS[record['task']].title}", record["layers"], record["variant"]]
        about += [f"{outliers['row_max']:.1f}", f"{outliers['kurtosis']:.1f}", f"{score(record['dense']):.2f}"]
        for keep in dict.fromkeys(row["keep"] for row in record["rows"]):
            values = {(row["method"], row["p"]): score(row["metrics"]) for row in record["rows"] if row["keep"] == keep}
            best = max(values.values())
            formatted = [f"**{values[way]:.2f}**" if values[way] == best else f"{values[way]:.2f}" for way in ways]
            lines.append(f"| {' | '.join([*about, f'{keep:g}', *formatted])} |")
    return "\n".join(lines)


def throughput_table() -> str:
    """Tokens a second of both libraries."""
    record = json.loads((RESULTS / "throughput.json").read_text(encoding="utf-8"))
    lines = ["| task | rows | tokens | lpjax, tokens/s | PyTorch, tokens/s | ratio | logits apart |", "|---" * 7 + "|"]
    for row in record["rows"]:
        speed = row["tokens_per_second"]
        lines.append(
            f"| {TASKS[row['task']].title} | {row['rows']} | {row['tokens']} | {speed['lpjax']:.0f} "
            f"| {speed['torch']:.0f} | {row['ratio']:.2f} | {row['logits_apart']:.0e} |"
        )
    return "\n".join(lines)


def _compressions(records_by_task: dict[str, list[Record]]) -> list[int]:
    return sorted({r["compression"] for records in records_by_task.values() for r in records[1:]})


def read_lines(path: Path) -> list[Record]:
    """The records of a file; an empty list if the file does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def plot(net: str, path: Path) -> None:
    """Mean change against compression, a panel for each choice of layers, a line for each method at its chosen p."""
    records_by_task = whole(read_records(net))
    figure = new_figure(10, 3.6)
    panels = figure.subplots(1, 3)
    for panel, (layers, name) in zip(panels, LAYERS.items(), strict=True):
        for method, colour, marker in zip(METHODS, COLOURS, MARKERS, strict=False):
            points = []
            for compression in _compressions(records_by_task):
                value = mean_change(records_by_task, layers, compression, method, 2.0 if method == "svd" else None)
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
    title = f"{net}: score on {len(records_by_task)} whole tasks against dense, no fine-tuning after compression"
    figure.suptitle(title, fontsize=11)
    save_png(figure, path)


def nets() -> list[str]:
    """The nets that have records."""
    return sorted({path.stem.rpartition("-")[0] for path in (RESULTS / "glue").glob("*.jsonl")})


if __name__ == "__main__":
    for name in nets():
        plot(name, RESULTS / "glue" / f"{name}.png")
