"""`lpjax compress`."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lpjax.cli._calibrate import MOST_TEXTS, calibrate_on, read_texts
from lpjax.cli._common import AsJson, Force, Model, Out, find_model, misuse, progress, split_patterns
from lpjax.cli._report import print_missing

if TYPE_CHECKING:
    from lpjax.calibration import Calibration
    from lpjax.checkpoint import Checkpoint


def compress(
    model: Model,
    out: Out,
    layers: Annotated[
        str,
        typer.Option(help="embeddings, attention, feed_forward, encoder, or a regular expression; several by commas."),
    ] = "embeddings",
    keep: Annotated[float | None, typer.Option(help="Share of these layers' parameters to keep, in (0, 1].")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of every pair, instead of --keep.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="svd, lewis, lowner, irls_rows, irls_entries or admm_entries; default: lewis, with --calibrate svd."
        ),
    ] = None,
    p: Annotated[
        float | None,
        typer.Option("--p", help="Exponent of the norm, in [1, 2]; default 1. No say in svd (2)."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Weight errors by what text says matters: UTF-8 text, one a line, or a .safetensors file of "
            "`lpjax calibrate`."
        ),
    ] = None,
    weighting: Annotated[
        str | None, typer.Option(help="By what of it: gauss_newton (default), drone, asvd, fwsvd, counts or none.")
    ] = None,
    num_iters: Annotated[int | None, typer.Option(help="Iteration limit of the method.")] = None,
    tol: Annotated[float | None, typer.Option(help="Tolerance of the method.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write OUT/report.html too: what it cost, measured against the dense net.")
    ] = False,
    break_even: Annotated[
        Path | None,
        typer.Option("--break-even", help="File of `lpjax bench`: say which layers will be slower than dense."),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Factor layers of a checkpoint and save the smaller one."""
    import lpjax
    from lpjax.checkpoint import load_checkpoint, save_checkpoint
    from lpjax.checkpoint._save import check_target
    from lpjax.checkpoint._source import weight_bytes
    from lpjax.report import RECORD, Record, Step, read_break_even, record_of, record_text, run_record
    from lpjax.select import leaves_with_paths, select_paths
    from lpjax.solvers import SOLVERS
    from lpjax.weighting import WEIGHTINGS

    method = method or ("lewis" if calibrate is None else "svd")
    p = p if p is not None else 2.0 if method == "svd" else 1.0
    with misuse():
        _check_name("--method", method, SOLVERS)
        if weighting is not None and calibrate is None:
            raise ValueError("--weighting is given without --calibrate, whose text it would weight by")
        weighting = weighting or "gauss_newton"
        _check_name("--weighting", weighting, WEIGHTINGS)
        _check_request(keep, rank, p, num_iters, tol, method)
        check_target(out, None, force)
        timings = None if break_even is None else read_break_even(break_even)
        folder = find_model(model)
    checkpoint = load_checkpoint(folder)
    patterns = split_patterns(layers)
    with misuse():
        check_target(out, checkpoint.source, force)
        select_paths(checkpoint.params, patterns)
    earlier = record_of(checkpoint).steps
    options: dict[str, Any] = {
        key: value for key, value in (("num_iters", num_iters), ("tol", tol)) if value is not None
    }
    calibration = None if calibrate is None else _calibration(checkpoint, calibrate, model, patterns, weighting)
    with progress() as advance:
        params, records = lpjax.compress(
            checkpoint.params,
            select=patterns,
            keep=keep,
            rank=rank,
            solver=method,
            p=p,
            calibration=calibration,
            weighting=None if calibration is None else weighting,
            break_even=timings,
            progress=lambda done, total, record: advance(done, total, record.path),
            **options,
        )
    fresh = [record for record in records if record.rank is not None and not record.note]
    if not fresh:
        notes = "; ".join(dict.fromkeys(record.note for record in records))
        raise ValueError(f"no layer got smaller, so nothing was written: {notes}; ask for a lower --keep or --rank")
    block = {"method": method, "p": p, "steps": _steps(checkpoint.compression, method, p, [r.path for r in fresh])}
    smaller = dataclasses.replace(checkpoint, params=params, compression=block)
    before = weight_bytes(checkpoint.source)
    total, left = (sum(leaf.size for _, leaf in leaves_with_paths(tree)) for tree in (checkpoint.params, params))
    step = Step(
        model=model,
        method=method,
        p=p,
        keep=keep,
        rank=rank,
        options=options,
        weighting=None if calibration is None else weighting,
        calibration={} if calibration is None else _origin(calibration),
        patterns=tuple(patterns),
        parameters_before=total,
        parameters_after=left,
        bytes_before=before,
        layers=records,
        **run_record(None),
    )

    def record(size: int) -> str:
        return record_text(Record((*earlier, dataclasses.replace(step, bytes_after=size))))

    size = save_checkpoint(smaller, out, overwrite=force, extra_files={RECORD: record})
    page = _write_page(checkpoint, out, model) if report else None
    result = {
        "model": model,
        "out": str(out),
        "method": method,
        "p": p,
        "parameters_before": total,
        "parameters_after": left,
        "bytes_before": before,
        "bytes_after": size,
        "layers": [dataclasses.asdict(record) for record in records],
    }
    if page is not None:
        result["report"] = str(page)
    if as_json:
        print(json.dumps(result))
        return
    console = Console()
    console.print(_records_table(records, f"{method}, p = {p:g}"))
    console.print(f"parameters {total / 1e6:.2f} M → {left / 1e6:.2f} M; "
                  f"weights {before / 1e6:.1f} MB → {size / 1e6:.1f} MB; saved in {escape(str(out))}",
                  highlight=False, soft_wrap=True)  # fmt: skip
    if timings is not None and (slower := [record for record in records if (record.time_ratio or 0) > 1]):
        more = sum(timings.added_seconds(record.path, record.shape, record.rank or 0) or 0 for record in slower)
        text = f"{len(slower)} of {len(records)} layers take longer than dense, by {escape(str(break_even))}: "
        text += f"{1e3 * more:.2f} ms in all for {timings.tokens} tokens"
        console.print(text, highlight=False, soft_wrap=True)
    if page is not None:
        console.print(f"report: {escape(str(page))}", highlight=False, soft_wrap=True)


