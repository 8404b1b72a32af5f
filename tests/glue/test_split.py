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
    found = [int(text.split()[1]) for text in part.first]
    assert part.second is None or [int(text.split()[1]) for text in part.second] == found
    assert part.labels.tolist() == [i % 2 for i in found]
    return found


@pytest.mark.parametrize("task", ["rte", "sst2"])
@pytest.mark.parametrize("rows", [1, 40, 99])
def test_every_row_is_on_one_side(task, rows):
    given = examples(100, task)
    rest, kept = hold_out(given, rows)
    assert len(kept.first) == rows
    assert sorted(numbers(rest) + numbers(kept)) == list(range(100))
    assert numbers(rest) == sorted(numbers(rest))
    assert numbers(kept) == sorted(numbers(kept))
    assert (rest.split, kept.split) == (f"train, but {rows} held out", "held out of train")
    assert not rest.complete
    assert not kept.complete
    assert (rest.task, rest.source) == (given.task, given.source)
    assert numbers(given) == list(range(100))
    assert given.complete


def test_the_choice_follows_from_the_seed():
    found = [numbers(hold_out(examples(100), 20, seed)[1]) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert max(np.diff(found[0])) > 1  # from all over, for files are often sorted


@pytest.mark.parametrize("rows", [0, -1, 5, 6])
def test_something_is_left_on_both_sides(rows):
    with pytest.raises(ValueError, match=f"`rows` is {rows}; expected 1 to 4, fewer than the 5 examples of train"):
        hold_out(examples(5), rows)


def test_first_rows():
    few = first_rows(examples(5), 3)
    assert numbers(few) == [0, 1, 2]
    assert (few.split, few.complete) == ("train, first 3", False)
    for rows in (5, 50):
        assert first_rows(given := examples(5), rows) is given
    with pytest.raises(ValueError, match="`rows` is 0; expected a whole number, 1 or more"):
        first_rows(examples(5), 0)


def test_rows_are_taken_as_told():
    found = take(examples(5), np.array([4, 0, 4]), "mine")
    assert numbers(found) == [4, 0, 4]
    assert (found.split, found.complete) == ("mine", False)
