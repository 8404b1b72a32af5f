"""Statistics taps: a weight that reports, through gradients, statistics of its inputs and of its outputs' gradients.

A moment of activations is not an output of a model, and threading it through every layer would put calibration into the
models. Instead, a `TappedWeight` replaces a weight and computes the same. Its `Taps` are zeros that change nothing, and
the gradient with respect to a tap is defined as the sum to report. So one `jax.grad` yields the sums of all layers,
under jit and over devices. If only sums of inputs are requested, XLA drops the backward pass.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lpjax.weights.dispatch import Weight, cast, is_weight, matmul, matmul_transposed, take_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Taps:
    """Zeros with the shapes of the requested sums over tokens; None for the others.

    The gradients with respect to the taps are these sums. x is the input of a kernel, g the gradient with respect to
    the output of a kernel or a table.

    Attributes:
        inputs: Σ x xᵀ, shape (in, in).
        mean: Σ x, shape (in,).
        magnitude: Σ |x|, shape (in,).
        outputs: Σ g gᵀ, shape (out, out).
        fisher: Σ over texts of the sums over j of (∂/∂w_ij)², w the kernel, shape (in,).
        counts: for a table, the number of tokens of each row, shape (rows,).
        gradients: for a table, Σ ‖g‖² over the tokens of each row, shape (rows,).
        tokens: the number of tokens, a scalar.
        places, decoder, decoded, decoded_gradients: for a table that is also the decoder of a word head, over the
            places where words are predicted: their number; Σ x xᵀ of the inputs of the decoder, shape (d, d); Σ u_i²
            of each word's logit, shape (rows,), u the gradient with respect to the logits; Σ u_i² ‖x‖², shape (rows,).
    """

    inputs: Float[Array | np.ndarray, "n n"] | None = None
    mean: Float[Array | np.ndarray, " n"] | None = None
    magnitude: Float[Array | np.ndarray, " n"] | None = None
    outputs: Float[Array | np.ndarray, "d d"] | None = None
    fisher: Float[Array | np.ndarray, " n"] | None = None
    counts: Float[Array | np.ndarray, " n"] | None = None
    gradients: Float[Array | np.ndarray, " n"] | None = None
    tokens: Float[Array | np.ndarray | np.generic, ""] | None = None
    places: Float[Array | np.ndarray | np.generic, ""] | None = None
    decoder: Float[Array | np.ndarray, "d d"] | None = None
    decoded: Float[Array | np.ndarray, " n"] | None = None
    decoded_gradients: Float[Array | np.ndarray, " n"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TappedWeight:
    """A weight with statistics taps.

    Attributes:
        weight: a weight of any kind.
        taps: the sums to report.
        tokens: 1 for tokens that count, 0 for padding.
        places: 1 for places that count, 0 for padding, if a head reads only some tokens, which differ between texts.
    """

    weight: Weight
    taps: Taps
    tokens: Float[Array, "batch length"]
    places: Float[Array, "batch places"] | None = None

    def multiply(self, x: Float[Array, "batch length n"]) -> Float[Array, "batch length d"]:
        """`x @ weight`."""
        taps, tokens = self.taps, self._counted(x)
        seen = jax.lax.stop_gradient(x).astype(tokens.dtype)
        x = _report(x, taps.inputs, _moment, seen, tokens)
        x = _report(x, taps.mean, _sum, seen, tokens)
        x = _report(x, taps.magnitude, _sum, jnp.abs(seen), tokens)
        x = _report(x, taps.tokens, jnp.sum, tokens)
        product: Any = matmul(x, cast(self.weight, x.dtype))
        product = _report_backward(product, taps.outputs, _moment_of_gradients, tokens)
        return _report_backward(product, taps.fisher, _fisher, tokens, seen)

    def take(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch length d"]:
        """Rows `ids` of the weight."""
        taps, dtype = self.taps, self.tokens.dtype
        # Wide before any tap, as `embed` does: float16 would lose small gradients.
        if is_weight(self.weight):
            rows: Any = take_rows(cast(self.weight, dtype), ids)
        else:
            rows = take_rows(jnp.asarray(self.weight), ids).astype(dtype)
        tokens = self._counted(rows)
        rows = _report(rows, taps.tokens, jnp.sum, tokens)
        rows = _report(rows, taps.counts, _counts, taps.counts, ids, tokens)
        rows = _report_backward(rows, taps.outputs, _moment_of_gradients, tokens)
        return _report_backward(rows, taps.gradients, _squares_of_rows, tokens, ids)

    def decode(self, x: Float[Array, "batch length d"]) -> Float[Array, "batch length n"]:
        """`x @ weight.T`: the table as the decoder of a word head."""
        taps, counted = self.taps, self._counted(x)
        seen = jax.lax.stop_gradient(x).astype(counted.dtype)
        x = _report(x, taps.places, jnp.sum, counted)
        x = _report(x, taps.decoder, _moment, seen, counted)
        product: Any = matmul_transposed(x, cast(self.weight, x.dtype))
        product = _report_backward(product, taps.decoded, _squares_of_words, counted)
        weights = counted * jnp.sum(seen**2, axis=-1)
        return _report_backward(product, taps.decoded_gradients, _squares_of_words, weights)

    def _counted(self, x: Array) -> Float[Array, "batch length"]:
        """The weight of each token of x: that of the text if x has one token per text, and 1 for rows that belong to no
        text, such as relative positions."""
        if x.shape[:2] == self.tokens.shape:
            return self.tokens
        if self.places is not None and x.shape[:2] == self.places.shape:
            return self.places
        if x.shape[:2] == (self.tokens.shape[0], 1):
            return jnp.max(self.tokens, axis=1, keepdims=True)
        return jnp.ones(x.shape[:2], self.tokens.dtype)


def _report(x: Any, tap: Any, summary: Callable[..., Array], *operands: Any) -> Any:
    """x; the gradient with respect to `tap`, unless that is None, is `summary(*operands)`."""
    return x if tap is None else _tell(x, tap, summary(*operands))


def _report_backward(y: Any, tap: Any, summary: Callable[..., Array], *operands: Array) -> Any:
    """y; the gradient with respect to `tap`, unless that is None, is `summary(tap, gradient with respect to y, …)`."""
    return y if tap is None else _tell_backward(summary, y, tap, operands)


@jax.custom_vjp
def _tell(x: Array, tap: Any, value: Array) -> Any:
    """x; the gradient with respect to `tap` is `value`."""
    return x


def _tell_forward(x: Array, tap: Any, value: Array) -> tuple[Array, Array]:
    return x, value


def _tell_gradients(value: Array, gradient: Array) -> tuple[Array, Array, None]:
    return gradient, value, None


_tell.defvjp(_tell_forward, _tell_gradients)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tell_backward(summary: Callable[..., Array], y: Array, tap: Any, operands: tuple[Array, ...]) -> Any:
    """y; the gradient with respect to `tap` is `summary(tap, gradient with respect to y, *operands)`."""
    return y


def _tell_backward_forward(summary: Any, y: Array, tap: Array, operands: Any) -> tuple[Array, tuple[Array, Any]]:
    return y, (tap, operands)


def _tell_backward_gradients(summary: Any, kept: tuple[Array, Any], gradient: Array) -> tuple[Array, Array, None]:
    tap, operands = kept
    return gradient, summary(tap, gradient.astype(tap.dtype), *operands), None


_tell_backward.defvjp(_tell_backward_forward, _tell_backward_gradients)


def _sum(x: Array, tokens: Array) -> Array:
    return jnp.einsum("bl,bld->d", tokens, x, precision="highest")


def _counts(tap: Array, ids: Array, tokens: Array) -> Array:
    return jnp.zeros_like(tap).at[ids].add(tokens, mode="clip")


def _moment(x: Array, tokens: Array) -> Array:
    flat = x.reshape(-1, x.shape[-1])
    return jnp.matmul((flat * tokens.reshape(-1, 1)).T, flat, precision="highest")


def _moment_of_gradients(tap: Array, gradient: Array, tokens: Array) -> Array:
    return _moment(gradient, tokens)


def _squares_of_rows(tap: Array, gradient: Array, tokens: Array, ids: Array) -> Array:
    return jnp.zeros_like(tap).at[ids].add(jnp.sum(gradient**2, axis=-1) * tokens, mode="clip")


def _squares_of_words(tap: Array, gradient: Array, weights: Array) -> Array:
    return jnp.einsum("bl,bln->n", weights, gradient**2, precision="highest")


def _fisher(tap: Array, gradient: Array, tokens: Array, x: Array) -> Array:
    """Let X and G hold a row for each token of a text. The gradient with respect to the kernel is XᵀG; the sums of its
    squares by row are the diagonal of Xᵀ(GGᵀ)X, which needs products of tokens by tokens only."""
    counted = gradient * tokens[..., None]
    between = jnp.einsum("bld,bmd->blm", counted, counted, precision="highest")
    return jnp.einsum("bln,blm,bmn->n", x, between, x, precision="highest")
