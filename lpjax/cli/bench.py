"""`lpjax bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from lpjax.cli import _options as opt
from lpjax.cli._errors import misuse
from lpjax.cli._nets import load_selected
from lpjax.cli._output import progress, show

EXAMPLE = "lpjax bench all-MiniLM-L6-v2 --out break_even.json"


def bench(
    model: opt.Model,
    layers: opt.Layers = "encoder,embeddings",
    tokens: Annotated[int, opt.at_least(1, "Tokens per batch.")] = 2048,
    out: Annotated[Path | None, opt.option("FILE", "JSON for `lpjax compress --break-even`.")] = None,
    force: opt.ForceFile = False,
    as_json: opt.AsJson = False,
) -> None:
    """Measure the rank up to which factored layers are faster here."""
    from lpjax._files.json import write_json
    from lpjax.checkpoint.targets import check_new_file
    from lpjax.compression import break_even_document, measure_break_even
    from lpjax.report.tables import break_even_tables

    with misuse():
        if out is not None:
            check_new_file(out, "break-even file", overwrite=force)
    checkpoint, patterns = load_selected(model, layers)
    with progress() as advance:
        timings = measure_break_even(checkpoint.params, select=patterns or (), tokens=tokens, progress=advance)
    document = break_even_document(model, timings, seed=0)
    if out is not None:
        write_json(out, document)
    show(as_json, document, *break_even_tables(timings), *([] if out is None else [f"saved in {out}"]))
