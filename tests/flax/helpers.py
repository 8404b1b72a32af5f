"""Small transformers in both of flax's APIs, of odd sizes, and what their tests ask of a program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import flax.nnx as nnx  # not `from flax`, which a type checker finds in tests/ first
import jax
import jax.numpy as jnp
import numpy as np

from lpjax import LowRank, Solution
from lpjax.weights.dispatch import is_weight

BATCH, LENGTH, VOCAB, HIDDEN, HEADS, HEAD, WIDE = 2, 5, 53, 13, 3, 7, 31


class Block(nn.Module):
    """Attention whose kernels have three axes, then a feed-forward net."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = nn.LayerNorm(name="norm")(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, qkv_features=HEADS * HEAD, name="attention")(inner, inner)
        wide = nn.gelu(nn.Dense(WIDE, name="up")(x))
        return x + nn.Dense(HIDDEN, use_bias=False, name="down")(wide)


class Transformer(nn.Module):
    """Tokens to logits by the table that embedded them."""

    tied: str = "attend"

    def setup(self) -> None:
        self.tokens = nn.Embed(VOCAB, HIDDEN)
        self.blocks = [Block()]
        self.head = nn.Dense(VOCAB, use_bias=False)

    def __call__(self, ids: jax.Array) -> Any:
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        if self.tied == "attend":
            return self.tokens.attend(x)
        if self.tied == "product":
            return x @ self.tokens.embedding.T
        table = self.tokens.variables["params"]["embedding"]  # as transformers' Flax models tie
        return self.head.apply({"params": {"kernel": table.T}}, x)


class NNXBlock(nnx.Module):
    """`Block` in NNX."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(HIDDEN, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS, HIDDEN, qkv_features=HEADS * HEAD, decode=False, use_bias=True, rngs=rngs
        )
        self.up = nnx.Linear(HIDDEN, WIDE, rngs=rngs)
        self.down = nnx.Linear(WIDE, HIDDEN, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


class NNXTransformer(nnx.Module):
    """`Transformer` in NNX."""

    def __init__(self, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(VOCAB, HIDDEN, rngs=rngs)
        self.blocks = nnx.List([NNXBlock(rngs)])

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.tokens.attend(x)


def ids(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)


def normal(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def drawn(module: nn.Module, *args: Any) -> Any:
    """Params of a linen module, drawn without compiling its initializers; no bias is 0."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * normal(leaf.shape, leaf.size), leaf.dtype), shapes)


def first_columns(matrix: jax.Array, rank: int, *, p: Any) -> Solution:
    """A solver that costs nothing to compile: the first k columns, exactly."""
    keep = jnp.eye(rank, matrix.shape[1], dtype=matrix.dtype)
    zero = jnp.zeros((), matrix.dtype)
    return Solution(matrix[:, :rank], keep, zero, jnp.asarray(4, jnp.int32), jnp.asarray(True))


def densified(params: Any, shapes: Any) -> Any:
    """Every `LowRank` multiplied out in double precision, in the shape of the leaf that it replaced."""

    def dense(leaf: Any, shape: Any) -> Any:
        if not isinstance(leaf, LowRank):
            return leaf
        product = np.asarray(leaf.left, np.float64) @ np.asarray(leaf.right, np.float64)
        return jnp.asarray(product.reshape(shape.shape), leaf.dtype)

    return jax.tree.map(dense, params, shapes, is_leaf=is_weight)


def by_the_chain_rule(pair: LowRank, gradient: np.ndarray) -> LowRank:
    """Gradients of both factors from that of their product: G Rᵀ and Lᵀ G."""
    flat = np.asarray(gradient, np.float64).reshape(pair.shape)
    left, right = (np.asarray(factor, np.float64) for factor in (pair.left, pair.right))
    return LowRank(flat @ right.mT, left.mT @ flat)


def near(actual: Any, expected: Any, tolerance: float = 1e-5) -> bool:
    """Whether two arrays agree to `tolerance` of the largest entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return actual.shape == expected.shape and np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def shapes_in(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of everything that a program computes, whatever calls, loops and branches it is in."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield from (tuple(var.aval.shape) for var in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                    yield from shapes_in(inner)


def forms(function: Any, shape: tuple[int, ...], *arguments: Any) -> bool:
    """Whether the program of `function` has, anywhere, an array of this shape or its transpose."""
    shapes = set(shapes_in(jax.make_jaxpr(function)(*arguments)))
    return shape in shapes or shape[::-1] in shapes
