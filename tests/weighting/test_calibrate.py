"""Sums at statistics taps against gradients with respect to weights, text by text; activations of shorter models."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import lpjax
from lpjax._tree import leaves_with_paths, replace_leaves
from lpjax.models.heads import num_outputs
from lpjax.models.taps import TappedWeight, Taps
from lpjax.select import select_paths
from lpjax.weighting import calibrate
from lpjax.weights.low_rank import LowRank
from tests.helpers import on_devices, write_first
from tests.helpers.goldens import NETS
from tests.helpers.nets import base_net, net_with_head
from tests.helpers.texts import LONGEST, TEXTS, WORDS, make_tokenizer, one_at_a_time

ALL = r"(?<!pooler/dense/)(?<!pooler/)kernel$|(word_embeddings?|tok_embeddings)/embedding$"
RUN = r"^(?!(roberta|mpnet)/pooler).*kernel$"  # their heads have no use for the pooler


def run(checkpoint, texts=TEXTS, **options):
    options = {"select": ALL, "max_length": LONGEST, **options}
    return calibrate(checkpoint, texts, tokenizer=make_tokenizer(checkpoint.config), **options)


def gradients(checkpoint, paths, labels):
    """The gradients of each text's cross-entropy with respect to some leaves, path by path."""

    def loss(leaves, batch, label):
        logits = lpjax.classify(replace_leaves(checkpoint.params, leaves), checkpoint.config, batch)
        return -jax.nn.log_softmax(logits)[0, label]

    known = dict(leaves_with_paths(checkpoint.params))
    leaves = {path: jnp.asarray(known[path]) for path in paths}
    of = jax.jit(jax.grad(loss))
    text_gradients = [of(leaves, *example) for example in zip(one_at_a_time(checkpoint, TEXTS), labels, strict=True)]
    return {path: np.stack([np.asarray(gradient[path], np.float64) for gradient in text_gradients]) for path in paths}


@pytest.mark.covering(0)
@pytest.mark.parametrize("name", NETS)
def test_fisher_information_is_that_of_gradients_text_by_text(name):
    checkpoint = net_with_head(name, "mnli")
    labels = np.arange(len(TEXTS)) % 3
    calibration = run(checkpoint, labels=labels, select=RUN)
    assert calibration.target == "labels"
    for path, of_texts in gradients(checkpoint, select_paths(checkpoint.params, RUN), labels).items():
        expected = np.square(of_texts).sum(axis=2).mean(axis=0)
        if path.endswith("rel_attn/r/kernel"):
            continue  # of positions, that all texts of a batch share: not told apart by text
        assert np.allclose(calibration.statistics[path].fisher, expected, rtol=2e-4, atol=1e-5 * expected.max()), path


@pytest.mark.covering(0)
@pytest.mark.parametrize("name", NETS)
def test_gradients_by_rows_of_a_table(name):
    checkpoint = net_with_head(name, "mnli")
    labels = np.arange(len(TEXTS)) % 3
    texts = [" ".join(dict.fromkeys(text.split())) for text in TEXTS]  # a word once: its row's gradient is its token's
    (path,) = select_paths(checkpoint.params, "embeddings")
    batches = list(one_at_a_time(checkpoint, texts))

    def loss(leaf, batch, label):
        params = replace_leaves(checkpoint.params, {path: leaf})
        return -jax.nn.log_softmax(lpjax.classify(params, checkpoint.config, batch))[0, label]

    table = jnp.asarray(dict(leaves_with_paths(checkpoint.params))[path])
    of = jax.jit(jax.grad(loss))
    rows = [np.asarray(of(table, *example), np.float64) for example in zip(batches, labels, strict=True)]
    counts = np.bincount(np.concatenate([batch["input_ids"][0] for batch in batches]), minlength=len(table))
    statistics = run(checkpoint, texts, labels=labels).statistics[path]
    assert statistics.tokens == counts.sum()
    assert np.array_equal(statistics.counts, counts)
    squares = np.sum([np.square(gradient).sum(axis=1) for gradient in rows], axis=0)
    assert np.allclose(statistics.gradients, squares, rtol=1e-4, atol=1e-5 * squares.max())
    moment = np.sum([gradient.T @ gradient for gradient in rows], axis=0) / counts.sum()
    assert np.allclose(statistics.outputs, moment, rtol=1e-4, atol=1e-5 * np.abs(moment).max())
    assert np.isclose(np.trace(statistics.outputs) * statistics.tokens, statistics.gradients.sum(), rtol=1e-4)


