"""Weights in memory, and files that change or shrink after loading."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lpjax._files import reading as _files
from lpjax._tree import walk
from lpjax.checkpoint import CheckpointError, load_checkpoint
from tests.checkpoint.hostile_files import flax_leaves, packed, shard
from tests.conftest import GOLDENS
from tests.helpers.checkpoints import assert_same


@pytest.fixture(params=["one file", "shards", "msgpack"])
def weights(request: pytest.FixtureRequest, folder: Path) -> list[Path]:
    """The files of weights of a checkpoint."""
    if request.param == "shards":
        shard(folder)
        return sorted(folder.glob("model-*.safetensors"))
    if request.param == "msgpack":
        (folder / "flax_model.msgpack").write_bytes(packed(flax_leaves(folder / "model.safetensors")))
        (folder / "model.safetensors").unlink()
        return [folder / "flax_model.msgpack"]
    return [folder / "model.safetensors"]


def test_a_copy_outlives_its_file(weights: list[Path]):
    folder = weights[0].parent
    expected = jax.tree.map(np.array, load_checkpoint(folder).params)
    copied = load_checkpoint(folder, copy=True)
    assert_same(copied.params, expected)
    assert not any(leaf.flags.writeable for _, leaf in walk(copied.params))
    for path in weights:
        path.write_bytes(b"\0" * path.stat().st_size)  # into the same file
    assert_same(copied.params, expected)
    for path in weights:
        os.truncate(path, 0)
    assert_same(copied.params, expected)


_READ_AFTER_TRUNCATION = """
import os, sys
import numpy as np
from lpjax.checkpoint import load_checkpoint
from lpjax._tree import walk
folder, copy = sys.argv[1], sys.argv[2] == "copy"
params = load_checkpoint(folder, copy=copy).params
os.truncate(f"{folder}/model.safetensors", 0)
print(sum(float(np.abs(leaf).sum()) for _, leaf in walk(params)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="expects the signal of Linux")
def test_a_view_does_not_outlive_a_file_that_shrinks(folder: Path):
    """What the documentation says of both."""
    expected = sum(float(np.abs(leaf).sum()) for _, leaf in walk(load_checkpoint(folder, copy=True).params))
    content = (folder / "model.safetensors").read_bytes()
    for how, status in (("copy", 0), ("view", -7)):
        (folder / "model.safetensors").write_bytes(content)
        command = [sys.executable, "-c", _READ_AFTER_TRUNCATION, str(folder), how]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
        assert done.returncode == status, done.stderr
        if how == "copy":
            assert float(done.stdout) == pytest.approx(expected, rel=1e-6)


def test_replacing_or_deleting_a_file_does_no_harm_to_its_views(folder: Path):
    path = folder / "model.safetensors"
    loaded = load_checkpoint(folder)
    other = folder / "other"
    other.write_bytes(b"\0" * path.stat().st_size)
    other.replace(path)
    assert_same(loaded.params, load_checkpoint(GOLDENS / "bert_base").params)
    path.unlink()
    assert_same(loaded.params, load_checkpoint(GOLDENS / "bert_base").params)


@pytest.mark.parametrize("shrinks", [True, False])
def test_a_file_that_changes_during_the_copy_is_refused(folder: Path, shrinks: bool, monkeypatch: pytest.MonkeyPatch):
    path, stat = folder / "model.safetensors", os.fstat
    calls = []

    def fstat(file: int) -> os.stat_result:
        calls.append(file)
        if len(calls) == 2 and not shrinks:
            os.utime(path, ns=(1, 1))
        status = stat(file)
        if len(calls) == 1 and shrinks:
            os.truncate(path, 100)
        return status

    monkeypatch.setattr(_files.os, "fstat", fstat)
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a whole .*: it changed while it was read"):
        load_checkpoint(folder, copy=True)


def test_a_copy_is_checked(folder: Path):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="holds NaN or infinite weights"):
        load_checkpoint(folder, copy=True)
