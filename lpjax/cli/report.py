"""`lpjax report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpjax.cli import _options as opt
from lpjax.cli._errors import misuse
from lpjax.cli._output import note, progress, show

EXAMPLE = "lpjax report smaller --baseline all-MiniLM-L6-v2"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Compressed models, or results of experiments.")],
    baseline: opt.Baseline = None,
    out: Annotated[Path | None, opt.option("FILE", "Page to write; default: RUN/report.html.")] = None,
    glue: opt.Glue = None,
    latency: Annotated[bool, opt.flag("--latency/--no-latency", "Time the models beside the dense one.")] = True,
    force: opt.ForceFile = False,
) -> None:
    """Show compressed models on one HTML page."""
    from lpjax.checkpoint import load_checkpoint
    from lpjax.checkpoint.source import find_model
    from lpjax.checkpoint.targets import check_new_file
    from lpjax.report import PAGE, PAGE_KIND, Baseline, check_runs, write_report

    with misuse():
        check_runs(runs, baseline)
        if out is None:
            out = runs[0] / PAGE if len(runs) == 1 and runs[0].is_dir() else Path(PAGE)
        check_new_file(out, PAGE_KIND, overwrite=force, suffixes=(".html", ".htm"))
        folder = None if baseline is None else find_model(baseline)
    dense = None if folder is None or baseline is None else Baseline(load_checkpoint(folder), baseline)
    with progress() as advance:
        missing = write_report(out, runs, baseline=dense, glue=glue, latency=latency, overwrite=force, progress=advance)
    note(missing)
    show(False, {}, f"written: {out}")
