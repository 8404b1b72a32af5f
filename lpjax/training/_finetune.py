"""Fine-tuning on a GLUE task: dense or factored weights, resumable, deterministic in its seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lpjax._check import check_settings
from lpjax._mesh import by_rows, data_mesh, put_sharded, replicated
from lpjax.checkpoint import Checkpoint
from lpjax.data.batching import Batch, Tokens, collate, round_up, shuffled
from lpjax.glue.data import Examples
from lpjax.glue.evaluate import MAX_LENGTH, predict, prepare, to_predictions
from lpjax.glue.labels import output_labels
from lpjax.models import device_params
from lpjax.training.classifier import for_texts, moved_compression, starting_weights
from lpjax.training.fit import Run, fingerprint, fit, resumed
from lpjax.training.snapshot import Log
from lpjax.training.step import Schedule, TrainState, begin, make_optimizer, train_step


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to fine-tune.

    Attributes:
        epochs: passes over the training examples.
        batch_size: examples of an update, over all devices and parts.
        accumulate: parts that a batch is taken in, one after another, to save memory; the update is the same.
        learning_rate: peak, reached after the warm-up; then it falls linearly to 0.
        warmup: share of all updates in which the learning rate rises.
        weight_decay: of AdamW, for all weights but biases and normalization.
        clip: largest norm of a gradient.
        dtype: "float32" or "bfloat16", of the computation; weights and moments are float32.
        max_length: largest number of tokens of a text or pair, or the net's number of positions if that is smaller.
        eval_every: updates between evaluations; by default once an epoch.
        patience: number of evaluations without a better score after which training stops; by default none does.
        seed: of the new head, the order of the examples, and dropout.

    Raises:
        ValueError: naming a value out of range.
    """

    epochs: int = 3
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 5e-5
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    dtype: str = "float32"
    max_length: int = MAX_LENGTH
    eval_every: int | None = None
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("epochs", "batch_size", "accumulate", "max_length", "eval_every", "patience"), 1)
        check_settings(self, counts | {"seed": 0}, ("learning_rate", "warmup", "weight_decay", "clip"))
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"`batch_size` is {self.batch_size}; expected a multiple of `accumulate`, {self.accumulate}"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"`dtype` is {self.dtype!r}; expected 'float32' or 'bfloat16'")

    @property
    def rows(self) -> int:
        """Examples of a part of a batch."""
        return self.batch_size // self.accumulate


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """The result of fine-tuning.

    Attributes:
        checkpoint: the net at its best evaluation, with its head, ready for `save_checkpoint`. All weights are float32
            arrays on the host, whatever they were in the file.
        best: that evaluation, an entry of `curve`.
        curve: one entry per evaluation: step, epoch, loss (mean over the updates since the last one), learning_rate,
            and the metrics on the evaluation split.
        steps: number of updates.
        fresh: paths of weights that were initialized here.
        stopped_early: whether patience ran out.
        seconds: total over all runs.
    """

    checkpoint: Checkpoint
    best: dict[str, Any]
    curve: tuple[dict[str, Any], ...]
    steps: int
    fresh: tuple[str, ...]
    stopped_early: bool
    seconds: float


