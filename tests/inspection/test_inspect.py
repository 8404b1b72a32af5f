"""Every statistic against its formula in NumPy and SciPy, in double precision."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import lpjax
from lpjax.compression import compress
from lpjax.inspection import Inspection, Kind, LeafRecord, inspect_params, kinds_of, numerics, tied_paths
from lpjax.inspection import leaves as module
from lpjax.models.names import NameTable, Weight, dense, embedding
from lpjax.select import rank_for
from lpjax.weights.low_rank import LowRank
from tests.conftest import GOLDENS
from tests.helpers import heavy_tailed, low_rank

KEEPS = (1.0, 0.75, 0.4, 0.05)


def gaussian(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def sparse(n: int, d: int) -> np.ndarray:
    """Most rows and entries zero."""
    matrix = np.zeros((n, d))
    matrix[2, 3], matrix[5, 1] = -4.0, 3.0
    return matrix


MATRICES = {
    "tall": gaussian(17, 11),
    "wide": gaussian(7, 13) + 0.5,
    "heavy-tailed": heavy_tailed(17, 11),
    "rank-deficient": low_rank(17, 11, 3),
    "constant": np.full((7, 5), -2.5),
    "zero": np.zeros((5, 7)),
    "one row": gaussian(1, 7),
    "one column": gaussian(7, 1),
    "one entry": np.array([[-3.0]]),
    "sparse": sparse(11, 7),
    "identity": np.eye(10),
    "large": 1e30 * gaussian(9, 5),
    "small": 1e-30 * gaussian(9, 5),
}
DTYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def expected(matrix: np.ndarray, keeps: tuple[float, ...] = KEEPS) -> dict[str, Any]:
    """All statistics of A, its rows as rows, by their definitions."""
    matrix = np.asarray(matrix, np.float64)
    n, d = matrix.shape
    values = np.linalg.svd(matrix, compute_uv=False)
    zero, constant = not matrix.any(), matrix.min() == matrix.max()
    total = 0.0 if zero else float(np.sum((values / values[0]) ** 2))
    held = [1.0 if zero else float(np.sum((values[:k] / values[0]) ** 2)) / total for k in range(len(values) + 1)]
    rank_90 = next(k for k, share in enumerate(held) if share >= 0.9 - 1e-9)
    norms = np.linalg.norm(matrix / max(1e-300, np.abs(matrix).max()), axis=1)
    magnitudes = np.abs(matrix)
    scaled = matrix if zero else matrix / magnitudes.max()
    keep_rows = []
    for keep in keeps:
        rank = rank_for((n, d), keep)
        size = rank * (n + d)
        keep_rows.append((keep, rank, size, 0 < size < n * d, pytest.approx(held[min(rank, len(values))], abs=1e-6)))
    return {
        "stable_rank": pytest.approx(total, rel=1e-5),
        "rank_90": rank_90,
        "keep_90": pytest.approx(rank_90 * (n + d) / (n * d)),
        "keeps": keep_rows,
        "kurtosis": None if constant else pytest.approx(scipy.stats.kurtosis(scaled, axis=None), rel=1e-6, abs=1e-9),
        "entry_ratio": pytest.approx(magnitudes.max() / np.median(magnitudes), rel=1e-6)
        if np.median(magnitudes)
        else None,
        "zeros": pytest.approx(np.mean(matrix == 0)),
        "row_ratio": pytest.approx(norms.max() / np.median(norms), rel=1e-6) if np.median(norms) else None,
        "row": int(np.argmax(norms)),
    }


def statistics(record: LeafRecord) -> dict[str, Any]:
    known = {name: getattr(record, name) for name in expected(np.eye(2))}
    return known | {"keeps": [dataclasses.astuple(keep) for keep in record.keeps]}


def values(record: LeafRecord) -> np.ndarray:
    assert record.singular_values is not None
    return record.singular_values


def norms(record: LeafRecord) -> np.ndarray:
    assert record.row_norms is not None
    return record.row_norms


def only(params: Any, **options: Any) -> LeafRecord:
    (record,) = inspect_params(params, **options).leaves
    return record


@pytest.fixture(params=[2**20, 16], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(numerics, "_ENTRIES", request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.usefixtures("blocks")
def test_every_statistic_of_a_matrix(name, dtype):
    if name in ("large", "small") and dtype == "float16":
        matrix = MATRICES[name] / abs(MATRICES[name]).max() * (6e4 if name == "large" else 6e-6)
    else:
        matrix = MATRICES[name]
    leaf = matrix.astype(DTYPES[dtype])
    truth = expected(leaf)
    record = only({"table": {"embedding": leaf}}, keep=KEEPS)
    assert statistics(record) == truth
    assert (record.path, record.shape, record.dtype) == ("table/embedding", matrix.shape, dtype)
    assert (record.size, record.share, record.rank, record.tied) == (matrix.size, 1.0, None, ())
    exact = np.linalg.svd(leaf.astype(np.float64), compute_uv=False)
    # What lies below √eps is rounding, except in double precision.
    tolerance = (1e-13 if dtype == "float64" else 5e-7) * exact[0]
    np.testing.assert_allclose(values(record), exact, rtol=1e-9, atol=tolerance)
    np.testing.assert_allclose(norms(record), np.linalg.norm(leaf.astype(np.float64), axis=1), rtol=1e-12)
    # A kernel is (in, out), and its rows are the outputs.
    for leaf_of, rows in (("kernel", "auto"), ("embedding", "last")):
        turned = only({leaf_of: np.asfortranarray(leaf.T)}, keep=KEEPS, rows=rows)
        assert statistics(turned) == truth
        assert turned.shape == matrix.shape[::-1]


def test_double_precision_to_its_ends():
    """Nothing is squared out of range, and values of all sizes are told from rounding."""
    graded = np.diag(10.0 ** -np.arange(13)) @ gaussian(13, 13)
    for scale in (1e-300, 1.0, 1e300):
        record = only({"embedding": scale * graded}, keep=KEEPS)
        assert statistics(record) == expected(graded)
        np.testing.assert_allclose(values(record) / scale, np.linalg.svd(graded)[1], rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize(("n", "d", "rank"), [(17, 11, 3), (7, 13, 7), (5, 3, 9), (1, 7, 1)])
@pytest.mark.parametrize("name", ["embedding", "kernel"])
@pytest.mark.usefixtures("blocks")
def test_a_factored_leaf_is_its_product(n, d, rank, name):
    left, right = gaussian(n, rank, 1).astype(np.float32), 1e20 * gaussian(rank, d, 2).astype(np.float32)
    product = left.astype(np.float64) @ right.astype(np.float64)
    record = only({name: LowRank(left, right)}, keep=KEEPS)
    stored = rank * (n + d)
    truth = expected(product if name == "embedding" else product.T)
    truth["keeps"] = [(keep, k, size, 0 < size < stored, held) for keep, k, size, _, held in truth["keeps"]]
    truth |= {"kurtosis": None, "entry_ratio": None, "zeros": None}
    assert statistics(record) == truth
    assert (record.rank, record.size, record.shape, record.dtype) == (rank, stored, (n, d), "float32")
    assert values(record).shape == (min(n, d, rank),)
    exact = np.linalg.svd(product, compute_uv=False)[: min(n, d, rank)]
    np.testing.assert_allclose(values(record), exact, rtol=1e-12, atol=1e-12 * exact[0])
    exact = np.linalg.norm(product, axis=1 if name == "embedding" else 0)
    np.testing.assert_allclose(norms(record), exact, rtol=1e-12)


def peak(params: Any) -> tuple[LeafRecord, int]:
    """The record, and the most bytes that were allocated at a time for it."""
    tracemalloc.start()
    try:
        return only(params), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_product_is_never_formed(monkeypatch):
    monkeypatch.setattr(numerics, "_ENTRIES", 2**14)
    left, right = gaussian(6_000, 2).astype(np.float32), gaussian(2, 3_300).astype(np.float32)
    record, used = peak({"kernel": LowRank(left, right)})
    assert used < 6_000 * 3_300 * 4 / 50
    small = np.linalg.qr(left.astype(np.float64))[1] @ np.linalg.qr(right.T.astype(np.float64))[1].T
    np.testing.assert_allclose(values(record), np.linalg.svd(small)[1], rtol=1e-12)


def test_memory_is_one_copy_of_a_leaf(monkeypatch):
    monkeypatch.setattr(numerics, "_ENTRIES", 2**14)
    leaf = gaussian(20_011, 50).astype(np.float32)
    for turned in (leaf, leaf.T):  # as NumPy has it in memory, and as a kernel that is a view of a file
        _, used = peak({"embedding": turned})
        assert used < 1.4 * leaf.nbytes


def test_the_rank_of_keep_90_is_rank_90():
    for seed, (n, d) in enumerate([(17, 11), (7, 13), (30, 30), (101, 3)]):
        record = only({"embedding": heavy_tailed(n, d, seed)})
        keep = record.keep_90 or 0.0
        if keep <= 1:
            assert rank_for((n, d), keep) == record.rank_90


@pytest.mark.parametrize("keep", [np.float32(0.5), np.float16(0.5), np.float64(0.5), jnp.float32(0.5), np.array([0.5])])
def test_keep_may_be_a_number_of_numpy_or_jax(keep: Any):
    params = {"kernel": gaussian(17, 11)}
    assert inspect_params(params, keep=keep).leaves[0].keeps == inspect_params(params, keep=0.5).leaves[0].keeps


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("shape", [(4, 6), (5, 7)])
def test_the_median_of_the_largest_entries_does_not_overflow(dtype: Any, shape: tuple[int, int]):
    most = ml_dtypes.finfo(dtype).max
    matrix = np.full(shape, most / 2, dtype)
    matrix[0, :2] = most, -most
    assert only({"kernel": matrix}).entry_ratio == pytest.approx(2, rel=0.01)


def test_ranks_and_sizes_are_those_of_compress():
    params = {"a": {"kernel": gaussian(17, 11).astype(np.float32)}, "b": {"embedding": np.eye(5, dtype=np.float32)}}
    for keep in (0.9, 0.3):
        predicted = inspect_params(params, keep=keep).leaves
        done = compress(params, select=".", keep=keep, solver="svd", p=2.0).records
        for ours, theirs in zip(predicted, done, strict=True):
            made = ours.keeps[0]
            assert (made.rank if made.smaller else None) == theirs.rank
            assert (made.size if made.smaller else ours.size) == theirs.stored_size
            if made.smaller:
                assert theirs.error_entries == pytest.approx(math.sqrt(1 - made.energy), abs=1e-4)
        factored = compress(params, select="a", keep=keep, solver="svd", p=2.0).params
        record = inspect_params(factored, select="a").leaves[0]
        assert record.rank == predicted[0].keeps[0].rank
        assert values(record) == pytest.approx(values(predicted[0])[: record.rank], rel=1e-5)
        assert record.row == predicted[0].row


def test_leaves_that_are_no_matrices():
    params = {
        "bias": np.array([1.0, -2.0, 4.0, 0.5, 0.0], np.float32),
        "conv": gaussian(15, 7).reshape(3, 5, 7),
        "count": np.arange(4),
        "empty": np.zeros((0, 7), np.float32),
        "flag": True,
        "scale": jnp.ones(3, jnp.bfloat16),
        "step": 0.25,
        "void": LowRank(np.zeros((5, 0), np.float32), np.zeros((0, 7), np.float32)),
    }
    report = inspect_params(params)
    records = {record.path: record for record in report.leaves}
    assert list(records) == sorted(params)
    assert report.num_leaves == 8
    assert report.parameters == sum(record.size for record in report.leaves) == 5 + 105 + 4 + 0 + 1 + 3 + 1 + 0
    assert sum(record.share for record in report.leaves) == pytest.approx(1)
    for record in report.leaves:
        assert (record.singular_values, record.rank_90, record.row, record.keeps) == (None, None, None, ())
    bias = records["bias"]
    assert bias.kurtosis == pytest.approx(scipy.stats.kurtosis(params["bias"].astype(np.float64)))
    assert (bias.entry_ratio, bias.zeros) == (4.0, 0.2)
    assert records["conv"].kurtosis == pytest.approx(scipy.stats.kurtosis(params["conv"], axis=None))
    assert (records["scale"].kurtosis, records["scale"].entry_ratio) == (None, 1.0)
    assert (records["step"].shape, records["step"].entry_ratio) == ((), 1.0)
    for name in ("count", "empty", "flag"):
        assert (records[name].kurtosis, records[name].entry_ratio, records[name].zeros) == (None, None, None)


def test_kernels_of_more_axes_are_viewed_as_compress_views_them():
    kernels = {"query": gaussian(5, 12).reshape(5, 3, 4), "out": jnp.asarray(gaussian(12, 5).reshape(3, 4, 5))}
    params = {
        "attention": {name: {"kernel": kernel} for name, kernel in kernels.items()},
        "layers": {"embedding": heavy_tailed(6, 28).reshape(2, 3, 4, 7), "kernel": gaussian(14, 10).reshape(2, 7, 10)},
        "pairs": {"kernel": LowRank(gaussian(14, 3).reshape(2, 7, 3), gaussian(6, 5).reshape(2, 3, 5))},
    }
    axes = {"attention/query/kernel": 1, "attention/out/kernel": 2, "layers/embedding": (1, 2), "layers/kernel": (1, 1)}
    report = inspect_params(params, keep=KEEPS, input_axes=axes)
    records = {record.path: record for record in report.leaves}
    assert list(records) == [
        "attention/out/kernel",
        "attention/query/kernel",
        *(f"{name}[{i}]" for name in ("layers/embedding", "layers/kernel", "pairs/kernel") for i in (0, 1)),
    ]
    assert statistics(records["attention/query/kernel"]) == expected(kernels["query"].reshape(5, 12).T)
    assert statistics(records["attention/out/kernel"]) == expected(np.asarray(kernels["out"]).reshape(12, 5).T)
    for i in (0, 1):
        assert statistics(records[f"layers/embedding[{i}]"]) == expected(
            params["layers"]["embedding"][i].reshape(12, 7)
        )
        assert statistics(records[f"layers/kernel[{i}]"]) == expected(params["layers"]["kernel"][i].T)
        pair = params["pairs"]["kernel"]
        alone = only({"kernel": LowRank(pair.left[i], pair.right[i])}, keep=KEEPS)
        assert statistics(records[f"pairs/kernel[{i}]"]) == statistics(alone)
    assert report.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(record.share for record in report.leaves) == pytest.approx(1)
    assert [kind.name for kind in kinds_of(report.leaves)][2:] == [
        "layers/embedding[0–1]",
        "layers/kernel[0–1]",
        "pairs/kernel[0–1]",
    ]
    (chosen,) = inspect_params(params, select="query", input_axes=axes).leaves
    assert chosen.shape == (5, 12)
    for wrong in ({"attention/query/kernel": 3}, {"nowhere": 1}, {"layers/kernel": 0}):
        with pytest.raises(ValueError, match="`input_axes`"):
            inspect_params(params, input_axes=wrong)


def test_jax_arrays_are_like_numpy_ones():
    matrix = heavy_tailed(17, 11).astype(np.float32)
    ours = only({"kernel": matrix})
    assert only({"kernel": jnp.asarray(matrix)}) == ours
    half = jnp.asarray(matrix, jnp.bfloat16)
    assert only({"kernel": half}) == only({"kernel": np.asarray(half)})
    mixed = only({"kernel": LowRank(half, np.eye(11, dtype=np.float32))})
    assert mixed.dtype == "bfloat16/float32"
    np.testing.assert_allclose(values(mixed), values(only({"kernel": half})), rtol=1e-6)


def test_selection_and_shares():
    params = {
        "encoder": {"layer": {"0": {"attention": {"query": {"kernel": np.eye(3), "bias": np.ones(3)}}}}},
        "word_embeddings": {"embedding": gaussian(7, 3)},
    }
    report = inspect_params(params, select="embeddings")
    assert [record.path for record in report.leaves] == ["word_embeddings/embedding"]
    assert (report.parameters, report.num_leaves) == (33, 3)
    assert report.leaves[0].share == pytest.approx(21 / 33)
    assert len(inspect_params(params, select=["attention", "word_"]).leaves) == 2
    assert inspect_params({}) == Inspection((), 0, 0)
    calls: list[tuple[int, int, str]] = []
    inspect_params(params, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)]
    assert calls[2][2] == "word_embeddings/embedding"


def poisoned(value: float) -> np.ndarray:
    matrix = gaussian(40, 3)
    matrix[33, 1] = value
    return matrix


def unfit() -> LowRank:
    """Factors that make no product; the tests' own type checks would not let them be made."""
    pair = LowRank(np.ones((3, 2)), np.ones((2, 3)))
    object.__setattr__(pair, "right", np.ones((3, 2)))
    return pair


