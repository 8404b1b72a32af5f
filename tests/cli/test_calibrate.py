"""`lpjax calibrate` and `lpjax compress --calibrate`: from text to a smaller checkpoint, and ways to get it wrong."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import lpjax
from lpjax.weighting import load_calibration

TEXT = "a b c\nd e f g\n\nh i j a\nb\nc d\n"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text(TEXT)
    return path


def test_statistics_of_a_text(command, folder, text, tmp_path):
    out = tmp_path / "found.safetensors"
    status, output, errors = command("calibrate", folder, out, "--text", text, "--json")
    assert status == 0, errors
    result = json.loads(output)
    assert result["texts"] == 5
    assert result["target"] == "embedding"
    assert (result["model"], result["source"]) == (str(folder), str(text))
    assert result["bytes"] == out.stat().st_size
    calibration = load_calibration(out)
    assert calibration.provenance["sha256"] == result["sha256"]
    checkpoint = lpjax.load_checkpoint(folder)
    paths = lpjax.select_paths(checkpoint.params, ["encoder", "embeddings"])
    assert list(calibration.statistics) == paths
    direct = lpjax.calibrate(checkpoint, [line for line in TEXT.splitlines() if line])
    for path in paths:
        assert np.array_equal(calibration.statistics[path].outputs, direct.statistics[path].outputs)


def test_a_table_without_json(command, folder, text, tmp_path):
    status, output, _ = command(
        "calibrate", folder, tmp_path / "found.safetensors", "--text", text, "--forward-only", "--layers", "attention"
    )
    assert status == 0
    assert "5 texts" in output
    assert "inputs, mean, magnitude" in output
    assert "outputs" not in output


def test_python_has_prose_of_its_own(command, folder, tmp_path):
    status, output, _ = command("calibrate", folder, tmp_path / "found.safetensors", "--texts", 7, "--json")
    assert status == 0
    assert json.loads(output)["texts"] == 7


@pytest.mark.parametrize("weighting", ["gauss_newton", "drone", "counts"])
def test_compress_by_a_text_and_by_its_statistics(command, folder, text, tmp_path, weighting):
    options = ["--layers", "encoder,embeddings", "--keep", "0.5", "--weighting", weighting, "--json"]
    status, output, errors = command("compress", folder, tmp_path / "by_text", *options, "--calibrate", text)
    assert status == 0, errors
    assert json.loads(output)["method"] == "svd"
    assert command("calibrate", folder, tmp_path / "found.safetensors", "--text", text)[0] == 0
    source = ["--calibrate", tmp_path / "found.safetensors"]
    assert command("compress", folder, tmp_path / "by_file", *options, *source)[0] == 0
    by_text, by_file = (lpjax.load_checkpoint(tmp_path / name) for name in ("by_text", "by_file"))
    plain = lpjax.compress(
        lpjax.load_checkpoint(folder).params, select=["encoder", "embeddings"], keep=0.5, solver="svd", p=2.0
    ).params
    for path, leaf in lpjax.select.leaves_with_paths(by_text.params):
        if not isinstance(leaf, lpjax.LowRank):
            continue
        other = dict(lpjax.select.leaves_with_paths(by_file.params))[path]
        assert np.allclose(lpjax.densify(leaf), lpjax.densify(other), atol=1e-4)
        unweighted = lpjax.densify(dict(lpjax.select.leaves_with_paths(plain))[path])
        if weighting == "gauss_newton":
            assert np.abs(lpjax.densify(leaf) - unweighted).max() > 1e-3
    record = json.loads((tmp_path / "by_text" / "lpjax_record.json").read_text())
    assert record["steps"][0]["weighting"] == weighting
    assert record["steps"][0]["calibration"]["source"] == str(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "TEXT", "--task", "sst2"], "expected one of them"),
        (["--labels"], "--labels need a --task"),
        (["--split", "train"], "--split and --glue need a --task"),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (["--texts", "0"], "Invalid value for '--texts'"),
        (["--batch-size", "0"], "Invalid value for '--batch-size'"),
        (["--max-length", "2"], "Invalid value for '--max-length'"),
        (["--text", "nowhere.txt"], "nowhere.txt can't be read"),
        (["--task", "sst3"], "sst3"),
        (["--text", "TEXT", "--layers", "nothing"], "matches no leaf"),
    ],
)
def test_misuse_writes_nothing(command, folder, text, tmp_path, arguments, message):
    arguments = [text if argument == "TEXT" else argument for argument in arguments]
    before = {path.name for path in tmp_path.iterdir()}
    status, out, errors = command("calibrate", folder, tmp_path / "found.safetensors", *arguments)
    assert status == 2
    assert message in errors.replace("\n", " ")
    assert not out
    assert {path.name for path in tmp_path.iterdir()} == before


def test_an_old_file_stays_unless_forced(command, folder, text, tmp_path):
    out = tmp_path / "found.safetensors"
    out.write_text("mine")
    status, _, errors = command("calibrate", folder, out, "--text", text)
    assert (status, out.read_text()) == (2, "mine")
    assert "--force" in errors
    assert command("calibrate", folder, out, "--text", text, "--force")[0] == 2  # not a calibration
    assert out.read_text() == "mine"
    out.write_text("")
    assert command("calibrate", folder, out, "--text", text, "--force")[0] == 0
    assert load_calibration(out).texts == 5


def test_compress_refuses_what_it_cannot_weight_by(command, folder, text, tmp_path):
    start = ["compress", folder, tmp_path / "out", "--keep", "0.5"]
    status, _, errors = command(*start, "--calibrate", text, "--weighting", "gaus_newton")
    assert status == 2
    assert "did you mean gauss_newton?" in " ".join(errors.replace("│", " ").split())
    status, _, errors = command(*start, "--weighting", "drone")
    assert status == 2
    assert "--weighting is 'drone', which needs --calibrate" in errors.replace("\n", " ")
    status, _, errors = command("calibrate", folder, tmp_path / "found.bin", "--text", text)
    assert status == 2
    assert "expected a name ending in .safetensors" in errors
    status, _, errors = command(*start, "--calibrate", tmp_path / "missing.txt")
    assert status == 2
    broken = tmp_path / "broken.safetensors"
    broken.write_text("nothing")
    status, _, errors = command(*start, "--calibrate", broken)
    assert status == 2
    assert "safetensors" in errors
    assert command("calibrate", folder, tmp_path / "a.safetensors", "--text", text, "--layers", "attention")[0] == 0
    status, _, errors = command(*start, "--calibrate", tmp_path / "a.safetensors")
    assert status == 2
    assert "no statistics of" in errors
    assert "calibrate with the same --layers" in " ".join(errors.split())
    assert command("calibrate", folder, tmp_path / "b.safetensors", "--text", text, "--forward-only")[0] == 0
    status, _, errors = command(*start, "--calibrate", tmp_path / "b.safetensors")
    assert status == 2
    assert "without --forward-only" in " ".join(errors.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("weighting", "layers", "message"),
    [
        ("drone", "embeddings", "--weighting drone has no weights for embeddings"),
        ("asvd", "embeddings", "expected counts, fwsvd, gauss_newton, or other --layers"),
        ("counts", "encoder", "--weighting counts has no weights for kernels"),
    ],
)
def test_a_weighting_that_has_no_weights_for_the_layers(command, folder, text, tmp_path, weighting, layers, message):
    options = ["--keep", 0.5, "--calibrate", text, "--weighting", weighting]
    status, _, errors = command("compress", folder, tmp_path / "out", "--layers", layers, *options)
    assert status == 2
    assert message in " ".join(errors.split())
    assert "calibrating" not in errors
    assert command("compress", folder, tmp_path / "out", "--layers", "embeddings,encoder", *options)[0] == 0


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (["--rank", 400], "--rank is 400: no layer gets smaller: a pair of rank 400 has"),
        (["--keep", 0.001], "--keep is 0.001: no layer gets smaller: even rank 1 exceeds --keep"),
    ],
)
def test_goals_by_which_nothing_gets_smaller(command, folder, text, tmp_path, goal, message):
    status, _, errors = command("compress", folder, tmp_path / "out", "--layers", "encoder", "--calibrate", text, *goal)
    assert status == 2
    assert message in " ".join(errors.split())
    assert "calibrating" not in errors


def test_the_statistics_of_another_net(command, folder, text, tmp_path):
    statistics = tmp_path / "found.safetensors"
    assert command("calibrate", folder, statistics, "--text", text)[0] == 0
    options = ["--layers", "encoder", "--keep", 0.5, "--calibrate", statistics]
    net = lpjax.load_checkpoint(folder)
    other = jax.tree_util.tree_map_with_path(lambda path, x: x * 1.01 if "query" in str(path) else x, net.params)
    lpjax.save_checkpoint(dataclasses.replace(net, params=other), tmp_path / "tuned")
    status, _, errors = command("compress", tmp_path / "tuned", tmp_path / "out", *options)
    assert status == 2
    errors = " ".join(errors.split())
    assert f"was made from {folder}, whose" in errors
    assert "query/kernel differs from this model's" in errors
    assert not (tmp_path / "out").exists()
    # Pairs are not compared: what is left of the model that was calibrated is compressed by its file.
    assert command("compress", folder, tmp_path / "first", *options)[0] == 0
    options[1] = "embeddings"
    status, _, errors = command("compress", tmp_path / "first", tmp_path / "second", *options)
    assert status == 0, errors
