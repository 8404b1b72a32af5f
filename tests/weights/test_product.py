"""Products in bfloat16: sums in float32 on a CPU, the platform's own product elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpjax.weights.dispatch import matmul, matmul_transposed
from lpjax.weights.low_rank import LowRank
from lpjax.weights.product import product
from lpjax.weights.quantized import Quantized


def drawn(shape, dtype=jnp.bfloat16, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def exact(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


SHAPES = [
    ((3, 5), (5, 4)),
    ((2, 3, 5), (5, 1)),
    ((1, 1), (1, 1)),
    ((4, 3, 5), (4, 5, 2)),
    ((5,), (5, 4)),
    ((0, 5), (5, 4)),
]


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_bfloat16_is_the_exact_product_rounded_once(left, right):
    x, y = drawn(left), drawn(right, seed=1)
    result = product(x, y)
    a, b = exact(x, y)
    assert result.dtype == jnp.bfloat16
    # Half a unit in the last of 8 places, and the sum's own rounding.
    bound = 2.0**-8 * np.abs(a @ b) + 1e-5 * (np.abs(a) @ np.abs(b))
    assert np.all(np.abs(exact(result)[0] - a @ b) <= bound)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_other_dtypes_are_multiplied_as_they_are(dtype):
    x, y = drawn((3, 5), dtype), drawn((5, 4), dtype, seed=1)
    assert np.array_equal(product(x, y), x @ y)
    assert product(x, y).dtype == dtype


def test_jit_and_vmap():
    x, y = drawn((6, 3, 5)), drawn((6, 5, 4), seed=1)
    assert np.array_equal(jax.jit(jax.vmap(product))(x, y), product(x, y))


def test_gradients_are_those_of_float32():
    x, y = drawn((3, 5)), drawn((5, 4), seed=1)

    def loss(x, y, multiply):
        return jnp.sum(jnp.sin(multiply(x, y).astype(jnp.float32)))

    narrow = jax.grad(loss, (0, 1))(x, y, product)
    wide = jax.grad(loss, (0, 1))(x.astype(jnp.float32), y.astype(jnp.float32), jnp.matmul)
    for own, other in zip(narrow, wide, strict=True):
        assert own.dtype == jnp.bfloat16
        actual, expected = exact(own, other)
        np.testing.assert_allclose(actual, expected, atol=0.1)


@pytest.mark.parametrize(("platform", "result"), [("cpu", "f32"), ("cuda", "bf16"), ("tpu", "bf16")])
def test_a_program_multiplies_into_float32_on_a_cpu_alone(platform, result):
    """XLA's kernels for bfloat16 on a CPU return float32; other platforms sum in float32 by themselves."""
    program = jax.export.export(jax.jit(product), platforms=[platform])(drawn((3, 5)), drawn((5, 4)))
    products = [line for line in program.mlir_module().splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == 1
    assert f"-> tensor<3x4x{result}>" in products[0]


def test_every_kind_of_weight_is_multiplied_so():
    x, left, right = drawn((3, 8)), drawn((8, 2), seed=1), drawn((2, 8), seed=2)
    codes = np.arange(-32, 32).reshape(8, 8) % 7 - 3
    quantized = Quantized.from_codes(codes, np.full((8, 1), 0.5), axis=1, bits=3, dtype=jnp.bfloat16)
    for weight, dense in (
        (left @ right, left @ right),
        (LowRank(left, right), None),
        (quantized, 0.5 * codes),
        (quantized.T, 0.5 * codes.T),
    ):
        for multiply, turned in ((matmul, False), (matmul_transposed, True)):
            program = str(jax.make_jaxpr(multiply)(x, weight))
            assert "preferred_element_type=float32" in program
            if dense is not None:
                matrix = exact(dense)[0]
                expected = exact(x)[0] @ (matrix.T if turned else matrix)
                np.testing.assert_allclose(exact(multiply(x, weight))[0], expected, atol=0.1)
