"""Pairs are made smaller as if their product were a dense matrix, and without forming it if possible."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax._tree import leaves_with_paths
from lpjax.allocation._spectra import weighted_singular_values
from lpjax.compression.record import read_record, record_of
from lpjax.weighting.metric import UNWEIGHTED
from lpjax.weighting.statistics import Calibration, Statistics
from tests.helpers import heavy_tailed, norm, product, truncated_svd

SHAPE = (37, 23)


def pair_of(keep: float = 0.9, sparse: float = 0.0, seed: int = 0, key: str = "kernel") -> lpjax.LowRank:
    matrix = heavy_tailed(*SHAPE, seed).astype(np.float32)
    return lpjax.compress({key: matrix}, select=".", keep=keep, solver="svd", sparse_share=sparse).params[key]


def whole(pair: lpjax.LowRank) -> np.ndarray:
    return np.concatenate([rows for _, rows in pair.blocks(64)])


@pytest.mark.parametrize("key", ["kernel", "embedding"])
def test_the_svd_of_a_pair_is_that_of_its_product(key):
    first = pair_of(0.7, key=key)
    params, (record,) = lpjax.compress({key: first}, select=".", keep=0.4, solver="svd")
    pair = params[key]
    assert pair.rank == lpjax.rank_for(SHAPE, 0.4)  # of the dense matrix, not of the pair
    assert (record.dense_size, record.stored_size) == (37 * 23, pair.size)
    assert record.stored_size <= 0.4 * 37 * 23
    expected = truncated_svd(product(first), pair.rank)
    assert np.allclose(product(pair), expected, atol=1e-5 * np.abs(expected).max())
    lost = norm(product(first) - product(pair), 2) / norm(product(first), 2)
    assert record.error_entries == pytest.approx(lost, rel=1e-4)
    assert record.error_rows == pytest.approx(lost, rel=1e-4)


@pytest.mark.covering(0)
@pytest.mark.parametrize("solver", ["lewis", "irls_rows", "admm_entries"])
def test_a_solver_gives_what_it_gives_of_the_product(solver):
    first = pair_of(key="embedding")
    params, (record,) = lpjax.compress({"embedding": first}, select=".", rank=5, solver=solver, p=1.0)
    pair = params["embedding"]
    direct = lpjax.SOLVERS[solver](product(first).astype(np.float32), 5, p=1.0)
    over = "rows" if solver == "irls_rows" else "entries"
    error, expected = (norm(product(first) - product(factors), 1, over) for factors in (pair, direct))
    assert error == pytest.approx(expected, rel=1e-3)
    recorded = record.error_rows if over == "rows" else record.error_entries
    assert recorded == pytest.approx(error / norm(product(first), 1, over), rel=1e-4)


def test_under_the_weights_of_a_calibration():
    first, rng = pair_of(), np.random.default_rng(3)
    inputs, outputs = (m.T @ m for m in (rng.normal(size=(80, 37)), rng.normal(size=(80, 23))))
    known = Statistics(9, inputs.astype(np.float32), outputs=outputs.astype(np.float32))
    calibration, weighting = Calibration({"kernel": known}, "", 1, 9, 0), lpjax.Weighting(shrinkage=0)
    options = {"select": ".", "rank": 5, "solver": "svd", "statistics": calibration, "weighting": weighting}
    pair = lpjax.compress({"kernel": first}, **options).params["kernel"]
    dense = lpjax.compress({"kernel": product(first).astype(np.float32)}, **options)
    assert np.allclose(product(pair), product(dense.params["kernel"]), atol=1e-3 * np.abs(product(first)).max())
    record = lpjax.compress({"kernel": first}, **options).records[0]
    assert record.error_weighted == pytest.approx(dense.records[0].error_weighted, rel=1e-3)
    # Row weights of the caller's, too.
    weights = rng.uniform(0.1, 3, 23).astype(np.float32)
    kernel = lpjax.compress({"kernel": first}, select=".", rank=5, solver="svd", row_weights={"kernel": weights})
    root = np.sqrt(weights)[None, :]
    assert np.allclose(product(kernel.params["kernel"]) * root, truncated_svd(product(first) * root, 5), atol=1e-3)


def test_single_entries_are_multiplied_out_and_chosen_anew():
    first = pair_of(sparse=0.3)
    assert first.nnz
    params, (record,) = lpjax.compress({"kernel": first}, select=".", keep=0.4, solver="svd")
    assert params["kernel"].sparse is None
    expected = truncated_svd(whole(first), params["kernel"].rank)
    assert np.allclose(product(params["kernel"]), expected, atol=1e-4 * np.abs(expected).max())
    again, (other,) = lpjax.compress({"kernel": first}, select=".", keep=0.4, solver="svd", sparse_share=0.3)
    assert again["kernel"].nnz
    assert again["kernel"].size <= 0.4 * 37 * 23
    assert other.error_entries < record.error_entries


def test_a_rank_that_is_no_smaller_leaves_the_pair():
    first = pair_of(0.5)
    params, (record,) = lpjax.compress({"kernel": first}, select=".", keep=0.6)
    assert params["kernel"] is first
    kept = f"a pair of rank 8 is no smaller than the present one of rank {first.rank}, which keeps"
    assert record.note.startswith(f"stays as it is: {kept}")
    assert record.rank == first.rank
    _, (planned,) = lpjax.compress({"kernel": first}, plan={"kernel": lpjax.Choice(None)})
    assert planned.note == "stays as it is: the plan leaves it unchanged"


def test_stacks_of_pairs():
    pairs = [pair_of(seed=seed) for seed in (0, 1)]
    lefts, rights = zip(*((np.asarray(pair.left), np.asarray(pair.right)) for pair in pairs), strict=True)
    stack = lpjax.LowRank(np.stack(lefts), np.stack([right * 1000**i for i, right in enumerate(rights)]))
    result = lpjax.compress({"kernel": stack}, select=".", rank=4, solver="svd", input_axes={"kernel": (1, 1)})
    for i, pair in enumerate(pairs):
        expected = truncated_svd(product(pair) * 1000.0**i, 4)
        got = np.asarray(result.params["kernel"].left[i]) @ np.asarray(result.params["kernel"].right[i])
        assert np.allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    lost = [norm(product(pair) - truncated_svd(product(pair), 4), 2) * 1000.0**i for i, pair in enumerate(pairs)]
    total = [norm(product(pair), 2) * 1000.0**i for i, pair in enumerate(pairs)]
    assert result.records[0].error_entries == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(total), rel=1e-4)


@pytest.mark.parametrize("allocation", ["uniform", "error"])
def test_a_budget_is_one_of_the_dense_net(allocation):
    tree = {"encoder": {"attention": {"kernel": pair_of(0.8)}, "ffn": {"kernel": pair_of(0.5, seed=1)}},
            "bias": np.zeros(5, np.float32)}  # fmt: skip
    dense = 2 * 37 * 23 + 5
    plan = lpjax.allocate(tree, budget=0.4, select="kernel", allocation=allocation, methods=[("svd", 2.0)])
    params, records = lpjax.compress(tree, plan=plan)
    left = sum(leaf.size for _, leaf in leaves_with_paths(params))
    assert 0.3 * dense < left <= 0.4 * dense
    assert any(not record.note for record in records)
    values = weighted_singular_values(tree["encoder"]["ffn"]["kernel"], UNWEIGHTED)
    expected = np.linalg.svd(product(tree["encoder"]["ffn"]["kernel"]), compute_uv=False)[: len(values)]
    assert np.allclose(values, expected, rtol=1e-5)


def test_from_the_command_line(command, folder, tmp_path):
    def run(source, out, *options):
        status, output, errors = command("compress", source, tmp_path / out, *options, "--json")
        assert status == 0, errors
        return json.loads(output)["layers"]

    embeddings = ["--layers", "embeddings", "--method", "svd"]
    (first,) = run(folder, "a", *embeddings, "--keep", 0.9)
    (second,) = run(tmp_path / "a", "b", *embeddings, "--keep", 0.4, "--plan-out", tmp_path / "plan.json")
    assert second["rank"] < first["rank"]
    assert second["stored_size"] <= 0.4 * second["dense_size"]
    dense, once, twice = (lpjax.load_checkpoint(path) for path in (folder, tmp_path / "a", tmp_path / "b"))
    (path,) = lpjax.select_paths(dense.params, "embeddings")
    before, after = (dict(leaves_with_paths(net.params))[path] for net in (once, twice))
    expected = truncated_svd(product(before), second["rank"])
    assert np.allclose(product(after), expected, atol=1e-5 * np.abs(expected).max())
    # Both steps are on record, the pair is that of the last, and so it is without a record.
    record = read_record(tmp_path / "b" / "lpjax_record.json")
    assert len(record.steps) == 2
    assert record.layers[path][0] == 1
    assert record.ranks == {path: second["rank"]} == record_of(twice).ranks
    (tmp_path / "b" / "lpjax_record.json").unlink()
    unrecorded = record_of(twice)
    assert [len(step.layers) for step in unrecorded.steps] == [0, 1]
    assert unrecorded.ranks == {path: second["rank"]}
    # The plan of the second step does the same again.
    run(tmp_path / "a", "c", "--plan", tmp_path / "plan.json")
    assert np.array_equal(dict(leaves_with_paths(lpjax.load_checkpoint(tmp_path / "c").params))[path].left, after.left)
    # What is asked for is told from what it is.
    status, _, errors = command("compress", tmp_path / "a", tmp_path / "d", *embeddings, "--keep", 0.95)
    assert status == 2
    assert f"expected {(first['rank'] - 1) * 41 / 348:.3g} or less" in " ".join(errors.split())
    run(tmp_path / "a", "e", "--budget", 0.5, "--layers", "embeddings,encoder")


ENDS = [
    (3e38, "float32"),
    (1e-40, "float32"),
    (6e4, "float16"),
    (1e-6, "float16"),
    (3e38, "bfloat16"),
    (1e-300, "float64"),
]


@pytest.mark.parametrize(("scale", "dtype"), ENDS)
def test_weights_at_the_ends_of_their_range(scale, dtype):
    """Factors are finite and as exact as the dtype, of dense matrices and of pairs of them."""
    unit = heavy_tailed(*SHAPE)
    unit /= np.abs(unit).max()
    leaf = np.asarray(unit * scale, jnp.dtype(dtype))
    first, records = lpjax.compress({"kernel": leaf}, select=".", keep=0.8, solver="svd")
    again, more = lpjax.compress(first, select=".", keep=0.5, solver="svd")
    true = leaf.astype(np.float64) / scale
    # As many digits as numbers of that size have, of the dtype.
    exact = max(float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).smallest_subnormal) / scale, 1e-6)
    for params, record in ((first, records[0]), (again, more[0])):
        pair = params["kernel"]
        assert pair.left.dtype == leaf.dtype
        left, right = (np.asarray(part, np.float64) for part in (pair.left, pair.right))
        assert np.all(np.isfinite(left))
        assert np.all(np.isfinite(right))
        expected = truncated_svd(true, pair.rank)
        power = 2.0 ** np.round(np.log2(scale))
        approximation = (left / power) @ right * (power / scale)
        assert np.abs(approximation - expected).max() < 20 * exact
        assert np.isfinite(record.error_entries)
    lost = norm(true - truncated_svd(true, first["kernel"].rank), 2) / norm(true, 2)
    assert records[0].error_entries == pytest.approx(lost, rel=0.02)
