"""`Quantized`: codes packed and unpacked, and what is computed with them, against NumPy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpjax import LowRank, Quantized, densify, matmul, take_rows
from lpjax.weights import quantized as module
from lpjax.weights.dispatch import cast, floats_of, is_quantized, is_weight, matmul_transposed, with_places, with_scales
from lpjax.weights.quantized import BITS, host_array
from tests.helpers.trees import shapes_in

STORED = [bits for bits in BITS if bits]


def ends(bits: int) -> tuple[int, int]:
    """The least and the largest code of `bits` bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def codes_of(lines: int, length: int, bits: int, seed: int = 0) -> np.ndarray:
    """Random codes, both ends among them."""
    low, high = ends(bits)
    codes = np.random.default_rng(seed).integers(low, high, (lines, length), endpoint=True)
    codes.flat[0], codes.flat[-1] = low, high
    return codes


def mixed_codes(lines: int, length: int) -> np.ndarray:
    """Codes of all numbers of bits, 0 among them, in positions out of order."""
    bits = np.random.default_rng(1).choice(BITS, length)
    columns = [codes_of(lines, 1, int(b), seed=j) if b else np.zeros((lines, 1), int) for j, b in enumerate(bits)]
    return np.concatenate(columns, axis=1)


def floats(*shape: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 2, shape).astype(np.float16)


