"""Whether p above 2 pays, which leaves no row far behind: `python -m experiments.large_p [--languages E5 TEXTS]`.

irls_rows at p from 1 to ∞, without weights and under "gauss_newton", on all-MiniLM-L6-v2: its embedding, and the
kernels of its encoder. Scores are Spearman's on the STS-B development pairs, on all and on the third with the rarest
tokens; the distance is 1 − cosine from the dense net's embeddings of held-out texts, their mean and the largest.
Calibration texts are those of `experiments.budget`, none of STS-B.

With --languages, the table of multilingual-e5-small, calibrated on sentences of eight languages as in
`experiments.languages`: the mean distance of each language.

Writes experiments/results/large_p.json, row by row: a row that is there is not computed again. `python -m
experiments.readme` makes the tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

import lpjax
from experiments.budget import SEED, calibrated_encoder, read_or_calibrate, runs_parser
from experiments.languages import HELD_OUT, TEXTS, read_languages, some_of_each
from experiments.rows import has_row, read_rows
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.data.batching import tokenize
from lpjax.data.tokenizer import tokenizer_of
from lpjax.evaluation.sentences import embed_sentences, stsb
from lpjax.glue.data import Pairs, load_stsb

RESULTS = Path(__file__).parent / "results" / "large_p.json"
PS = (1.0, 2.0, 3.0, 4.0, 8.0, np.inf)
TABLE = "embeddings/word_embeddings/embedding"


class Case(NamedTuple):
    """What is factored, and how."""

    net: str
    layers: str
    keep: float
    weighting: str
    p: float | str

    @property
    def exponent(self) -> float:
        """p as a number: in files, ∞ is "inf"."""
        return float(self.p)


CASES = [
    Case("all-MiniLM-L6-v2", layers, keep, weighting, "inf" if np.isinf(p) else p)
    for layers, keep in (("embeddings", 0.26), ("encoder", 0.5))
    for weighting in ("none", "gauss_newton")
    for p in PS
]
LANGUAGES = [
    Case("multilingual-e5-small", "embeddings", 0.26, weighting, p)
    for weighting in ("none", "gauss_newton")
    for p in (2.0, 4.0, "inf")
]

Measure = Callable[[lpjax.Checkpoint], dict[str, Any]]


def main() -> None:
    """Factor, measure, and write the record."""
    arguments = runs_parser(__doc__)
    arguments.add_argument("--languages", nargs=2, type=Path, metavar=("E5", "TEXTS"))
    options = arguments.parse_args()
    record = run_record(SEED) | {"rows": read_rows(RESULTS)}
    dense, held, _, known = calibrated_encoder(options.runs)
    compute(CASES, dense, known, sentence_measure(dense, known, held), record)
    if options.languages:
        net, texts = options.languages
        dense, sentences = lpjax.load_checkpoint(net), read_languages(texts)
        known = read_or_calibrate(options.runs / "languages_all.safetensors", dense, some_of_each(sentences, TEXTS))
        held_out = {language: lines[:HELD_OUT] for language, lines in sentences.items()}
        compute(LANGUAGES, dense, known, language_measure(dense, held_out), record)


def compute(
    cases: list[Case], dense: lpjax.Checkpoint, known: lpjax.Calibration, measure: Measure, record: dict[str, Any]
) -> None:
    """The rows that the record lacks."""
    console = Console()
    for case in cases:
        row: dict[str, Any] = case._asdict()
        if has_row(record["rows"], row):
            continue
        params, records = lpjax.compress(
            dense.params, select=case.layers, keep=case.keep, sparse_share=0.0, solver="irls_rows", p=case.exponent,
            statistics=known, weighting=case.weighting,
        )  # fmt: skip
        row["converged"] = all(layer.converged for layer in records)
        row |= measure(dataclasses.replace(dense, params=params))
        console.print(row)
        record["rows"].append(row)
        write_json(RESULTS, record)


def distances(dense: lpjax.Checkpoint, texts: list[str]) -> Callable[[lpjax.Checkpoint], np.ndarray]:
    """1 − cosine of the embeddings of each text with the dense net's."""
    expected = normalized(dense, texts)
    return lambda net: 1 - np.sum(normalized(net, texts) * expected, axis=1)


def normalized(net: lpjax.Checkpoint, texts: list[str]) -> np.ndarray:
    """Embeddings of length 1."""
    vectors = np.asarray(embed_sentences(net, texts).vectors)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sentence_measure(dense: lpjax.Checkpoint, known: lpjax.Calibration, held: list[str]) -> Measure:
    """Scores on all pairs and on those with rare tokens, and distances of held-out texts."""
    pairs, far = load_stsb(), distances(dense, held)
    counts = known.statistics[TABLE].counts
    assert counts is not None
    rarest = [
        np.minimum(*(counts[row].min() for row in rows))
        for rows in zip(*(token_ids(dense, part) for part in (pairs.first, pairs.second)), strict=True)
    ]
    third = np.argsort(np.asarray(rarest), kind="stable")[: len(rarest) // 3]
    rare = Pairs([pairs.first[i] for i in third], [pairs.second[i] for i in third], pairs.scores[third])

    def measure(net: lpjax.Checkpoint) -> dict[str, Any]:
        text_distances = far(net)
        return {
            "spearman": stsb(net, pairs).spearman,
            "spearman_rare": stsb(net, rare).spearman,
            "distance": float(text_distances.mean()),
            "largest_distance": float(text_distances.max()),
        }

    return measure


def token_ids(net: lpjax.Checkpoint, texts: list[str]) -> list[np.ndarray]:
    """Ids of the tokens of each text."""
    return tokenize(tokenizer_of(net), net.config, texts).ids


def language_measure(dense: lpjax.Checkpoint, held: dict[str, list[str]]) -> Measure:
    """Mean distance of held-out sentences of each language."""
    divergences = {language: lpjax.Divergence(dense, texts) for language, texts in held.items()}
    return lambda net: {"divergence": {language: each(net.params) for language, each in divergences.items()}}


if __name__ == "__main__":
    main()
