"""Links in a model folder: what leads out of it is not copied, but for the hub cache's blobs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lpjax.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from lpjax.compression.history import training_files
from tests.conftest import Command


def move_to_link(path: Path, to: Path) -> None:
    """Have a file or folder lie elsewhere, and be a link."""
    to.parent.mkdir(parents=True, exist_ok=True)
    path.rename(to)
    path.symlink_to(to)


@pytest.mark.parametrize(
    "name", ["vocab.txt", "tokenizer_config.json", "modules.json", "1_Pooling/config.json", "1_Pooling"]
)
def test_a_link_that_leads_out_is_refused_before_any_work(
    command: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    move_to_link(folder / name, tmp_path / "secrets" / "file")
    monkeypatch.setattr("lpjax.compress", None)  # is not reached
    for name_of, options in (("export", []), ("compress", ["--keep", 0.5])):
        status, _, err = command(name_of, folder, tmp_path / "out", *options)
        message = " ".join(err.split())
        assert status == 1, message
        assert str(folder / name) in message
        assert f"leads out of its checkpoint, to {tmp_path / 'secrets' / 'file'}" in message
    with pytest.raises(CheckpointError, match="leads out of its checkpoint"):
        save_checkpoint(load_checkpoint(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_and_what_is_not_copied_may_lie_elsewhere(folder: Path, tmp_path: Path):
    for name in ("model.safetensors", "config.json", "onnx"):
        move_to_link(folder / name, tmp_path / "elsewhere" / name)
    save_checkpoint(load_checkpoint(folder), tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()


def test_links_inside_the_folder_are_copied_as_files(folder: Path, tmp_path: Path):
    (folder / "vocab.txt").rename(folder / "words")
    (folder / "vocab.txt").symlink_to("words")
    (folder / "1_Pooling" / "more.json").symlink_to("../1_Pooling/config.json")
    (tmp_path / "link").symlink_to(folder)
    save_checkpoint(load_checkpoint(tmp_path / "link"), tmp_path / "out")
    assert (tmp_path / "out" / "vocab.txt").read_text() == (folder / "words").read_text()
    assert not (tmp_path / "out" / "vocab.txt").is_symlink()


def test_a_folder_that_holds_itself_is_refused(folder: Path, tmp_path: Path):
    (folder / "1_Pooling" / "again").symlink_to("..")
    with pytest.raises(CheckpointError, match="a link to a folder that holds it"):
        save_checkpoint(load_checkpoint(folder), tmp_path / "out")


def into_cache(folder: Path, cache: Path) -> Path:
    """`folder` as a snapshot of the hub's cache: files are links to blobs, named by their digests."""
    snapshot = cache / "snapshots" / "main"
    (cache / "blobs").mkdir(parents=True)
    for i, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        content = path.read_bytes()
        blob = cache / "blobs" / (hashlib.sha256 if i % 2 else hashlib.sha1)(content).hexdigest()
        blob.write_bytes(content)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.relative_to(cache).parts) - 1)) / "blobs" / blob.name)
    return snapshot


@pytest.mark.parametrize("linked", [None, "cache", "blobs", "snapshot"])
def test_the_hub_cache_is_followed(folder: Path, tmp_path: Path, linked: str | None):
    cache = tmp_path / "models--owner--name"
    snapshot = into_cache(folder, cache)
    assert (snapshot / "1_Pooling" / "config.json").is_symlink()
    if linked == "cache":
        move_to_link(cache, tmp_path / "big disk" / "models--owner--name")
    elif linked == "blobs":
        move_to_link(cache / "blobs", tmp_path / "big disk" / "blobs")
    elif linked == "snapshot":
        (tmp_path / "mine").symlink_to(snapshot)
        snapshot = tmp_path / "mine"
    save_checkpoint(load_checkpoint(snapshot), tmp_path / "out")
    for name in ("vocab.txt", "1_Pooling/config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
        assert not (tmp_path / "out" / name).is_symlink()


def test_what_only_looks_like_the_hub_cache_is_not_followed(folder: Path, tmp_path: Path):
    snapshot = into_cache(folder, tmp_path / "cache")
    secret = tmp_path / "cache" / "blobs" / "passwd"
    secret.write_text("secret")
    blob = (snapshot / "vocab.txt").resolve()
    (snapshot / "vocab.txt").unlink()
    (snapshot / "vocab.txt").symlink_to(secret)
    with pytest.raises(CheckpointError, match="leads out of its checkpoint"):
        save_checkpoint(load_checkpoint(snapshot), tmp_path / "out")
    (tmp_path / "elsewhere").write_text("secret")
    blob.unlink()
    blob.symlink_to(tmp_path / "elsewhere")
    (snapshot / "vocab.txt").unlink()
    (snapshot / "vocab.txt").symlink_to(blob)
    with pytest.raises(CheckpointError, match="leads out of its checkpoint"):
        save_checkpoint(load_checkpoint(snapshot), tmp_path / "out")


def test_histories_are_not_copied_through_links(tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "recover.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="leads out of its checkpoint"):
        training_files(tmp_path / "net")
