"""The hub that is out of reach: one short try, one line; and nothing is asked of it before the model is known good."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator

import huggingface_hub
import pytest
from huggingface_hub import constants

from lpjax._files import hub as _hub
from lpjax.checkpoint import load_checkpoint
from lpjax.glue.data import DataError, load_stsb

pytestmark = pytest.mark.filterwarnings("default")

PROBED = _hub._probed


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The real probe, as in a fresh process, of a hub on this machine: the requests that it gets."""
    monkeypatch.setattr(_hub, "_probed", PROBED)
    monkeypatch.setattr(_hub, "_known", None)
    monkeypatch.setenv(_hub.TIMEOUT, "0.5")
    for name in ("LPJAX_GLUE_DIR", *_hub._OFFLINE):
        monkeypatch.delenv(name, raising=False)
    return []


@pytest.fixture
def hub(probed: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """It takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                taken.append(connection)
                probed.append(connection.recv(1000).decode().split()[0])

        threading.Thread(target=take, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield probed
        for connection in taken:
            connection.close()


def test_a_hub_that_does_not_answer_is_tried_once(hub, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    began = time.monotonic()
    with caplog.at_level(logging.DEBUG), pytest.raises(ConnectionError) as model:
        load_checkpoint("some/net")
    with pytest.raises(DataError, match="set LPJAX_GLUE_DIR") as data:
        load_stsb()
    assert time.monotonic() - began < 60  # it was half a minute for each, and several lines
    for error in (model, data):
        assert "127.0.0.1" in str(error.value)
        assert "set LPJAX_HUB_TIMEOUT to wait longer" in str(error.value)
        assert "\n" not in str(error.value)
    assert hub == ["HEAD"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING and "Retry" in record.message]
    assert "Retry" not in "".join(capfd.readouterr())
    assert not constants.HF_HUB_OFFLINE  # as before


def test_what_was_fetched_before_is_read_without_the_hub(hub, folder, monkeypatch):
    asked = []

    def snapshot_download(repo: str, *, local_files_only: bool, **_: object) -> str:
        asked.append((repo, local_files_only, constants.HF_HUB_OFFLINE))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_checkpoint("some/net").source == folder
    assert asked[0] == ("some/net", True, True)
    monkeypatch.setattr(_hub, "_probed", lambda: None)  # now it answers
    assert load_checkpoint("some/net").source == folder
    assert asked[-1] == ("some/net", False, False)


@pytest.mark.parametrize("name", _hub._OFFLINE)
def test_offline_is_not_tried_at_all(hub, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(DataError, match=f"{name} is set"):
        load_stsb()
    assert hub == []


def test_an_answer_is_remembered_for_a_while(probed, monkeypatch):
    answers = iter(["no", None])
    monkeypatch.setattr(_hub, "_probe", lambda: next(answers))
    assert [_hub.out_of_reach(), _hub.out_of_reach()] == ["no", "no"]
    monkeypatch.setattr(_hub, "_REMEMBERED", -1.0)
    assert _hub.out_of_reach() is None


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon", "1e9"])
def test_a_timeout_that_is_none(probed, monkeypatch, seconds):
    monkeypatch.setenv(_hub.TIMEOUT, seconds)
    with pytest.raises(ValueError, match=r"LPJAX_HUB_TIMEOUT is .*; expected seconds"):
        _hub.out_of_reach()


@pytest.fixture
def forbidden(probed, monkeypatch) -> None:
    """Nobody may ask the hub."""

    def ask() -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(_hub, "_probed", ask)


def test_text_and_folders_ask_nothing_of_the_hub(forbidden, command, folder, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("a b\nc d e\nf g\nh")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    status, printed, err = command("evaluate", folder, "--baseline", folder, "--text", text, "--json")
    assert status == 0, err
    assert "if a text is given" in printed
    status, _, err = command("evaluate", folder, "--glue", tmp_path)
    assert status == 1
    assert "STS-B/validation.tsv" in err


def test_the_model_comes_before_the_data(forbidden, command, folder, edit_config, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for arguments in (
        ["evaluate", folder, "--task", "sst2"],  # it has no head
        ["calibrate", folder, "c.safetensors", "--task", "sst2", "--layers", "no such layer"],
    ):
        status, _, err = command(*arguments)
        assert status in (1, 2)
        assert "head" in err or "matches no leaf" in err
    edit_config(model_type="gpt2")
    for arguments in (
        ["evaluate", folder],
        ["evaluate", folder, "--task", "sst2"],
        ["finetune", folder, folder.with_name("out"), "--task", "sst2"],
        ["calibrate", folder, folder.with_name("c.safetensors"), "--task", "sst2"],
    ):
        status, _, err = command(*arguments)
        assert status == 1
        assert "gpt2" in err
