"""`lpjax report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lpjax.cli._common import Glue, errors, find_model, misuse, progress

if TYPE_CHECKING:
    from lpjax.report import Missing


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders that lpjax compress wrote; or files: results.json of the demo, experiments as .jsonl.",
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(help="The dense net: with it errors, spectra, latency and scores are measured."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Page to be written; default: report.html in RUN, if it is one folder, or here.")
    ] = None,
    glue: Glue = None,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Time the nets, where --baseline is.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it is there.")] = False,
) -> None:
    """Show compressed nets on one page: accuracy, errors, spectra, ranks, sizes, latency, settings."""
    from lpjax._files.replacing import put_back
    from lpjax.checkpoint import load_checkpoint
    from lpjax.report import PAGE, Baseline, check_page, write_report

    with misuse():
        for run in runs:
            put_back(run)
            if not run.exists():
                raise FileNotFoundError(
                    f"there is no {run}; expected a folder that `lpjax compress` wrote, or a file of experiments"
                )
            if run.is_dir() and not (run / "config.json").exists() and (run / "results.json").exists():
                raise ValueError(f"{run} is no checkpoint, but a folder of results; expected {run / 'results.json'}")
        if baseline is not None and not any(run.is_dir() for run in runs):
            raise ValueError(
                f"--baseline is {baseline}, but {runs[0]} is a file, whose nets are not here to be measured; "
                "expected a folder, or no --baseline"
            )
        if out is not None and out.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--out is {out}; expected a name that ends in .html")
        if out is None:
            out = runs[0] / PAGE if len(runs) == 1 and runs[0].is_dir() else Path(PAGE)
        check_page(out, force)
        folder = None if baseline is None else find_model(baseline)
    dense = None if folder is None or baseline is None else Baseline(load_checkpoint(folder), baseline)
    with progress() as advance:
        missing = write_report(out, runs, baseline=dense, glue=glue, latency=latency, overwrite=force, progress=advance)
    print_missing(missing)
    Console().print(f"written: {escape(str(out))}", highlight=False, soft_wrap=True)


def print_missing(missing: list[Missing]) -> None:
    """Say on stderr what a page lacks."""
    for one in missing:
        what = f"not measured: {one.what}: {one.how} {one.command}"
        errors.print(what.rstrip(), highlight=False, markup=False, soft_wrap=True)
