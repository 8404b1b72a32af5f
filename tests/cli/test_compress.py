"""The command line: what it prints, writes, refuses, and exits with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import lpjax
from lpjax._tree import leaves_with_paths
from tests.conftest import GOLDENS, Command
from tests.helpers.goldens import load_golden
from tests.helpers.ranges import below

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Sentences in the words of the tiny vocabulary."""
    path = tmp_path / "text.txt"
    path.write_text("\n".join(["a b", "c d e", "ab cd", "f", "g h i j", "abc", "j i h"]))
    return path


@pytest.fixture
def run(command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command without any GLUE folder: (exit status, stdout, stderr)."""
    monkeypatch.delenv("LPJAX_GLUE_DIR", raising=False)
    return command


def test_compress_writes_what_it_says(run, folder, tmp_path):
    out = tmp_path / "smaller"
    status, printed, _ = run("compress", folder, out, "--layers", "embeddings,encoder", "--keep", 0.6, "--json")
    assert status == 0
    result = json.loads(printed)
    assert result["bytes_after"] == (out / "lpjax.safetensors").stat().st_size
    assert result["bytes_before"] == (folder / "model.safetensors").stat().st_size
    reloaded = lpjax.load_checkpoint(out)
    pairs = {path: leaf for path, leaf in leaves_with_paths(reloaded.params) if hasattr(leaf, "rank")}
    assert {layer["path"]: layer["rank"] for layer in result["layers"]} == {k: v.rank for k, v in pairs.items()}
    assert result["parameters_after"] == sum(leaf.size for _, leaf in leaves_with_paths(reloaded.params))
    block = json.loads((out / "config.json").read_text())["lpjax"]
    assert (block["method"], block["p"], block["version"]) == ("lewis", 1.0, lpjax.__version__)


def test_compress_prints_a_table(run, folder, tmp_path):
    status, printed, err = run("compress", folder, tmp_path / "out", "--keep", 0.5, "--method", "irls_rows")
    assert status == 0
    assert "embeddings/word" in printed
    assert "irls_rows, p = 1" in printed
    assert "1/1" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep", "0"], "--keep is 0"),
        (["--keep", "1.5"], "--keep is 1.5"),
        (["--keep", "0.5", "--rank", "2"], "exactly one of --size, --keep, --rank, --budget, --time and --plan"),
        ([], "exactly one of --size, --keep, --rank, --budget, --time and --plan"),
        (["--rank", "0"], f"Invalid value for '--rank': {below(0, 1)}"),
        (["--keep", "0.5", "--method", "irls_rows", "--p", "0.5"], "--p is 0.5"),
        (["--keep", "0.5", "--method", "admm"], "did you mean admm_entries"),
        (["--keep", "0.5", "--num-iters", "-1"], "Invalid value for '--num-iters'"),
        (["--keep", "0.5", "--tol", "nan"], "--tol is nan"),
        (["--keep", "0.5", "--layers", "querry"], "matches no leaf; nearest: "),
        (["--keep", "0.5", "--layers", "bias"], "not floating matrices"),
        (["--keep", "0.5", "--layers", "("], "not a valid regular expression"),
        (["--keep", "half"], "--keep"),
        (["--kep", "0.5"], "--kep"),
    ],
)
def test_misuse_is_exit_2_and_writes_nothing(run, folder, tmp_path, options, words):
    before = sorted(tmp_path.iterdir())
    status, printed, err = run("compress", folder, tmp_path / "out", *options)
    assert status == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert printed == ""
    assert sorted(tmp_path.iterdir()) == before


def test_places_that_are_not_there_or_taken(run, folder, tmp_path):
    status, _, err = run("compress", tmp_path / "nowhere", tmp_path / "out", "--keep", 0.5)
    assert (status, "there is no folder" in " ".join(err.split())) == (2, True)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious").write_text("mine")
    for force, code, words in (([], 2, "exists; choose another"), (["--force"], 2, "not a checkpoint")):
        status, _, err = run("compress", folder, taken, "--keep", 0.5, *force)
        assert (status, words in " ".join(err.split())) == (code, True)
        assert [path.name for path in taken.iterdir()] == ["precious"]


def test_force_replaces_a_checkpoint_only(run, folder, tmp_path):
    out = tmp_path / "out"
    assert run("compress", folder, out, "--keep", 0.7)[0] == 0
    first = (out / "lpjax.safetensors").stat().st_size
    assert run("compress", folder, out, "--keep", 0.4)[0] == 2
    assert run("compress", folder, out, "--keep", 0.4, "--force")[0] == 0
    assert (out / "lpjax.safetensors").stat().st_size < first
    status, _, err = run("compress", out, out, "--keep", 0.3, "--force")
    assert status == 2
    assert "overlaps" in err


def test_commas_inside_a_regular_expression(run, folder, tmp_path):
    out = tmp_path / "out"
    pattern = r"layer/\d{1,2}/.*query/kernel,embeddings"
    assert run("compress", folder, out, "--keep", 0.6, "--layers", pattern)[0] == 0
    ranks = json.loads((out / "config.json").read_text())["lpjax"]["ranks"]
    assert [path.split("/")[-2] for path in ranks] == ["word_embeddings", "query", "query"]


def test_a_second_run_adds_to_the_first(run, folder, tmp_path):
    """Each factored leaf is told with the method that made it; nothing is counted as dense that is not."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("compress", folder, first, "--keep", 0.6, "--method", "svd")[0] == 0
    status, printed, _ = run("compress", first, second, "--keep", 0.7, "--layers", "attention,embeddings", "--json")
    assert status == 0
    result = json.loads(printed)
    for key, place in (("before", first), ("after", second)):
        sizes = [leaf.size for _, leaf in leaves_with_paths(lpjax.load_checkpoint(place).params)]
        assert result[f"parameters_{key}"] == sum(sizes)
        assert result[f"bytes_{key}"] == (place / "lpjax.safetensors").stat().st_size
    steps = json.loads((second / "config.json").read_text())["lpjax"]["steps"]
    assert [(step["method"], step["p"]) for step in steps] == [("svd", 2.0), ("lewis", 1.0)]
    assert steps[0]["paths"] == ["embeddings/word_embeddings/embedding"]
    assert len(steps[1]["paths"]) == 8
    assert steps[0]["paths"][0] not in steps[1]["paths"]
    status, _, err = run("compress", second, tmp_path / "third", "--keep", 0.65, "--method", "svd")
    assert status == 2
    assert "no layer gets smaller: a pair of rank 5 is no smaller than the present one of rank 5" in " ".join(
        err.split()
    )
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("name", ["distilbert_classifier", "roberta_classifier", "xlnet_classifier"])
def test_every_net_is_compressed_and_exported(run, tmp_path, name):
    """All three see the same model: the tree in memory, the factored file, and the dense export."""
    small, dense = tmp_path / "small", tmp_path / "dense"
    options = ["--layers", "embeddings,encoder", "--keep", 0.6, "--method", "svd"]
    assert run("compress", GOLDENS / name, small, *options)[0] == 0
    assert run("export", small, dense)[0] == 0
    batch = load_golden(name).batch
    factored, whole = lpjax.load_checkpoint(small), lpjax.load_checkpoint(dense)
    pairs = [path for path, leaf in leaves_with_paths(factored.params) if hasattr(leaf, "rank")]
    assert sum("embedding" in path for path in pairs) == 1
    assert len(pairs) >= 9  # and four or five kernels of attention in each of two layers
    assert not any(hasattr(leaf, "rank") for _, leaf in leaves_with_paths(whole.params))
    logits = [lpjax.classify(net.params, net.config, batch) for net in (factored, whole)]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)


