"""Which sources are local, which are hub ids, and what a user reads where neither is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from lpjax.checkpoint import load_checkpoint


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
        assert not any(pattern.endswith((".bin", ".pt", ".h5", ".msgpack", "*")) for pattern in allow_patterns[:-2])
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_checkpoint("owner/name").source == folder


def test_file_is_no_folder(folder: Path):
    with pytest.raises(NotADirectoryError, match=r"model.safetensors is a file, expected the folder that holds it"):
        load_checkpoint(folder / "model.safetensors")
