"""Examples of GLUE's tasks, and a toy that a model learns in seconds."""

from __future__ import annotations

from typing import Any

import numpy as np

from lpjax.checkpoint import Checkpoint
from lpjax.glue import TASKS
from lpjax.glue.data import Examples
from lpjax.training import Settings, finetune
from lpjax.training._finetune import Finetuned
from tests.helpers.texts import make_tokenizer, texts_of

FEW = Settings(epochs=2, batch_size=8, learning_rate=3e-3, warmup=0.25)


def make_examples(task: str, first: list[str], second: list[str] | None = None, labels=None, split="toy") -> Examples:
    """Examples of a task; made-up labels by default."""
    spec = TASKS[task]
    if labels is None:
        labels = np.arange(len(first)) % 3 + 0.5 if spec.is_regression else np.arange(len(first)) % spec.num_outputs
    dtype = np.float64 if spec.is_regression else np.int32
    return Examples(spec, split, first, second, np.asarray(labels, dtype), "nowhere", False)


def toy(task: str = "sst2", n: int = 20, seed: int = 0, split: str = "toy") -> Examples:
    """Examples that a word of their own tells apart: one for each label, or for each score from 0 to 4."""
    spec = TASKS[task]
    pairs = len(spec.columns) == 2
    values = np.arange(n) % (spec.num_outputs if spec.labels else 5)
    rest = texts_of(1, n=n, seed=seed) if pairs else texts_of(1, 2, n=n, seed=seed)  # all in the shortest batches
    first = [" ".join(("abcde"[value], "abcde"[value], text)) for value, text in zip(values, rest, strict=True)]
    return make_examples(task, first, ["f"] * n if pairs else None, values, split)


def train_on_toy(checkpoint: Checkpoint, task: str = "sst2", settings: Settings = FEW, **options: Any) -> Finetuned:
    """Fine-tune on the toy."""
    arguments = {"train": toy(task), "dev": toy(task, 12, 1, "dev"), "tokenizer": make_tokenizer(checkpoint.config)}
    arguments |= options
    train, dev = arguments.pop("train"), arguments.pop("dev")
    return finetune(checkpoint, train, dev, settings, **arguments)
