"""Recovery without labels: it brings a factored model nearer to the dense one, and never further from it."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import lpjax
from lpjax import Divergence, LowRank, Recovery, recover
from lpjax._files import replacing as _replacing
from lpjax._tree import leaves_with_paths
from lpjax.training._recover import _loss_of
from lpjax.training.fit import SnapshotWarning
from lpjax.training.snapshot import save_state
from tests.helpers import on_devices, write_first
from tests.helpers.goldens import NETS
from tests.helpers.nets import base_net, net_with_head
from tests.helpers.texts import LONGEST, make_tokenizer

LETTERS = "abcdefghijklmnopqrstuvw"
TEXTS = [" ".join(np.random.default_rng(i).choice(list(LETTERS), 1 + i % 6)) for i in range(60)]
SETTINGS = Recovery(epochs=3, batch_size=8, learning_rate=3e-3, max_length=LONGEST, checks=2)


def shrink(checkpoint, **options):
    options = {"select": "encoder", "keep": 0.4, "solver": "svd", **options}
    return dataclasses.replace(checkpoint, params=lpjax.compress(checkpoint.params, **options).params)


def run(smaller, dense, texts=TEXTS, settings=SETTINGS, **options):
    return recover(smaller, dense, texts, settings=settings, tokenizer=make_tokenizer(dense.config), **options)


@pytest.mark.covering(0)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("task", [None, "mnli", "stsb"])
def test_it_comes_nearer_to_the_dense_net(name, task):
    dense = base_net(name) if task is None else net_with_head(name, task)
    if task == "stsb":  # the outputs of a fresh regression hardly differ
        heads = {"classifier", "logits_proj"}
        louder = {part: jax.tree.map(lambda x: 10 * x, dense.params[part]) for part in heads & set(dense.params)}
        dense = dataclasses.replace(dense, params=dense.params | louder)
    smaller = shrink(dense, keep=0.25)
    recovered = run(smaller, dense)
    assert (recovered.texts, recovered.held_out) == (54, 6)
    assert [entry["step"] for entry in recovered.curve] == [0, 4, 7, 11, 14, 18, 21]
    assert [entry["epoch"] for entry in recovered.curve[2::2]] == [1, 2, 3]
    losses = [entry["loss"] for entry in recovered.curve[1:]]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    assert recovered.best["divergence"] < recovered.curve[0]["divergence"]
    # By texts that it never saw, too.
    others = [" ".join(reversed(text.split())) for text in TEXTS if len(text.split()) > 2]
    measure = Divergence(dense, others, tokenizer=make_tokenizer(dense.config), max_length=LONGEST)
    assert measure(recovered.checkpoint.params) < measure(smaller.params)
    before, after = (dict(leaves_with_paths(net.params)) for net in (smaller, recovered.checkpoint))
    assert list(before) == list(after)
    for path, leaf in before.items():
        assert isinstance(after[path], LowRank) == isinstance(leaf, LowRank)
        assert after[path].shape == leaf.shape
        assert getattr(after[path], "rank", None) == getattr(leaf, "rank", None)


def measure_of(dense):
    """By the texts that are held out."""
    order = np.random.default_rng(SETTINGS.seed).permutation(len(TEXTS))
    held = [TEXTS[i] for i in order[: len(TEXTS) // 10]]
    return Divergence(dense, held, hidden=0, tokenizer=make_tokenizer(dense.config), max_length=LONGEST, batch_size=8)


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_a_rate_that_is_too_high_is_made_lower(rate):
    dense = base_net("bert_base")
    settings = dataclasses.replace(SETTINGS, learning_rate=rate, warmup=0.0, epochs=4, checks=4)
    recovered = run(shrink(dense), dense, settings=settings)
    lowest, share = recovered.curve[0]["divergence"], 1.0
    for before, entry in itertools.pairwise(recovered.curve):
        assert entry["learning_rate"] == pytest.approx(share * rate * (1 - (entry["step"] - 1) / 28))
        if entry["divergence"] >= lowest:
            share /= 3
        lowest = min(lowest, entry["divergence"])
        assert entry["step"] > before["step"]
    assert share < 0.1
    assert recovered.best["divergence"] == lowest < 0.9 * recovered.curve[0]["divergence"]
    # What is handed back is that model, whatever came after it.
    assert measure_of(dense)(recovered.checkpoint.params) == pytest.approx(lowest, rel=1e-5)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_rate_by_which_nothing_stays_finite():
    dense = base_net("bert_base")
    smaller = shrink(dense)
    settings = dataclasses.replace(SETTINGS, learning_rate=1e38, warmup=0.0, epochs=1)
    recovered = run(smaller, dense, settings=settings)
    assert recovered.best == recovered.curve[0]
    assert not any(np.isnan(value) for entry in recovered.curve for value in entry.values())
    for a, b in zip(jax.tree.leaves(smaller.params), jax.tree.leaves(recovered.checkpoint.params), strict=True):
        assert np.array_equal(a, b)


def test_a_net_whose_outputs_are_not_finite():
    dense = base_net("bert_base")
    broken = dataclasses.replace(dense, params=jax.tree.map(lambda x: x * np.float32(np.nan), dense.params))
    with pytest.raises(ValueError, match=r"`smaller` or `dense` are not finite"):
        run(broken, dense)


def test_the_start_is_kept_where_training_makes_it_worse():
    dense = base_net("bert_base")
    # Near the dense model, which itself may have gradients of exactly 0.
    smaller = dataclasses.replace(dense, params=jax.tree.map(lambda x: x * np.float32(1.001), dense.params))
    recovered = run(smaller, dense, settings=dataclasses.replace(SETTINGS, learning_rate=1.0, epochs=1))
    assert recovered.best == recovered.curve[0]
    assert all(entry["divergence"] > recovered.curve[0]["divergence"] for entry in recovered.curve[1:])
    for a, b in zip(jax.tree.leaves(smaller.params), jax.tree.leaves(recovered.checkpoint.params), strict=True):
        assert np.array_equal(a, b)


def test_the_same_seed_gives_the_same_weights():
    dense = base_net("distilbert_base")
    smaller = shrink(dense)
    first, same = (run(smaller, dense) for _ in range(2))
    other = run(smaller, dense, settings=dataclasses.replace(SETTINGS, seed=1))
    leaves = [jax.tree.leaves(recovered.checkpoint.params) for recovered in (first, same, other)]
    assert all(np.array_equal(a, b) for a, b in zip(leaves[0], leaves[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(leaves[0], leaves[2], strict=True))


def test_a_net_in_half_precision_stays_one():
    dense = base_net("bert_base")
    extra = {"crf.transitions": np.eye(3)}  # of the file, beside the model
    params = jax.tree.map(lambda x: np.asarray(x, "bfloat16"), dense.params)
    half = dataclasses.replace(dense, params=params, extra=extra)
    recovered = run(shrink(half), half)
    assert recovered.checkpoint.extra == extra
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(recovered.checkpoint.params)} == {"bfloat16"}
    assert recovered.best["divergence"] < recovered.curve[0]["divergence"]
    # That of the model as it is handed back, not of what it was rounded from.
    assert measure_of(half)(recovered.checkpoint.params) == pytest.approx(recovered.best["divergence"], rel=1e-6)


@pytest.fixture(scope="module")
def uninterrupted():
    """A model, its dense one, and what comes of a rate so high that the run goes back."""
    dense = base_net("bert_base")
    smaller = shrink(dense)
    settings = dataclasses.replace(SETTINGS, learning_rate=0.3, warmup=0.0)
    return smaller, dense, settings, run(smaller, dense, settings=settings)


def stop_at(*steps: int):
    """A progress that raises at the first of the steps that it has not raised at."""
    left = list(steps)

    def progress(step: int, total: int, what: str) -> None:
        if left and step == left[0]:
            left.pop(0)
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("save_every", [0, 1e9], ids=["saved always", "saved at checks"])
@pytest.mark.parametrize("steps", [(1,), (5,), (6, 12), (21,)], ids=str)
def test_a_run_that_was_interrupted_ends_as_if_it_had_not(uninterrupted, tmp_path, steps, save_every):
    smaller, dense, settings, expected = uninterrupted
    snapshot = tmp_path / "deep" / "snapshot"
    options = {"settings": settings, "snapshot": snapshot, "save_every": save_every, "progress": stop_at(*steps)}
    for _ in steps:
        with pytest.raises(KeyboardInterrupt):
            run(smaller, dense, **options)
        assert snapshot.exists() == (steps[0] > (1 if save_every == 0 else 4))
    for _ in range(2):  # the second time, all is done but to hand it back
        recovered = run(smaller, dense, **options)
        assert recovered.curve == expected.curve
        assert recovered.best == expected.best
        pairs = zip(
            jax.tree.leaves(recovered.checkpoint.params), jax.tree.leaves(expected.checkpoint.params), strict=True
        )
        assert all(np.array_equal(leaf, other) for leaf, other in pairs)
        options["progress"] = stop_at(1)
    assert any(b["divergence"] > a["divergence"] for a, b in itertools.pairwise(expected.curve))
    assert [path.name for path in snapshot.parent.iterdir()] == ["snapshot"]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_snapshot_of_a_run_that_diverges_can_be_gone_on_from(uninterrupted, tmp_path):
    smaller, dense, settings, _ = uninterrupted
    settings = dataclasses.replace(settings, learning_rate=1e38, epochs=1)
    options = {"settings": settings, "snapshot": tmp_path / "snapshot", "save_every": 0}
    with pytest.raises(KeyboardInterrupt):
        run(smaller, dense, **options, progress=stop_at(6))
    recovered = run(smaller, dense, **options)
    assert recovered.best == recovered.curve[0]
    assert recovered.curve == run(smaller, dense, settings=settings).curve


def test_a_snapshot_of_another_run_is_refused(uninterrupted, tmp_path):
    smaller, dense, settings, _ = uninterrupted
    path = tmp_path / "snapshot"
    with pytest.raises(KeyboardInterrupt):
        run(smaller, dense, settings=settings, snapshot=path, progress=stop_at(5))

    def refused(words, net=smaller, **options):
        with pytest.raises(ValueError, match=words):
            run(net, dense, **{"settings": settings, "snapshot": path, **options})

    refused("another run: seed was 0 and is 1", settings=dataclasses.replace(settings, seed=1))
    refused("another run: texts was", texts=TEXTS[:-1])
    refused("another run: weights was", net=shrink(dense, keep=0.5))
    tensors, log = load_file(path), json.loads(safe_open(path, framework="numpy").metadata()["log"])
    for change in (
        {"curve": []},
        {"curve": log["curve"][1:]},
        {"curve": [log["curve"][0] | {"divergence": "low"}, *log["curve"][1:]]},
        {"losses": [None, 1.0]},
        {"best": 9},
        {"step": 2},
    ):
        save_file(tensors, path, metadata={"log": json.dumps(log | change)})
        refused("cannot resume from .*/snapshot: it does not hold a record of a run")


def test_a_full_disk_does_not_end_training(uninterrupted, tmp_path, monkeypatch):
    smaller, dense, settings, expected = uninterrupted
    written = []

    def save(*arguments):
        written.append(arguments)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_state(*arguments)

    monkeypatch.setattr("lpjax.training.fit.save_state", save)
    with pytest.warns(SnapshotWarning, match=r"no snapshot of update \d+ could be written .*No space left") as caught:
        recovered = run(smaller, dense, settings=settings, snapshot=tmp_path / "snapshot", save_every=1e9)
    assert [str(warning.message).split()[4] for warning in caught] == ["11", "14", "18", "21"]
    assert recovered.curve == expected.curve
    assert json.loads(safe_open(tmp_path / "snapshot", framework="numpy").metadata()["log"])["step"] == 7
    nothing = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: nothing)
    with pytest.raises(OSError, match=r"has 0.0 MB of free space"):
        run(smaller, dense, settings=settings, snapshot=tmp_path / "other")


def test_two_runs_do_not_share_a_snapshot(uninterrupted, tmp_path):
    smaller, dense, settings, _ = uninterrupted
    path = tmp_path / "snapshot"
    refused = []

    def second(step, total, what):
        if step == 5:
            _replacing._own.clear()  # as in another process
            before = path.read_bytes()
            with pytest.raises(FileExistsError, match="another run is writing") as caught:
                run(smaller, dense, settings=settings, snapshot=path)
            refused.append(caught)
            assert path.read_bytes() == before
            _replacing._own[path] = path

    run(smaller, dense, settings=settings, snapshot=path, progress=second)
    assert len(refused) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot"]


def test_runs_share_what_is_compiled():
    assert _loss_of(False, 1.0) is _loss_of(False, 1.0)
    assert _loss_of(True, 1.0) is not _loss_of(False, 1.0)


def test_pairs_of_texts():
    dense = net_with_head("roberta_base", "mrpc")
    recovered = recover(shrink(dense), dense, TEXTS, TEXTS[::-1], SETTINGS, tokenizer=make_tokenizer(dense.config))
    assert recovered.best["divergence"] < recovered.curve[0]["divergence"]


def write_recovered(target):
    dense = base_net("bert_base")
    recovered = run(shrink(dense), dense)
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(recovered.checkpoint.params))}
    curve = np.array([[entry["divergence"], entry.get("loss", 0)] for entry in recovered.curve])
    # And goes back at every check, to the start.
    wild = dataclasses.replace(SETTINGS, learning_rate=1.0, epochs=1, checks=3)
    back = run(dense, dense, settings=wild)
    assert back.best == back.curve[0]
    same = zip(jax.tree.leaves(back.checkpoint.params), jax.tree.leaves(dense.params), strict=True)
    assert all(np.array_equal(a, b) for a, b in same)
    write_first({"curve": curve, **leaves}, target)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_eight_devices_are_as_one(processes, tmp_path):
    write_recovered(tmp_path / "one.safetensors")
    one = load_file(tmp_path / "one.safetensors")
    eight = on_devices(
        "tests.training.test_recover.write_recovered", tmp_path / "eight.safetensors", processes=processes
    )
    assert np.allclose(one.pop("curve"), eight.pop("curve"), rtol=1e-5)
    # AdamW divides by the size of a gradient: of one that is nothing but rounding, it makes a step like any other.
    apart = np.concatenate([np.abs(leaf - eight[name]).ravel() for name, leaf in one.items()])
    assert np.quantile(apart, 0.99) < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "`epochs` is 0"),
        ({"checks": 0}, "`checks` is 0"),
        ({"learning_rate": 0}, "`learning_rate` is 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` is nan"),
        ({"warmup": 1.5}, "`warmup` is 1.5"),
        ({"hidden": -1}, "`hidden` is -1"),
        ({"seed": -1}, "`seed` is -1"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        Recovery(**change)


def test_what_is_refused():
    dense = base_net("bert_base")
    with pytest.raises(ValueError, match="has 1 texts"):
        run(shrink(dense), dense, texts=["a b"])
    with pytest.raises(ValueError, match="different configs or heads"):
        run(shrink(net_with_head("bert_base", "mnli")), dense)
    with pytest.raises(ValueError, match="different configs or heads"):
        run(base_net("roberta_base"), dense)
