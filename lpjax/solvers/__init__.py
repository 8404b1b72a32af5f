"""Solvers: one matrix in, a `Solution` out; pure, jittable, vmappable."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

from lpjax.solvers.table import SOLVERS as SOLVERS
from lpjax.solvers.table import Interval as Interval
from lpjax.solvers.table import Solver as Solver
from lpjax.solvers.table import solver_named as solver_named

if TYPE_CHECKING:
    from lpjax.solvers._admm_entries import admm_entries as admm_entries
    from lpjax.solvers._certify import certify as certify
    from lpjax.solvers._core.solution import Ellipsoid as Ellipsoid
    from lpjax.solvers._core.solution import Solution as Solution
    from lpjax.solvers._irls_entries import irls_entries as irls_entries
    from lpjax.solvers._irls_rows import irls_rows as irls_rows
    from lpjax.solvers._lewis import lewis as lewis
    from lpjax.solvers._low_rank_plus_sparse import with_entries as with_entries
    from lpjax.solvers._lowner import lowner as lowner
    from lpjax.solvers._partial_gaps import PartialGaps as PartialGaps
    from lpjax.solvers._partial_gaps import partial_gaps as partial_gaps
    from lpjax.solvers._svd import svd as svd

_MODULES = {
    "Ellipsoid": "_core.solution",
    "PartialGaps": "_partial_gaps",
    "Solution": "_core.solution",
    "certify": "_certify",
    "partial_gaps": "_partial_gaps",
    "with_entries": "_low_rank_plus_sparse",
}


def __getattr__(name: str) -> _Any:
    # Imported on first use: these need JAX, the table does not.
    if name in SOLVERS:
        return SOLVERS[name].solve
    if name not in _MODULES:
        raise AttributeError(f"module 'lpjax.solvers' has no attribute {name!r}")
    return getattr(_import_module(f"lpjax.solvers.{_MODULES[name]}"), name)
