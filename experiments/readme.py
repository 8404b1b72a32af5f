"""The tables of the READMEs and docs, from the records that commands wrote: `python -m experiments.readme`.

`make demo` writes demo/results.json, of which experiments/results/demo.json is a copy; `make bench` writes
benchmarks/results/solvers/embedding.json; `python -m experiments.parity` and `python -m experiments.full_size` write to
experiments/results, as do the commands of the GLUE experiment, whose tables `experiments.glue_results` makes. Nothing
in the tables is typed by hand.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import data_aware_results, glue_results
from lpjax._provenance import method_label

ROOT = Path(__file__).parents[1]
SOLVERS = "benchmarks/results/solvers"
TASK_SIZES = "experiments/results/task_sizes"
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
        name = method_label(method, p)
        cells = [f"{scores[layers, keep, method, p]:.4f}" for layers, keep in _COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    limits = {row["options"]["num_iters"] for row in record["rows"] if "num_iters" in row["options"]}
    limited = [row for row in record["rows"] if not row["all_converged"]]
    note = (
        f"`admm_entries` was stopped after {min(limits)} iterations, before it converged." if limits and limited else ""
    )
    saved = record["saved"]
    sizes = ["| whole model | MB | score | forward / dense | seconds |", "|---" * 5 + "|"]
    sizes += [f"| dense | {record['dense_bytes'] / 1e6:.1f} | {dense} | 1.00 | |"]
    sizes += [
        f"| {row['method']}, {row['setting']} | {row['bytes'] / 1e6:.2f} | {row['score']:.4f} | {row['forward']:.2f} "
        f"| {row['seconds']:.0f} |"
        for row in record["sizes"]
    ]
    return "\n".join(
        [
            *sizes,
            "",
            *lines,
            "",
            *([note] if note else []),
            f"The saved checkpoint ({saved['method']}, `{saved['setting']}`) has {saved['bytes'] / 1e6:.2f} MB "
            f"instead of {record['dense_bytes'] / 1e6:.1f}, and scores {saved['score_reloaded']:.4f}",
            f"after reloading. The run took {record['seconds'] / 60:.1f} minutes on {record['machine']['cores']} "
            "cores. Record: `experiments/results/demo.json`.",
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


def matrices_table() -> str:
    """Times of the solvers on every matrix, as ratios to LAPACK's, a matrix a row."""
    records = _by_size(SOLVERS)
    cases = [row["case"] for row in records[0]["rows"]]
    lines = [f"| matrix | gesdd, s | {' | '.join(cases)} | peak, copies |", "|---" * (len(cases) + 3) + "|"]
    for record in records:
        n, d = record["shape"]
        cells = [f"{record['matrix']}, {n} × {d}, {record['rank']}", f"{record['lapack_seconds']['scipy']:.2g}"]
        cells += [f"{row['ratio']:.2f}" for row in record["rows"]]
        lines.append(f"| {' | '.join(cells)} | {max(row['peak_copies'] for row in record['rows']):.1f} |")
    return "\n".join(lines)


