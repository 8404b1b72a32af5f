"""Reading STS-B and plain text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lpjax.glue import data
from lpjax.glue.data import DataError, load_sentences, load_stsb

HEADER = "index\tsentence1\tsentence2\tscore"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write STS-B/validation.tsv of as many rows as are given, and expect that many."""

    def put(*rows: str, header: str = HEADER, expect: int | None = None) -> Path:
        (tmp_path / "STS-B").mkdir(exist_ok=True)
        (tmp_path / "STS-B" / "validation.tsv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        monkeypatch.setitem(data.STSB_ROWS, "validation", len(rows) if expect is None else expect)
        return tmp_path

    return put


def test_quotation_marks_are_characters(write):
    folder = write('0\tHe said "no\tA "quoted" word\t2.5', "1\tplain\tü\t5.000")
    pairs = load_stsb(folder)
    assert pairs.first == ['He said "no', "plain"]
    assert pairs.second == ['A "quoted" word', "ü"]
    assert pairs.scores.tolist() == [2.5, 5.0]


def test_the_environment_and_the_old_name(write, monkeypatch):
    folder = write("0\ta\tb\t1", "1\tc\td\t2")
    (folder / "STS-B" / "validation.tsv").rename(folder / "STS-B" / "dev.tsv")
    monkeypatch.setenv("LPJAX_GLUE_DIR", str(folder))
    assert load_stsb().second == ["b", "d"]


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (["0\ta\tb"], {}, "line 2: 3 columns; expected 4"),
        (["0\ta\tb\t1", "1\ta\tb\tx"], {}, "line 3: score 'x'"),
        (["0\ta\tb\t5.1"], {}, "line 2: score '5.1'"),
        (["0\ta\tb\tnan"], {}, "line 2: score 'nan'"),
        (["0\ta\tb\t1"], {"expect": 1500}, "has 1 pairs; expected the 1500"),
        (["0\ta\tb\t1"], {"header": "index\tfirst\tsecond\tscore"}, "lacks the columns sentence1, sentence2"),
        ([], {"header": ""}, "lacks the columns"),
    ],
)
def test_wrong_files_are_refused_by_name(write, rows, options, words):
    with pytest.raises(DataError) as caught:
        load_stsb(write(*rows, **options))
    assert words in str(caught.value)
    assert "validation.tsv" in str(caught.value)


def test_missing_folder_split_and_hub(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"has no STS-B/validation\.tsv or dev\.tsv"):
        load_stsb(tmp_path)
    with pytest.raises(ValueError, match="`split` is 'test'"):
        load_stsb(tmp_path, "test")
    import datasets

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.delenv("LPJAX_GLUE_DIR", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"no route.*set LPJAX_GLUE_DIR"):
        load_stsb()


@pytest.mark.filterwarnings("default")
def test_the_hub_gives_the_same_pairs(monkeypatch):
    """`datasets` hands out columns; here a table of its own kind, for the hub is out of reach."""
    import datasets

    table = datasets.Dataset.from_dict({"sentence1": ["a", "c"], "sentence2": ["b", "d"], "label": [0.5, 4.0]})
    monkeypatch.delenv("LPJAX_GLUE_DIR", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    monkeypatch.setitem(data.STSB_ROWS, "validation", 2)
    pairs = load_stsb()
    assert (pairs.first, pairs.second, pairs.scores.tolist()) == (["a", "c"], ["b", "d"], [0.5, 4.0])


@pytest.mark.skipif("LPJAX_GLUE_DIR" not in os.environ, reason="LPJAX_GLUE_DIR is not set")
@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_real_files(split):
    pairs = load_stsb(split=split)
    assert len(pairs.first) == len(pairs.second) == len(pairs.scores) == data.STSB_ROWS[split]
    assert (pairs.scores.min(), pairs.scores.max()) == (0, 5)


def test_sentences_of_a_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("  one \n\ntwo\none\nthree", encoding="utf-8")
    assert load_sentences(path) == ["one", "two", "three"]
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="UTF-8"):
        load_sentences(path)
    path.write_text("\n one\ntwo\n")
    with pytest.raises(DataError, match="2 different sentences"):
        load_sentences(path)
    for missing in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError, match="can't be read"):
            load_sentences(missing)


def test_default_sentences_are_prose():
    sentences = load_sentences()
    assert sentences == load_sentences()
    assert len(sentences) == len(set(sentences)) > 500
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)
    assert not any("\n" in sentence or ">>>" in sentence or "::=" in sentence for sentence in sentences)
