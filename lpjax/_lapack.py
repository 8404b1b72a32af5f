"""LAPACK's factorizations; on a CPU, the matrices of a batch are factored one after another.

jaxlib divides a batch among the threads of the pool that the call itself runs on, and waits there. If as many such
calls as threads run at once, in one program or several, they deadlock (seen with jaxlib 0.10.2: two batched QRs on two
cores). Accelerators factor a batch in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _in_turns(function: _Function) -> _Function:
    sequential: Any = custom_vmap(function)

    @sequential.def_vmap
    def batched(axis_size: int, in_batched: list[bool], *arrays: Array) -> tuple[Any, Any]:
        if not any(in_batched):
            out = sequential(*arrays)
            return out, jax.tree.map(lambda _: False, out)
        stacks = [
            array if is_stack else jnp.broadcast_to(array, (axis_size, *array.shape))
            for array, is_stack in zip(arrays, in_batched, strict=True)
        ]
        out = jax.lax.platform_dependent(
            *stacks,
            cpu=lambda *stacks: jax.lax.map(lambda slices: sequential(*slices), stacks),
            default=jax.vmap(function),
        )
        return out, jax.tree.map(lambda _: True, out)

    # `custom_vmap` has no reverse mode, so the function itself is differentiated, with batches in one call.
    differentiable: Any = jax.custom_jvp(lambda *arrays: sequential(*arrays))
    differentiable.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return differentiable


@_in_turns
def qr(matrix: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, "k d"]]:
    """Q and R, k = min(n, d)."""
    decomposition = jnp.linalg.qr(matrix)
    return decomposition[0], decomposition[1]


@_in_turns
def qr_triangle(matrix: Float[Array, "n d"]) -> Float[Array, "k d"]:
    """R alone."""
    return jnp.linalg.qr(matrix, mode="r")


@_in_turns
def complete_basis(matrix: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """An orthonormal basis: Q of the columns, then a basis of the orthogonal complement."""
    return jnp.linalg.qr(matrix, mode="complete")[0]


@_in_turns
def eigh(symmetric: Float[Array, "d d"]) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Eigenvalues, ascending, and eigenvectors as columns."""
    decomposition = jnp.linalg.eigh(symmetric)
    return decomposition[0], decomposition[1]


@_in_turns
def eigenvalues(symmetric: Float[Array, "d d"]) -> Float[Array, " d"]:
    """Eigenvalues alone, ascending: a fifth of the time of `eigh`."""
    return jnp.linalg.eigvalsh(symmetric)


@_in_turns
def singular_values(matrix: Float[Array, "n n"]) -> Float[Array, " n"]:
    """Singular values alone, descending, of a square matrix."""
    return jnp.linalg.svd(matrix, compute_uv=False)


@_in_turns
def svd(matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Float[Array, " n"], Float[Array, "n n"]]:
    """U, singular values, descending, and Vᵀ of a square matrix."""
    decomposition = jnp.linalg.svd(matrix, full_matrices=False)  # the same, but differentiable in every version of JAX
    return decomposition[0], decomposition[1], decomposition[2]


@_in_turns
def triangle(definite: Float[Array, "d d"]) -> tuple[Float[Array, "d d"], Float[Array, "d d"]]:
    """R of the Cholesky decomposition RᵀR, and its inverse; NaN if the matrix is not positive definite."""
    lower = jnp.linalg.cholesky(definite)
    inverse = jax.scipy.linalg.solve_triangular(lower, jnp.eye(lower.shape[0], dtype=lower.dtype), lower=True)
    return lower.T, inverse.T


@_in_turns
def solve_definite(definite: Float[Array, "k k"], right: Float[Array, "k ..."]) -> Float[Array, "k ..."]:
    """X with definite @ X = right, by Cholesky."""
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(definite), right)


def descending_eigh(symmetric: Float[Array, "d d"]) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Eigenvalues, descending and clipped at 0, and eigenvectors as columns."""
    values, vectors = eigh(symmetric)
    return jnp.maximum(values[::-1], 0), vectors[:, ::-1]


def with_pseudo_inverse(vectors: Float[Array, "d d"], values: Float[Array, " d"]) -> tuple[Array, Array]:
    """V diag(values) Vᵀ and its pseudo-inverse, for values that are 0 or well above it."""
    inverse = jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1), 0)

    def matrix(diagonal: Array) -> Array:
        return jnp.matmul(vectors * diagonal[None, :], vectors.T, precision="highest")

    return matrix(values), matrix(inverse)