@pytest.mark.parametrize(
    ("params", "options", "words"),
    [
        ({"a": {"kernel": poisoned(math.nan)}, "b": np.ones(3)}, {}, "NaN or infinite entries: a/kernel;"),
        ({"a": np.eye(3), "b": {"bias": np.array([1, -math.inf])}}, {}, "NaN or infinite entries: b/bias;"),
        ({"a": LowRank(poisoned(math.inf), np.eye(3))}, {}, "NaN or infinite entries: a;"),
        ({"a": poisoned(math.nan).astype(ml_dtypes.bfloat16)}, {}, "NaN or infinite entries: a;"),
        ({"a": np.eye(3)}, {"keep": 0.0}, "`keep` is 0.0"),
        ({"a": np.eye(3)}, {"keep": (0.5, 1.5)}, "`keep` is 1.5"),
        ({"a": np.eye(3)}, {"keep": math.nan}, "`keep` is nan"),
        ({"a": np.eye(3)}, {"rows": "middle"}, "`rows` is 'middle'"),
        ({"a": np.eye(3)}, {"select": "querry"}, "matches no leaf; nearest: a"),
        ({"a": np.eye(3), "bias": np.ones(3)}, {"select": "bias"}, "not floating matrices"),
        ({"a": np.eye(3)}, {"tied": {"b": "c"}}, "`tied` names leaves that are not in `params`: c"),
        ({"a": {"b": "weights.bin"}}, {}, "a/b is str; expected arrays"),
        ({"a": jax.ShapeDtypeStruct((2, 3), jnp.float32)}, {}, "a is ShapeDtypeStruct; expected arrays"),
        ({"a": unfit()}, {}, "factors of shapes (3, 2) and (3, 2)"),
    ],
)
def test_refused_by_name_before_any_work(params, options, words, monkeypatch):
    def work(*_: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(module, "_record", work)
    with pytest.raises(ValueError) as caught:
        inspect_params(params, **options)
    assert words in str(caught.value)


def test_nan_where_it_was_not_asked_for_is_no_matter():
    params = {"a": {"kernel": gaussian(7, 5)}, "b": {"kernel": poisoned(math.nan)}}
    assert statistics(only(params, select="^a", keep=KEEPS)) == expected(gaussian(7, 5).T)


def test_traced_leaves_are_refused():
    with pytest.raises(ValueError, match=r"kernel is traced"):
        jax.jit(lambda params: inspect_params(params).parameters)({"kernel": jnp.eye(3)})


def test_equal_matrices_are_tied():
    words = gaussian(13, 7).astype(np.float32)
    left, right = gaussian(7, 2), gaussian(2, 5)
    pair = LowRank(left, right)
    params = {
        "decoder": {"kernel": jnp.asarray(words.T)},
        "embedding": words,
        "factored": pair,
        "half": words.astype(ml_dtypes.bfloat16),
        "nearly": np.where(np.arange(7) == 3, words[::-1], words),
        "ones": {"0": np.ones((3, 5)), "1": np.ones((3, 5)), "2": np.zeros(5), "3": np.zeros(5)},
        "reversed": words[::-1].copy(),
        "turned": LowRank(right.T.copy(), left.T.copy()),
    }
    tied = {record.path: record.tied for record in inspect_params(params).leaves if record.tied}
    assert tied == {
        "decoder/kernel": ("embedding",),
        "embedding": ("decoder/kernel",),
        "factored": ("turned",),
        "turned": ("factored",),
    }
    (record,) = inspect_params(params, select="^embedding$", tied={"lm/kernel": "embedding"}).leaves
    assert record.tied == ("decoder/kernel", "lm/kernel")


TABLE = NameTable(
    prefix="net",
    base=(*embedding("words", 5, 3), *dense("proj", 3, 3)),
    heads=(
        Weight("head.bias", "head/bias", (5,), group="head"),
        Weight("head.decoder.weight", "head/decoder/kernel", (3, 5), True, "head", "words.weight"),
        Weight("head.decoder.bias", "head/decoder/bias", (5,), group="head", tied_to="head.bias"),
    ),
)


def test_tied_weights_that_a_file_leaves_out():
    base = {"words": {"embedding": np.ones((5, 3))}, "proj": {"kernel": np.eye(3), "bias": np.ones(3)}}
    assert tied_paths(base, TABLE) == {}  # no head, so nothing is left out
    assert tied_paths({"net": base}, TABLE) == {}
    headed = {"net": base, "head": {"bias": np.ones(5)}}
    assert tied_paths(headed, TABLE) == {
        "head/decoder/kernel": "net/words/embedding",
        "head/decoder/bias": "head/bias",
    }
    untied = {"net": base, "head": {"bias": np.ones(5), "decoder": {"kernel": np.eye(3, 5)}}}
    assert tied_paths(untied, TABLE) == {"head/decoder/bias": "head/bias"}


def test_tied_weights_of_a_real_checkpoint():
    checkpoint = lpjax.load_checkpoint(GOLDENS / "bert_pretraining")
    from lpjax.models import name_table

    tied = tied_paths(checkpoint.params, name_table(checkpoint.config))
    records = {record.path: record for record in inspect_params(checkpoint.params, tied=tied).leaves}
    assert records["bert/embeddings/word_embeddings/embedding"].tied == ("cls/predictions/decoder/kernel",)
    assert records["cls/predictions/bias"].tied == ("cls/predictions/decoder/bias",)
    assert sum(record.size for record in records.values()) == sum(
        leaf.size for leaf in jax.tree.leaves(checkpoint.params)
    )


def named_leaf(
    path: str, shape: tuple[int, ...] = (3, 5), dtype: str = "float32", rank: int | None = None
) -> LeafRecord:
    return LeafRecord(path, shape, dtype, math.prod(shape), 0.1, rank)


def named(leaves: list[LeafRecord]) -> list[tuple[str, int]]:
    return [(kind.name, len(kind.leaves)) for kind in kinds_of(leaves)]


def test_kinds_bring_layers_together():
    paths = [f"encoder/layer/{i}/{name}/kernel" for i in (0, 1, 10, 11, 2, 3, 5) for name in ("query", "output")]
    leaves = [named_leaf("embedding"), *map(named_leaf, paths), named_leaf("pooler/kernel")]
    kinds = kinds_of(leaves)
    assert named(leaves) == [
        ("embedding", 1),
        ("encoder/layer/0–3, 5, 10–11/query/kernel", 7),
        ("encoder/layer/0–3, 5, 10–11/output/kernel", 7),
        ("pooler/kernel", 1),
    ]
    assert (kinds[1].before, kinds[1].after) == ("encoder/layer/", "/query/kernel")
    assert kinds[1].layers == (0, 1, 2, 3, 5, 10, 11)
    assert [leaf.path.split("/")[2] for leaf in kinds[1].leaves] == ["0", "1", "2", "3", "5", "10", "11"]
    assert kinds[0] == Kind("embedding", "", (), (leaves[0],))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["h_0/Dense_0/kernel", "h_0/Dense_1/kernel", "h_1/Dense_0/kernel", "h_1/Dense_1/kernel"],
         ["h_0–1/Dense_0/kernel", "h_0–1/Dense_1/kernel"]),
        (["tower_1/layer/0/w", "tower_1/layer/1/w", "tower_1/layer/2/w"], ["tower_1/layer/0–2/w"]),
        (["layer/0/fc1/w", "layer/0/fc2/w", "layer/1/fc1/w", "layer/1/fc2/w"], ["layer/0–1/fc1/w", "layer/0–1/fc2/w"]),
        (["0", "1", "2"], ["0–2"]),
        (["layer/0/w"], ["layer/0/w"]),
        (["q8_proj/w", "q9_proj/w"], ["q8_proj/w", "q9_proj/w"]),
    ],
)  # fmt: skip
def test_which_number_is_the_layer(paths, names):
    assert [kind.name for kind in kinds_of(map(named_leaf, paths))] == names


def test_kinds_differ_by_shape_dtype_and_rank():
    leaves = [
        named_leaf("l/0/w"),
        named_leaf("l/1/w", rank=2),
        named_leaf("l/2/w", shape=(5, 3)),
        named_leaf("l/3/w", dtype="bfloat16"),
        named_leaf("l/4/w"),
    ]
    assert named(leaves) == [("l/0, 4/w", 2), ("l/1/w", 1), ("l/2/w", 1), ("l/3/w", 1)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "b_1", "b_2", "0", "1", "12"]), min_size=1, max_size=4), max_size=12))
def test_kinds_are_a_partition(keys):
    leaves = [named_leaf("/".join(path)) for path in dict.fromkeys(map(tuple, keys))]
    kinds = kinds_of(leaves)
    assert sorted(leaf.path for kind in kinds for leaf in kind.leaves) == sorted(leaf.path for leaf in leaves)
    for kind in kinds:
        layers = kind.layers or ("",)
        assert [leaf.path for leaf in kind.leaves] == [f"{kind.before}{layer}{kind.after}" for layer in layers]
