"""Texts to evaluate on: STS-B from a GLUE folder or the hub, and sentences that need no download."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STSB_ROWS = {"train": 5749, "validation": 1500}
_FILES = {"train": ("train.tsv",), "validation": ("validation.tsv", "dev.tsv")}


class DataError(ValueError):
    """A file of texts is missing or not what it should be; names the file, the line, and what to set."""


class Pairs(NamedTuple):
    """Sentence pairs with gold similarities.

    Attributes:
        first, second: sentences.
        scores: gold similarity in [0, 5], shape (n,), float64.
    """

    first: list[str]
    second: list[str]
    scores: np.ndarray


def load_stsb(folder: str | Path | None = None, split: str = "validation") -> Pairs:
    """The Semantic Textual Similarity Benchmark as GLUE has it.

    Args:
        folder: GLUE folder that holds STS-B/validation.tsv (or dev.tsv) and STS-B/train.tsv. By default that of the
            environment variable LPJAX_GLUE_DIR, and without it `nyu-mll/glue` from the hub.
        split: "validation" or "train"; the test split has no gold scores.

    Raises:
        DataError: the file is missing, lacks a column or rows, or holds a score that is no number in [0, 5]; or the
            hub can't be reached.
        ValueError: an unknown split.
    """
    if split not in STSB_ROWS:
        raise ValueError(f"`split` is {split!r}; expected one of {', '.join(STSB_ROWS)}")
    if folder is None:
        folder = os.environ.get("LPJAX_GLUE_DIR") or None
    return _from_hub(split) if folder is None else _from_folder(Path(folder), split)


def _from_folder(folder: Path, split: str) -> Pairs:
    task = folder / "STS-B"
    path = next((task / name for name in _FILES[split] if (task / name).is_file()), None)
    if path is None:
        names = " or ".join(_FILES[split])
        raise DataError(f"{folder} has no STS-B/{names}; expected a GLUE folder: set LPJAX_GLUE_DIR or pass another")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as UTF-8 text: {error}") from None
    # Tabs separate and nothing quotes: a quotation mark is a character like any other here.
    header, *rows = [line.rstrip("\r").split("\t") for line in lines if line.strip()] or [[]]
    lacking = [name for name in ("sentence1", "sentence2", "score") if name not in header]
    if lacking:
        raise DataError(f"{path} lacks the columns {', '.join(lacking)}; its first line has {header[:12]}")
    first, second, score = (header.index(name) for name in ("sentence1", "sentence2", "score"))
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(f"{path}, line {number}: {len(row)} columns; expected {len(header)}, separated by tabs")
    scores = [_score(row[score], f"{path}, line {number}") for number, row in enumerate(rows, start=2)]
    pairs = Pairs([row[first] for row in rows], [row[second] for row in rows], np.asarray(scores))
    return _checked(pairs, split, str(path))


def _from_hub(split: str) -> Pairs:
    hint = "set LPJAX_GLUE_DIR to a GLUE folder (STS-B/validation.tsv), or pass one"
    try:
        import datasets
    except ImportError:
        raise DataError(f"STS-B comes from the hub by the package `datasets`, which is not installed; {hint}") from None
    try:
        table: Any = datasets.load_dataset("nyu-mll/glue", "stsb", split=split)
    except Exception as error:  # a hub's failures are of many kinds, and none says anything of ours
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"STS-B can't be had from the hub ({type(error).__name__}: {reason}); {hint}") from None
    scores = [_score(value, "nyu-mll/glue stsb") for value in table["label"]]
    return _checked(Pairs(list(table["sentence1"]), list(table["sentence2"]), np.asarray(scores)), split, "the hub")


def _score(text: Any, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    if not 0 <= score <= 5:
        raise DataError(f"{where}: score {text!r}; expected a number from 0 to 5")
    return score


def _checked(pairs: Pairs, split: str, source: str) -> Pairs:
    if len(pairs.scores) != STSB_ROWS[split]:
        raise DataError(f"{source} has {len(pairs.scores)} pairs; expected the {STSB_ROWS[split]} of STS-B {split}")
    return pairs


def load_sentences(path: str | Path | None = None) -> list[str]:
    """Sentences for a comparison without labels.

    Args:
        path: UTF-8 text, one sentence a line; blank lines are skipped. By default the prose of Python's own language
            reference, `pydoc_data.topics`, which every Python has.

    Raises:
        DataError: the file is missing, not text, or has fewer than three different sentences.
    """
    if path is None:
        return _topics()
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as UTF-8 text, one sentence a line: {error}") from None
    sentences = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(sentences) < 3:
        raise DataError(f"{path} has {len(sentences)} different sentences; expected at least three, one a line")
    return sentences


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    sentences: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            # Indented twice or more are code and grammar; a row of signs underlines a heading.
            if re.match(r"\s{4,}", paragraph) or re.search(r"[=*~^-]{4,}|::=|>>>", paragraph):
                continue
            prose = re.sub(r"\s+", " ", re.sub(r"[*`\"]+", "", paragraph)).strip()
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", prose):
                if re.fullmatch(r"[A-Z].*[a-z]{2}.*\.", sentence) and 5 <= len(sentence.split()) <= 60:
                    sentences[sentence] = None
    return list(sentences)
