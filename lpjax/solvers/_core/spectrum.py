"""Right singular vectors of tall matrices: by the Gram matrix if that is accurate, else by QR."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lpjax._lapack import descending_eigh, qr, qr_triangle, svd
from lpjax.solvers._core.rows import Rows, fold_rows

_PANEL = 128  # smallest height of a panel: thinner ones cost more than they save

Panels = tuple[Float[Array, "_ _"], ...]


def no_gram(d: int, dtype: Any) -> Panels:
    """Zeros for `add_gram` to add to: the rows of a d × d matrix in up to four panels, each from its diagonal on.

    A Gram matrix is symmetric: leaving out the blocks below the diagonal saves up to 3/8 of the products and of the
    exchange between devices.
    """
    height = math.ceil(d / min(max(d // _PANEL, 1), 4))
    return tuple(jnp.zeros((min(height, d - start), d - start), dtype) for start in range(0, d, height))


def add_gram(total: Panels, matrix: Float[Array, "m d"], weights: Float[Array, " m"]) -> Panels:
    """total + Aᵀ diag(w) A."""
    weighted, d = (matrix * weights[:, None]).T, matrix.shape[1]

    def add(panel: Array) -> Array:
        height, width = panel.shape
        start = d - width
        return panel + weighted[start : start + height] @ matrix[:, start:]

    return tuple(add(panel) for panel in total)


def whole_gram(total: Panels) -> Float[Array, "d d"]:
    """The whole matrix of the panels, exactly symmetric."""
    d = total[0].shape[1]
    upper = jnp.concatenate([jnp.pad(panel, ((0, 0), (d - panel.shape[1], 0))) for panel in total])
    return jnp.triu(upper) + jnp.triu(upper, 1).T


def gram_of_rows(rows: Rows) -> Float[Array, "d d"]:
    """AᵀA."""

    def block(total: Panels, piece: Array, weights: Array) -> tuple[Panels]:
        return (add_gram(total, piece, weights),)

    return whole_gram(fold_rows(block, rows, no_gram(rows.shape[1], rows.dtype), None)[0])


def triangle_of_rows(rows: Rows) -> Float[Array, "d d"]:
    """R of A = QR for a tall matrix, up to signs: block by block, the R of the last R stacked on the next block.

    Each device computes an R, then the R of all of these: TSQR (Demmel et al., arXiv 0808.2664) in one round, d²
    numbers from each device.
    """

    def block(total: Array, piece: Array, weights: Array) -> tuple[Array]:
        # Flattened, to have one layout only: else XLA copies the whole matrix to LAPACK's column order.
        flat = jax.lax.optimization_barrier(jnp.where(weights[:, None] > 0, piece, 0).reshape(-1))
        return (qr_triangle(jnp.concatenate([total, flat.reshape(piece.shape)])),)

    d = rows.shape[1]
    own = dataclasses.replace(rows, axes=())  # triangles are not summed
    triangle = fold_rows(block, own, jnp.zeros((d, d), rows.dtype), None)[0]
    if not rows.axes:
        return triangle
    return qr_triangle(jax.lax.all_gather(triangle, rows.axes, tiled=True))


def right_singular(
    rows: Rows, tail_start: int, count: int | None = None
) -> tuple[Float[Array, " r"], Float[Array, "d r"]]:
    """The first `count` singular values, descending, and right singular vectors; r = min(n, d) of them by default.

    Eigenvectors of AᵀA cost a fifth of LAPACK's gesdd, but rounding perturbs AᵀA by about eps·σ₁², and smaller
    eigenvalues are lost. They are used only if the mean of σ_i², i ≥ `tail_start`, is far enough above that; the
    relative error of the tail is then of second order in eps·σ₁²/σ², below 1e-6 (f32) or 1e-12 (f64). Otherwise the
    SVD of R from a QR decomposition is used: backward stable like gesdd, without forming n × d singular vectors.

    Args:
        rows: the matrix, its entries of order one.
        tail_start: first index (from 0) of the singular values that must stand out from rounding.
        count: r.
    """
    n, d = rows.shape
    if n < d:
        # Left vectors of A are right vectors of Aᵀ. QR keeps V orthonormal past the rank, where AᵀU/σ is noise,
        # and preserves the spans of leading columns.
        transposed = rows.read().T
        _, left = right_singular(Rows(transposed), tail_start, count)
        vectors, triangle = qr(transposed @ left)
        return jnp.abs(jnp.diagonal(triangle)), vectors

    eps = jnp.finfo(rows.dtype).eps
    values, vectors = descending_eigh(gram_of_rows(rows))
    tail = values[min(tail_start, d - 1) :]
    accurate = (tail_start < d) & (eps**0.6 * values[0] <= jnp.mean(tail))

    def by_gram() -> tuple[Array, Array]:
        return jnp.sqrt(values[:count]), vectors[:, :count]

    def by_qr() -> tuple[Array, Array]:
        _, singular, transposed = svd(triangle_of_rows(rows))
        return singular[:count], transposed[:count].T

    return jax.lax.cond(accurate, by_gram, by_qr)
