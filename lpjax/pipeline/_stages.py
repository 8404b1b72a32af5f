"""The stages after the model: pooling, dense layers, norms. Each takes features by name and adds or replaces one.

Stages are frozen and compared by value, weights included, so they are static under jit: one compilation per pipeline.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, Bool, Float

from lpjax.pipeline._rules import TextRules

TOKENS, VECTOR = "token_embeddings", "sentence_embedding"
"""sentence-transformers' names of hidden states (batch, length, d) and of text vectors (batch, d)."""

Features: TypeAlias = dict[str, Array]
Tokens: TypeAlias = Float[Array, "batch length d"]
Vectors: TypeAlias = Float[Array, "batch d"]
Mask: TypeAlias = Bool[Array, "batch length"]

_LEAST = 1e-9  # smallest divisor of a mean, as in sentence-transformers
_EPSILON = 1e-12  # of Normalize: torch.nn.functional.normalize's
_LAYER_NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A weight of a stage in float32, compared and hashed by value."""

    values: np.ndarray

    def __post_init__(self) -> None:
        values = np.ascontiguousarray(self.values, np.float32)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "_digest", (values.shape, hashlib.sha256(values.data).digest()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and getattr(self, "_digest") == getattr(other, "_digest")  # noqa: B009

    def __hash__(self) -> int:
        return hash(getattr(self, "_digest"))  # noqa: B009


@dataclasses.dataclass(frozen=True)
class Pooling:
    """One vector from the hidden states of a text's tokens, or several that are concatenated.

    Attributes:
        modes: names from `POOLINGS`, in order.
        skipped: number of leading tokens that do not count: those of the prompt, unless it is pooled.
        include_prompt: whether the prompt is pooled.
    """

    modes: tuple[str, ...] = ("mean",)
    skipped: int = 0
    include_prompt: bool = True

    def __call__(self, features: Features, mask: Mask) -> Features:
        tokens = features[TOKENS]
        places = jnp.arange(mask.shape[1])[None] - jnp.argmax(mask, axis=1, keepdims=True)  # 0 at the first token
        counted = mask & (places >= self.skipped)
        return features | {VECTOR: jnp.concatenate([POOLINGS[mode](tokens, counted, places) for mode in self.modes], 1)}


def _cls(tokens: Tokens, counted: Mask, places: Array) -> Vectors:
    return _take(tokens, jnp.argmax(counted, axis=1))


def _max(tokens: Tokens, counted: Mask, places: Array) -> Vectors:
    # 0 without tokens; sentence-transformers gives −∞, which a norm would turn into NaN.
    there = jnp.any(counted, axis=1)[:, None, None] & ~counted[..., None]
    return jnp.max(jnp.where(there, -jnp.inf, jnp.where(counted[..., None], tokens, 0)), axis=1)


def _mean(tokens: Tokens, counted: Mask, places: Array) -> Vectors:
    return _total(tokens, counted) / _at_least(jnp.sum(counted, axis=1, dtype=tokens.dtype))


def _mean_sqrt_len(tokens: Tokens, counted: Mask, places: Array) -> Vectors:
    return _total(tokens, counted) / jnp.sqrt(_at_least(jnp.sum(counted, axis=1, dtype=tokens.dtype)))


def _weighted_mean(tokens: Tokens, counted: Mask, places: Array) -> Vectors:
    weights = jnp.where(counted, places + 1, 0).astype(tokens.dtype)
    return jnp.sum(tokens * weights[..., None], axis=1) / _at_least(jnp.sum(weights, axis=1))


def _last(tokens: Tokens, counted: Mask, places: Array) -> Vectors:
    last = counted.shape[1] - 1 - jnp.argmax(counted[:, ::-1], axis=1)
    return jnp.where(jnp.any(counted, axis=1, keepdims=True), _take(tokens, last), 0)


POOLINGS: dict[str, Callable[[Tokens, Mask, Array], Vectors]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""sentence-transformers' name -> (hidden states, mask of counted tokens, token positions) -> vectors, in its order."""


def _take(tokens: Tokens, index: Array) -> Vectors:
    return jnp.take_along_axis(tokens, index[:, None, None], axis=1)[:, 0]


def _total(tokens: Tokens, counted: Mask) -> Vectors:
    return jnp.sum(jnp.where(counted[..., None], tokens, 0), axis=1)


def _at_least(count: Array) -> Array:
    return jnp.maximum(count, _LEAST)[:, None]


