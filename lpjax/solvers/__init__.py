"""Solvers: one matrix in, a `Solution` out; pure, jittable, vmappable."""

from collections.abc import Callable

from lpjax.solvers._admm_entries import admm_entries as admm_entries
from lpjax.solvers._core.solution import Ellipsoid as Ellipsoid
from lpjax.solvers._core.solution import Solution as Solution
from lpjax.solvers._irls_entries import irls_entries as irls_entries
from lpjax.solvers._irls_rows import irls_rows as irls_rows
from lpjax.solvers._lewis import lewis as lewis
from lpjax.solvers._low_rank_plus_sparse import with_entries as with_entries
from lpjax.solvers._lowner import lowner as lowner
from lpjax.solvers._svd import svd as svd

SOLVERS: dict[str, Callable[..., Solution]] = {
    "svd": svd,
    "lewis": lewis,
    "lowner": lowner,
    "irls_rows": irls_rows,
    "irls_entries": irls_entries,
    "admm_entries": admm_entries,
}
