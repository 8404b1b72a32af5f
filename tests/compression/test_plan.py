"""A plan's file: what comes back, what may be edited, what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from lpjax import WEIGHTINGS, Choice, Plan, Weighting
from lpjax._files.json import RecordError
from lpjax.compression import load_plan, save_plan

PLAN = Plan(
    {"words/embedding": Choice(40, "svd", 2.0), "a/kernel": Choice(7, "irls_rows", 1.5), "b/kernel": Choice(None)},
    "gauss_newton",
    0.5,
    "parameters",
    "measured",
    {"model": "a model", "versions": {"lpjax": "1"}},
)


def test_what_is_written_comes_back(tmp_path):
    save_plan(PLAN, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == PLAN
    bare = Plan({"a/kernel": Choice(1)})
    save_plan(bare, tmp_path / "bare.json")
    assert load_plan(tmp_path / "bare.json") == bare
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.json", "plan.json"]


def test_a_layer_is_a_line(tmp_path):
    save_plan(PLAN, tmp_path / "plan.json")
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert '    {"path": "a/kernel", "rank": 7, "method": "irls_rows", "p": 1.5},' in lines
    edited = "\n".join(lines).replace('"rank": 7', '"rank": 9')
    (tmp_path / "plan.json").write_text(edited)
    assert load_plan(tmp_path / "plan.json").layers["a/kernel"] == Choice(9, "irls_rows", 1.5)


def test_what_json_cannot_say_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    with pytest.raises(ValueError, match="JSON cannot represent"):
        save_plan(dataclasses.replace(PLAN, provenance={"seen": {1}}), path)
    with pytest.raises(ValueError, match="which has no name; expected one of none"):
        save_plan(dataclasses.replace(PLAN, weighting=Weighting(inputs_power=0.3)), path)
    assert not path.exists()
    save_plan(Plan({"a": Choice(np.int64(3), "svd", 2)}, WEIGHTINGS["drone"]), path)  # pyright: ignore
    assert load_plan(path) == Plan({"a": Choice(3)}, "drone")


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "plan.json").write_text("mine")
    with pytest.raises(FileExistsError, match="exists"):
        save_plan(PLAN, tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_text() == "mine"
    (tmp_path / "plan.json").write_text('{"schema": "lpjax-plan/1"}')
    save_plan(PLAN, tmp_path / "plan.json", overwrite=True)
    assert load_plan(tmp_path / "plan.json") == PLAN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "another"}, "schema"),
        ({"layers": []}, "layers"),
        ({"layers": [{"rank": 1, "method": "svd", "p": 2}]}, r"layers\[0\].path is missing"),
        ({"layers": [{"path": "a", "method": "svd", "p": 2}]}, r"layers\[0\].rank is missing"),
        ({"layers": [{"path": "a", "rank": 0, "method": "svd", "p": 2}]}, r"layers\[0\].rank is 0"),
        ({"layers": [{"path": "a", "rank": 1.5, "method": "svd", "p": 2}]}, r"layers\[0\].rank is 1.5"),
        ({"layers": [{"path": "a", "rank": 1, "method": "sdv", "p": 2}]}, "expected one of svd"),
        ({"layers": [{"path": "a", "rank": 1, "method": "svd"}]}, r"layers\[0\].p is missing"),
        ({"layers": [{"path": "a", "rank": None}, {"path": "a", "rank": None}]}, "twice"),
        ({"budget_of": "bytes"}, "budget_of"),
        ({"provenance": 3}, "provenance"),
    ],
)
def test_damage_is_named(tmp_path, change, message):
    save_plan(PLAN, tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text()) | change
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(RecordError, match=message):
        load_plan(tmp_path / "plan.json")


def test_no_json_at_all(tmp_path):
    (tmp_path / "plan.json").write_text("rank: 3")
    with pytest.raises(RecordError, match="is not JSON"):
        load_plan(tmp_path / "plan.json")
