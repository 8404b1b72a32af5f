"""`compress`: what it factors, what it leaves alone, what it records, and what it refuses."""

from __future__ import annotations

import collections
import dataclasses
import threading
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

import lpjax
from lpjax import Choice, LowRank, Solution, compress
from lpjax._mesh import data_mesh
from lpjax._tree import leaves_with_paths
from lpjax.compression import program
from lpjax.report.tables import layers_table
from tests.conftest import GOLDENS
from tests.helpers import (
    heavy_tailed,
    low_rank,
    norm,
    on_devices,
    product,
    subspace_distance,
    truncated_svd,
    write_first,
)
from tests.helpers.trees import RANK, D, N, NeverRun, first_columns, matrix, params


def as_dense(leaf: Any) -> np.ndarray:
    return product(leaf) if isinstance(leaf, LowRank) else np.asarray(leaf, np.float64)


def test_the_tree_keeps_its_structure_and_other_leaves():
    tree = params()
    before = jax.tree.map(lambda x: x if isinstance(x, str) else np.array(x), tree)
    factored, records = compress(tree, select=["table", "up/kernel"], rank=RANK, solver=first_columns)
    old, new = (dict(leaves_with_paths(t)) for t in (tree, factored))
    assert list(old) == list(new)
    assert isinstance(factored["layers"], list)
    assert isinstance(factored["pair"], tuple)
    assert factored["layers"][0]["none"] is None
    chosen = ["layers/0/up/kernel", "layers/1/up/kernel", "table/embedding"]
    assert [record.path for record in records] == chosen
    for path, leaf in new.items():
        assert isinstance(leaf, LowRank) if path in chosen else leaf is old[path]
    for path, leaf in old.items():  # not touched
        assert np.array_equal(leaf, dict(leaves_with_paths(before))[path])
        assert not isinstance(leaf, LowRank)
    # The pair stands where the leaf stood: shape, dtype, orientation, on the host.
    for path in chosen:
        leaf: Any = new[path]
        assert leaf.shape == old[path].shape
        assert leaf.dtype == old[path].dtype
        assert isinstance(leaf.left, np.ndarray)
        assert isinstance(leaf.right, np.ndarray)
    # A table keeps its first columns. A kernel, whose rows are its outputs, keeps its first inputs.
    assert np.array_equal(as_dense(new["table/embedding"])[:, :RANK], old["table/embedding"][:, :RANK])
    assert np.all(as_dense(new["table/embedding"])[:, RANK:] == 0)
    assert np.array_equal(as_dense(new[chosen[0]])[:RANK], old[chosen[0]][:RANK])
    assert np.all(as_dense(new[chosen[0]])[RANK:] == 0)


def test_other_containers():
    class Layer(collections.namedtuple("Layer", ["kernel", "bias"])):
        __slots__ = ()

    tree = collections.OrderedDict(b=Layer(matrix(shape=(D, N)), np.zeros(N)), a=[(matrix(),)])
    factored, records = compress(tree, select="kernel|a/0/0", rank=RANK, solver=first_columns)
    assert [record.path for record in records] == ["b/kernel", "a/0/0"]
    assert list(factored) == ["b", "a"]
    assert isinstance(factored["b"], Layer)
    assert isinstance(factored["b"].kernel, LowRank)
    assert isinstance(factored["a"][0][0], LowRank)


def test_rows_are_tokens_of_a_table_and_outputs_of_a_kernel():
    """Outliers planted along rows are overcome; along the other axis they are not rows at all."""
    truth = low_rank(200, 20, 2).astype(np.float32)
    spoiled = truth.copy()
    spoiled[:8] = 30 * np.random.default_rng(1).normal(size=(8, 20))
    tree = {"embedding": spoiled, "kernel": spoiled.T.copy()}
    right = np.linalg.svd(truth)[2][:2]
    robust = compress(tree, select=".", rank=2, solver="irls_rows", p=1.0).params
    assert subspace_distance(robust["embedding"].right, right) < 1e-3
    assert subspace_distance(robust["kernel"].left.T, right) < 1e-3
    least_squares = compress(tree, select="kernel", rank=2, solver="svd").params
    assert subspace_distance(least_squares["kernel"].left.T, right) > 0.1


