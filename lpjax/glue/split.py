"""Hold out examples of a split."""

from __future__ import annotations

import numpy as np

from lpjax._check import check_whole
from lpjax.glue.data import Examples


def hold_out(examples: Examples, rows: int, seed: int = 0) -> tuple[Examples, Examples]:
    """Split off `rows` random examples, to make choices on them without looking at dev.

    Both parts keep the order of the split. They are not `complete`, and their splits are called
    "train, but 500 held out" and "held out of train".

    Args:
        examples: n examples.
        rows: number of examples to hold out, at least 1 and fewer than n.
        seed: random seed of the choice; the same seed holds out the same rows.

    Returns:
        (the remaining examples, the held-out examples).

    Raises:
        ValueError: `rows` out of range.
    """
    n = len(examples.labels)
    if not 1 <= rows < n:
        raise ValueError(f"`rows` is {rows}; expected 1 to {n - 1}, fewer than the {n} examples of {examples.split}")
    held = np.zeros(n, bool)
    held[np.random.default_rng([seed, n]).choice(n, rows, replace=False)] = True
    names = f"{examples.split}, but {rows} held out", f"held out of {examples.split}"
    rest, kept = (take(examples, np.flatnonzero(which), name) for which, name in zip((~held, held), names, strict=True))
    return rest, kept


def first_rows(examples: Examples, rows: int) -> Examples:
    """The first `rows` examples, as a split called "validation, first 1000"; all examples if there are no more.

    Raises:
        ValueError: `rows` below 1.
    """
    check_whole("`rows`", rows, 1)
    if rows >= len(examples.labels):
        return examples
    return take(examples, np.arange(rows), f"{examples.split}, first {rows}")


def take(examples: Examples, rows: np.ndarray, split: str) -> Examples:
    """The examples of some rows, as a split with another name."""
    second = examples.second
    return examples._replace(
        first=[examples.first[i] for i in rows],
        second=None if second is None else [second[i] for i in rows],
        labels=examples.labels[rows],
        split=split,
        complete=False,
    )