def make(
    lines: int = 11, length: int = 21, *, axis: int = 1, group: int | None = None, steps: bool = True
) -> Quantized:
    codes, groups = mixed_codes(lines, length), 1 if group is None else -(-length // group)
    return Quantized.from_codes(
        codes, floats(lines, groups), floats(length, seed=3) if steps else None, axis=axis, group=group
    )


def truth(weight: Quantized) -> np.ndarray:
    """The matrix, entry by entry, from the bits of the stored bytes."""
    lines, length = weight.scales.shape[0], weight.length
    codes = np.zeros((lines, length), int)
    for i in range(lines):
        runs: list[int] = []
        for (bits, width), packed in zip(weight.runs, weight.codes, strict=True):
            stream = int.from_bytes(np.asarray(packed[i]).tobytes(), "little")
            runs += [(stream >> j * bits & 2**bits - 1) - 2**bits // 2 if bits else 0 for j in range(width)]
        codes[i] = runs if weight.order is None else np.asarray(runs)[np.asarray(weight.order)]
    scales = np.asarray(weight.scales).astype(float)[:, np.arange(length) // weight.group]
    steps = 1 if weight.steps is None else np.asarray(weight.steps).astype(float)
    matrix = scales * steps * codes
    return matrix if weight.axis == 1 else matrix.T


@pytest.mark.parametrize("length", [1, 7, 8, 13, 64])
@pytest.mark.parametrize("bits", STORED)
def test_packs_every_number_of_bits(bits: int, length: int):
    codes = codes_of(5, length, bits)
    weight = Quantized.from_codes(codes, np.ones((5, 1)), axis=1, bits=bits)
    assert weight.runs == ((bits, length),)
    assert weight.order is None
    assert weight.codes[0].shape == (5, -(-length * bits // 8))
    assert weight.nbytes == weight.codes[0].size + 2 * 5
    for unpacked in (weight.unpacked(), weight.host_codes(), jax.jit(lambda weight: weight.unpacked())(weight)):
        assert np.array_equal(unpacked, codes)
    assert np.array_equal(truth(weight), codes)


@pytest.mark.parametrize("bits", STORED)
def test_the_fewest_bits_hold_both_ends(bits: int):
    low, high = ends(bits)
    codes = np.array([[low, 0, high, 0, low], [0, 0, 0, high, high]])
    assert Quantized.from_codes(codes, np.ones((2, 1)), axis=1).runs == ((0, 1), (bits, 4))
    if bits < BITS[-1]:
        more = BITS[BITS.index(bits) + 1]
        assert Quantized.from_codes([[high + 1]], np.ones((1, 1)), axis=1).runs == ((more, 1),)
        assert Quantized.from_codes([[low - 1]], np.ones((1, 1)), axis=1).runs == ((more, 1),)


def test_sorts_positions_into_runs():
    codes = np.array([[7, 0, 1, -100, -2, 0]])
    weight = Quantized.from_codes(codes, np.ones((1, 1)), axis=1)
    assert weight.runs == ((0, 2), (2, 2), (4, 1), (8, 1))
    assert [run.shape for run in weight.codes] == [(1, 0), (1, 1), (1, 1), (1, 1)]
    assert weight.order is not None
    assert weight.order.dtype == np.uint16
    assert np.array_equal(weight.order, [4, 0, 2, 5, 3, 1])
    assert np.array_equal(weight.unpacked(), codes)
    assert Quantized.from_codes([[0, 1, 7]], np.ones((1, 1)), axis=1).order is None


def test_more_positions_than_16_bits_count():
    codes = np.zeros((1, 70_000), int)
    codes[0, 0] = 1
    weight = Quantized.from_codes(codes, np.ones((1, 1)), axis=1)
    assert weight.order is not None
    assert weight.order.dtype == np.int32
    assert np.array_equal(weight.host_codes(), codes)


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0, 0)])
def test_empty(shape: tuple[int, int]):
    codes = np.zeros(shape, int)
    weight = Quantized.from_codes(codes, np.ones((shape[0], min(shape[1], 1))), axis=1)
    assert weight.shape == shape
    assert np.asarray(weight.unpacked()).shape == weight.host_codes().shape == shape
    assert densify(weight).shape == shape


def test_all_codes_zero_store_no_byte():
    weight = Quantized.from_codes(np.zeros((4, 9), int), floats(4, 1), axis=0)
    assert weight.runs == ((0, 9),)
    assert weight.nbytes == 2 * 4
    assert np.array_equal(densify(weight), np.zeros((9, 4)))


@pytest.mark.parametrize("steps", [True, False])
@pytest.mark.parametrize("group", [None, 8, 5, 1, 100])
@pytest.mark.parametrize("axis", [0, 1])
def test_is_scales_times_steps_times_codes(axis: int, group: int | None, steps: bool):
    weight = make(axis=axis, group=group, steps=steps)
    expected = truth(weight)
    assert weight.shape == expected.shape == ((11, 21) if axis else (21, 11))
    assert weight.ndim == 2
    assert weight.size == 11 * 21
    assert weight.dtype == np.float32
    assert np.array_equal(densify(weight), expected.astype(np.float32))  # rounded once
    assert np.array_equal(jax.jit(densify)(weight), expected.astype(np.float32))
    assert np.array_equal(host_array(weight), expected.astype(np.float32))
    for height in (3, 1000):
        blocks = list(weight.blocks(height))
        assert [start for start, _ in blocks] == list(range(0, len(expected), height))
        assert np.array_equal(np.concatenate([rows for _, rows in blocks]), expected)
    transposed = weight.T
    assert transposed.shape == expected.T.shape
    assert transposed.scales is weight.scales
    assert np.array_equal(densify(transposed), expected.T.astype(np.float32))
    assert np.array_equal(densify(weight.mT), densify(transposed))


@pytest.mark.parametrize("axis", [0, 1])
def test_products_and_lookups_are_those_of_the_dense_matrix(axis: int):
    weight, rng = make(axis=axis, group=4), np.random.default_rng(5)
    expected, (n, d) = truth(weight), weight.shape
    x = jnp.asarray(rng.normal(size=(2, 3, n)), jnp.float32)
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5 * float(np.abs(expected).max())}
    np.testing.assert_allclose(matmul(x, weight), x @ expected.astype(np.float32), **close)
    np.testing.assert_allclose(jax.jit(matmul)(x, weight), np.asarray(x, float) @ expected, **close)
    np.testing.assert_allclose(np.asarray(x) @ weight, np.asarray(x, float) @ expected, **close)
    y = jnp.asarray(rng.normal(size=(3, d)), jnp.float32)
    np.testing.assert_allclose(jax.jit(matmul_transposed)(y, weight), np.asarray(y, float) @ expected.T, **close)
    ids = jnp.array([[0, n - 1, 3], [n + 5, -2, 3]])
    rows = expected.astype(np.float32)[np.clip(ids, 0, n - 1)]
    assert np.array_equal(take_rows(weight, ids), rows)
    assert np.array_equal(jax.jit(take_rows)(weight, ids), rows)


@pytest.mark.parametrize("axis", [0, 1])
def test_large_matrices_are_expanded_by_blocks(axis: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_BLOCK", 50)
    weight = make(lines=23, axis=axis)
    expected = truth(weight).astype(np.float32)
    assert np.array_equal(densify(weight), expected)
    assert np.array_equal(jax.jit(lambda weight: densify(weight))(weight), expected)
    lines, x = (weight if axis else weight.T), jnp.asarray(np.random.default_rng(0).normal(size=(2, 21)), jnp.float32)
    dense = truth(lines).astype(np.float32)

    def logits(x: Any, weight: Any) -> Any:
        return matmul_transposed(x, weight)

    np.testing.assert_allclose(jax.jit(logits)(x, lines), x @ dense.T, rtol=1e-5, atol=1e-3 * np.abs(dense).max())
    assert (23, 21) not in shapes_in(logits, x, lines)
    assert (21, 23) not in shapes_in(logits, x, lines)


def test_a_lookup_expands_its_rows_only():
    weight = make(lines=1000)
    shapes = shapes_in(lambda weight, ids: take_rows(weight, ids), weight, jnp.array([3, 4]))
    assert not any(shape[:1] == (1000,) for shape in shapes)


def test_runs_in_other_dtypes():
    weight = make(group=8)
    half = cast(weight, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    assert half.codes is weight.codes
    assert half.scales is weight.scales
    assert densify(half).dtype == jnp.bfloat16
    assert np.array_equal(densify(half), truth(weight).astype(np.float32).astype(jnp.bfloat16))
    assert matmul(jnp.ones((2, 11), jnp.bfloat16), half).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        wide = densify(cast(weight, np.float64))
        assert wide.dtype == np.float64
        assert np.array_equal(wide, truth(weight))


def test_is_a_pytree_of_packed_arrays():
    weight = make()
    leaves, structure = jax.tree.flatten({"embedding": weight})
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.uint8), np.dtype(np.float16), np.dtype(np.uint16)}
    assert structure == jax.tree.structure({"embedding": make()})
    back = jax.jit(lambda tree: tree)({"embedding": weight})["embedding"]
    assert np.array_equal(densify(back), densify(weight))
    assert sum(leaf.nbytes for leaf in leaves) == weight.nbytes
    assert is_weight(weight)
    assert is_quantized(weight)
    assert not is_weight(np.ones(3))
    assert not is_quantized(LowRank(np.ones((3, 1)), np.ones((1, 3))))
    assert len(repr(weight)) < 400
    assert repr(Quantized.from_codes([[1]], [[1]], axis=1)) == (
        "Quantized(codes=(u8[1,1](numpy),), scales=f16[1,1](numpy), steps=None, order=None, runs=((2, 1),), axis=1, "
        "group=1, dtype=dtype('float32'))"
    )


def test_a_stack_is_vmapped():
    weights = [
        Quantized.from_codes(
            codes_of(4, 6, 3, seed=i), floats(4, 2, seed=i), floats(6, seed=i), axis=0, group=3, bits=3
        )
        for i in range(3)
    ]
    stack = jax.tree.map(lambda *arrays: jnp.stack(arrays), *weights)
    assert stack.shape == (3, 6, 4)
    assert stack.ndim == 3
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 6)), jnp.float32)
    products = jax.vmap(matmul)(x, stack)
    for i, weight in enumerate(weights):
        np.testing.assert_allclose(products[i], x[i] @ truth(weight).astype(np.float32), rtol=1e-5, atol=1e-4)
        assert np.array_equal(densify(stack)[i], densify(weight))
    with pytest.raises(ValueError, match="expected a table"):
        take_rows(stack, jnp.array([0]))


