"""What may be written where: never a checkpoint's own file, another kind of file, or a folder in the model's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from examples.demo import DemoError, check_out
from lpjax._files.replacing import overlap
from lpjax.checkpoint import load_checkpoint, save_checkpoint
from lpjax.compression import save_plan
from lpjax.compression.plan import Choice, Plan
from lpjax.weighting import save_calibration
from lpjax.weighting.statistics import Calibration, Statistics
from tests.conftest import Command
from tests.helpers.checkpoints import files

pytestmark = pytest.mark.filterwarnings("default")

OUTPUTS = {
    "calibration": (["calibrate", "MODEL", "FILE"], "c.safetensors"),
    "plan": (["compress", "MODEL", "OUT", "--keep", "0.5", "--plan-out", "FILE"], "plan.json"),
    "break-even file": (["bench", "MODEL", "--out", "FILE"], "bench.json"),
    "PNG picture": (["inspect", "MODEL", "--plot", "FILE"], "spectra.png"),
    "page of lpjax report": (["report", "MODEL", "--out", "FILE"], "page.html"),
}


def attempt(command: Command, kind: str, folder: Path, file: Path) -> tuple[int, str]:
    places = {"MODEL": folder, "OUT": folder.with_name("out"), "FILE": file}
    status, printed, err = command(*(places.get(part, part) for part in OUTPUTS[kind][0]), "--force")
    assert printed == ""
    return status, " ".join(err.split())


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_file_of_another_kind_is_kept(command: Command, folder, tmp_path, kind):
    name = OUTPUTS[kind][1]
    path = tmp_path / name
    contents = [
        b"mine",
        b"{}",
        (folder / "model.safetensors").read_bytes(),
        b'{"schema": "other/1"}',
        b"<!doctype html>",
    ]
    for content in contents:
        path.write_bytes(content)
        status, err = attempt(command, kind, folder, path)
        assert (status, path.read_bytes()) == (2, content)
        assert f"is not a {kind}" in err
    link = tmp_path / f"link_{name}"
    link.symlink_to(path)
    assert attempt(command, kind, folder, link)[0] == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "calibration",
            ["model.safetensors", "MODEL.safetensors", "model-1.safetensors", "lpjax.safetensors"],
        ),
        ("plan", ["config.json", "tokenizer.json", "recover.json", "lpjax_record.json", "vocab.txt", "new.bin"]),
        ("break-even file", ["config.json", "Config.json", "tokenizer_config.json", "modules.json", "LICENSE"]),
    ],
)
def test_a_file_of_a_checkpoint_is_neither_replaced_nor_made(command: Command, folder, kind, names):
    before = files(folder)
    for name in names:
        status, err = attempt(command, kind, folder, folder / name)
        assert status == 2, name
        assert "of the checkpoint in" in err or "is not a" in err, name
        assert files(folder) == before


def test_what_python_writes_over_is_of_the_same_kind(folder, tmp_path):
    statistics = {"a/kernel": Statistics(1, counts=np.ones(2, np.float32))}
    calibration, plan = Calibration(statistics, "", 1, 1, 0), Plan({"a/kernel": Choice(1)})
    save_calibration(calibration, tmp_path / "c")
    save_calibration(calibration, tmp_path / "c", overwrite=True)
    save_plan(plan, tmp_path / "p")
    save_plan(plan, tmp_path / "p", overwrite=True)
    for path in (folder / "model.safetensors", folder / "config.json", folder / "vocab.txt", tmp_path / "p"):
        with pytest.raises(FileExistsError):
            save_calibration(calibration, path, overwrite=True)
    with pytest.raises(FileExistsError, match="is not a plan"):
        save_plan(plan, tmp_path / "c", overwrite=True)
    (tmp_path / "empty").touch()
    save_plan(plan, tmp_path / "empty", overwrite=True)


@pytest.fixture
def places(folder: Path, tmp_path: Path) -> dict[str, Path]:
    """Folders that overlap the model's, by whatever name, and are not there yet or are checkpoints."""
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "outer").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(folder / name, tmp_path / "outer" / name)
    shutil.copytree(folder, tmp_path / "outer" / "inner")
    return {
        "inside": folder / "small",
        "deep inside": folder / "a" / "b",
        "through a link": tmp_path / "link" / "small",
        "through ..": folder / "1_Pooling" / ".." / "small",
        "the link": tmp_path / "link",
    }


@pytest.mark.parametrize(
    "command_line",
    [
        ["compress", "--keep", "0.5"],
        ["export"],
        ["export", "--to", "onnx"],
        ["quantize"],
        ["recover"],
        ["finetune", "--task", "sst2"],
    ],
)
def test_out_in_the_model_is_refused_before_any_work(command: Command, folder, places, command_line):
    before = files(folder)
    name, *options = command_line
    for what, out in places.items():
        status, _, err = command(name, folder, out, *options, "--force")
        assert status == 2, (what, err)
        assert "overlaps" in " ".join(err.split()), what
        assert files(folder) == before, what


def test_the_model_in_out_is_refused(command: Command, folder, places, tmp_path):
    outer = tmp_path / "outer"
    status, _, err = command("compress", outer / "inner", outer, "--keep", 0.5, "--force")
    assert status == 2
    assert "overlaps" in " ".join(err.split())
    assert (outer / "inner" / "config.json").exists()
    net = load_checkpoint(folder)
    with pytest.raises(FileExistsError, match="overlaps"):
        save_checkpoint(net, places["inside"])
    with pytest.raises(DemoError, match="overlaps"):
        check_out(places["inside"], folder)
    with pytest.raises(DemoError, match="overlaps"):
        check_out(folder.parent, folder)


def test_overlap_is_of_folders_not_of_names(tmp_path):
    for name in ("a", "a/b", "ab", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "c" / "d").symlink_to(tmp_path / "a")
    assert overlap(tmp_path / "a", tmp_path / "a" / "b")
    assert overlap(tmp_path / "a" / "b" / "new", tmp_path / "a")
    assert overlap(tmp_path / "c" / "d" / "b", tmp_path / "a")
    assert not overlap(tmp_path / "a", tmp_path / "ab")
    assert not overlap(tmp_path / "c", tmp_path / "a")
    assert not overlap(tmp_path / "new", tmp_path / "new2")
