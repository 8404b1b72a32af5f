"""`lpjax quantize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lpjax.cli._common import AsJson, Force, Out, find_model, misuse


def quantize(
    smaller: Annotated[Path, typer.Argument(help="Folder of a net that `lpjax compress` made.")],
    out: Out,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Save the factors of a compressed checkpoint in 8 bits, a quarter of their bytes, as a last step."""
    from lpjax.checkpoint import load_checkpoint, save_checkpoint
    from lpjax.checkpoint._load import lowrank_ranks
    from lpjax.checkpoint._save import check_target
    from lpjax.checkpoint._source import weight_bytes
    from lpjax.report import RECORD, record_of, record_text
    from lpjax.report._trained import training_files

    with misuse():
        check_target(out, None, force)
        folder = find_model(str(smaller))
    checkpoint = load_checkpoint(folder)
    ranks = lowrank_ranks(checkpoint.params)
    with misuse():
        check_target(out, checkpoint.source, force)
        if not ranks:
            raise ValueError(f"{smaller} is a dense net; expected one that `lpjax compress` made")
    record, files = record_of(checkpoint), training_files(checkpoint.source)
    if record.complete:
        files[RECORD] = record_text(record)
    before = weight_bytes(checkpoint.source)
    size = save_checkpoint(checkpoint, out, overwrite=force, int8=True, extra_files=files)
    if as_json:
        told = {"model": str(smaller), "out": str(out), "quantized": ranks, "bytes_before": before, "bytes_after": size}
        print(json.dumps(told))
        return
    Console().print(
        f"{len(ranks)} pairs in 8 bits; weights {before / 1e6:.1f} MB → {size / 1e6:.1f} MB; "
        f"saved in {escape(str(out))}",
        highlight=False,
        soft_wrap=True,
    )
