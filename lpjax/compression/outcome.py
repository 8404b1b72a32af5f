"""The compressed checkpoint, with its record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from lpjax._files.json import exponent_text
from lpjax._provenance import run_record
from lpjax._tree import leaves_with_paths
from lpjax.checkpoint import Checkpoint
from lpjax.compression._compress import Compressed
from lpjax.compression.plan import Plan
from lpjax.compression.record import LayerRecord, record_files
from lpjax.weighting.provenance import origin
from lpjax.weighting.statistics import Calibration

ROUNDING = "rounding"
"""Method of layers that are rounded but not factored by a solver."""


class Outcome(NamedTuple):
    """A compressed checkpoint.

    Attributes:
        checkpoint: checkpoint with the compressed params, and a block for config.json with the solver of each pair.
        plan: plan with its provenance, for reuse.
        files: record, for `save_checkpoint`.
        methods: solvers and exponents in use, in the order of the layers; `ROUNDING` has no exponent.
        sizes: number of parameters before and after.
        records: records of the layers, as `compress` returned them.
    """

    checkpoint: Checkpoint
    plan: Plan
    files: dict[str, Callable[[int], str]]
    methods: tuple[tuple[str, float | None], ...]
    sizes: tuple[int, int]
    records: tuple[LayerRecord, ...]

    @property
    def method(self) -> tuple[str, float | None]:
        """Solver and exponent of all layers, or ("several", None)."""
        return self.methods[0] if len(self.methods) == 1 else ("several", None)

    @property
    def title(self) -> str:
        """All methods and their exponents, in words."""
        return " and ".join(name if p is None else f"{name}, p = {p:g}" for name, p in self.methods)

    def document(self, model: str, out: Path) -> dict[str, Any]:
        """A summary of the outcome for `model`, saved in the folder `out`, as JSON values."""
        return {
            "model": model,
            "out": str(out),
            "method": self.method[0],
            "p": exponent_text(self.method[1]),
            "parameters_before": self.sizes[0],
            "parameters_after": self.sizes[1],
            "layers": [msgspec.to_builtins(record) for record in self.records],
        }


def outcome_of(
    before: Checkpoint,
    compressed: Compressed,
    plan: Plan,
    statistics: Calibration | None,
    *,
    model: str,
    keep: float | None = None,
    rank: int | None = None,
    patterns: Sequence[str] | None = None,
    options: Mapping[str, Any],
) -> Outcome:
    """The checkpoint that `compressed` makes of `before`, with its record.

    Args:
        before: checkpoint before compression.
        compressed: result of `compress`.
        plan, statistics, options: arguments of `compress`.
        model: name of `before`, for the plan's provenance.
        keep, rank, patterns: options that the plan was made from, for the record.

    Raises:
        RecordError: the record of `before` is damaged.
    """
    params, records = compressed
    provenance = {"model": model, **run_record(None)} | ({"calibration": origin(statistics)} if statistics else {})
    plan = dataclasses.replace(plan, provenance=provenance)
    new_records = [record for record in records if (record.rank is not None or record.rounded) and not record.note]
    total, left = (sum(leaf.size for _, leaf in leaves_with_paths(tree)) for tree in (before.params, params))
    whole = sum(math.prod(leaf.shape) for _, leaf in leaves_with_paths(before.params))
    if plan.budget_of == "parameters" and left > (plan.budget or 1) * whole:
        plan = dataclasses.replace(plan, budget=None, budget_of=None)  # ranks were raised by hand
    paths: dict[Any, list[str]] = {}
    for record in new_records:
        choice = plan.layers[record.path]
        method = choice[1:3] if choice.rank is not None else (ROUNDING, None)
        paths.setdefault(method, []).append(record.path)
    outcome = Outcome(before, plan, {}, tuple(paths), (total, left), records)
    methods: dict[str, Any] = dict(zip(("method", "p"), outcome.method, strict=True))
    steps = [{"method": solver, "p": exponent_text(p), "paths": own} for (solver, p), own in paths.items()]
    block = {"method": methods["method"], "p": exponent_text(methods["p"])} | {
        "steps": _earlier_steps(before.compression or {}) + steps
    }
    settings = methods | {
        "sparse": max((plan.layers[record.path].sparse_share for record in new_records if record.nnz), default=0.0),
        "calibration": {} if statistics is None else origin(statistics),
        "patterns": None if patterns is None else tuple(patterns),
    }
    settings |= {name: getattr(plan, name) for name in ("budget", "budget_of", "allocation", "weighting")}
    files = record_files(before, params, records, model=model, keep=keep, rank=rank, options=options, **settings)
    return outcome._replace(checkpoint=dataclasses.replace(before, params=params, compression=block), files=files)


def _earlier_steps(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps in config.json; one for a model of an early version, which has no steps."""
    if "steps" in block:
        return list(block["steps"])
    known = {key: block[key] for key in ("method", "p") if key in block}
    return [known | {"paths": sorted(block["ranks"])}] if block.get("ranks") else []
