"""What is done if nothing is asked for: the one table of defaults of Python, NNX and the command line."""

from __future__ import annotations

from typing import Any, NamedTuple

from lpjax.select import is_table
from lpjax.solvers import SOLVERS
from lpjax.weighting.weightings import DEFAULT, Weighting, weighting_named

LAYERS = ("embeddings",)
"""The layers that the command compresses; Python has no default."""

LAYERS_OF_BUDGET = ("embeddings", "encoder")
"""The layers that share a budget."""

ENTRIES_OF_TABLES = 0.2


class Method(NamedTuple):
    """A solver and its exponent."""

    solver: Any
    p: float


def default_method(solver: Any = None, p: float | None = None, *, calibrated: bool) -> Method:
    """The solver and exponent, as far as they are not given: "lewis" at p = 1, or "svd" with a calibration.

    Each solver has its own exponent, with a calibration or without.
    """
    solver = ("svd" if calibrated else "lewis") if solver is None else solver
    if p is None:
        p = SOLVERS[solver].default_p if isinstance(solver, str) and solver in SOLVERS else 1.0
    return Method(solver, p)


def default_weighting(weighting: str | Weighting | None, *, calibrated: bool) -> str | Weighting | None:
    """The weighting, as far as it is not given; None without a calibration to weight by."""
    return (weighting or DEFAULT) if calibrated else None


def default_allocation(weighting: str | Weighting | None, *, measured: bool = False) -> str:
    """How a budget is shared out: "measured" if there is a measure, else "error" if errors of layers compare under the
    weighting, else "uniform"."""
    if measured:
        return "measured"
    return "error" if weighting is not None and weighting_named(weighting).compares_layers else "uniform"


def share_of_entries(
    sparse: float | None, path: str, weighting: str | Weighting | None, method: Any, *, by_time: bool = False
) -> float:
    """The share of a pair that single entries get: as asked for; by default a fifth of an embedding that a direct
    solver solves under the default weighting, else none.

    Looking up rows of a table takes little of a net's time, with single entries, too; kernels with them take a dense
    one's. There are none by default if ranks are chosen or judged by time, which is not known of them.
    """
    if sparse is not None:
        return sparse
    if by_time:
        return 0.0
    weighted = weighting is not None and weighting_named(weighting).compares_layers
    cheap = isinstance(method, str) and method in SOLVERS and SOLVERS[method].direct
    return ENTRIES_OF_TABLES if weighted and cheap and is_table(path) else 0.0
