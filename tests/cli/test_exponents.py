"""`--p inf`: the largest error, from the command to the files and back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import lpjax
from lpjax._files.json import RecordError, exponent_of, exponent_text
from lpjax.compression.plan import load_plan
from lpjax.compression.record import RECORD, read_record
from tests.conftest import Command


def strictly(path: Path) -> dict:
    """The JSON object in a file, which has no constants that JSON does not have."""
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def test_infinity_from_the_command_to_the_files_and_back(folder: Path, tmp_path: Path, command: Command):
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    options = ["--layers", "attention", "--rank", 2, "--method", "irls_rows", "--p", "inf"]
    status, printed, err = command("compress", folder, out, *options, "--plan-out", plan, "--json")
    assert status == 0, err
    document = json.loads(printed, parse_constant=pytest.fail)
    assert document["p"] == "inf"
    assert all(0 < layer["objective_rows"] < 1 for layer in document["layers"])
    block = strictly(out / "config.json")["lpjax"]
    assert block["p"] == "inf"
    assert [step["p"] for step in block["steps"]] == ["inf"]
    assert strictly(out / RECORD)["steps"][0]["p"] == "inf"
    assert read_record(out / RECORD).steps[0].p == math.inf
    assert {layer["p"] for layer in strictly(plan)["layers"]} == {"inf"}
    assert {choice.p for choice in load_plan(plan).layers.values()} == {math.inf}
    status, printed, err = command("compress", folder, tmp_path / "again", "--plan", plan, "--json")
    assert status == 0, err
    assert [layer["objective_rows"] for layer in json.loads(printed)["layers"]] == [
        layer["objective_rows"] for layer in document["layers"]
    ]
    assert "irls_rows, p = inf" in (out / "README.md").read_text()
    (out / RECORD).unlink()  # the report then reads config.json
    assert command("report", out, "--out", tmp_path / "page.html")[0] == 0
    assert "<dt>p</dt><dd>∞</dd>" in (tmp_path / "page.html").read_text()


def test_what_a_record_says_is_the_largest_error(folder: Path):
    params = lpjax.load_checkpoint(folder).params
    compressed, records = lpjax.compress(params, select="query/kernel", rank=2, solver="admm_entries", p=math.inf)
    for record in records:
        before, after = params, compressed
        for key in record.path.split("/"):
            before, after = before[key], after[key]
        dense = np.asarray(before)
        residual = dense - np.asarray(lpjax.densify(after))
        assert record.error_entries == pytest.approx(np.abs(residual).max() / np.abs(dense).max(), rel=1e-4)
        rows = np.linalg.norm(residual, axis=0).max() / np.linalg.norm(dense, axis=0).max()  # of the transpose
        assert record.error_rows == pytest.approx(rows, rel=1e-4)


def test_weights_only(folder: Path, tmp_path: Path, command: Command):
    options = ["--weights-only", "--layers", "query", "--keep", 0.5, "--method", "lewis", "--p", "inf", "--json"]
    status, printed, err = command("compress", folder, tmp_path / "out", *options)
    assert status == 0, err
    assert json.loads(printed, parse_constant=pytest.fail)["p"] == "inf"
    assert strictly(tmp_path / "out" / "lpjax_weights_only.json")["p"] == "inf"


def test_exponents_in_files():
    for p in (1.0, 2.5, math.inf):
        assert exponent_of(json.loads(json.dumps(exponent_text(p), allow_nan=False))) == p
    for value in (None, True, "two", 0, -1.0, [1], 10**400):
        assert exponent_of(value) is None
    assert exponent_text(None) is None


@pytest.mark.parametrize("p", ['"infinity"', "true", "[1]", "Infinity"])
def test_a_plan_with_another_exponent_is_refused(tmp_path: Path, p: str):
    plan = tmp_path / "plan.json"
    layer = f'{{"path": "a", "rank": 2, "method": "svd", "p": {p}}}'
    plan.write_text(f'{{"schema": "lpjax-plan/1", "layers": [{layer}]}}')
    with pytest.raises(RecordError, match=r"layers\[0\].p"):
        load_plan(plan)