def test_a_device_without_memory_is_no_traceback(run, folder, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr("lpjax.compress", fail)
    status, _, err = run("compress", folder, tmp_path / "out", "--keep", 0.5)
    assert status == 1
    assert "out of memory" in err


def test_hub_ids_may_lack_an_owner(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run("compress", "bert-base-uncased", tmp_path / "out", "--keep", 0.5)
    assert status == 1
    assert "Hub could not be reached" in " ".join(err.split())


def test_broken_checkpoints_are_exit_1(run, folder, edit_weights, edit_config, tmp_path):
    out = tmp_path / "out"
    weights = folder / "model.safetensors"
    good, config = weights.read_bytes(), (folder / "config.json").read_bytes()

    def attempt(words: str) -> None:
        status, printed, err = run("compress", folder, out, "--keep", 0.5)
        assert (status, printed) == (1, "")
        assert words in " ".join(err.split())
        assert not out.exists()
        weights.write_bytes(good)
        (folder / "config.json").write_bytes(config)

    weights.write_bytes(good[: len(good) // 2])
    attempt("model.safetensors")
    edit_weights(lambda tensors: tensors["embeddings.word_embeddings.weight"].__setitem__((3, 1), np.nan))
    attempt("embeddings.word_embeddings.weight")
    edit_config(model_type="gpt2")
    attempt("gpt2")
    (folder / "config.json").write_text("{")
    attempt("config.json")
    weights.unlink()
    attempt("pytorch_model.bin")


def test_nothing_got_smaller(run, folder, tmp_path):
    status, _, err = run("compress", folder, tmp_path / "out", "--keep", 0.01)
    assert status == 2
    assert "--keep is 0.01: no layer gets smaller: even rank 1" in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_interrupt_leaves_nothing(run, folder, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = sorted(path.name for path in tmp_path.iterdir())
    for target in ("lpjax.compress", "lpjax.checkpoint._save.write_tensors"):
        with monkeypatch.context() as patch:
            patch.setattr(target, interrupt)
            status, printed, err = run("compress", folder, tmp_path / "out", "--keep", 0.5)
        assert (status, printed) == (130, "")
        assert "interrupted" in err
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_real_interrupt(folder, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    command = [sys.executable, "-m", "lpjax", "compress", folder, tmp_path / "out", "--keep", "0.5"]
    command += ["--method", "lowner", "--num-iters", "100000", "--tol", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    # Early in start-up, or late after the work, Python itself may be what is interrupted: all is there, or nothing.
    after = sorted(path.name for path in tmp_path.iterdir())
    assert after == before or (after == sorted([*before, "out"])), err
    if after != before:
        lpjax.load_checkpoint(tmp_path / "out")
    assert process.returncode != 0 or after != before


def test_evaluate_by_fidelity(run, folder, text, tmp_path):
    out = tmp_path / "out"
    assert run("compress", folder, out, "--rank", 4)[0] == 0
    status, printed, _ = run("evaluate", out, "--baseline", folder, "--text", text, "--json")
    assert status == 0
    result = json.loads(printed)
    assert "LPJAX_GLUE_DIR" in result["stsb_missing"]
    assert 0 < result["fidelity"]["mean_cosine"] < 1
    same = json.loads(run("evaluate", folder, "--baseline", folder, "--text", text, "--json")[1])
    assert same["fidelity"]["mean_cosine"] == pytest.approx(1, abs=1e-6)
    assert same["fidelity"]["spearman"] == pytest.approx(1)
    status, printed, _ = run("evaluate", out, "--baseline", folder, "--text", text)
    assert status == 0
    assert "mean cosine" in printed


def test_evaluate_without_anything_to_score_by(run, folder, text, tmp_path):
    status, _, err = run("evaluate", folder, "--text", text)
    assert status == 1
    assert "LPJAX_GLUE_DIR" in err
    assert "--baseline" in err
    status, _, err = run("evaluate", folder, "--glue", tmp_path)
    assert status == 1
    assert "STS-B/validation.tsv" in err
    assert run("evaluate", folder, "--dtype", "int8")[0] == 2
    assert run("evaluate", folder, "--batch-size", "0")[0] == 2


def test_version_and_help():
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lpjax", *arguments]
        environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)

    assert call("--version").stdout.strip() == f"lpjax {lpjax.__version__}"
    assert "compress" in call("--help").stdout
    for command in ("inspect", "compress", "export", "evaluate", "finetune", "report"):
        assert f"lpjax {command}" in call(command, "--help").stdout.split("Example:")[1]
