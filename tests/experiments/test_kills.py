"""Commands that are killed at a few points: `python -m experiments.kills` has all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.kills import CASES, ENVIRONMENT

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