@pytest.mark.parametrize("key", ["kernel", "embedding"])
def test_the_axis_of_the_rows_may_be_given(key):
    """`first_columns` keeps all of the rows and the first k columns, whatever the leaf is called."""
    tree = {key: matrix()}
    first = compress(tree, select=".", rank=RANK, solver=first_columns, rows="first").params[key]
    assert np.array_equal(as_dense(first) != 0, np.broadcast_to(np.arange(D) < RANK, (N, D)))
    last = compress(tree, select=".", rank=RANK, solver=first_columns, rows="last").params[key]
    assert np.array_equal(as_dense(last) != 0, np.broadcast_to(np.arange(N)[:, None] < RANK, (N, D)))


def test_batches_do_not_change_the_factors():
    tree = {"embedding": matrix(9), "layers": [{"kernel": matrix(i, (D, N))} for i in range(2)]}
    options: dict[str, Any] = {"select": ".", "rank": RANK, "solver": "svd", "p": 1.2}
    single = compress(tree, **options, batch_size=1)
    for size in (2, 10):
        batched = compress(tree, **options, batch_size=size)
        for a, b in zip(single.records, batched.records, strict=True):
            assert (a.path, a.rank, a.num_iters, a.converged) == (b.path, b.rank, b.num_iters, b.converged)
            assert a.error_rows == pytest.approx(b.error_rows, rel=1e-5)
        pairs = zip(jax.tree.leaves(single.params), jax.tree.leaves(batched.params), strict=True)
        for a, b in pairs:
            assert np.allclose(a, b, atol=1e-3 * np.abs(a).max())
    # Alone, too: nothing of one leaf enters another's factors.
    alone = lpjax.svd(jnp.asarray(tree["layers"][1]["kernel"].T), RANK)
    assert np.allclose(product(alone).T, as_dense(single.params["layers"][1]["kernel"]), atol=1e-4)


def test_batches_bound_the_leaves_at_work():
    seen = []

    def solver(matrix: jax.Array, rank: int, *, p: Any) -> Solution:
        jax.debug.callback(lambda a: seen.append(a.shape), matrix[..., 0, 0], ordered=False)
        return first_columns(matrix, rank, p=p)

    calls = []
    tree = [matrix(i) for i in range(5)]
    compress(
        tree,
        select=".",
        rank=RANK,
        solver=solver,
        batch_size=2,
        rows="first",
        progress=lambda done, total, record: calls.append((done, total, record.path)),
    )
    jax.effects_barrier()
    assert len(seen) == 5
    assert calls == [(i + 1, 5, str(i)) for i in range(5)]


@pytest.mark.parametrize("p", [1.0, 1.5])
def test_record_numbers(p):
    tree = {"embedding": matrix(1), "kernel": matrix(2, (D, N))}
    factored, records = compress(tree, select=".", keep=0.65, solver="lewis", p=p)
    assert [record.path for record in records] == ["embedding", "kernel"]
    for record in records:
        pair = factored[record.path]
        dense = np.asarray(tree[record.path], np.float64)
        assert record.shape == dense.shape
        assert record.rank == pair.rank == RANK  # floor(0.65·119/24)
        assert record.dense_size == 119
        assert record.stored_size == pair.size == RANK * (N + D)
        assert record.note == ""
        assert record.converged
        assert record.num_iters > 0
        assert record.seconds > 0
        # Rows of a kernel are its columns.
        turn = np.transpose if record.path == "kernel" else np.asarray
        residual, whole = turn(dense - product(pair)), turn(dense)
        assert record.error_entries == pytest.approx(norm(residual, p) / norm(whole, p), rel=1e-4)
        assert record.error_rows == pytest.approx(norm(residual, p, "rows") / norm(whole, p, "rows"), rel=1e-4)
        assert record.bound is not None
        assert record.error_entries <= record.bound
        assert all(isinstance(x, float) for x in (record.error_entries, record.error_rows, record.bound))


