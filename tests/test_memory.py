"""Peak memory of loading and compressing, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.full_size import ROOT, random_params
from lpjax import Checkpoint, save_checkpoint
from lpjax.models import BertConfig


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's high-water mark")
def test_one_copy_of_the_weights_and_one_group_at_work(tmp_path: Path):
    config = BertConfig(40000, 512, 6, 8, 2048, 64)
    params = random_params(config)
    save_checkpoint(Checkpoint(params, config), tmp_path / "net")
    command = [
        sys.executable,
        "-m",
        "experiments.full_size",
        "--one",
        str(tmp_path / "net"),
        "embeddings",
        "0.5",
        "svd",
    ]
    measured = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout)
    table = params["embeddings"]["word_embeddings"]["embedding"].nbytes / 1e6
    # At work: the matrix and its factors, on the device and on the host, and the residual; and what XLA compiled.
    assert measured["peak_mb"] < measured["weights_mb"] + 5 * table + 100
