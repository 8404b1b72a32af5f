"""Fine-tuning against AdamW written out in NumPy; it learns, it resumes bit for bit, and it keeps its best."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import lpjax
from lpjax._mesh import by_rows, data_mesh, put_sharded, replicated
from lpjax._tree import walk
from lpjax.checkpoint import Checkpoint
from lpjax.glue import evaluate
from lpjax.glue.data import Examples
from lpjax.glue.evaluate import evaluate_task
from lpjax.models import device_params
from lpjax.models.heads import output_path
from lpjax.training import Settings
from lpjax.training._finetune import Finetuned
from lpjax.training.step import Schedule, TrainState, begin, decays, loss_sum, make_optimizer, train_step
from tests.helpers import on_devices, write_first
from tests.helpers.examples import FEW, toy, train_on_toy
from tests.helpers.goldens import NETS
from tests.helpers.nets import base_net, net_with_head
from tests.helpers.texts import make_tokenizer


def leaves_of(tree: Any) -> dict[str, np.ndarray]:
    """Arrays by path, the factors of a `LowRank` apart."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in pairs}


def assert_same(actual: Finetuned, other: Finetuned) -> None:
    assert actual.curve == other.curve
    assert (actual.best, actual.steps, actual.stopped_early) == (other.best, other.steps, other.stopped_early)
    leaves, expected = leaves_of(actual.checkpoint.params), leaves_of(other.checkpoint.params)
    assert leaves.keys() == expected.keys()
    assert all(np.array_equal(leaves[name], expected[name]) for name in leaves)


# One update


def batch_of(checkpoint: Checkpoint, parts: int, rows: int, filled: int, dtype: Any) -> tuple[Any, Any, Any]:
    """Inputs, labels and weights of `filled` texts in parts of `rows`; the rest is padding."""
    left = checkpoint.config.model_type == "xlnet"
    rng = np.random.default_rng(0)
    ids, mask = np.zeros((parts * rows, 8), np.int32), np.zeros((parts * rows, 8), np.int32)
    labels, weights = np.zeros(parts * rows, dtype), np.zeros(parts * rows, dtype)
    for i in range(filled):
        n = 3 + i % 4
        place = (i, slice(8 - n, 8) if left else slice(n))
        ids[place], mask[place] = rng.integers(7, 29, n), 1
        labels[i], weights[i] = i % 2, 1
    shape = (parts, rows)
    inputs = {"input_ids": ids.reshape(*shape, 8), "attention_mask": mask.reshape(*shape, 8)}
    return inputs, labels.reshape(shape), weights.reshape(shape)


def state_of(checkpoint: Checkpoint, dtype: Any, decay: float = 0.01, clip: float = 1.0) -> tuple[TrainState, Any]:
    optimizer = make_optimizer(decay, clip, checkpoint.config.no_decay)
    return begin(device_params(checkpoint.params, dtype), optimizer), optimizer


def step_with(checkpoint: Checkpoint, state: TrainState, optimizer: Any, batch: Any, rate: float, key: int = 0):
    """`train_step` of a copy of the state, compiled for what `finetune` would call it with."""
    mesh, dtype = data_mesh(), jax.tree.leaves(state.params)[0].dtype
    return train_step(
        jax.device_put(jax.tree.map(jnp.copy, state), replicated(mesh)),
        *put_sharded(batch, by_rows(mesh, axis=1)),
        jax.random.key(key),
        jnp.asarray(rate, dtype),
        config=checkpoint.config,
        optimizer=optimizer,
        dtype=np.dtype(dtype),
    )


