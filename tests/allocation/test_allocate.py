"""Shares of a budget against brute force over all choices, what they cost, and what is refused."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax import Choice, LowRank
from lpjax._tree import leaves_with_paths
from lpjax.allocation._budget import Leaf, Option, by_level, hull, losses_of, rank_of_loss, rank_of_share, share_out
from lpjax.compression.defaults import SPARSE_SHARE_OF_TABLES
from lpjax.compression.latency import BreakEven, LayerTiming
from lpjax.weighting.statistics import Calibration, Statistics
from tests.helpers import truncated_svd

SHAPES = {"layer/attention/query/kernel": (12, 12), "layer/ffn/up/kernel": (12, 40), "words/embedding": (60, 12)}


def params(seed: int = 0) -> dict[str, Any]:
    """Three matrices whose spectra fall at different speeds, and a bias that nothing shrinks."""
    rng = np.random.default_rng(seed)

    def matrix(n: int, d: int, speed: float) -> np.ndarray:
        k = min(n, d)
        left, right = (np.linalg.qr(rng.normal(size=(size, k)))[0] for size in (n, d))
        return ((left * np.exp(-speed * np.arange(k))) @ right.T).astype(np.float32)

    query, up, words = (matrix(*shape, speed) for shape, speed in zip(SHAPES.values(), (0.5, 0.2, 0.1), strict=True))
    layer = {"attention": {"query": {"kernel": query, "bias": np.zeros(12, np.float32)}}, "ffn": {"up": {"kernel": up}}}
    return {"words": {"embedding": words}, "layer": layer}


def rank_of(plan: Any, path: str) -> int:
    rank = plan.layers[path].rank
    assert rank is not None
    return rank


def size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def squares(tree: Any) -> float:
    """Σ ‖A − A′‖_F² over the matrices: a measure to which each matrix adds its own."""
    dense = dict(leaves_with_paths(params()))
    leaves = dict(leaves_with_paths(tree))
    return sum(float(np.sum((np.asarray(leaves[path]) - dense[path]) ** 2)) for path in SHAPES)


@pytest.mark.covering(0)
@pytest.mark.parametrize("allocation", ["uniform", "energy", "minimax", "error", "measured"])
@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
def test_a_budget_is_used_and_kept(allocation, budget):
    plan = lpjax.allocate(params(), budget=budget, allocation=allocation, measure=squares)
    assert (plan.budget, plan.budget_of, plan.allocation, plan.weighting) == (budget, "parameters", allocation, None)
    assert list(plan.layers) == list(SHAPES)
    smaller = lpjax.compress(params(), plan=plan).params
    # One rank more of the largest matrix is the most that may be left over.
    assert budget * size(params()) - 73 < size(smaller) <= budget * size(params())


def plans(levels: int) -> Any:
    """Every choice among `levels` ranks of each matrix, or dense."""
    ranks = [[None, *np.unique(np.linspace(1, n * d // (n + d), levels).astype(int))] for n, d in SHAPES.values()]
    return itertools.product(*ranks)


def cost(ranks: Any) -> int:
    pairs = zip(SHAPES.values(), ranks, strict=True)
    return 12 + sum(n * d if rank is None else int(rank) * (n + d) for (n, d), rank in pairs)


def test_minimax_is_the_least_that_all_can_have():
    budget = 0.5
    plan = lpjax.allocate(params(), budget=budget, allocation="minimax")

    def worst(ranks: Any) -> float:
        lost = [0.0]
        for leaf, rank in zip(dense.values(), ranks, strict=True):
            if rank is not None:
                gone = leaf.astype(np.float64) - truncated_svd(leaf, rank)
                lost.append(np.linalg.norm(gone, 2) / np.linalg.norm(leaf, 2))
        return max(lost)

    dense = {path: leaf for path, leaf in leaves_with_paths(params()) if path in SHAPES}
    chosen = [plan.layers[path].rank for path in SHAPES]
    best = min(worst(ranks) for ranks in plans(20) if cost(ranks) <= budget * size(params()))
    assert worst(chosen) == pytest.approx(best, rel=1e-4)


def test_energy_is_lost_alike():
    plan = lpjax.allocate(params(), budget=0.5, allocation="energy")
    lost = []
    for path, leaf in leaves_with_paths(params()):
        if path in SHAPES:
            rank = rank_of(plan, path)
            values = np.linalg.svd(leaf.astype(np.float64), compute_uv=False) ** 2
            lost.append([values[k:].sum() / values.sum() for k in (rank - 1, rank, rank + 1)])
    # No matrix loses more at its rank than another would at one rank less.
    for losses, other in itertools.permutations(lost, 2):
        assert losses[1] <= other[0]


@pytest.mark.slow
def test_measured_comes_near_the_best_of_all_choices():
    budget = 0.5
    plan = lpjax.allocate(params(), budget=budget, measure=squares)
    achieved = squares(densified(lpjax.compress(params(), plan=plan).params))
    dense = [leaf.astype(np.float64) for path, leaf in leaves_with_paths(params()) if path in SHAPES]
    tails = [np.append(np.cumsum(np.linalg.svd(leaf, compute_uv=False)[::-1] ** 2)[::-1], 0.0) for leaf in dense]

    def loss(ranks: Any) -> float:
        return sum(float(tail[rank]) for tail, rank in zip(tails, ranks, strict=True) if rank is not None)

    best = min(loss(ranks) for ranks in plans(20) if cost(ranks) <= budget * size(params()))
    others = ("uniform", "energy", "minimax")
    theirs = [
        squares(
            densified(lpjax.compress(params(), plan=lpjax.allocate(params(), budget=budget, allocation=name)).params)
        )
        for name in others
    ]
    assert best * (1 - 1e-4) <= achieved <= 1.1 * best
    assert achieved <= min(theirs)


def test_error_is_the_least_of_all_choices():
    budget = 0.5
    plan = lpjax.allocate(params(), budget=budget, allocation="error")
    achieved = squares(densified(lpjax.compress(params(), plan=plan).params))
    dense = [leaf.astype(np.float64) for path, leaf in leaves_with_paths(params()) if path in SHAPES]
    tails = [np.append(np.cumsum(np.linalg.svd(leaf, compute_uv=False)[::-1] ** 2)[::-1], 0.0) for leaf in dense]
    least = min(
        sum(float(tail[rank]) for tail, rank in zip(tails, ranks, strict=True) if rank is not None)
        for ranks in plans(40)  # all ranks there are
        if cost(ranks) <= budget * size(params())
    )
    # What is left over at the end may have had a better use.
    assert least * (1 - 1e-4) <= achieved <= 1.02 * least


@pytest.mark.parametrize("seed", range(3))
def test_error_counts_what_the_tokens_of_all_matrices_lose(seed):
    """Under statistics of very different sizes; no plan of as many parameters loses less over the tokens."""
    rng = np.random.default_rng(seed)
    tree, statistics, metrics = params(), {}, {}
    for path, (n, d) in SHAPES.items():
        inputs, outputs = (x.T @ x * 10.0 ** rng.uniform(-2, 2) for x in (rng.normal(size=(90, m)) for m in (n, d)))
        if "embedding" in path:
            counts = rng.integers(0, 9, n).astype(np.float32)
            statistics[path] = Statistics(int(counts.sum()), counts=counts, outputs=outputs.astype(np.float32))
            metrics[path] = (np.diag((counts + 1.0) * counts.sum() / (counts + 1.0).sum()), outputs)
        else:
            moments = {"inputs": inputs.astype(np.float32), "outputs": outputs.astype(np.float32)}
            statistics[path] = Statistics(1000, **moments)
            metrics[path] = (1000 * inputs, outputs)
    known: dict[str, Any] = {"statistics": Calibration(statistics, "embedding", 9, 1000, 0)}
    dense, tails = dict(leaves_with_paths(tree)), []
    for path in SHAPES:
        (h, hs), (g, gs) = (np.linalg.eigh(metric) for metric in metrics[path])
        weighted = (np.sqrt(np.maximum(h, 0))[:, None] * hs.T) @ dense[path] @ (gs * np.sqrt(np.maximum(g, 0)))
        tails.append(np.append(np.cumsum(np.linalg.svd(weighted, compute_uv=False)[::-1] ** 2)[::-1], 0.0))

    def loss(ranks: Any) -> float:
        return sum(float(tail[rank]) for tail, rank in zip(tails, ranks, strict=True) if rank is not None)

    plan = lpjax.allocate(tree, budget=0.5, weighting=lpjax.Weighting(shrinkage=0), **known)
    assert plan.allocation == "error"
    achieved = loss([plan.layers[path].rank for path in SHAPES])
    best = min(loss(ranks) for ranks in plans(40) if cost(ranks) <= 0.5 * size(tree))
    assert best * (1 - 1e-3) <= achieved <= 1.1 * best
    others = [lpjax.allocate(tree, budget=0.5, allocation=name, **known) for name in ("uniform", "energy", "minimax")]
    assert achieved < min(loss([other.layers[path].rank for path in SHAPES]) for other in others)
    assert lpjax.allocate(tree, budget=0.5, weighting="drone", **known).allocation == "uniform"
    with pytest.raises(ValueError, match="`weighting` is 'drone'; `allocation` error needs gauss_newton"):
        lpjax.allocate(tree, budget=0.5, weighting="drone", allocation="error", **known)
    # Shared out, too: of work, in multiples, with single entries, and beside a pair, which gets smaller or stays.
    work = lpjax.allocate(tree, budget=0.5, budget_of="multiply_adds", **known)
    assert "words/embedding" not in work.layers
    several = lpjax.allocate(tree, budget=0.6, rank_multiple=3, **known)
    assert all(choice.rank is None or choice.rank % 3 == 0 for choice in several.layers.values())
    for sparse in (0.0, 0.3):
        entries = lpjax.allocate(tree, budget=0.5, sparse_share=sparse, weighting=lpjax.Weighting(shrinkage=0), **known)
        assert entries.layers == {
            path: choice._replace(sparse_share=sparse) if choice.rank else choice
            for path, choice in plan.layers.items()
        }
    tables = {
        path for path, choice in plan.layers.items() if choice.rank and choice.sparse_share == SPARSE_SHARE_OF_TABLES
    }
    assert tables == {"words/embedding"}
    half = lpjax.compress(tree, select="embeddings", rank=4, **known).params
    rank = lpjax.allocate(half, budget=0.7, **known).layers["words/embedding"].rank
    assert rank is None or rank < half["words"]["embedding"].rank


def test_what_no_output_depends_on_loses_nothing_by_error():
    rng = np.random.default_rng(0)
    tree = {"attention": {key: {"kernel": rng.normal(size=(12, 12)).astype(np.float32)} for key in ("dead", "live")}}
    moment = np.eye(12, dtype=np.float32)
    statistics = {
        f"attention/{key}/kernel": Statistics(9, inputs=moment, outputs=scale * moment)
        for key, scale in (("dead", 0), ("live", 1e-6))
    }
    known = Calibration(statistics, "embedding", 3, 9, 0)
    plan = lpjax.allocate(tree, budget=0.6, select="attention", statistics=known)
    assert [choice.rank for choice in plan.layers.values()] == [1, None]


def test_rare_tokens_weigh_no_table_up():
    """Ten times the texts, of the same frequencies: the same ranks."""
    ranks = []
    for times in (1, 10, 1000):
        rng = np.random.default_rng(0)
        statistics = {}
        for path, (n, d) in SHAPES.items():
            inputs, outputs = (np.cov(rng.normal(size=(m, 90))).astype(np.float32) for m in (n, d))
            counts = (times * rng.integers(0, 3, n)).astype(np.float32)
            row_statistics = {"counts": counts} if "embedding" in path else {"inputs": inputs / 1000}
            statistics[path] = Statistics(60 * times, outputs=outputs, **row_statistics)
        calibration = Calibration(statistics, "embedding", 9, 60 * times, 0)
        plan = lpjax.allocate(params(), budget=0.5, statistics=calibration)
        ranks.append([plan.layers[path].rank or 0 for path in SHAPES])
    assert 1 < ranks[0][2] < 10
    assert np.abs(np.subtract(ranks[0], ranks[2])).max() <= 1


@pytest.mark.parametrize("allocation", ["energy", "minimax", "error", "measured"])
def test_weights_that_are_not_finite_are_refused(allocation):
    tree = params()
    tree["layer"]["ffn"]["up"]["kernel"][3, 5] = np.nan
    with pytest.raises(ValueError, match="layer/ffn/up/kernel holds NaN or infinite entries"):
        lpjax.allocate(tree, budget=0.5, allocation=allocation, measure=squares)


def densified(tree: Any) -> Any:
    return jax.tree.map(lpjax.densify, jax.tree.map(jnp.asarray, tree), is_leaf=lambda leaf: isinstance(leaf, LowRank))


@pytest.mark.slow
def test_measured_chooses_between_methods():
    """The measure sums absolute errors of entries, not their squares."""
    rng = np.random.default_rng(0)
    wild = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 20)) + 100 * (rng.random((40, 20)) < 0.02)
    tree = {"a": {"kernel": wild.astype(np.float32)}, "b": {"kernel": rng.normal(size=(20, 30)).astype(np.float32)}}

    def absolute(candidate: Any) -> float:
        return sum(float(np.abs(np.asarray(candidate[key]["kernel"]) - tree[key]["kernel"]).sum()) for key in tree)

    methods = (("svd", 2.0), ("admm_entries", 1.0))
    plan = lpjax.allocate(tree, budget=0.6, select="kernel", measure=absolute, methods=methods, levels=(0.3, 0.5, 0.8))
    assert {plan.layers["a/kernel"].method, plan.layers["b/kernel"].method} == {"admm_entries"}
    records = lpjax.compress(tree, plan=plan).records
    assert [record.rank for record in records] == [choice.rank for choice in plan.layers.values()]


@pytest.mark.covering(0)
@pytest.mark.parametrize("methods", [(("svd", 2.0),), (("svd", 2.0), ("lewis", 1.0))])
def test_measured_tries_what_compress_makes(methods):
    """Ranks of the SVD are cut out of one pair; under weights, too, that is the pair of the smaller rank."""
    rng = np.random.default_rng(0)
    tree = {
        key: {"kernel": rng.normal(size=shape).astype(np.float32)} for key, shape in (("a", (24, 16)), ("b", (8, 30)))
    }
    statistics = {}
    for key, leaf in tree.items():
        inputs, outputs = (x.T @ x for x in (rng.normal(size=(40, size)) for size in leaf["kernel"].shape))
        statistics[f"{key}/kernel"] = Statistics(
            40, inputs=inputs.astype(np.float32), outputs=outputs.astype(np.float32)
        )
    solve: dict[str, Any] = {"statistics": Calibration(statistics, "embedding", 3, 40, 0)}
    tried: list[Any] = []

    def measure(candidate: Any) -> float:
        tried.append(jax.tree.map(np.asarray, candidate))
        return 0.0

    levels = (0.3, 0.6)
    lpjax.allocate(tree, budget=0.5, select="kernel", measure=measure, methods=methods, levels=levels, **solve)
    for key, leaf in tree.items():
        n, d = leaf["kernel"].shape
        ranks = [1, *(int(level * n * d / (n + d)) for level in levels)]
        pairs = [
            lpjax.compress({key: leaf}, select="kernel", rank=rank, solver=solver, p=p, **solve).params[key]["kernel"]
            for rank in ranks
            for solver, p in methods
        ]
        for pair in pairs:
            product = pair.left @ pair.right
            apart = [np.abs(candidate[key]["kernel"] - product).max() for candidate in tried]
            assert min(apart) <= 1e-5 * np.abs(product).max()
            assert any(gap > 0.1 * np.abs(product).max() for gap in apart)


def test_weights_decide_what_energy_is():
    """If two matrices are equal, the one whose inputs lie in one direction can lose the others."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(16, 16)).astype(np.float32)
    tree = {"attention": {"a": {"kernel": kernel}, "b": {"kernel": kernel.copy()}}}
    narrow = np.diag(np.r_[1.0, np.full(15, 1e-6)]).astype(np.float32)
    statistics = {
        f"attention/{key}/kernel": Statistics(9, inputs=moment, outputs=np.eye(16, dtype=np.float32))
        for key, moment in (("a", narrow), ("b", np.eye(16, dtype=np.float32)))
    }
    calibration = Calibration(statistics, "embedding", 3, 9, 0)
    for allocation in ("energy", "minimax"):
        options: dict[str, Any] = {"budget": 0.6, "select": "attention", "allocation": allocation}
        plain = lpjax.allocate(tree, **options)
        assert len({choice.rank for choice in plain.layers.values()}) == 1
        plan = lpjax.allocate(tree, **options, statistics=calibration)
        assert plan.weighting == "gauss_newton"
        ranks = [choice.rank for choice in plan.layers.values()]
        assert ranks[0] is not None
        assert ranks[0] <= 2
        assert ranks[1] is None or ranks[1] > 2


