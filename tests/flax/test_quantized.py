"""Flax modules on quantized weights compute what they do on the densified ones."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.nnx as nnx
import flax.serialization as serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax import LowRank, densify
from lpjax._tree import leaves_with_paths, replace_leaves
from lpjax.flax import QuantizedEmbed, QuantizedLinear, apply, put_weights_nnx
from lpjax.flax._nnx import Codes
from lpjax.weights.dispatch import floats_of, is_weight, with_places
from tests.flax import helpers
from tests.flax.helpers import NNXTransformer, Transformer, near, normal
from tests.helpers.nets import round_matrix

KINDS = ["quantized", "factors", "left", "right"]


def replaced(leaf: Any, inputs: int, kind: str, table: bool) -> Any:
    """A quantized weight, or factors of which some are, for a leaf whose first axes, `inputs` of them, are inputs."""
    matrix = np.asarray(leaf).reshape(int(np.prod(leaf.shape[:inputs])), -1)
    if kind == "quantized":
        return round_matrix(matrix, None, axis=int(table))
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    left, right = (u * s)[:, :3], vt[:3]
    return LowRank(
        jnp.asarray(left) if kind == "right" else round_matrix(left, 8, axis=1),
        jnp.asarray(right) if kind == "left" else round_matrix(right, 8, axis=0),
    )


def quantized(params: Any, axes: dict[str, Any], kind: str) -> Any:
    leaves = dict(leaves_with_paths(params))
    weights = {path: replaced(leaves[path], inputs, kind, path.endswith("embedding")) for path, inputs in axes.items()}
    return replace_leaves(params, weights)


def dense_of(params: Any, like: Any) -> Any:
    """Every weight expanded, in the shape of the leaf that it replaced."""

    def dense(leaf: Any, shape: Any) -> Any:
        return densify(leaf).reshape(shape.shape) if is_weight(leaf) else leaf

    return jax.tree.map(dense, params, like, is_leaf=is_weight)


@pytest.mark.slow
@pytest.mark.parametrize("tied", ["attend", "product", "variables"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_linen_transformer(kind: str, tied: str):
    module, ids = Transformer(tied), helpers.ids()
    params = helpers.drawn(module, ids)
    axes = lpjax.flax.input_axes(module, {"params": params}, ids)
    axes.pop("head/kernel", None)
    assert {"tokens/embedding", "blocks_0/attention/out/kernel", "blocks_0/up/kernel"} <= axes.keys()
    small = quantized(params, axes, kind)
    dense = dense_of(small, params)
    actual = jax.jit(lambda params: apply(module, {"params": params}, ids))(small)
    assert near(actual, module.apply({"params": dense}, ids), 2e-5)
    again = lpjax.flax.input_axes(module, {"params": small}, ids)
    assert again.keys() == axes.keys()
    # Gradients with respect to scales and steps are those of the dense weights by the chain rule.
    bare = floats_of(small)

    def square(y: Any) -> Any:
        return jnp.mean(y**2)

    def loss(bare: Any) -> Any:
        whole = with_places(bare, small)
        return square(apply(module, {"params": whole}, ids))

    def expanded(bare: Any) -> Any:
        whole = dense_of(with_places(bare, small), params)
        return square(module.apply({"params": whole}, ids))

    actual, expected = (jax.jit(jax.grad(function))(bare) for function in (loss, expanded))
    most = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for gradient, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        gradient, other = np.asarray(gradient, np.float64), np.asarray(other, np.float64)
        assert np.abs(gradient - other).max() <= 5e-3 * np.abs(other).max() + 1e-6 * most


def test_stacks_of_quantized_layers_are_scanned():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: Any) -> Any:
            return nn.tanh(nn.Dense(7)(x)), None

    scanned = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    x = jnp.asarray(normal((2, 7)))
    params = helpers.drawn(scanned, x, None)
    kernels = params["Dense_0"]["kernel"]
    stack = jax.tree.map(lambda *arrays: jnp.stack(arrays), *(round_matrix(kernel, 6) for kernel in kernels))
    small, dense = ({"Dense_0": params["Dense_0"] | {"kernel": kernel}} for kernel in (stack, densify(stack)))
    assert near(apply(scanned, {"params": small}, x, None)[0], scanned.apply({"params": dense}, x, None)[0])


@pytest.mark.parametrize("kind", ["quantized", "left"])
def test_lookups_are_those_of_embed(kind: str, promoting: Any):
    module = nn.Embed(11, 5)
    table = normal((11, 5))
    small = {"embedding": replaced(table, 1, kind, True)}
    dense = {"embedding": densify(small["embedding"])}
    for ids in ([[0, 10, 3], [3, -1, -11]], [11, 2, 1000, -12], 4, []):
        ids = jnp.asarray(ids, jnp.int32)
        actual, expected = apply(module, {"params": small}, ids), module.apply({"params": dense}, ids)
        assert np.allclose(actual, expected, atol=1e-5, equal_nan=True)
    for dtype in (jnp.uint8, jnp.int8):
        assert near(
            apply(module, {"params": small}, jnp.asarray([3, 10], dtype)), dense["embedding"][np.array([3, 10])]
        )


def test_misplaced_weights_are_named():
    conv = nn.Conv(3, (2,))
    weight = round_matrix(normal((4, 3)))
    with pytest.raises(ValueError, match=r"kernel is a Quantized, but belongs to Conv"):
        apply(conv, {"params": {"kernel": weight, "bias": jnp.zeros(3)}}, jnp.ones((1, 5, 2)))
    with pytest.raises(ValueError, match=r"kernel is a Quantized of shape \(4, 3\); expected \(5, 3\)"):
        apply(nn.Dense(3, use_bias=False), {"params": {"kernel": weight}}, jnp.ones((1, 5)))


def test_bytes_and_back():
    tree = {"kernel": round_matrix(normal((9, 5)), None), "pair": replaced(normal((9, 5)), 1, "left", False)}
    other = jax.tree.map(np.zeros_like, tree)
    back = serialization.from_bytes(other, serialization.to_bytes(tree))
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert all(map(np.array_equal, jax.tree.leaves(back), jax.tree.leaves(tree)))
    with pytest.raises(ValueError, match="the target has a quantized matrix"):
        serialization.from_bytes({"kernel": tree["kernel"]}, serialization.to_bytes({"kernel": np.ones(3)}))


@pytest.mark.covering(0)
@pytest.mark.parametrize("kind", KINDS)
def test_an_nnx_transformer(kind: str):
    model, ids = NNXTransformer(nnx.Rngs(0)), helpers.ids()
    inputs = {"attention/out/kernel": 2}
    params = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    leaves = {"/".join(map(str, path)): param[...] for path, param in params.items()}
    weights = {
        path: replaced(leaf, next((n for end, n in inputs.items() if path.endswith(end)), 1), kind, "embedding" in path)
        for path, leaf in leaves.items()
        if path.endswith(("kernel", "embedding"))
    }
    dense, small = nnx.clone(model), nnx.clone(model)
    put_weights_nnx(small, weights)
    for path, param in nnx.to_flat_state(nnx.state(dense, nnx.Param)):
        if (weight := weights.get("/".join(map(str, path)))) is not None:
            param[...] = densify(weight).reshape(param[...].shape)
    nnx.update(dense, nnx.state(dense, nnx.Param))
    expected = dense(ids)
    assert near(nnx.jit(lambda model, ids: model(ids))(small, ids), expected, 2e-5)
    if kind == "quantized":
        assert isinstance(small.tokens, QuantizedEmbed)
        assert isinstance(small.blocks[0].up, QuantizedLinear)
    # Codes are not parameters: scales and steps train.
    graph, trained, codes, rest = nnx.split(small, nnx.Param, Codes, ...)
    assert all(leaf.dtype in (np.float16, np.float32) for leaf in jax.tree.leaves(trained))
    assert {leaf.dtype.kind for leaf in jax.tree.leaves(codes)} == {"u"}
    assert near(nnx.merge(graph, trained, codes, rest)(ids), expected, 2e-5)
    gradient = nnx.grad(lambda model: jnp.mean(model(ids) ** 2))(small)
    assert jax.tree.structure(gradient) == jax.tree.structure(trained)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_weights_that_do_not_fit_an_nnx_model_are_named():
    model = NNXTransformer(nnx.Rngs(0))
    weight = round_matrix(normal((4, 3)))
    with pytest.raises(ValueError, match="`weights` names nowhere/kernel"):
        put_weights_nnx(model, {"nowhere/kernel": weight})
    with pytest.raises(ValueError, match=r"up/kernel of shape \(4, 3\); expected \(13, 31\)"):
        put_weights_nnx(model, {"blocks/0/up/kernel": weight})
    with pytest.raises(ValueError, match=r"blocks/0/norm/scale, which cannot be replaced: scale of LayerNorm"):
        put_weights_nnx(model, {"blocks/0/norm/scale": weight})
    assert isinstance(model.blocks[0].up, nnx.Linear)


def test_a_quantized_layer_keeps_its_dtype():
    layer = nnx.Sequential(nnx.Linear(4, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    weight = round_matrix(normal((4, 3)))
    put_weights_nnx(layer, {"layers/0/kernel": weight})
    assert layer(jnp.ones((2, 4))).dtype == jnp.bfloat16
