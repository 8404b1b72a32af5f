"""Lewis weights for p > 2, ∞ included, by convex optimisation as in the design of experiments."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax._lapack import descending_eigh
from lpjax.solvers._core.geometry import Coordinates
from lpjax.solvers._core.rows import fold_rows, over_devices
from lpjax.solvers._core.spectrum import Panels, add_gram, no_gram, whole_gram

_LONGEST_STEP = 50.0
_LARGEST_GROWTH = 5.0  # of log w per step, so that no weight overflows
_NO_WEIGHT = -1e9  # log w of a zero row


class Design(NamedTuple):
    """Weights, and how far they are from the Lewis weights.

    Attributes:
        log_weights: log w with Σw = r, shape (n,).
        factor: F of the metric M(w) = FᵀF in whitened coordinates, shape (r, r).
        excess: max_i log(a_iᵀM⁻¹a_i / w_i^{2/p}): ‖Ax‖_p ≤ e^{(1/2−1/p)·excess}‖x‖_M.
        residual: max_i |log w_i − log (a_iᵀM⁻¹a_i)^{p/2}|; at ∞ max_i a_iᵀM⁻¹a_i − 1.
    """

    log_weights: Float[Array, " n"]
    factor: Float[Array, "r r"]
    excess: Scalar
    residual: Scalar


class _State(NamedTuple):
    """Between passes over the rows.

    Attributes:
        log_weights: log w.
        violations: v of the previous weights.
        moved: change of log w in the last step.
        factor, inverse: F of M(w), and F⁻¹, zero past the rank of A.
        step: δ.
        best: weights with the smallest residual so far.
        num_iters: number of passes.
    """

    log_weights: Float[Array, " n"]
    violations: Float[Array, " n"]
    moved: Float[Array, " n"]
    factor: Float[Array, "r r"]
    inverse: Float[Array, "r r"]
    step: Scalar
    best: Design
    num_iters: Int[Array, ""]


def design(coords: Coordinates, p: Scalar, tol: Scalar, num_iters: Scalar) -> tuple[Design, Int[Array, ""]]:
    """argmax of log det M(w), M = Σ_i w_i^{1−2/p} a_i a_iᵀ, over w ≥ 0 with Σw = r, for p > 2.

    The program is concave, and its optimum is w_i^{2/p} = a_iᵀM⁻¹a_i = q_i (Lee, Faster algorithms for convex and
    combinatorial optimization, 2016; Apers, Gribling & Sidford, arXiv 2404.02881): the Lewis weights, and at p = ∞ the
    D-optimal design, whose ellipsoid is John's. With v = log q − (2/p) log w, a step is

        log w ← log w + δv,  then w scaled to Σw = r.

    δ = p/2 is the map of Cohen & Peng, which converges for p < 4 only. δ = 1 sets w_i to the leverage w_i^{1−2/p} q_i;
    at ∞ this is Titterington's algorithm for designs. It increases log det M for every p: by Cauchy–Binet log det M is
    a log-sum-exp of log w, hence convex, and leverages maximise its linear minorant over Σw = r. It is safe but slow
    (Yu, arXiv 1001.3859): −∂v/∂log w has eigenvalues from 2/p to 1. As that matrix is self-adjoint in the inner product
    weighted by leverages, the step of Barzilai & Borwein (IMA J. Numer. Anal. 1988) needs a half to a seventh of the
    steps: δ = ⟨m, m⟩ / −⟨m, change of v⟩ for the last move m, used one step later, so that a step is one pass.

    Returns:
        The weights with the smallest residual, and the number of passes.
    """
    rows, dtype = coords.rows, coords.rows.dtype
    twice = 2 / p
    longest = jnp.clip(p / 2, 1, _LONGEST_STEP)

    def advance(state: _State) -> _State:
        whitening = coords.whitening @ state.inverse

        def block(
            total: tuple[Panels, Scalar, Scalar],
            piece: Array,
            once: Array,
            log_weights: Array,
            violations: Array,
            moved: Array,
        ) -> tuple[tuple[Panels, Scalar, Scalar], Array, Array, Array]:
            gram, squares, products = total
            white = piece @ whitening
            quadratic = jnp.sum(white**2, axis=1)
            counted = quadratic > 0
            quadratic = jnp.where(counted, quadratic, 1)
            now = jnp.where(counted, jnp.log(quadratic) - twice * log_weights, 0)
            leverages = once * jnp.where(counted, jnp.exp((1 - twice) * log_weights) * quadratic, 0)
            squares += jnp.sum(leverages * moved**2)
            products += jnp.sum(leverages * moved * (violations - now))
            move = jnp.minimum(state.step * now, _LARGEST_GROWTH)
            log_weights = jnp.where(counted, log_weights + move, _NO_WEIGHT)
            powers = once * jnp.exp((1 - twice) * log_weights)
            return (add_gram(gram, white, powers), squares, products), log_weights, now, move

        zero = jnp.zeros((), dtype)
        totals = no_gram(whitening.shape[1], dtype), zero, zero
        row_state = state.log_weights, state.violations, state.moved
        (gram, squares, products), log_weights, now, move = fold_rows(block, rows, totals, None, *row_state)
        excess, deficit = over_devices(jax.lax.pmax, (jnp.max(now), jnp.max(-now)), rows.axes)
        residual = jnp.where(jnp.isinf(p), jnp.expm1(excess), p / 2 * jnp.maximum(excess, deficit))
        measured = Design(state.log_weights, state.factor, excess, residual)
        better = residual < state.best.residual
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), measured, state.best)
        delta = jnp.clip(squares / jnp.where(products > 0, products, 1), 1, longest)
        step = jnp.where(products > 0, delta, state.step)

        largest = over_devices(jax.lax.pmax, jnp.max(log_weights), rows.axes)
        mass = over_devices(jax.lax.psum, jnp.sum(jnp.exp(log_weights - largest)), rows.axes)
        shift = jnp.log(coords.dimension / mass) - largest
        values, vectors = descending_eigh(whole_gram(gram) * jnp.exp((1 - twice) * shift))
        usable = values > values.shape[0] * jnp.finfo(dtype).eps * values[0]
        roots = jnp.sqrt(jnp.where(usable, values, 0))
        inverse_roots = jnp.where(usable, 1 / jnp.where(usable, roots, 1), 0)
        factor = (roots[:, None] * vectors.T) @ state.factor
        inverse = state.inverse @ (vectors * inverse_roots[None, :])
        return _State(log_weights + shift, now, move + shift, factor, inverse, step, best, state.num_iters + 1)

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.best.residual > tol) & (state.num_iters < num_iters)

    own, infinite = rows.matrix.shape[0], jnp.full((), jnp.inf, dtype)
    share = coords.dimension / rows.shape[0]
    root = share ** (0.5 - 1 / p)  # of M(w) at w = r/n, as QᵀQ is the identity
    active = coords.active.astype(dtype)
    log_weights, zeros = jnp.full(own, jnp.log(share)), jnp.zeros(own, dtype)
    factor, none = jnp.diag(root * active), jnp.zeros((), jnp.int32)
    best = Design(log_weights, factor, infinite, infinite)
    start = _State(log_weights, zeros, zeros, factor, jnp.diag(active / root), jnp.ones((), dtype), best, none)
    last = jax.lax.while_loop(unfinished, advance, start)
    return last.best, last.num_iters
