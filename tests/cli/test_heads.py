"""Nets with heads of every kind from the command line: compressed by text, recovered, and compared by what they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import lpjax
from tests.conftest import GOLDENS

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwx"]


def make_folder(tmp_path: Path, name: str, **config) -> Path:
    """A golden model with a tokenizer of letters."""
    target = tmp_path / Path(name).name
    shutil.copytree(GOLDENS / name, target, ignore=shutil.ignore_patterns("golden.*"))
    (target / "vocab.txt").write_text("\n".join(WORDS))
    (target / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    data = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(data | config))
    return target


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "some.txt"
    letters = "".join(WORDS[5:])
    path.write_text("\n".join(" ".join(letters[(5 * i) % 19 : (5 * i) % 19 + 2 + i % 4]) for i in range(24)))
    return path


def compared(command, net: Path, dense: Path, text: Path) -> dict:
    status, output, errors = command("evaluate", net, "--baseline", dense, "--text", text, "--json")
    assert status == 0, errors
    result = json.loads(output)
    assert {"mean_cosine", "spearman"} <= result["fidelity"].keys()
    return result["outputs"]


@pytest.mark.slow
def test_a_masked_language_model_is_compressed_recovered_and_compared(command, text, tmp_path):
    dense = make_folder(tmp_path, "heads/bert_words")
    small, better = tmp_path / "small", tmp_path / "better"
    options = ["--layers", "encoder,embeddings", "--keep", 0.6, "--calibrate", text]
    status, _, errors = command("compress", dense, small, *options)
    assert status == 0, errors
    before = compared(command, small, dense, text)
    assert before["kind"] == "words"
    assert before["divergence"] > 0
    assert 0 <= before["agreement"] <= 1
    options = ["--text", text, "--lr", 1e-2, "--epochs", 2, "--batch-size", 8]
    status, _, errors = command("recover", small, better, *options)
    assert status == 0, errors
    assert compared(command, better, dense, text)["divergence"] < before["divergence"]
    net = lpjax.load_checkpoint(better)
    assert "decoder" not in net.params["cls"]["predictions"]  # still the table itself
    assert isinstance(net.params["bert"]["embeddings"]["word_embeddings"]["embedding"], lpjax.LowRank)


@pytest.mark.slow
def test_measured_budgets_of_a_net_that_labels_tokens(command, text, tmp_path):
    dense, small = make_folder(tmp_path, "heads/distilbert_tokens"), tmp_path / "small"
    options = ["--layers", "encoder", "--budget", 0.95, "--allocation", "measured", "--calibrate", text]
    status, _, errors = command("compress", dense, small, *options)
    assert status == 0, errors
    assert compared(command, small, dense, text)["kind"] == "classes of tokens"
    same = compared(command, dense, dense, text)
    assert (same["divergence"], same["agreement"]) == (pytest.approx(0, abs=1e-6), 1)
    status, output, _ = command("evaluate", small, "--baseline", dense, "--text", text)
    assert status == 0
    assert all(word in output for word in ("divergence", "agreement", "tokens"))


@pytest.mark.slow
def test_several_labels_at_a_time(command, text, tmp_path):
    dense = make_folder(tmp_path, "bert_classifier", problem_type="multi_label_classification")
    small = tmp_path / "small"
    status, _, errors = command("compress", dense, small, "--layers", "encoder", "--keep", 0.5, "--calibrate", text)
    assert status == 0, errors
    outputs = compared(command, small, dense, text)
    assert (outputs["kind"], outputs["texts"], outputs["truncated"]) == ("labels", 24, 0)
    other = make_folder(tmp_path, "heads/bert_spans")
    status, _, errors = command("evaluate", other, "--task", "rte")
    assert status == 1
    assert "the model's head finds answers (`architectures` in its config.json), but RTE is of whole texts" in errors
    status, _, errors = command("calibrate", other, tmp_path / "s.safetensors", "--task", "rte", "--labels")
    assert status != 0
    assert "Traceback" not in errors
