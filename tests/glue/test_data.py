"""Reading GLUE's tasks in every layout, refusing wrong files by name, and plain text."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpjax.glue import TASKS, Examples, Task, available_splits, data, load_examples
from lpjax.glue.data import DataError, load_sentences, load_stsb

HEADER = "index\tsentence1\tsentence2\tscore"

# Quotes that don't close, separators of Unicode that end no line, spaces at both ends, other scripts, nothing.
TEXTS = ['He said "no', '"', "a\u2028b\u2029c\x85d\x0be", " 'spaced' ", "ünïcode 文 🙂", "", "back\\slash, and a comma"]

tasks = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def sized(task: Task, rows: int, split: str = "validation") -> Task:
    """The task with another official size, for files that fit in a test."""
    return dataclasses.replace(task, splits={split: rows})


def rows_of(task: Task) -> list[tuple[Any, ...]]:
    """Texts and label; each label and each text comes up."""
    rows = []
    for i, text in enumerate(TEXTS):
        label = [0.0, 2.5, 5.0, 3.8][i % 4] if task.is_regression else i % task.num_outputs
        rows.append((text, *TEXTS[i - 1 : i or None][: len(task.columns) - 1], label))
    return rows


def write_tsv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]], end: str = "\n", bom: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(map(str, row)) for row in ([header] if header else []) + list(rows)]
    path.write_bytes((bom + "".join(line + end for line in lines)).encode())


def write_jsonl(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]], ascii_only: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=ascii_only) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")


def write_parquet(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [list(column) for column in zip(*rows, strict=True)]
    parquet.write_table(pa.table(dict(zip(names, columns, strict=True))), path)


def same(examples: Examples, rows: Sequence[Sequence[Any]]) -> None:
    assert examples.first == [row[0] for row in rows]
    assert examples.second == (None if len(rows[0]) == 2 else [row[1] for row in rows])
    assert examples.labels.tolist() == [row[-1] for row in rows]
    assert examples.labels.dtype == (np.float64 if examples.task.is_regression else np.int32)


@tasks
@pytest.mark.parametrize("suffix", ["tsv", "tsv-crlf-bom", "jsonl", "jsonl-ascii", "parquet"])
def test_every_task_in_every_layout(task, suffix, tmp_path):
    rows, names = rows_of(task), (*task.columns, "label")
    path = tmp_path / task.title / f"validation.{suffix.split('-')[0]}"
    if suffix == "tsv":
        write_tsv(path, names, rows)
    elif suffix == "tsv-crlf-bom":
        write_tsv(path, names, rows, end="\r\n", bom="\ufeff")
    elif suffix == "parquet":
        write_parquet(path, names, rows)
    else:
        write_jsonl(path, names, rows, ascii_only=suffix == "jsonl-ascii")
    split = "validation_matched" if task.name == "mnli" else "validation"
    task = sized(task, len(rows), split)
    examples = load_examples(task, folder=tmp_path)
    same(examples, rows)
    assert (examples.task, examples.split, examples.source, examples.complete) == (task, split, str(path), True)


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.labels], ids=lambda task: task.name)
def test_labels_are_names_or_numbers(task, tmp_path):
    rows = rows_of(task)
    for spell in (lambda number: task.labels[number], str, int):
        spelt = [(*row[:-1], spell(row[-1])) for row in rows]
        write_jsonl(tmp_path / task.title / "part.jsonl", (*task.columns, "label"), spelt)
        same(load_examples(task, "part", tmp_path), rows)
        write_tsv(tmp_path / task.title / "part_tsv.tsv", (*task.columns, "label"), spelt)
        same(load_examples(task.name, "part_tsv", tmp_path), rows)


@pytest.mark.parametrize(
    "task", [task for task in TASKS.values() if len(task.columns) == 2], ids=lambda task: task.name
)
def test_texts_called_alike_in_every_task(task, tmp_path):
    rows = rows_of(task)
    write_jsonl(tmp_path / task.title / "train_subset.jsonl", ("text_a", "text_b", "label"), rows)
    examples = load_examples(task.title, "train_subset", tmp_path)
    same(examples, rows)
    assert (examples.split, examples.complete) == ("train_subset", False)


DOWNLOAD = {
    # name: file, header, row, what it says.
    "cola": ("CoLA/dev.tsv", "", 'gj04\t0\t*\tThe "car honked.', ('The "car honked.', 0)),
    "sst2": ("SST-2/dev.tsv", "sentence\tlabel", "it 's good . \t1", ("it 's good . ", 1)),
    "mrpc": ("MRPC/dev.tsv", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t2\t3\t" a\tb', ('" a', "b", 1)),
    "qqp": ("QQP/dev.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\ta?\tb?\t0", ("a?", "b?", 0)),
    "mnli": (
        "MNLI/dev_matched.tsv",
        "index\tpromptID\tgenre\tsentence1_binary_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t1\tfiction\t( a )\ta\tb\tneutral\tcontradiction",
        ("a", "b", 2),
    ),
    "qnli": ("QNLI/dev.tsv", "index\tquestion\tsentence\tlabel", "0\ta?\tb\tnot_entailment", ("a?", "b", 1)),
    "rte": ("RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel", "0\ta\tb\tnot_entailment", ("a", "b", 1)),
    "wnli": ("WNLI/dev.tsv", "index\tsentence1\tsentence2\tlabel", "0\ta\tb\t1", ("a", "b", 1)),
    "stsb": ("STS-B/dev.tsv", f"{HEADER}\told", "0\ta\tb\t3.800\t7", ("a", "b", 3.8)),
}


@pytest.mark.parametrize("name", list(DOWNLOAD))
def test_the_download_as_it_is(name, tmp_path):
    file, header, row, expected = DOWNLOAD[name]
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text("\n".join([*([header] if header else []), row, row, ""]), encoding="utf-8")
    split = "validation_matched" if name == "mnli" else "validation"
    task = sized(TASKS[name], 2, split)
    same(load_examples(task, "validation", tmp_path), [expected, expected])
    assert load_examples(task, "dev", tmp_path).split == split
    assert available_splits(name, tmp_path) == [split]


def test_the_two_validation_splits_of_mnli(tmp_path):
    task = dataclasses.replace(TASKS["mnli"], splits={"validation_matched": 1, "validation_mismatched": 2})
    header = ("sentence1", "sentence2", "gold_label")
    write_tsv(tmp_path / "MNLI" / "dev_matched.tsv", header, [("a", "b", "neutral")])
    write_tsv(tmp_path / "MNLI" / "dev_mismatched.tsv", header, [("a", "b", "entailment")] * 2)
    assert available_splits(task, tmp_path) == ["validation_matched", "validation_mismatched"]
    assert load_examples(task, folder=tmp_path).labels.tolist() == [1]
    assert load_examples(task, "validation_mismatched", tmp_path).labels.tolist() == [0, 0]
    assert load_examples(task, "dev_mismatched", tmp_path).split == "validation_mismatched"


def test_torn_questions_are_left_out_as_on_the_hub(tmp_path):
    """A line break in a question of the download makes two short rows; official splits are checked by their size."""
    text = "id\tquestion1\tquestion2\tis_duplicate\n1\ta\tb\t0\n2\tc\n d\te\t1\n3\tf\tg\t1\n"
    for name in ("train", "part"):
        (tmp_path / "QQP").mkdir(exist_ok=True)
        (tmp_path / "QQP" / f"{name}.tsv").write_text(text)
    assert load_examples(sized(TASKS["qqp"], 2, "train"), "train", tmp_path).first == ["a", "f"]
    with pytest.raises(DataError, match=r"part\.tsv, line 3: 2 columns; expected 4"):
        load_examples("qqp", "part", tmp_path)


def test_the_order_of_files(tmp_path):
    task = sized(TASKS["rte"], 1)
    names = (*task.columns, "label")
    folder = tmp_path / "RTE"
    write_parquet(folder / "validation.parquet", names, [("parquet", "b", 0)])
    assert load_examples(task, folder=tmp_path).first == ["parquet"]
    write_jsonl(folder / "dev.jsonl", names, [("dev.jsonl", "b", 0)])
    assert load_examples(task, folder=tmp_path).first == ["dev.jsonl"]
    write_tsv(folder / "dev.tsv", names, [("dev.tsv", "b", 0)])
    assert load_examples(task, folder=tmp_path).first == ["dev.tsv"]
    write_tsv(folder / "validation.tsv", names, [("validation.tsv", "b", 0)])
    assert load_examples(task, folder=tmp_path).first == ["validation.tsv"]
    assert available_splits(task, tmp_path) == ["validation"]


def test_which_splits_are_there(tmp_path, monkeypatch):
    folder = tmp_path / "MRPC"
    folder.mkdir()
    for name in ("train.tsv", "test.tsv", "dev.tsv", "dev_ids.tsv", "a_subset.jsonl", "notes.txt", "train.pkl"):
        (folder / name).touch()
    (folder / "extra.tsv").mkdir()
    assert available_splits("mrpc", tmp_path) == ["train", "validation", "a_subset"]
    assert available_splits("rte", tmp_path) == []
    monkeypatch.setenv("LPJAX_GLUE_DIR", str(tmp_path))
    assert available_splits("MRPC") == ["train", "validation", "a_subset"]
    monkeypatch.delenv("LPJAX_GLUE_DIR")
    assert available_splits("mnli") == ["train", "validation_matched", "validation_mismatched"]


def test_a_missing_split_says_what_is_there(tmp_path):
    with pytest.raises(DataError, match=r"QQP has no train split in .*QQP/train\.tsv.*there is none.*LPJAX_GLUE_DIR"):
        load_examples("qqp", "train", tmp_path)
    names = ("text_a", "text_b", "label")
    write_jsonl(tmp_path / "QQP" / "train_subset.jsonl", names, [("a", "b", 0)])
    with pytest.raises(DataError, match=r"there is train_subset; pass another split"):
        load_examples("qqp", "train", tmp_path)
    write_jsonl(tmp_path / "QQP" / "heldout_subset.jsonl", names, [("a", "b", 0)])
    with pytest.raises(DataError, match=r"there are heldout_subset, train_subset; pass another split"):
        load_examples("qqp", "validation", tmp_path)
    with pytest.raises(DataError, match=r"has no \.\./QQP/train_subset split"):
        load_examples("qqp", "../QQP/train_subset", tmp_path)
    for split in ("test", "test_matched"):
        with pytest.raises(DataError, match="no labels to score by; expected train or validation"):
            load_examples("qqp", split, tmp_path)
    with pytest.raises(ValueError, match=r"did you mean qqp\?"):
        load_examples("qpq", "train", tmp_path)


RTE = "index\tsentence1\tsentence2\tlabel\n"


@pytest.mark.parametrize(
    ("name", "file", "content", "words"),
    [
        ("rte", "part.tsv", "", "lacks the columns sentence1, sentence2, label"),
        ("rte", "part.tsv", RTE, "has 0 rows; expected at least one"),
        ("rte", "train.tsv", RTE + "0\ta\tb\t0\n", "has 1 rows; expected the 2490 of RTE train"),
        ("rte", "part.tsv", RTE + "0\ta\tb\n", "line 2: 3 columns; expected 4"),
        ("rte", "part.tsv", RTE + "\n0\ta\tb\t1\n\n0\ta\tb\tc\t1\n", "line 5: 5 columns; expected 4"),
        (
            "rte",
            "part.tsv",
            RTE + "0\ta\tb\t0\n1\ta\tb\t-\n",
            "line 3: label '-'; expected one of RTE's: entailment (0)",
        ),
        ("rte", "part.tsv", RTE + "0\ta\tb\t-1\n", "line 2: label '-1'"),
        ("rte", "part.tsv", RTE + "0\ta\tb\t2\n", "line 2: label '2'"),
        ("rte", "part.tsv", RTE + "0\ta\tb\t\n", "line 2: label ''"),
        ("rte", "part.tsv", RTE + "0\ta\tb\tneutral\n", "line 2: label 'neutral'"),
        ("rte", "part.tsv", RTE.encode() + b"0\ta\t\xff\t0\n", "line 2 can't be read as UTF-8"),
        ("rte", "part.tsv", RTE.encode("utf-16"), "line 1 can't be read as UTF-8"),
        ("rte", "part.tsv", "sentence1\tsentence2\tlabel\tlabel\n", "has the column label twice"),
        # Files of other tasks, whose labels are valid.
        (
            "sst2",
            "part.tsv",
            "question\tsentence\tlabel\na\tb\t0\n",
            "has the columns question besides sentence, label",
        ),
        ("rte", "part.tsv", "question\tsentence\tlabel\na\tb\t0\n", "lacks the columns"),
        ("qnli", "part.tsv", RTE + "0\ta\tb\t0\n", "lacks the columns question, sentence"),
        ("cola", "part.tsv", RTE + "0\ta\tb\t0\n", "lacks the columns sentence"),
        ("mrpc", "part.tsv", "question1\tquestion2\tlabel\na\tb\t0\n", "lacks the columns"),
        (
            "stsb",
            "part.tsv",
            RTE + "0\ta\tb\tentailment\n",
            "line 2: score 'entailment'; expected a number from 0 to 5",
        ),
        ("cola", "part.tsv", "gj04\t1\t\ta\ngj04\t2\t\ta\n", "line 2: label '2'"),
        ("cola", "part.tsv", "gj04\t1\t\ta\ngj04\t1\n", "line 2: 2 columns; expected 4"),
        ("rte", "part.jsonl", "", "has 0 rows"),
        ("rte", "part.jsonl", "{", "line 1 is not JSON"),
        ("rte", "part.jsonl", "[" * 100000, "line 1 is not JSON"),
        ("rte", "part.jsonl", '["a", "b", 0]', "line 1 is a JSON list; expected an object"),
        ("rte", "part.jsonl", '{"text_a": "a", "label": 0}', "line 1 lacks the columns text_b"),
        (
            "rte",
            "part.jsonl",
            '{"text_a": "a", "text_b": "b", "label": 0}\n{"text_a": "a"}',
            "line 2 lacks text_b, label",
        ),
        ("rte", "part.jsonl", '{"text_a": null, "text_b": "b", "label": 0}', "line 1: text None; expected a string"),
        ("rte", "part.jsonl", '{"text_a": "\\ud800", "text_b": "b", "label": 0}', "line 1: text '\\ud800'"),
        ("rte", "part.jsonl", '{"text_a": "a", "text_b": "b", "label": true}', "line 1: label True"),
        ("rte", "part.jsonl", '{"text_a": "a", "text_b": "b", "label": 1.0}', "line 1: label 1.0"),
        ("rte", "part.jsonl", '{"text_a": "a", "text_b": "b", "label": [0]}', "line 1: label [0]"),
        ("rte", "part.jsonl", '{"text_a": "a", "text_b": "b", "label": null}', "line 1: label None"),
        ("stsb", "part.jsonl", '{"text_a": "a", "text_b": "b", "label": null}', "line 1: score None"),
        ("stsb", "part.jsonl", '{"text_a": "a", "text_b": "b", "label": true}', "line 1: score True"),
        ("stsb", "part.jsonl", '{"text_a": "a", "text_b": "b", "label": NaN}', "line 1: score nan"),
        ("stsb", "part.jsonl", '{"text_a": "a", "text_b": "b", "label": -1}', "line 1: score -1"),
        ("rte", "part.jsonl", b"\x80\x04}q\x00.", "line 1 can't be read as UTF-8"),
        ("rte", "part.parquet", b"", "can't be read as Parquet"),
        ("rte", "part.parquet", b"PAR1 and no more, PAR1", "can't be read as Parquet"),
    ],
)
def test_wrong_files_are_refused_by_name_and_line(name, file, content, words, tmp_path):
    path = tmp_path / TASKS[name].title / file
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load_examples(name, path.stem, tmp_path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_wrong_parquet_is_refused_by_name_and_row(tmp_path):
    path = tmp_path / "RTE" / "part.parquet"
    for names, rows, words in [
        (("sentence1", "sentence2", "label"), [("a", "b", 0), ("a", "b", -1)], "row 2: label -1"),
        (("sentence1", "sentence2", "label"), [("a", None, 0)], "row 1: text None"),
        (("sentence1", "sentence2", "label"), [(1, "b", 0)], "row 1: text 1"),
        (("question", "sentence", "label"), [("a", "b", 0)], "lacks the columns"),
    ]:
        write_parquet(path, names, rows)
        with pytest.raises(DataError) as caught:
            load_examples("rte", "part", tmp_path)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)


Hub = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub, out of reach here, that has a table of `datasets`' kind and records what it was asked for."""
    import datasets

    monkeypatch.delenv("LPJAX_GLUE_DIR", raising=False)
    asked: list[tuple[Any, ...]] = []

    def have(columns: dict[str, list[Any]], labels: Sequence[str] | None = None) -> list[tuple[Any, ...]]:
        table = datasets.Dataset.from_dict(columns)
        if labels:
            table = table.cast_column("label", datasets.ClassLabel(names=list(labels)))

        def load(path: str, name: str, split: str) -> Any:
            asked.append((path, name, split))
            return table

        monkeypatch.setattr(datasets, "load_dataset", load)
        return asked

    return have


