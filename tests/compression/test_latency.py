"""Break-even: what timings say of a rank, and which shapes of a tree are timed."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import lpjax
from lpjax.compression.latency import LayerTiming
from lpjax.select import max_rank
from tests.helpers import heavy_tailed, low_rank

KERNEL = LayerTiming((40, 60), False, 2e-3, (4, 8, 16), (0.5, 0.8, 1.6))


@pytest.mark.parametrize(("rank", "ratio"), [(1, 0.5), (4, 0.5), (6, 0.65), (8, 0.8), (12, 1.2), (16, 1.6), (99, 1.6)])
def test_ratios_between_measured_ranks(rank, ratio):
    assert KERNEL.ratio(rank) == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("ratios", "rank"), [((0.5, 0.8, 1.6), 10), ((1.1, 1.2, 1.3), 0), ((0.2, 0.3, 0.4), 16), ((1.0, 1.0, 1.2), 8)]
)
def test_break_even_is_the_largest_rank_that_is_no_slower(ratios, rank):
    timing = dataclasses.replace(KERNEL, ratios=ratios)
    assert timing.rank == rank
    assert timing.keep == pytest.approx(rank * 100 / 2400)


def test_tables_and_kernels_of_one_shape_are_told_apart():
    table = dataclasses.replace(KERNEL, table=True, ratios=(3.0, 4.0, 5.0))
    break_even = lpjax.BreakEven(8, (KERNEL, table))
    assert break_even.ratio("a/kernel", (40, 60), 4) == 0.5
    assert break_even.ratio("a/embedding", (40, 60), 4) == 3.0
    assert break_even.ratio("a/embedding/value", (40, 60), 4) == 3.0
    assert break_even.ratio("a/kernel", (60, 40), 4) is None
    assert break_even.added_seconds("a/embedding", (40, 60), 4) == pytest.approx(4e-3)
    assert break_even.added_seconds("a/kernel", (40, 60), 4) == pytest.approx(-1e-3)
    assert break_even.added_seconds("b/kernel", (1, 2), 4) is None


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 5), (40, 60), (30522, 384)])
def test_largest_rank_that_stores_less(shape):
    n, d = shape
    most = max_rank(shape)
    assert most * (n + d) < n * d <= (most + 1) * (n + d)


def test_every_shape_is_timed_once():
    params = {
        "embedding": {"embedding": np.ones((50, 12), np.float32)},
        "a": {"kernel": np.ones((12, 20), np.float32)},
        "b": {"kernel": np.ones((12, 20), np.float32)},
        "c": {"kernel": lpjax.LowRank(np.ones((20, 2), np.float32), np.ones((2, 12), np.float32))},
        "tiny": {"kernel": np.ones((1, 7), np.float32)},
    }
    seen = []
    break_even = lpjax.measure_break_even(
        params, select=["kernel$", "embedding$"], tokens=16, progress=lambda *step: seen.append(step[:2])
    )
    assert [(timing.shape, timing.table) for timing in break_even.timings] == [
        ((12, 20), False), ((20, 12), False), ((50, 12), True)
    ]  # fmt: skip
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    for timing in break_even.timings:
        assert timing.dense_seconds > 0
        assert timing.ranks == tuple(sorted(set(timing.ranks)))
        assert timing.ranks[-1] == max_rank(timing.shape)
        assert timing.ratios == tuple(sorted(timing.ratios))
        assert timing.ratios[0] > 0


@pytest.mark.parametrize("tokens", [0, -1, 2.5, True, "8"])
def test_bad_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match="`tokens` is"):
        lpjax.measure_break_even({"kernel": np.ones((9, 9), np.float32)}, select="kernel", tokens=tokens)


def test_records_say_what_time_a_pair_takes():
    params = {"a": {"kernel": heavy_tailed(40, 60).astype(np.float32)}, "b": {"kernel": low_rank(9, 30, 3)}}
    _, records = lpjax.compress(
        params, select="kernel", rank=12, solver="svd", break_even=lpjax.BreakEven(8, (KERNEL,))
    )
    by_path = {record.path: record for record in records}
    assert by_path["a/kernel"].time_ratio == pytest.approx(1.2)
    assert by_path["b/kernel"].time_ratio is None
    assert jax.tree.leaves(lpjax.compress(params, select="a", rank=2, solver="svd").records[0].time_ratio) == []
