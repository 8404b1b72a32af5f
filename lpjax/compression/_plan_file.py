"""The file of a plan: what to make of each matrix, a line each, to be read, edited and replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from lpjax._files.json import Fields, RecordError, read_object
from lpjax.checkpoint.documents import refuse_existing, write_text
from lpjax.compression.plan import Choice, Costs, Plan
from lpjax.weighting.weightings import WEIGHTINGS, Weighting

SCHEMA = "lpjax-plan/1"


def save_plan(plan: Plan, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a plan as JSON, whole or not at all.

    Raises:
        FileExistsError: the file is there, and `overwrite` is not given.
        ValueError: `provenance` holds what JSON cannot say, or the weighting has no name in `WEIGHTINGS`.
        OSError: it cannot be written.
    """
    path = Path(path)
    refuse_existing(path, "plan", overwrite=overwrite)
    told: dict[str, Any] = {"schema": SCHEMA}
    told |= {key: getattr(plan, key) for key in ("budget", "budget_of", "allocation")}
    told |= {"weighting": _name(plan.weighting), "provenance": dict(plan.provenance)}
    try:
        head = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False)
        layers = [
            json.dumps({"path": path, **_plain(choice)}, ensure_ascii=False, allow_nan=False)
            for path, choice in plan.layers.items()
        ]
    except TypeError as error:
        raise ValueError(f"`plan` holds what JSON cannot say: {error}") from error
    lines = ",\n".join(f"    {layer}" for layer in layers)
    write_text(path, f'{head[:-2]},\n  "layers": [\n{lines}\n  ]\n}}\n')


def _plain(choice: Choice) -> dict[str, Any]:
    """Of Python's own numbers."""
    rank = None if choice.rank is None else int(choice.rank)
    told = {"rank": rank, "method": choice.method, "p": float(choice.p)}
    return told | ({"sparse": float(choice.sparse)} if choice.sparse else {})


def _name(weighting: str | Weighting | None) -> str | None:
    if not isinstance(weighting, Weighting):
        return weighting
    for name, known in WEIGHTINGS.items():
        if known == weighting:
            return name
    raise ValueError(f"`plan.weighting` is {weighting}, which has no name; expected one of {', '.join(WEIGHTINGS)}")


def load_plan(path: str | Path) -> Plan:
    """The plan in a file.

    Raises:
        RecordError: it is no plan; names the file and the key.
    """
    fields = read_object(Path(path), SCHEMA)
    layers: dict[str, Choice] = {}
    for layer in fields.objects("layers"):
        name = layer.need("path", layer.text("path"))
        if name in layers:
            raise RecordError(f"{path}: {name} is there twice; leave one of them")
        if "rank" not in layer.data:
            raise layer.refuse("rank", "a whole number, 1 or more, or null for a layer that stays dense")
        rank = layer.count("rank", 1)
        layers[name] = Choice(None) if rank is None else _choice(layer, rank)
    if not layers:
        raise fields.refuse("layers", "objects with path, rank, method and p, one or more")
    costs = fields.text("budget_of")
    if costs == "multiply_adds" and any(choice.sparse for choice in layers.values()):
        raise fields.refuse("budget_of", '"parameters" or null, for single entries (sparse) save no multiply-adds')
    if costs is not None and costs not in get_args(Costs):
        raise fields.refuse("budget_of", " or ".join(map(repr, get_args(Costs))))
    return Plan(
        layers,
        fields.text("weighting"),
        fields.number("budget"),
        costs,  # pyright: ignore[reportArgumentType]
        fields.text("allocation"),
        fields.anything("provenance"),
    )


def _choice(layer: Fields, rank: int) -> Choice:
    sparse = layer.need("sparse", layer.number("sparse")) if "sparse" in layer.data else 0.0
    if not 0 <= sparse < 1:
        raise layer.refuse("sparse", "a share in [0, 1)")
    return Choice(rank, _method(layer), layer.need("p", layer.number("p")), sparse)


def _method(layer: Fields) -> str:
    from lpjax.solvers import SOLVERS

    method = layer.need("method", layer.text("method"))
    if method not in SOLVERS:
        raise layer.refuse("method", f"one of {', '.join(SOLVERS)}")
    return method