def test_multiply_adds_count_what_a_token_takes():
    """A table costs nothing to look up in, and more as a pair: it stays dense."""
    plan = lpjax.allocate(params(), budget=0.5, budget_of="multiply_adds")
    assert "words/embedding" not in plan.layers
    used = sum(rank_of(plan, path) * sum(SHAPES[path]) for path in plan.layers)
    whole = 12 * 12 + 12 * 40
    assert 0.5 * whole - 52 < used <= 0.5 * whole


def timings(**ratios: tuple[float, ...]) -> BreakEven:
    """Of each shape: the dense matrix takes as many microseconds as it has entries, pairs what `ratios` say or half."""
    steps = {(12, 12): (2, 4, 5), (12, 40): (3, 6, 9), (60, 12): (3, 6, 9)}
    return BreakEven(
        64,
        tuple(
            LayerTiming(
                shape, "embedding" in path, 1e-6 * math.prod(shape), steps[shape], ratios.get(path, (0.2, 0.4, 0.6))
            )
            for path, shape in SHAPES.items()
        ),
    )


@pytest.mark.parametrize("allocation", ["uniform", "energy", "minimax", "error"])
@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7])
def test_a_budget_of_time_is_kept_and_used(allocation, budget):
    """Against the sum of the table's own times; one more rank for any matrix would exceed it, except on a plateau."""
    table = timings()
    plan = lpjax.allocate(params(), budget=budget, budget_of="time", allocation=allocation, break_even=table)

    def seconds(ranks: dict[str, int | None]) -> float:
        each = {path: table.timing(path, shape) for path, shape in SHAPES.items()}
        return sum(
            timing.dense_seconds * (1 if ranks[path] is None else timing.ratio(ranks[path] or 0))
            for path, timing in each.items()
            if timing is not None
        )

    ranks = {path: choice.rank for path, choice in plan.layers.items()}
    allowed = budget * seconds(dict.fromkeys(SHAPES))
    assert seconds(ranks) <= allowed * (1 + 1e-5)
    records = lpjax.compress(params(), plan, break_even=table).records
    assert table.share(records) == pytest.approx(seconds(ranks) / allowed * budget)
    if allocation == "error":
        for path, rank in ranks.items():
            if rank is not None and rank < 9:
                assert seconds(ranks | {path: rank + 1}) > allowed * (1 - 1e-5) or rank == 5


