"""What compression costs each language: `python -m experiments.languages MODEL TEXTS [--runs DIR]`.

MODEL is multilingual-e5-small; TEXTS is a folder with a file of sentences for each language, as `experiments.man_pages`
makes it. Statistics are of 1,024 sentences: of English alone, or as many of each language. The divergence (mean of
1 − cosine from the dense net's embeddings) is of 64 other sentences of each language, for each size, each text and,
for English alone, several smoothings of the tokens' counts.

Writes experiments/results/languages.json, row by row: rows that are there are not computed again, nor are the
statistics, which are kept in DIR. `python -m experiments.readme` makes the table.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

from rich.console import Console

import lpjax
from experiments.budget import SEED, read_or_calibrate, runs_parser
from experiments.rows import has_row, read_rows
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.weighting import WEIGHTINGS

RESULTS = Path(__file__).parent / "results" / "languages.json"
PREFIX = "query: "
HELD_OUT, TEXTS = 64, 1024
SIZES = (36.0, 24.0, 18.0)
SMOOTHINGS = (0.1, 10.0)
# (text, size in MB, smoothing)
CASES = [
    *((text, size, 1.0) for size in SIZES for text in ("none", "en", "all")),
    *(("en", 24.0, smoothing) for smoothing in SMOOTHINGS),
]


def main() -> None:
    """Calibrate, compress, measure each language, and write the record."""
    arguments = runs_parser(__doc__)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("texts", type=Path)
    options = arguments.parse_args()
    console, dense = Console(), lpjax.load_checkpoint(options.model)
    sentences = read_languages(options.texts)
    divergences = {language: lpjax.Divergence(dense, lines[:HELD_OUT]) for language, lines in sentences.items()}
    known: dict[str, lpjax.Calibration | None] = {"none": None}
    for name, texts in {
        "en": sentences["en"][HELD_OUT:][:TEXTS],
        "all": some_of_each(sentences, TEXTS),
    }.items():
        known[name] = read_or_calibrate(options.runs / f"languages_{name}.safetensors", dense, texts)
    record: dict[str, Any] = {
        "model": "multilingual-e5-small",
        "texts": TEXTS,
        "held_out": HELD_OUT,
        "tokens": {name: calibration.tokens for name, calibration in known.items() if calibration is not None},
        **run_record(SEED),
        "rows": read_rows(RESULTS),
    }
    for text, size, smoothing in CASES:
        row: dict[str, Any] = {"text": text, "size": size, "smoothing": smoothing}
        if has_row(record["rows"], row):
            continue
        calibration = known[text]
        weighting = None
        if calibration is not None:
            weighting = dataclasses.replace(WEIGHTINGS["gauss_newton"], smoothing=smoothing)
        plan = lpjax.plan_for_size(dense.params, size * 1e6, statistics=calibration, weighting=weighting)
        small = lpjax.compress(dense.params, plan, calibration).params
        row["divergence"] = {language: measure(small) for language, measure in divergences.items()}
        console.print(row)
        record["rows"].append(row)
        write_json(RESULTS, record)


def read_languages(folder: Path) -> dict[str, list[str]]:
    """Sentences by language, of all the files in a folder."""
    sentences = {path.stem: _shuffled(path) for path in sorted(folder.glob("*.txt"))}
    if "en" not in sentences:
        raise SystemExit(f"{folder} has no en.txt; `python -m experiments.man_pages` makes it")
    return sentences


def some_of_each(sentences: dict[str, list[str]], count: int) -> list[str]:
    """So many sentences, as many of each language, none of those that are held out."""
    each = count // len(sentences)
    return [text for lines in sentences.values() for text in lines[HELD_OUT:][:each]]


def _shuffled(path: Path) -> list[str]:
    """Lines of a file, with the net's prefix, in the same order in every run."""
    lines = [PREFIX + line for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(SEED).shuffle(lines)
    return lines


if __name__ == "__main__":
    main()
