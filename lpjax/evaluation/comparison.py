"""All scores of a model, and of the dense model if there is one, as `lpjax evaluate` shows them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lpjax.checkpoint import Checkpoint
from lpjax.evaluation.sentences import compare_outputs, fidelity, stsb
from lpjax.glue.data import DataError, Pairs, load_examples, load_stsb
from lpjax.glue.evaluate import check_head, evaluate_task
from lpjax.glue.tasks import Task
from lpjax.pipeline.outputs import Embedding, outputs_of

Progress = Callable[[int, int, str], None]


def score_task(
    nets: Mapping[str, Checkpoint],
    task: Task,
    *,
    split: str = "validation",
    glue: Path | None = None,
    progress: Progress,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Scores of several models with heads on one GLUE task.

    Args:
        models: models by name.
        task, split: task and split to score on.
        glue: GLUE folder, as for `load_examples`.
        progress: called with (examples done, examples in all, title).
        **options: options of `evaluate_task`.

    Returns:
        The fields of each model's `TaskResult`, and `warnings`, by the models' names.

    Raises:
        ValueError: a model has no head for the task (raised before any data is read), or as `evaluate_task`.
        DataError: as `load_examples`.
    """
    for net in nets.values():
        check_head(net, task)
    examples = load_examples(task, split, glue)

    def advance(done: int, total: int) -> None:
        progress(done, total, task.title)

    results = {name: evaluate_task(net, examples, progress=advance, **options) for name, net in nets.items()}
    return {name: dataclasses.asdict(result) | {"warnings": result.warnings()} for name, result in results.items()}


def score_outputs(
    checkpoint: Checkpoint,
    dense: Checkpoint | None,
    sentences: Sequence[str],
    *,
    glue: Path | None = None,
    fetch: bool = True,
    progress: Progress,
    max_length: int | None = None,
    batch_size: int = 32,
    **options: Any,
) -> dict[str, Any]:
    """STS-B by embeddings, and how close the embeddings and the head's outputs are to the dense model's.

    Args:
        checkpoint: the model.
        dense: the dense model to compare with, or None.
        sentences: texts to compare on.
        glue: GLUE folder, as for `load_stsb`.
        fetch: whether STS-B may be fetched from the hub.
        progress: called with (sentences done, sentences in all, what).
        max_length, batch_size, **options: as for `embed_sentences`.

    Returns:
        `stsb`, `baseline_stsb`, `fidelity` and `outputs`, as far as available; otherwise `stsb_missing` and
        `outputs_missing` with the reason.

    Raises:
        ValueError: there are neither labels nor a dense model.
        DataError: STS-B is not in `glue`.
    """
    options |= {"batch_size": batch_size, "max_length": max_length}
    scores: dict[str, Any] = {}
    pairs = _find_pairs(glue, fetch, dense is None)

    def advance(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(done, total, what)

    if isinstance(pairs, str):
        scores["stsb_missing"] = pairs
    else:
        scores["stsb"] = dataclasses.asdict(stsb(checkpoint, pairs, progress=advance("STS-B"), **options))
    if dense is None:
        return scores
    near = fidelity(checkpoint, dense, sentences, progress=advance("fidelity"), **options)
    scores["fidelity"] = dataclasses.asdict(near)
    kinds = [outputs_of(net) for net in (checkpoint, dense)]
    if kinds[0] != kinds[1]:
        scores["outputs_missing"] = f"the models have different heads: {kinds[0].kind} and {kinds[1].kind}"
    elif not isinstance(kinds[0], Embedding):
        lengths = {} if max_length is None else {"max_length": max_length}
        outputs = compare_outputs(checkpoint, dense, sentences, batch_size=batch_size, **lengths)
        scores["outputs"] = dataclasses.asdict(outputs)
    if not isinstance(pairs, str):
        dense_result = stsb(dense, pairs, progress=advance("STS-B, dense"), **options)
        scores["baseline_stsb"] = dataclasses.asdict(dense_result)
    return scores


def _find_pairs(glue: Path | None, fetch: bool, required: bool) -> Pairs | str:
    """STS-B, or the reason why it is missing."""
    try:
        if not (fetch or glue or os.environ.get("LPJAX_GLUE_DIR")):
            raise DataError(
                "not fetched from the hub if a text is given; set LPJAX_GLUE_DIR to a GLUE folder, or pass `glue`"
            )
        return load_stsb(glue)
    except DataError as error:
        if glue is not None:
            raise
        if required:
            raise ValueError(
                f"nothing to score by: {error}; or name the dense model by `baseline` to compare without labels"
            ) from None
        return str(error)
