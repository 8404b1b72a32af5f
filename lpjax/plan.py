"""`Plan`: what to make of each matrix of a net. A plan can be read, edited and replayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from lpjax.select import is_table
from lpjax.weighting import Weighting, weighting_named

Costs = Literal["parameters", "multiply_adds"]

ENTRIES_OF_TABLES = 0.2


def share_of_entries(
    sparse: float | None, path: str, weighting: str | Weighting | None, method: Any, *, by_time: bool = False
) -> float:
    """The share of a pair that single entries get: as asked for, or by default of a table a fifth, under the default
    weights and by "svd", else none.

    Looking up rows of a table takes little of a net's time, with single entries, too; kernels with them take a dense
    one's. Where ranks are chosen or judged by time, which is not known of them, there are none by default.
    """
    if sparse is not None:
        return sparse
    if by_time:
        return 0.0
    weighted = weighting is not None and weighting_named(weighting).compares_layers
    return ENTRIES_OF_TABLES if weighted and method == "svd" and is_table(path) else 0.0


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
