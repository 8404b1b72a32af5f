"""Score a model with a head on a GLUE task."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lpjax._check import check_whole
from lpjax._mesh import by_rows, data_mesh, put_sharded, replicated
from lpjax._repr import short_repr
from lpjax._tree import walk
from lpjax.checkpoint import Checkpoint
from lpjax.data.batching import Tokens, check_known, round_up, run_by_length, tokenize
from lpjax.data.tokenizer import tokenizer_of
from lpjax.glue.data import Examples
from lpjax.glue.labels import assumption, is_assumed, label_order, output_labels, own_task
from lpjax.glue.order import likelier_order
from lpjax.glue.tasks import Task
from lpjax.models import ModelConfig, classify, device_params
from lpjax.models.heads import num_outputs, output_path
from lpjax.models.names import names_of
from lpjax.pipeline.outputs import Classes, Regression, outputs_of

Progress = Callable[[int, int], None]

MAX_LENGTH = 128
"""Default for the largest number of tokens of a text or pair of GLUE, as chosen by BERT's authors."""


class Logits(NamedTuple):
    """The logits of a model for n texts.

    Attributes:
        values: shape (n, outputs), float32, in the order of the texts, on the host.
        tokens: number of encoded tokens, without padding.
        seconds: time from the first batch to the last logit on the host, including compilation for new shapes.
    """

    values: Float[np.ndarray, "n outputs"]
    tokens: int
    seconds: float

    def __repr__(self) -> str:
        return short_repr(self)