@pytest.mark.filterwarnings("default")
@tasks
def test_the_hub_gives_the_same_examples(task, hub):
    rows = rows_of(task)
    columns = {name: [row[i] for row in rows] for i, name in enumerate((*task.columns, "label"))}
    asked = hub(columns | {"idx": list(range(len(rows)))}, task.labels)
    split = "validation_matched" if task.name == "mnli" else "validation"
    task = sized(task, len(rows), split)
    examples = load_examples(task)
    same(examples, rows)
    assert (examples.source, examples.complete, examples.split) == ("nyu-mll/glue", True, split)
    assert asked == [("nyu-mll/glue", task.name, split)]


@pytest.mark.filterwarnings("default")
def test_a_hub_that_gives_something_else(hub, monkeypatch):
    table = {"sentence1": ["a"], "sentence2": ["b"], "label": [0]}
    hub(table, ["not_entailment", "entailment"])
    with pytest.raises(DataError, match=r"has the labels \['not_entailment', 'entailment'\]; expected \['entailment'"):
        load_examples("rte")
    hub(table)
    with pytest.raises(DataError, match=r"nyu-mll/glue has 1 rows; expected the 277 of RTE validation"):
        load_examples("rte")
    hub(table | {"label": [-1]})
    with pytest.raises(DataError, match=r"nyu-mll/glue, rte validation, row 1: label -1"):
        load_examples("rte")
    with pytest.raises(DataError, match=r"QNLI on the hub has no train_subset split; expected train or validation"):
        load_examples("qnli", "train_subset")
    import datasets

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"no route\); set LPJAX_GLUE_DIR to a GLUE folder \(RTE/train\.tsv\)"):
        load_examples("rte", "train")


