"""`lpjax quantize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lpjax.cli._common import AsJson, Force, Out, load_to_save, misuse, sizes


def quantize(
    smaller: Annotated[Path, typer.Argument(help="Folder of a net that `lpjax compress` made.")],
    out: Out,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Save the factors of a compressed checkpoint in 8 bits, a quarter of their bytes, as a last step."""
    from lpjax.checkpoint import lowrank_ranks, save_checkpoint
    from lpjax.checkpoint.source import weight_bytes
    from lpjax.compression.history import history_files
    from lpjax.compression.record import record_of

    checkpoint = load_to_save(str(smaller), out, force)
    ranks = lowrank_ranks(checkpoint.params)
    with misuse():
        if not ranks:
            raise ValueError(f"{smaller} is a dense net; expected one that `lpjax compress` made")
    before = weight_bytes(checkpoint.source)
    files = history_files(checkpoint.source, record_of(checkpoint))
    size = save_checkpoint(checkpoint, out, overwrite=force, int8=True, extra_files=files)
    if as_json:
        told = {"model": str(smaller), "out": str(out), "quantized": ranks, "bytes_before": before, "bytes_after": size}
        print(json.dumps(told))
        return
    Console().print(
        f"{len(ranks)} pairs in 8 bits; {sizes(before, size)}; saved in {escape(str(out))}",
        highlight=False,
        soft_wrap=True,
    )
