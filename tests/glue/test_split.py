"""Rows held out and first rows: which, in what order, and called what."""

from __future__ import annotations

import numpy as np
import pytest

from lpjax.glue import TASKS
from lpjax.glue.data import Examples
from lpjax.glue.split import first_rows, hold_out, take


def examples(n: int, task: str = "rte") -> Examples:
    """Examples that tell their own number."""
    first, second = [f"first {i}" for i in range(n)], [f"second {i}" for i in range(n)]
    pairs = len(TASKS[task].columns) == 2
    return Examples(TASKS[task], "train", first, second if pairs else None, np.arange(n) % 2, "a file", True)


def numbers(part: Examples) -> list[int]:
    indices = [int(text.split()[1]) for text in part.first]
    assert part.second is None or [int(text.split()[1]) for text in part.second] == indices
    assert part.labels.tolist() == [i % 2 for i in indices]
    return indices


@pytest.mark.parametrize("task", ["rte", "sst2"])
@pytest.mark.parametrize("rows", [1, 40, 99])
def test_every_row_is_on_one_side(task, rows):
    whole = examples(100, task)
    rest, kept = hold_out(whole, rows)
    assert len(kept.first) == rows
    assert sorted(numbers(rest) + numbers(kept)) == list(range(100))
    assert numbers(rest) == sorted(numbers(rest))
    assert numbers(kept) == sorted(numbers(kept))
    assert (rest.split, kept.split) == (f"train, but {rows} held out", "held out of train")
    assert not rest.complete
    assert not kept.complete
    assert (rest.task, rest.source) == (whole.task, whole.source)
    assert numbers(whole) == list(range(100))
    assert whole.complete


def test_the_choice_follows_from_the_seed():
    held_out = [numbers(hold_out(examples(100), 20, seed)[1]) for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]
    assert max(np.diff(held_out[0])) > 1  # from all over, for files are often sorted


@pytest.mark.parametrize("rows", [0, -1, 5, 6])
def test_something_is_left_on_both_sides(rows):
    with pytest.raises(ValueError, match=f"`rows` is {rows}; expected 1 to 4, fewer than the 5 examples of train"):
        hold_out(examples(5), rows)


def test_first_rows():
    few = first_rows(examples(5), 3)
    assert numbers(few) == [0, 1, 2]
    assert (few.split, few.complete) == ("train, first 3", False)
    for rows in (5, 50):
        assert first_rows(whole := examples(5), rows) is whole
    with pytest.raises(ValueError, match="`rows` is 0; expected a whole number, 1 or more"):
        first_rows(examples(5), 0)


def test_rows_are_taken_as_told():
    taken = take(examples(5), np.array([4, 0, 4]), "mine")
    assert numbers(taken) == [4, 0, 4]
    assert (taken.split, taken.complete) == ("mine", False)
