"""The layers that encoders share, as pure functions; a weight may be of any kind, or a `TappedWeight`.

Each function computes in the dtype of its input and casts the weights to it; layer normalization, softmax and GELU
are computed in float32 at least. Shapes are written (batch, length, hidden).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lpjax.models.taps import TappedWeight
from lpjax.weights.dispatch import cast, is_weight, matmul, matmul_transposed, take_rows


def at_least_float32(dtype: Any) -> Any:
    """The dtype that layer normalization, softmax and GELU are computed in."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


class Dropout:
    """Inverted dropout; the n-th call uses the n-th key that is derived from `key`. Without a key, no dropout."""

    def __init__(self, key: Array | None = None):
        self._key = key
        self._calls = 0

    @property
    def acts(self) -> bool:
        """Whether there is a key."""
        return self._key is not None

    def __call__(self, x: Float[Array, "*shape"], rate: float) -> Float[Array, "*shape"]:
        """x with each entry zeroed with probability `rate`, and the others divided by 1 − rate."""
        if self._key is None or rate == 0:
            return x
        self._calls += 1
        kept = jax.random.bernoulli(jax.random.fold_in(self._key, self._calls), 1 - rate, x.shape)
        return jnp.where(kept, x * (1 / (1 - rate)), 0).astype(x.dtype)


NO_DROPOUT = Dropout()


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs and settings of a forward pass.

    Attributes:
        ids: token ids.
        mask: true for tokens, false for padding.
        token_types: the segment of each token; None if all are in segment 0.
        dtype: dtype of the activations.
        dropout: dropout in this pass.
        tokens: the slice of the tokens whose last hidden states are computed. In the last layer, all other tokens are
            only keys and values.
    """

    ids: Int[Array, "batch length"]
    mask: Bool[Array, "batch length"]
    token_types: Int[Array, "batch length"] | None
    dtype: Any
    dropout: Dropout
    tokens: slice


def linear(x: Float[Array, "batch length n"], params: Mapping[str, Any]) -> Float[Array, "batch length d"]:
    """`x @ kernel + bias`; kernel (n, d), bias (d,) if there is one."""
    kernel = params["kernel"]
    product = kernel.multiply(x) if isinstance(kernel, TappedWeight) else matmul(x, cast(kernel, x.dtype))
    return product + cast(params["bias"], x.dtype)[None, None] if "bias" in params else product


def embed(ids: Int[Array, "batch length"], params: Mapping[str, Any], dtype: Any) -> Float[Array, "batch length d"]:
    """Rows `ids` of the table `params["embedding"]`, as `dtype`."""
    table, ids = params["embedding"], jnp.asarray(ids)
    if isinstance(table, TappedWeight):
        return table.take(ids).astype(dtype)
    if is_weight(table):
        return take_rows(cast(table, dtype), ids)
    # Gather before the cast: only the rows in use are cast, not the whole table.
    return take_rows(jnp.asarray(table), ids).astype(dtype)


def unembed(
    x: Float[Array, "batch length d"], table: Mapping[str, Any], decoder: Mapping[str, Any], bias: Any
) -> Float[Array, "batch length vocab"]:
    """Logits of words: x times the decoder's kernel, or the transpose of the table if it has none, plus a bias.

    If the decoder has a bias, it replaces `bias`; None adds no bias.
    """
    if "kernel" in decoder:
        product = linear(x, {"kernel": decoder["kernel"]})
    elif isinstance(table["embedding"], TappedWeight):
        product = table["embedding"].decode(x)
    else:
        product = matmul_transposed(x, cast(table["embedding"], x.dtype))
    bias = decoder.get("bias", bias)
    return product if bias is None else product + cast(bias, x.dtype)[None, None]


def per_token(output: str, rate: Callable[[Any], float] = lambda config: 0.0) -> Callable[..., Array]:
    """A head of an `Architecture` that reads each token: dropout at `rate(config)`, then the linear layer `output`."""

    def head(
        params: Mapping[str, Any], config: Any, hidden: Float[Array, "batch length hidden"], dropout: Dropout
    ) -> Float[Array, "batch length outputs"]:
        return linear(dropout(hidden, rate(config)), params[output])

    return head


def layer_norm(
    x: Float[Array, "batch length d"], params: Mapping[str, Any], eps: float
) -> Float[Array, "batch length d"]:
    """Normalize the last axis to mean 0 and variance 1, then scale and, if there is a bias, shift; in float32 (or
    float64)."""
    wide = x.astype(at_least_float32(x.dtype))
    scale = cast(params["scale"], wide.dtype)
    bias = cast(params["bias"], wide.dtype) if "bias" in params else jnp.zeros_like(scale)
    return normalized(wide, scale, bias, eps).astype(x.dtype)


# `normalized`, `attended`, `gelu` and `gelu_tanh` are jitted so that a traced program calls them by name, and other
# runtimes can use their own operators for them (`lpjax.export`). XLA compiles them into the program around them.
@jax.jit
def normalized(
    x: Float[Array, "batch length d"], scale: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> Float[Array, "batch length d"]:
    """`layer_norm` in the dtype of x."""
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * lax.rsqrt(variance + eps) * scale[None, None] + bias[None, None]


def attention(
    query: Float[Array, "batch queries d"],
    key: Float[Array, "batch length d"],
    value: Float[Array, "batch length d"],
    mask: Bool[Array, "batch length"],
    num_heads: int,
    dropout: Dropout = NO_DROPOUT,
    rate: float = 0.0,
    bias: Float[Array, "#batch heads queries length"] | None = None,
) -> Float[Array, "batch queries d"]:
    """softmax(QKᵀ/√(d/heads) + bias)V, head by head, over the keys whose `mask` is true.

    If the mask of a text is false everywhere, all keys have the same weight: the result is finite and meaningless.
    """
    size = query.shape[-1] // num_heads

    query, key, value = (split_heads(x, num_heads) for x in (query, key, value))
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=at_least_float32(query.dtype))
    scores = scores * (1 / math.sqrt(size))
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    return join_heads(weighted_mean(scores, mask[:, None, None, :], value, dropout, rate))


def split_heads(x: Float[Array, "batch length d"], num_heads: int) -> Float[Array, "batch heads length size"]:
    """Move the heads before the tokens, as batched matrix products need them."""
    return x.reshape(*x.shape[:2], num_heads, -1).swapaxes(1, 2)


def join_heads(x: Float[Array, "batch heads length size"]) -> Float[Array, "batch length d"]:
    """The reverse of `split_heads`."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def shift_by_query(
    scores: Float[Array, "batch heads length two_length"],
) -> Float[Array, "batch heads length length"]:
    """Entry (q, k) from column length − q + k, for scores of relative positions: by reshaping, without a gather."""
    batch, heads, length, columns = scores.shape
    moved = scores.reshape(batch, heads, columns, length)[:, :, 1:]
    return moved.reshape(batch, heads, length, columns - 1)[..., :length]


