"""A file format of weights is one file and one line of the table: one from outside is read, written and known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lpjax.checkpoint import CheckpointError, export_checkpoint, load_checkpoint, save_checkpoint
from lpjax.checkpoint.formats import FORMATS, Format
from lpjax.checkpoint.source import weight_bytes
from tests.conftest import Command
from tests.helpers.checkpoints import assert_same


def read_npz(path: Path, *, copy: bool = False) -> tuple[dict[str, np.ndarray], str | None]:
    with np.load(path) as arrays:
        return dict(arrays), None


def write_npz(path: Path, tensors: Iterable[tuple[str, Any]]) -> int:
    np.savez(path, **{name: np.asarray(tensor) for name, tensor in tensors})
    return path.stat().st_size


@pytest.fixture(autouse=True)
def npz(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's archives of arrays, which lpjax does not read."""
    monkeypatch.setitem(FORMATS, "npz", Format("model.npz", read_npz, write_npz))


@pytest.fixture
def archive(folder: Path) -> Path:
    write_npz(folder / "model.npz", load_file(folder / "model.safetensors").items())
    return folder


def test_weights_of_a_format_from_outside_are_loaded_exported_and_replaced(archive: Path, tmp_path: Path):
    expected = load_checkpoint(archive)  # of safetensors, which stand before it in the table
    (archive / "model.safetensors").unlink()
    loaded = load_checkpoint(archive)
    assert_same(loaded.params, expected.params)
    assert weight_bytes(archive) == (archive / "model.npz").stat().st_size
    size = export_checkpoint(loaded, tmp_path / "out", format="npz")
    assert size == (tmp_path / "out" / "model.npz").stat().st_size
    assert_same(load_checkpoint(tmp_path / "out").params, expected.params)
    save_checkpoint(loaded, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "model.npz").exists()


def test_a_command_compresses_weights_of_a_format_from_outside(archive: Path, tmp_path: Path, command: Command):
    (archive / "model.safetensors").unlink()
    status, _, err = command("compress", archive, tmp_path / "out", "--layers", "embeddings", "--rank", 2)
    assert status == 0, err
    small = load_checkpoint(tmp_path / "out")
    assert small.params["embeddings"]["word_embeddings"]["embedding"].rank == 2


def test_its_shards_are_read(archive: Path):
    expected = load_checkpoint(archive).params
    tensors = load_file(archive / "model.safetensors")
    for name in ("model.safetensors", "model.npz"):
        (archive / name).unlink()
    names = {name: f"model-0000{1 + i % 2}-of-00002.npz" for i, name in enumerate(tensors)}
    for shard in set(names.values()):
        write_npz(archive / shard, ((name, tensors[name]) for name in tensors if names[name] == shard))
    with pytest.raises(CheckpointError, match=r"shards such as .*, but not their index, model\.npz\.index\.json"):
        load_checkpoint(archive)
    (archive / "model.npz.index.json").write_text(json.dumps({"weight_map": names}))
    assert_same(load_checkpoint(archive).params, expected)


def test_it_is_named_where_weights_are_missing(folder: Path, tmp_path: Path):
    checkpoint = load_checkpoint(folder, copy=True)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"no model.safetensors and no flax_model.msgpack and no model\.npz"):
        load_checkpoint(folder)
    with pytest.raises(ValueError, match="expected one of safetensors, msgpack, npz"):
        export_checkpoint(checkpoint, tmp_path / "out", format="zip")
