"""The table of solvers: their objectives, their exponents and properties that callers rely on.

This module does not import JAX, because help texts, checks and reports read the table, too.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from lpjax._check import check_name

if TYPE_CHECKING:
    from lpjax.solvers._core.solution import Solution


@dataclasses.dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, which may be ∞; `closed` says which ends are included, both by default."""

    low: float
    high: float
    closed: bool | Literal["low", "high"] = True

    @property
    def _ends(self) -> tuple[bool, bool]:
        return self.closed in (True, "low"), self.closed in (True, "high")

    def __contains__(self, p: float) -> bool:
        low, high = self._ends
        return bool((self.low <= p if low else self.low < p) and (p <= self.high if high else p < self.high))

    def check(self, p: Any) -> None:
        """Refuse an exponent out of range.

        Raises:
            ValueError: `p` is outside the interval.
        """
        if float(p) not in self:
            raise ValueError(f"`p` is {p}; expected a number in {self}")

    def __str__(self) -> str:
        low, high = self._ends
        return f"{'[' if low else '('}{self.low:g}, {self.high:g}{']' if high else ')'}"


FROM_ONE = Interval(1, math.inf)
"""The exponents of norms, ∞ included."""


@dataclasses.dataclass(frozen=True)
class Solver:
    """An entry of the table; calling it calls its function.

    Attributes:
        function: (matrix, rank, *, p, …) -> `Solution`, compatible with jit and vmap; or "module:name", from which it
            is imported on first use.
        objective: minimised objective, or the reported one of a geometric solver: "entries" or "rows"
            (`lpjax.objectives`).
        p_range: accepted exponents.
        default_p: exponent if none is given.
        uses_p: whether the factors depend on p; if not, they minimise the sum of squares, for which any square root
            of a metric will do.
        direct: whether it is a single factorization, cheap enough to be repeated.
        nested: whether one solve serves all smaller ranks, whose factors are its leading columns and rows.
        equivariant: whether rotations commute with it: for orthogonal Q, the factors of AQ are L and RQ if those of A
            are L and R. A factored matrix A = BQᵀ is then solved as B.
        from_file: whether it reads A by blocks of rows, so that a memory-mapped matrix stays in its file.
        tol_power: exponent of the default tolerance, eps**tol_power.
        starts: accepted names for `init`; empty if the solver does not descend from a start.
    """

    function: str | Callable[..., Solution]
    objective: Literal["entries", "rows"] = "entries"
    p_range: Interval = Interval(1, 2)
    default_p: float = 1.0
    uses_p: bool = True
    direct: bool = False
    nested: bool = False
    equivariant: bool = False
    from_file: bool = False
    tol_power: float = 0.5
    starts: tuple[str, ...] = ()

    @functools.cached_property
    def solve(self) -> Callable[..., Solution]:
        """The function, imported if necessary."""
        if not isinstance(self.function, str):
            return self.function
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)

    def __call__(self, matrix: Any, rank: int, **options: Any) -> Solution:
        return self.solve(matrix, rank, **options)


_ENTRY_STARTS = ("best", "svd", "lewis", "clipped")

SOLVERS: dict[str, Solver] = {
    # lewis and lowner nest, too, but the lower bound of a solve holds for its own rank only.
    "svd": Solver(
        "lpjax.solvers._svd:svd",
        p_range=FROM_ONE,
        default_p=2.0,
        uses_p=False,
        direct=True,
        nested=True,
        equivariant=True,
        from_file=True,
    ),
    "lewis": Solver(
        "lpjax.solvers._lewis:lewis", p_range=Interval(0, math.inf, "high"), equivariant=True, from_file=True
    ),
    "lowner": Solver("lpjax.solvers._lowner:lowner", p_range=FROM_ONE, equivariant=True),
    "irls_rows": Solver(
        "lpjax.solvers._irls_rows:irls_rows",
        objective="rows",
        p_range=FROM_ONE,
        equivariant=True,
        starts=("best", "svd", "lewis"),
        from_file=True,
        tol_power=0.6,
    ),
    "irls_entries": Solver(
        "lpjax.solvers._irls_entries:irls_entries", p_range=FROM_ONE, starts=_ENTRY_STARTS, tol_power=0.6
    ),
    "admm_entries": Solver("lpjax.solvers._admm_entries:admm_entries", p_range=FROM_ONE, starts=_ENTRY_STARTS),
}


def solver_named(solver: str | Solver | Callable[..., Solution]) -> Solver:
    """The table's entry for a name or a function; a new entry for a function outside the table.

    Raises:
        ValueError: no solver has that name.
    """
    if isinstance(solver, Solver):
        return solver
    if callable(solver):
        return next((entry for entry in SOLVERS.values() if entry.solve is solver), Solver(solver))
    check_name("solver", solver, SOLVERS)
    return SOLVERS[solver]
