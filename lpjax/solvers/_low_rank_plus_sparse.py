"""Low-rank plus sparse approximation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lpjax._powers import by_exponent, size
from lpjax.solvers._core.solution import Solution

ROUNDS = 12
MOMENTUM = 0.8


def with_entries(
    pair: Callable[[Array], Solution],
    matrix: Float[Array, "n d"],
    count: int | Int[Array, ""],
    importance: Float[Array, "n d"],
    p: Float[Array, ""],
) -> tuple[Solution, Float[Array, "n d"]]:
    """Approximate A by LR + S, where S holds the `count` entries of A − LR with the largest weighted magnitudes.

    GoDec (Zhou & Tao, ICML 2011), for any solver and weights. LR and S are updated alternately, here with momentum: on
    kernels of real models 12 iterations with it reach a smaller error than 24 without. Of two starts, S = 0 and the
    largest entries of A, the one that is better after two iterations is continued. The second start helps if a few
    outliers attract the first factors (Netrapalli et al., arXiv 1410.7660). With metrics, entries are chosen by the
    metrics' diagonals and set to the residual: not quite optimal, but without a linear system per row. Entries are
    chosen by their own errors even if the solver minimises over rows.

    Args:
        pair: matrix -> `Solution`.
        matrix: A, shape (n, d).
        count: number of nonzero entries of S, 1 or more; S has fewer if A − LR has.
        importance: factor on the error of each entry, shape (n, d).
        p: exponent of the error that compares the two starts.

    Returns:
        The last `Solution`, and S as a dense matrix (n, d).
    """
    count = jnp.asarray(count).astype(int)

    def rest_of(solution: Solution) -> Array:
        return matrix - jnp.matmul(solution.left, solution.right, precision="highest")

    def top(rest: Array) -> Array:
        score = importance * jnp.abs(rest)
        return jnp.where(largest(score, count) & (score > 0), rest, 0)

    def turn(_: Any, both: tuple[Array, Array]) -> tuple[Array, Array]:
        single, before = both
        return top(rest_of(pair(matrix - single - MOMENTUM * (single - before)))), single

    def loss(both: tuple[Array, Array]) -> Array:
        single, _ = both
        scaled = importance * jnp.abs(rest_of(pair(matrix - single)) - single)
        most = jnp.max(scaled)

        def by_sum(p: Array) -> Array:
            return jnp.sum((scaled / jnp.where(most > 0, most, 1)) ** p) ** (1 / p) * most

        return by_exponent(p, by_sum, lambda p: size(scaled, p))

    starts = [jax.lax.fori_loop(0, 2, turn, (start, start)) for start in (jnp.zeros_like(matrix), top(matrix))]
    better = loss(starts[0]) <= loss(starts[1])
    chosen = jax.tree.map(lambda empty, full: jnp.where(better, empty, full), *starts)
    single, _ = jax.lax.fori_loop(0, ROUNDS - 3, turn, chosen)
    last = pair(matrix - single)
    return last, top(rest_of(last))


def largest(values: Float[Array, "n d"], k: int | Int[Array, ""]) -> Bool[Array, "n d"]:
    """Mask of the k largest entries of a nonnegative matrix; the first of equal ones."""
    bound = kth_largest(values, k)
    above, equal = values > bound, values == bound
    room = k - jnp.sum(above)

    def first(equal: Array) -> Array:
        return equal & (jnp.cumsum(equal.ravel()).reshape(equal.shape) <= room)

    return above | jax.lax.cond(jnp.sum(equal) > room, first, lambda equal: equal, equal)


def kth_largest(values: Float[Array, "*shape"], k: int | Int[Array, ""]) -> Float[Array, ""]:
    """The k-th largest entry of a nonnegative array, found bit by bit from the highest: one pass per bit, no sort."""
    kind = jnp.int64 if values.dtype.itemsize == 8 else jnp.int32
    patterns = jax.lax.bitcast_convert_type(values, kind)  # ordered as the numbers are
    highest = 8 * values.dtype.itemsize - 2

    def bit(i: Array, prefix: Array) -> Array:
        higher = prefix | (jnp.ones((), kind) << (highest - i).astype(kind))
        return jnp.where(jnp.sum(patterns >= higher) >= k, higher, prefix)

    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, highest + 1, bit, jnp.zeros((), kind)), values.dtype)
