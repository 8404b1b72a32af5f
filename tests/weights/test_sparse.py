"""`Sparse`: compressed rows as SciPy has them, and a `LowRank` with single entries as the dense matrix that it is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse

from lpjax import LowRank, densify, matmul, take_rows
from lpjax.weights.dispatch import floats_of, with_places
from lpjax.weights.sparse import Sparse, entries_for, fault_of


def sparse_matrix(n: int, d: int, share: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((n, d)) < share, rng.normal(size=(n, d)), 0).astype(np.float32)


def weight(n: int = 17, d: int = 9, rank: int = 3, share: float = 0.2, dtype: Any = np.float32) -> LowRank:
    rng = np.random.default_rng(1)
    left, right = (rng.normal(size=shape).astype(dtype) for shape in ((n, rank), (rank, d)))
    return LowRank(left, right, Sparse.of(sparse_matrix(n, d, share).astype(dtype)))


def dense(pair: LowRank) -> np.ndarray:
    """By SciPy."""
    assert pair.sparse is not None
    parts = (np.asarray(part) for part in (pair.sparse.values, pair.sparse.columns, pair.sparse.starts))
    values, columns, starts = parts
    entries = scipy.sparse.csr_matrix((values.astype(np.float64), columns, starts), shape=pair.shape)
    return np.asarray(pair.left, np.float64) @ np.asarray(pair.right, np.float64) + entries.toarray()


MATRICES = {
    "some": sparse_matrix(17, 9, 0.2),
    "none": np.zeros((5, 4), np.float32),
    "all": np.ones((3, 8), np.float32),
    "one": np.eye(1, dtype=np.float32),
    "a full row, others empty": np.pad(np.ones((1, 6), np.float32), ((2, 3), (0, 0))),
    "wide": sparse_matrix(2, 1 << 17, 0.001),
}


@pytest.mark.covering(0)
@pytest.mark.parametrize("matrix", MATRICES.values(), ids=list(MATRICES))
def test_it_is_scipys_csr(matrix):
    entries = Sparse.of(matrix)
    expected = scipy.sparse.csr_matrix(matrix)
    assert np.array_equal(entries.values, expected.data)
    assert np.array_equal(entries.columns, expected.indices)
    assert np.array_equal(entries.starts, expected.indptr)
    assert entries.most == np.count_nonzero(matrix, axis=1).max()
    n, d = matrix.shape
    assert np.array_equal(entries.dense(d), matrix)
    assert np.array_equal(np.concatenate([entries.rows(i, min(n, i + 2), d) for i in range(0, n, 2)]), matrix)
    assert fault_of(entries.values, entries.columns, entries.starts, (n, d)) is None
    turned, expected = entries.transposed(d), scipy.sparse.csr_matrix(matrix.T)
    assert np.array_equal(turned.values, expected.data)
    assert np.array_equal(turned.columns, expected.indices)
    assert np.array_equal(turned.starts, expected.indptr)
    ids = np.array([[0, n - 1], [n + 3, -2]])
    assert np.array_equal(entries.take(jnp.asarray(ids), d), matrix[np.clip(ids, 0, n - 1)])
    assert np.array_equal(entries.take(jnp.asarray([n - 1], jnp.uint8), d), matrix[[n - 1]])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("shape", [(17, 9), (3, 70_000)])
def test_its_size_is_that_of_its_bytes(shape, dtype):
    matrix = sparse_matrix(shape[0], shape[1], 0.05)
    entries = Sparse.of(matrix.astype(dtype))
    assert entries.values.dtype == dtype
    width = np.dtype(dtype).itemsize
    size = sum(np.asarray(part).nbytes for part in (entries.values, entries.columns, entries.starts))
    assert 0 <= entries.size * width - size < width
    # The most entries that this number of parameters holds.
    assert entries_for(entries.size, shape, dtype) >= entries.values.size
    assert entries_for(entries.size - 1, shape, dtype) <= entries.values.size
    assert entries_for(3, shape, dtype) == 0


def test_a_pair_with_entries_tells_what_it_is():
    pair = weight()
    assert pair.sparse is not None
    assert pair.shape == (17, 9)
    assert pair.rank == 3
    assert pair.dtype == jnp.float32
    assert pair.size == 3 * (17 + 9) + pair.sparse.size
    assert len(jax.tree.leaves(pair)) == 5
    back = jax.jit(lambda tree: tree)(pair)
    assert jax.tree.structure(back) == jax.tree.structure(pair)
    narrow = pair.astype(jnp.bfloat16)
    assert narrow.dtype == jnp.bfloat16
    assert narrow.sparse is not None
    assert narrow.sparse.columns.dtype == np.uint16


@pytest.mark.parametrize("rows", [1, 4, 5, 400])
@pytest.mark.parametrize("jitted", [False, True])
def test_products_are_those_of_the_dense_matrix(rows, jitted):
    """By the pair and the entries, or by the matrix that they make."""
    pair = weight()
    x = np.random.default_rng(2).normal(size=(rows, 17)).astype(np.float32)
    product = (jax.jit(matmul) if jitted else matmul)(jnp.asarray(x), pair)
    np.testing.assert_allclose(product, x @ dense(pair), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x @ pair, x @ dense(pair), rtol=1e-5, atol=1e-5)
    many = jax.vmap(lambda row: matmul(row, pair))(jnp.asarray(x)[:, None])
    np.testing.assert_allclose(many[:, 0], x @ dense(pair), rtol=1e-5, atol=1e-5)


def test_rows_transpose_and_dense_matrix():
    pair = weight()
    ids = jnp.asarray([[3, 3, 0], [16, 99, -1]])
    np.testing.assert_allclose(take_rows(pair, ids), dense(pair)[np.clip(ids, 0, 16)], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(take_rows)(pair, ids), take_rows(pair, ids), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(densify(pair), dense(pair), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(densify(pair.T), dense(pair).T, rtol=1e-5, atol=1e-6)
    blocks = list(pair.blocks(4))
    assert [start for start, _ in blocks] == [0, 4, 8, 12, 16]
    np.testing.assert_allclose(np.concatenate([rows for _, rows in blocks]), dense(pair), rtol=1e-12)


def test_many_rows_by_narrow_ids():
    pair = weight(n=300)
    assert pair.sparse is not None
    ids = jnp.arange(256, dtype=jnp.uint8)
    entries = dense(pair) - np.asarray(pair.left, np.float64) @ pair.right
    np.testing.assert_allclose(pair.sparse.take(ids, 9), entries[:256], rtol=1e-5, atol=1e-5)


def test_the_transpose_is_not_for_jit():
    with pytest.raises(ValueError, match="can't be transposed under jit"):
        jax.jit(lambda pair: pair.T)(weight())


@pytest.mark.parametrize("rows", [2, 50])
def test_gradients_are_those_of_the_dense_matrix_where_there_are_entries(rows):
    pair = weight()
    x = jnp.asarray(np.random.default_rng(2).normal(size=(rows, 17)), jnp.float32)

    def loss(floats: Any) -> jax.Array:
        return jnp.sum(jnp.sin(matmul(x, with_places(floats, pair))))

    gradient = jax.grad(loss)(floats_of(pair))
    whole = np.asarray(jax.grad(lambda matrix: jnp.sum(jnp.sin(x @ matrix)))(jnp.asarray(dense(pair), jnp.float32)))
    assert gradient.sparse is not None
    assert pair.sparse is not None
    places = np.repeat(np.arange(17), np.diff(pair.sparse.starts)), np.asarray(pair.sparse.columns)
    np.testing.assert_allclose(gradient.sparse.values, whole[places], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient.left, whole @ np.asarray(pair.right).T, rtol=1e-4, atol=1e-4)
    assert jax.tree.structure(with_places(gradient, pair)) == jax.tree.structure(pair)


FAULTS = {
    "columns outside": ("columns", lambda x: np.where(np.arange(x.size) == 3, 9, x), "columns is not below 9"),
    "columns below": ("columns", lambda x: x.astype(np.int32) - 9, "columns is not below 9"),
    "a column twice": ("columns", lambda x: np.zeros_like(x), "rising in each row"),
    "too few columns": ("columns", lambda x: x[1:], "columns has the shape"),
    "no whole columns": ("columns", lambda x: x.astype(np.float32), "expected whole numbers"),
    "starts that fall": ("starts", lambda x: np.where(np.arange(x.size) == 4, x[-1], x), "expected to rise"),
    "starts whose differences wrap": (
        "starts",
        lambda x: np.array([0, 2**62, -(2**63), -(2**62), *[0] * (x.size - 5), x[-1]]),
        "expected to rise from 0",
    ),
    "narrow starts": ("starts", lambda x: x.astype(np.uint8), "expected int32"),
    "starts past the end": ("starts", lambda x: x + 1, "expected to rise from 0"),
    "too few starts": ("starts", lambda x: x[:-1], "starts has the shape"),
    "values of two axes": ("values", lambda x: x[None], "values has the shape"),
}


@pytest.mark.parametrize(("part", "change", "message"), FAULTS.values(), ids=list(FAULTS))
def test_arrays_that_are_no_entries(part, change, message):
    entries = Sparse.of(sparse_matrix(17, 9, 0.4))
    parts = {name: np.asarray(getattr(entries, name)) for name in ("values", "columns", "starts")}
    parts[part] = change(parts[part])
    fault = fault_of(parts["values"], parts["columns"], parts["starts"], (17, 9))
    assert fault is not None
    assert message in fault