@pytest.mark.usefixtures("x64")
def test_an_update_is_that_of_adamw():
    """Three updates of a factored model, in double precision: NumPy's own, by the decoupled decay of the paper."""
    checkpoint = net_with_head("bert_base", "sst2", rank=4)
    state, optimizer = state_of(checkpoint, jnp.float64, decay=0.1, clip=10)
    batches = [batch_of(checkpoint, 1, 8, filled, np.float64) for filled in (8, 5, 8)]

    def mean_loss(params, inputs, labels, weights):
        logits = lpjax.classify(params, checkpoint.config, inputs, dtype=jnp.float64)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels.astype(int)[:, None], axis=1)[:, 0]
        return -jnp.sum(chosen * weights) / jnp.sum(weights)

    gradient = jax.jit(jax.value_and_grad(mean_loss))
    params = leaves_of(state.params)
    first, second = ({name: np.zeros_like(leaf) for name, leaf in params.items()} for _ in range(2))
    schedule, clipped = Schedule(1e-2, 1, 4), 0
    before = state.params
    for t, batch in enumerate(batches, start=1):
        expected_loss, grads = gradient(before, *jax.tree.map(lambda x: x[0], batch))
        grads = leaves_of(grads)
        norm = math.sqrt(sum(float(np.sum(grad**2)) for grad in grads.values()))
        clipped += norm > 10
        for name, leaf in params.items():
            grad = grads[name] * min(1, 10 / norm)
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            update = first[name] / (1 - 0.9**t) / (np.sqrt(second[name] / (1 - 0.999**t)) + 1e-8)
            bias = name.endswith(("bias", "scale"))
            params[name] = leaf - schedule(t - 1) * (update + (0 if bias else 0.1) * leaf)
        state, loss = step_with(checkpoint, state, optimizer, batch, schedule(t - 1))
        before = state.params
        assert float(loss) == pytest.approx(float(expected_loss), rel=1e-12)
        updated = leaves_of(state.params)
        assert updated.keys() == params.keys()
        for name in params:
            assert np.abs(updated[name] - params[name]).max() < 1e-7, name
    assert 0 < clipped < 3
    factors = [name for name in params if name.endswith(("/left", "/right"))]
    assert len(factors) > 10
    assert all(first[name].any() for name in factors)


@pytest.mark.parametrize("name", NETS)
def test_biases_and_normalization_do_not_decay(name):
    net = net_with_head(name, "sst2")
    for path, decayed in leaves_of(decays(net.params, net.config.no_decay)).items():
        last = path.rpartition("/")[2]
        assert decayed == (last in ("kernel", "embedding", "mask_emb", "seg_embed")), path


def test_the_schedule_rises_and_falls_linearly():
    schedule = Schedule(2.0, 2, 6)
    assert [schedule(step) for step in range(6)] == [1.0, 2.0, 2.0, 1.5, 1.0, 0.5]
    assert [Schedule(1.0, 0, 2)(step) for step in range(2)] == [1.0, 0.5]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("filled", [8, 5, 2])
def test_parts_of_a_batch_make_the_update_of_the_whole(filled):
    """Also if the last part is short, or is padding alone."""
    checkpoint = net_with_head("bert_base", "sst2", rank=4)
    state, optimizer = state_of(checkpoint, jnp.float64, decay=0.1, clip=0.5)
    whole = batch_of(checkpoint, 1, 8, filled, np.float64)
    expected, expected_loss = step_with(checkpoint, state, optimizer, whole, 1e-2)
    updated, loss = step_with(checkpoint, state, optimizer, batch_of(checkpoint, 4, 2, filled, np.float64), 1e-2)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-12)
    for leaf, other in zip(jax.tree.leaves(updated), jax.tree.leaves(expected), strict=True):
        assert np.abs(np.asarray(leaf) - np.asarray(other)).max() < 1e-7


@pytest.mark.parametrize("task", ["mnli", "stsb"])
def test_the_loss_is_numpys(task):
    checkpoint = net_with_head("bert_base", task)
    inputs, labels, weights = jax.tree.map(lambda x: x[0], batch_of(checkpoint, 1, 8, 5, np.float32))
    labels = labels * 2 if task == "mnli" else labels + 0.25
    logits = np.asarray(lpjax.classify(checkpoint.params, checkpoint.config, inputs), np.float64)
    if task == "mnli":
        chosen = logits[np.arange(8), labels.astype(int)]
        losses = np.log(np.exp(logits).sum(axis=1)) - chosen
    else:
        losses = (logits[:, 0] - labels) ** 2
    inputs, labels, weights = jax.tree.map(jnp.asarray, (inputs, labels, weights))
    loss = loss_sum(checkpoint.params, checkpoint.config, inputs, labels, weights, None, np.dtype(np.float32))
    assert float(loss) == pytest.approx(losses[:5].sum(), rel=1e-5)


def test_dropout_follows_from_its_key():
    checkpoint = net_with_head("bert_base", "sst2", dropout=0.2, rank=4)
    state, optimizer = state_of(checkpoint, jnp.float32)
    batch = batch_of(checkpoint, 1, 8, 8, np.float32)
    losses = [float(step_with(checkpoint, state, optimizer, batch, 0.0, key)[1]) for key in (0, 0, 1, 2)]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


