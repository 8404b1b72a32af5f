"""What solvers take for a matrix, as NumPy does, and what they refuse in a sentence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import scipy.sparse
from jax.experimental import sparse

import lpjax
from tests.helpers import SOLVERS, product

NUMBERS = np.array([[1, 2, 0], [0, 1, 1], [3, 0, 1], [2, 2, 2]])


class Tensor:
    """As PyTorch's are: no array, but one for NumPy."""

    def __array__(self, dtype=None, copy=None):
        return NUMBERS.astype(np.float32)


class OnAnotherDevice:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy.\nUse Tensor.cpu() first.")


@pytest.mark.parametrize(
    "numbers",
    [
        NUMBERS.tolist(),
        tuple(map(tuple, NUMBERS)),
        [jnp.asarray(row) for row in NUMBERS],
        pandas.DataFrame(NUMBERS, columns=["a", "b", "c"]),
        Tensor(),
        np.asmatrix(NUMBERS),
        np.asfortranarray(NUMBERS.astype(np.float64)),
        *(NUMBERS.astype(kind) for kind in (np.int8, np.uint64, np.float16, np.longdouble, ">f4", ">i2", jnp.bfloat16)),
        jnp.asarray(NUMBERS),
    ],
    ids=lambda numbers: f"{type(numbers).__name__}-{getattr(numbers, 'dtype', '')}",
)
def test_what_numpy_takes_for_numbers(numbers):
    solution = lpjax.svd(numbers, 2, row_weights=[1, 2, 1, 1])
    expected = lpjax.svd(NUMBERS.astype(np.float32), 2, row_weights=np.array([1, 2, 1, 1], np.float32))
    assert solution.left.dtype == jnp.float32
    assert np.array_equal(product(solution), product(expected))
    assert lpjax.lp_norm(numbers, 1) == pytest.approx(NUMBERS.sum(), rel=1e-6)


def test_booleans_and_doubles(x64):
    flags = NUMBERS > 1
    solution = lpjax.svd(flags, 2)
    assert solution.left.dtype == jnp.float64
    assert np.array_equal(product(solution), product(lpjax.svd(flags.astype(np.float64), 2)))
    assert float(lpjax.lp_norm(flags.tolist(), 1)) == flags.sum()


def test_lists_with_traced_numbers():
    run = jax.jit(lambda x: lpjax.lp_norm([[x, 1.0], [2.0, x]], 1.0))
    assert run(3.0) == pytest.approx(9)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (
            scipy.sparse.csr_matrix(NUMBERS),
            "`matrix` is a sparse csr_matrix of SciPy; expected a dense array: call ",
        ),
        (scipy.sparse.coo_array(NUMBERS), "`matrix` is a sparse coo_array of SciPy"),
        (sparse.BCOO.fromdense(NUMBERS), "`matrix` is a sparse BCOO of JAX; expected a dense array: call .todense"),
        (np.ma.masked_equal(NUMBERS, 2), "`matrix` is a masked array; expected numbers alone: fill it"),
        (NUMBERS.astype(str), "`matrix` has dtype <U21; expected numbers"),
        ([["a", "b"], ["c", "d"]], "`matrix` has dtype <U1"),
        ([[1, "b"], [2, 3]], "`matrix` has dtype <U21"),
        (NUMBERS.astype(object), "`matrix` holds objects, such as a int"),
        (pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]}), "`matrix` holds objects"),
        (NUMBERS.astype(complex), "`matrix` has dtype complex128; expected real numbers"),
        (NUMBERS.astype("datetime64[s]"), "`matrix` has dtype datetime64[s]"),
        ([[1.0, 2.0], [3.0]], "`matrix` is a list whose parts have different lengths"),
        ([], "`matrix` has shape (0,)"),
        (3.0, "`matrix` has shape ()"),
        (None, "`matrix` is a NoneType; expected an array of numbers"),
        ({"a": 1}, "`matrix` is a dict; expected an array of numbers"),
        ("matrix.npy", "`matrix` has dtype <U10"),
        (
            lpjax.LowRank(np.ones((3, 1), np.float32), np.ones((1, 3), np.float32)),
            "`matrix` is a LowRank; expected an",
        ),
        (OnAnotherDevice(), "`matrix` is a OnAnotherDevice that NumPy cannot read: can't convert cuda:0 device type"),
        ([[np.nan, 1.0], [1.0, 1.0]], "`matrix` holds NaN or infinite entries; expected finite numbers"),
        (NUMBERS[None], "`matrix` has shape (1, 4, 3); expected (n, d)"),
    ],
    ids=lambda part: type(part).__name__ if not isinstance(part, str) else part[:30],
)
def test_what_is_no_matrix_of_numbers_is_refused_in_a_sentence(name, matrix, words):
    with pytest.raises(ValueError) as caught:
        lpjax.SOLVERS[name](matrix, 1)
    message = str(caught.value)
    assert message.startswith(words)
    assert len(message) < 250
    assert "\n" not in message
    assert "checkpoint" not in message


def test_other_arguments_are_numbers_too():
    for options, words in (
        ({"row_weights": scipy.sparse.csr_matrix(NUMBERS)}, "`row_weights` is a sparse csr_matrix"),
        ({"row_weights": ["a"] * 4}, "`row_weights` has dtype <U1"),
        ({"metric": np.ma.masked_array(np.eye(3))}, "`metric` is a masked array"),
        ({"metric": np.eye(3) * 1j}, "`metric` has dtype complex128"),
        ({"p": "2"}, "`p` is a str; expected a number in [1, inf]"),
        ({"p": None}, "`p` is a NoneType; expected a number"),
    ):
        with pytest.raises(ValueError) as caught:
            lpjax.svd(NUMBERS, 2, **options)
        assert str(caught.value).startswith(words)
    with pytest.raises(ValueError, match="`init` is a list whose parts have different lengths"):
        lpjax.irls_rows(NUMBERS, 2, init=([[1, 2], [3]], np.ones((2, 3))))
    metric = pandas.DataFrame(np.eye(3))
    assert np.array_equal(lpjax.svd(NUMBERS, 2, metric=metric).left, lpjax.svd(NUMBERS, 2, metric=np.eye(3)).left)


def test_bounds_take_lists_and_refuse_the_rest():
    values = [3.0, 2, 1]
    assert lpjax.lower_bound(values, 1) == 2
    assert lpjax.operator_bound(values, 1, 2.0) == 4
    assert lpjax.entries_bound(values, 1, 1.0, 1, 2.0) == pytest.approx(5**0.5)
    for singular, words in ((["a"], "`singular_values` has dtype"), ([[1.0]], "`singular_values` has shape (1, 1)")):
        with pytest.raises(ValueError) as caught:
            lpjax.lower_bound(singular, 0)
        assert str(caught.value).startswith(words)
