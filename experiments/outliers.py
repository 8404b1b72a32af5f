"""Where does p < 2 win? `python -m experiments.outliers CONFIG [--runs DIR] [--only NET-TASK]`.

Fine-tuned nets, as they are and with outliers made in their weights: rounded to int8, with corrupted rows of the
embedding or of the kernels, with corrupted entries, and trained at a high learning rate. Each variant is compressed by
the SVD and by the robust solvers and scored on dev, next to the variant itself uncompressed; and how far the rows and
entries of its matrices stand out is measured. A record a variant goes to experiments/results/outliers.jsonl; what is
there is not computed again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import lpjax
from experiments.config import Cell, chosen_cells, parser
from experiments.glue_table import append_record, read_lines
from lpjax._provenance import run_record
from lpjax._tree import leaves_with_paths, replace_leaves
from lpjax.checkpoint import Checkpoint
from lpjax.glue.evaluate import Prepared, evaluate_task, prepare
from lpjax.select import select_paths

RESULTS = Path(__file__).parent / "results" / "outliers.jsonl"
SEED = 0
WAYS = [("svd", 2.0), *((method, p) for method in ("lewis", "irls_rows", "admm_entries") for p in (1.0, 1.5))]
OPTIONS: dict[str, dict[str, Any]] = {"admm_entries": {"num_iters": 16}}
KEEPS = {"embeddings": (0.72, 0.4), "encoder": (0.72,)}

Change = Callable[[np.ndarray, np.random.Generator, np.ndarray], np.ndarray]


def as_it_is(matrix: np.ndarray, rng: np.random.Generator, spare: np.ndarray) -> np.ndarray:
    """No change."""
    return matrix


def int8(matrix: np.ndarray, rng: np.random.Generator, spare: np.ndarray) -> np.ndarray:
    """Rounded to 255 levels between the largest magnitude and its negative, one scale a matrix."""
    step = np.abs(matrix).max() / 127
    return (np.round(matrix / step) * step).astype(matrix.dtype)


def spare_rows(matrix: np.ndarray, rng: np.random.Generator, spare: np.ndarray) -> np.ndarray:
    """Gaussian rows of 30 times the median norm in place of 1 % of the rows, of those that no text of dev uses."""
    return _noisy_rows(matrix, rng, spare, 0.01, 30)


def any_rows(matrix: np.ndarray, rng: np.random.Generator, spare: np.ndarray) -> np.ndarray:
    """Gaussian rows of 30 times the median norm in place of 1 % of the rows, used or not."""
    return _noisy_rows(matrix, rng, np.arange(len(matrix)), 0.01, 30)


def entries(matrix: np.ndarray, rng: np.random.Generator, spare: np.ndarray) -> np.ndarray:
    """One entry in 10 000 multiplied by 64, as by a flipped bit of the exponent."""
    damaged = matrix.copy()
    flat = damaged.reshape(-1)
    flat[rng.choice(flat.size, max(1, flat.size // 10_000), replace=False)] *= 64
    return damaged


def _noisy_rows(
    matrix: np.ndarray, rng: np.random.Generator, among: np.ndarray, share: float, times: float
) -> np.ndarray:
    damaged = matrix.copy()
    rows = rng.choice(among, min(len(among), max(1, round(share * len(matrix)))), replace=False)
    noise = rng.normal(size=(len(rows), matrix.shape[1]))
    noise *= times * np.median(np.linalg.norm(matrix, axis=1)) / np.linalg.norm(noise, axis=1, keepdims=True)
    damaged[rows] = noise
    return damaged


VARIANTS: dict[str, dict[str, Change]] = {
    "embeddings": {
        "as it is": as_it_is,
        "int8": int8,
        "spare rows": spare_rows,
        "any rows": any_rows,
        "entries": entries,
    },
    "encoder": {"as it is": as_it_is, "int8": int8, "entries": entries},
}
"""Layers -> name -> what is done to each of their matrices. A kernel's rows are its outputs, as for the solvers."""