# The share of the label 1, or the mean score, in GLUE's files; a subset differs by sampling.
BALANCE = {"cola": 0.70, "sst2": 0.55, "mrpc": 0.68, "stsb": 2.6, "qqp": 0.37, "mnli": 0.33, "qnli": 0.5, "rte": 0.5}


@pytest.mark.skipif("LPJAX_GLUE_DIR" not in os.environ, reason="LPJAX_GLUE_DIR is not set")
@tasks
def test_the_real_files(task):
    splits = available_splits(task)
    if not splits:
        pytest.skip(f"LPJAX_GLUE_DIR has no {task.title}")
    for split in splits:
        examples = load_examples(task, split)
        assert examples.complete == (split in task.splits)
        assert len(examples.first) == len(examples.labels) == task.splits.get(split, len(examples.labels))
        assert (examples.second is None) == (len(task.columns) == 1)
        if task.is_regression:
            assert (examples.labels.min(), examples.labels.max()) == (0, 5)
            assert examples.labels.mean() == pytest.approx(BALANCE["stsb"], abs=0.3)
        else:
            assert set(examples.labels.tolist()) == set(range(task.num_outputs))
            assert np.mean(examples.labels == 1) == pytest.approx(BALANCE.get(task.name, 0.5), abs=0.07)
        # Texts are words, not numbers, and are not quoted; in GLUE's QQP 2 % are.
        texts = examples.first + (examples.second or [])
        assert 5 < np.median([len(text.split()) for text in texts]) < 60
        assert sum(text.startswith('"') and text.endswith('"') for text in texts) < 0.05 * len(texts)