def test_the_gap_of_a_solve_over_rows():
    """The gap of a stack is that of all its matrices together; that of an exact solve is 0; entries have none."""
    tree = {"kernel": matrix(1, (D, N)), "stack": 10 * np.stack([matrix(i, (D, N)) for i in (2, 3)])}
    known: dict[str, Any] = {"select": ".", "rank": RANK, "input_axes": {"stack": (1, 1)}}
    for batch_size in (None, 2):
        records = compress(tree, solver="irls_rows", p=1.0, batch_size=batch_size, **known).records
        alone = [lpjax.irls_rows(part.T, RANK, p=1.0) for part in (tree["kernel"], *tree["stack"])]
        assert records[0].gap == pytest.approx(float(alone[0].gap), abs=1e-4)
        value, bound = (
            sum(float(getattr(solution, name)) for solution in alone[1:]) for name in ("objective", "lower_bound")
        )
        assert records[1].gap == pytest.approx(1 - bound / value, abs=1e-4)
        assert 0 < (records[1].gap or 0) < 1
    assert "gap" in str(layers_table(records).columns[5].header)
    assert compress(tree, solver="svd", p=2.0, **known).records[1].gap == 0
    for options in ({"solver": "lewis"}, {"solver": "irls_rows", "sparse_share": 0.5}):
        records = compress({"kernel": tree["kernel"]}, select=".", rank=RANK, **options).records
        assert records[0].gap is None
        assert "gap" not in [column.header for column in layers_table(records).columns]


def test_records_of_solvers_without_an_ellipsoid_and_of_zero():
    tree = {"a": np.zeros((D, N), np.float32), "b": matrix(1, (D, N))}
    factored, records = compress(tree, select=".", rank=RANK, solver="svd", p=2.0)
    assert records[0].error_entries == records[0].error_rows == 0
    assert records[0].bound is records[1].bound is None
    assert np.all(as_dense(factored["a"]) == 0)
    expected = norm(tree["b"] - truncated_svd(tree["b"], RANK), 2) / norm(tree["b"], 2)
    assert records[1].error_entries == pytest.approx(expected, rel=1e-5)
    assert records[1].error_rows == pytest.approx(expected, rel=1e-5)


def test_dtypes_are_kept_even_of_leaves_of_one_shape():
    kinds = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]
    tree = [matrix(3, dtype=kind) for kind in kinds]
    factored, records = compress(tree, select=".", rank=RANK, solver="svd", p=1.0, batch_size=4)
    for kind, leaf, pair, record in zip(kinds, tree, factored, records, strict=True):
        assert pair.left.dtype == pair.right.dtype == leaf.dtype == kind
        # Measured on the factors as they are stored.
        residual = leaf.astype(np.float64) - product(pair)
        expected = norm(residual, 1) / norm(leaf, 1)
        assert record.error_entries == pytest.approx(expected, rel=1e-4)
    assert records[1].error_entries != records[0].error_entries


def test_double_precision_is_used_where_it_is_on(x64):
    leaf = matrix(dtype=np.float64) * 1e200  # beyond float32
    pair = compress([leaf], select=".", rank=RANK, solver="svd", rows="first").params[0]
    assert pair.left.dtype == np.float64
    assert np.allclose(product(pair), truncated_svd(leaf, RANK), rtol=1e-9, atol=1e-9 * np.abs(leaf).max())


