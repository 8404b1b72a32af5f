"""The proximal operators of |·|^p, and of the largest magnitude."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar


def prox(y: Array, p: Scalar, rho: Scalar) -> Array:
    """argmin over s of |s|^p + ρ/2·(s − y)², entrywise, for p in [1, 2].

    Soft threshold at p = 1 and a scaling at p = 2; at p = 4/3 and 3/2 the root of a cubic and of a quadratic equation
    in x = |s|^{p−1}; otherwise s = y·e^u by `_newton`. The error is a few eps of |y|. If |s| ≪ |y|, s is a (p − 1)-th
    root, with a relative error of order eps/(p − 1).
    """

    def soft(y: Array) -> Array:
        return jnp.sign(y) * jnp.maximum(jnp.abs(y) - 1 / rho, 0)

    def shrink(y: Array) -> Array:
        return y * (rho / (rho + 2))

    def cubic(y: Array) -> Array:
        return jnp.sign(y) * _cubic_root(4 / 3 / rho, jnp.abs(y)) ** 3

    def quadratic(y: Array) -> Array:
        linear = 1.5 / rho
        return jnp.sign(y) * (2 * jnp.abs(y) / (linear + jnp.sqrt(linear**2 + 4 * jnp.abs(y)))) ** 2

    def newton(y: Array) -> Array:
        finfo = jnp.finfo(y.dtype)
        slope = jnp.maximum(p - 1, finfo.eps)
        # The iteration depends on κ and p alone. The number of steps for the worst κ was found by search over p − 1
        # from eps to 1, and grows with log(1/(p − 1)).
        steps = jnp.ceil((2 if finfo.bits == 32 else 4) - 2 * jnp.log10(slope)).astype(jnp.int32)
        return _newton(y, p, rho, slope, steps)

    known = p == jnp.asarray([1, 4 / 3, 3 / 2, 2], p.dtype)
    form = jnp.where(jnp.any(known), jnp.argmax(known), 4)
    return jax.lax.switch(form, [soft, cubic, quadratic, shrink, newton], y)


def _cubic_root(linear: Scalar, y: Array) -> Array:
    """x with x³ + linear·x = y ≥ 0, by the hyperbolic form of Cardano's root, which has no cancellation."""
    root = jnp.sqrt(linear / 3)
    x = 2 * root * jnp.sinh(jnp.arcsinh(1.5 * y / (linear * root)) / 3)
    return (2 * x**3 + y) / (3 * x**2 + linear)  # a Newton step corrects rounding errors of a large angle


def prox_above_two(y: Array, p: Scalar, rho: Scalar) -> Array:
    """argmin over s of |s|^p + ρ/2·(s − y)², entrywise, for finite p > 2.

    The root of a quadratic equation at p = 3 and of a cubic one at p = 4; else by `_newton`.
    """

    def quadratic(y: Array) -> Array:
        return 2 * y / (1 + jnp.sqrt(1 + 12 / rho * jnp.abs(y)))

    def cubic(y: Array) -> Array:
        return jnp.sign(y) * _cubic_root(rho / 4, rho / 4 * jnp.abs(y))

    def newton(y: Array) -> Array:
        # The number of steps for the worst κ, found by search over p from 2 to 10⁵.
        least = 3 if jnp.finfo(y.dtype).bits == 32 else 5
        return _newton(y, p, rho, p - 1, jnp.ceil(least + 0.6 * jnp.log2(p - 1)).astype(jnp.int32))

    return jax.lax.switch(jnp.where(p == 3, 0, jnp.where(p == 4, 1, 2)), [quadratic, cubic, newton], y)


def _newton(y: Array, p: Scalar, rho: Scalar, slope: Scalar, steps: Array) -> Array:
    """s = y·e^u with e^u + e^{κ + (p−1)u} = 1 and e^κ = (p/ρ)·|y|^{p−2}, the equation p|s|^{p−1} + ρ(|s| − |y|) = 0.

    The logarithm of the left side is convex in u with slopes between 1 and p − 1, so Newton's iteration from the right
    of the root descends to it without a safeguard, for any y, ρ and p.

    Args:
        slope: p − 1, at least eps.
        steps: number of Newton steps.
    """
    log_y = jnp.log(jnp.maximum(jnp.abs(y), jnp.finfo(y.dtype).tiny))
    kappa = jnp.log(p / rho) + (p - 2) * log_y

    def improve(_: Array, u: Array) -> Array:
        second = kappa + (p - 1) * u
        # The ratio of the smaller to the larger term, so that no exponential overflows.
        share = jnp.exp(-jnp.abs(u - second))
        value = jnp.maximum(u, second) + jnp.log1p(share)
        large, small = jnp.where(u > second, 1, p - 1), jnp.where(u > second, p - 1, 1)
        return u - value * (1 + share) / (large + share * small)

    start = jnp.minimum(0, -kappa / slope)
    return y * jnp.exp(jax.lax.fori_loop(0, steps, improve, start))


def prox_largest(y: Float[Array, "n d"], rho: Scalar, counted: Bool[Array, " n"]) -> Float[Array, "n d"]:
    """argmin over S of max |s_ij| over the counted rows + ρ/2·‖S − Y‖²: these are clipped at a τ.

    By Moreau's decomposition S is Y minus its projection onto the ℓ1 ball of radius 1/ρ, so that Σ (|y_ij| − τ)₊ = 1/ρ,
    or τ = 0 if Y is within the ball. The sum is convex and piecewise linear in τ: Newton from below rises to the root
    in a few steps, and ends at it (Michelot, J. Optim. Theory Appl. 1986; Condat, Math. Program. 2016). Rows that are
    not counted stay as they are.
    """
    magnitude = jnp.where(counted[:, None], jnp.abs(y), 0)

    def improve(carry: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        tau, _ = carry
        above = magnitude > tau
        excess = jnp.sum(jnp.where(above, magnitude - tau, 0)) - 1 / rho
        return tau + jnp.maximum(excess, 0) / jnp.maximum(jnp.sum(above.astype(y.dtype)), 1), tau

    first = jnp.maximum(jnp.max(magnitude) - 1 / rho, 0)
    tau, _ = jax.lax.while_loop(lambda carry: carry[0] > carry[1], improve, (first, jnp.full_like(first, -1)))
    return jnp.where(counted[:, None], jnp.clip(y, -tau, tau), y)
