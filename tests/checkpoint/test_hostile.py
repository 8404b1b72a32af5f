"""Every hostile and broken file is refused with its message, in bounded memory, and nothing is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lpjax.checkpoint import CheckpointError, load_checkpoint
from tests.checkpoint.hostile_files import HOSTILE, Hostile, chunked, leaf, shard, tree_bytes
from tests.conftest import GOLDENS


@pytest.mark.parametrize("case", HOSTILE, ids=[case.name for case in HOSTILE])
def test_message(case: Hostile, folder: Path):
    case.damage(folder)
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert case.message.replace("{}", str(folder)) in message
    assert str(folder) in message
    assert len(message) < 20_000
    assert all(c.isprintable() or c == "\n" for c in message)
    assert sorted(folder.parent.rglob("*")) == before


def test_names_are_unique():
    assert len({case.name for case in HOSTILE}) == len(HOSTILE)


def test_what_the_cases_start_from_is_sound(folder: Path):
    """Else they could be refused for another reason."""
    shard(folder)
    load_checkpoint(folder)
    shutil.copyfile(GOLDENS / "bert_base" / "model.safetensors", folder / "model.safetensors")
    tree_bytes(lambda content: content)(folder)
    (folder / "model.safetensors.index.json").unlink()
    load_checkpoint(folder)
    shutil.copyfile(GOLDENS / "bert_base" / "model.safetensors", folder / "model.safetensors")
    leaf(chunked())(folder)
    assert (load_checkpoint(folder).params["embeddings"]["word_embeddings"]["embedding"] == 1).all()


def test_shards_may_be_links_as_in_the_cache_of_the_hub(folder: Path, tmp_path: Path):
    shard(folder)
    (tmp_path / "blobs").mkdir()
    for path in folder.glob("model-*.safetensors"):
        path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(f"../blobs/{path.name}")
    load_checkpoint(folder)


_MEASURE = """
import json, pathlib, resource, shutil, sys
from lpjax.checkpoint import CheckpointError, load_checkpoint
from tests.checkpoint.hostile_files import HOSTILE
good, work = map(pathlib.Path, sys.argv[1:])

def attempt(damage):
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(good, work)
    damage(work)
    try:
        load_checkpoint(work)
    except CheckpointError:
        return
    raise SystemExit("it was loaded")

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

load_checkpoint(good)
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + (768 << 20),) * 2)
growth = {}
for case in HOSTILE:
    before = peak()
    attempt(case.damage)
    growth[case.name] = peak() - before
print(json.dumps(growth))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and sets RLIMIT_AS")
def test_memory_is_bounded(folder: Path, tmp_path: Path):
    """Run under a limit on the address space, so that an allocation of gigabytes raises MemoryError."""
    command = [sys.executable, "-c", _MEASURE, str(folder), str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    growth = json.loads(done.stdout)
    assert len(growth) == len(HOSTILE)
    assert sum(growth.values()) < 300 << 20, {name: size >> 20 for name, size in growth.items() if size > 1 << 20}