def test_error_by_time_is_that_of_brute_force():
    """But for the remainder, over all ranks of two matrices; one takes far longer than its parameters say."""
    path, other = "layer/ffn/up/kernel", "layer/attention/query/kernel"
    table = timings(**{path: (0.3, 0.5, 0.9)})
    options: dict[str, Any] = {"budget": 0.8, "budget_of": "time", "select": "kernel", "allocation": "error"}
    plan = lpjax.allocate(params(), **options, break_even=table)
    tree = dict(leaves_with_paths(params()))
    errors = {
        key: np.append(np.cumsum(np.linalg.svd(tree[key], compute_uv=False)[::-1] ** 2)[::-1], 0)
        for key in (path, other)
    }

    def cost(key: str, rank: int | None) -> float:
        timing = table.timing(key, SHAPES[key])
        assert timing is not None
        return timing.dense_seconds * (1 if rank is None else timing.ratio(rank))

    choices = {key: [*range(1, 10 if key == path else 6), None] for key in (path, other)}
    words = table.timing("words/embedding", SHAPES["words/embedding"])
    assert words is not None
    allowed = 0.8 * (cost(path, None) + cost(other, None) + words.dense_seconds) - words.dense_seconds
    best = min(
        sum(0 if rank is None else errors[key][rank] for key, rank in zip((path, other), ranks, strict=True))
        for ranks in itertools.product(*choices.values())
        if cost(path, ranks[0]) + cost(other, ranks[1]) <= allowed
    )
    reached = sum(0 if choice.rank is None else float(errors[key][choice.rank]) for key, choice in plan.layers.items())
    assert best <= reached <= 1.1 * best


