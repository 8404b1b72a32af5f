"""The `LowRank` leaf: a pytree that stands for the product of its factors."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpjax import LowRank, densify, matmul, take_rows
from lpjax.weights.low_rank import is_lowrank
from tests.helpers.trees import shapes_in


def pair(n: int = 17, d: int = 7, rank: int = 3, dtype: Any = jnp.float32, batch: tuple[int, ...] = ()) -> LowRank:
    rng = np.random.default_rng(0)
    left = jnp.asarray(rng.normal(size=(*batch, n, rank)), jnp.float32).astype(dtype)
    return LowRank(left, jnp.asarray(rng.normal(size=(*batch, rank, d)), jnp.float32).astype(dtype))


def dense(weight: LowRank) -> np.ndarray:
    return np.asarray(weight.left, np.float64) @ np.asarray(weight.right, np.float64)


def test_describes_the_dense_weight():
    weight = pair()
    assert weight.shape == (17, 7)
    assert weight.ndim == 2
    assert weight.rank == 3
    assert weight.size == 3 * (17 + 7)
    assert weight.dtype == jnp.float32
    stack = pair(batch=(5,))
    assert stack.shape == (5, 17, 7)
    assert stack.ndim == 3
    assert stack.size == 5 * 3 * (17 + 7)
    assert pair(dtype=jnp.bfloat16).dtype == jnp.bfloat16


def test_is_a_pytree():
    tree = {"layer": [{"kernel": pair(), "bias": jnp.zeros(7)}]}
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    assert paths == ["['layer'][0]['bias']", "['layer'][0]['kernel'].left", "['layer'][0]['kernel'].right"]
    assert len(jax.tree.leaves(tree, is_leaf=is_lowrank)) == 2
    doubled = jax.tree.map(lambda x: 2 * x, tree)["layer"][0]["kernel"]
    assert isinstance(doubled, LowRank)
    assert np.array_equal(doubled.left, 2 * tree["layer"][0]["kernel"].left)
    # Through jit as an argument and as a result.
    back = jax.jit(lambda t: t)(tree)
    assert jax.tree.structure(back) == jax.tree.structure(tree)


def test_is_hashed_and_compared_by_identity():
    weight = pair()
    assert weight == weight
    assert weight != pair()
    assert len({weight, weight}) == 1


def test_matmul_is_that_of_the_product():
    weight = pair()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 17)), jnp.float32)
    expected = np.asarray(x, np.float64) @ dense(weight)
    for run in (matmul, jax.jit(matmul)):
        assert np.allclose(run(x, weight), expected, atol=1e-4)
    assert np.allclose(matmul(x, densify(weight)), expected, atol=1e-4)
    # Two thin products: never the dense kernel.
    assert (17, 7) not in shapes_in(matmul, x, weight)
    assert matmul(x.astype(jnp.bfloat16), pair(dtype=jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("ids", [3, [0, 16, 3, 3], [[5, 0], [16, 16], [2, 9]], []])
def test_take_rows_are_the_rows_of_the_product(ids):
    weight, ids = pair(), jnp.asarray(ids, jnp.int32)
    rows = take_rows(weight, ids)
    assert rows.shape == (*ids.shape, 7)
    assert np.allclose(rows, dense(weight)[np.asarray(ids)], atol=1e-5)
    assert np.allclose(take_rows(densify(weight), ids), rows, atol=1e-5)


def test_take_rows_never_forms_the_table():
    weight, ids = pair(n=1009), jnp.asarray([[0, 1008, 3]])
    shapes = shapes_in(take_rows, weight, ids)
    assert (1, 3, 7) in shapes
    assert all(np.prod(shape, dtype=int) < 1009 for shape in shapes)
    lookup = jax.jit(lambda left, right, ids: take_rows(LowRank(left, right), ids))
    program = lookup.lower(weight.left, weight.right, ids).compile().as_text()
    assert program is not None
    assert "1009,7" not in program
    assert "1009,3" in program  # the left factor, as it came in


def test_take_rows_clamps():
    for weight in (pair(), densify(pair())):
        rows = take_rows(weight, jnp.asarray([-1, 17, 1000], jnp.int32))
        assert np.allclose(rows, dense(pair())[[0, 16, 16]], atol=1e-5)


def test_take_rows_refuses_a_stack():
    stack = pair(batch=(5,))
    for weight in (stack, densify(stack)):
        with pytest.raises(ValueError, match=r"`weight` has shape \(5, 17, 7\).*vmap"):
            take_rows(weight, jnp.asarray([0]))
    rows = jax.vmap(take_rows, in_axes=(0, None))(stack, jnp.asarray([0, 4]))
    assert np.allclose(rows, dense(stack)[:, [0, 4]], atol=1e-5)


def test_stacks_under_vmap_and_as_they_are():
    stack = pair(batch=(5,))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2, 17)), jnp.float32)
    expected = np.asarray(x, np.float64) @ dense(stack)
    assert np.allclose(jax.vmap(matmul)(x, stack), expected, atol=1e-4)
    assert np.allclose(matmul(x, stack), expected, atol=1e-4)
    assert np.allclose(densify(stack), dense(stack), atol=1e-5)
    assert jax.vmap(lambda w: jnp.zeros(w.shape))(stack).shape == (5, 17, 7)


@pytest.mark.parametrize("batch", [(), (5,)])
def test_the_transposed_pair(batch):
    weight = pair(batch=batch)
    turned = weight.T
    assert turned.shape == (*batch, 7, 17)
    assert turned.rank == 3
    assert np.array_equal(dense(turned), np.swapaxes(dense(weight), -1, -2))
    assert isinstance(jax.jit(lambda w: w.T)(weight), LowRank)
    assert isinstance(LowRank(np.asarray(weight.left), np.asarray(weight.right)).T.left, np.ndarray)


def test_a_product_by_the_operator():
    """What a decoder that is tied to its table writes: `x @ embedding.T`."""
    weight = pair()
    x = np.random.default_rng(1).normal(size=(2, 5, 7)).astype(np.float32)
    expected = x.astype(np.float64) @ dense(weight).T
    for array in (x, jnp.asarray(x)):
        assert np.allclose(array @ weight.T, expected, atol=1e-4)
    assert (17, 7) not in shapes_in(lambda x, w: x @ w.T, jnp.asarray(x), weight)
    with pytest.raises(TypeError):
        operator.matmul(weight, x)


def test_densify_leaves_a_dense_weight_alone():
    weight = jnp.ones((3, 2))
    assert densify(weight) is weight
    assert densify(pair(dtype=jnp.bfloat16)).dtype == jnp.bfloat16
    close = densify(pair(dtype=jnp.bfloat16)).astype(jnp.float32)
    assert np.allclose(close, dense(pair(dtype=jnp.bfloat16)), rtol=2**-8, atol=1e-6)


def test_gradients_reach_both_factors(x64):
    weight = pair(dtype=jnp.float64)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 17)))
    ids = jnp.asarray([0, 3, 3])

    def loss(w):
        return jnp.sum(matmul(x, w) ** 2) + jnp.sum(take_rows(w, ids) ** 3)

    gradient = jax.grad(loss)(weight)
    assert isinstance(gradient, LowRank)
    # By the chain rule from the dense weight's gradient G: G Rᵀ and Lᵀ G.
    table, rows = dense(weight), np.asarray(ids)
    outer = 2 * np.asarray(x).T @ (np.asarray(x) @ table)
    np.add.at(outer, rows, 3 * table[rows] ** 2)
    assert np.allclose(gradient.left, outer @ np.asarray(weight.right).T, rtol=1e-10)
    assert np.allclose(gradient.right, np.asarray(weight.left).T @ outer, rtol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_safetensors_round_trip(tmp_path: Path, dtype):
    weight = pair(dtype=dtype)
    flat = jax.tree_util.tree_flatten_with_path({"kernel": weight})[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in flat]
    assert names == ["kernel.left", "kernel.right"]
    save_file({name: np.asarray(x) for name, (_, x) in zip(names, flat, strict=True)}, tmp_path / "w.safetensors")
    back = load_file(tmp_path / "w.safetensors")
    for name, factor in (("kernel.left", weight.left), ("kernel.right", weight.right)):
        assert back[name].dtype == factor.dtype
        assert back[name].tobytes() == np.asarray(factor).tobytes()