def finetune(
    checkpoint: Checkpoint,
    train: Examples,
    dev: Examples,
    settings: Settings | None = None,
    *,
    tokenizer: Any = None,
    snapshot: str | Path | None = None,
    save_every: float = 60.0,
    mesh: Mesh | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Finetuned:
    """Fine-tune a net on a task by AdamW, and keep the weights of the best evaluation.

    A base model gets a new head (see `with_head`), and so does a net whose head has the labels of another task; a head
    of this task keeps its order of labels. Factored weights stay factored: their factors are trained. Two runs with the
    same settings, on the same machine and number of devices, give the same weights, even if one was interrupted: order,
    dropout and head depend only on the seed and the number of the update.

    Args:
        checkpoint: the net, dense or factored.
        train: examples to learn from.
        dev: examples of the same task that choose the evaluation to keep.
        settings: by default `Settings()`.
        tokenizer: of transformers; by default the one in `checkpoint.source`.
        snapshot: file in which the state is saved from time to time, and from which training resumes if it exists. Of
            several processes the first writes it, and all read it. If it cannot be written, training goes on with a
            warning.
        save_every: seconds between snapshots; there is one at every evaluation anyway.
        mesh: devices, along an axis "data"; by default all. A batch is spread over them.
        progress: called with (updates done, updates in all, what) after each update.

    Raises:
        ValueError: examples of different tasks or that have no score, a snapshot of another run (naming what differs),
            a loss or logits that are not finite, or what `prepare` refuses.
        OSError: another run that is alive writes to `snapshot`, or there is too little space beside it.
    """
    from lpjax.glue.metrics import score

    settings = settings or Settings()
    task = train.task
    if dev.task.name != task.name:
        raise ValueError(f"`train` is of {task.name} and `dev` of {dev.task.name}; expected the same task")
    score(task, dev.labels, dev.labels)  # refuses labels that nothing can be scored by
    mesh = data_mesh() if mesh is None else mesh
    dtype = np.dtype(settings.dtype)
    checkpoint = for_texts(checkpoint)
    params, config_json, fresh = starting_weights(checkpoint, task, settings.seed)
    config = checkpoint.config
    labels = output_labels(task, train.labels, config_json, task.num_outputs)
    max_length = min(settings.max_length, config.max_length or settings.max_length)
    options: dict[str, Any] = {"tokenizer": tokenizer, "max_length": max_length}
    learn, check = (prepare(checkpoint, examples, **options).tokens for examples in (train, dev))

    optimizer = make_optimizer(settings.weight_decay, settings.clip, config.no_decay)
    per_epoch = -(-len(learn) // settings.batch_size)
    total = settings.epochs * per_epoch
    every = settings.eval_every or per_epoch
    schedule = Schedule(settings.learning_rate, min(round(settings.warmup * total), total - 1), total)

    params = device_params(params, jnp.float32)
    run = Run(begin(params, optimizer), jax.device_get(params), Log(_about(checkpoint, train, dev, settings)))
    resumed(run, snapshot)
    run.state, log = jax.device_put(run.state, replicated(mesh)), run.log
    key = jax.random.key(settings.seed)

    def update(state: TrainState, batch: Batch, step: int) -> tuple[TrainState, jax.Array]:
        parts = _parts(learn, batch, labels, settings, round_up(settings.rows, mesh, config))
        return train_step(
            state,
            *put_sharded(parts, by_rows(mesh, axis=1)),
            jax.random.fold_in(key, step),
            jnp.float32(schedule(step)),
            config=config,
            optimizer=optimizer,
            dtype=dtype,
        )

    def evaluate(run: Run) -> None:
        mean = _mean_loss(log)
        logits = predict(run.state.params, config, check, batch_size=settings.batch_size, dtype=dtype, mesh=mesh)
        metrics = score(task, to_predictions(logits.values, dev, config_json), dev.labels)
        log.curve.append(
            {
                "step": log.step,
                "epoch": log.step / per_epoch,
                "loss": mean,
                "learning_rate": schedule(log.step - 1),
                **metrics,
            }
        )
        log.losses = []
        if log.best is None or metrics[task.leading] > log.curve[log.best][task.leading]:
            log.best, run.best = len(log.curve) - 1, jax.device_get(run.state.params)
        since = len(log.curve) - 1 - log.best
        log.stopped = settings.patience is not None and since >= settings.patience and log.step < total

    fit(
        run,
        total=total,
        per_epoch=per_epoch,
        batches=lambda epoch: shuffled(learn, settings.batch_size, np.random.default_rng([settings.seed, epoch])),
        update=update,
        is_due=lambda step: step % every == 0 or step == total,
        check=evaluate,
        may_save=lambda run: math.isfinite(_mean_loss(run.log)),  # which raises if it is not
        snapshot=None if snapshot is None else Path(snapshot),
        save_every=save_every,
        progress=progress,
        title=f"{task.title}, ",
    )
    assert log.best is not None  # there is an evaluation at the last update
    return Finetuned(
        checkpoint=dataclasses.replace(
            checkpoint, params=run.best, config_json=config_json, compression=moved_compression(checkpoint)
        ),
        best=log.curve[log.best],
        curve=tuple(log.curve),
        steps=log.step,
        fresh=tuple(fresh),
        stopped_early=log.stopped,
        seconds=log.seconds,
    )


def _mean_loss(log: Log) -> float:
    """Mean of the losses since the last evaluation; summed in double precision, wherever they were saved in between."""
    mean = float(np.mean(np.asarray(jax.device_get(log.losses), np.float64)))
    if not math.isfinite(mean):
        raise ValueError(f"the loss is {mean} by update {log.step}; try a lower learning rate, or dtype float32")
    return mean


def _about(checkpoint: Checkpoint, train: Examples, dev: Examples, settings: Settings) -> dict[str, Any]:
    """What must be the same for a run to resume; sizes and sums identify the net."""
    return {
        "task": train.task.name,
        "splits": [train.split, dev.split],
        "rows": [len(train.labels), len(dev.labels)],
        "net": checkpoint.config.to_json(),
        "weights": fingerprint(checkpoint.params),
        "settings": dataclasses.asdict(settings),
    }


def _parts(
    tokens: Tokens, batch: Batch, labels: np.ndarray, settings: Settings, rows: int
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Inputs, labels and weights of a batch, in parts of `rows` rows; rows without an example are padding."""
    pieces = [batch.rows[at : at + settings.rows] for at in range(0, settings.batch_size, settings.rows)]
    collated = [collate(tokens, Batch(piece, batch.length), rows) for piece in pieces]
    inputs = {name: np.stack([part[name] for part in collated]) for name in collated[0]}
    golds, weights = (np.zeros((len(pieces), rows), np.float32) for _ in range(2))
    for i, piece in enumerate(pieces):
        golds[i, : len(piece)] = labels[piece]
        weights[i, : len(piece)] = 1
    return inputs, golds, weights