def test_a_pair_keeps_its_time():
    """It takes what a pair of its rank takes, and may stay."""
    tree = lpjax.compress(params(), select="embeddings", rank=4, solver="svd").params
    table = timings()
    plan = lpjax.allocate(tree, budget=0.5, budget_of="time", break_even=table)
    records = lpjax.compress(tree, plan, break_even=table).records
    assert all(record.rank is None or record.rank <= 9 for record in records)
    small = lpjax.compress(tree, plan).params
    assert small["words"]["embedding"].rank <= 4


def test_a_budget_of_time_that_no_pairs_reach():
    with pytest.raises(ValueError, match=r"`budget` of time is 0\.1, but even with the smallest pairs"):
        lpjax.allocate(params(), budget=0.1, budget_of="time", break_even=timings())


@pytest.mark.parametrize("table", [None, BreakEven(64, timings().timings[1:])])
def test_a_budget_of_time_needs_all_timings(table):
    with pytest.raises(ValueError, match="no timing of layer/attention/query/kernel, 12 × 12; a budget of time needs"):
        lpjax.allocate(params(), budget=0.5, budget_of="time", break_even=table)


@pytest.mark.parametrize("budget", [0.45, 0.7])
def test_what_is_a_pair_already_gets_smaller_or_stays(budget):
    """Within a budget that is a share of the dense model."""
    tree = lpjax.compress(params(), select="embeddings", rank=4, solver="svd").params
    plan = lpjax.allocate(tree, budget=budget)
    assert set(plan.layers) == set(SHAPES)
    small = lpjax.compress(tree, plan=plan).params
    assert size(small) <= budget * size(params())
    assert small["words"]["embedding"].rank <= 4


