"""What every solver returns."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax._repr import short_repr


class Ellipsoid(NamedTuple):
    """An ellipsoid xᵀMx ≤ 1 around the level set ‖Ax‖_p ≤ 1, M = V D² Vᵀ, with r = min(n, d).

    It is the ‖·‖_p-SVD A = U D Vᵀ, U = A V D⁻¹, and comes with lower·‖x‖_M ≤ ‖Ax‖_p ≤ upper·‖x‖_M for all x
    (up to the solver's tolerance). With row weights ω, ‖Ax‖_p stands for (Σ ω_i |a_iᵀx|^p)^{1/p}.

    Attributes:
        values: D, descending, shape (r,); zero past the rank of A.
        vectors: V with orthonormal columns, shape (d, r).
        lower: largest known factor of the lower side; 1 for p ≤ 2.
        upper: smallest known factor of the upper side.
        weights: Lewis weights w, shape (n,), with Σw = rank A; None from a solver that has none.
        log_volumes: log of the volume over that of the first ellipsoid after every cut, shape (num_iters,), padded
            with its last value; None from a solver that does not cut.
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
        right: shape (rank, d); rows orthonormal, in the metric's inverse if one was given. Near either end of the
            dtype's range left alone would overflow or be subnormal: then right shares the scale of the matrix, and its
            rows have one length, a power of two, instead of 1.
        objective: the ℓp objective of `matrix − left @ right` that the solver's docstring names; it scales with
            the matrix. Infinite if it exceeds the dtype, though the factors are finite; and infinite, with factors of
            zero, if the input was not finite (inside jit nothing can be raised; called directly, the solver raises
            before any work).
        num_iters: iterations done after the start; 0 for a direct method.
        converged: whether the tolerance was met, rather than the iteration limit.
        ellipsoid: what geometric solvers find, else None.
        lower_bound: no pair of this rank has a smaller objective: a bound of the global optimum, lowered so that
            rounding errors do not invalidate it (docs/algorithms/certificate.md). It scales with the matrix. None from
            a solver that has none.
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
        """1 − lower_bound/objective, from 0 to 1: the optimum is smaller than `objective` by no larger share.

        0 means optimal, and 1 that nothing is known. None without a lower bound.
        """
        return None if self.lower_bound is None else gap_of(self.objective, self.lower_bound)


def gap_of(objective: Array, lower_bound: Array) -> Array:
    """1 − lower_bound/objective, and 0 for an objective of 0."""
    return jnp.where(objective > 0, jnp.maximum(1 - lower_bound / jnp.where(objective > 0, objective, 1), 0), 0)
