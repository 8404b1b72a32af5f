"""`lpjax compress`."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lpjax._extras import require
from lpjax.cli._common import (
    AsJson,
    Force,
    Model,
    Out,
    check_new_file,
    find_model,
    misuse,
    progress,
    sizes,
    split_patterns,
)
from lpjax.cli._planning import make_request, origin, plan_before_text, statistics_and_plan
from lpjax.cli._report import print_missing
from lpjax.solvers import SOLVERS

if TYPE_CHECKING:
    from lpjax.checkpoint import Checkpoint
    from lpjax.compression.plan import Plan

_RANGES = "; ".join(f"{name} {solver.p_range}" for name, solver in SOLVERS.items() if solver.uses_p)


def compress(
    model: Model,
    out: Out,
    layers: Annotated[
        str | None,
        typer.Option(
            help="embeddings, attention, feed_forward, encoder, or a regular expression; several by commas. Default: "
            "embeddings; with --budget embeddings,encoder."
        ),
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="Share of these layers' dense parameters to keep, in (0, 1].")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of every pair, instead of --keep.")] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Share of the whole dense net to keep, in (0, 1), shared out among the layers."),
    ] = None,
    budget_of: Annotated[str, typer.Option(help="What --budget counts: parameters or multiply_adds.")] = "parameters",
    allocation: Annotated[
        str | None,
        typer.Option(
            help="How --budget is shared out: uniform, energy, minimax, error or measured, which runs the net a few "
            "hundred times; default: error with --calibrate (weighting gauss_newton), else uniform."
        ),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="File of --plan-out: the same rank, method, … of each layer again.")
    ] = None,
    plan_out: Annotated[Path | None, typer.Option(help="Write what was chosen for each layer to this file.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help=f"Solver: {', '.join(SOLVERS)}; default: lewis, with --calibrate svd."),
    ] = None,
    p: Annotated[
        float | None,
        typer.Option("--p", help=f"Exponent of the norm: {_RANGES}. Default: 1."),
    ] = None,
    sparse: Annotated[
        float | None,
        typer.Option(
            help="Share of each pair's parameters that goes to the entries that it misses worst, e.g. 0.2: the same "
            "size, nearer to the dense net, but kernels are no faster. Default: 0; of embeddings 0.2 with --calibrate "
            "(method svd, weighting gauss_newton; a budget of parameters, and no --break-even)."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Weight errors by what text says matters: UTF-8 text, one a line, or a .safetensors file of "
            "`lpjax calibrate`."
        ),
    ] = None,
    weighting: Annotated[
        str | None,
        typer.Option(
            help="By what of it: gauss_newton (default), fwsvd, drone, asvd (both of kernels alone), counts (of "
            "embeddings alone) or none."
        ),
    ] = None,
    num_iters: Annotated[int | None, typer.Option(help="Iteration limit of the method.")] = None,
    tol: Annotated[float | None, typer.Option(help="Tolerance of the method.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write OUT/report.html too: what it cost, measured against the dense net.")
    ] = False,
    break_even: Annotated[
        Path | None,
        typer.Option(
            "--break-even", help="File of `lpjax bench`: say which layers will be slower; with --budget have none be."
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Factor layers of a checkpoint, or make its pairs smaller, and save the result."""
    import lpjax
    from lpjax.checkpoint import check_target, load_checkpoint, save_checkpoint
    from lpjax.checkpoint.source import weight_bytes
    from lpjax.compression import load_plan, read_break_even, save_plan
    from lpjax.compression.history import training_files
    from lpjax.compression.record import record_files, record_of
    from lpjax.select import leaves_with_paths

    if report:
        require("report", "--report")
    with misuse():
        options: dict[str, Any] = {
            name: value for name, value in (("num_iters", num_iters), ("tol", tol)) if value is not None
        }
        request = make_request(
            select=None if layers is None else split_patterns(layers), keep=keep, rank=rank, budget=budget,
            plan=None if plan is None else load_plan(plan), budget_of=budget_of, allocation=allocation, solver=method,
            p=p, sparse_share=sparse, source=calibrate, weighting=weighting,
            timings=None if break_even is None else read_break_even(break_even), options=options,
        )  # fmt: skip
        check_target(out, None, force)
        if plan_out is not None:
            check_new_file("--plan-out", plan_out, force, "plan")
        folder = find_model(model)
    checkpoint = load_checkpoint(folder)
    with misuse():
        check_target(out, checkpoint.source, force)
        chosen = plan_before_text(request, checkpoint)
    earlier = record_of(checkpoint).steps
    history = training_files(checkpoint.source) if earlier else {}
    statistics, made = statistics_and_plan(request, chosen, checkpoint, model)
    with progress() as advance:
        params, records = lpjax.compress(
            checkpoint.params,
            made,
            statistics,
            break_even=request.timings,
            progress=lambda done, total, record: advance(done, total, record.path),
            **options,
        )
    fresh = [record for record in records if record.rank is not None and not record.note]
    total, left = (sum(leaf.size for _, leaf in leaves_with_paths(tree)) for tree in (checkpoint.params, params))
    whole = sum(math.prod(leaf.shape) for _, leaf in leaves_with_paths(checkpoint.params))
    if plan is not None and made.budget_of == "parameters" and left > (made.budget or 1) * whole:
        made = dataclasses.replace(made, budget=None, budget_of=None)  # somebody raised its ranks
    methods = dict.fromkeys((made.layers[record.path].method, made.layers[record.path].p) for record in fresh)
    solver, exponent = next(iter(methods)) if len(methods) == 1 else ("several", None)
    block = {"method": solver, "p": exponent, "steps": _steps(checkpoint.compression, made, [r.path for r in fresh])}
    smaller = dataclasses.replace(checkpoint, params=params, compression=block)
    before = weight_bytes(checkpoint.source)
    record = record_files(
        checkpoint,
        params,
        records,
        model=model,
        method=solver,
        p=exponent,
        keep=keep,
        rank=rank,
        budget=made.budget,
        budget_of=made.budget_of,
        allocation=made.allocation,
        sparse=max((made.layers[record.path].sparse_share for record in fresh if record.nnz), default=0.0),
        options=options,
        weighting=made.weighting,
        calibration={} if statistics is None else origin(statistics),
        patterns=None if request.select is None else tuple(request.select),
    )
    # What trained an earlier step's pairs goes with them.
    files = record | history
    size = save_checkpoint(smaller, out, overwrite=force, extra_files=files)
    if plan_out is not None:
        save_plan(made, plan_out, overwrite=force)
    page = _write_page(checkpoint, out, model) if report else None
    result = {
        "model": model,
        "out": str(out),
        "method": solver,
        "p": exponent,
        "parameters_before": total,
        "parameters_after": left,
        "bytes_before": before,
        "bytes_after": size,
        "layers": [msgspec.to_builtins(record) for record in records],
    }
    result |= {"plan": str(plan_out)} if plan_out is not None else {}
    if page is not None:
        result["report"] = str(page)
    if as_json:
        print(json.dumps(result))
        return
    console = Console()
    console.print(_records_table(records, " and ".join(f"{name}, p = {power:g}" for name, power in methods)))
    console.print(f"parameters {total / 1e6:.2f} M → {left / 1e6:.2f} M; "
                  f"{sizes(before, size)}; saved in {escape(str(out))}",
                  highlight=False, soft_wrap=True)  # fmt: skip
    timings = request.timings
    if timings is not None and (slower := [record for record in records if (record.time_ratio or 0) > 1]):
        more = sum(timings.added_seconds(record.path, record.shape, record.rank or 0) or 0 for record in slower)
        text = f"{len(slower)} of {len(records)} layers take longer than dense, by {escape(str(break_even))}: "
        text += f"{1e3 * more:.2f} ms in all for {timings.tokens} tokens"
        console.print(text, highlight=False, soft_wrap=True)
    for name, path in (("plan", plan_out), ("report", page)):
        if path is not None:
            console.print(f"{name}: {escape(str(path))}", highlight=False, soft_wrap=True)