@pytest.mark.covering(0)
@pytest.mark.parametrize("name", NETS[:6])  # ModernBERT normalizes between layers, ALBERT's share their weights
def test_inputs_of_a_layer_are_what_the_layers_before_it_give(name):
    checkpoint = base_net(name, layers=2)
    shorter = base_net(name, layers=1)
    seen = [lpjax.encode(shorter.params, shorter.config, batch)[0] for batch in one_at_a_time(shorter, TEXTS)]
    rows = np.concatenate([np.asarray(hidden, np.float64) for hidden in seen])
    query = r"layer/1/.*(query|q_lin|attn/q)/kernel$"
    (path,) = select_paths(checkpoint.params, query)
    statistics = run(checkpoint, gradients=False).statistics[path]
    assert statistics.tokens == len(rows)
    assert np.allclose(statistics.inputs, rows.T @ rows / len(rows), atol=1e-4)
    assert np.allclose(statistics.mean, rows.mean(axis=0), atol=1e-5)
    assert np.allclose(statistics.magnitude, np.abs(rows).mean(axis=0), atol=1e-5)
    assert (statistics.outputs, statistics.fisher) == (None, None)


def test_statistics_of_a_shared_matrix_are_sums_over_its_uses():
    """Those of the same model whose two layers have matrices of their own, which are equal."""
    shared = base_net("albert_base", layers=2)
    config = dataclasses.replace(shared.config, num_hidden_groups=2)
    groups = shared.params["encoder"]["albert_layer_groups"]
    twice = {"albert_layer_groups": {"0": groups["0"], "1": groups["0"]}}
    params = shared.params | {"encoder": shared.params["encoder"] | twice}
    apart = run(dataclasses.replace(shared, params=params, config=config), select="encoder").statistics
    for path, statistics in run(shared, select="encoder").statistics.items():
        uses = [apart[path.replace("groups/0", f"groups/{group}")] for group in range(2)]
        assert statistics.tokens == sum(use.tokens for use in uses)
        for name in ("inputs", "mean", "magnitude", "outputs", "fisher"):
            # Means over tokens, but of Fisher information over texts.
            sums = [getattr(use, name) * (1 if name == "fisher" else use.tokens) for use in (statistics, *uses)]
            total = sums[1] + sums[2]
            assert np.allclose(sums[0], total, rtol=1e-4, atol=1e-5 * np.abs(total).max())


@pytest.mark.covering(0)
@pytest.mark.parametrize("name", NETS)
def test_moments_of_gradients_are_those_by_the_bias_where_one_token_counts(name):
    checkpoint = net_with_head(name, "mnli")
    labels = np.arange(len(TEXTS)) % 3
    (path,) = select_paths(checkpoint.params, r"^(classifier(/out_proj)?|logits_proj)/kernel$")
    bias = path.replace("kernel", "bias")
    rows = gradients(checkpoint, [bias], labels)[bias]
    statistics = run(checkpoint, labels=labels, select=RUN).statistics[path]
    # Means are over what goes through: of the head one token a text.
    assert statistics.tokens == len(TEXTS)
    assert statistics.outputs is not None
    assert np.allclose(statistics.outputs * statistics.tokens, rows.T @ rows, rtol=1e-4, atol=1e-6)


@pytest.mark.covering(0)
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    "net", [functools.partial(base_net, "bert_base"), functools.partial(net_with_head, "xlnet_base", "mnli")]
)
def test_batches_make_no_difference(net, batch_size):
    checkpoint = net()
    options = {"labels": np.zeros(len(TEXTS))} if num_outputs(checkpoint.params, checkpoint.config) else {}
    whole, parts = (run(checkpoint, batch_size=size, **options).statistics for size in (len(TEXTS), batch_size))
    for path, statistics in whole.items():
        if path.endswith("rel_attn/r/kernel"):
            continue
        for field in dataclasses.fields(statistics):
            array, other = getattr(statistics, field.name), getattr(parts[path], field.name)
            if array is None or (not options and field.name in ("outputs", "fisher", "gradients")):
                continue  # random directions are drawn batch by batch
            assert np.allclose(array, other, rtol=1e-4, atol=1e-5 * max(1e-6, np.abs(array).max())), (path, field.name)


