"""One way through `compress`: its own arguments make a plan, and a plan is refused before any work."""

from __future__ import annotations

import click
import jax
import numpy as np
import pytest

import lpjax
from lpjax import Choice, Plan
from lpjax.cli._errors import name_options
from lpjax.weighting import Calibration, Statistics
from tests.helpers.trees import first_columns, params

SELECT = ["table", "up/kernel"]


@pytest.mark.parametrize("goal", [{"keep": 0.65}, {"rank": 3}])
def test_arguments_and_their_plan_are_the_same(goal):
    plan = lpjax.uniform_plan(params(), select=SELECT, solver=first_columns, p=1.5, **goal)
    assert set(plan.layers.values()) == {Choice(3, first_columns, 1.5, 0.0)}
    plan.check(params())
    by_plan = lpjax.compress(params(), plan)
    sugar = lpjax.compress(params(), select=SELECT, solver=first_columns, p=1.5, **goal)
    for leaf, other in zip(jax.tree.leaves(by_plan.params), jax.tree.leaves(sugar.params), strict=True):
        assert np.array_equal(leaf, other)
    assert [record.path for record in by_plan.records] == list(plan.layers)


def test_a_plan_says_which_leaves_stay():
    plan = Plan({"table/embedding": Choice(3), "layers/0/up/kernel": Choice(None), "layers/1/up/kernel": Choice(60)})
    reasons = plan.unchanged(params())
    assert reasons.keys() == {"layers/0/up/kernel", "layers/1/up/kernel"}
    assert "expected rank 4 or less" in reasons["layers/1/up/kernel"]
    notes = {record.path: record.note for record in lpjax.compress(params(), plan).records}
    assert notes == {"table/embedding": ""} | {path: f"stays dense: {reason}" for path, reason in reasons.items()}


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan({"table/embedding": Choice(3)}, "counts"), "`weighting` is 'counts', which needs `statistics`"),
        (Plan({"table/embedding": Choice(3)}, "cuonts"), "did you mean counts?"),
        (Plan({"table/embedding": Choice(3, "svd", 0.5)}), "layer table/embedding: p is 0.5; expected a number in"),
        (Plan({"table/embedding": Choice(3, sparse_share=1.0)}), "layer table/embedding: sparse_share is 1.0"),
        (Plan({"layers/0/up/bias": Choice(3)}), "not floating matrices"),
        (Plan({}), "names no layer"),
    ],
)
def test_check_refuses_what_compress_would(plan, words):
    for attempt in (lambda: plan.check(params()), lambda: lpjax.compress(params(), plan)):
        with pytest.raises(ValueError) as error:
            attempt()
        assert words in str(error.value)


def test_check_reads_statistics():
    plan = Plan({"table/embedding": Choice(3)}, "counts")
    known = Statistics(9, counts=np.ones(17, np.float32))
    plan.check(params(), Calibration({"table/embedding": known}, "", 1, 9, 0))
    for statistics, words in (
        ({}, "`statistics` has no statistics of table/embedding"),
        ({"table/embedding": Statistics(9, counts=np.ones(4, np.float32))}, "belongs to another model"),
        ({"table/embedding": Statistics(9)}, "has no `counts`"),
    ):
        with pytest.raises(ValueError) as error:
            plan.check(params(), Calibration(statistics, "", 1, 9, 0))
        assert words in str(error.value)


def test_the_command_says_options_for_arguments():
    message = "`solver` is 'x'; `budget_of` and `keep` stay, and `lpjax.calibrate` and `counts`, too"
    expected = "--method is 'x'; --budget-of and --keep stay, and `lpjax.calibrate` and `counts`, too"
    options = [click.Option([name]) for name in ("--method", "--budget-of", "--keep")]
    assert name_options(message, click.Context(click.Command("compress", params=options))) == expected
