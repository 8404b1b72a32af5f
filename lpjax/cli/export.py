"""`lpjax export`."""

from __future__ import annotations

from typing import Annotated

from lpjax.cli import _options as opt
from lpjax.cli._nets import load_to_save
from lpjax.cli._output import show, sizes

EXAMPLE = "lpjax export smaller dense"


def export(
    model: opt.Model,
    out: opt.Out,
    dense: Annotated[bool, opt.flag("--dense", "Write dense weights (always on).")] = False,
    msgpack: Annotated[bool, opt.flag("--msgpack", "Write flax_model.msgpack, for Flax.")] = False,
    force: opt.Force = False,
    as_json: opt.AsJson = False,
) -> None:
    """Save a dense checkpoint that transformers loads."""
    from lpjax.checkpoint import export_checkpoint, lowrank_ranks
    from lpjax.checkpoint.source import weight_bytes
    from lpjax.compression.history import export_files

    del dense  # There is no other form.
    checkpoint = load_to_save(model, out, force)
    format = "msgpack" if msgpack else "safetensors"
    files = export_files(checkpoint, model)
    after = export_checkpoint(checkpoint, out, format=format, overwrite=force, extra_files=files)
    before, ranks = weight_bytes(checkpoint.source), lowrank_ranks(checkpoint.params)
    result = {"model": model, "out": str(out), "format": format, "multiplied": ranks}
    show(
        as_json,
        result | {"bytes_before": before, "bytes_after": after},
        f"{len(ranks)} factored weights multiplied out; {sizes(before, after)} ({format}); saved in {out}",
    )
