"""`lpjax inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lpjax.cli import _options as opt
from lpjax.cli._errors import misuse
from lpjax.cli._nets import load_selected
from lpjax.cli._output import progress, show

if TYPE_CHECKING:
    from lpjax.checkpoint import Checkpoint

EXAMPLE = "lpjax inspect all-MiniLM-L6-v2 --plot spectra.png"


def inspect(
    model: opt.Model,
    layers: Annotated[str | None, opt.option("NAMES", "Groups of layers, or regexes; default: all.")] = None,
    keep: Annotated[str, opt.option("SHARES", "Shares to show ranks for.")] = "0.75,0.5,0.25",
    all_leaves: Annotated[bool, opt.flag("--all", "Show leaves that are not matrices.")] = False,
    each: Annotated[bool, opt.flag("--each", "Show a row for each layer.")] = False,
    sizes: Annotated[str | None, opt.option("SIZES", "Predict the cost of sizes instead: 9MB,7MB,5%.")] = None,
    calibrate: Annotated[Path | None, opt.option("TEXT", "For --sizes: text, or statistics of it.")] = None,
    plot: Annotated[Path | None, opt.option("PNG", "Plot spectra and row norms to this file.")] = None,
    force: Annotated[bool, opt.flag("--force", "Replace the PNG of --plot.")] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Show spectra, outliers and ranks, or what sizes would cost."""
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
        if calibrate is not None and sizes is None:
            raise ValueError("`calibrate` is for `sizes`; expected both")
        if sizes is not None and (plot is not None or all_leaves or each):
            raise ValueError("`sizes` shows one table of the whole model; omit `plot`, `all_leaves` and `each`")
        if plot is not None:
            require("report", "--plot", "matplotlib")
            check_new_file(plot, "PNG picture", overwrite=force, suffixes=(".png",))
    checkpoint, patterns = load_selected(model, layers)
    if sizes is not None:
        document, table = _predicted(
            checkpoint, model, sizes.split(","), calibrate, None if layers is None else patterns
        )
        show(as_json, document, table)
        return
    tied = tied_paths(checkpoint.params, name_table(checkpoint.config))
    with progress() as advance:
        inspection = inspect_params(checkpoint.params, select=patterns, keep=keeps, tied=tied, progress=advance)
    drawn = []
    if plot is not None:
        plot_inspection(plot, inspection, title=Path(model).name or model)
        drawn.append(f"drawn: {plot}")
    tables = inspection_tables(model, inspection, width=Console().width, all_leaves=all_leaves, each=each)
    show(as_json, inspection_document(model, inspection), *tables, *drawn)


def _predicted(
    checkpoint: Checkpoint, model: str, sizes: list[str], text: Path | None, select: list[str] | None
) -> tuple[dict[str, Any], Table]:
    """What sizes would cost, as JSON and as a table."""
    from lpjax._tree import leaves_with_paths
    from lpjax.allocation import Request, predict_sizes
    from lpjax.cli._texts import statistics_and_measure
    from lpjax.pipeline.outputs import outputs_of

    with misuse():
        try:
            requests = [Request(select=select, size=size.strip(), calibrated=text is not None) for size in sizes]
            for request in requests:
                request.limit(checkpoint.params, checkpoint.extra_bytes)
        except ValueError as error:
            raise ValueError(str(error).replace("`size`", "`sizes`")) from None
    statistics, _ = statistics_and_measure(text, requests[0], checkpoint, model)
    with misuse(), progress() as advance:
        predictions = predict_sizes(
            checkpoint.params, [size.strip() for size in sizes], statistics=statistics, select=select,
            other_bytes=checkpoint.extra_bytes, progress=advance,
        )  # fmt: skip
    kind = outputs_of(checkpoint).kind
    halves = 1 if statistics is None or kind == "regression" else 2
    what = "relative squared error" if statistics is None else f"divergence of {kind}"
    whole = sum(leaf.nbytes for _, leaf in leaves_with_paths(checkpoint.params)) + checkpoint.extra_bytes
    rows = [
        {"bytes": prediction.size, "step": prediction.step, "error": prediction.error / halves}
        for prediction in predictions
    ]
    table = Table(title=f"{escape(model)}: what sizes would cost, predicted", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("size", "share", "step", what):
        table.add_column(heading, justify="right")
    for row in rows:
        share = f"{100 * row['bytes'] / whole:.1f} %"
        table.add_row(f"{row['bytes'] / 1e6:.2f} MB", share, f"{row['step']:.3g}", f"{row['error']:.2g}")
    return {"model": model, "error": what, "sizes": rows}, table
