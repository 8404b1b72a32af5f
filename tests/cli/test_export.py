"""`lpjax export`: what it writes, prints, refuses, and exits with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import lpjax
from lpjax._tree import replace_leaves, walk
from lpjax.checkpoint import load_checkpoint, save_checkpoint
from lpjax.checkpoint._torch import TORCH_FILES
from tests.conftest import GOLDENS, Command
from tests.helpers.checkpoints import assert_same, files
from tests.helpers.nets import quantize

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def run(command: Command) -> Command:
    """Run a command: (exit status, stdout, stderr), the texts on one line each."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status, out, err = command(*arguments)
        return status, " ".join(out.split()), " ".join(err.split())

    return call


@pytest.fixture
def small(run, folder: Path, tmp_path: Path) -> Path:
    """A factored checkpoint."""
    assert run("compress", folder, tmp_path / "small", "--layers", "embeddings,attention", "--rank", 3)[0] == 0
    return tmp_path / "small"


@pytest.mark.parametrize("flags", [[], ["--to", "dense"], ["--to", "flax"]])
def test_factored_checkpoint_becomes_dense(run, small: Path, tmp_path: Path, flags: list[str]):
    out = tmp_path / "out"
    status, printed, err = run("export", small, out, *flags, "--json")
    assert (status, err) == (0, "")
    result = json.loads(printed)
    file = "flax_model.msgpack" if "flax" in flags else "model.safetensors"
    assert result["to"] == ("flax" if "flax" in flags else "dense")
    assert result["bytes_after"] == (out / file).stat().st_size
    assert result["bytes_before"] == (small / "lpjax.safetensors").stat().st_size
    assert result["multiplied"] == json.loads((small / "config.json").read_text())["lpjax"]["ranks"]
    assert files(out).keys() == files(small).keys() - {"lpjax.safetensors", "lpjax_record.json", *TORCH_FILES} | {
        file,
        "lpjax_export.json",
    }
    assert "lpjax" not in json.loads((out / "config.json").read_text())
    assert not any(isinstance(leaf, lpjax.LowRank) for _, leaf in walk(load_checkpoint(out).params))


def test_dense_checkpoint_goes_from_format_to_format(run, folder: Path, tmp_path: Path):
    status, printed, _ = run("export", folder, tmp_path / "flax", "--to", "flax")
    assert status == 0
    assert "0 factored weights multiplied out" in printed
    assert "(flax)" in printed
    assert run("export", tmp_path / "flax", tmp_path / "torch")[0] == 0
    assert_same(load_checkpoint(tmp_path / "torch").params, load_checkpoint(folder).params)


def test_factored_and_quantized_weights_are_counted(run, tmp_path: Path):
    net, out = load_checkpoint(GOLDENS / "bert_base"), tmp_path / "out"
    params = replace_leaves(quantize(net.params), {"pooler/dense/kernel": lpjax.LowRank(np.eye(12, 3), np.eye(3, 12))})
    save_checkpoint(dataclasses.replace(net, params=params), tmp_path / "small")
    codes = [path for path, leaf in walk(params) if isinstance(leaf, lpjax.Quantized)]
    for to, words in (("dense", "multiplied out, {} quantized weights expanded"),
                      ("stablehlo", "kept as factors, {} quantized weights as codes")):  # fmt: skip
        status, printed, err = run("export", tmp_path / "small", out, "--to", to, "--force")
        assert status == 0, err
        assert f"1 factored weights {words.format(len(codes))}" in printed
    status, printed, _ = run("export", tmp_path / "small", out, "--to", "stablehlo", "--force", "--json")
    assert sorted(json.loads(printed)["codes"]) == sorted(codes)


def test_out_is_replaced_only_when_told_to(run, folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert run("export", folder, out)[0] == 0
    before = files(out)
    status, printed, err = run("export", folder, out, "--to", "flax")
    assert (status, printed) == (2, "")
    assert "exists; choose another folder" in err
    assert files(out) == before
    assert run("export", folder, out, "--to", "flax", "--force")[0] == 0
    assert "model.safetensors" not in files(out)
    status, _, err = run("export", folder, folder, "--force")
    assert status == 2
    assert "overlaps" in err
    status, _, err = run("export", tmp_path / "nowhere", tmp_path / "new")
    assert status == 2
    assert "there is no folder" in err
    assert run("export", folder, tmp_path / "new", "--pickle")[0] == 2
    assert not (tmp_path / "new").exists()


def test_broken_checkpoint_is_exit_1(run, folder: Path, tmp_path: Path):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-5])
    before = sorted(tmp_path.rglob("*"))
    status, printed, err = run("export", folder, tmp_path / "out")
    assert (status, printed) == (1, "")
    assert "model.safetensors is not a whole safetensors file" in err
    assert sorted(tmp_path.rglob("*")) == before
