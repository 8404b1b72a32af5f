"""The shared layers against NumPy in float64, and the activations against PyTorch's."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lpjax.models.layers import ACTIVATIONS, Dropout, attention, embed, layer_norm, linear
from lpjax.weights.low_rank import LowRank

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_equals_pytorch(name: str, goldens: Path):
    golden = load_file(goldens / "activations.safetensors")
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(golden["x"])), golden[name], rtol=1e-5, atol=1e-6)


def test_layer_norm_equals_its_definition():
    x, scale, bias = 3 * normal(2, 5, 7) + 100, normal(7), normal(7)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-3) * scale + bias
    got = layer_norm(jnp.asarray(x), {"scale": scale, "bias": bias}, 1e-3)
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_layer_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(normal(2, 5, 7) + 50, jnp.bfloat16)
    params = {"scale": normal(7), "bias": normal(7)}
    got = layer_norm(x, params, 1e-5)
    assert got.dtype == jnp.bfloat16
    wide = layer_norm(x.astype(jnp.float32), params, 1e-5)
    np.testing.assert_array_equal(got, wide.astype(jnp.bfloat16))


def test_attention_equals_a_loop_over_heads():
    query, key, value = normal(2, 5, 6), normal(2, 5, 6), normal(2, 5, 6)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    got = attention(jnp.asarray(query), jnp.asarray(key), jnp.asarray(value), jnp.asarray(mask), 3)
    for row in range(2):
        for head in range(3):
            part = np.s_[row, :, 2 * head : 2 * head + 2]
            scores = query[part].astype(np.float64) @ key[part].T / np.sqrt(2)
            weights = np.where(mask[row], np.exp(scores), 0)
            expected = weights / weights.sum(-1, keepdims=True) @ value[part]
            np.testing.assert_allclose(got[part], expected, atol=2e-6)


def test_attention_without_a_key_is_finite():
    x = jnp.asarray(normal(1, 4, 6))
    assert jnp.isfinite(attention(x, x, x, jnp.zeros((1, 4), bool), 2)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_linear_and_embed_of_a_factored_weight_equal_those_of_its_product(dtype: jnp.dtype):
    left, right, bias = normal(11, 3), normal(3, 7), normal(7)
    weight = LowRank(jnp.asarray(left), jnp.asarray(right))
    x, ids = jnp.asarray(normal(2, 5, 11), dtype), jnp.asarray(RNG.integers(11, size=(2, 5)))
    # Three roundings in a row, of numbers whose squares sum to about 33 and 3.
    tolerance = 8 * float(jnp.finfo(dtype).eps)
    factored = linear(x, {"kernel": weight, "bias": bias})
    assert factored.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(factored, np.float64),
        np.asarray(x, np.float64) @ left @ right + bias,
        atol=6 * tolerance,
    )
    rows = embed(ids, {"embedding": weight}, dtype)
    assert rows.dtype == dtype
    np.testing.assert_allclose(np.asarray(rows, np.float64), (left @ right)[ids], atol=2 * tolerance)


def test_factored_embedding_never_forms_its_table():
    table = LowRank(jnp.asarray(normal(1000, 3)), jnp.asarray(normal(3, 7)))
    jaxpr = jax.make_jaxpr(lambda ids: embed(ids, {"embedding": table}, jnp.float32))(jnp.zeros((2, 5), int))
    assert all(getattr(v.aval, "shape", ()) != (1000, 7) for eqn in jaxpr.eqns for v in eqn.outvars)


def test_dropout_keeps_the_mean_and_no_two_calls_are_alike():
    x = jnp.asarray(normal(300, 40))
    dropout = Dropout(jax.random.key(0))
    first, second = dropout(x, 0.25), dropout(x, 0.25)
    kept = np.asarray(first != 0)
    assert abs(kept.mean() - 0.75) < 5 * np.sqrt(0.25 * 0.75 / x.size)
    np.testing.assert_allclose(np.asarray(first)[kept], np.asarray(x)[kept] / 0.75, rtol=1e-6)
    assert np.any(kept != np.asarray(second != 0))
    assert Dropout()(x, 0.25) is x
    assert dropout(x, 0.0) is x
