"""Shared by the geometric solvers: coordinates in which AᵀA is the identity, and truncation to rank k."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lpjax._lapack import svd
from lpjax._powers import roots
from lpjax.objectives import Over
from lpjax.solvers._core.problem import Scaled, project
from lpjax.solvers._core.rows import Rows
from lpjax.solvers._core.solution import Ellipsoid, Solution
from lpjax.solvers._core.spectrum import right_singular


class Coordinates(NamedTuple):
    """Rows B = diag(ω^{1/p}) A of a problem, and the whitening T = V diag(1/s) of B = Q diag(s) Vᵀ; r = min(n, d).

    The ellipsoids of B are those of Q = BT under a linear map, and as QᵀQ = I everything computed from Q is well
    conditioned whatever A is. Past the rank of A, columns of T are zero and `active` is false.
    """

    rows: Rows
    whitening: Float[Array, "d r"]
    singular_values: Float[Array, " r"]
    vectors: Float[Array, "d r"]
    active: Bool[Array, " r"]

    @property
    def dimension(self) -> Array:
        """rank A, a floating scalar, at least 1."""
        return jnp.maximum(jnp.sum(self.active), 1).astype(self.rows.dtype)


def coordinates(problem: Scaled, *, for_start: bool = False) -> Coordinates:
    """Coordinates of a problem; with `for_start`, cheaper ones that are good enough for a start.

    These come from the Gram matrix if it is accurate up to the rank k, and leave out directions that may be rounding
    errors of AᵀA. A QR decomposition would resolve them, but costs more than a start is worth.
    """
    weights = problem.row_weights
    factors = None
    if weights is not None:
        factors = roots(weights, problem.p) if problem.high else weights ** (1 / problem.p)
    rows = dataclasses.replace(problem.rows, row_factors=factors)
    smaller, larger = sorted(rows.shape)
    singular, vectors = right_singular(rows, problem.rank if for_start else smaller - 1)
    eps = float(jnp.finfo(rows.dtype).eps)
    active = singular > (math.sqrt(smaller * eps) if for_start else larger * eps) * singular[0]
    inverse = jnp.where(active, 1 / jnp.where(active, singular, 1), 0)
    whitening = vectors * inverse[None, :]
    return Coordinates(rows, whitening, jnp.where(active, singular, 0), vectors, active)


def axes(coords: Coordinates, factor: Float[Array, "r r"]) -> tuple[Float[Array, " r"], Float[Array, "d r"]]:
    """D and V of M = V D² Vᵀ for the metric FᵀF in coordinates, by the SVD of F diag(s): D is never squared."""
    _, values, transposed = svd(factor * coords.singular_values[None, :])
    return values, coords.vectors @ transposed.T


def truncate(problem: Scaled, over: Over, ellipsoid: Ellipsoid, num_iters: Array, converged: Array) -> Solution:
    """A_k = A V_k V_kᵀ: left = A V_k, right = V_kᵀ."""
    right = ellipsoid.vectors[:, : problem.rank].T
    left, value = project(problem, right, over)
    return Solution(left, right, value, num_iters, converged, ellipsoid)
