"""Continuation in the exponent: a large p, or ∞, is reached in stages, each started from the one before."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Scalar

_FIRST = 4.0
_LAST = 1024.0  # the ℓp norm of m equal numbers is then m^{1/1024} times the largest: 0.7 % more for 1000
_TOLERANCE = 0.01  # relative tolerance of a stage, times its q: norms at q and 2q differ by a factor 1 + O(1/q)


def first_exponent(p: Scalar) -> Scalar:
    """q of the first stage: p itself up to 4."""
    return jnp.minimum(p, _FIRST)


def next_exponent(q: Scalar, p: Scalar) -> Scalar:
    """q of the next stage."""
    return jnp.minimum(2 * q, jnp.minimum(p, _LAST))


def is_last(q: Scalar, p: Scalar) -> Bool[Array, ""]:
    """Whether no stage follows."""
    return q >= jnp.minimum(p, _LAST)


def stage_tolerance(q: Scalar, p: Scalar, tol: Scalar) -> Scalar:
    """Relative decrease of the objective per step below which the stage at q ends."""
    return jnp.where(is_last(q, p), tol, jnp.maximum(tol, _TOLERANCE / q))