def test_what_stays_dense():
    already = LowRank(np.ones((N, 2), np.float32), np.ones((2, D), np.float32))
    tree = {"a": matrix(0), "b": np.ones((1, 40), np.float32), "c": already, "d": matrix(1, (90, 80))}
    calls = []
    stub = NeverRun()
    factored, records = compress(tree, select="a|b|c", keep=0.1, solver=stub, progress=lambda *x: calls.append(x))
    jax.effects_barrier()
    assert stub.runs == 0
    assert all(factored[key] is tree[key] for key in "abcd")
    a, b, c = records
    assert (a.rank, a.dense_size, a.stored_size, a.error_entries) == (None, 119, 119, 0)
    assert "even rank 1" in a.note
    assert (b.rank, b.stored_size) == (None, 40)
    assert (c.rank, c.dense_size, c.stored_size) == (2, N * D, 2 * (N + D))
    assert "stays as it is" in c.note
    assert calls == [(i + 1, 3, record) for i, record in enumerate(records)]
    # A rank whose pair is as large as the matrix, or larger; beside one that is solved.
    factored, records = compress(tree, select="a|d", rank=5, solver=first_columns)
    assert factored["a"] is tree["a"]
    assert "a pair of rank 5 has 120 parameters, no fewer" in records[0].note
    assert records[1].rank == 5
    assert (records[1].num_iters, records[1].converged) == (4, False)
    assert compress({"k": np.ones((6, 3), np.float32)}, select="k", rank=2, solver=stub).records[0].rank is None


