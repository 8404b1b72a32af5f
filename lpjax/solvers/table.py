"""The table of solvers: what each one minimises, at which exponents, and what its callers may rely on.

It loads no JAX: help texts, checks and reports read it, too.
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
            ValueError: naming it and the range.
        """
        if float(p) not in self:
            raise ValueError(f"`p` is {p}; expected a number in {self}")

    def __str__(self) -> str:
        low, high = self._ends
        return f"{'[' if low else '('}{self.low:g}, {self.high:g}{']' if high else ')'}"


FROM_ONE = Interval(1, math.inf)
"""Every exponent of a norm, ∞ included."""


@dataclasses.dataclass(frozen=True)
class Solver:
    """An entry of the table; calling it calls its function.

    Attributes:
        function: (matrix, rank, *, p, …) -> `Solution`, a function that jit and vmap can transform; or its place,
            "module:name", from which it is imported on first use.
        objective: what it minimises or, if it is geometric, is measured by: "entries" or "rows" (`lpjax.objectives`).
        p_range: exponents that it takes.
        default_p: the exponent if none is given.
        uses_p: whether the factors depend on p; otherwise they minimise the sum of squares, and any root of a metric
            will do.
        direct: whether it is one factorization, cheap enough to be repeated.
        nested: whether one solve serves all smaller ranks: their factors are its first columns and rows.
        from_file: whether it reads A by blocks of rows, so that a memory-mapped matrix stays in its file.
        tol_power: its tolerance is eps**tol_power by default.
        equivariant: whether it sees only lengths of rows in subspaces, so that for orthogonal Q the factors of AQ are
            those of A, the right one times Q. A given pair A = BQᵀ is then solved as B.
        starts: names that `init` may have, if the solver descends from a start; empty for others.
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
        """The function itself."""
        if not isinstance(self.function, str):
            return self.function
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)

    def __call__(self, matrix: Any, rank: int, **options: Any) -> Solution:
        return self.solve(matrix, rank, **options)


_ENTRY_STARTS = ("best", "svd", "lewis", "clipped")

SOLVERS: dict[str, Solver] = {
    # lewis and lowner nest, too, but the certificate that they come with is of one rank.
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
    """The entry of a name or of a function; a new one for a function that the table does not have.

    Raises:
        ValueError: no solver has that name.
    """
    if isinstance(solver, Solver):
        return solver
    if callable(solver):
        return next((entry for entry in SOLVERS.values() if entry.solve is solver), Solver(solver))
    check_name("solver", solver, SOLVERS)
    return SOLVERS[solver]