def _write_page(checkpoint: Checkpoint, out: Path, model: str) -> Path:
    """Write the page of `out`, just made of `checkpoint`, into it; where that is no dense net, by the files alone.

    Raises:
        ValueError: it can't be written; the checkpoint is there.
    """
    from lpjax.checkpoint._load import lowrank_ranks
    from lpjax.report import PAGE, Baseline, write_report

    dense = None if lowrank_ranks(checkpoint.params) else Baseline(checkpoint, model)
    try:
        with progress() as advance:
            missing = write_report(out / PAGE, [out], baseline=dense, overwrite=True, progress=advance)
    except (ValueError, OSError) as error:
        raise ValueError(f"the checkpoint is saved in {out}, but its page could not be written: {error}") from error
    print_missing(missing)
    return out / PAGE


def _steps(earlier: dict[str, Any] | None, method: str, p: float, paths: list[str]) -> list[dict[str, Any]]:
    """Which leaves were factored by what, the steps of earlier runs first; ranks are told beside it, by path."""
    past = earlier or {}
    if "steps" in past:
        steps = list(past["steps"])
    else:
        known = {key: past[key] for key in ("method", "p") if key in past}
        steps = [known | {"paths": sorted(past["ranks"])}] if past.get("ranks") else []
    return [*steps, {"method": method, "p": p, "paths": paths}]


def _check_name(option: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{option} is {name!r}; expected one of {', '.join(known)}{hint}")


def _calibration(checkpoint: Checkpoint, source: Path, model: str, patterns: list[str], weighting: str) -> Calibration:
    """What a calibration's file holds, or what the texts of another one say."""
    from lpjax.report import load_calibration
    from lpjax.weighting import WEIGHTINGS

    if source.suffix == ".safetensors":
        with misuse():
            return load_calibration(source)
    name, lines = read_texts(source)
    gradients = WEIGHTINGS[weighting].wants_gradients
    with progress() as advance:
        return calibrate_on(
            checkpoint, name, lines, None, None, MOST_TEXTS, advance, model=model, select=patterns, gradients=gradients
        )


def _origin(calibration: Calibration) -> dict[str, str]:
    """Where a calibration came from, for the record."""
    told = {key: calibration.provenance[key] for key in ("model", "source", "sha256") if key in calibration.provenance}
    return {key: str(value) for key, value in told.items()} | {
        key: str(getattr(calibration, key)) for key in ("texts", "tokens", "target", "seed")
    }


def _check_request(
    keep: float | None, rank: int | None, p: float, num_iters: int | None, tol: float | None, method: str
) -> None:
    if (keep is None) == (rank is None):
        raise ValueError("expected exactly one of --keep and --rank, e.g. --keep 0.72")
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"--keep is {keep:g}; expected a share of the parameters in (0, 1], e.g. 0.72")
    if rank is not None and rank < 1:
        raise ValueError(f"--rank is {rank}; expected 1 or more")
    inside = 0 < p < 4 if method == "lewis" else 1 <= p <= 2
    if not inside:
        expected = "above 0 and below 4" if method == "lewis" else "from 1 to 2"
        raise ValueError(f"--p is {p:g}; expected a number {expected} for {method}")
    if num_iters is not None and num_iters < 0:
        raise ValueError(f"--num-iters is {num_iters}; expected 0 or more")
    if tol is not None and not tol >= 0:
        raise ValueError(f"--tol is {tol:g}; expected 0 or more")


def _records_table(records: Any, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    timed = any(record.time_ratio is not None for record in records)
    for heading in ("shape", "rank", "kept", "objective", "seconds", *(["time / dense"] if timed else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        table.add_row(
            escape(record.path) + (f" [dim]({escape(record.note)})[/]" if record.note else ""),
            "×".join(map(str, record.shape)),
            "dense" if record.rank is None else str(record.rank),
            f"{100 * record.stored_size / record.dense_size:.0f} %",
            f"{record.objective_entries:.4f}",
            f"{record.seconds:.2f}" + ("" if record.converged else "*"),
            *(["" if record.time_ratio is None else f"{record.time_ratio:.2f}"] if timed else []),
        )
    table.caption = "objective: ‖A − LR‖ₚ / ‖A‖ₚ over entries" + (
        "" if all(record.converged for record in records) else "; * stopped at the iteration limit"
    )
    return table
