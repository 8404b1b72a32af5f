"""Which cases of a product of parameters always run: enough that every two values meet in one of them.

The others are slow, and may be run in parts.
"""

from __future__ import annotations

import functools
import itertools
import re
import zlib
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import pytest


def covering(cases: Sequence[Mapping[str, Hashable]], strength: int = 2) -> list[int]:
    """The cases, by number, that have among them all values, two by two, that any case has.

    Args:
        cases: value by parameter.
        strength: how many values are to meet: 2, or 1 for every value by itself; 0 for the first case alone.

    Returns:
        numbers in ascending order. The choice is greedy: the case that has most of what no case before has, and of
        equal ones the first.
    """
    missing = [_groups(case, strength) for case in cases]
    chosen = []
    while any(missing):
        best = max(range(len(cases)), key=lambda i: len(missing[i]))
        covered = missing[best].copy()
        for groups in missing:
            groups -= covered
        chosen.append(best)
    return sorted(chosen)


def _groups(case: Mapping[str, Hashable], strength: int) -> set[frozenset[tuple[str, Hashable]]]:
    """Values with their parameters, up to `strength` at a time: a test may have fewer parameters."""
    return {frozenset(group) for n in range(strength + 1) for group in itertools.combinations(case.items(), n)}


def mark_the_rest_slow(items: Sequence[pytest.Item]) -> None:
    """Mark as `slow` the cases of tests marked `covering` that `covering` leaves out."""
    tests: defaultdict[tuple[object, ...], list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and item.get_closest_marker("covering"):
            tests[item.path, item.cls, item.originalname].append(item)
    for cases in tests.values():
        mark = cases[0].get_closest_marker("covering")
        assert mark is not None
        values = [{name: repr(value) for name, value in item.callspec.params.items()} for item in cases]
        for number in set(range(len(cases))) - set(covering(values, *mark.args)):
            cases[number].add_marker("slow")


@functools.cache
def _other_models() -> re.Pattern[str]:
    from lpjax.models import ARCHITECTURES  # late: the shapes of lpjax's functions are checked once this is imported

    return re.compile("|".join(name.replace("-", "[-_]") for name in ARCHITECTURES if name not in ("bert", "xlnet")))


def names_another_model(nodeid: str) -> bool:
    """Whether the parameters of a test name another model than BERT and XLNet."""
    return bool(_other_models().search(nodeid.partition("[")[2]))


def mark_other_models_slow(items: Sequence[pytest.Item]) -> None:
    """Mark as `slow` the cases of tests marked `two_models` that name other models than BERT and XLNet."""
    for item in items:
        if item.get_closest_marker("two_models") and names_another_model(item.nodeid):
            item.add_marker("slow")


def in_part(nodeid: str, part: str) -> bool:
    """Whether a test is of a part "K/N": its name alone decides, so that the N parts have every test once.

    Raises:
        ValueError: `part` is not of that form, or K is not from 1 to N.
    """
    number, _, parts = part.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise ValueError(f"the part of the tests is {part!r}; expected K/N with K from 1 to N, such as 1/4")
    return zlib.crc32(nodeid.encode()) % int(parts) == int(number) - 1
