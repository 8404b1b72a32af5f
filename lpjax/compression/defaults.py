"""The defaults of `compress`, `allocate`, NNX and the command line."""

from __future__ import annotations

from typing import Any, NamedTuple

from lpjax._tree import is_table
from lpjax.solvers import solver_named
from lpjax.weighting.weightings import DEFAULT, Weighting, weighting_named

LAYERS = ("embeddings",)
"""Layers that the command line compresses by default; Python has no default."""

LAYERS_OF_BUDGET = ("embeddings", "encoder")
"""Layers that share a budget by default."""

SIZE = 0.1
"""Share of a model's bytes that is the goal with text and no other goal."""

BUDGET = 0.5
"""Share of the parameters that is the goal instead if options of factorization are given."""

SPARSE_SHARE_OF_TABLES = 0.2


class Method(NamedTuple):
    """A solver and its exponent."""

    solver: Any
    p: float


def default_method(solver: Any = None, p: float | None = None, *, calibrated: bool) -> Method:
    """The given solver and exponent; by default "lewis" at p = 1, with a calibration "svd".

    Each solver has its own default exponent, with a calibration or without.
    """
    solver = ("svd" if calibrated else "lewis") if solver is None else solver
    if p is None:
        p = solver_named(solver).default_p
    return Method(solver, p)


def default_weighting(weighting: str | Weighting | None, *, calibrated: bool) -> str | Weighting | None:
    """The given weighting, or the default one if there is a calibration, else None."""
    return (weighting or DEFAULT) if calibrated else weighting


def default_allocation(weighting: str | Weighting | None, *, measured: bool = False) -> str:
    """The default allocation: "measured" if there is a measure, else "error" if the weighting makes errors of layers
    comparable, else "uniform"."""
    if measured:
        return "measured"
    return "error" if weighting is not None and weighting_named(weighting).compares_layers else "uniform"


def default_sparse_share(
    share: float | None, path: str, weighting: str | Weighting | None, solver: Any, *, by_time: bool = False
) -> float:
    """The requested share; by default 0.2 for embeddings solved directly under the default weighting, else 0.

    Lookups in a table take little of a model's time, even with single entries. A kernel with single entries takes the
    time of a dense one. If ranks are chosen or judged by time (`by_time`), the default is 0, as the time of single
    entries is unknown.
    """
    if share is not None:
        return share
    if by_time:
        return 0.0
    weighted = weighting is not None and weighting_named(weighting).compares_layers
    cheap = solver_named(solver).direct
    return SPARSE_SHARE_OF_TABLES if weighted and cheap and is_table(path) else 0.0