@dataclasses.dataclass(frozen=True)
class Dense:
    """activation(x @ kernel + bias), plus x or x @ residual if there is a residual.

    Attributes:
        kernel: matrix (in, out).
        bias: vector (out,), or None.
        activation: name of the activation, from `ACTIVATIONS`.
        residual: whether to add x; a matrix (in, out) to add x @ residual.
        feature: feature that the layer changes, `VECTOR` or `TOKENS`.
    """

    kernel: Constant
    bias: Constant | None
    activation: str = "Tanh"
    residual: bool | Constant = False
    feature: str = VECTOR

    def __call__(self, features: Features, mask: Mask) -> Features:
        x = features[self.feature]
        linear = _times(x, self.kernel)
        y = ACTIVATIONS[self.activation](linear if self.bias is None else linear + _along(self.bias, x))
        if isinstance(self.residual, Constant):
            y = y + _times(x, self.residual)
        elif self.residual:
            y = y + x
        return features | {self.feature: y}


@dataclasses.dataclass(frozen=True)
class Normalize:
    """x scaled to length 1."""

    feature: str = VECTOR

    def __call__(self, features: Features, mask: Mask) -> Features:
        x = features[self.feature]
        # Bound below before taking the root, whose derivative at 0 is infinite.
        square = jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), _EPSILON**2)
        return features | {self.feature: x / jnp.sqrt(square)}


@dataclasses.dataclass(frozen=True)
class LayerNorm:
    """(x − mean) / standard deviation, times scale, plus bias."""

    scale: Constant
    bias: Constant

    def __call__(self, features: Features, mask: Mask) -> Features:
        x = features[VECTOR]
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + _LAYER_NORM_EPSILON)
        return features | {VECTOR: normed * _along(self.scale, x) + _along(self.bias, x)}


@dataclasses.dataclass(frozen=True)
class Truncate:
    """The first `size` entries of the vector, `truncate_dim` of config_sentence_transformers.json."""

    size: int

    def __call__(self, features: Features, mask: Mask) -> Features:
        return features | {VECTOR: features[VECTOR][:, : self.size]}


def _times(x: Array, kernel: Constant) -> Array:
    return jnp.matmul(x, kernel.values.astype(x.dtype), precision="highest")


def _along(values: Constant, x: Array) -> Array:
    return jnp.asarray(values.values.reshape((1,) * (x.ndim - 1) + (-1,)), x.dtype)


Stage: TypeAlias = Pooling | Dense | Normalize | LayerNorm | Truncate

MEAN: tuple[Stage, ...] = (Pooling(),)
"""The stages of a model without modules.json: the mean of the hidden states of a text's tokens."""


@dataclasses.dataclass(frozen=True)
class SentencePipeline:
    """How a folder embeds a text.

    Attributes:
        stages: stages after the model.
        text: rules for reading texts.
    """

    stages: tuple[Stage, ...] = MEAN
    text: TextRules = dataclasses.field(default_factory=TextRules)


def sentence_vectors(
    stages: Sequence[Stage], hidden: Float[Array, "batch length d"], mask: Bool[Array, "batch length"]
) -> Float[Array, "batch size"]:
    """Apply `stages` to last hidden states; returns the vectors, 0 for a row without tokens.

    Args:
        stages: stages of `read_pipeline`, or `MEAN`.
        hidden: last hidden states, float32.
        mask: true for tokens, false for padding, which may be on either side.
    """
    features: Features = {TOKENS: hidden}
    for stage in stages:
        features = stage(features, mask)
    return jnp.where(jnp.any(mask, axis=1, keepdims=True), features[VECTOR], 0)


def _shrunk(x: Array, threshold: float = 0.5) -> Array:
    return jnp.where(jnp.abs(x) > threshold, x, 0)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "Identity": lambda x: x,
    "Tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
    "ReLU6": jax.nn.relu6,
    "LeakyReLU": lambda x: jax.nn.leaky_relu(x, 0.01),
    "ELU": jax.nn.elu,
    "CELU": jax.nn.celu,
    "SELU": jax.nn.selu,
    "GELU": lambda x: x * (1 + erf(x * np.sqrt(0.5).astype(x.dtype))) / 2,
    "SiLU": jax.nn.silu,
    "Mish": jax.nn.mish,
    "Sigmoid": jax.nn.sigmoid,
    "LogSigmoid": jax.nn.log_sigmoid,
    "Hardtanh": lambda x: jnp.clip(x, -1, 1),
    "Hardsigmoid": jax.nn.hard_sigmoid,
    "Hardswish": jax.nn.hard_swish,
    "Softplus": jax.nn.softplus,
    "Softsign": jax.nn.soft_sign,
    "Softshrink": lambda x: jnp.sign(x) * jax.nn.relu(jnp.abs(x) - 0.5),
    "Hardshrink": _shrunk,
    "Tanhshrink": lambda x: x - jnp.tanh(x),
}
"""Activation functions by the names of PyTorch's classes, with their default arguments."""
