"""Rounding with error feedback under metrics of rows and columns.

With H = Uᵀ diag(d) U and G = Vᵀ diag(e) V (`Triangle`) and E = W − Ŵ,

    ‖H^{1/2} E G^{1/2}‖² = Σ_ij d_i e_j (U E Vᵀ)_ij².

Entry (i, j) of U E Vᵀ is E_ij plus terms of entries further down or further right. So entries are rounded from the last
to the first, and each compensates for the errors of later ones: Ŵ_ij is W_ij plus those terms, rounded, which leaves
at most half a step in every (U E Vᵀ)_ij. With V = I this is GPTQ (Frantar et al., arXiv 2210.17323), which equals LDLQ
(Chee et al., arXiv 2307.13304). With both metrics it is the objective of YAQA (Tseng et al., arXiv 2505.22988), which
iterates; here it is minimised entry by entry.

Entries on an antidiagonal i + j = const of a tile do not depend on each other and are rounded together. Tiles are
rounded one after another; other tiles contribute by two matrix products.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lpjax._check import check_all_finite
from lpjax.rounding.triangle import Triangle

_TILE = 64


class Lattice(NamedTuple):
    """The values that entries may take: integers from `least` to `most` times steps.

    Attributes:
        steps: step of each entry, shape (n, d); entries with step 0 become 0.
        least, most: smallest and largest integer.
    """

    steps: Float[np.ndarray, "n d"]
    least: int = -(2**15)
    most: int = 2**15 - 1


def round_with_feedback(
    matrix: Float[Array | np.ndarray, "n d"], lattice: Lattice, rows: Triangle, columns: Triangle
) -> np.ndarray:
    """Round a matrix to integers (n, d), to be multiplied by the lattice's steps.

    Args:
        matrix: W, shape (n, d).
        lattice: allowed values.
        rows, columns: triangles of H and G.

    Raises:
        ValueError: the matrix is not finite.
    """
    matrix = np.asarray(matrix, np.float32)
    check_all_finite("`matrix`", np.all(np.isfinite(matrix)))
    steps = np.asarray(lattice.steps, np.float32)
    bounds = lattice.least, lattice.most
    if rows.upper is None and columns.upper is None:
        codes = _rounded(np, matrix, steps, bounds)
    elif rows.upper is None:
        codes = np.asarray(_by_columns(matrix, steps, bounds, _off_diagonal(columns)))
    elif columns.upper is None:
        codes = np.asarray(_by_columns(matrix.T, steps.T, bounds, _off_diagonal(rows))).T
    else:
        codes = _by_tiles(matrix, steps, bounds, _off_diagonal(rows), _off_diagonal(columns))
    return codes.astype(np.int32)


def _off_diagonal(triangle: Triangle) -> np.ndarray:
    assert triangle.upper is not None
    return np.triu(triangle.upper, 1).astype(np.float32)


def _rounded(xp: Any, target: Any, steps: Any, bounds: tuple[Any, Any]) -> Any:
    """The nearest allowed integer of each entry."""
    whole = xp.round(target / xp.where(steps > 0, steps, 1))
    return xp.where(steps > 0, xp.clip(whole, *bounds), 0)


@functools.partial(jax.jit, static_argnames="bounds")
def _by_columns(matrix: Array, steps: Array, bounds: tuple[int, int], upper: Array) -> Array:
    """Independent rows: columns are rounded from the last to the first, all rows at once."""

    def column(errors: Array, j: Array) -> tuple[Array, Array]:
        terms = jnp.matmul(errors, upper[j], precision="highest")
        codes = _rounded(jnp, matrix[:, j] + terms, steps[:, j], bounds)
        return errors.at[:, j].set(matrix[:, j] - codes * steps[:, j]), codes

    matrix, steps = jnp.asarray(matrix), jnp.asarray(steps)
    order = jnp.arange(matrix.shape[1])
    _, codes = lax.scan(column, jnp.zeros_like(matrix), order, reverse=True)
    return codes.T


def _by_tiles(
    matrix: np.ndarray, steps: np.ndarray, bounds: tuple[int, int], above: np.ndarray, beside: np.ndarray
) -> np.ndarray:
    """Entries depend on all those below and to the right; `above` and `beside` are U and V without diagonals."""
    n, d = matrix.shape
    padding = [(0, -n % _TILE), (0, -d % _TILE)]
    parts = np.pad(matrix, padding), np.pad(steps, padding)
    above, beside = (np.pad(side, (0, -len(side) % _TILE)) for side in (above, beside))
    return np.asarray(_tiles(*parts, bounds, above, beside))[:n, :d]


@functools.partial(jax.jit, static_argnames="bounds")
def _tiles(matrix: Array, steps: Array, bounds: tuple[int, int], above: Array, beside: Array) -> Array:
    n, d = (size // _TILE for size in matrix.shape)

    def tile(t: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # `errors` is E, and `partial` is U E; both are 0 for tiles that are not rounded yet.
        errors, partial, _ = state
        i, j = (n - 1 - t // d) * _TILE, (d - 1 - t % d) * _TILE
        at = functools.partial(lax.dynamic_slice, slice_sizes=(_TILE, _TILE))
        band, strip = lax.dynamic_slice_in_dim(above, i, _TILE), lax.dynamic_slice_in_dim(beside, j, _TILE)
        below = jnp.matmul(band, lax.dynamic_slice_in_dim(errors, j, _TILE, axis=1), precision="highest")
        right = jnp.matmul(lax.dynamic_slice_in_dim(partial, i, _TILE), strip.T, precision="highest")
        tiles = _tile(
            at(matrix, (i, j)), at(steps, (i, j)), bounds, at(above, (i, i)), at(beside, (j, j)), below, right
        )
        return tuple(lax.dynamic_update_slice(whole, part, (i, j)) for whole, part in zip(state, tiles, strict=True))  # pyright: ignore[reportReturnType]

    zeros = jnp.zeros_like(matrix)
    return lax.fori_loop(0, n * d, tile, (zeros, zeros, zeros))[2]


def _tile(
    matrix: Array, steps: Array, bounds: tuple[int, int], above: Array, beside: Array, below: Array, right: Array
) -> tuple[Array, Array, Array]:
    """E, U E and the codes of a tile, to which other tiles contribute `below` to U E and `right` to U E Vᵀ."""
    rows = jnp.arange(_TILE)

    def diagonal(t: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        errors, partial, _ = state  # transposed, so that an antidiagonal's columns are gathered as rows
        j = 2 * _TILE - 2 - t - rows
        inside = (j >= 0) & (j < _TILE)
        at = jnp.clip(j, 0, _TILE - 1)
        entry = (rows, at)
        mine = below[entry] + jnp.sum(above * errors[at], axis=1)
        terms = right[entry] + mine + jnp.sum(beside[at] * partial.T, axis=1)
        target, step = matrix[entry] + terms, steps[entry]
        code = _rounded(jnp, target, step, bounds)
        error = matrix[entry] - code * step
        place = (jnp.where(inside, at, _TILE), rows)
        return tuple(
            whole.at[place].set(value, mode="drop")
            for whole, value in zip(state, (error, mine + error, code), strict=True)
        )  # pyright: ignore[reportReturnType]

    zeros = jnp.zeros_like(matrix)
    errors, partial, codes = lax.fori_loop(0, 2 * _TILE - 1, diagonal, (zeros, zeros, zeros))
    return errors.T, partial.T, codes.T
