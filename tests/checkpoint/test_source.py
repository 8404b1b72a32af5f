"""Which sources are local, which are hub ids, and what a user reads where neither is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from lpjax.checkpoint import CheckpointError, load_checkpoint
from lpjax.checkpoint.source import weight_bytes
from tests.checkpoint.hostile_files import flax_leaves, packed
from tests.conftest import GOLDENS
from tests.helpers.checkpoints import assert_same


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids that the hub was asked for; it is never reached."""
    ids = []

    def snapshot_download(repo: str, **_: Any) -> str:
        ids.append(repo)
        raise LocalEntryNotFoundError("An error happened.\nMore lines that nobody reads.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return ids


@pytest.mark.parametrize(
    "source",
    [
        "./model",
        "../model",
        "/no/such/model",
        "~/no-such-model",
        "a/b/c",
        "here/model",
        "a\\b",
        "",
        ".hidden",
        "a/..b",
    ],
)
def test_local_paths_are_never_asked_of_the_hub(
    source: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*; expected a folder with config.json"):
        load_checkpoint(source or Path("nothing"))
    with pytest.raises(FileNotFoundError):
        load_checkpoint(Path("owner/name"))
    assert asked == []


@pytest.mark.parametrize("source", ["bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2", "a.b/c_d"])
def test_hub_that_is_out_of_reach_is_one_paragraph(
    source: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConnectionError, match=r"could not be reached .*\(An error happened.\); check") as caught:
        load_checkpoint(source)
    assert "\n" not in str(caught.value)
    assert asked == [source]


def test_folder_comes_before_the_hub(folder: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    assert load_checkpoint("dense").source == Path("dense")
    assert asked == []


def test_snapshot_of_the_hub_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def snapshot_download(repo: str, *, allow_patterns: list[str], **_: Any) -> str:
        assert repo == "owner/name"
        of_net = [pattern for pattern in allow_patterns if not pattern.startswith(("[1-9]", "LICENSE", "NOTICE"))]
        assert not any(pattern.endswith((".bin", ".pt", ".h5", ".msgpack", "/*")) for pattern in of_net)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_checkpoint("owner/name").source == folder


@pytest.mark.parametrize("flax", [True, False])
def test_msgpack_is_fetched_only_where_there_are_no_safetensors(
    flax: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    weights, asked = folder / "model.safetensors", []
    content = packed(flax_leaves(weights))
    if flax:
        weights.unlink()

    def snapshot_download(repo: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.append("flax_model.msgpack" in allow_patterns)
        if asked[-1]:
            (folder / "flax_model.msgpack").write_bytes(content)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    params = load_checkpoint("owner/name").params
    assert asked == ([False, True] if flax else [False])
    assert_same(params, load_checkpoint(GOLDENS / "bert_base").params)


def test_repository_without_weights_that_can_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors and no flax_model.msgpack; if the model"):
        load_checkpoint("owner/name")


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "flax_model-00001-of-00002.msgpack"])
def test_size_of_the_weights_is_that_of_all_shards(name: str, tmp_path: Path):
    for number in "12":
        (tmp_path / name.replace("00001", f"0000{number}")).write_bytes(b"12345")
    assert weight_bytes(tmp_path) == 10
    assert weight_bytes(None) == 0


def test_file_is_no_folder(folder: Path):
    with pytest.raises(NotADirectoryError, match=r"model.safetensors is a file, expected the folder that holds it"):
        load_checkpoint(folder / "model.safetensors")
