"""`lpjax inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.console import Console

from lpjax.cli import _options as opt
from lpjax.cli._errors import misuse
from lpjax.cli._nets import load_selected
from lpjax.cli._output import progress, show

EXAMPLE = "lpjax inspect all-MiniLM-L6-v2 --plot spectra.png"


def inspect(
    model: opt.Model,
    layers: Annotated[str | None, opt.option("NAMES", "Groups of layers, or regexes; default: all.")] = None,
    keep: Annotated[str, opt.option("SHARES", "Shares to show ranks for.")] = "0.75,0.5,0.25",
    all_leaves: Annotated[bool, opt.flag("--all", "Show leaves that are not matrices.")] = False,
    each: Annotated[bool, opt.flag("--each", "Show a row for each layer.")] = False,
    plot: Annotated[Path | None, opt.option("PNG", "Plot spectra and row norms to this file.")] = None,
    force: Annotated[bool, opt.flag("--force", "Replace the PNG of --plot.")] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Show spectra, outliers, and the rank that each --keep gives."""
    from lpjax._extras import require
    from lpjax.checkpoint.targets import check_new_file
    from lpjax.inspection import inspect_params, inspection_document, inspection_tables, tied_paths
    from lpjax.models import name_table
    from lpjax.report import plot_inspection
    from lpjax.select import parse_shares

    with misuse():
        keeps = parse_shares(keep)
        if layers is not None and all_leaves:
            raise ValueError("`layers` chooses matrices and `all_leaves` shows every leaf; expected at most one")
        if plot is not None:
            require("report", "--plot", "matplotlib")
            check_new_file(plot, "PNG picture", overwrite=force, suffixes=(".png",))
    checkpoint, patterns = load_selected(model, layers)
    tied = tied_paths(checkpoint.params, name_table(checkpoint.config))
    with progress() as advance:
        inspection = inspect_params(checkpoint.params, select=patterns, keep=keeps, tied=tied, progress=advance)
    drawn = []
    if plot is not None:
        plot_inspection(plot, inspection, title=Path(model).name or model)
        drawn.append(f"drawn: {plot}")
    tables = inspection_tables(model, inspection, width=Console().width, all_leaves=all_leaves, each=each)
    show(as_json, inspection_document(model, inspection), *tables, *drawn)
