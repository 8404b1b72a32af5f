"""Files and folders that are written whole or not at all: what killed runs leave, and what live ones hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lpjax._files import replacing as _replacing
from lpjax._files.replacing import check_parent, check_space, claimed, put_back, replacing, replacing_folder
from lpjax.checkpoint import check_target, load_checkpoint, save_checkpoint


@pytest.fixture(params=["exchange", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Systems that can exchange two folders in one step, and others."""
    if request.param != "exchange":
        monkeypatch.setattr(_replacing, "_exchange", lambda *_: False)
    return request.param


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_folder(target: Path, text: str, overwrite: bool = False) -> None:
    with replacing_folder(target, overwrite) as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "file").write_text(text)


def leave(target: Path, **parts: str) -> Path:
    """What a killed run leaves: its folder, with a file in each of the parts that it had."""
    left = target.with_name(f".{target.name}.0123abcd.new")
    for part, text in parts.items():
        (left / part / "inner").mkdir(parents=True)
        (left / part / "inner" / "file").write_text(text)
    (left / "lock").touch()
    return left


@pytest.mark.usefixtures("swap")
def test_a_folder_is_replaced_whole(tmp_path: Path):
    out = tmp_path / "out"
    write_folder(out, "one")
    write_folder(out, "two", overwrite=True)
    with pytest.raises(FileNotFoundError), replacing_folder(out, True) as staging:
        (staging / "no folder" / "half").touch()
    with pytest.raises(OSError), replacing_folder(out, False) as staging:
        (staging / "other").touch()
    assert contents(tmp_path) == {"out/inner/file": "two"}


def test_linux_and_macos_exchange_folders(tmp_path: Path):
    if sys.platform not in ("linux", "darwin"):
        pytest.skip("there is no such call")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert _replacing._exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one" / "other").exists()
    assert not _replacing._exchange(tmp_path / "one", tmp_path / "gone")


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path):
    out = tmp_path / "out"
    leave(out, new="half")
    (tmp_path / ".out.1a2b.old").mkdir()  # of an earlier version
    (tmp_path / ".out.4711.new").touch()
    others = [".other.0123abcd.new", ".out.mine.new", ".out.0123abcd.txt"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.00000000.new").symlink_to(tmp_path / ".other.0123abcd.new")
    write_folder(out, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, ".out.00000000.new", "out"])
    with replacing(tmp_path / "other") as staging:
        staging.write_text("text")
    assert not (tmp_path / others[0]).exists()
    assert (tmp_path / ".out.00000000.new").is_symlink()


def test_a_live_run_keeps_its_files(tmp_path: Path):
    """Files of this process and of another, which then dies."""
    out = tmp_path / "out"
    code = (
        "import sys, pathlib; from lpjax._files.replacing import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as staging:\n staging.touch(); print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    theirs = list(tmp_path.iterdir())
    with replacing(out) as staging:
        staging.write_text("mine")
        write_folder(tmp_path / "beside", "text")
        with replacing(out) as second:
            second.write_text("first")
        assert out.read_text() == "first"
        assert staging.exists()
        assert all(path.exists() for path in theirs)
    assert out.read_text() == "mine"
    process.kill()
    process.communicate()
    assert theirs[0].exists()
    with replacing(out) as staging:
        staging.write_text("again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "out"]


@pytest.mark.parametrize("earlier", [False, True], ids=["", "of an earlier version"])
def test_an_old_folder_is_put_back(tmp_path: Path, earlier: bool):
    out = tmp_path / "out"
    left = leave(out, old="old", new="new")
    if earlier:
        (left / "old").rename(tmp_path / ".out.0123abcd.old")
    (tmp_path / "link").symlink_to(out)
    put_back(tmp_path / "link")
    assert contents(out) == {"inner/file": "old"}
    write_folder(out, "newer", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


def test_neither_a_part_nor_what_a_live_run_holds_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    left = leave(out, old="old")
    lock = _replacing._locked(left)
    put_back(out)
    assert not out.exists()
    os.close(lock)
    # Killed while it removes the old folder, after which somebody removes the new one.
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        write_folder(tmp_path / "out", "new", overwrite=True)
    out.rename(tmp_path / "away")
    put_back(out)
    assert not out.exists()


@pytest.mark.parametrize("command", ["load", "save"])
def test_a_checkpoint_is_put_back_by_whoever_needs_it(folder: Path, tmp_path: Path, command: str):
    left = tmp_path / ".dense.0123abcd.new"
    left.mkdir()
    folder.rename(left / "old")
    if command == "load":
        load_checkpoint(folder)
    else:
        with pytest.raises(FileExistsError, match="exists; choose another folder"):
            check_target(folder, None, False)
    assert (folder / "config.json").exists()


def test_links_stay(tmp_path: Path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as staging:
        staging.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_what_cannot_be_replaced_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull), folder):
        with pytest.raises(FileExistsError, match="is not a regular file"), replacing(path):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is not a folder"):
        check_parent(tmp_path / "file" / "deep" / "out")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: path != tmp_path)
        with pytest.raises(PermissionError, match=f"{tmp_path} may not be written to"):
            check_target(tmp_path / "deep" / "out", None, False)
    net = load_checkpoint(folder)
    save_checkpoint(net, tmp_path / "saved")
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "saved")
    with pytest.raises(FileExistsError, match="saved is a mount point"):
        save_checkpoint(net, tmp_path / "saved", overwrite=True)


def test_space_is_looked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_000_000))
    check_space(tmp_path / "deep" / "out", 3_000_000)
    with pytest.raises(OSError, match=r"has 3.0 MB of free space, and this run needs 4.5 MB"):
        check_space(tmp_path / "deep" / "out", 4_500_000)


def test_one_run_at_a_time_claims_a_file(tmp_path: Path):
    code = (
        "import sys, pathlib; from lpjax._files.replacing import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    out = tmp_path / "deep" / "out"
    process = subprocess.Popen([sys.executable, "-c", code, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    with pytest.raises(FileExistsError, match="another run is writing"), claimed(out):
        pass
    process.kill()
    process.communicate()
    with claimed(out), claimed(out), replacing(out) as staging:
        staging.write_text("mine")
    assert contents(tmp_path) == {"deep/out": "mine"}


def test_without_locks_nothing_of_others_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_replacing, "fcntl", None)
    left = leave(tmp_path / "out", old="old")
    put_back(tmp_path / "out")
    with claimed(tmp_path / "out"):
        write_folder(tmp_path / "out", "new", overwrite=True)
    assert contents(tmp_path) == {
        "out/inner/file": "new",
        f"{left.name}/old/inner/file": "old",
        f"{left.name}/lock": "",
    }