@pytest.mark.slow
def test_measured_keeps_the_pair_that_matters_most():
    tree = lpjax.compress(params(), select="embeddings", rank=4, solver="svd").params
    pair = tree["words"]["embedding"]
    targets = dict(leaves_with_paths(params())) | {"words/embedding": np.asarray(lpjax.densify(pair))}

    def measure(candidate: Any) -> float:
        leaves = dict(leaves_with_paths(candidate))
        errors = {path: float(np.sum((np.asarray(leaves[path]) - targets[path]) ** 2)) for path in SHAPES}
        return sum(errors.values()) + 1e4 * errors["words/embedding"]

    plan = lpjax.allocate(tree, budget=0.7, measure=measure)
    small = lpjax.compress(tree, plan=plan).params
    assert size(small) <= 0.7 * size(params())
    assert np.array_equal(small["words"]["embedding"].left, pair.left)


@pytest.mark.parametrize("weighting", ["drone", lpjax.Weighting(inputs_power=0.5)])
def test_a_plan_is_solved_under_its_weighting(weighting):
    rng = np.random.default_rng(0)
    inputs, outputs = (x.T @ x for x in rng.normal(size=(2, 40, 12)))
    magnitude = np.sqrt(np.diagonal(inputs) / 40).astype(np.float32)
    moments = {"inputs": inputs.astype(np.float32), "outputs": outputs.astype(np.float32)}
    statistics = Statistics(40, **moments, magnitude=magnitude)
    path = "layer/attention/query/kernel"
    calibration = Calibration({path: statistics}, "embedding", 3, 40, 0)
    plan = lpjax.allocate(params(), budget=0.95, select=path, statistics=calibration, weighting=weighting)
    assert plan.weighting == weighting

    def product(**options: Any) -> np.ndarray:
        leaf = lpjax.compress(params(), statistics=calibration, **options).params["layer"]["attention"]["query"]
        return np.asarray(leaf["kernel"].left @ leaf["kernel"].right)

    ranks: dict[str, Any] = {"select": path, "rank": rank_of(plan, path)}
    assert np.array_equal(product(plan=plan), product(**ranks, weighting=weighting))
    assert np.array_equal(product(plan=plan, weighting="asvd"), product(**ranks, weighting="asvd"))
    assert not np.allclose(product(plan=plan), product(**ranks), atol=1e-3)
    with pytest.raises(ValueError, match="which needs `statistics`"):
        lpjax.compress(params(), plan=plan)