def _write_page(checkpoint: Checkpoint, out: Path, model: str) -> Path:
    """Write the page of `out`, just made of `checkpoint`, into it; where that is no dense net, by the files alone.

    Raises:
        ValueError: it can't be written; the checkpoint is there.
    """
    from lpjax.checkpoint import lowrank_ranks
    from lpjax.report import PAGE, Baseline, write_report

    dense = None if lowrank_ranks(checkpoint.params) else Baseline(checkpoint, model)
    try:
        with progress() as advance:
            missing = write_report(out / PAGE, [out], baseline=dense, overwrite=True, progress=advance)
    except (ValueError, OSError) as error:
        raise ValueError(f"the checkpoint is saved in {out}, but its page could not be written: {error}") from error
    print_missing(missing)
    return out / PAGE


def _steps(earlier: dict[str, Any] | None, plan: Plan, paths: list[str]) -> list[dict[str, Any]]:
    """Which leaves were factored by what, the steps of earlier runs first; ranks are told beside it, by path."""
    past = earlier or {}
    if "steps" in past:
        steps = list(past["steps"])
    else:
        known = {key: past[key] for key in ("method", "p") if key in past}
        steps = [known | {"paths": sorted(past["ranks"])}] if past.get("ranks") else []
    by_method: dict[tuple[Any, float], list[str]] = {}
    for path in paths:
        by_method.setdefault((plan.layers[path].method, plan.layers[path].p), []).append(path)
    return [*steps, *({"method": method, "p": p, "paths": own} for (method, p), own in by_method.items())]


def _records_table(records: Any, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    timed = any(record.time_ratio is not None for record in records)
    sparse = ["entries"] if any(record.nnz for record in records) else []
    for heading in ("shape", "rank", *sparse, "kept", "objective", "seconds", *(["time / dense"] if timed else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        table.add_row(
            escape(record.path) + (f" [dim]({escape(record.note)})[/]" if record.note else ""),
            "×".join(map(str, record.shape)),
            "dense" if record.rank is None else str(record.rank),
            *[str(record.nnz) for _ in sparse],
            f"{100 * record.stored_size / record.dense_size:.0f} %",
            f"{record.error_entries:.4f}",
            f"{record.seconds:.2f}" + ("" if record.converged else "*"),
            *(["" if record.time_ratio is None else f"{record.time_ratio:.2f}"] if timed else []),
        )
    table.caption = (
        "objective: ‖A − LR‖ₚ / ‖A‖ₚ over entries"
        + (", single entries taken off" if sparse else "")
        + ("" if all(record.converged for record in records) else "; * stopped at the iteration limit")
    )
    return table
