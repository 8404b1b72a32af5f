"""The result of every solver."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax._repr import short_repr


class Ellipsoid(NamedTuple):
    """An ellipsoid xᵀMx ≤ 1 near the level set ‖Ax‖_p ≤ 1, M = V D² Vᵀ, with r = min(n, d).

    It defines the ‖·‖_p-SVD A = U D Vᵀ, U = A V D⁻¹, and satisfies lower·‖x‖_M ≤ ‖Ax‖_p ≤ upper·‖x‖_M for all x
    (up to the solver's tolerance). With row weights ω, ‖Ax‖_p stands for (Σ ω_i |a_iᵀx|^p)^{1/p}.

    Attributes:
        values: diagonal of D, descending, shape (r,); zero past the rank of A.
        vectors: V with orthonormal columns, shape (d, r).
        lower: largest known factor of the lower bound, a scalar; 1 for p ≤ 2.
        upper: smallest known factor of the upper bound, a scalar.
        weights: Lewis weights w, shape (n,), with Σw = rank A; None from solvers without them.
        log_volumes: log of the volume after every cut, relative to the first ellipsoid, shape (num_iters,), padded
            with its last value; None from solvers that do not cut.
    """

    values: Float[Array, "*batch r"]
    vectors: Float[Array, "*batch d r"]
    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    weights: Float[Array, "*batch n"] | None = None
    log_volumes: Float[Array, "*batch t"] | None = None

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def matrix(self) -> Float[Array, "*batch d d"]:
        """M, shape (d, d)."""
        scaled = self.vectors * self.values[..., None, :]
        return jnp.matmul(scaled, scaled.mT, precision="highest")


class Solution(NamedTuple):
    """A factorization `matrix ≈ left @ right`; a pytree.

    Attributes:
        left: shape (n, rank).
        right: shape (rank, d), with orthonormal rows; with a metric C, R C Rᵀ = I. If left would overflow or be
            subnormal, both factors share the scale of the matrix: the rows of right then have a power of two as their
            length instead of 1.
        objective: ℓp objective of `matrix − left @ right` that the solver's docstring names; it scales with the matrix.
            Infinite if it exceeds the dtype, though the factors are finite; and infinite, with factors of zero, if the
            input is not finite inside jit (outside, the solver raises before any work).
        num_iters: iterations done after the start; 0 for a direct method.
        converged: whether the tolerance was met, rather than the iteration limit.
        ellipsoid: `Ellipsoid` of a geometric solver, else None.
        lower_bound: lower bound of the objective over all pairs of this rank, valid despite rounding errors
            (docs/algorithms/certificate.md); it scales with the matrix. None from solvers without one.
    """

    left: Float[Array, "*batch n rank"]
    right: Float[Array, "*batch rank d"]
    objective: Scalar | Float[Array, "*batch"]
    num_iters: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    ellipsoid: Ellipsoid | None = None
    lower_bound: Scalar | Float[Array, "*batch"] | None = None

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def gap(self) -> Scalar | Float[Array, "*batch"] | None:
        """1 − lower_bound/objective, from 0 to 1: the largest possible relative decrease of the objective.

        0 means optimal, 1 that nothing is known. None without a lower bound.
        """
        return None if self.lower_bound is None else gap_of(self.objective, self.lower_bound)


def gap_of(objective: Array, lower_bound: Array) -> Array:
    """1 − lower_bound/objective, and 0 for an objective of 0."""
    return jnp.where(objective > 0, jnp.maximum(1 - lower_bound / jnp.where(objective > 0, objective, 1), 0), 0)