@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_of_inputs_scales_and_steps(axis: int):
    weight = with_scales(make(axis=axis, group=4), np.float32)
    n, d = weight.shape
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(size=(3, size)), jnp.float32) for size in (n, d))

    def loss(x: Any, bare: Any) -> Any:
        return jnp.vdot(matmul(x, with_places(bare, weight)), g)

    bare = floats_of(weight)
    assert [leaf.shape for leaf in jax.tree.leaves(bare)] == [(11, 6), (21,)]
    for_x, grads = jax.grad(loss, argnums=(0, 1))(x, bare)
    np.testing.assert_allclose(for_x, np.asarray(g) @ truth(weight).T, rtol=1e-4, atol=1)
    outer = np.asarray(x, float).T @ np.asarray(g, float)
    outer = (outer if axis else outer.T) * np.asarray(weight.unpacked(), float)
    scales, steps = np.asarray(weight.scales, float), np.asarray(weight.steps, float)
    by_group = np.add.reduceat(outer * steps, np.arange(0, 21, 4), axis=1)
    tolerance = 1e-5 * np.abs(outer).max() * 10
    np.testing.assert_allclose(grads.scales, by_group, rtol=1e-4, atol=tolerance)
    expected = (outer * np.repeat(scales, 4, axis=1)[:, :21]).sum(axis=0)
    np.testing.assert_allclose(grads.steps, expected, rtol=1e-4, atol=tolerance)


