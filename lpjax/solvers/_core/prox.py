"""The proximal operator of |·|^p."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar


def prox(y: Array, p: Scalar, rho: Scalar) -> Array:
    """argmin over s of |s|^p + ρ/2·(s − y)², entrywise, for p in [1, 2].

    Soft threshold at p = 1 and a scaling at p = 2. Between, s = y·e^u with e^u + e^{κ + (p−1)u} = 1 and
    e^κ = (p/ρ)·|y|^{p−2}. The logarithm of the left side is convex in u with slopes in [p − 1, 1]: Newton
    from the right of the root descends to it and needs no safeguard, however small y, ρ or p − 1. The result
    is right to a few eps of |y|; where |s| is much smaller than |y| it is a (p − 1)-th root, and its own
    relative error is of order eps/(p − 1).
    """

    def soft(y: Array) -> Array:
        return jnp.sign(y) * jnp.maximum(jnp.abs(y) - 1 / rho, 0)

    def shrink(y: Array) -> Array:
        return y * (rho / (rho + 2))

    def newton(y: Array) -> Array:
        finfo = jnp.finfo(y.dtype)
        log_y = jnp.log(jnp.maximum(jnp.abs(y), finfo.tiny))
        kappa = jnp.log(p / rho) + (p - 2) * log_y
        slope = jnp.maximum(p - 1, finfo.eps)

        def improve(_: Array, u: Array) -> Array:
            second = kappa + (p - 1) * u
            # The smaller of the two terms relative to the larger, so that no exponential overflows.
            share = jnp.exp(-jnp.abs(u - second))
            value = jnp.maximum(u, second) + jnp.log1p(share)
            large, small = jnp.where(u > second, 1, p - 1), jnp.where(u > second, p - 1, 1)
            return u - value * (1 + share) / (large + share * small)

        # Only κ and p enter: the number of steps that the worst κ takes was found by search, over p − 1 from
        # eps to 1, and grows with log(1/(p − 1)).
        steps = jnp.ceil((2 if finfo.bits == 32 else 4) - 2 * jnp.log10(slope)).astype(jnp.int32)
        start = jnp.minimum(0, -kappa / slope)
        return y * jnp.exp(jax.lax.fori_loop(0, steps, improve, start))

    return jax.lax.switch(jnp.where(p == 1, 0, jnp.where(p == 2, 1, 2)), [soft, shrink, newton], y)
