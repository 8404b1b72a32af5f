"""`lpjax quantize`."""

from __future__ import annotations

from lpjax.cli import _options as opt
from lpjax.cli._nets import load_compressed
from lpjax.cli._output import show, sizes

EXAMPLE = "lpjax quantize recovered smallest"


def quantize(smaller: opt.Smaller, out: opt.Out, force: opt.Force = False, as_json: opt.AsJson = False) -> None:
    """Save the factors of a compressed model in 8 bits."""
    from lpjax.checkpoint import lowrank_ranks, save_checkpoint
    from lpjax.checkpoint.source import weight_bytes
    from lpjax.compression.history import history_files

    checkpoint, record = load_compressed(smaller, out, force)
    files = history_files(checkpoint.source, record)
    after = save_checkpoint(checkpoint, out, overwrite=force, int8=True, extra_files=files)
    before, ranks = weight_bytes(checkpoint.source), lowrank_ranks(checkpoint.params)
    result = {"model": str(smaller), "out": str(out), "quantized": ranks}
    show(
        as_json,
        result | {"bytes_before": before, "bytes_after": after},
        f"{len(ranks)} pairs in 8 bits; {sizes(before, after)}; saved in {out}",
    )