@pytest.mark.parametrize("rows", ["auto", "first"])
def test_kernels_of_more_axes_are_solved_as_the_matrix_that_they_are(rows):
    """Flax's attention: query (hidden, heads, head size), out (heads, head size, hidden)."""
    query, out = (heavy_tailed(8, 15, seed).astype(np.float32) for seed in (0, 1))
    tree = {"query": {"kernel": query.reshape(8, 3, 5)}, "out": {"kernel": jnp.asarray(out.T.reshape(3, 5, 8))}}
    flat = {"query": {"kernel": query}, "out": {"kernel": out.T}}
    options: dict[str, Any] = {"select": "kernel", "keep": 0.6, "solver": "svd", "rows": rows}
    axes = {"query/kernel": 1, "out/kernel": 2}
    factored, records = compress(tree, input_axes=axes, **options)
    expected, plain = compress(flat, **options)
    assert [record.shape for record in records] == [(3, 5, 8), (8, 3, 5)]
    assert [factored[name]["kernel"].shape for name in ("out", "query")] == [(15, 8), (8, 15)]
    for a, b in zip(jax.tree.leaves(factored), jax.tree.leaves(expected), strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(records, plain, strict=True):
        assert msgspec.structs.replace(a, shape=b.shape, seconds=0) == msgspec.structs.replace(b, seconds=0)
    # A second time there is nothing left to do, whatever the entries say.
    again, notes = compress(factored, input_axes={"query/kernel": 1, "out/kernel": 1}, **options)
    assert all("is no smaller than the present one" in record.note for record in notes)
    assert again["out"]["kernel"] is factored["out"]["kernel"]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_stack_of_kernels_gets_a_stack_of_pairs(batch_size):
    """What nn.scan makes of layers: each is solved alone, and one record tells of them all."""
    layers = [matrix(seed, (D, N)) * 10.0**seed for seed in range(3)]
    stack = np.stack(layers).reshape(3, D, N, 1)
    tree = {"a": {"kernel": jnp.asarray(stack)}, "b": {"kernel": matrix(7, (D, N))}}
    calls = []
    factored, records = compress(
        tree,
        select="kernel",
        rank=RANK,
        solver="lewis",
        p=1.5,
        input_axes={"a/kernel": (1, 1)},
        batch_size=batch_size,
        progress=lambda *x: calls.append(x),
    )
    assert calls == [(i + 1, 2, record) for i, record in enumerate(records)]
    record, pair = records[0], factored["a"]["kernel"]
    assert (record.shape, record.rank) == (stack.shape, RANK)
    assert (record.dense_size, record.stored_size) == (3 * N * D, pair.size) == (3 * N * D, 3 * RANK * (N + D))
    assert pair.shape == (3, D, N)
    pairs, alone = compress(layers, select=".", rank=RANK, solver="lewis", p=1.5, batch_size=1)
    for i, layer in enumerate(layers):
        expected = as_dense(pairs[i])
        assert np.allclose(as_dense(LowRank(pair.left[i], pair.right[i])), expected, atol=1e-4 * np.abs(layer).max())
    assert record.num_iters == max(solution.num_iters for solution in alone)
    assert record.converged
    # Norms over the whole stack, from their definition.
    residual = np.stack(layers).astype(np.float64) - np.asarray(pair.left, np.float64) @ pair.right
    rows, whole = (x.swapaxes(1, 2).reshape(3 * N, D) for x in (residual, np.stack(layers)))
    assert record.error_entries == pytest.approx(norm(rows, 1.5) / norm(whole, 1.5), rel=1e-4)
    assert record.error_rows == pytest.approx(norm(rows, 1.5, "rows") / norm(whole, 1.5, "rows"), rel=1e-4)
    parts = [(solution.bound or 0) * norm(layer, 1.5) for solution, layer in zip(alone, layers, strict=True)]
    assert record.bound == pytest.approx(sum(x**1.5 for x in parts) ** (1 / 1.5) / norm(whole, 1.5), rel=1e-4)


def test_stacks_of_stacks_of_zeros_and_none():
    tree = {"embedding": np.zeros((2, 3, N, D), np.float32), "none": np.zeros((0, N, D), np.float32)}
    axes = {"embedding": (2, 1), "none": (1, 1)}
    factored, records = compress(tree, select=".", rank=RANK, solver=first_columns, input_axes=axes)
    assert (factored["embedding"].left.shape, factored["embedding"].right.shape) == ((2, 3, N, RANK), (2, 3, RANK, D))
    assert records[0].error_entries == 0
    assert factored["none"] is tree["none"]
    assert records[1].rank is None
    # As the rows of a table, whatever flax's boxes add to its path.
    boxed = compress({"embedding": {"value": matrix()}}, select=".", rank=RANK, solver=first_columns).params
    assert np.array_equal(as_dense(boxed["embedding"]["value"])[:, :RANK], matrix()[:, :RANK])


def test_row_weights_of_a_stack():
    stack, weights = np.stack([matrix(1), matrix(2)]), np.random.default_rng(0).uniform(0.1, 5, (2, N))
    options: dict[str, Any] = {"select": ".", "rank": RANK, "solver": "svd", "input_axes": {"embedding": (1, 1)}}
    pair = compress({"embedding": stack}, row_weights={"embedding": weights}, **options).params["embedding"]
    for i in range(2):
        root = np.sqrt(weights[i])[:, None]
        product = root * np.asarray(pair.left[i], np.float64) @ pair.right[i]
        assert np.allclose(product, truncated_svd(root * stack[i], RANK), atol=1e-4 * np.abs(stack[i]).max())
    for wrong in (weights[0], weights.T, weights * [[1], [0]]):
        with pytest.raises(ValueError, match="`row_weights` of embedding"):
            compress({"embedding": stack}, row_weights={"embedding": wrong}, **options)


def test_row_weights():
    tree = {"embedding": matrix(1), "other": {"embedding": matrix(2)}, "kernel": matrix(3, (D, N))}
    rng = np.random.default_rng(0)
    weights = {"embedding": rng.uniform(0.1, 5, N), "kernel": rng.uniform(0.1, 5, N)}
    factored, records = compress(tree, select=".", rank=RANK, solver="svd", row_weights=weights)
    for path, dense in (("embedding", tree["embedding"]), ("kernel", tree["kernel"].T)):
        root = np.sqrt(weights[path])[:, None]
        product = as_dense(factored[path])
        product = product.T if path == "kernel" else product
        assert np.allclose(root * product, truncated_svd(root * dense, RANK), atol=1e-4 * np.abs(dense).max())
    plain = truncated_svd(tree["other"]["embedding"], RANK)
    assert np.allclose(as_dense(factored["other"]["embedding"]), plain, atol=1e-4 * np.abs(plain).max())
    assert [record.path for record in records] == ["embedding", "kernel", "other/embedding"]
    weighted = compress(
        {"embedding": matrix(1)},
        select=".",
        rank=RANK,
        solver="lewis",
        row_weights={"embedding": weights["embedding"]},
    )
    assert weighted.records[0].bound is None  # the ellipsoid's is of the weighted norm


def test_a_shape_is_compiled_once_whatever_the_call_and_p():
    traced = []

    def solver(matrix: jax.Array, rank: int, *, p: Any, tail: Any = None, num_iters: int = 1) -> Solution:
        traced.append(rank)
        return first_columns(matrix, rank, p=p)

    def times(**options: Any) -> int:
        """How often the solver is traced; a rehearsal is one of them."""
        traced.clear()
        compress(params(), **({"select": "table", "rank": RANK, "solver": solver} | options))
        return len(traced)

    assert [times(p=1.0), times(p=1.0), times(p=1.5)] == [2, 1, 1]
    assert [times(rank=2), times(rank=2)] == [2, 1]
    assert [times(num_iters=2), times(num_iters=3), times(num_iters=2)] == [2, 2, 1]
    assert [times(num_iters=1), times(num_iters=True)] == [2, 2]
    assert [times(tail=np.ones(3)), times(tail=np.ones(3))] == [2, 2]  # arrays cannot be compared
    assert [times(select="kernel", tail=np.ones(3)), len(params()["layers"])] == [2, 2]  # but once a call


@pytest.mark.covering(0)
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("sparse", [0.0, 0.3])
def test_one_program_solves_a_shape_at_all_ranks_by_svd(batch_size, sparse):
    rng = np.random.default_rng(0)
    tree = {str(i): {"kernel": rng.standard_t(3, size=(30, 20)).astype(np.float32)} for i in range(5)}
    plan = {f"{i}/kernel": Choice(i + 5, "svd", 2.0, sparse + 0.05 * i * (sparse > 0)) for i in range(5)}
    program._compile.cache_clear()
    result = compress(tree, plan=plan, batch_size=batch_size)
    heights = 1 if batch_size is None else 2  # and a last one alone
    assert program._compile.cache_info().misses == heights
    for record, (path, choice) in zip(result.records, plan.items(), strict=True):
        alone = compress(tree, plan={path: choice})
        pair, expected = (dict(leaves_with_paths(params))[path] for params in (result.params, alone.params))
        assert (pair.rank, pair.nnz) == (expected.rank, expected.nnz)
        assert (record.rank, record.stored_size) == (expected.rank, alone.records[0].stored_size)
        for name in ("error_entries", "error_rows"):
            assert getattr(record, name) == pytest.approx(getattr(alone.records[0], name), rel=1e-4)
        if not sparse:
            best = truncated_svd(tree[path.split("/")[0]]["kernel"], pair.rank)
            assert np.allclose(pair.left @ pair.right, best, atol=1e-4)


def test_options_reach_the_solver():
    seen: list[dict[str, Any]] = []

    def solver(matrix: jax.Array, rank: int, *, p: Any, **options: Any) -> Solution:
        seen.append(options)
        return first_columns(matrix, rank, p=p)

    compress([matrix()], select=".", rank=RANK, solver=solver, num_iters=7, tol=0.5, flavour="none")
    assert seen
    assert all(options == {"num_iters": 7, "tol": 0.5, "flavour": "none"} for options in seen)
    record = compress([matrix()], select=".", rank=RANK, solver="irls_rows", num_iters=2, tol=0.0).records[0]
    assert record.num_iters == 2
    assert not record.converged


def wrong_shapes(matrix: jax.Array, rank: int, *, p: Any) -> Solution:
    return first_columns(matrix, rank + 1, p=p)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"rank": None}, "expected exactly one of them"),
    ({"keep": 0.5}, "expected exactly one of them"),
    ({"rank": None, "keep": 0.0}, "`keep` is 0.0"),
    ({"rank": None, "keep": 1.5}, "`keep` is 1.5"),
    ({"rank": None, "keep": float("nan")}, "`keep` is nan"),
    ({"rank": 0}, "`rank` is 0"),
    ({"rank": 2.0}, "`rank` is 2.0"),
    ({"rank": True}, "`rank` is True"),
    ({"rows": "second"}, "`rows` is 'second'"),
    ({"batch_size": 0}, "`batch_size` is 0"),
    ({"batch_size": 1.5}, "`batch_size` is 1.5"),
    ({"select": "nothing_such"}, "matches no leaf"),
    ({"select": "bias"}, "not floating matrices"),
    ({"solver": "pca"}, "`solver` is 'pca'; expected one of svd, lewis"),
    ({"solver": wrong_shapes}, "returned factors of shapes ((17, 4), (4, 7)); expected ((17, 3), (3, 7))"),
    ({"solver": lambda matrix, rank, *, p: (matrix, matrix)}, "returned a tuple; expected a `Solution`"),
    ({"solver": "svd", "p": 0.5}, "`p` is 0.5"),
    ({"solver": "lewis", "p": 0.0}, "`p` is 0.0"),
    ({"solver": "irls_rows", "num_iters": -1}, "`num_iters` is -1"),
    ({"solver": "admm_entries", "tol": -1.0}, "`tol` is -1.0"),
    ({"solver": "irls_rows", "init": "spectral"}, "`init` is 'spectral'"),
    ({"row_weights": {"nowhere": np.ones(N)}}, "not selected: nowhere"),
    ({"row_weights": {"a/kernel": np.ones(D)}}, "`row_weights` of a/kernel has shape (7,)"),
    ({"row_weights": {"a/kernel": -np.ones(N)}}, "`row_weights` of a/kernel"),
    ({"row_weights": {"a/kernel": np.full(N, np.nan)}}, "`row_weights` of a/kernel"),
    ({"row_weights": {"a/kernel": np.zeros(N)}}, "`row_weights` of a/kernel is all zero"),
    ({"input_axes": {"params/a/kernel": 1}}, "names params/a/kernel, which is not a leaf of `params`; expected"),
    ({"input_axes": {"a/kernel": 0}}, "`input_axes` of a/kernel is 0; expected a number of axes"),
    ({"input_axes": {"a/kernel": "1"}}, "`input_axes` of a/kernel is '1'"),
    ({"input_axes": {"a/kernel": (-1, 1)}}, "`input_axes` of a/kernel is (-1, 1)"),
    ({"input_axes": {"a/kernel": (1, 1, 1)}}, "`input_axes` of a/kernel is (1, 1, 1)"),
    ({"input_axes": {"a/kernel": 2}}, "`input_axes` of a/kernel is 2, but its shape is (7, 17)"),
    ({"input_axes": {"a/kernel": (1, 1)}}, "`input_axes` of a/kernel is (1, 1), but its shape is (7, 17)"),
    ({"input_axes": {"a/bias": 1}}, "`input_axes` of a/bias is 1, but its shape is (17,)"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words[:40] for _, words in BAD])
