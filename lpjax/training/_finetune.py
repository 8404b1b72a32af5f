"""Fine-tuning on a GLUE task: dense or factored weights, resumable, deterministic in its seed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lpjax._check import check_name, check_settings
from lpjax._mesh import by_rows, data_mesh, put_sharded
from lpjax._repr import short_repr
from lpjax.checkpoint import Checkpoint
from lpjax.data.batching import Batch, Tokens, collate, round_up
from lpjax.glue.data import Examples
from lpjax.glue.evaluate import MAX_LENGTH, predict, prepare, to_predictions
from lpjax.glue.labels import output_labels
from lpjax.glue.metrics import score
from lpjax.training.classifier import for_texts, moved_compression, starting_weights
from lpjax.training.fit import CommonSettings, Problem, Progress, fingerprint, fit, updates_per_epoch
from lpjax.weights.dispatch import with_scales


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    """Settings of fine-tuning.

    Attributes:
        epochs: passes over the training examples.
        batch_size: examples of an update, over all devices and parts.
        learning_rate: peak learning rate, reached after the warm-up; then it falls linearly to 0.
        warmup: share of all updates in which the learning rate rises.
        weight_decay: weight decay of AdamW, for all weights but biases and normalization.
        clip: largest norm of a gradient.
        max_length: largest number of tokens of a text or pair, or the model's number of positions if that is smaller.
        seed: random seed of the new head, the order of the examples, and dropout.
        accumulate: number of parts of a batch, computed one after another to save memory; the update is the same.
        dtype: dtype of the computation, "float32" or "bfloat16"; weights and moments are float32.
        eval_every: updates between evaluations; by default once an epoch.
        patience: number of evaluations without a better score after which training stops; by default it never does.

    Raises:
        ValueError: a value is out of range; names it.
    """

    epochs: int = 3
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    max_length: int = MAX_LENGTH
    accumulate: int = 1
    dtype: str = "float32"
    eval_every: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, dict.fromkeys(("accumulate", "eval_every", "patience"), 1), ())
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"`batch_size` is {self.batch_size}; expected a multiple of `accumulate`, {self.accumulate}"
            )
        check_name("dtype", self.dtype, ("float32", "bfloat16"))

    @property
    def rows(self) -> int:
        """Examples of a part of a batch."""
        return self.batch_size // self.accumulate


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """The result of fine-tuning.

    Attributes:
        checkpoint: the model at its best evaluation, with its head, ready for `save_checkpoint`. All weights are
            float32 arrays on the host, whatever they were in the file.
        best: the best evaluation, an entry of `curve`.
        curve: one entry per evaluation: step, epoch, loss (mean over the updates since the last one), learning_rate,
            and the metrics on the evaluation split.
        steps: number of updates.
        fresh: paths of newly initialized weights.
        stopped_early: whether patience ran out.
        seconds: training time over all runs, including interrupted ones.
    """

    checkpoint: Checkpoint
    best: dict[str, Any]
    curve: tuple[dict[str, Any], ...]
    steps: int
    fresh: tuple[str, ...]
    stopped_early: bool
    seconds: float

    def __repr__(self) -> str:
        return short_repr(self)


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
    progress: Progress | None = None,
) -> Finetuned:
    """Fine-tune a model on a task by AdamW, and keep the weights of the best evaluation.

    A base model gets a new head (see `with_head`), and so does a model whose head has the labels of another task; a
    head of this task keeps its order of labels. Factored weights stay factored: their factors are trained. Quantized
    ones keep their codes: their scales and steps are trained, and rounded to float16 for every evaluation. Two runs
    with the same settings, on the same machine and number of devices, give the same weights, even if one was
    interrupted: order, dropout and head depend only on the seed and the number of the update.

    Args:
        checkpoint: the model, dense or factored.
        train: examples to learn from.
        dev: examples of the same task that choose the evaluation to keep.
        settings: by default `Settings()`.
        tokenizer: a tokenizer of transformers; by default the one in `checkpoint.source`.
        snapshot: file in which the state is saved from time to time, and from which training resumes if it exists. With
            several processes, the first writes it and all read it. If it cannot be written, training goes on with a
            warning.
        save_every: seconds between snapshots; there is one at every evaluation anyway.
        mesh: devices, along an axis "data"; by default all. A batch is spread over them.
        progress: called with (updates done, updates in all, what) after each update.

    Raises:
        ValueError: examples of different tasks or whose labels cannot be scored, a snapshot of another run (names the
            differences), a loss or logits that are not finite, or as `prepare`.
        OSError: another running process writes to `snapshot`, or there is too little disk space for it.
    """
    settings, task = settings or Settings(), train.task
    if dev.task.name != task.name:
        raise ValueError(f"`train` is of {task.name} and `dev` of {dev.task.name}; expected the same task")
    score(task, dev.labels, dev.labels)  # refuses labels that cannot be scored
    mesh = data_mesh() if mesh is None else mesh
    checkpoint = for_texts(checkpoint)
    params, config_json, new_paths = starting_weights(checkpoint, task, settings.seed)
    config = checkpoint.config
    labels = output_labels(task, train.labels, config_json, task.num_outputs)
    max_length = min(settings.max_length, config.max_length or settings.max_length)
    learn, held = (
        prepare(checkpoint, examples, tokenizer=tokenizer, max_length=max_length).tokens for examples in (train, dev)
    )

    def evaluate(params: Any) -> Mapping[str, float]:
        logits = predict(
            with_scales(params, np.float16),
            config,
            held,
            batch_size=settings.batch_size,
            dtype=settings.dtype,
            mesh=mesh,
        )
        return score(task, to_predictions(logits.values, dev, config_json), dev.labels)

    per_epoch = updates_per_epoch(learn, settings)
    problem = Problem(
        config,
        learn,
        functools.partial(_parts, learn, labels, settings, round_up(settings.rows, mesh, config), mesh),
        evaluate,
        leading=task.leading,
        sign=1,
        every=settings.eval_every or per_epoch,
        span=settings.epochs * per_epoch,
        about={
            "task": task.name,
            "splits": [train.split, dev.split],
            "rows": [len(train.labels), len(dev.labels)],
            "weights": fingerprint(checkpoint.params),
        },
        patience=settings.patience,
        dtype=settings.dtype,
        title=f"{task.title}, ",
    )
    run = fit(problem, params, settings, mesh=mesh, snapshot=snapshot, save_every=save_every, progress=progress)
    assert run.log.best is not None  # there is an evaluation at the last update
    return Finetuned(
        checkpoint=dataclasses.replace(
            checkpoint,
            params=with_scales(run.best, np.float16),
            config_json=config_json,
            compression=moved_compression(checkpoint),
        ),
        best=run.log.curve[run.log.best],
        curve=tuple(run.log.curve),
        steps=run.log.step,
        fresh=tuple(new_paths),
        stopped_early=run.log.stopped,
        seconds=run.log.seconds,
    )


def _parts(
    tokens: Tokens, labels: np.ndarray, settings: Settings, rows: int, mesh: Mesh, batch: Batch, step: int
) -> tuple[Any, Any, Any]:
    """Inputs, labels and weights of a batch, in parts of `rows` rows; rows without an example are padding."""
    del step  # the same in every epoch
    pieces = [batch.rows[at : at + settings.rows] for at in range(0, settings.batch_size, settings.rows)]
    collated = [collate(tokens, Batch(piece, batch.length), rows) for piece in pieces]
    inputs = {name: np.stack([part[name] for part in collated]) for name in collated[0]}
    golds, weights = (np.zeros((len(pieces), rows), np.float32) for _ in range(2))
    for i, piece in enumerate(pieces):
        golds[i, : len(piece)] = labels[piece]
        weights[i, : len(piece)] = 1
    return put_sharded((inputs, golds, weights), by_rows(mesh, axis=1))
