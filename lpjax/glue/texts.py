"""Texts to run a model on: from a file, from a GLUE task, or the prose that comes with Python."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lpjax.glue.data import Examples, load_examples, load_sentences
from lpjax.glue.split import take
from lpjax.glue.tasks import Task, find_task


class Texts(NamedTuple):
    """Texts, or pairs of them.

    Attributes:
        source: name of the source.
        first, second: the texts; `second` is None unless they are pairs.
        examples: the examples of the task, with labels; None without a task.
    """

    source: str
    first: list[str]
    second: list[str] | None = None
    examples: Examples | None = None


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Where texts come from: a file, a GLUE task, or by default Python's language reference.

    Attributes:
        text: UTF-8 file, one text per line.
        task: GLUE task, by name.
        split: split of the task; by default train.
        glue: GLUE folder, as for `load_examples`.

    Raises:
        ValueError: arguments that exclude each other.
    """

    text: Path | None = None
    task: str | None = None
    split: str | None = None
    glue: Path | None = None

    def __post_init__(self) -> None:
        if self.task is not None and self.text is not None:
            raise ValueError("`text` and `task` both name texts; expected one of them")
        if self.task is None and (self.split is not None or self.glue is not None):
            raise ValueError("`split` and `glue` need a `task`; pass one, or omit them")
        self.found_task  # noqa: B018, an unknown one is refused

    @property
    def found_task(self) -> Task | None:
        """The task; None without one.

        Raises:
            ValueError: its name is unknown.
        """
        return None if self.task is None else find_task(self.task)

    def load(self, most: int | None = None) -> Texts:
        """At most `most` evenly spaced texts.

        Raises:
            DataError: as `load_sentences` and `load_examples`.
        """
        task = self.found_task
        if task is None:
            lines = load_sentences(self.text)
            name = "Python's own reference" if self.text is None else str(self.text)
            return Texts(name, [lines[i] for i in spaced(len(lines), most)])
        examples = load_examples(task, self.split or "train", self.glue)
        chosen = take(examples, np.array(spaced(len(examples.first), most)), examples.split)
        return Texts(f"{task.title} {examples.split}", chosen.first, chosen.second, chosen)


def spaced(count: int, most: int | None) -> list[int]:
    """At most `most` evenly spaced numbers from 0 to count − 1; by default all of them."""
    chosen = count if most is None else min(most, count)
    return [i * count // chosen for i in range(chosen)]


def hold_out_texts(texts: list[str], most: int = 128) -> tuple[list[str], list[str]]:
    """Evenly spaced held-out texts, at most `most` and a fifth of all, and the rest; fewer than five serve as both."""
    if len(texts) < 5:
        return texts, texts
    held = set(spaced(len(texts), min(most, len(texts) // 5)))
    return [texts[i] for i in sorted(held)], [text for i, text in enumerate(texts) if i not in held]