class Prepared(NamedTuple):
    """A split of a task, tokenized once for many evaluations."""

    examples: Examples
    tokens: Tokens

    def __repr__(self) -> str:
        return short_repr(self)


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Scores of a model on a split of a task.

    Attributes:
        task, split: names, such as "sst2" and "validation".
        rows: number of examples.
        complete: whether they are a whole official split; the scores of a subset are not GLUE scores.
        metrics: GLUE's metrics by name.
        tokens_per_second: tokens without padding, divided by `seconds`.
        seconds: time of encoding, including compilation for new shapes.
        labels: label assigned to each output; empty for a regression.
        labels_assumed: whether the hub's order was assumed, because the model's config.json does not name its outputs.
        likelier_labels: the labels in an order that fits the examples far better, if there is one (see
            `likelier_order`); then the order in `labels` is probably wrong, and so are the metrics.
        truncated: number of examples that were cut off at `max_length` tokens.
        max_length: largest number of tokens of an example.
        notes: further reasons to doubt the scores, a sentence each.
    """

    task: str
    split: str
    rows: int
    complete: bool
    metrics: dict[str, float]
    tokens_per_second: float
    seconds: float
    labels: tuple[str, ...] = ()
    labels_assumed: bool = False
    likelier_labels: tuple[str, ...] | None = None
    truncated: int = 0
    max_length: int = MAX_LENGTH
    notes: tuple[str, ...] = ()

    def warnings(self) -> list[str]:
        """Reasons to doubt the scores, a sentence each."""
        warnings, names = [], ", ".join(self.labels)
        if self.likelier_labels is not None:
            why = "assumed, for config.json names no labels" if self.labels_assumed else "as config.json says"
            warnings.append(
                f"the outputs were taken for {names} ({why}), but {', '.join(self.likelier_labels)} fits the examples "
                "far better: check `id2label` in config.json"
            )
        elif self.labels_assumed:
            warnings.append(assumption(self.labels))
        if self.truncated:
            warnings.append(f"{self.truncated} of {self.rows} examples were cut off at {self.max_length} tokens")
        return [*warnings, *self.notes]


def prepare(
    checkpoint: Checkpoint, examples: Examples, *, tokenizer: Any = None, max_length: int | None = None
) -> Prepared:
    """Tokenize examples for the model of `checkpoint`, once for all models with its tokenizer and config.

    Args:
        checkpoint: the model.
        examples: from `load_examples`.
        tokenizer: a tokenizer of transformers; by default the one in `checkpoint.source`.
        max_length: largest number of tokens; the rest is cut off. By default 128, or the model's number of positions if
            that is smaller.

    Raises:
        ValueError: no tokenizer, or one of another model; a length out of range.
    """
    config = checkpoint.config
    if tokenizer is None:
        tokenizer = tokenizer_of(checkpoint)
    if max_length is None:
        max_length = min(MAX_LENGTH, config.max_length or MAX_LENGTH)
    return Prepared(examples, tokenize(tokenizer, config, examples.first, examples.second, max_length=max_length))


def target_values(checkpoint: Checkpoint, examples: Examples) -> np.ndarray:
    """The examples' labels in the order of the model's outputs, for the argument `labels` of `lpjax.calibrate`.

    Raises:
        ValueError: the model has no head for classes or a regression, or a head with other labels.
    """
    kind = outputs_of(checkpoint)
    if not isinstance(kind, Classes | Regression):
        raise ValueError(
            "`labels` need a model with a head for classes or a regression; leave them out, or fine-tune it: lpjax "
            "finetune"
        )
    return output_labels(examples.task, examples.labels, checkpoint.config_json, kind.count)


def predict(
    params: Mapping[str, Any],
    config: ModelConfig,
    tokens: Tokens,
    *,
    batch_size: int = 32,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Logits:
    """Logits of all texts, in batches of few static shapes, rows spread over all devices.

    Args:
        params: tree of a model with a classification head; dense and `LowRank` leaves alike.
        config: its config.
        tokens: n texts, from `tokenize` or `prepare(…).tokens`.
        batch_size: rows of a batch over all devices, rounded up to a multiple of their number.
        dtype: dtype of the computation.
        mesh: devices, along an axis "data"; by default all.
        progress: called with (texts done, texts in all) after each batch.

    Raises:
        ValueError: a batch size below 1, token ids that the model does not have, or as `classify`.
    """
    check_whole("`batch_size`", batch_size, 1)
    check_known(config, tokens.ids, tokens.types)
    mesh = data_mesh() if mesh is None else mesh
    rows = round_up(batch_size, mesh, config)
    params = jax.device_put(device_params(params, dtype, expand=True), replicated(mesh))
    began = time.perf_counter()

    def run(inputs: dict[str, np.ndarray]) -> Array:
        return _logits(params, config, put_sharded(inputs, by_rows(mesh)), np.dtype(dtype), mesh)

    parts, row_of = run_by_length(tokens, rows, run, progress)
    values = np.concatenate(jax.device_get(parts))
    return Logits(values[row_of], int(tokens.lengths.sum()), time.perf_counter() - began)


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def _logits(
    params: dict[str, Any], config: ModelConfig, inputs: dict[str, Array], dtype: np.dtype, mesh: Mesh
) -> Array:
    logits = classify(params, config, inputs, dtype=dtype).astype(jnp.float32)
    return jax.lax.with_sharding_constraint(logits, replicated(mesh))


def to_predictions(logits: np.ndarray, examples: Examples, config_json: Mapping[str, Any] | None) -> np.ndarray:
    """Predictions for a task: indices of its labels, matched by the names of the model's outputs, or scores.

    Args:
        logits: logits, shape (n, outputs).
        examples: examples of the task.
        config_json: contents of the model's config.json, whose `id2label` names the outputs.

    Raises:
        ValueError: the outputs do not match the task's labels, see `label_order`; logits that are not finite.
    """
    if not np.all(np.isfinite(logits)):
        raise ValueError("the model's logits are NaN or infinite; try dtype float32, or look at its weights")
    order = label_order(examples.task, config_json, logits.shape[1])
    if examples.task.is_regression:
        return logits[:, 0]
    return np.asarray(order)[np.argmax(logits, axis=1)]


def check_head(checkpoint: Checkpoint, task: Task) -> None:
    """Refuse a model that cannot be scored on a task, before its examples are loaded.

    Raises:
        ValueError: it has no head, another number of outputs, or labels of another task.
    """
    config_json = checkpoint.config_json or {}
    purpose = {"tokens": "classifies tokens", "spans": "finds answers"}.get(checkpoint.config.head)
    if any(name.endswith("ForMultipleChoice") for name in names_of(config_json.get("architectures"))):
        purpose = "scores the choices of a question"
    outputs = num_outputs(checkpoint.params, checkpoint.config)
    if purpose is not None or outputs is None:
        fault = f"the model's head {purpose} (`architectures` in its config.json), but {task.title} is of whole texts"
        raise ValueError(
            f"{fault if purpose else 'the model has no head for classification'}; pass a model that was fine-tuned on "
            f"{task.title}, or fine-tune this one (lpjax finetune)"
        )
    label_order(task, checkpoint.config_json, outputs)
    if not task.is_regression and config_json.get("problem_type") == "regression":
        raise ValueError(
            f"the model's head is one of a regression (`problem_type` in its config.json), and {task.title} has "
            "classes; pass a model that was fine-tuned on it"
        )


def notes_of(checkpoint: Checkpoint, task: Task) -> tuple[str, ...]:
    """Reasons in a model's weights and config.json to doubt its scores on a task, a sentence each."""
    data, notes = checkpoint.config_json or {}, []
    tuned = own_task(data)
    if tuned is not None and tuned.name != task.name:
        notes.append(f"config.json says that the model was fine-tuned on {tuned.title}, not on {task.title}")
    if not task.is_regression and data.get("problem_type") == "multi_label_classification":
        notes.append("the model gives several labels per text (`problem_type`); the likeliest one was taken")
    kernel = output_path(checkpoint.config)
    bias = dict(walk(checkpoint.params)).get(kernel.replace("kernel", "bias"))
    if bias is not None and not np.asarray(bias).any():
        notes.append("the biases of the head are all 0, like those of a new one: it may never have been trained")
    return tuple(notes)


