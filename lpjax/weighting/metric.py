"""Metrics of a matrix's rows and columns, and their roots: ‖A‖ under metrics BᵀB and DᵀD is ‖B A Dᵀ‖."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lpjax._lapack import descending_eigh, triangle, with_pseudo_inverse


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metric:
    """(C / mean eigenvalue of C + shrinkage·I)^power, for C symmetric and positive semidefinite.

    A pytree, batched by a leading axis of base and shrinkage.

    Attributes:
        base: C, shape (m, m), or its diagonal, shape (m,).
        shrinkage: multiple of the mean eigenvalue that is added, a scalar.
        power: exponent; static.
    """

    base: Any
    shrinkage: Any
    power: float = dataclasses.field(metadata={"static": True})


class Metrics(NamedTuple):
    """Metrics of a matrix's rows and columns; None for the identity."""

    rows: Metric | None
    columns: Metric | None


UNWEIGHTED = Metrics(None, None)

Roots = tuple[Array, Array]
"""A root B of a metric M, BᵀB = M, and its (pseudo-)inverse, as matrices or diagonals."""


def shrunk(metric: Metric, dtype: Any, xp: Any = jnp) -> Any:
    """C / mean eigenvalue of C + shrinkage·I for a matrix C, in JAX or, with xp=numpy, on the host."""
    base, shrinkage = (xp.asarray(part).astype(dtype) for part in (metric.base, metric.shrinkage))
    mean = xp.trace(base) / base.shape[0]
    return base / xp.where(mean > 0, mean, 1) + shrinkage * xp.eye(base.shape[0], dtype=dtype)


def symmetric_roots(metric: Metric, dtype: Any) -> Roots:
    """M^{1/2} and M^{−1/2}, as matrices, or as diagonals if the base is one.

    Computed from eigenvalues, as a Cholesky factor may not exist. Eigenvalues are at least the shrinkage, despite
    rounding; without shrinkage, the second root is the pseudo-inverse if M is singular.
    """
    base, shrinkage = (jnp.asarray(part).astype(dtype) for part in (metric.base, metric.shrinkage))
    values, vectors = (base, None) if base.ndim == 1 else descending_eigh(base)
    mean = jnp.mean(values)
    values = jnp.maximum(values / jnp.where(mean > 0, mean, 1), 0) + shrinkage
    rounding = jnp.finfo(dtype).eps * (0 if vectors is None else values.shape[0]) * jnp.max(values)
    known = values > jnp.where(shrinkage > 0, 0, rounding)
    half = jnp.where(known, jnp.where(known, values, 1) ** (metric.power / 2), 0)
    if vectors is None:
        return half, jnp.where(known, 1 / jnp.where(known, half, 1), 0)
    return with_pseudo_inverse(vectors, half)


def roots_of_batch(metric: Metric, dtype: Any, *, symmetric: bool) -> Roots:
    """Roots of a batch of metrics along a leading axis: `symmetric_roots`, or the cheapest ones."""
    if symmetric:
        return jax.vmap(lambda metric: symmetric_roots(metric, dtype))(metric)
    return _any_roots(metric, dtype)


def _any_roots(metric: Metric, dtype: Any) -> Roots:
    """Cholesky factors and their inverses, much faster than eigenvectors; `symmetric_roots` for diagonals, for a power
    other than 1, and if a metric of the batch is singular up to rounding."""
    symmetric = functools.partial(roots_of_batch, dtype=dtype, symmetric=True)
    if metric.base.ndim < 3 or metric.power != 1:
        return symmetric(metric)
    roots, sound = jax.vmap(lambda metric: _triangles(metric, dtype))(metric)
    return jax.lax.cond(jnp.all(sound), lambda _: roots, symmetric, metric)


def _triangles(metric: Metric, dtype: Any) -> tuple[Roots, Array]:
    """Roots by Cholesky, and whether they are accurate enough."""
    shrinkage = jnp.asarray(metric.shrinkage).astype(dtype)
    roots = triangle(shrunk(metric, dtype))
    pivots = jnp.diagonal(roots[0]) ** 2  # at least the shrinkage up to rounding, or NaN
    return roots, (shrinkage > 0) & jnp.all(pivots >= shrinkage / 2)


def on_the_left(root: Array | None, matrix: Any) -> Any:
    """The product of a root, given as a matrix, a diagonal or None (identity), with a matrix."""
    if root is None:
        return matrix
    return root[:, None] * matrix if root.ndim == 1 else jnp.matmul(root, matrix, precision="highest")


def on_both_sides(halves: Sequence[Array | None], matrix: Any) -> Any:
    """B A Dᵀ for roots B and D of the metrics of rows and columns; None for the identity."""
    return on_the_left(halves[1], on_the_left(halves[0], matrix).T).T
