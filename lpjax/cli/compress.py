"""`lpjax compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lpjax.cli import _options as opt
from lpjax.cli._errors import misuse
from lpjax.cli._nets import load_to_save, split_patterns
from lpjax.cli._output import note, progress, show, sizes
from lpjax.cli._texts import is_statistics, statistics_and_measure
from lpjax.cli._weights_only import compress_weights_only
from lpjax.solvers import SOLVERS

EXAMPLE = "lpjax compress all-MiniLM-L6-v2 smaller --calibrate sentences.txt"
WITHOUT_TEXT = "No text says which errors matter; with --calibrate TEXT a file of this size scores better."
_SOLVERS = ", ".join([*SOLVERS][:4])
_much: dict[str, Any] = {"rich_help_panel": "How much"}
_how: dict[str, Any] = {"rich_help_panel": "How"}
_output: dict[str, Any] = {"rich_help_panel": "Output"}


def compress(
    context: typer.Context,
    model: opt.Model,
    out: opt.Out,
    calibrate: Annotated[Path | None, opt.option("FILE", "Text, or statistics, to weight errors by.")] = None,
    size: Annotated[str | None, opt.option("SIZE", "Size of the file: 9MB, …; default with text: 10%.")] = None,
    layers: Annotated[str | None, opt.option("NAMES", "embeddings, encoder, attention, … or a regex.")] = None,
    budget: Annotated[float | None, opt.option("SHARE", "Share of the whole model to keep.", **_much)] = None,
    time: Annotated[float | None, opt.option("SHARE", "Share of the matrices' time to keep.", **_much)] = None,
    keep: Annotated[float | None, opt.option("SHARE", "Share of each layer to keep.", **_much)] = None,
    rank: Annotated[int | None, opt.at_least(1, "Rank of each layer.", **_much)] = None,
    plan: Annotated[Path | None, opt.option("FILE", "Run the plan in this file.", **_much)] = None,
    budget_of: Annotated[  # hidden: the help fits a screen, and --time is short for what most people need
        str, opt.name_of("lpjax.compression.plan:Costs", "parameters, multiply_adds or time.", hidden=True)
    ] = "parameters",
    allocation: Annotated[
        str | None, opt.name_of("lpjax.allocation:Allocation", "uniform, energy, minimax, error or measured.", **_much)
    ] = None,
    method: Annotated[str | None, opt.name_of("lpjax.solvers:SOLVERS", f"{_SOLVERS}, …", **_how)] = None,
    p: Annotated[float | None, opt.option("X", "Exponent of the norm, such as 1 or inf.", "--p", **_how)] = None,
    sparse: Annotated[float | None, opt.option("SHARE", "Share of the kept size for single entries.", **_how)] = None,
    weighting: Annotated[
        str | None,
        opt.name_of("lpjax.weighting:WEIGHTINGS", "gauss_newton, fwsvd, drone, asvd, counts, …", **_how),
    ] = None,
    num_iters: Annotated[int | None, opt.at_least(0, "Iteration limit of the method.", **_how)] = None,
    tol: Annotated[float | None, opt.option("X", "Tolerance of the method.", **_how)] = None,
    break_even: Annotated[Path | None, opt.option("FILE", "Timings of `lpjax bench`.", **_how)] = None,
    plan_out: Annotated[Path | None, opt.option("FILE", "Write the plan to this file.", **_output)] = None,
    report: Annotated[bool, opt.flag("--report", "Write OUT/report.html, too.", **_output)] = False,
    weights_only: Annotated[
        bool, opt.flag("--weights-only", "Only factor the matrices, of any model.", **_how)
    ] = False,
    force: Annotated[bool, opt.flag("--force", "Replace OUT if it is a checkpoint.", **_output)] = False,
    as_json: Annotated[bool, opt.flag("--json", "Print one JSON document instead.", **_output)] = False,
) -> None:
    """Factor or round the layers of a model, and save the result."""
    import lpjax
    from lpjax._extras import require
    from lpjax.allocation import Request
    from lpjax.checkpoint.source import weight_bytes
    from lpjax.checkpoint.targets import check_new_file
    from lpjax.compression import outcome_of, read_break_even, record_of
    from lpjax.compression.history import training_files
    from lpjax.report import PAGE, write_own_page
    from lpjax.report.tables import layers_table

    solver_options: dict[str, Any] = {"num_iters": num_iters, "tol": tol}
    options = {name: value for name, value in solver_options.items() if value is not None}
    if weights_only:
        compress_weights_only(context, options)
        return
    if report:
        require("report", "--report")
    with misuse():
        request = Request(
            select=None if layers is None else split_patterns(layers), keep=keep, rank=rank, budget=budget, time=time,
            size=size, plan=None if plan is None else lpjax.load_plan(plan), budget_of=budget_of, allocation=allocation,
            solver=method, p=p, sparse_share=sparse, weighting=weighting, calibrated=calibrate is not None,
            texts=calibrate is not None and not is_statistics(calibrate),
            break_even=None if break_even is None else read_break_even(break_even), options=options,
        )  # fmt: skip
        if plan_out is not None:
            check_new_file(plan_out, "plan", overwrite=force)
    checkpoint = load_to_save(model, out, force)
    with misuse(), progress() as advance:
        request = request.timed(checkpoint.params, advance)
        made = request.plan_before_statistics(checkpoint.params, checkpoint.extra_bytes)
    # If the model was compressed before, keep the record of its training since then.
    history = training_files(checkpoint.source) if record_of(checkpoint).steps else {}
    statistics, measure = statistics_and_measure(calibrate, request, checkpoint, model)
    with progress() as advance:
        made = made or request.share_out(checkpoint.params, statistics, measure, advance, checkpoint.extra_bytes)
    with progress() as advance:
        compressed = lpjax.compress(
            checkpoint.params, made, statistics, break_even=request.break_even,
            progress=lambda done, total, record: advance(done, total, record.path), **options,
        )  # fmt: skip
    outcome = outcome_of(
        checkpoint, compressed, made, statistics,
        model=model, keep=keep, rank=rank, patterns=request.select, options=options,
    )  # fmt: skip
    before = weight_bytes(checkpoint.source)
    after = lpjax.save_checkpoint(outcome.checkpoint, out, overwrite=force, extra_files=outcome.files | history)
    if plan_out is not None:
        lpjax.save_plan(outcome.plan, plan_out, overwrite=force)
    files = {} if plan_out is None else {"plan": str(plan_out)}
    if report:
        with progress() as advance:
            missing = write_own_page(out, checkpoint, model, advance)
        note(missing)
        files["report"] = str(out / PAGE)
    total, left = outcome.sizes
    saved = f"parameters {total / 1e6:.2f} M → {left / 1e6:.2f} M; {sizes(before, after)}; saved in {out}"
    result = outcome.document(model, out) | {"bytes_before": before, "bytes_after": after} | files
    notes = []
    if request.break_even is not None:
        timings = "the timings just made" if break_even is None else str(break_even)
        result["time_share"] = request.break_even.share(compressed.records)
        notes += request.break_even.notes(compressed.records, timings)
        if request.budget_of == "time":
            notes.append(f"these layers take {result['time_share']:.2f} of the dense layers' time, by {timings}")
    notes += [WITHOUT_TEXT] if size is not None and statistics is None else []
    limit = request.limit(checkpoint.params, checkpoint.extra_bytes)
    if limit is not None and after > limit:
        notes.append(f"the file has {after} bytes, more than the {limit:.0f} of --size; ask for less")
    elif limit is not None and after < 0.9 * limit:
        notes.append(f"the file is smaller than --size, {limit / 1e6:.1f} MB: rounding has reached its finest step")
    lines = [saved, *notes, *(f"{name}: {path}" for name, path in files.items())]
    show(as_json, result, outcome.title, layers_table(compressed.records), *lines)