def evaluate_task(checkpoint: Checkpoint, examples: Examples | Prepared, **options: Any) -> TaskResult:
    """Score a model with a classification head on a split of a GLUE task, by GLUE's own metrics.

    A model that does not fit the task is refused before any computation.

    Args:
        checkpoint: the model; its `config_json` gives the order of its labels.
        examples: from `load_examples`, or from `prepare` if many models with one tokenizer are scored on them.
        **options: tokenizer and max_length of `prepare`; batch_size, dtype, mesh and progress of `predict`.

    Raises:
        ValueError: a model without a head or with other labels, logits that are not finite, or as `prepare` and
            `predict`.
    """
    from lpjax.glue.metrics import score

    known = {key: options.pop(key) for key in ("tokenizer", "max_length") if key in options}
    split = examples.examples if isinstance(examples, Prepared) else examples
    check_head(checkpoint, split.task)
    score(split.task, split.labels, split.labels)  # refuses labels that cannot be scored
    prepared = examples if isinstance(examples, Prepared) else prepare(checkpoint, examples, **known)
    logits = predict(checkpoint.params, checkpoint.config, prepared.tokens, **options)
    predictions = to_predictions(logits.values, split, checkpoint.config_json)
    task, names, likelier = split.task, split.task.labels, None
    if not task.is_regression:
        order = label_order(task, checkpoint.config_json, logits.values.shape[1])
        names = tuple(task.labels[i] for i in order)
        better = likelier_order(predictions, np.asarray(split.labels, np.int64), len(names))
        likelier = None if better is None else tuple(task.labels[better[i]] for i in order)
    return TaskResult(
        task.name,
        split.split,
        len(split.labels),
        split.complete,
        score(task, predictions, split.labels),
        logits.tokens / logits.seconds,
        logits.seconds,
        names,
        is_assumed(task, checkpoint.config_json),
        likelier,
        prepared.tokens.truncated,
        prepared.tokens.max_length,
        notes_of(checkpoint, task),
    )
