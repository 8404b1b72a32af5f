"""Tables of the commands' results, for a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from lpjax._provenance import method_label
from lpjax.compression import BreakEven, CompressedWeights, LayerRecord
from lpjax.glue import Task
from lpjax.select import rank_for
from lpjax.solvers import SOLVERS

TUNING = {"step": "update|d", "epoch": "epoch|.1f", "loss": "training loss|.4f"}
"""Columns of `curve_table` for `finetune`, before those of the metrics."""
RECOVERY = {
    "step": "update|g",
    "epoch": "epoch|.2f",
    "learning_rate": "learning rate|.1e",
    "loss": "training loss|.5f",
    "divergence": "divergence, held out|.5f",
}
"""Columns of `curve_table` for `recover`."""
_KEEPS = (0.75, 0.5, 0.25)


def make_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", bold: int | None = None
) -> Table:
    """A table with text in the first column and numbers in the others; row `bold` is bold."""
    table = Table(caption=escape(caption), caption_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(escape(heading), justify="right" if i else "left", overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(*map(escape, row), style="bold" if i == bold else None)
    return table


def layers_table(records: Sequence[LayerRecord]) -> Table:
    """The outcome for each layer."""
    timed = any(record.time_ratio is not None for record in records)
    sparse = any(record.nnz for record in records)
    rounded = any(record.rounded for record in records)
    certified = any(record.gap for record in records)  # an exact solver's 0 needs no column
    rows = []
    for record in records:
        row = {
            "layer": record.path + (f" ({record.note})" if record.note else ""),
            "shape": "×".join(map(str, record.shape)),
            "rank": "dense" if record.rank is None else str(record.rank),
            "entries": str(record.nnz),
            "kB": "" if record.stored_bytes is None else f"{record.stored_bytes / 1e3:.1f}",
            "bits": "" if record.stored_bytes is None else f"{8 * record.stored_bytes / record.dense_size:.2f}",
            "kept": f"{100 * record.stored_size / record.dense_size:.0f} %",
            "objective": f"{record.error_entries:.4f}",
            "gap": "" if record.gap is None else f"{record.gap:.2f}",
            "seconds": f"{record.seconds:.2f}" + ("" if record.converged else "*"),
            "time / dense": "" if record.time_ratio is None else f"{record.time_ratio:.2f}",
        }
        unknown = {"entries": sparse, "time / dense": timed, "kB": rounded, "bits": rounded, "kept": not rounded}
        unknown["gap"] = certified
        rows.append({heading: cell for heading, cell in row.items() if unknown.get(heading, True)})
    caption = "objective: ‖A − LR‖ₚ / ‖A‖ₚ over entries" + (", the single entries subtracted" if sparse else "")
    if rounded:
        caption += "; bits: those of the file for each weight"
    if certified:
        caption += "; gap: no pair of this rank is better by a larger share"
    if not all(record.converged for record in records):
        caption += "; * stopped at the iteration limit"
    return make_table(list(rows[0]), [list(row.values()) for row in rows], caption=caption)


def kinds_table(made: CompressedWeights) -> Table:
    """The outcome of `compress_weights` for each kind of matrix."""
    rows = []
    for kind in made.kinds:
        errors = "–".join(dict.fromkeys(f"{error:.3f}" for error in kind.errors))
        sizes = [f"{size / 1e6:.2f}" for size in (kind.bytes_before, kind.bytes_after)]
        rank = "dense" if kind.rank is None else str(kind.rank)
        rows.append((kind.name, str(kind.count), "×".join(map(str, kind.shape)), rank, errors, *sizes))
    selected = [sum(getattr(kind, name) for kind in made.kinds) for name in ("bytes_before", "bytes_after")]
    others = made.bytes_before - selected[0], made.bytes_after - selected[1]
    rows.append(("all others, unchanged", "", "", "", "", *(f"{size / 1e6:.2f}" for size in others)))
    objective = "rows" if made.method in SOLVERS and SOLVERS[made.method].objective == "rows" else "entries"
    caption = f"{method_label(made.method, made.p)}; error: ‖A − LR‖ₚ / ‖A‖ₚ over {objective}"
    caption += "" if all(record.converged for record in made.records) else "; some stopped at the iteration limit"
    return make_table(("matrix", "count", "shape", "rank", "error", "MB before", "MB after"), rows, caption=caption)


def break_even_tables(timings: BreakEven) -> list[RenderableType]:
    """Times of layer shapes, factored and dense."""
    ratios = [f"{keep:g}" for keep in _KEEPS]
    title = f"{timings.tokens} tokens: time / dense at keep {', '.join(ratios)}, and the largest rank that is no slower"
    rows = []
    for timing in timings.timings:
        ranks = [rank_for(timing.shape, keep) for keep in _KEEPS]
        rows.append(
            (
                "×".join(map(str, timing.shape)),
                "table" if timing.table else "kernel",
                f"{1e3 * timing.dense_seconds:.3f}",
                *("–" if rank < 1 else f"{timing.ratio(rank):.2f}" for rank in ranks),
                *((str(timing.rank), f"{timing.keep:.2f}") if timing.rank else ("none", "–")),
            )
        )
    caption = "each layer alone; the rest of a model takes the same time either way"
    return [title, make_table(["shape", "as", "ms", *ratios, "rank", "keep"], rows, caption=caption)]


def curve_table(curve: Sequence[Mapping[str, Any]], best: Mapping[str, Any], columns: Mapping[str, str]) -> Table:
    """A training curve, with the best entry in bold.

    Args:
        curve, best: entries, with numbers by name; a missing number leaves its cell empty.
        columns: name of a number -> its heading and format, such as "loss|.4f".
    """
    headings, formats = zip(*(text.split("|") for text in columns.values()), strict=True)
    rows = [
        [format(entry[name], form) if name in entry else "" for name, form in zip(columns, formats, strict=True)]
        for entry in curve
    ]
    return make_table(headings, rows, bold=list(curve).index(best))


def task_tables(result: Mapping[str, Any], task: Task) -> Iterator[RenderableType]:
    """Scores of one or two models on a task, for `lpjax evaluate`."""
    names = [result[key] for key in ("model", "baseline") if key in result]
    nets = [result[key] for key in ("result", "baseline_result") if key in result]
    rows = [[name, *(f"{net['metrics'][name]:.4f}" for net in nets)] for name in task.metrics]
    rows.append(["tokens a second", *(f"{net['tokens_per_second']:,.0f}" for net in nets)])
    yield f"{task.title}, {nets[0]['split']}, {nets[0]['rows']} rows"
    yield make_table(["score", *names], rows, caption="" if nets[0]["complete"] else "a subset: no GLUE score")
    warnings = {name: net["warnings"] for name, net in zip(names, nets, strict=True)}
    if len(nets) == 2 and nets[0]["warnings"] == nets[1]["warnings"]:
        warnings = {"both models": nets[0]["warnings"]}
    yield from (f"{name}: {line}" for name, lines in warnings.items() for line in lines)


def outputs_tables(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Scores of embeddings, and their closeness to the dense model's, for `lpjax evaluate`."""
    rows: list[list[str]] = []
    if "stsb" in result:
        nets = [result[key] for key in ("stsb", "baseline_stsb") if key in result]
        for key in ("spearman", "pearson"):
            rows.append([f"STS-B dev {key.capitalize()}", *(f"{net[key]:.4f}" for net in nets)])
    else:
        yield f"STS-B: not found ({result['stsb_missing']})"
    if near := result.get("fidelity"):
        rows.append(["mean cosine with the baseline", f"{near['mean_cosine']:.4f}", "1"])
        rows.append(["Spearman with its similarities", f"{near['spearman']:.4f}", "1"])
    if outputs := result.get("outputs"):
        rows.append([f"divergence of its {outputs['kind']}", f"{outputs['divergence']:.5f}", "0"])
        if outputs["agreement"] is not None:
            rows.append([f"agreement of its {outputs['kind']}", f"{outputs['agreement']:.4f}", "1"])
    speed = result["stsb" if "stsb" in result else "fidelity"]["tokens_per_second"]
    rows.append(["tokens a second", f"{speed:,.0f}"])
    yield make_table(["score", result["model"], *(["baseline"] if "baseline" in result else [])], rows)
    if "outputs_missing" in result:
        yield f"outputs: not compared, {result['outputs_missing']}"
    if outputs and outputs["truncated"]:
        cut = f"{outputs['truncated']} of {outputs['texts']} texts cut off at {outputs['max_length']} tokens"
        yield f"outputs: {cut}"
