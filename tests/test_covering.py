"""The choice of cases against its definition."""

from __future__ import annotations

import itertools

import pytest

from lpjax.models import ARCHITECTURES
from tests._covering import covering, in_part, names_another_model


@pytest.mark.parametrize("sizes", [(4,), (2, 3), (6, 2, 3), (6, 3, 2, 2), (1, 1, 1)])
def test_every_two_values_meet(sizes):
    cases = [dict(zip("abcd", values, strict=False)) for values in itertools.product(*map(range, sizes))]
    kept = covering(cases)
    assert kept == sorted(set(kept))
    for first, other in itertools.combinations(range(len(sizes)), 2):
        names = "abcd"[first], "abcd"[other]
        pairs = {tuple(cases[i][name] for name in names) for i in kept}
        assert len(pairs) == sizes[first] * sizes[other]
    # No fewer would do, and not many more are taken.
    least = max(a * b for a, b in itertools.combinations((1, *sizes), 2))
    assert least <= len(kept) <= 1.4 * least


def test_cases_that_lack_a_combination_lose_nothing():
    cases = [{"a": a, "b": b, "c": c} for a in range(3) for b in range(2) for c in range(2) if (a, b) != (2, 1)]
    kept = [cases[i] for i in covering(cases)]
    for names in (("a", "b"), ("a", "c"), ("b", "c")):
        assert {tuple(case[name] for name in names) for case in kept} == {
            tuple(case[name] for name in names) for case in cases
        }
    assert covering([]) == []


def test_every_value_by_itself():
    cases = [{"net": net, "task": task} for net in "abcd" for task in (1, 2, 3)]
    assert [(cases[i]["net"], cases[i]["task"]) for i in covering(cases, 1)] == [("a", 1), ("b", 2), ("c", 3), ("d", 1)]


def test_models_are_told_from_bert_and_xlnet():
    others = {name for name in ARCHITECTURES if names_another_model(f"tests/test_a.py::test_b[{name}_base-8]")}
    assert others == ARCHITECTURES.keys() - {"bert", "xlnet"}
    assert not names_another_model("tests/test_roberta.py::test_b[bert_base]")


def test_parts_have_every_test_once():
    names = [f"tests/test_a.py::test_b[{i}]" for i in range(200)]
    parts = [[name for name in names if in_part(name, f"{k}/4")] for k in range(1, 5)]
    assert sorted(itertools.chain(*parts)) == sorted(names)
    assert all(30 < len(part) < 70 for part in parts)
    for wrong in ("0/4", "5/4", "1", "/4", "1/", "a/4", "-1/4"):
        with pytest.raises(ValueError, match="expected K/N"):
            in_part(names[0], wrong)
