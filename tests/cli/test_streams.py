"""stdout that is not UTF-8, that nobody reads, that is full; and faults of lpjax itself."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from lpjax import cli

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def through(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command whose stdout and stderr have an encoding: (status, stdout, stderr), as bytes."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("LPJAX_GLUE_DIR", raising=False)

    def call(encoding: str, *arguments: object) -> tuple[int, bytes, bytes]:
        buffers = io.BytesIO(), io.BytesIO()
        streams = [io.TextIOWrapper(buffer, encoding) for buffer in buffers]
        monkeypatch.setattr(sys, "argv", ["lpjax", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        try:
            cli.main()
            status: object = 0
        except SystemExit as stop:
            status = stop.code or 0
        assert (sys.stdout, sys.stderr) == tuple(streams)
        monkeypatch.undo()
        assert isinstance(status, int)
        return status, buffers[0].getvalue(), buffers[1].getvalue()

    return call


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_letters_that_an_encoding_lacks_are_replaced(through, folder, tmp_path, encoding):
    status, printed, err = through(encoding, "compress", folder, tmp_path / "out", "--keep", 0.6, "--method", "svd")
    assert status == 0, err
    text = printed.decode(encoding)
    assert ("→" in text) == (encoding == "utf-8")
    assert "saved in" in text
    assert ("┃" in text) == (encoding == "utf-8")  # boxes are drawn with what there is
    assert "? embeddings" not in text.replace("│", "?") or encoding == "utf-8"
    status, printed, err = through(encoding, "inspect", folder)
    assert status == 0, err
    odd = tmp_path / "sm\u00e4ll\u2192"
    shutil.copytree(tmp_path / "out", odd)
    status, printed, err = through(encoding, "export", odd, tmp_path / "dense\u2192", "--json")
    assert status == 0, err
    assert json.loads(printed)["model"] == str(odd)
    status, printed, err = through(encoding, "quantize", odd, tmp_path / "round\u2192")
    assert status == 0, err
    assert "saved in" in printed.decode(encoding)
    status, printed, err = through(encoding, "report", odd, "--out", tmp_path / "p\u00e4ge\u2192.html")
    assert status == 0, err
    assert printed
    status, _, err = through(encoding, "inspect", tmp_path / "n\u2192wh\u00e4re")
    assert status == 2
    assert b"there is no folder" in err


def test_every_help_is_printed_in_ascii(through):
    for command in (
        "inspect",
        "compress",
        "calibrate",
        "bench",
        "export",
        "evaluate",
        "finetune",
        "recover",
        "quantize",
        "report",
    ):
        status, printed, err = through("ascii", command, "--help")
        assert status == 0, err
        assert b"Example:" in printed


def start(arguments: list[object], **options: object) -> subprocess.Popen[bytes]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "lpjax", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_a_reader_that_left_and_a_disk_that_is_full(folder, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does once it has what it wants
    left = start(["compress", folder, tmp_path / "out", "--keep", 0.6, "--method", "svd"], stdout=writing)
    os.close(writing)
    full = None
    if Path("/dev/full").exists():
        with Path("/dev/full").open("wb") as device:
            full = start(["--version"], stdout=device)
    closed = subprocess.Popen(["sh", "-c", f"{sys.executable} -m lpjax --version >&-"], stderr=subprocess.PIPE)
    _, err = left.communicate(timeout=300)
    assert left.returncode == 0, err
    assert b"Broken" not in err
    assert b"Traceback" not in err
    assert (tmp_path / "out" / "lpjax.safetensors").exists()
    if full is not None:
        _, err = full.communicate(timeout=300)
        assert full.returncode == 1
        assert err.startswith(b"error: ")
        assert b"No space left" in err
        assert err.count(b"\n") == 1
    _, err = closed.communicate(timeout=300)
    assert (closed.returncode, err) == (0, b"")


@pytest.mark.parametrize(
    "fault",
    [ZeroDivisionError("division by zero"), RecursionError("too deep"), KeyError("key"), OverflowError("int too large"),
     RuntimeError("first line\nsecond line"), AssertionError(), FloatingPointError("overflow"), UndefinedError("key")],
    ids=lambda fault: type(fault).__name__,
)  # fmt: skip
def test_a_fault_inside_is_one_line_that_says_how_to_report_it(through, folder, monkeypatch, fault):
    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("lpjax.inspection.inspect_params", fail)
    status, printed, err = through("utf-8", "inspect", folder)
    assert (status, printed) == (1, b"")
    (line,) = [line for line in err.decode().splitlines() if line.startswith("error")]
    assert line.startswith(f"error: {cli.INTERNAL}, {type(fault).__name__}")
    assert "LPJAX_TRACEBACK=1" in line
    assert "second line" not in line


def test_the_traceback_of_a_fault_can_be_had(through, folder, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("lpjax.inspection.inspect_params", fail)
    monkeypatch.setenv("LPJAX_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        through("utf-8", "inspect", folder)


def test_names_in_messages_cannot_drive_a_terminal(through, tmp_path):
    status, _, err = through("utf-8", "inspect", tmp_path / "a\x1b[2Jb")
    assert status == 2
    assert b"\x1b" not in err
    assert b"a\\x1b[2Jb" in err
