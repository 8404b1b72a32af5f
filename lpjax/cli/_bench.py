"""`lpjax bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lpjax._check import check_whole
from lpjax.cli._common import AsJson, Model, check_new_file, find_model, load_selected, misuse, progress

if TYPE_CHECKING:
    from lpjax.compression.latency import BreakEven

_KEEPS = (0.75, 0.5, 0.25)
_SEED = 0


def bench(
    model: Model,
    layers: Annotated[
        str,
        typer.Option(help="embeddings, attention, feed_forward, encoder, or a regular expression; several by commas."),
    ] = "encoder,embeddings",
    tokens: Annotated[int, typer.Option(help="Tokens of a batch: texts times their length.")] = 2048,
    out: Annotated[
        Path | None, typer.Option(help="JSON file to be written, for `lpjax compress --break-even`.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --out if it is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Time layers on this machine, dense and factored: from what rank on is a smaller layer a slower one?"""
    from lpjax.checkpoint.documents import write_json
    from lpjax.compression import break_even_document
    from lpjax.compression.latency import measure_break_even

    with misuse():
        check_whole("--tokens", tokens, 1)
        if out is not None:
            check_new_file("--out", out, force, "break-even file")
        folder = find_model(model)
    checkpoint, patterns = load_selected(folder, layers)
    with progress() as advance:
        found = measure_break_even(checkpoint.params, select=patterns, tokens=tokens, seed=_SEED, progress=advance)
    document = break_even_document(model, found, _SEED)
    if out is not None:
        write_json(out, document)
    if as_json:
        print(json.dumps(document))
        return
    console = Console()
    console.print(_table(found))
    if out is not None:
        console.print(f"saved in {escape(str(out))}", highlight=False, soft_wrap=True)


def _table(found: BreakEven) -> Table:
    from lpjax.select import rank_for

    keeps = ", ".join(f"{keep:g}" for keep in _KEEPS)
    title = f"{found.tokens} tokens: time / dense at keep {keeps}, and the largest rank that is no slower"
    table = Table(title=title, title_justify="left")
    for heading in ("shape", "as", "ms", *(f"{keep:g}" for keep in _KEEPS), "rank", "keep"):
        table.add_column(heading, justify="left" if heading == "as" else "right", no_wrap=True)
    for one in found.timings:
        ranks = [rank_for(one.shape, keep) for keep in _KEEPS]
        table.add_row(
            "×".join(map(str, one.shape)),
            "table" if one.table else "kernel",
            f"{1e3 * one.dense_seconds:.3f}",
            *("–" if rank < 1 else f"{one.ratio(rank):.2f}" for rank in ranks),
            str(one.rank) if one.rank else "none",
            f"{one.keep:.2f}" if one.rank else "–",
        )
    table.caption = "each layer alone; in a net, what is beside it takes its time either way"
    return table