@pytest.mark.skipif("LPJAX_GLUE_DIR" not in os.environ, reason="LPJAX_GLUE_DIR is not set")
def test_known_rows_of_the_real_files():
    counts = {"sst2": [428, 444], "cola": [322, 721], "mrpc": [129, 279], "qnli": [2702, 2761], "rte": [146, 131]}
    for name, expected in (counts | {"wnli": [40, 31], "mnli": [3479, 3123, 3213]}).items():
        split = "validation_matched" if name == "mnli" else "validation"
        if split in available_splits(name):
            assert np.bincount(load_examples(name).labels).tolist() == expected


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
        (["0\ta\tb\t1"], {"expect": 1500}, "has 1 rows; expected the 1500"),
        (["0\ta\tb\t1"], {"header": "index\tfirst\tsecond\tscore"}, "lacks the columns sentence1, sentence2"),
        ([], {"header": ""}, "lacks the columns"),
    ],
)
def test_wrong_stsb_files_are_refused_by_name(write, rows, options, words):
    with pytest.raises(DataError) as caught:
        load_stsb(write(*rows, **options))
    assert words in str(caught.value)
    assert "validation.tsv" in str(caught.value)


def test_missing_folder_split_and_hub(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no STS-B/validation\.tsv, \.jsonl or \.parquet"):
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
def test_the_hub_gives_the_same_pairs(hub, monkeypatch):
    hub({"sentence1": ["a", "c"], "sentence2": ["b", "d"], "label": [0.5, 4.0]})
    monkeypatch.setitem(data.STSB_ROWS, "validation", 2)
    pairs = load_stsb()
    assert (pairs.first, pairs.second, pairs.scores.tolist()) == (["a", "c"], ["b", "d"], [0.5, 4.0])
    assert pairs.scores.dtype == np.float64


@pytest.mark.skipif("LPJAX_GLUE_DIR" not in os.environ, reason="LPJAX_GLUE_DIR is not set")
@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_real_pairs(split):
    pairs = load_stsb(split=split)
    assert len(pairs.first) == len(pairs.second) == len(pairs.scores) == data.STSB_ROWS[split]


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
