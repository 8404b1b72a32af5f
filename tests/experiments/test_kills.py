"""Commands that are killed: a few points of one here, and what the committed record says of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.kills import CASES, ENVIRONMENT, RESULTS, SIGNALS, state
from experiments.readme import kills_table

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["export --force", "calibrate --force"])
def test_a_command_that_is_killed_leaves_old_or_new(name):
    assert name in CASES
    command = [sys.executable, "-m", "experiments.kills", "--one", name, "--most", "4"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["signal"] for row in rows] == ["SIGTERM", "SIGKILL"]
    for row in rows:
        counts = (row["points"], row["lost"], row["mixed"], row["left_after_another_run"], row["faults"])
        assert counts == (4, 0, 0, 0, 0), done.stderr
    assert rows[0]["left_at_once"] == 0


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_the_record_has_every_command_and_no_fault(record: dict):
    assert [(row["command"], row["signal"]) for row in record["rows"]] == [
        (name, number.name) for name in CASES for number in SIGNALS
    ]
    for row in record["rows"]:
        faults = [row[key] for key in ("lost", "mixed", "left_after_another_run", "other_result", "faults")]
        assert faults == [0] * 5
        assert row["signal"] == "SIGKILL" or row["left_at_once"] == 0
        least = 100 if row["command"].split()[0] in ("calibrate", "finetune", "recover") else 10
        assert row["points"] >= least
    assert kills_table(record).count("\n") == 2 * len(CASES) + 2


def test_what_is_found_is_told_apart(tmp_path: Path):
    """A harness that calls everything right would prove nothing."""
    out, reference = tmp_path / "out.html", tmp_path / "reference.html"
    reference.write_text("<html></html>")
    assert state(out, None, reference) == "old"
    assert state(out, "digest of something", reference) == "lost"
    out.write_text("<html></ht")
    assert state(out, None, reference) == "mixed"
    out.write_text("<html></html>")
    assert state(out, None, reference) == "new"
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert state(folder, None, tmp_path) == "mixed"