def test_misuse_is_refused_before_any_work(change, words):
    stub = NeverRun()
    tree = {"a": {"kernel": matrix(0, (D, N)), "bias": np.zeros(N)}, "b": {"kernel": matrix(1, (N, D))}}
    arguments: dict[str, Any] = {"select": "kernel", "rank": RANK, "solver": stub} | change
    with pytest.raises(ValueError, match="`") as caught:
        compress(tree, progress=lambda *_: pytest.fail("something was solved"), **arguments)
    assert words in str(caught.value)
    jax.effects_barrier()
    assert stub.runs == 0


def test_unknown_options_are_refused_before_any_work():
    with pytest.raises(TypeError, match="flavour"):
        compress([matrix()], select=".", rank=RANK, solver="svd", flavour="none")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_leaf_that_is_not_finite_is_named(dtype, value):
    tree = [matrix(0, (5000, 3), dtype), matrix(1, (5000, 3), dtype)]
    tree[1][4999, 2] = value
    stub = NeverRun()
    with pytest.raises(ValueError, match=r"^1 holds NaN or infinite"):
        compress(tree, select=".", rank=1, solver=stub)
    jax.effects_barrier()
    assert stub.runs == 0


def test_numbers_that_float32_cannot_hold_are_refused_without_x64():
    with pytest.raises(ValueError, match=r"^0 holds NaN or infinite entries \(as float32\)"):
        compress([matrix(dtype=np.float64) * 1e200], select=".", rank=RANK, solver="svd")