def test_a_measure_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="`measure` returned nan with layer/attention/query/kernel replaced"):
        lpjax.allocate(params(), budget=0.5, measure=lambda _: math.nan)


def test_ranks_are_multiples_and_none_is_slower():
    plan = lpjax.allocate(params(), budget=0.6, rank_multiple=4)
    assert all(choice.rank is None or choice.rank % 4 == 0 for choice in plan.layers.values())
    timing = LayerTiming((12, 40), False, 1.0, (2, 4, 8), (0.5, 0.9, 1.5))
    slow = BreakEven(64, (timing,))
    plan = lpjax.allocate(params(), budget=0.9, break_even=slow)
    assert plan.layers["layer/ffn/up/kernel"].rank in (None, *range(1, timing.rank + 1))
    plan = lpjax.allocate(params(), budget=0.5, break_even=slow, rank_multiple=2)
    assert rank_of(plan, "layer/ffn/up/kernel") <= timing.rank


def test_a_matrix_of_zeros_gets_the_least():
    tree = params()
    tree["layer"]["ffn"]["up"]["kernel"] *= 0
    for allocation in ("energy", "minimax", "error"):
        assert lpjax.allocate(tree, budget=0.5, allocation=allocation).layers["layer/ffn/up/kernel"].rank == 1