def weighted_mean(
    scores: Float[Array, "batch heads queries length"],
    visible: Bool[Array, "#batch #heads #queries length"],
    value: Float[Array, "batch heads length size"],
    dropout: Dropout,
    rate: float,
) -> Float[Array, "batch heads queries size"]:
    """softmax over the `visible` scores, with dropout, times the values."""
    if not (dropout.acts and rate):
        return attended(scores, visible, value)
    return _attended(scores, visible, value, lambda weights: dropout(weights, rate))


@jax.jit
def attended(
    scores: Float[Array, "batch heads queries length"],
    visible: Bool[Array, "#batch #heads #queries length"],
    value: Float[Array, "batch heads length size"],
) -> Float[Array, "batch heads queries size"]:
    """`weighted_mean` without dropout."""
    return _attended(scores, visible, value, lambda weights: weights)


def _attended(scores: Array, visible: Array, value: Array, drop: Callable[[Array], Array]) -> Array:
    """Divides by the sum of the weights last, because the result has fewer entries than the weights."""
    scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
    weights, total = drop(weights).astype(value.dtype), weights.sum(-1, keepdims=True)
    mean = jnp.einsum("bhqk,bhkd->bhqd", weights, value, preferred_element_type=total.dtype)
    return (mean / total).astype(value.dtype)


@jax.jit
def gelu(x: Array) -> Array:
    """x Φ(x), where Φ is the normal distribution (Hendrycks and Gimpel, arXiv 1606.08415)."""
    # erf, not jax.nn.gelu's erfc: half the time on a CPU, and what PyTorch computes.
    wide = x.astype(at_least_float32(x.dtype))
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


@jax.jit
def gelu_tanh(x: Array) -> Array:
    """`gelu`, approximated with tanh, ibid."""
    wide = x.astype(at_least_float32(x.dtype))
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    return (0.5 * wide * (1 + jnp.tanh(inner))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_accurate": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_python_tanh": gelu_tanh,
    "gelu_10": lambda x: jnp.clip(gelu(x), -10, 10),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "hardswish": jax.nn.hard_swish,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "linear": lambda x: x,
}
"""Activation functions by the names that `hidden_act` of a config.json uses."""