def test_random_directions_come_to_the_gauss_newton_matrix():
    checkpoint = base_net("bert_base")
    (path,) = select_paths(checkpoint.params, "layer/0/output/dense/kernel$")
    bias = path.replace("kernel", "bias")
    start = jnp.asarray(dict(leaves_with_paths(checkpoint.params))[bias])
    tokens = len(next(one_at_a_time(checkpoint, ["a"]))["input_ids"][0])

    def embedding(shift, batch):
        """By a shift of the layer's output for every token by itself: the last layer's norm takes no other part."""
        hidden = jnp.stack([
            lpjax.encode(replace_leaves(checkpoint.params, {bias: start + shift[i]}), checkpoint.config, batch)[0, i]
            for i in range(tokens)
        ])  # fmt: skip
        pooled = hidden.mean(axis=0)
        return pooled / jnp.linalg.norm(pooled)

    (batch,) = one_at_a_time(checkpoint, ["a"])
    jacobian = np.asarray(jax.jacobian(embedding)(jnp.zeros((tokens, len(start))), batch), np.float64)
    expected = np.einsum("hti,htj->ij", jacobian, jacobian) / tokens
    several = (run(checkpoint, ["a"] * 32, seed=seed) for seed in range(40))
    moment = np.mean([np.asarray(calibration.statistics[path].outputs) for calibration in several], axis=0)
    assert np.linalg.norm(moment - expected) < 0.1 * np.linalg.norm(expected)  # of 1,280 directions


def test_the_same_again_and_another_with_another_seed():
    checkpoint = net_with_head("bert_base", "sst2")
    first, again, other = (run(checkpoint, seed=seed) for seed in (3, 3, 4))
    assert (first.target, first.texts) == ("predictions", len(TEXTS))
    for path, statistics in first.statistics.items():
        assert np.array_equal(statistics.outputs, again.statistics[path].outputs)
        assert not np.array_equal(statistics.outputs, other.statistics[path].outputs)


def test_pairs_and_factored_nets():
    checkpoint = net_with_head("bert_base", "mnli", rank=3)
    calibration = run(checkpoint, second=TEXTS[::-1], select="encoder")
    assert calibration.tokens > run(checkpoint, select="encoder", gradients=False).tokens
    moments = [np.asarray(statistics.outputs) for statistics in calibration.statistics.values()]
    assert all(np.all(np.isfinite(moment)) and moment.any() for moment in moments)


def test_progress_counts_texts():
    seen = []
    run(base_net("bert_base"), batch_size=4, gradients=False, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 9), (5, 9), (9, 9)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [0, 1]}, r"shape \(2,\); expected \(9,\)"),
        ({"labels": [3] * 9}, "holds 3; expected whole numbers from 0 to 2"),
        ({"labels": [0.5] * 9}, "holds 0.5"),
        ({"labels": [0] * 9, "gradients": False}, "`labels` need gradients"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"seed": -1}, "`seed` is -1"),
        ({"texts": []}, "is empty"),
        ({"select": "nothing"}, "matches no leaf"),
    ],
)
def test_misuse_is_refused_before_any_work(options, message):
    with pytest.raises(ValueError, match=message):
        run(net_with_head("bert_base", "mnli"), **options)


def test_matrices_that_no_text_goes_through_are_refused():
    checkpoint = base_net("bert_base")
    with pytest.raises(ValueError, match="does not use on text: pooler/dense/kernel"):
        run(checkpoint, select="kernel$")


def test_a_net_that_is_not_finite_is_refused():
    net = base_net("bert_base")
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x * np.float32(np.nan) if "LayerNorm" in str(path) else x, net.params
    )
    with pytest.raises(ValueError, match=r"`\w+` of .* is not finite"):
        run(dataclasses.replace(net, params=params))


@pytest.mark.covering(0)
@pytest.mark.parametrize("name", NETS)
def test_without_gradients_a_head_is_run_all_the_same(name):
    checkpoint = net_with_head(name, "mnli")
    forward, whole = (run(checkpoint, gradients=gradients).statistics for gradients in (False, True))
    for path, statistics in forward.items():
        assert statistics.outputs is None
        assert statistics.tokens == whole[path].tokens
        for field in ("inputs", "mean", "magnitude", "counts"):
            array, other = getattr(statistics, field), getattr(whole[path], field)
            assert array is other is None or np.allclose(array, other, rtol=1e-5, atol=1e-6), (path, field)


