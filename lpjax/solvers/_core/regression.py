"""Weighted least squares for one factor, given the other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lpjax._lapack import solve_definite


def regress(gram: Float[Array, "k k"], moment: Float[Array, "k d"], fallback: Float[Array, "k d"]) -> Array:
    """argmin over R of Σ ω_i ‖t_i − l_i R‖², from LᵀΩL and LᵀΩT, by Cholesky; `fallback` if that is not finite.

    The columns of L are nearly orthogonal, as images of approximately singular vectors. With them scaled to unit
    length, LᵀΩL is close to the identity. A ridge of rounding size keeps a singular one solvable.
    """
    diagonal = jnp.diagonal(gram)
    scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 0)
    k = gram.shape[0]
    correlation = gram * scale[:, None] * scale[None, :] + k * jnp.finfo(gram.dtype).eps * jnp.eye(k, dtype=gram.dtype)
    correlation = correlation + jnp.diag((scale == 0).astype(gram.dtype))
    right = scale[:, None] * solve_definite(correlation, scale[:, None] * moment)
    return jnp.where(jnp.all(jnp.isfinite(right)), right, fallback)


def regress_rows(
    design: Float[Array, "k d"], weights: Float[Array, "n d"], residual: Float[Array, "n d"]
) -> Float[Array, "n k"]:
    """For every row i, argmin over x of Σ_j w_ij (r_ij − Σ_l x_l design_lj)², the step of the factor with residual r.

    A ridge of rounding size keeps singular systems (a zero column, fewer than k entries with weight) solvable. As the
    unknown is a step, the ridge damps it without a bias.
    """
    k, d = design.shape
    n = weights.shape[0]
    eps = jnp.finfo(design.dtype).eps

    def solve(operands: tuple[Array, Array]) -> Array:
        weight, rest = operands
        weighted = design * weight[None, :]
        normal = weighted @ design.T
        right_side = weighted @ rest
        ridge = k * eps * jnp.trace(normal) + jnp.finfo(design.dtype).tiny
        step = solve_definite(normal + ridge * jnp.eye(k, dtype=design.dtype), right_side)
        return jnp.where(jnp.all(jnp.isfinite(step)), step, 0)

    # As many systems at a time as fit in the memory of one copy of the matrix.
    return jax.lax.map(solve, (weights, residual), batch_size=max(1, min(n, n * d // (k * k + k * d))))
