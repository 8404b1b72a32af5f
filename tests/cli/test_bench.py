"""`lpjax bench`, and what `lpjax compress` makes of its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lpjax._files.json import RecordError
from lpjax.compression import read_break_even
from lpjax.compression.record import RECORD, read_record
from tests.conftest import Command

pytestmark = pytest.mark.filterwarnings("default")


def test_table_and_file(command: Command, folder: Path, tmp_path: Path):
    out = tmp_path / "break_even.json"
    status, printed, err = command("bench", folder, "--tokens", 8, "--out", out)
    assert status == 0, err
    assert "kernel" in printed
    assert "table" in printed
    document = json.loads(out.read_text())
    assert document["tokens"] == 8
    assert document["machine"]["cores"] >= 1
    break_even = read_break_even(out)
    for timing, entry in zip(break_even.timings, document["timings"], strict=True):
        assert entry["break_even_rank"] == timing.rank
        assert entry["shape"] == list(timing.shape)
    before = out.read_bytes()
    status, _, err = command("bench", folder, "--out", out)
    assert status == 2
    assert "exists" in err
    assert out.read_bytes() == before
    status, printed, _ = command(
        "bench", folder, "--tokens", 8, "--layers", "attention", "--out", out, "--force", "--json"
    )
    assert status == 0
    assert json.loads(printed) == json.loads(out.read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", 0], "Invalid value for '--tokens'"),
        (["--layers", "nothing_like_it"], "matches no leaf"),
        (["--out", "no/such/folder/file.json"], "there is no folder"),
    ],
)
def test_misuse(command: Command, folder: Path, arguments, message: str):
    status, _, err = command("bench", folder, *arguments)
    assert status == 2
    assert message in " ".join(err.split())


def test_compress_says_which_layers_are_slower(command: Command, folder: Path, tmp_path: Path):
    out = tmp_path / "break_even.json"
    assert command("bench", folder, "--tokens", 8, "--layers", "attention", "--out", out)[0] == 0
    document = json.loads(out.read_text())
    for timing in document["timings"]:  # so that no clock has a say
        timing["ratios"] = [1.5] * len(timing["ranks"])
        timing["dense_seconds"] = 0.002
    out.write_text(json.dumps(document))
    arguments = ["--layers", "attention", "--rank", 2, "--method", "svd", "--break-even", out]
    status, printed, err = command("compress", folder, tmp_path / "small", *arguments)
    assert status == 0, err
    text = " ".join(printed.split())
    layers = read_record(tmp_path / "small" / RECORD).layers
    assert layers
    assert all(layer.time_ratio == 1.5 for _, layer in layers.values())
    assert f"{len(layers)} of {len(layers)} layers take longer than dense" in text
    assert f"{len(layers)}.00 ms in all for 8 tokens" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "schema"),
        ({"tokens": 0}, "tokens"),
        ({"timings": 3}, "timings"),
        ({"timings": [{}]}, "timings[0].shape"),
        ({"shape": [3]}, "shape"),
        ({"ranks": []}, "ranks"),
        ({"ranks": [2, 2]}, "ranks"),
        ({"ratios": [1.0]}, "ratios"),
        ({"ratios": [-1.0, 2.0]}, "ratios"),
        ({"ratios": [None, 2.0]}, "ratios"),
        ({"table": "yes"}, "table"),
        ({"dense_seconds": None}, "dense_seconds"),
    ],
)
def test_damaged_files_are_refused_by_key(command: Command, folder: Path, tmp_path: Path, change, message: str):
    timing = {"shape": [8, 6], "table": False, "dense_seconds": 1.0, "ranks": [1, 2], "ratios": [0.5, 0.7]}
    document = {"schema": "lpjax-break-even/1", "tokens": 4, "timings": [timing]}
    (document if change.keys() <= document.keys() else timing).update(change)
    path = tmp_path / "file.json"
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError) as error:
        read_break_even(path)
    assert message in str(error.value)
    status, _, err = command("compress", folder, tmp_path / "small", "--rank", 2, "--break-even", path)
    assert status == 2
    assert "Traceback" not in err
    assert not (tmp_path / "small").exists()
