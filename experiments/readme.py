"""The README's tables, from the records that the commands wrote: `python -m experiments.readme`.

`make demo` writes demo/results.json, of which experiments/results/demo.json is a copy; `make bench` writes
benchmarks/results/solvers.json. Nothing in the tables is typed by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_COLUMNS = [("embeddings", 0.72), ("embeddings", 0.4), ("encoder", 0.75)]


def demo_table(record: dict[str, Any]) -> str:
    """Scores of every method, and what was saved."""
    scores = {(row["layers"], row["keep"], row["method"], row["p"]): row["score"] for row in record["rows"]}
    methods = list(dict.fromkeys((row["method"], row["p"]) for row in record["rows"]))
    dense = f"{record['dense']:.4f}"
    lines = [
        "| method | embedding −28 % | embedding −60 % | encoder kernels −25 % |",
        "|---|---|---|---|",
        f"| dense | {dense} | {dense} | {dense} |",
    ]
    for method, p in methods:
        name = "svd" if method == "svd" else f"{method}, p = {p:g}"
        cells = [f"{scores[layers, keep, method, p]:.4f}" for layers, keep in _COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    limits = {row["options"]["num_iters"] for row in record["rows"] if "num_iters" in row["options"]}
    limited = [row for row in record["rows"] if not row["all_converged"]]
    note = f"admm_entries ran for {min(limits)} iterations, not to its end." if limits and limited else ""
    saved = record["saved"]
    name = saved["method"] if saved["method"] == "svd" else f"{saved['method']}, p = {saved['p']:g}"
    return "\n".join(
        [
            *lines,
            "",
            *([note] if note else []),
            f"The checkpoint that it saves (embedding −60 %, {name}) has {saved['bytes'] / 1e6:.1f} MB instead of "
            f"{saved['dense_bytes'] / 1e6:.1f} and, reloaded,",
            f"scores {saved['score_reloaded']:.4f}. The whole took {record['seconds'] / 60:.1f} minutes on "
            f"{record['machine']['cores']} cores. Record: `experiments/results/demo.json`.",
        ]
    )


def solvers_table(record: dict[str, Any]) -> str:
    """Times of the solvers, as ratios to LAPACK's."""
    lines = ["| solver | time / gesdd | objective / SVD's | iterations | peak, copies of A |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['case']} | {row['ratio']:.2f} | {row['objective_over_svd']:.4f} | {row['num_iters']} "
        f"| {row['peak_copies']:.1f} |"
        for row in record["rows"]
    ]
    return "\n".join(lines)


def render(text: str) -> str:
    """The README with both tables put between their marks."""
    for mark, table, path in (
        ("demo", demo_table, "experiments/results/demo.json"),
        ("solvers", solvers_table, "benchmarks/results/solvers.json"),
    ):
        before, rest = text.split(f"<!-- {mark} -->\n")
        _, after = rest.split(f"<!-- /{mark} -->")
        record = json.loads((ROOT / path).read_text(encoding="utf-8"))
        text = f"{before}<!-- {mark} -->\n{table(record)}\n<!-- /{mark} -->{after}"
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text(encoding="utf-8")), encoding="utf-8")