def pair(left: bool, right: bool) -> tuple[LowRank, np.ndarray]:
    """A product (23, 21) of rank 5 with quantized factors, and its dense matrix."""
    rng = np.random.default_rng(7)
    codes = Quantized.from_codes(codes_of(23, 5, 6), floats(23, 1), floats(5), axis=1)
    other = Quantized.from_codes(codes_of(5, 21, 4), floats(5, 3), axis=1, group=8)
    a = codes if left else rng.normal(size=(23, 5)).astype(np.float32)
    b = other if right else rng.normal(size=(5, 21)).astype(np.float32)
    dense = (truth(codes) if left else np.asarray(a, float)) @ (truth(other) if right else np.asarray(b, float))
    return LowRank(a, b), dense


@pytest.mark.parametrize(("left", "right"), [(True, True), (True, False), (False, True)])
def test_factors_may_be_quantized(left: bool, right: bool):
    weight, expected = pair(left, right)
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4 * np.abs(expected).max()}
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(4, size)), jnp.float32) for size in (23, 21))
    assert weight.shape == (23, 21)
    assert weight.rank == 5
    assert weight.dtype == np.float32
    assert weight.size == 5 * (23 + 21)
    assert weight.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(weight))
    assert is_quantized(weight)
    np.testing.assert_allclose(densify(weight), expected, **close)
    np.testing.assert_allclose(np.concatenate([rows for _, rows in weight.blocks(4)]), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(matmul)(x, weight), np.asarray(x, float) @ expected, **close)
    np.testing.assert_allclose(jax.jit(matmul_transposed)(y, weight), np.asarray(y, float) @ expected.T, **close)
    np.testing.assert_allclose(matmul(y, weight.T), np.asarray(y, float) @ expected.T, **close)
    np.testing.assert_allclose(jax.jit(take_rows)(weight, jnp.array([22, 0])), expected[[22, 0]], **close)
    half = weight.astype(jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    assert matmul(x.astype(jnp.bfloat16), half).dtype == jnp.bfloat16

    def loss(bare: Any) -> Any:
        return matmul(x, with_places(bare, weight)).sum()

    grads = jax.grad(loss)(with_scales(floats_of(weight), np.float32))
    assert all(bool(jnp.any(grad != 0)) for grad in jax.tree.leaves(grads))


def test_floats_and_places_make_the_whole_tree():
    tree = {"kernel": make(axis=0), "embedding": pair(True, False)[0], "bias": jnp.ones(3)}
    bare = floats_of(tree)
    assert all(leaf.dtype in (np.float16, np.float32) for leaf in jax.tree.leaves(bare))
    back = with_places(bare, tree)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert all(a is b for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True))
    wide = with_scales(tree, np.float32)
    assert (
        wide["kernel"].scales.dtype == wide["kernel"].steps.dtype == wide["embedding"].left.scales.dtype == np.float32
    )
    assert wide["kernel"].codes is tree["kernel"].codes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.ones((2, 3))}, "`codes` is float64"),
        ({"codes": np.ones(3, int)}, r"`codes` is int64 of shape \(3,\)"),
        ({"scales": np.ones((2, 2))}, r"`scales` has shape \(2, 2\).*expected \(2, 1\)"),
        ({"scales": np.full((2, 1), 1e39)}, "`scales` .* is not finite in float32"),
        ({"steps": np.ones(2)}, r"`steps` has shape \(2,\).*expected \(3,\)"),
        ({"steps": np.array([1, np.nan, 1])}, "`steps` .* is not finite"),
        ({"axis": 2}, "`axis`, `group`, `bits` are 2"),
        ({"group": 0}, "`axis`, `group`, `bits` are 1, 0"),
        ({"bits": 7}, "`axis`, `group`, `bits` are 1, 3, 7"),
        ({"bits": 3}, "`codes` go from -5 to 4; expected numbers of 3 bits"),
        ({"bits": 0}, "`codes` go from -5 to 4; expected numbers of 0 bits"),
        (
            {"codes": np.array([[1, 2, 40_000], [0, 0, 0]])},
            "`codes` go from 0 to 40000; expected numbers of at most 16",
        ),
        ({"codes": np.array([[1, 2, 2**64 - 1], [0, 0, 0]], np.uint64)}, "expected numbers of at most 16 bits"),
    ],
)
def test_refuses(change: dict[str, Any], message: str):
    arguments = {"codes": np.array([[-5, 4, 0], [0, 1, 2]]), "scales": np.ones((2, 1)), "axis": 1} | change
    with pytest.raises(ValueError, match=message):
        Quantized.from_codes(**arguments)


def test_steps_and_scales_alone_change_the_matrix():
    weight = make()
    doubled = dataclasses.replace(weight, scales=2 * weight.scales)
    assert np.array_equal(densify(doubled), 2 * densify(weight))
