"""The file of `lpjax bench`: how long the shapes of a net take on a machine, dense and factored."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lpjax._files.json import Fields, read_object
from lpjax._provenance import run_record
from lpjax.compression.latency import BreakEven, LayerTiming

SCHEMA = "lpjax-break-even/1"


def break_even_document(model: str, found: BreakEven, seed: int) -> dict[str, Any]:
    """The timings as JSON can say them, with versions and machine."""
    timings = [
        dataclasses.asdict(one) | {"break_even_rank": one.rank, "break_even_keep": one.keep} for one in found.timings
    ]
    return {"schema": SCHEMA, "model": model, "tokens": found.tokens, "timings": timings, **run_record(seed)}


def read_break_even(path: Path) -> BreakEven:
    """The timings in a file.

    Raises:
        RecordError: it is no such file; names the file and the key.
    """
    fields = read_object(path, SCHEMA)
    tokens = fields.need("tokens", fields.count("tokens", 1))
    return BreakEven(tokens, tuple(_read_timing(one) for one in fields.objects("timings")))


def _read_timing(fields: Fields) -> LayerTiming:
    shape = fields.need("shape", fields.counts("shape"))
    ranks = fields.need("ranks", fields.counts("ranks"))
    ratios = fields.need("ratios", fields.positives("ratios"))
    if len(shape) != 2:
        raise fields.refuse("shape", "two numbers")
    if not ranks or list(ranks) != sorted(set(ranks)):
        raise fields.refuse("ranks", "rising numbers, one or more")
    if len(ratios) != len(ranks):
        raise fields.refuse("ratios", f"{len(ranks)} numbers, one a rank")
    return LayerTiming(
        shape=(shape[0], shape[1]),
        table=fields.need("table", fields.flag("table")),
        dense_seconds=fields.need("dense_seconds", fields.number("dense_seconds")),
        ranks=ranks,
        ratios=ratios,
    )
