"""Right singular vectors of tall matrices: by the Gram matrix where that is accurate, by QR where it is not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gram(matrix: Float[Array, "n d"], weights: Float[Array, " n"] | None = None) -> Float[Array, "d d"]:
    """Aᵀ diag(w) A."""
    weighted = matrix if weights is None else matrix * weights[:, None]
    return jnp.matmul(weighted.T, matrix, precision="highest")


def descending_eigh(symmetric: Float[Array, "d d"]) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Eigenvalues, largest first and not below zero, and eigenvectors as columns."""
    values, vectors = jnp.linalg.eigh(symmetric)
    return jnp.maximum(values[::-1], 0), vectors[:, ::-1]


def right_singular(matrix: Float[Array, "n d"], tail_start: int) -> tuple[Float[Array, " r"], Float[Array, "d r"]]:
    """Singular values, descending, and right singular vectors; r = min(n, d).

    Eigenvectors of AᵀA cost a fifth of LAPACK's gesdd, but rounding perturbs AᵀA by about eps·σ₁², and what lies
    below drowns. They are used only where the mean of σ_i², i ≥ `tail_start`, stands far enough above that; the
    loss of the tail is then second order in eps·σ₁²/σ², below 1e-6 (f32) or 1e-12 (f64) of it. Elsewhere QR first,
    then the SVD of R: backward stable like gesdd, without forming n × d singular vectors.

    Args:
        matrix: shape (n, d), entries of order one.
        tail_start: first index (from 0) of the singular values that must be told from rounding.
    """
    n, d = matrix.shape
    if n < d:
        # Left vectors of A are right vectors of Aᵀ. QR keeps V orthonormal past the rank, where AᵀU/σ is noise,
        # and keeps the span of the leading columns.
        _, left = right_singular(matrix.T, tail_start)
        vectors, triangle = jnp.linalg.qr(jnp.matmul(matrix.T, left, precision="highest"))
        return jnp.abs(jnp.diagonal(triangle)), vectors

    eps = jnp.finfo(matrix.dtype).eps
    values, vectors = descending_eigh(gram(matrix))
    tail = values[min(tail_start, d - 1) :]
    accurate = (tail_start < d) & (eps**0.6 * values[0] <= jnp.mean(tail))

    def by_gram() -> tuple[Array, Array]:
        return jnp.sqrt(values), vectors

    def by_qr() -> tuple[Array, Array]:
        triangle = jnp.linalg.qr(matrix, mode="r")
        _, singular, transposed = jnp.linalg.svd(triangle)
        return singular, transposed.T

    return jax.lax.cond(accurate, by_gram, by_qr)
