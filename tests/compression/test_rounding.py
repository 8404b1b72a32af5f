"""Plans that round: what becomes of each leaf, its record, files, replays, and what is refused."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import lpjax
from lpjax._files.json import RecordError
from lpjax._tree import leaves_with_paths
from lpjax.allocation.request import Request
from lpjax.compression import Choice, Plan, compress, outcome_of, record_of
from lpjax.compression.rounding import Moments, damped_moments_of, moments_of
from lpjax.rounding import round_kernel
from lpjax.weighting import WEIGHTINGS, Calibration, Statistics
from lpjax.weights.coded import stored_bytes
from lpjax.weights.low_rank import row_blocks
from tests.helpers.goldens import load_golden
from tests.helpers.lattice import random_metric, weighted_error

pytestmark = pytest.mark.optimized

TABLE, KERNEL = "embeddings/word_embeddings/embedding", "dense/kernel"


def net() -> dict:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    table = {"embeddings": {"word_embeddings": {"embedding": normal(60, 12)}}}
    return table | {"dense": {"kernel": normal(12, 16), "bias": normal(16)}, "norm": {"scale": normal(12)}}


def statistics() -> Calibration:
    rng = np.random.default_rng(1)

    def metric(size: int, seed: int) -> np.ndarray:
        return random_metric(size, seed).astype(np.float32)

    counts = rng.integers(0, 40, 60).astype(np.float32)
    tokens = int(counts.sum())
    known = {
        TABLE: Statistics(tokens, counts=counts, outputs=metric(12, 1)),
        KERNEL: Statistics(tokens // 2, inputs=metric(12, 2), outputs=metric(16, 3)),
    }
    return Calibration(known, "embedding", 10, tokens, 0)


def weighted_share(path: str, before: np.ndarray, after: np.ndarray) -> float:
    """‖W − Ŵ‖ / ‖W‖ under the statistics, by their definition."""
    known = statistics().statistics[path]
    rows = known.inputs if known.counts is None else np.diag(known.counts + 1.0)
    parts = (before - after, before)
    error, whole = (weighted_error(part.astype(np.float64), rows, known.outputs) for part in parts)
    return float(np.sqrt(error / whole))


CHOICES = {
    "step": Choice(None, step=0.02),
    "bits": Choice(None, bits=4, group=5),
    "bits, a line": Choice(None, bits=8),
    "rank and step": Choice(4, "svd", 2.0, step=0.02),
    "rank and bits": Choice(4, "svd", 2.0, bits=6, group=4),
    "p = 1": Choice(4, "lewis", 1.0, step=0.02),
    "single entries": Choice(6, "svd", 2.0, 0.3, step=0.02),
}


@pytest.mark.covering(1)
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", CHOICES)
def test_leaves_and_records(name, calibrated):
    params, choice = net(), CHOICES[name]
    plan = Plan({TABLE: choice, KERNEL: choice}, "gauss_newton" if calibrated else None, rest="float16")
    small, records = lpjax.compress(params, plan, statistics() if calibrated else None)
    leaves, dense = dict(leaves_with_paths(small)), dict(leaves_with_paths(params))
    assert leaves["dense/bias"].dtype == leaves["norm/scale"].dtype == np.float16
    for record in records:
        leaf, before = leaves[record.path], dense[record.path]
        after = np.concatenate([rows for _, rows in row_blocks(leaf, 64)])
        pair = choice.rank is not None or (record.path == TABLE and choice.step is not None)
        assert isinstance(leaf, lpjax.LowRank if pair else lpjax.Quantized)
        assert record.rank == (leaf.rank if isinstance(leaf, lpjax.LowRank) else None)
        assert record.stored_bytes == stored_bytes(leaf)
        assert record.note == ""
        assert (record.step, record.bits) == (choice.step, choice.bits)
        lines = (before - after, before) if record.path == TABLE else ((before - after).T, before.T)
        entries, rows = ([np.sum(np.abs(part) ** choice.p) for part in lines],
                         [np.sum(np.linalg.norm(part, axis=1) ** choice.p) for part in lines])  # fmt: skip
        assert record.error_entries == pytest.approx((entries[0] / entries[1]) ** (1 / choice.p), rel=1e-3)
        assert record.error_rows == pytest.approx((rows[0] / rows[1]) ** (1 / choice.p), rel=1e-3)
        if calibrated:
            assert record.error_weighted == pytest.approx(weighted_share(record.path, before, after), rel=1e-3)
        else:
            assert record.error_weighted is None


def test_steps_are_in_units_of_the_loss_per_token():
    """Twice the texts are twice the counts and tokens, and the same metrics."""
    known = statistics()
    layers = {
        path: dataclasses.replace(
            layer, tokens=2 * layer.tokens, counts=None if layer.counts is None else 2 * layer.counts + 1
        )
        for path, layer in known.statistics.items()
    }
    twice = dataclasses.replace(known, statistics=layers, tokens=2 * known.tokens)
    for path in (TABLE, KERNEL):
        moments, other = moments_of(known, path), moments_of(twice, path)
        np.testing.assert_allclose(np.asarray(other.rows), np.asarray(moments.rows), rtol=0.03)
    assert np.sum(np.asarray(moments_of(known, TABLE).rows)) == pytest.approx(1)
    assert moments_of(known, "elsewhere/kernel").columns is None


def with_tokens(known: Calibration, tokens: int) -> Calibration:
    layers = {path: dataclasses.replace(layer, tokens=tokens) for path, layer in known.statistics.items()}
    return dataclasses.replace(known, statistics=layers, tokens=tokens)


@pytest.mark.parametrize("tokens", [10, 100])
def test_moments_of_few_tokens_are_damped_by_their_number(tokens):
    known = with_tokens(statistics(), tokens)
    for path, sides in ((KERNEL, ("rows", "columns")), (TABLE, ("columns",))):
        moments, damped = moments_of(known, path), damped_moments_of(known, path)
        for side in sides:
            before, after = (np.linalg.eigvalsh(getattr(of, side)) for of in (moments, damped))
            expected = 3 * len(before) / tokens - 0.05
            np.testing.assert_allclose(after - before, expected * before.mean(), rtol=1e-6)
    np.testing.assert_array_equal(damped_moments_of(known, TABLE).rows, moments_of(known, TABLE).rows)


def test_moments_of_many_tokens_are_as_they_are():
    known = with_tokens(statistics(), 3 * 16 * 20)
    for path in (TABLE, KERNEL):
        for damped, moments in zip(damped_moments_of(known, path), moments_of(known, path), strict=True):
            np.testing.assert_array_equal(damped, moments)
    assert damped_moments_of(known, "elsewhere/kernel") == damped_moments_of(None, KERNEL) == Moments()


@pytest.mark.parametrize("seed", range(3))
def test_damping_lowers_the_error_on_inputs_that_the_sample_lacks(seed):
    """At equal bytes, the error under the second moments that inputs and gradients are drawn from: eigenvalues 1/j."""
    rng = np.random.default_rng(seed)
    size, tokens = 48, 48
    turns = [np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(2)]
    roots = [turn / np.sqrt(np.arange(1, size + 1)) for turn in turns]
    drawn = [root @ rng.normal(size=(size, tokens)) for root in roots]
    inputs, outputs = ((sample @ sample.T / tokens).astype(np.float32) for sample in drawn)
    known = Calibration({KERNEL: Statistics(tokens, inputs=inputs, outputs=outputs)}, "predictions", tokens, tokens, 0)
    matrix = rng.normal(size=(size, size))

    def true_error(moments: Moments) -> float:
        """The error at 3 bits a weight, interpolated."""
        points = []
        for step in 2.0 ** np.arange(-6, 4, 0.5):
            rounded = round_kernel(matrix, step, *moments)
            _, codes = np.unique(rounded.host_codes(), return_counts=True)
            bits = -np.sum(codes / matrix.size * np.log2(codes / matrix.size))
            error = matrix - np.concatenate([rows for _, rows in row_blocks(rounded, size)])
            points.append((-bits, np.log(weighted_error(error, roots[0] @ roots[0].T, roots[1] @ roots[1].T))))
        return float(np.exp(np.interp(-3, *np.array(points).T)))

    assert true_error(damped_moments_of(known, KERNEL)) < 0.8 * true_error(moments_of(known, KERNEL))


def test_finer_steps_have_smaller_errors_and_more_bytes():
    records = [
        lpjax.compress(net(), {KERNEL: Choice(None, step=step)}, statistics()).records[0] for step in (0.3, 0.1, 0.01)
    ]
    errors, sizes = [record.error_weighted for record in records], [record.stored_bytes for record in records]
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)


def test_without_statistics_a_step_is_one_of_the_root_mean_square():
    params = net()
    params["dense"]["kernel"] = params["dense"]["kernel"] * 1e-3
    (record,) = lpjax.compress(params, {KERNEL: Choice(None, step=0.1)}).records
    assert record.error_entries == pytest.approx(0.1 / 12**0.5, rel=0.1)


@pytest.mark.parametrize("name", ["step", "bits", "rank and step"])
def test_a_checkpoint_goes_round(tmp_path, name):
    before = load_golden("bert_base").checkpoint
    paths = [path for path, leaf in leaves_with_paths(before.params) if leaf.ndim == 2]
    plan = Plan(dict.fromkeys(paths, CHOICES[name]), rest="float16")
    compressed = lpjax.compress(before.params, plan)
    outcome = outcome_of(before, compressed, plan, None, model="dense", options={})
    size = lpjax.save_checkpoint(outcome.checkpoint, tmp_path / "out", extra_files=outcome.files)
    again = lpjax.load_checkpoint(tmp_path / "out")
    for (path, weight), (_, other) in zip(
        leaves_with_paths(compressed.params), leaves_with_paths(again.params), strict=True
    ):
        same = jax.tree.map(lambda a, b: np.array_equal(a, b) and a.dtype == b.dtype, weight, other)
        assert all(jax.tree.leaves(same)), path
    record = record_of(again)
    assert [layer.path for layer in record.steps[-1].layers] == [record.path for record in compressed.records]
    assert sum(layer.stored_bytes or 0 for layer in record.steps[-1].layers) < size
    lpjax.save_plan(outcome.plan, tmp_path / "plan.json")
    plan = lpjax.load_plan(tmp_path / "plan.json")
    assert plan.rest == "float16"
    assert dict(plan.layers) == dict(outcome.plan.layers)
    replayed = lpjax.compress(before.params, plan).params
    assert all(map(np.array_equal, jax.tree.leaves(replayed), jax.tree.leaves(compressed.params)))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({KERNEL: Choice(None, step=0.1, bits=4)}, "step is 0.1 and bits is 4; pass either, not both"),
        ({KERNEL: Choice(None, step=-1.0)}, "step is -1.0"),
        ({KERNEL: Choice(None, bits=7)}, "bits is 7"),
        ({KERNEL: Choice(None, group=4)}, "group is 4, but group needs bits"),
        ({KERNEL: Choice(None, bits=4, group=0)}, "group"),
    ],
)
def test_choices_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        lpjax.compress(net(), layers)


def test_a_plan_without_text_is_refused_with_text():
    plan = Plan({KERNEL: Choice(None, step=0.1)})
    for weighting in (None, "gauss_newton"):
        with pytest.raises(ValueError, match="its steps were chosen without `statistics` and are in other units"):
            lpjax.compress(net(), plan, statistics(), weighting=weighting)
        with pytest.raises(ValueError, match="in other units"):
            Request(plan=plan, calibrated=True, weighting=weighting)
    assert lpjax.compress(net(), Plan({KERNEL: Choice(None, bits=4)}), statistics()).records


def test_a_matrix_without_effect_is_rounded_as_one_without_statistics():
    known = statistics()
    kernel = known.statistics[KERNEL]
    for field in ("inputs", "outputs"):
        zeros = dataclasses.replace(kernel, **{field: np.zeros_like(getattr(kernel, field))})
        none = dataclasses.replace(known, statistics={**known.statistics, KERNEL: zeros})
        quantized, other = (
            lpjax.compress(net(), {KERNEL: Choice(None, step=0.1)}, calibration).params["dense"]["kernel"]
            for calibration in (none, None)
        )
        np.testing.assert_array_equal(quantized.host_codes(), other.host_codes())


def test_numbers_that_float16_cannot_hold_once_rounded_are_refused():
    kernel = np.random.default_rng(0).uniform(-65_000, 65_000, (64, 64)).astype(np.float16)
    with pytest.raises(ValueError, match="which float16 cannot hold"):
        lpjax.compress({"dense": {"kernel": kernel}}, {KERNEL: Choice(None, step=0.9)})


def test_more_is_refused_before_any_work():
    stacked = {"kernel": np.ones((2, 4, 4), np.float32)}
    with pytest.raises(ValueError, match="`step` and `bits` are for matrices"):
        lpjax.compress(stacked, {"kernel": Choice(None, bits=4)}, input_axes={"kernel": (1, 1)})
    with pytest.raises(ValueError, match="rounding needs gauss_newton"):
        lpjax.compress(net(), Plan({KERNEL: Choice(None, step=0.1)}, weighting="drone"), statistics())
    params = net()
    params["dense"]["kernel"][0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        lpjax.compress(params, {KERNEL: Choice(None, bits=4)})
    params = net()
    params["dense"]["bias"][0] = 1e6
    with pytest.raises(ValueError, match="dense/bias has values outside the range of float16"):
        lpjax.compress(params, Plan({KERNEL: Choice(None, bits=4)}, rest="float16"))
    missing = dataclasses.replace(statistics(), statistics={TABLE: statistics().statistics[TABLE]})
    with pytest.raises(ValueError, match="no statistics of dense/kernel"):
        lpjax.compress(net(), {KERNEL: Choice(None, step=0.1)}, missing)
    assert lpjax.compress(net(), {KERNEL: Choice(None, bits=4)}, missing).records[0].error_weighted is None


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ('"step": 0', "step"),
        ('"bits": 7', "bits"),
        ('"step": 0.1, "bits": 4', "pass either, not both"),
        ('"group": 32', "`group` needs `bits`"),
        ('"bits": 4, "group": 0', "group"),
    ],
)
def test_a_damaged_plan_is_refused(tmp_path, layer, message):
    path = tmp_path / "plan.json"
    path.write_text(f'{{"schema": "lpjax-plan/1", "layers": [{{"path": "{KERNEL}", "rank": null, {layer}}}]}}')
    with pytest.raises(RecordError, match=message):
        lpjax.load_plan(path)


def test_a_matrix_that_float32_cannot_hold_once_rounded_is_named():
    matrix = np.random.default_rng(0).uniform(2.5e38, 3.3e38, (64, 64)).astype(np.float32)
    with pytest.raises(ValueError, match=r"^a/kernel cannot be rounded: it has entries up to .*, which float32"):
        compress({"a": {"kernel": matrix}}, {"a/kernel": Choice(None, step=0.3)})


def test_a_layer_that_is_only_rounded_is_checked_before_any_work():
    done = []
    tree = {name: {"kernel": np.ones((32, 32), np.float32)} for name in "abcd"}
    tree["d"]["kernel"][3, 4] = np.nan
    layers = {f"{name}/kernel": Choice(None, bits=4, group=32) for name in "abcd"}
    with pytest.raises(ValueError, match="d/kernel"):
        compress(tree, layers, progress=lambda *step: done.append(step))
    assert not done


def test_a_table_without_counts_or_smoothing_has_no_metrics():
    known = Statistics(5, counts=np.zeros(7, np.float32), outputs=np.eye(3, dtype=np.float32))
    statistics = Calibration({"a/embedding": known}, "predictions", 1, 5, 0)
    weighting = dataclasses.replace(WEIGHTINGS["gauss_newton"], smoothing=0.0)
    assert moments_of(statistics, "a/embedding", weighting) == Moments()