@pytest.mark.covering(0)
@pytest.mark.parametrize("weighted", [False, True])
def test_progress_ends_where_it_says(weighted):
    calls: list[tuple[int, int]] = []
    known: dict[str, Any] = {}
    if weighted:
        statistics = {
            path: Statistics(
                9,
                **{"counts": np.ones(n, np.float32)}
                if "embedding" in path
                else {"inputs": np.eye(n, dtype=np.float32)},
                outputs=np.eye(d, dtype=np.float32),
            )
            for path, (n, d) in SHAPES.items()
        }
        known["statistics"] = Calibration(statistics, "embedding", 3, 9, 0)
    lpjax.allocate(
        params(), budget=0.5, measure=squares, levels=(0.3, 0.6), progress=lambda *call: calls.append(call[:2]), **known
    )
    assert [done for done, _ in calls] == list(range(len(calls)))
    assert {total for _, total in calls} == {len(calls)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.0}, "`budget` is 0.0"),
        ({"budget": 1.0}, "`budget` is 1.0"),
        (
            {"budget": 0.5, "budget_of": "bytes"},
            "`budget_of` is 'bytes'; expected one of parameters, multiply_adds, time",
        ),
        ({"budget": 0.5, "methods": [("sdv", 2.0)]}, "`solver` is 'sdv'; expected one of svd"),
        ({"budget": 0.5, "weighting": "drone"}, "which needs `statistics`"),
        ({"budget": 0.5, "allocation": "best"}, "`allocation` is 'best'; expected one of uniform"),
        ({"budget": 0.5, "allocation": "measured"}, "there is no `measure`"),
        ({"budget": 0.5, "levels": (0.5, 0.2)}, "expected rising shares"),
        ({"budget": 0.5, "rank_multiple": 0}, "`rank_multiple` is 0"),
        ({"budget": 0.5, "methods": ()}, "`methods` is empty"),
        ({"budget": 0.05}, r"the model keeps 0\.1\d\d of its parameters; select more layers"),
        ({"budget": 0.5, "select": "attention"}, r"the model keeps 0\.9\d\d of its parameters"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lpjax.allocate(params(), **options)


def test_a_plan_by_hand():
    plan = {"layer/ffn/up/kernel": Choice(3, "irls_rows", 1.0), "words/embedding": Choice(None)}
    compressed = lpjax.compress(params(), plan=plan)
    ranks = {record.path: record.rank for record in compressed.records}
    assert ranks == {"layer/ffn/up/kernel": 3, "words/embedding": None}
    assert compressed.records[1].note == "stays dense: the plan leaves it unchanged"
    alone = lpjax.compress(params(), select="ffn", rank=3, solver="irls_rows", p=1.0)
    a, b = (lpjax.densify(result.params["layer"]["ffn"]["up"]["kernel"]) for result in (compressed, alone))
    assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": {}}, "names no layer"),
        ({"plan": {"layer/nothing": Choice(2)}}, "it belongs to another model"),
        ({"plan": {"words/embedding": Choice(0)}}, "layer words/embedding: rank is 0"),
        ({"plan": {"words/embedding": Choice(2, "sdv")}}, "method is 'sdv'"),
        ({"plan": {"words/embedding": Choice(2)}, "keep": 0.5}, "`plan` and `keep` both choose"),
        ({"keep": 0.5}, "`select` is missing"),
    ],
)
def test_plans_that_compress_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        lpjax.compress(params(), **options)