# It learns


@pytest.mark.two_models
@pytest.mark.covering(1)
@pytest.mark.parametrize("rank", [None, 4], ids=["dense", "factored"])
@pytest.mark.parametrize("name", NETS)
def test_every_net_learns(name, rank):
    """Every example of a task that one word decides is learned, and the original model does not change."""
    checkpoint = base_net(name, rank=rank)
    before = {path: leaf.copy() for path, leaf in leaves_of(checkpoint.params).items()}
    settings = Settings(epochs=40, batch_size=8, learning_rate=1e-2, eval_every=40)
    tuned = train_on_toy(checkpoint, settings=settings)
    assert tuned.best["accuracy"] == 1.0
    losses = [entry["loss"] for entry in tuned.curve]
    assert losses[-1] < 0.1 < losses[0]
    assert tuned.steps == 120
    after = leaves_of(checkpoint.params)
    assert all(np.array_equal(after[path], before[path]) for path in before)
    ranks = [leaf.rank for _, leaf in walk(tuned.checkpoint.params) if isinstance(leaf, lpjax.LowRank)]
    assert ranks == ([] if rank is None else [4] * len(ranks))
    if rank is not None:
        assert len(ranks) > 5
        assert ranks == [leaf.rank for _, leaf in walk(checkpoint.params) if isinstance(leaf, lpjax.LowRank)]
    tokenizer = make_tokenizer(checkpoint.config)
    assert evaluate_task(tuned.checkpoint, toy(n=12, seed=1), tokenizer=tokenizer).metrics == {"accuracy": 1.0}