def test_biases_of_relative_positions_are_seen_once_a_batch():
    """Also if they are as many as the texts or the places that are predicted."""
    checkpoint = base_net("mpnet_base")
    (path,) = select_paths(checkpoint.params, "relative_attention_bias")
    statistics = run(checkpoint, ["a b c d e"] * 7, select=path, batch_size=7).statistics[path]
    # From as far as one before the first token, which no text has, to the last.
    places = statistics.tokens
    assert statistics.counts is not None
    assert statistics.outputs is not None
    assert statistics.gradients is not None
    assert statistics.counts.sum() == places
    assert np.array_equal(statistics.counts[17:24], np.ones(7))  # keys 1 to 7 after the query
    assert np.isclose(np.trace(statistics.outputs) * places, statistics.gradients.sum(), rtol=1e-4)
    assert statistics.gradients[[0, 1, 6, 17, 22]].all()
    assert not statistics.gradients[[9, 15, 16, 31]].any()


@pytest.mark.slow
def test_many_batches_are_added_up_in_double_precision():
    checkpoint = base_net("bert_base")
    texts = TEXTS * 16
    whole, many = (run(checkpoint, texts, batch_size=size, gradients=False).statistics for size in (144, 2))
    for path, statistics in whole.items():
        assert statistics.tokens == many[path].tokens
        if statistics.inputs is not None:
            assert np.allclose(statistics.inputs, many[path].inputs, rtol=1e-5, atol=1e-6)


@pytest.mark.covering(0)
@pytest.mark.parametrize("name", ["bert_base", "xlnet_base"])
def test_regressions_have_gaussian_directions(name):
    checkpoint = net_with_head(name, "stsb")
    drawn, labelled = run(checkpoint), run(checkpoint, labels=np.linspace(0, 5, len(TEXTS)))
    assert (drawn.target, labelled.target) == ("predictions", "labels")
    for calibration in (drawn, labelled):
        moments = [np.asarray(statistics.outputs) for statistics in calibration.statistics.values()]
        assert all(np.all(np.isfinite(moment)) and moment.any() for moment in moments)


def test_labels_want_a_head():
    with pytest.raises(ValueError, match="no head"):
        run(base_net("bert_base"), labels=[0] * len(TEXTS))


def statistics_of_a_net(target: str) -> None:
    """Write the sums of a model in batches of five, and how many devices there are."""
    checkpoint = net_with_head("roberta_base", "mnli")
    by_path = run(checkpoint, labels=np.zeros(len(TEXTS)), batch_size=5).statistics
    arrays = {
        f"{path} {name}": value for path, statistics in by_path.items() for name, value in vars(statistics).items()
    }
    write_first({key: np.asarray(value) for key, value in arrays.items() if value is not None}, target)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_eight_devices_sum_up_the_same_as_one(processes, tmp_path):
    target = tmp_path / "eight.safetensors"
    eight = on_devices("tests.weighting.test_calibrate.statistics_of_a_net", target, processes=processes)
    statistics_of_a_net(str(tmp_path / "one.safetensors"))
    one = load_file(tmp_path / "one.safetensors")
    assert eight.keys() == one.keys()
    for key, value in one.items():
        assert np.allclose(value, eight[key], rtol=1e-4, atol=1e-5 * np.abs(value).max()), key


def test_words_are_known():
    assert set(" ".join(TEXTS).split()) <= set(WORDS)


def test_tables_in_half_precision_lose_no_gradients():
    """What a float16 could not say: gradients of 1e-8."""
    table = np.eye(4, 3)
    taps = Taps(outputs=jnp.zeros((3, 3)), gradients=jnp.zeros(4), counts=jnp.zeros(4), tokens=jnp.zeros(()))
    ids, tokens = jnp.asarray([[0, 2]]), jnp.ones((1, 2))
    for dtype in ("float32", "float16", "bfloat16"):
        for weight in (jnp.asarray(table, dtype), LowRank(jnp.asarray(table, dtype), jnp.eye(3, dtype=dtype))):

            def tiny(taps, weight=weight):
                return 1e-8 * jnp.sum(TappedWeight(weight, taps, tokens).take(ids))

            sums = jax.grad(tiny)(taps)
            assert np.allclose(sums.outputs, 2e-16, rtol=1e-3, atol=0)
            assert np.allclose(sums.gradients, [3e-16, 0, 3e-16, 0], rtol=1e-3, atol=0)
            assert np.allclose(sums.counts, [1, 0, 1, 0])
