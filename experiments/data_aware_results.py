"""Tables of what text is worth, from the records of several commands: imported by `experiments.readme`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.glue_results import choose_p, read_lines, score
from lpjax.glue import TASKS

RESULTS = Path(__file__).parent / "results" / "data_aware_glue"
NET = "minilm"
LEWIS = "lewis, p chosen"  # of the paper's method, and of p = 2, the one that held-out train chooses

Record = dict[str, Any]


def read_records() -> dict[str, list[Record]]:
    """Task -> records, in GLUE's order."""
    records_by_task = {task: read_lines(RESULTS / f"{NET}-{task}.jsonl") for task in TASKS}
    return {task: records for task, records in records_by_task.items() if records}


def cell(records: list[Record], keep: float, way: str, then: str = "") -> float | None:
    """The score of a method, in points; None if it is not on record."""
    here = [r for r in records if (r["keep"], r["then"]) == (keep, then)]
    if way == LEWIS:
        exponents = {"lewis, p = 1": 1.0, "lewis, p = 1.5": 1.5, "SVD": 2.0}
        chosen = choose_p({**r, "p": exponents[r["way"]]} for r in here if r["way"] in exponents)
        return None if chosen is None else score(chosen["metrics"])
    return next((score(r["metrics"]) for r in here if r["way"] == way), None)


def _table(columns: list[tuple[str, str, str]], keeps: tuple[float, ...]) -> str:
    """Rows of tasks and keeps; columns of (title, way, then). Means are over the tasks that have them all."""
    records_by_task = read_records()
    titles = [title for title, _, _ in columns]
    lines = [f"| keep | task | dense | {' | '.join(titles)} |", "|---" * (len(columns) + 3) + "|"]
    for keep in keeps:
        whole: list[list[float]] = []
        for task, records in records_by_task.items():
            dense = cell(records, 1.0, "dense")
            assert dense is not None  # the first of every file
            scores = [cell(records, keep, way, then) for _, way, then in columns]
            if None not in scores:
                whole.append([dense, *(value for value in scores if value is not None)])
            subset = "" if records[0]["complete"] else " (subset)"
            cells = ["–" if value is None else f"{value:.2f}" for value in scores]
            lines.append(f"| {keep:g} | {TASKS[task].title}{subset} | {dense:.2f} | {' | '.join(cells)} |")
        if len(whole) > 1:
            means = [f"{fmean(column):.2f}" for column in zip(*whole, strict=True)]
            lines.append(f"| {keep:g} | **mean of {len(whole)}** | {' | '.join(means)} |")
    return "\n".join(lines)


def compressed_table() -> str:
    """Every way to compress, without further training."""
    ours = "ours", "ours, ranks by error", "ours, ranks by error, single entries"
    ways = ("SVD", LEWIS, "FWSVD", "ASVD", "DRONE", *ours)
    return _table([(way, way, "") for way in ways], (0.75, 0.5))


def recovery_table() -> str:
    """The SVD and ours, after an epoch with labels and after one without."""
    ways = ("SVD", "ours, ranks by error")
    thens = (("", ""), (", recovered without labels", "recover"), (", fine-tuned", "finetune"))
    return _table([(way + suffix, way, then) for suffix, then in thens for way in ways], (0.5,))


def ablation_table() -> str:
    """What each part adds, from the records of `experiments.data_aware`, `.budget` and `.beyond`."""
    weighted, budget, beyond = (
        json.loads((RESULTS.parent / f"{name}.json").read_text(encoding="utf-8"))["rows"]
        for name in ("data_aware", "budget", "beyond")
    )

    def of(rows: list[Record], **criteria: Any) -> float:
        criteria = {"sparse": 0.0} | criteria
        (row,) = [row for row in rows if all(row.get(key, 0.0) == value for key, value in criteria.items())]
        return 100 * row["spearman"]

    def under(layers: str, keep: float, weighting: str, p: float = 2.0) -> float:
        solver = "svd" if p == 2 else "irls_rows"
        return of(weighted, layers=layers, keep=keep, weighting=weighting, solver=solver, p=p)

    def shared(allocation: str, recovered: bool = False, entries: str = "") -> float:
        return of(
            budget, weighting="gauss_newton", allocation=allocation, recovered=recovered, entries=entries, int8=False
        )

    table, kernels = ("embeddings", 0.16), ("encoder", 0.5)
    rows = [
        ("row weights: tokens counted", "embedding, keep 0.16", under(*table, "none"), under(*table, "counts")),
        ("metric of outputs, on top", "embedding, keep 0.16", under(*table, "counts"), under(*table, "gauss_newton")),
        ("row weights: Fisher", "encoder, keep 0.5", under(*kernels, "none"), under(*kernels, "fwsvd")),
        ("metric of inputs", "encoder, keep 0.5", under(*kernels, "none"), under(*kernels, "drone")),
        ("metric of outputs, on top", "encoder, keep 0.5", under(*kernels, "drone"), under(*kernels, "gauss_newton")),
        (
            "kernel by kernel (sequential), on top",
            "encoder, keep 0.5",
            of(beyond, layers="encoder", case="pair"),
            of(beyond, layers="encoder", case="sequential"),
        ),
        ("ranks by error, on top", "whole net, 0.5", shared("uniform"), shared("error")),
        ("measured ranks instead", "whole net, 0.5", shared("error"), shared("measured")),
    ]
    for entries, name in (("embedding", "the embedding"), ("all", "all")):
        where = "whole net, 0.5, ranks by error"
        both = shared("error"), shared("error", entries=entries)
        rows.append((f"a fifth of {name} in single entries, on top", where, *both))
        rows.append(("an epoch of recovery, on top of that", where, both[1], shared("error", True, entries)))
    for (layers, keep), name in ((table, "embedding, keep 0.16"), (kernels, "encoder, keep 0.5")):
        known = {"layers": layers, "keep": keep, "weighting": "gauss_newton", "solver": "svd"}
        both = of(weighted, **known), of(weighted, **known, sparse=0.2)
        rows.append(("a fifth of it in single entries, on top", name, *both))
    for p in (1.5, 1.0):
        for (layers, keep), name in ((table, "embedding, keep 0.16"), (kernels, "encoder, keep 0.5")):
            pair = under(layers, keep, "gauss_newton"), under(layers, keep, "gauss_newton", p)
            rows.append((f"p = {p:g} instead of 2, under the weights", name, *pair))
    lines = ["| part | of what | without | with | gain |", "|---" * 5 + "|"]
    lines += [f"| {part} | {where} | {a:.2f} | {b:.2f} | {b - a:+.2f} |" for part, where, a, b in rows]
    return "\n".join(lines)
