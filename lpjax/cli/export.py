"""`lpjax export`."""

from __future__ import annotations

from typing import Annotated

from lpjax.cli import _options as opt
from lpjax.cli._errors import misuse
from lpjax.cli._nets import load_to_save
from lpjax.cli._output import show, sizes

EXAMPLE = "lpjax export smaller out --to onnx"


def export(
    model: opt.Model,
    out: opt.Out,
    to: Annotated[
        str, opt.name_of("lpjax.export:TARGETS", "dense (for transformers), flax, onnx or stablehlo.")
    ] = "dense",
    pooled: Annotated[bool, opt.flag("--pooled", "For onnx and stablehlo: output sentence vectors, too.")] = False,
    force: opt.Force = False,
    as_json: opt.AsJson = False,
) -> None:
    """Save a checkpoint for use without lpjax, dense or as a program."""
    from lpjax._extras import require
    from lpjax._tree import walk
    from lpjax.checkpoint import export_checkpoint, lowrank_ranks
    from lpjax.checkpoint.source import weight_bytes
    from lpjax.compression.history import export_files
    from lpjax.export import DENSE, RUNTIMES, export_program, program_of
    from lpjax.weights.quantized import Quantized

    with misuse():
        if pooled and to in DENSE:
            raise ValueError(f"`pooled` is for programs; expected `to` {' or '.join(RUNTIMES)}")
        if to == "onnx":
            require("onnx", "--to onnx")
    checkpoint = load_to_save(model, out, force)
    files, ranks = export_files(checkpoint, model), lowrank_ranks(checkpoint.params)
    codes = [path for path, leaf in walk(checkpoint.params) if isinstance(leaf, Quantized)]
    if to in DENSE:
        after = export_checkpoint(checkpoint, out, format=DENSE[to], overwrite=force, extra_files=files)
        what = f"{len(ranks)} factored weights multiplied out, {len(codes)} quantized weights expanded"
    else:
        if pooled:
            with misuse():
                program_of(checkpoint, pooled=True)
        after = export_program(checkpoint, out, to, pooled=pooled, overwrite=force, extra_files=files)
        what = f"{len(ranks)} factored weights kept as factors, {len(codes)} quantized weights as codes"
    before = weight_bytes(checkpoint.source)
    result = {"model": model, "out": str(out), "to": to, "multiplied" if to in DENSE else "factors": ranks}
    result["expanded" if to in DENSE else "codes"] = codes
    show(
        as_json,
        result | {"bytes_before": before, "bytes_after": after},
        f"{what}; {sizes(before, after)} ({to}); saved in {out}",
    )
