"""`lpjax export`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lpjax.cli._common import AsJson, Force, Model, Out, load_to_save, sizes


def export(
    model: Model,
    out: Out,
    dense: Annotated[
        bool, typer.Option("--dense", help="Multiply factored weights out; always done, so it may be left out.")
    ] = False,
    msgpack: Annotated[
        bool, typer.Option("--msgpack", help="Write flax_model.msgpack, for Flax, instead of model.safetensors.")
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Save a checkpoint, factored or not, as a dense one that transformers loads."""
    from lpjax.checkpoint import export_checkpoint, lowrank_ranks
    from lpjax.checkpoint.source import weight_bytes
    from lpjax.compression.history import export_files

    del dense  # There is no other form.
    checkpoint = load_to_save(model, out, force)
    format = "msgpack" if msgpack else "safetensors"
    files = export_files(checkpoint, model)
    size = export_checkpoint(checkpoint, out, format=format, overwrite=force, extra_files=files)
    ranks = lowrank_ranks(checkpoint.params)
    before = weight_bytes(checkpoint.source)
    result = {
        "model": model,
        "out": str(out),
        "format": format,
        "multiplied": ranks,
        "bytes_before": before,
        "bytes_after": size,
    }
    if as_json:
        print(json.dumps(result))
        return
    Console().print(
        f"{len(ranks)} factored weights multiplied out; {sizes(before, size)} ({format}); saved in {escape(str(out))}",
        highlight=False,
        soft_wrap=True,
    )