def outlier_measures(matrix: np.ndarray) -> dict[str, float]:
    """How far rows and entries stand out.

    Returns:
        row_max: largest row norm, over the median. row_share: share of rows beyond twice the median norm. entry_max:
        largest magnitude, over the median of those that are not 0. kurtosis: excess kurtosis of the entries, 0 for a
        Gaussian.
    """
    matrix = np.asarray(matrix, np.float64)
    norms = np.linalg.norm(matrix, axis=1)
    centred = matrix - matrix.mean()
    return {
        "row_max": float(norms.max() / np.median(norms)),
        "row_share": float(np.mean(norms > 2 * np.median(norms))),
        "entry_max": float(np.abs(matrix).max() / np.median(np.abs(matrix[matrix != 0]))),
        "kurtosis": float(np.mean(centred**4) / np.mean(centred**2) ** 2 - 3),
    }


def changed(checkpoint: Checkpoint, layers: str, change: Change, spare: np.ndarray) -> Checkpoint:
    """The net with every selected matrix changed; a kernel is changed as its transpose."""
    rng = np.random.default_rng(SEED)
    leaves = dict(leaves_with_paths(checkpoint.params))
    new = {}
    for path in select_paths(checkpoint.params, layers):
        matrix = np.asarray(leaves[path], np.float32)
        table = path.endswith("embedding")
        new[path] = change(matrix, rng, spare) if table else change(matrix.T, rng, np.arange(matrix.shape[1])).T
    return dataclasses.replace(checkpoint, params=replace_leaves(checkpoint.params, new))


def measure(checkpoint: Checkpoint, dev: Prepared, layers: str, name: str) -> dict[str, Any]:
    """The record of one variant of a net."""
    used = np.unique(np.concatenate(dev.tokens.ids))
    spare = np.setdiff1d(np.arange(checkpoint.config.vocab_size), used)
    variant = changed(checkpoint, layers, VARIANTS[layers][name], spare)
    leaves = dict(leaves_with_paths(variant.params))
    paths = select_paths(variant.params, layers)
    matrices = [
        np.asarray(leaves[path]) if path.endswith("embedding") else np.asarray(leaves[path]).T for path in paths
    ]
    measures = [outlier_measures(matrix) for matrix in matrices]
    rows = []
    for keep in KEEPS[layers]:
        for method, p in WAYS:
            params, records = lpjax.compress(
                variant.params, select=layers, keep=keep, solver=method, p=p, **OPTIONS.get(method, {})
            )
            result = evaluate_task(dataclasses.replace(variant, params=params), dev)
            objective = float(np.mean([record.error_entries for record in records]))
            rows.append({"keep": keep, "method": method, "p": p, "metrics": result.metrics, "objective": objective})
    return {
        "layers": layers,
        "variant": name,
        "outliers": {key: max(values[key] for values in measures) for key in measures[0]},
        "dense": evaluate_task(variant, dev).metrics,
        "rows": rows,
    }


def main() -> None:
    """Compute the missing records."""
    options = parser(__doc__).parse_args()
    done = {(r["net"], r["task"], r["layers"], r["variant"]) for r in read_lines(RESULTS)}
    for cell in chosen_cells(options):
        _one_net(cell, options.runs, done)


def _one_net(cell: Cell, runs: Path, done: set[tuple[str, ...]]) -> None:
    checkpoint = lpjax.load_checkpoint(cell.source(runs))
    prepared = prepare(checkpoint, cell.dev())
    for layers, variants in VARIANTS.items():
        for name in variants:
            if (cell.net, cell.task, layers, name) in done:
                continue
            record = measure(checkpoint, prepared, layers, name)
            append_record(RESULTS, {"net": cell.net, "task": cell.task, **record, **run_record(SEED)})
            best = max(record["rows"], key=lambda row: sum(row["metrics"].values()))
            print(f"{cell.name} {layers}, {name}: dense {record['dense']}, best {best}", flush=True)


if __name__ == "__main__":
    main()