def test_a_regression_is_learned_in_its_own_units():
    tuned = train_on_toy(
        base_net("bert_base"), "stsb", Settings(epochs=100, batch_size=8, learning_rate=3e-2, eval_every=300)
    )
    assert tuned.best["pearson"] > 0.95
    assert tuned.best["loss"] < 1  # of scores from 0 to 4, whose variance is 2
    assert tuned.checkpoint.config_json["problem_type"] == "regression"
    tokenizer = make_tokenizer(tuned.checkpoint.config)
    dev = toy("stsb", 12, 1)
    metrics = evaluate_task(tuned.checkpoint, dev, tokenizer=tokenizer).metrics
    assert metrics["pearson"] == pytest.approx(tuned.best["pearson"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_eight_devices_learn_the_same_as_one(processes, tmp_path):
    target = tmp_path / "eight.safetensors"
    eight = on_devices("tests.training.test_finetune.write_curve", target, processes=processes)
    write_curve(str(tmp_path / "one.safetensors"))
    one = load_file(tmp_path / "one.safetensors")
    assert (eight["devices"], one["devices"]) == (8, 1)
    assert np.abs(one["curve"] - eight["curve"]).max() < 1e-4


def write_curve(target: str) -> None:
    """Write losses and scores of few updates by parts of six examples, which eight devices do not divide."""
    settings = Settings(epochs=2, batch_size=12, accumulate=2, learning_rate=3e-3, eval_every=1)
    curve = train_on_toy(base_net("xlnet_base", rank=3), settings=settings).curve
    scores = np.array([[entry["loss"], entry["accuracy"]] for entry in curve])
    write_first({"curve": scores, "devices": np.array(jax.device_count())}, target)


# What it keeps


def flipped(examples: Examples) -> Examples:
    """With the other label: the better a model gets at the task, the worse it is at these."""
    return examples._replace(labels=1 - examples.labels)


@pytest.mark.parametrize("patience", [None, 2])
def test_the_best_evaluation_is_kept(patience, tmp_path):
    """And training stops after `patience` evaluations that were not better."""
    checkpoint, dev = base_net("bert_base"), flipped(toy(n=12, seed=1))
    settings = Settings(epochs=10, batch_size=8, learning_rate=1e-2, eval_every=2, patience=patience)
    snapshot, seen = tmp_path / "snapshot", {}

    def look(step: int, total: int, what: str) -> None:
        if snapshot.exists():  # as of the update before
            seen[step - 1] = load_file(snapshot)

    tuned = train_on_toy(checkpoint, settings=settings, dev=dev, snapshot=snapshot, save_every=0, progress=look)
    scores = [entry["accuracy"] for entry in tuned.curve]
    best = scores.index(max(scores))
    assert tuned.best == tuned.curve[best]
    if patience is None:
        assert scores[-1] < max(scores)
        assert (tuned.steps, tuned.stopped_early) == (30, False)
    else:
        assert (tuned.steps, tuned.stopped_early) == (tuned.best["step"] + 2 * patience, True)
        assert len(tuned.curve) == best + 1 + patience
    at_best = seen[tuned.best["step"]]
    for name, leaf in leaves_of(tuned.checkpoint.params).items():
        assert np.array_equal(at_best[f"0/params/{name}"], leaf), name
        assert np.array_equal(at_best[f"1/{name}"], leaf), name
    tokenizer = make_tokenizer(checkpoint.config)
    assert evaluate_task(tuned.checkpoint, dev, tokenizer=tokenizer).metrics["accuracy"] == max(scores)


def test_the_curve_tells_the_run():
    calls = []
    settings = dataclasses.replace(FEW, eval_every=4)
    tuned = train_on_toy(base_net("bert_base"), settings=settings, progress=lambda *call: calls.append(call))
    assert [entry["step"] for entry in tuned.curve] == [4, 6]
    assert [entry["epoch"] for entry in tuned.curve] == [4 / 3, 2.0]
    schedule = Schedule(3e-3, 2, 6)
    assert [entry["learning_rate"] for entry in tuned.curve] == [schedule(3), schedule(5)]
    assert calls == [(step, 6, f"SST-2, epoch {1 if step <= 3 else 2}") for step in range(1, 7)]
    assert tuned.fresh == ("classifier/bias", "classifier/kernel")
    assert tuned.seconds > 0
    assert [entry["step"] for entry in train_on_toy(base_net("bert_base")).curve] == [3, 6]
    assert [entry["step"] for entry in train_on_toy(base_net("bert_base"), settings=replace(eval_every=100)).curve] == [
        6
    ]


def replace(**changes: Any) -> Settings:
    return dataclasses.replace(FEW, **changes)


def test_one_example_is_enough():
    """The second part of the batch is padding alone."""
    single, settings = toy(n=1), replace(epochs=3, batch_size=12, accumulate=2, warmup=1)
    tuned = train_on_toy(base_net("xlnet_base", rank=3), train=single, dev=single, settings=settings)
    assert tuned.steps == 3
    assert tuned.best["accuracy"] in (0.0, 1.0)


def test_weights_in_half_precision_are_trained_and_kept_in_full(tmp_path):
    extra = {"crf.transitions": np.eye(3)}  # of the file, beside the model
    checkpoint = dataclasses.replace(base_net("bert_bfloat16"), extra=extra)
    assert checkpoint.config_json["dtype"] == "bfloat16"
    tuned = train_on_toy(checkpoint, settings=replace(epochs=1, dtype="bfloat16"))
    lpjax.save_checkpoint(tuned.checkpoint, tmp_path / "tuned")
    loaded = lpjax.load_checkpoint(tmp_path / "tuned")
    np.testing.assert_array_equal(loaded.extra["crf.transitions"], np.eye(3))
    assert {leaf.dtype for leaf in leaves_of(loaded.params).values()} == {np.dtype(np.float32)}
    assert loaded.config_json["dtype"] == "float32"


# Heads and labels


def test_what_is_saved_knows_its_task(tmp_path):
    checkpoint = base_net("bert_base")
    tuned = train_on_toy(checkpoint, "mnli", replace(epochs=1))
    lpjax.save_checkpoint(tuned.checkpoint, tmp_path / "tuned")
    loaded = lpjax.load_checkpoint(tmp_path / "tuned")
    data = loaded.config_json
    assert data["architectures"] == ["BertForSequenceClassification"]
    assert data["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}
    assert data["label2id"] == {"entailment": 0, "neutral": 1, "contradiction": 2}
    assert (data["finetuning_task"], data["problem_type"]) == ("mnli", "single_label_classification")
    dev = toy("mnli", 12, 1)
    tokenizer = make_tokenizer(checkpoint.config)
    assert evaluate_task(loaded, dev, tokenizer=tokenizer).metrics["accuracy"] == tuned.best["accuracy"]


@pytest.mark.parametrize("named", ["id2label", "label2id"])
def test_a_head_that_is_there_keeps_its_order_of_labels(named, tmp_path):
    """A model from elsewhere counts its labels otherwise; it is trained on, and saved, as it counts."""
    names = {"0": "CONTRADICTION", "1": "ENTAILMENT", "2": "NEUTRAL"}
    labels = {"id2label": names} if named == "id2label" else {"label2id": {name: int(i) for i, name in names.items()}}
    checkpoint = net_with_head("bert_base", "mnli")
    kept = {key: value for key, value in checkpoint.config_json.items() if key not in ("id2label", "label2id")}
    checkpoint = dataclasses.replace(checkpoint, config_json={**kept, **labels, "num_labels": 3})
    tuned = train_on_toy(checkpoint, "mnli", Settings(epochs=25, batch_size=8, learning_rate=1e-2, eval_every=25))
    assert tuned.fresh == ()
    assert tuned.best["accuracy"] == 1.0
    lpjax.save_checkpoint(tuned.checkpoint, tmp_path / "tuned")
    loaded = lpjax.load_checkpoint(tmp_path / "tuned")
    assert loaded.config_json["id2label"] == names
    assert loaded.config_json["label2id"] == {name: int(i) for i, name in names.items()}
    tokenizer = make_tokenizer(checkpoint.config)
    prepared = evaluate.prepare(loaded, toy("mnli", 12, 1), tokenizer=tokenizer)
    assert evaluate_task(loaded, prepared).metrics["accuracy"] == 1.0
    # Entailment, label 0 of the task, is output 1 here.
    outputs = evaluate.predict(loaded.params, loaded.config, prepared.tokens).values.argmax(axis=1)
    assert outputs.tolist() == [{0: 1, 1: 2, 2: 0}[int(label)] for label in prepared.examples.labels]


def test_a_head_of_another_task_is_replaced():
    """SST-2 has two labels, as RTE has, but they mean nothing to it."""
    checkpoint = net_with_head("roberta_base", "sst2")
    tuned = train_on_toy(checkpoint, "rte", replace(epochs=1))
    assert output_path(checkpoint.config) in tuned.fresh
    assert tuned.checkpoint.config_json["id2label"] == {"0": "entailment", "1": "not_entailment"}
    again = train_on_toy(tuned.checkpoint, "rte", replace(epochs=1))
    assert again.fresh == ()
    base = dataclasses.replace(checkpoint, params=checkpoint.params["roberta"])
    assert_same(train_on_toy(base, "rte", replace(epochs=1)), tuned)


def test_how_it_was_compressed_stays_told():
    checkpoint = base_net("bert_base", rank=4)
    paths = [path for path, leaf in walk(checkpoint.params) if isinstance(leaf, lpjax.LowRank)]
    block = {"method": "svd", "p": 2.0, "ranks": dict.fromkeys(paths, 4)}
    block["steps"] = [{"method": "svd", "p": 2.0, "paths": paths}]
    tuned = train_on_toy(dataclasses.replace(checkpoint, compression=block), settings=replace(epochs=1)).checkpoint
    moved = [path for path, leaf in walk(tuned.params) if isinstance(leaf, lpjax.LowRank)]
    assert tuned.compression["ranks"] == dict.fromkeys(moved, 4)
    assert tuned.compression["steps"][0]["paths"] == [f"bert/{path}" for path in paths]
    assert sorted(moved) == sorted(f"bert/{path}" for path in paths)
    again = train_on_toy(tuned, settings=replace(epochs=1)).checkpoint
    assert again.compression == tuned.compression


# Interruptions


class Stop(Exception):
    pass


def stop_at(*steps: int):
    """A progress that raises at the first of the steps that it has not raised at."""
    left = list(steps)

    def progress(step: int, total: int, what: str) -> None:
        if left and step == left[0]:
            left.pop(0)
            raise Stop

    return progress


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[Checkpoint, Settings, Finetuned]:
    checkpoint = base_net("bert_base", dropout=0.2, rank=4)
    settings = Settings(epochs=3, batch_size=8, learning_rate=3e-3, eval_every=4)
    return checkpoint, settings, train_on_toy(checkpoint, settings=settings)


def test_runs_repeat(uninterrupted):
    checkpoint, settings, expected = uninterrupted
    assert_same(train_on_toy(checkpoint, settings=settings), expected)
    other = train_on_toy(checkpoint, settings=dataclasses.replace(settings, seed=1))
    assert [entry["loss"] for entry in other.curve] != [entry["loss"] for entry in expected.curve]


@pytest.mark.parametrize("save_every", [0, 1e9], ids=["saved always", "saved at evaluations"])
@pytest.mark.parametrize("steps", [(1,), (2,), (4,), (5,), (6, 7), (9,)], ids=str)
def test_a_run_that_was_interrupted_ends_as_if_it_had_not(uninterrupted, tmp_path, steps, save_every):
    """Before the first snapshot, in the middle of an epoch, before and after an evaluation, twice, at the end."""
    checkpoint, settings, expected = uninterrupted
    snapshot = tmp_path / "deep" / "snapshot"
    options = {"settings": settings, "snapshot": snapshot, "save_every": save_every, "progress": stop_at(*steps)}
    for _ in steps:
        with pytest.raises(Stop):
            train_on_toy(checkpoint, **options)
        done = steps[0] - 1 if save_every == 0 else (steps[0] - 1) // 4 * 4
        assert snapshot.exists() == (done > 0)
    assert_same(train_on_toy(checkpoint, **options), expected)
    assert sorted(path.name for path in snapshot.parent.iterdir()) == ["snapshot"]
    # What is done is not done again.
    assert_same(train_on_toy(checkpoint, settings=settings, snapshot=snapshot, progress=stop_at(1)), expected)


def test_what_a_killed_run_left_beside_is_cleared_away(uninterrupted, tmp_path):
    checkpoint, settings, _ = uninterrupted
    left = tmp_path / ".snap[shot].123.new"
    other = tmp_path / ".other.123.new"
    for path in (left, other):
        path.write_bytes(b"half")
    train_on_toy(checkpoint, settings=settings, snapshot=tmp_path / "snap[shot]")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.123.new", "snap[shot]"]


@pytest.fixture(scope="module")
def begun(uninterrupted, tmp_path_factory) -> Path:
    """A snapshot as of the update 4."""
    checkpoint, settings, _ = uninterrupted
    path = tmp_path_factory.mktemp("begun") / "snapshot"
    with pytest.raises(Stop):
        train_on_toy(checkpoint, settings=settings, snapshot=path, progress=stop_at(5))
    return path


def test_a_snapshot_tells_where_it_is(begun):
    with safe_open(begun, framework="numpy") as file:
        log = json.loads(file.metadata()["log"])
        names = set(file.keys())
    assert log["step"] == 4
    assert [entry["step"] for entry in log["curve"]] == [4]
    assert log["about"]["task"] == "sst2"
    assert {"0/params/classifier/kernel", "1/classifier/kernel", "0/params/bert/pooler/dense/kernel/left"} <= names


def test_a_snapshot_of_another_run_is_refused(uninterrupted, begun, tmp_path):
    checkpoint, settings, _ = uninterrupted

    def refused(words: list[str], checkpoint: Checkpoint = checkpoint, **options: Any) -> None:
        before = begun.read_bytes()
        with pytest.raises(ValueError) as caught:
            train_on_toy(checkpoint, **{"settings": settings, "snapshot": begun, **options})
        message = str(caught.value)
        assert all(word in message for word in [str(begun), "another run", "--force", *words]), message
        assert begun.read_bytes() == before

    changed = dataclasses.replace(settings, seed=3, learning_rate=1e-3)
    refused(["learning_rate was 0.003 and is 0.001", "seed was 0 and is 3"], settings=changed)
    refused(["task was 'sst2' and is 'cola'"], task="cola")
    refused(["rows was [20, 12] and is [20, 13]"], dev=toy(n=13, split="dev"))
    refused(["splits was ['toy', 'dev'] and is ['other', 'dev']"], train=toy(split="other"))
    refused(["hidden_dropout_prob was 0.2 and is 0.0", "weights was"], checkpoint=base_net("bert_base"))


def test_a_snapshot_that_is_damaged_is_refused(uninterrupted, begun, tmp_path):
    checkpoint, settings, _ = uninterrupted
    tensors = load_file(begun)
    with safe_open(begun, framework="numpy") as file:
        log = file.metadata()["log"]
    path = tmp_path / "snapshot"

    def refused(words: str) -> None:
        with pytest.raises(ValueError) as caught:
            train_on_toy(checkpoint, settings=settings, snapshot=path)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)
        assert "--force" in str(caught.value)

    good = begun.read_bytes()
    for content in (good[: len(good) // 2], good[:5], b"", b"garbage" * 100, pickle.dumps({"a": 1})):
        path.write_bytes(content)
        refused(f"cannot resume from {path}: ")
    for metadata in (None, {"log": "{"}, {"log": "[]"}, {"log": '{"step": 1}'}, {"log": '{"about": 3}'}, {"log": "3"}):
        save_file(tensors, path, metadata=metadata)
        refused("does not hold a record of a run")
    name = "0/params/classifier/kernel"
    save_file(tensors | {name: tensors[name].T.copy()}, path, metadata={"log": log})
    refused(f"the weights {name} have another shape or format")
    save_file(tensors | {name: tensors[name].astype(np.float16)}, path, metadata={"log": log})
    refused(f"the weights {name} have another shape or format")
    save_file({key: value for key, value in tensors.items() if key != name}, path, metadata={"log": log})
    refused(name)
    save_file(tensors | {"more": np.zeros(1)}, path, metadata={"log": log})
    refused("more")
    moments = next(key for key in tensors if "/nu/" in key)
    count = next(key for key in tensors if key.endswith("/count"))
    for changed, value, words in (
        (name, np.nan, f"{name} holds NaN or infinity"),
        (moments, np.inf, f"{moments} holds NaN or infinity"),
        (moments, -1, f"{moments} holds squares below 0"),
        (count, 7000, "updates were made"),
    ):
        save_file(tensors | {changed: np.full_like(tensors[changed], value)}, path, metadata={"log": log})
        refused(words)
    path.unlink()
    path.mkdir()
    refused(f"cannot resume from {path}: ")
    path.rmdir()
    shutil.copyfile(begun, path)
    train_on_toy(checkpoint, settings=settings, snapshot=path)


# Misuse


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "`epochs` is 0; expected a whole number, 1 or more"),
        ({"epochs": 1.5}, "`epochs` is 1.5"),
        ({"batch_size": True}, "`batch_size` is True"),
        ({"accumulate": 0}, "`accumulate` is 0"),
        ({"accumulate": 3}, "`batch_size` is 32; expected a multiple of `accumulate`, 3"),
        ({"max_length": 0}, "`max_length` is 0"),
        ({"eval_every": 0}, "`eval_every` is 0"),
        ({"patience": 0}, "`patience` is 0"),
        ({"seed": -1}, "`seed` is -1; expected a whole number, 0 or more"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0; expected a number, above 0"),
        ({"learning_rate": math.nan}, "`learning_rate` is nan"),
        ({"learning_rate": "5e-5"}, "`learning_rate` is '5e-5'"),
        ({"clip": math.inf}, "`clip` is inf"),
        ({"warmup": 1.1}, "`warmup` is 1.1; expected a number, from 0 to 1"),
        ({"weight_decay": -0.1}, "`weight_decay` is -0.1; expected a number, 0 or more"),
        ({"weight_decay": math.inf}, "`weight_decay` is inf"),
        ({"dtype": "float16"}, "`dtype` is 'float16'; expected one of float32, bfloat16"),
    ],
)
def test_settings_out_of_range_are_told(changes, words):
    with pytest.raises(ValueError) as caught:
        Settings(**changes)
    assert words in str(caught.value)


def test_examples_that_do_not_fit_are_told():
    checkpoint = base_net("bert_base")
    with pytest.raises(ValueError, match="`train` is of sst2 and `dev` of cola; expected the same task"):
        train_on_toy(checkpoint, dev=toy("cola"))
    with pytest.raises(ValueError, match="expected at least 2"):
        train_on_toy(checkpoint, "stsb", dev=toy("stsb", 1))
    with pytest.raises(ValueError, match="pass a tokenizer"):
        train_on_toy(checkpoint, tokenizer=None)
    with pytest.raises(ValueError, match="`max_length` is 2; expected 3 to 9"):
        train_on_toy(checkpoint, settings=replace(max_length=2))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    """With advice, and without a snapshot of what is ruined."""
    checkpoint, snapshot = base_net("bert_base"), tmp_path / "snapshot"
    with pytest.raises(ValueError, match=r"the loss is .* at update 3; try a lower learning rate"):
        train_on_toy(checkpoint, settings=replace(learning_rate=1e38, warmup=0))
    with pytest.raises(ValueError, match=r"the loss is .* at update 2; try a lower learning rate"):
        train_on_toy(checkpoint, settings=replace(learning_rate=1e38, warmup=0), snapshot=snapshot, save_every=0)
    assert "loss" in snapshot.name or snapshot.exists()
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        train_on_toy(checkpoint, settings=replace(learning_rate=1e38, warmup=0, eval_every=1))
