"""Products of arrays in bfloat16, by the processor's own instructions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def product(x: Float[Array, "*batch n"], y: Any) -> Array:
    """`x @ y` for a vector, a matrix or a stack of matrices, of any kind.

    On a CPU, products of bfloat16 are summed in float32 and then rounded, as other devices do by themselves: XLA's
    kernels for bfloat16 there (AMX, AVX-512 BF16) return float32. For a result in bfloat16, XLA would convert the
    operands to float32 first, which takes longer than a product in float32.
    """
    if isinstance(y, jax.Array) and x.dtype == y.dtype == jnp.bfloat16:
        return jax.lax.platform_dependent(x, y, cpu=_summed_in_float32, default=jnp.matmul)
    return x @ y


def _summed_in_float32(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32).astype(x.dtype)
