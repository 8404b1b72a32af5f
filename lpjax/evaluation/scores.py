"""Scorers: functions from a checkpoint to scores by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lpjax.checkpoint import Checkpoint
from lpjax.glue.data import load_examples, load_sentences, load_stsb
from lpjax.glue.tasks import Task
from lpjax.pipeline import sentence_tokenizer

Scorer = Callable[[Checkpoint], Mapping[str, float]]
"""checkpoint -> scores by name, larger is better; called with the dense model and with every run."""

_SENTENCES = 320


def fidelity_scorer(dense: Checkpoint, sentences: Sequence[str] | None = None) -> Scorer:
    """A scorer for the closeness of a model's embeddings to the dense model's.

    Args:
        dense: the dense model; its tokenizer is used for all models.
        sentences: texts to embed; by default 320 sentences of Python's language reference.
    """
    from lpjax.evaluation.sentences import (  # late: slow to import, and a table needs none of it
        embed_sentences,
        fidelity,
    )

    if sentences is None:
        every = load_sentences()
        sentences = every[:: max(1, len(every) // _SENTENCES)][:_SENTENCES]
    tokenizer = sentence_tokenizer(dense)
    embeddings = embed_sentences(dense, sentences, tokenizer=tokenizer)

    def score(checkpoint: Checkpoint) -> Mapping[str, float]:
        if checkpoint is dense:
            return {"fidelity, Spearman": 1.0, "fidelity, cosine": 1.0}
        result = fidelity(checkpoint, embeddings, sentences, tokenizer=tokenizer)
        return {"fidelity, Spearman": result.spearman, "fidelity, cosine": result.mean_cosine}

    return score


def stsb_scorer(dense: Checkpoint, glue: str | Path | None = None) -> Scorer:
    """A scorer for STS-B dev: Spearman correlation of the embeddings' cosines with the gold scores, without a head.

    Raises:
        DataError: STS-B is not found, as `load_stsb`.
    """
    from lpjax.evaluation.sentences import stsb

    pairs = load_stsb(glue)
    tokenizer = sentence_tokenizer(dense)
    return lambda checkpoint: {"STS-B dev, Spearman": stsb(checkpoint, pairs, tokenizer=tokenizer).spearman}


def task_scorer(dense: Checkpoint, task: Task, glue: str | Path | None = None) -> Scorer:
    """A scorer for GLUE's metrics on the dev split of a task, for models with a head for it.

    Raises:
        DataError: the task is not found, as `load_examples`.
    """
    from lpjax.glue.evaluate import evaluate_task, prepare
    from lpjax.glue.labels import is_assumed

    prepared = prepare(dense, load_examples(task, "validation", glue))
    # Part of the score's name, since it holds for all models on a page.
    assumed = " (order of the labels assumed)" if is_assumed(task, dense.config_json) else ""

    def score(checkpoint: Checkpoint) -> Mapping[str, float]:
        metrics = evaluate_task(checkpoint, prepared).metrics
        return {f"{task.title} dev, {name}{assumed}": value for name, value in metrics.items()}

    return score