def _by_size(folder: str) -> list[dict[str, Any]]:
    """The records of a folder, one a matrix, the smallest first."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / folder).glob("*.json"))]
    return sorted(records, key=lambda record: record["shape"][0] * record["shape"][1])


def parity_table(record: dict[str, Any]) -> str:
    """Largest absolute errors, a net a row."""
    columns = list(next(iter(record["cells"].values())))
    lines = [f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {net} | {' | '.join(f'{cells[c]:.1e}' for c in columns)} |" for net, cells in record["cells"].items()]
    return "\n".join(lines)


def targets_table(record: dict[str, Any]) -> str:
    """Largest errors in every runtime, and size of the files over the checkpoint's."""
    runtimes = ["onnx", "torch", "stablehlo", "keras"]
    lines = [f"| model | weights | checkpoint, MB | {' | '.join(runtimes)} |", "|---" * (len(runtimes) + 3) + "|"]
    for row in record["rows"]:
        cells = [row["net"], row["kind"], f"{row['bytes'] / 1e6:.1f}"]
        for cell in (row.get(runtime) for runtime in runtimes):
            cells.append(f"{cell['error']:.1e}, {cell['bytes'] / row['bytes']:.2f}" if cell else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def full_size_table(record: dict[str, Any]) -> str:
    """Ranks, seconds and memory of full-size nets."""
    lines = [
        "| model | layers | keep | method | rank | solving, s | load to saved, s | weights, MB | peak / weights |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        ranks = ", ".join(map(str, row["ranks"]))
        cells = [row["net"], f"{row['layers']} {row['select']}", f"{row['keep']:g}", row["method"], ranks]
        cells += [f"{row['seconds_solve']:.1f}", f"{row['seconds_in_all']:.1f}"]
        cells += [f"{row['weights_mb']:.0f}", f"{row['peak_mb'] / row['weights_mb']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sizes_table(record: dict[str, Any]) -> str:
    """Seconds and memory of compressing full-size nets to a share of their bytes."""
    steps, parts = record["rows"][0]["seconds"], ("weights", "statistics", "file")
    titles = [f"{step}, s" for step in steps] + [f"{part}, MB" for part in parts]
    lines = [f"| size of | {' | '.join(titles)} | peak, MB | peak / weights |", "|---" * (len(titles) + 3) + "|"]
    for row in record["rows"]:
        seconds, mb = row["seconds"], row["mb"]
        cells = [f"{seconds[step]:.0f}" for step in steps] + [f"{mb[part]:.0f}" for part in (*parts, "peak")]
        lines.append(f"| {row['net']} | {' | '.join(cells)} | {mb['peak'] / mb['weights']:.2f} |")
    return "\n".join(lines)


def traffic_table(record: dict[str, Any]) -> str:
    """Megabytes of the collectives of each solver."""
    lines = ["| solver | rows × columns, rank | devices | once, MB | an iteration, MB |", "|---|---|---|---|---|"]
    for row in record["rows"]:
        n, d = row["shape"]
        sizes = " | ".join(f"{row[key] / 1e6:.2f}" for key in ("once", "per_iteration"))
        lines.append(f"| {row['solver']} | {n} × {d}, {row['rank']} | {row['devices']} | {sizes} |")
    return "\n".join(lines)


def peers_table() -> str:
    """Every peer beside the solver of lpjax that reaches its objective."""
    figures = "objective / SVD's | time / gesdd"
    lines = [f"| matrix | peer | scored on | {figures} | lpjax | iterations | {figures} |", "|---" * 9 + "|"]
    for matrix in _by_size("benchmarks/results/peers"):
        n, d = matrix["shape"]
        for row in matrix["rows"]:
            ours, svd, gesdd = row["ours"], row["svd_objective"], row["gesdd_seconds"]
            if "failure" in row:
                measured = [row["failure"], ""]
            else:
                measured = [f"{row['value'] / svd:.4f}", f"{row['seconds'] / gesdd:.2f}"]
            cells = [f"{matrix['matrix']}, {n} × {d}, {matrix['rank']}", row["peer"], row["objective"], *measured]
            cells += [ours["solver"], str(ours["num_iters"])]
            cells += [f"{ours['objective'] / svd:.4f}", f"{ours['seconds'] / gesdd:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def certificate_table(record: dict[str, Any]) -> str:
    """Lower bounds over objectives, and their time over gesdd's."""
    names = list(record["rows"][0]["bound_over_objective"])
    titles = [title for name in names for title in (name, "time / gesdd")]
    lines = [f"| matrix | rank | p | {' | '.join(titles)} |", "|---" * (len(titles) + 3) + "|"]
    for row in record["rows"]:
        cells = [f"{row['matrix']}, {' × '.join(map(str, row['shape']))}", str(row["rank"]), f"{row['p']:g}"]
        for name in names:
            cells.append(f"{row['bound_over_objective'][name]:.3f}")
            cells.append(f"{row['seconds'][name] / row['seconds']['gesdd']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def schedule_table(record: dict[str, Any]) -> str:
    """Objectives relative to the SVD's, as geometric means over the lengths, by constants of the schedule."""
    names = {"start": "at the start of the fit", "found": "fitted again", "in the code": "in the code"}
    lines = ["| constants | every 64th row | whole embedding |", "|---|---|---|"]
    lines += [
        f"| {names[row['constants']]} | {math.exp(row['loss']):.4f} | {math.exp(row['loss_whole']):.4f} |"
        for row in record["rows"]
    ]
    return "\n".join(lines)


def tiny_certificate_table(record: dict[str, Any]) -> str:
    """Lower bounds over optima that are known: least, median, most."""
    names = list(record["tiny"][0]["bound_over_optimum"])
    lines = [f"| rows | p | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row in record["tiny"]:
        cells = [
            ", ".join(f"{row['bound_over_optimum'][name][which]:.4f}" for which in ("least", "median", "most"))
            for name in names
        ]
        lines.append(f"| {row['kind']} | {_exponent(row['p'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def scaling_table(record: dict[str, Any]) -> str:
    """Seconds of each solver at each height, and the slopes."""
    heights = [rows for rows, _ in next(iter(record["cases"].values()))["points"]]
    titles = [f"{rows:,} rows, s" for rows in heights]
    lines = [
        f"| solver | {' | '.join(titles)} | slope | slope from {record['large']:,} rows |",
        "|---" * (len(heights) + 3) + "|",
    ]
    for name, case in record["cases"].items():
        cells = [name, *(f"{seconds:.3g}" for _, seconds in case["points"])]
        cells += [f"{case['slope']:.2f}", f"{case['slope_large']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def forward_table(record: dict[str, Any]) -> str:
    """Time of a forward pass beside the dense net's, and PyTorch's."""
    columns = [name for name in record["rows"][0]["seconds"] if name != "dense"]
    lines = [f"| model | texts × tokens | dense, ms | {' | '.join(columns)} |", "|---" * (len(columns) + 3) + "|"]
    for row in record["rows"]:
        seconds = row["seconds"]
        cells = [row["net"], f"{row['batch']} × {row['length']}", f"{1e3 * seconds['dense']:.1f}"]
        cells += [f"{seconds[name] / seconds['dense']:.2f}" for name in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def profile_table(record: dict[str, Any]) -> str:
    """The parts of each solver: share of its time, and of the machine's peak."""
    lines = ["| solver | seconds | of peak | part | times | share of the time | of peak |", "|---" * 7 + "|"]

    def percent(share: float | None) -> str:
        return "" if share is None else f"{100 * share:.0f} %"

    for row in record["rows"]:
        options = ", ".join(f"{key} = {row['options'][key]:g}" for key in ("p", "num_iters") if key in row["options"])
        head = [
            f"{row['solver']}{f' ({options})' if options else ''}",
            f"{row['seconds']:.3f}",
            percent(row["of_peak"]),
        ]
        for part in row["parts"] or [{"part": "", "times": 0, "share": None, "of_peak": None}]:
            times = f"{part['times']:g}" if part["times"] > 1 else ""
            cells = [*head, part["part"], times, percent(part["share"]), percent(part["of_peak"])]
            lines.append(f"| {' | '.join(cells)} |")
            head = ["", "", ""]
    return "\n".join(lines)


def data_aware_table(record: dict[str, Any]) -> str:
    """Spearman × 100 under every weighting, a weighting a row."""
    columns = list(dict.fromkeys((row["layers"], row["keep"]) for row in record["rows"]))
    names = {"embeddings": "embedding", "encoder": "encoder"}
    titles = [f"{names[layers]}, keep {keep:g}" for layers, keep in columns]
    lines = [f"| weighting | solver | {' | '.join(titles)} |", "|---" * (len(columns) + 2) + "|"]
    dense = [f"{100 * record['dense'][layers]:.2f}" for layers, _ in columns]
    lines.append(f"| dense | | {' | '.join(dense)} |")
    ways = ("weighting", "solver", "p", "sparse")
    scores = {(*(r[key] for key in ways), r["layers"], r["keep"]): r["spearman"] for r in record["rows"]}
    for weighting, solver, p, sparse in dict.fromkeys(key[: len(ways)] for key in scores):
        values = (scores.get((weighting, solver, p, sparse, *column)) for column in columns)
        cells = ["" if value is None else f"{100 * value:.2f}" for value in values]
        method = method_label(solver, p) + _with_entries(sparse)
        lines.append(f"| {weighting} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_entries(sparse: float) -> str:
    return f", {sparse:.0%} single entries" if sparse else ""


def headline_table(record: dict[str, Any]) -> str:
    """The README's one table: size and score, of rounding as other tools do it and of lpjax."""
    rows = [
        ("rounding to 8 bits, a scale a row", "rounding", "8 bits, a row", "packed"),
        ("rounding to 4 bits, groups of 32", "rounding", "4 bits, groups of 32", "packed"),
        ("rounding to 3 bits, groups of 32", "rounding", "3 bits, groups of 32", "packed"),
        ("lpjax, half of the parameters, in 8 bits", "weighted SVD", "0.5 of the parameters, 8 bits", "bytes"),
        *((f"lpjax, `--size {size}MB`", "lpjax", f"{size}.0 MB", "bytes") for size in (7, 5, 4)),
    ]
    lines = ["| model | MB | Spearman × 100 | divergence |", "|---|---|---|---|"]
    lines.append(f"| dense | {record['dense_bytes'] / 1e6:.1f} | {100 * record['dense']:.2f} | 0 |")
    for name, method, label, size in rows:
        criteria = {"method": method, "label": label, "text": method not in ("rounding",)}
        (row,) = (row for row in record["rows"] if criteria.items() <= row.items())
        cells = [name, f"{row[size] / 1e6:.1f}", f"{100 * row['spearman']:.2f}", f"{row['divergence']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def frontier_table(record: dict[str, Any]) -> str:
    """Score against size, without training."""
    lines = ["| method | setting | text | MB | packed, MB | Spearman × 100 | divergence |", "|---" * 7 + "|"]
    lines.append(f"| dense | | | {record['dense_bytes'] / 1e6:.1f} | | {100 * record['dense']:.2f} | 0 |")
    for row in record["rows"]:
        cells = [row["method"], row["label"], "yes" if row["text"] else ""]
        cells += [f"{row['bytes'] / 1e6:.2f}", f"{row['packed'] / 1e6:.2f}"]
        cells += [f"{100 * row['spearman']:.2f}", f"{row['divergence']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def languages_table(record: dict[str, Any]) -> str:
    """Divergence by language, for each size and text."""
    languages = list(record["rows"][0]["divergence"])
    lines = ["| MB | text | smoothing | " + " | ".join(languages) + " | worst / best |"]
    lines.append("|---" * (len(languages) + 4) + "|")
    texts = {"none": "none", "en": "English", "all": "all languages"}
    for row in record["rows"]:
        cells = [f"{row['size']:g}", texts[row["text"]], "" if row["text"] == "none" else f"{row['smoothing']:g}"]
        lines.append(f"| {' | '.join([*cells, *_by_language(row['divergence'])])} |")
    return "\n".join(lines)


def _by_language(values: dict[str, float]) -> list[str]:
    return [*(f"{value:.4f}" for value in values.values()), f"{max(values.values()) / min(values.values()):.1f}"]


def programs_table(record: dict[str, Any]) -> str:
    """Score and time of programs: milliseconds of a batch, median and 95th percentile."""
    shapes = [key.removeprefix("ms ") for key in record["rows"][0] if key.startswith("ms ")]
    lines = ["| net | runtime | MB | Spearman × 100 | " + " | ".join(f"{shape}, ms" for shape in shapes) + " |"]
    lines.append("|---" * (len(shapes) + 4) + "|")
    for row in record["rows"]:
        score = "" if row["spearman"] is None else f"{100 * row['spearman']:.2f}"
        cells = [row["net"], row["runtime"], f"{row['bytes'] / 1e6:.2f}", score]
        cells += [f"{row[f'ms {shape}']:.3g}, {row[f'p95 {shape}']:.3g}" for shape in shapes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def program_parts_table(record: dict[str, Any]) -> str:
    """Where the time of onnxruntime's programs goes: milliseconds of a batch."""
    lines = [
        "| net | runtime | products with weights, roundings | their time, ms | attention, ms | others, ms |",
        "|---" * 6 + "|",
    ]
    for row in record["parts"]:
        cells = [row["net"], row["runtime"], str(row["products"]), *(f"{ms:.0f}" for ms in row["ms"].values())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def budget_table(record: dict[str, Any]) -> str:
    """The whole net within one budget: by each allocation, and after recovery."""
    lines = ["| weighting | ranks | recovered | parameters | Spearman × 100 | divergence |", "|---" * 6 + "|"]
    lines.append(f"| dense | | | 100.0 % | {100 * record['dense']:.2f} | 0 |")
    for row in sorted(record["rows"], key=lambda row: row["recovered"]):
        cells = [
            row["weighting"],
            row["allocation"]
            + {"": "", "embedding": ", entries", "all": ", entries everywhere"}[row["entries"]]
            + (", 8 bits" if row.get("int8") else ""),
            "one epoch" if row["recovered"] else "",
        ]
        cells += [f"{100 * row['share']:.1f} %", f"{100 * row['spearman']:.2f}", f"{row['divergence']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def beyond_table(record: dict[str, Any]) -> str:
    """What else was tried than a pair a matrix: Spearman × 100 at equal parameters."""
    names = {"embeddings": "embedding", "encoder": "encoder"}
    lines = ["| layers | keep | what | numbers stored | Spearman × 100 |", "|---" * 5 + "|"]
    lines += [
        f"| {names[row['layers']]} | {row['keep']:g} | {row['case']} | {100 * row['share']:.1f} % "
        f"| {100 * row['spearman']:.2f} |"
        for row in record["rows"]
    ]
    return "\n".join(lines)


def large_p_table(record: dict[str, Any]) -> str:
    """Scores and distances on one net, by p."""
    lines = [
        "| layers | weighting | p | Spearman × 100 | with rare tokens | distance | largest |",
        "|---" * 7 + "|",
    ]
    for row in record["rows"]:
        if "divergence" in row:
            continue
        cells = [f"{row['layers']}, keep {row['keep']:g}", row["weighting"], _exponent(row["p"])]
        cells += [f"{100 * row[key]:.2f}" for key in ("spearman", "spearman_rare")]
        cells += [f"{row[key]:.3f}" for key in ("distance", "largest_distance")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def large_p_languages_table(record: dict[str, Any]) -> str:
    """Mean distances of sentences of each language, by p."""
    rows = [row for row in record["rows"] if "divergence" in row]
    languages = list(rows[0]["divergence"])
    lines = [f"| weighting | p | {' | '.join(languages)} | worst / best |", "|---" * (len(languages) + 3) + "|"]
    for row in rows:
        cells = [row["weighting"], _exponent(row["p"]), *_by_language(row["divergence"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _exponent(p: float | str) -> str:
    return "∞" if p == "inf" else f"{p:g}"


def stability_table(record: dict[str, Any]) -> str:
    """What another number of threads changes, in objectives and subspaces."""
    titles = ("solver", "keep", "kernels", "largest change", "changed by more than 0.1 %", "sine, median", "largest")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in record["rows"]:
        cells = [f"{row['solver']}, p = {row['p']:g}", f"{row['keep']:g}", str(row["kernels"])]
        cells += [f"{row['largest_change']:.1e}", str(row["changed"])]
        cells += [f"{row[key]:.1e}" for key in ("median_sine", "largest_sine")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rounding_ways_table(record: dict[str, Any]) -> str:
    """The error of each way to round, relative to lpjax's at equal bytes; the geometric mean over kernels."""
    rates = sorted({row["rate"] for row in record["rows"]})
    ratios: dict[tuple[str, str], dict[float, list[float]]] = {}
    for row in record["rows"]:
        kind = "kernels" if row["matrix"].endswith("kernel") else "embedding"
        of_way = ratios.setdefault((kind, row["way"]), {})
        if row["ours"] is not None:
            of_way.setdefault(row["rate"], []).append(row["error"] / row["ours"])
    lines = ["| matrices | way | " + " | ".join(f"{rate:g} bits" for rate in rates) + " |"]
    lines.append("|---" * (2 + len(rates)) + "|")
    for names, by_rate in ratios.items():
        cells = [f"{statistics.geometric_mean(by_rate[rate]):.2f}" if rate in by_rate else "" for rate in rates]
        lines.append(f"| {' | '.join((*names, *cells))} |")
    return "\n".join(lines)


def coders_table(record: dict[str, Any]) -> str:
    """Size of lpjax's codes by general compressors and by its own coder, and the time of decoding."""
    names = list(record["coders"][0]["bytes"])
    lines = ["| matrix | " + " | ".join(f"{name}, kB" for name in names)]
    lines[0] += " | " + " | ".join(f"{name}, ms" for name in names[1:]) + " |"
    lines.append("|---" * (2 * len(names)) + "|")
    for row in record["coders"]:
        cells = [row["matrix"], *(f"{row['bytes'][name] / 1e3:.0f}" for name in names)]
        cells += [f"{1e3 * row['seconds'][name]:.0f}" for name in names[1:]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kernels_table(record: dict[str, Any]) -> str:
    """Times of whole encoders beside LAPACK's."""
    lines = ["| solver | seconds | / 72 gesdd | first call, s more | programs compiled |", "|---" * 5 + "|"]
    for row in record["rows"]:
        cells = [f"{row['solver']}, p = {row['p']:g}", f"{row['seconds']:.1f}"]
        cells += [f"{row['seconds'] / record['gesdd_seconds']:.2f}", f"{row['first_seconds'] - row['seconds']:.1f}"]
        lines.append(f"| {' | '.join([*cells, str(row['programs'])])} |")
    return "\n".join(lines)


def accelerator_solvers_table(record: dict[str, Any]) -> str:
    """Seconds of the solvers on an accelerator beside those of whole SVDs."""
    lines = [
        "| matrix | solver | ms | gesdd on its host, ms | whole SVD there, ms | objective / CPU's | compile, s |",
        "|---" * 7 + "|",
    ]
    for row in record["solvers"]:
        n, d = row["shape"]
        cells = [f"{row['matrix']}, {n} × {d}, rank {row['rank']}", row["case"]]
        cells += [f"{1e3 * row[key]:.1f}" for key in ("seconds", "gesdd_seconds", "jax_svd_seconds")]
        cells += [f"{row['objective_over_cpu']:.5f}", f"{row['compile_seconds']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def accelerator_kernels_table(record: dict[str, Any]) -> str:
    """Seconds of 72 kernels through `compress` on an accelerator."""
    lines = ["| solver | seconds | 72 gesdd on its host, s | first call, s |", "|---" * 4 + "|"]
    for row in record["kernels"]:
        cells = [f"{row[key]:.2f}" for key in ("seconds", "gesdd_seconds", "first_seconds")]
        lines.append(f"| {row['solver']}, p = {row['p']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def accelerator_forward_table(record: dict[str, Any]) -> str:
    """Times of forward passes on an accelerator, beside the dense net's, and MB of weights on it."""
    names = list(dict.fromkeys(name for row in record["forward"] for name in row["seconds"] if name != "dense"))
    heads = ["model", "numbers", "texts × tokens", "dense, ms", *names, f"MB: dense, {', '.join(names)}"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in record["forward"]:
        seconds = row["seconds"]
        cells = [row["net"], row["dtype"], f"{row['batch']} × {row['length']}", f"{1e3 * seconds['dense']:.2f}"]
        cells += [f"{seconds[name] / seconds['dense']:.2f}" if name in seconds else "" for name in names]
        cells.append(", ".join(f"{row['bytes'][name] / 1e6:.1f}" for name in ("dense", *names) if name in seconds))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def encode_memory_table(record: dict[str, Any]) -> str:
    """MB of nets in a file, in memory, and at the peaks of loading and encoding."""
    lines = ["| model | file, MB | weights in memory, MB | peak of loading, MB | of encoding, MB |", "|---" * 5 + "|"]
    for row in record["rows"]:
        cells = [f"{row[key] / 1e6:.1f}" for key in ("file", "weights", "loading", "encoding")]
        lines.append(f"| {row['net']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def task_sizes_table() -> str:
    """Ways to make fine-tuned nets smaller: their share of the bytes, and scores, a task a column."""
    tables = {path.stem.split("-")[-1]: path for path in sorted((ROOT / TASK_SIZES).glob("*.jsonl"))}
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for task, path in tables.items():
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            rows.setdefault(", ".join(filter(None, (record["method"], record["setting"]))), {})[task] = record
    lines = [f"| way | bytes | {' | '.join(tables)} | mean | mean divergence |", "|---" * (len(tables) + 4) + "|"]
    for name, by_task in rows.items():
        scores = [100 * next(iter(by_task[task]["metrics"].values())) for task in tables if task in by_task]
        if len(scores) < len(tables):
            continue
        share = sum(record["bytes"] / rows["dense"][task]["bytes"] for task, record in by_task.items()) / len(tables)
        divergence = sum(record["divergence"] for record in by_task.values()) / len(tables)
        cells = [f"1/{1 / share:.1f}", *(f"{score:.1f}" for score in scores), f"{sum(scores) / len(scores):.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {divergence:.4f} |")
    return "\n".join(lines)


def recovered_sizes_table(record: dict[str, Any]) -> str:
    """Small files before and after one epoch of recovery."""
    lines = ["| size | | file, MB | Spearman × 100 | divergence |", "|---" * 5 + "|"]
    for row in record["rows"]:
        for when in ("before", "after"):
            cells = [f"{row['size']:g} MB", f"{when} recovery", f"{row[when]['bytes'] / 1e6:.2f}"]
            cells += [f"{100 * row[when]['spearman']:.2f}", f"{row[when]['divergence']:.4f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kills_table(record: dict[str, Any]) -> str:
    """Command × signal × points × faults, in Markdown."""
    lines = [
        "| command | signal | points | OUT lost | OUT mixed | left at once | left after one more run | other result |",
        "|---|---|---|---|---|---|---|---|",
    ]
    keys = ("points", "lost", "mixed", "left_at_once", "left_after_another_run", "other_result")
    for row in record["rows"]:
        lines.append(f"| {row['command']} | {row['signal']} | {' | '.join(str(row[key]) for key in keys)} |")
    total = {key: sum(row[key] for row in record["rows"]) for key in keys}
    lines.append(f"| all | | {' | '.join(str(total[key]) for key in keys)} |")
    return "\n".join(lines)


def _from(path: str, table: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    return lambda: table(json.loads((ROOT / path).read_text(encoding="utf-8")))


TABLES: dict[str, Callable[[], str]] = {
    "headline": _from("experiments/results/frontier.json", headline_table),
    "frontier": _from("experiments/results/frontier.json", frontier_table),
    "frontier e5": _from("experiments/results/frontier_e5.json", frontier_table),
    "languages": _from("experiments/results/languages.json", languages_table),
    "programs": _from("experiments/results/programs.json", programs_table),
    "program parts": _from("experiments/results/programs.json", program_parts_table),
    "demo": _from("experiments/results/demo.json", demo_table),
    "solvers": _from(f"{SOLVERS}/embedding.json", solvers_table),
    "matrices": matrices_table,
    "traffic": _from("benchmarks/results/traffic.json", traffic_table),
    "parity": _from("experiments/results/parity.json", parity_table),
    "targets": _from("experiments/results/targets.json", targets_table),
    "full size": _from("experiments/results/full_size.json", full_size_table),
    "full size, sizes": _from("experiments/results/full_size_sizes.json", sizes_table),
    "finetune": glue_results.finetune_table,
    "small nets": glue_results.small_table,
    "embedding at 28 %": lambda: glue_results.headline_table("minilm"),
    "embedding at 50 %": lambda: glue_results.headline_table("minilm", "embeddings", 50),
    "embedding": lambda: glue_results.change_table("minilm", "embeddings"),
    "encoder": lambda: glue_results.change_table("minilm", "encoder"),
    "both": lambda: glue_results.change_table("minilm", "both"),
    "against svd": lambda: glue_results.against_svd_table("minilm"),
    "outliers": glue_results.outliers_table,
    "peers": peers_table,
    "scaling": _from("benchmarks/results/scaling.json", scaling_table),
    "schedule": _from("benchmarks/results/admm_schedule.json", schedule_table),
    "certificate": _from("benchmarks/results/certificate.json", certificate_table),
    "tiny certificate": _from("benchmarks/results/certificate.json", tiny_certificate_table),
    "forward": _from("benchmarks/results/forward.json", forward_table),
    "profile": _from("benchmarks/results/profile.json", profile_table),
    "stability": _from("benchmarks/results/stability.json", stability_table),
    "encoder kernels": _from("benchmarks/results/encoder.json", kernels_table),
    "data aware": _from("experiments/results/data_aware.json", data_aware_table),
    "budget": _from("experiments/results/budget.json", budget_table),
    "large p": _from("experiments/results/large_p.json", large_p_table),
    "large p languages": _from("experiments/results/large_p.json", large_p_languages_table),
    "beyond": _from("experiments/results/beyond.json", beyond_table),
    "rounding ways": _from("experiments/results/rounding_ways.json", rounding_ways_table),
    "coders": _from("experiments/results/rounding_ways.json", coders_table),
    "data aware GLUE": data_aware_results.compressed_table,
    "ablation": data_aware_results.ablation_table,
    "recovery": data_aware_results.recovery_table,
    "throughput": glue_results.throughput_table,
    "task sizes": task_sizes_table,
    "recovered sizes": _from("experiments/results/recovered_sizes.json", recovered_sizes_table),
    "encode memory": _from("benchmarks/results/encode_memory.json", encode_memory_table),
    "accelerator solvers": _from("benchmarks/results/accelerator.json", accelerator_solvers_table),
    "accelerator kernels": _from("benchmarks/results/accelerator.json", accelerator_kernels_table),
    "accelerator forward": _from("benchmarks/results/accelerator.json", accelerator_forward_table),
    "kills": _from("experiments/results/kills.json", kills_table),
}
_DOCUMENTS = (
    "README.md",
    "docs/index.md",
    "docs/results.md",
    "docs/algorithms/admm_entries.md",
    "docs/algorithms/certificate.md",
    "docs/reference/devices.md",
    "experiments/README.md",
    "benchmarks/README.md",
)
DOCUMENTS = tuple(ROOT / name for name in _DOCUMENTS)


def render(text: str) -> str:
    """A document with its tables put between their marks."""
    for mark, table in TABLES.items():
        if f"<!-- {mark} -->" not in text:
            continue
        before, rest = text.split(f"<!-- {mark} -->\n")
        _, after = rest.split(f"<!-- /{mark} -->")
        text = f"{before}<!-- {mark} -->\n{table()}\n<!-- /{mark} -->{after}"
    return text


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(render(document.read_text(encoding="utf-8")), encoding="utf-8")
