"""`Plan`: what to make of each matrix of a net. A plan can be read, edited and replayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from lpjax.weighting.weightings import Weighting

Costs = Literal["parameters", "multiply_adds"]


class Choice(NamedTuple):
    """What to make of one matrix.

    Attributes:
        rank: of its pair; None where it stays dense.
        method: a name in `SOLVERS`.
        p: its exponent; "svd" is that of p = 2, whatever it says.
        sparse: share of what a pair of that rank stores that single entries get instead; the pair's rank is lower then.
    """

    rank: int | None
    method: str = "svd"
    p: float = 2.0
    sparse: float = 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """A choice for each matrix, and what they were chosen for.

    Attributes:
        layers: path -> `Choice`.
        weighting: that errors are under, by its name or itself; None without a calibration.
        budget: share of `budget_of` that the whole net may keep; None where the choices were not made by one.
        budget_of: "parameters" or "multiply_adds".
        allocation: how ranks were chosen, as `allocate` names it; None where not by a budget.
        provenance: of the model, the texts, the versions; what JSON can say.
    """

    layers: Mapping[str, Choice]
    weighting: str | Weighting | None = None
    budget: float | None = None
    budget_of: Costs | None = None
    allocation: str | None = None
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
