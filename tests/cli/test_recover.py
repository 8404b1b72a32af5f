"""`lpjax recover`: from a compressed folder to a better one, and ways to get it wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil

import jax
import numpy as np
import pytest

import lpjax

OPTIONS = ["--lr", 3e-3, "--epochs", 2, "--batch-size", 4]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("\n".join(" ".join("abcdefghij"[i % 7 : i % 7 + 1 + i % 4]) + " j" * (i // 7) for i in range(28)))
    return path


@pytest.fixture
def smaller(command, folder, tmp_path):
    assert command("compress", folder, tmp_path / "smaller", "--layers", "encoder", "--keep", 0.4)[0] == 0
    return tmp_path / "smaller"


def test_a_compressed_net_recovers(command, folder, smaller, text, tmp_path):
    out = tmp_path / "recovered"
    status, output, errors = command("recover", smaller, out, "--text", text, *OPTIONS, "--json")
    assert status == 0, errors
    result = json.loads(output)
    assert result["baseline"] == str(folder)
    assert result["best"]["divergence"] < result["curve"][0]["divergence"]
    assert json.loads((out / "recover.json").read_text())["texts"] == result["texts"]
    before, after = (lpjax.load_checkpoint(path) for path in (smaller, out))
    assert [leaf.shape for _, leaf in lpjax.select.leaves_with_paths(before.params)] == [
        leaf.shape for _, leaf in lpjax.select.leaves_with_paths(after.params)
    ]
    dense = lpjax.load_checkpoint(folder)
    measure = lpjax.Divergence(dense, text.read_text().splitlines())
    assert measure(after.params) < measure(before.params)
    assert command("report", out, "--out", tmp_path / "page.html")[0] == 0
    assert "Trained after it was compressed, without labels" in (tmp_path / "page.html").read_text()


def test_a_full_disk_at_the_end_loses_nothing(command, smaller, text, tmp_path, monkeypatch):
    out = tmp_path / "recovered"
    snapshot = tmp_path / "recovered.recover.safetensors"
    arguments = ["recover", smaller, out, "--text", text, *OPTIONS]
    assert command(*arguments)[0] == 0
    assert not snapshot.exists()
    expected = lpjax.load_checkpoint(out).params
    shutil.rmtree(out)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lpjax.checkpoint._save.write_tensors", full)
        status, _, errors = command(*arguments)
    message = " ".join(errors.split())
    assert status == 1
    assert (
        f"No space left on device; the trained weights are in {snapshot}: fix the cause and continue with --resume"
        in message
    )
    assert not out.exists()
    status, _, errors = command(*arguments)
    assert status == 2
    assert "--resume continues it, --force starts over" in errors
    status, _, errors = command(*arguments, "--resume", "--seed", 1)
    assert status == 1
    assert "seed was 0 and is 1" in " ".join(errors.split())
    status, _, errors = command(*arguments, "--resume")
    assert status == 0, errors
    assert "14/14" not in errors  # all was done but to save it
    params = lpjax.load_checkpoint(out).params
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(params), strict=True))
    assert sorted(path.name for path in tmp_path.iterdir() if "recovered" in path.name) == ["recovered"]


def test_snapshots_that_cannot_be_written_are_told(command, smaller, text, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lpjax.training.fit.save_state", full)
    status, _, errors = command("recover", smaller, tmp_path / "out", "--text", text, *OPTIONS)
    assert status == 0, errors
    assert "warning: no snapshot of update 14 could be written" in " ".join(errors.split())


@pytest.mark.slow
def test_a_net_saved_without_a_record(command, folder, text, tmp_path):
    """From Python, with nothing said of how it was made."""
    dense = lpjax.load_checkpoint(folder)
    params = lpjax.compress(dense.params, select="encoder", keep=0.5).params
    lpjax.save_checkpoint(dataclasses.replace(dense, params=params), tmp_path / "bare")
    out = tmp_path / "recovered"
    options = ["--text", text, "--baseline", folder, *OPTIONS]
    status, _, errors = command("recover", tmp_path / "bare", out, *options)
    assert status == 0, errors
    assert not (out / "lpjax_record.json").exists()
    assert command("report", out, "--baseline", folder, "--out", tmp_path / "page.html")[0] == 0
    assert command("compress", out, tmp_path / "more", "--keep", 0.5, "--layers", "embeddings")[0] == 0
    assert command("report", tmp_path / "more", "--baseline", folder, "--out", tmp_path / "more.html")[0] == 0


@pytest.mark.slow
def test_recovered_again_and_compressed_further(command, folder, smaller, text, tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert command("recover", smaller, first, "--text", text, *OPTIONS)[0] == 0
    status, output, errors = command("recover", first, second, "--text", text, *OPTIONS, "--json")
    assert status == 0, errors
    result = json.loads(output)
    assert result["earlier"] == json.loads((first / "recover.json").read_text())
    status, _, errors = command("compress", second, third, "--layers", "embeddings", "--keep", 0.5)
    assert status == 0, errors
    assert command("report", third, "--baseline", folder, "--out", tmp_path / "page.html")[0] == 0
    assert "(recover.json, the last of 2 runs)" in (tmp_path / "page.html").read_text()


def test_the_dense_net_has_moved(command, folder, smaller, text, tmp_path):
    folder.rename(tmp_path / "elsewhere")
    status, _, errors = command("recover", smaller, tmp_path / "out", "--text", text)
    assert status == 2
    errors = " ".join(errors.split())
    assert "records that as its dense model; pass its current location as --baseline" in errors
    options = ["--text", text, "--baseline", tmp_path / "elsewhere", *OPTIONS]
    assert command("recover", smaller, tmp_path / "out", *options)[0] == 0


def test_a_baseline_that_is_factored(command, smaller, text, tmp_path):
    status, _, errors = command("recover", smaller, tmp_path / "out", "--text", text, "--baseline", smaller)
    assert status == 2
    assert "is itself factored" in errors


def test_a_table_without_json(command, folder, smaller, text, tmp_path):
    status, output, _ = command(
        "recover", smaller, tmp_path / "out", "--text", text, "--texts", 12, "--baseline", folder
    )
    assert status == 0
    assert "11 texts, 1 held out" in output
    assert "divergence" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "Invalid value for '--epochs'"),
        (["--lr", "-1"], "--lr is -1"),
        (["--text", "TEXT", "--task", "sst2"], "expected one of them"),
        (["--split", "train"], "--split and --glue need a --task"),
        (["--texts", "1"], "Invalid value for '--texts'"),
        (["--baseline", "./nowhere"], "there is no folder"),
        (["--text", "nowhere.txt"], "nowhere.txt can't be read"),
    ],
)
def test_misuse_writes_nothing(command, smaller, text, tmp_path, arguments, message):
    before = {path.name for path in tmp_path.iterdir()}
    status, out, errors = command(
        "recover", smaller, tmp_path / "out", *(text if argument == "TEXT" else argument for argument in arguments)
    )
    assert status == 2
    assert message in errors.replace("\n", " ")
    assert not out
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_dense_net_has_nothing_to_recover(command, folder, text, tmp_path):
    status, _, errors = command("recover", folder, tmp_path / "out", "--text", text)
    assert status == 2
    assert "is a dense checkpoint" in errors