@pytest.mark.parametrize("seed", range(5))
def test_a_hull_lies_below_all_options(seed):
    rng = np.random.default_rng(seed)
    options = [
        Option(int(c), float(loss), Choice(None))
        for c, loss in zip(rng.integers(1, 50, 30), rng.random(30), strict=True)
    ]
    corners = hull(options)
    assert corners[-1].loss == min(option.loss for option in options)
    assert corners[0].cost == min(option.cost for option in options)
    slopes = [(b.loss - a.loss) / (b.cost - a.cost) for a, b in itertools.pairwise(corners)]
    assert slopes == sorted(slopes)
    assert all(slope < 0 for slope in slopes)
    for option in options:
        at = np.interp(option.cost, [corner.cost for corner in corners], [corner.loss for corner in corners])
        assert option.loss >= at - 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_sharing_out_is_optimal_for_convex_losses_of_equal_steps(seed):
    rng = np.random.default_rng(seed)
    leaves = [Leaf(str(i), (6, 6), False, 1, 2, 1) for i in range(4)]
    options = {
        leaf.path: [
            Option(12 * k, loss, Choice(k)) for k, loss in enumerate(np.cumsum(np.sort(rng.random(3)))[::-1], start=1)
        ]
        for leaf in leaves
    }
    budget = 12 * 7
    chosen = share_out(leaves, options, budget)
    loss = sum(option.loss for path, choice in chosen.items() for option in options[path] if option.choice == choice)
    every = itertools.product(*options.values())
    assert loss == pytest.approx(
        min(sum(option.loss for option in some) for some in every if sum(option.cost for option in some) <= budget)
    )


def test_levels_fit_tightly():
    leaves = [
        Leaf(str(i), (n, d), False, 1, n * d // (n + d), 1) for i, (n, d) in enumerate(((30, 20), (50, 10), (9, 9)))
    ]
    for budget in (150, 400, 900):
        ranks = by_level(leaves, budget, rank_of_share)
        spent = sum(leaf.cost(ranks[leaf.path]) for leaf in leaves)
        assert budget - 60 < spent <= budget
    assert by_level(leaves, 10_000, rank_of_share) == {"0": None, "1": None, "2": None}


def test_ranks_of_a_leaf_are_its_multiples():
    assert list(Leaf("a", (9, 9), False, 4, 10, 4).ranks()) == [4, 8]
    assert list(Leaf("a", (9, 9), False, 3, 3, 4).ranks()) == [3]  # fewer than the multiple
    assert list(Leaf("a", (9, 9), False, 1, 4, 1).ranks()) == [1, 2, 3, 4]


def test_losses_of_a_spectrum():
    values = np.array([2.0, 1.0, 1.0])
    assert np.allclose(losses_of(values, spectral=True), [1, 0.5, 0.5, 0])
    assert np.allclose(losses_of(values, spectral=False), [1, 1 / 3, 1 / 6, 0])
    assert rank_of_loss(losses_of(values, spectral=True), 0.5) == 1
    assert rank_of_loss(losses_of(values, spectral=False), 0.2) == 2
    assert math.isinf(rank_of_loss(losses_of(values, spectral=False), 0))
    assert np.array_equal(losses_of(np.zeros(2), spectral=True), [0, 0, 0])
