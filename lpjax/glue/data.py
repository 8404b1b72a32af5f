"""Texts to evaluate on: GLUE's tasks from a folder or the hub, and sentences that need no download."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lpjax._check import check_name
from lpjax._extras import MissingExtra, require
from lpjax._files.hub import first_line, hub_or_cache
from lpjax._files.json import parse_json
from lpjax._files.reading import TextError, read_lines
from lpjax._repr import short_repr
from lpjax.glue.tasks import TASKS, Task, find_task

STSB_ROWS = dict(TASKS["stsb"].splits)
"""Split -> the number of rows that `load_stsb` expects."""

_HUB = "nyu-mll/glue"
# If a split has several files, the first of these formats is read.
_SUFFIXES = (".tsv", ".jsonl", ".parquet")
# Half a surrogate pair, which JSON can escape and no tokenizer takes.
_NOT_UNICODE = re.compile("[\ud800-\udfff]")

# Column names of the texts besides those on the hub: in GLUE's own download, and names that are the same in every task.
_PREMISE, _SENTENCES, _ALIKE = ("premise", "hypothesis"), ("sentence1", "sentence2"), ("text_a", "text_b")
_TEXTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "cola": (("text",),),
    "sst2": (("text",),),
    "mrpc": (("#1 String", "#2 String"), _ALIKE),
    "stsb": (_ALIKE,),
    "qqp": (_ALIKE,),
    "mnli": (_SENTENCES, _ALIKE),
    "qnli": (_ALIKE,),
    "rte": (_PREMISE, _ALIKE),
    "wnli": (_PREMISE, _ALIKE),
}
# Column names of the label that are preferred to "label".
_LABELS = {"mrpc": "Quality", "qqp": "is_duplicate", "mnli": "gold_label", "stsb": "score"}


class DataError(ValueError):
    """A file of texts is missing or malformed; the message names the file, the line, and what to change."""


class Pairs(NamedTuple):
    """Sentence pairs with gold similarities.

    Attributes:
        first, second: sentences.
        scores: gold similarity in [0, 5], shape (n,), float64.
    """

    first: list[str]
    second: list[str]
    scores: np.ndarray

    def __repr__(self) -> str:
        return short_repr(self)


class Examples(NamedTuple):
    """The labelled examples of one split, in the order of the file.

    Attributes:
        task: the task.
        split: name of the split; for MNLI "validation_matched", also if "validation" was asked for.
        first: the text of each example, or the first of two.
        second: the second texts; None if the task has one.
        labels: shape (n,): int32 indices into `task.labels`, or for STS-B float64 scores in [0, 5].
        source: the file, or "nyu-mll/glue" for the hub.
        complete: whether these are all rows of an official split; False for a split with another name, such as a
            subset.
    """

    task: Task
    split: str
    first: list[str]
    second: list[str] | None
    labels: np.ndarray
    source: str
    complete: bool

    def __repr__(self) -> str:
        return short_repr(self)


class _Table(NamedTuple):
    """Unchecked rows: (number in the file, texts and label). `unit` is the unit of these numbers."""

    rows: list[tuple[int, Sequence[Any]]]
    unit: str


def load_examples(task: str | Task, split: str = "validation", folder: str | Path | None = None) -> Examples:
    """Load a split of a GLUE task.

    In the folder, a split is `<title>/<split>.tsv`, `.jsonl` or `.parquet`; if there are several, the first of these is
    read. "dev" in a file's name means "validation". Files and columns may be named as in GLUE's own download
    (SST-2/dev.tsv, MNLI/dev_matched.tsv, CoLA without a header, MRPC's `#1 String`), as on the hub, or text_a and
    text_b. A label is a name or a number in the order of the hub. In .tsv files tabs separate columns, nothing is
    quoted, and only "\\n" and "\\r\\n" end a line.

    Args:
        task: task, or its name or title.
        split: "train", "validation" (for MNLI "validation_matched" or "validation_mismatched"; "validation" means the
            first), or any other split with a file in the folder. The test split has no labels.
        folder: GLUE folder; by default the environment variable LPJAX_GLUE_DIR names it. Without either the split comes
            from the hub, `nyu-mll/glue`.

    Raises:
        DataError: the split is missing or has no labels; a file is not UTF-8 text, lacks columns, has the columns of
            another task, a malformed row, a label that the task does not have, or, for an official split, the wrong
            number of rows; or the hub can't be reached.
        ValueError: an unknown task.
    """
    task = find_task(task)
    split = _canonical(task, split)
    if re.match(r"test(_|$)", split):
        raise DataError(f"{task.title}'s {split} split has no labels to score by; expected {' or '.join(task.splits)}")
    folder = _folder(folder)
    if folder is None:
        source, table = _HUB, _from_hub(task, split)
    else:
        path = _files(task, folder).get(split)
        if path is None:
            raise _missing(task, split, folder)
        source, table = str(path), _READERS[path.suffix](path, task, split)

    official = task.splits.get(split)
    read, kind, expected = _label_reader(task)
    labels = []
    for number, (*texts, value) in table.rows:
        for text in texts:
            if not isinstance(text, str) or _NOT_UNICODE.search(text):
                raise DataError(f"{source}, {table.unit} {number}: text {text!r:.60}; expected a string")
        label = read(value)
        if label is None:
            raise DataError(f"{source}, {table.unit} {number}: {kind} {value!r:.60}; expected {expected}")
        labels.append(label)
    if not labels or (official is not None and len(labels) != official):
        expected = "at least one" if official is None else f"the {official} of {task.title} {split}"
        raise DataError(f"{source} has {len(labels)} rows; expected {expected}")
    return Examples(
        task,
        split,
        [row[0] for _, row in table.rows],
        [row[1] for _, row in table.rows] if len(task.columns) == 2 else None,
        np.asarray(labels, np.float64 if task.is_regression else np.int32),
        source,
        official is not None,
    )


def available_splits(task: str | Task, folder: str | Path | None = None) -> list[str]:
    """The labelled splits for which a folder has a file, the official ones first.

    Args:
        task: task, or its name or title.
        folder: GLUE folder; by default that of LPJAX_GLUE_DIR. Without either, the splits on the hub are listed.

    Raises:
        ValueError: an unknown task.
    """
    task = find_task(task)
    folder = _folder(folder)
    if folder is None:
        return list(task.splits)
    files = _files(task, folder)
    return [split for split in task.splits if split in files] + sorted(set(files) - set(task.splits))


def load_stsb(folder: str | Path | None = None, split: str = "validation") -> Pairs:
    """Load GLUE's Semantic Textual Similarity Benchmark, STS-B.

    Args:
        folder: GLUE folder, as for `load_examples`.
        split: "validation" or "train"; the test split has no gold scores.

    Raises:
        DataError: the file is missing, lacks a column or rows, or holds a score outside [0, 5]; or the hub can't be
            reached.
        ValueError: an unknown split.
    """
    check_name("split", split, STSB_ROWS)
    examples = load_examples(dataclasses.replace(TASKS["stsb"], splits=STSB_ROWS), split, folder)
    assert examples.second is not None
    return Pairs(examples.first, examples.second, examples.labels)


def _folder(folder: str | Path | None) -> Path | None:
    folder = folder or os.environ.get("LPJAX_GLUE_DIR")
    return Path(folder) if folder else None


def _canonical(task: Task, split: str) -> str:
    split = re.sub(r"^dev(?=_|$)", "validation", split)
    return "validation_matched" if split == "validation" and "validation_matched" in task.splits else split


def _files(task: Task, folder: Path) -> dict[str, Path]:
    """The file of each split that has labels."""
    try:
        paths = [path for path in (folder / task.title).iterdir() if path.suffix in _SUFFIXES and path.is_file()]
    except OSError:
        return {}
    # If there are both a "dev" and a "validation" file of one format, the latter, named as on the hub, comes first.
    paths.sort(key=lambda path: (_SUFFIXES.index(path.suffix), path.stem.startswith("dev"), path.stem))
    files: dict[str, Path] = {}
    for path in paths:
        # MRPC's download has a list of ids, which is not a split.
        if not re.match(r"test(_|$)", path.stem) and path.stem != "dev_ids":
            files.setdefault(_canonical(task, path.stem), path)
    return files


def _missing(task: Task, split: str, folder: Path) -> DataError:
    there = available_splits(task, folder) or ["none"]
    verb = "is" if len(there) == 1 else "are"
    return DataError(
        f"{task.title} has no {split} split in {folder}: no {task.title}/{split}.tsv, .jsonl or .parquet; "
        f"there {verb} {', '.join(there)}; pass another split or GLUE folder, or set LPJAX_GLUE_DIR"
    )


def _choose(task: Task, names: Sequence[str], where: str) -> list[str]:
    """The names of the columns of texts and label.

    An extra text column means that the file is of another task; labels would not show it, since many are 0 and 1.
    """
    labels = [name for name in (_LABELS.get(task.name), "label") if name]
    label = next((name for name in labels if name in names), labels[0])
    choices = [[*texts, label] for texts in (task.columns, *_TEXTS[task.name])]
    lacking, chosen = min(
        (([name for name in choice if name not in names], choice) for choice in choices),
        key=lambda pair: len(pair[0]),
    )
    if lacking:
        raise DataError(f"{where} lacks the columns {', '.join(lacking)}; it has {list(names)[:12]!r:.300}")
    twice = [name for name in chosen if list(names).count(name) > 1]
    if twice:
        raise DataError(f"{where} has the column {twice[0]} twice; expected once")
    others = {name for other in TASKS.values() for name in other.columns} | set(_ALIKE)
    foreign = sorted(others.intersection(names).difference(chosen))
    if foreign:
        raise DataError(
            f"{where} has the columns {', '.join(foreign)} besides {', '.join(chosen)}; "
            f"expected those of {task.title} alone: is it the file of another task?"
        )
    return chosen


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    try:
        lines = read_lines(path)
    except TextError as error:
        raise DataError(f"{path}, line {error.line} can't be read as UTF-8 text: {error}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}") from None
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip(" ")]


def _read_tsv(path: Path, task: Task, split: str) -> _Table:
    # Nothing is quoted: a quotation mark is a character like any other.
    rows = [(number, line.split("\t")) for number, line in _read_lines(path)]
    header = rows[0][1] if rows else []
    if task.name == "cola" and len(header) == 4 and header[1] in ("0", "1"):
        header = ["code", "label", "star", "sentence"]
    else:
        rows = rows[1:]
    places = [header.index(name) for name in _choose(task, header, str(path))]
    kept: list[tuple[int, Sequence[Any]]] = []
    for number, row in rows:
        if len(row) != len(header):
            # In GLUE's QQP a few questions contain line breaks, which split their rows. The hub leaves these rows out,
            # too; the number of rows is checked later.
            if task.name == "qqp" and split in task.splits and len(row) < len(header):
                continue
            raise DataError(f"{path}, line {number}: {len(row)} columns; expected {len(header)}, separated by tabs")
        kept.append((number, [row[place] for place in places]))
    return _Table(kept, "line")


def _read_jsonl(path: Path, task: Task, split: str) -> _Table:
    chosen: list[str] = []
    kept: list[tuple[int, Sequence[Any]]] = []
    for number, line in _read_lines(path):
        try:
            row = parse_json(line, lenient=True)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is a JSON {type(row).__name__}; expected an object, {{…}}")
        chosen = chosen or _choose(task, list(row), f"{path}, line {number}")
        lacking = [name for name in chosen if name not in row]
        if lacking:
            raise DataError(f"{path}, line {number} lacks {', '.join(lacking)}; it has {list(row)[:12]!r:.300}")
        kept.append((number, [row[name] for name in chosen]))
    return _Table(kept, "line")


def _read_parquet(path: Path, task: Task, split: str) -> _Table:
    _require_package(str(path), "pyarrow")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            chosen = _choose(task, file.schema_arrow.names, str(path))
            table = file.read(columns=chosen)
            columns = [table.column(name).to_pylist() for name in chosen]
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as Parquet: {str(error).splitlines()[0]}") from None
    return _Table(list(enumerate(zip(*columns, strict=True), start=1)), "row")


_READERS: dict[str, Callable[[Path, Task, str], _Table]] = {
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _require_package(needed_by: str, module: str, hint: str = "") -> None:
    try:
        require("glue", needed_by, module)
    except MissingExtra as error:
        raise DataError(f"{error}{hint}") from None


def _from_hub(task: Task, split: str) -> _Table:
    hint = f"set LPJAX_GLUE_DIR to a GLUE folder ({task.title}/{split}.tsv), or pass one"
    if split not in task.splits:
        raise DataError(f"{task.title} on the hub has no {split} split; expected {' or '.join(task.splits)}; or {hint}")
    _require_package(f"{task.title} from the hub", "datasets", f"; or {hint}")
    import datasets

    away: str | None = None
    try:
        with hub_or_cache() as away:
            table: Any = datasets.load_dataset(_HUB, task.name, split=split)
    except Exception as error:  # the hub fails with exceptions of many kinds
        reason = f"{type(error).__name__}: {first_line(error)}" if away is None else away
        raise DataError(f"{task.title} can't be fetched from the hub ({reason}); {hint}") from None
    chosen = _choose(task, table.column_names, f"{_HUB} {task.name}")
    names = getattr(table.features[chosen[-1]], "names", None)
    if names is not None and tuple(names) != task.labels:
        raise DataError(f"{_HUB} {task.name} has the labels {list(names)}; expected {list(task.labels)}")
    columns = [list(table[name]) for name in chosen]
    return _Table(list(enumerate(zip(*columns, strict=True), start=1)), f"{task.name} {split}, row")


def _label_reader(task: Task) -> tuple[Callable[[Any], int | float | None], str, str]:
    """(function from a cell to its label, or None if it holds none; kind of the label; description of valid cells)."""
    if task.is_regression:
        return _score, "score", "a number from 0 to 5"
    known: dict[Any, int] = {}
    for number, name in enumerate(task.labels):
        known |= {name: number, str(number): number, number: number}
    names = ", ".join(f"{name} ({number})" for number, name in enumerate(task.labels))
    # Values of other types may be unhashable or, like 1.0 and True, equal a number.
    return (
        lambda cell: known.get(cell) if type(cell) in (str, int) else None,
        "label",
        f"one of {task.title}'s: {names}",
    )


def _score(cell: Any) -> float | None:
    try:
        score = float("nan") if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return score if 0 <= score <= 5 else None


def load_sentences(path: str | Path | None = None) -> list[str]:
    """Load sentences for a comparison without labels.

    Args:
        path: UTF-8 text, one sentence per line; blank lines are skipped. By default the prose of Python's language
            reference, `pydoc_data.topics`, which comes with Python.

    Raises:
        DataError: the file is missing, is not text, or has fewer than three different sentences.
    """
    if path is None:
        return _topics()
    lines = [line.strip() for _, line in _read_lines(Path(path))]
    sentences = list(dict.fromkeys(line for line in lines if line))
    if len(sentences) < 3:
        raise DataError(f"{path} has {len(sentences)} different sentences; expected at least three, one a line")
    return sentences


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    sentences: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            # Code and grammar are indented twice or more; a row of signs underlines a heading.
            if re.match(r"\s{4,}", paragraph) or re.search(r"[=*~^-]{4,}|::=|>>>", paragraph):
                continue
            prose = re.sub(r"\s+", " ", re.sub(r"[*`\"]+", "", paragraph)).strip()
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", prose):
                if re.fullmatch(r"[A-Z].*[a-z]{2}.*\.", sentence) and 5 <= len(sentence.split()) <= 60:
                    sentences[sentence] = None
    return list(sentences)