def test_factors_survive_a_checkpoint(tmp_path):
    """Real names, a real solver, saved and loaded: bit for bit what compress made."""
    checkpoint = lpjax.load_checkpoint(GOLDENS / "bert_base")
    factored, records = compress(checkpoint.params, select="embeddings", keep=0.5, solver="svd")
    assert records[0].rank is not None
    lpjax.save_checkpoint(dataclasses.replace(checkpoint, params=factored), tmp_path / "small")
    back = lpjax.load_checkpoint(tmp_path / "small").params
    for a, b in zip(jax.tree.leaves(factored), jax.tree.leaves(back), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def tree_of_layers() -> dict:
    """Five kernels of one shape, one of another with a stack of three, and an embedding; with weights for the five."""
    rng = np.random.default_rng(7)
    kernels = {f"layer_{i}": {"kernel": rng.standard_t(3, size=(12, 16)).astype(np.float32)} for i in range(5)}
    stacked = {"kernel": rng.normal(size=(3, 12, 12)).astype(np.float32)}
    return {**kernels, "stack": stacked, "words": {"embedding": rng.normal(size=(40, 12)).astype(np.float32)}}


def compress_layers() -> Any:
    weights = {f"layer_{i}/kernel": np.linspace(0, 1 + i, 16) for i in range(5)}
    return lpjax.compress(
        tree_of_layers(),
        select="kernel|embedding",
        rank=3,
        solver="irls_rows",
        p=1.5,
        num_iters=10,
        row_weights=weights,
        input_axes={"stack/kernel": (1, 1)},
    )


def write_compressed(target: str) -> None:
    """Factors and shares of all leaves, of the layers spread over all devices of all processes."""
    result = compress_layers()
    arrays = {}
    for record in result.records:
        pair = dict(leaves_with_paths(result.params))[record.path]
        arrays[record.path] = np.asarray(pair.left @ pair.right)
        arrays[f"{record.path}: objective"] = np.array([record.error_entries, record.error_rows])
    write_first(arrays, target)


@pytest.mark.parametrize(
    ("devices", "processes"),
    [
        pytest.param(8, 1, marks=pytest.mark.slow),
        (2, 1),
        pytest.param(2, 2, marks=pytest.mark.slow),
        pytest.param(8, 2, marks=pytest.mark.slow),
    ],
)
def test_layers_over_many_devices_come_out_as_on_one(devices, processes, tmp_path):
    write_compressed(str(tmp_path / "one.safetensors"))
    expected = load_file(tmp_path / "one.safetensors")
    actual = on_devices(
        "tests.compression.test_compress.write_compressed", tmp_path / "many.safetensors", devices, processes
    )
    assert actual.keys() == expected.keys()
    assert len(actual) == 14
    for name, array in expected.items():
        assert np.abs(actual[name] - array).max() < 1e-5 * max(1, np.abs(array).max()), name


def test_a_cpu_solves_several_at_a_time_but_for_a_batch_size(monkeypatch):
    """Each of two solves waits until the other has begun, or gives up."""
    met: list[bool] = []

    def meet(barrier: threading.Barrier) -> None:
        try:
            barrier.wait(timeout=2)
        except threading.BrokenBarrierError:
            met.append(False)
        else:
            met.append(True)

    def together(batch_size: int | None) -> bool:
        met.clear()
        barrier = threading.Barrier(2)

        def solver(matrix: jax.Array, rank: int, *, p: Any) -> Solution:
            jax.debug.callback(lambda _: meet(barrier), matrix[0, 0])
            return first_columns(matrix, rank, p=p)

        devices = data_mesh(jax.devices()[:1])
        compress([matrix(), matrix(1)], select=".", rank=RANK, solver=solver, batch_size=batch_size, mesh=devices)
        jax.effects_barrier()
        return all(met)

    monkeypatch.setattr(program, "cores", lambda: 2)
    assert together(None)
    assert not together(1)
