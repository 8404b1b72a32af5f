"""Solvers, an encoder's kernels and forward passes on a GPU or TPU, in seconds: `python -m benchmarks.accelerator`.

- Solvers: with the options and iterations of their records of a CPU (`benchmarks.solvers`), beside JAX's SVD on the
  same device and SciPy's gesdd on the cores of the same machine. The objective is divided by that of the record.
- The 72 kernels of `benchmarks.encoder` through `lpjax.compress`, which solves those of one shape together, by `vmap`;
  twice: the first call compiles.
- Forward passes of all-MiniLM-L6-v2 and of a BERT of base size with random weights: dense, factored, in 8 bits, and of
  MiniLM at a tenth of its bytes, in float32 and in bfloat16. All nets take turns on a batch; the least time counts.

Writes benchmarks/results/accelerator.json, part by part; `python -m experiments.readme` makes the tables.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

import lpjax
from benchmarks import encoder
from benchmarks.encoder import gesdd_seconds, kernels
from benchmarks.matrices import MATRICES, Matrix
from benchmarks.solvers import best_time
from examples.sizes import rounding_plan
from experiments.full_size import CONFIGS, random_params
from experiments.readme import accelerator_forward_table, accelerator_kernels_table, accelerator_solvers_table
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.checkpoint import Checkpoint
from lpjax.checkpoint.source import ALIAS, find_model
from lpjax.compression.timing import least_seconds
from lpjax.models import device_params

SEED = 0
LABELS = ("embedding", "bert-embedding", "roberta-embedding-rows", "bert-tall-kernel-entries")
CASES = ("svd", "lewis p=1, residual 1e-3", "irls_rows p=1, within 0.01 %", "admm_entries p=1, within 1 %")
KEEPS = (0.5, 0.25)
TENTH = 0.1  # of the bytes
BATCHES = ((1, 32), (32, 64), (256, 128))
DTYPES = ("float32", "bfloat16")
SECONDS, LEAST = 1.0, 5  # for a batch, and rounds at the least
RESULTS = Path(__file__).parent / "results"


def solver_rows(label: str, matrix: Matrix) -> list[dict[str, Any]]:
    """Seconds of each case on one matrix, and of two whole SVDs."""
    on_host = matrix.make()
    on_device = jnp.asarray(on_host)
    record = json.loads((RESULTS / "solvers" / f"{label}.json").read_text(encoding="utf-8"))
    whole = {
        "gesdd_seconds": best_time(lambda: scipy.linalg.svd(on_host, full_matrices=False, check_finite=False), 1),
        "jax_svd_seconds": best_time(lambda: jnp.linalg.svd(on_device, full_matrices=False)),
    }
    rows = []
    for case in (row for row in record["rows"] if row["case"] in CASES):
        run = functools.partial(lpjax.SOLVERS[case["solver"]], on_device, matrix.rank, **case["options"])
        began = time.perf_counter()
        solution = jax.block_until_ready(run())
        first = time.perf_counter() - began
        seconds = best_time(run)
        rows.append(
            {
                "matrix": label,
                "shape": list(on_host.shape),
                "rank": matrix.rank,
                "case": case["case"],
                "seconds": seconds,
                "compile_seconds": first - seconds,
                "objective_over_cpu": float(solution.objective) / case["objective"],
                **whole,
            }
        )
        print(rows[-1], flush=True)
    return rows


def kernel_rows() -> list[dict[str, Any]]:
    """Seconds of `compress` for 72 kernels."""
    params = kernels()
    lapack = gesdd_seconds(jax.tree.leaves(params))
    return [row | {"gesdd_seconds": lapack} for row in encoder.solver_rows(params)]


def nets(checkpoint: Checkpoint, *, real: bool) -> dict[str, Any]:
    """Params by what was done to them; random weights cannot be compressed to a tenth of the bytes."""
    params = checkpoint.params
    trees = {"dense": params}
    for keep in KEEPS:
        trees[f"keep {keep:g}"] = lpjax.compress(params, select="encoder", keep=keep, solver="svd").params
    trees["8 bits"] = lpjax.compress(params, rounding_plan(params, 8, None)).params
    if real:
        trees["a tenth"] = lpjax.compress(params, lpjax.plan_for_size(params, TENTH)).params
    return trees


def forward_rows(name: str, checkpoint: Checkpoint, *, real: bool) -> list[dict[str, Any]]:
    """Least seconds of every net on every batch, and the bytes of its weights on the device."""
    rng, config = np.random.default_rng(SEED), checkpoint.config
    trees, rows = nets(checkpoint, real=real), []
    for dtype in DTYPES:
        on_device = {label: device_params(tree, jnp.dtype(dtype)) for label, tree in trees.items()}
        held = {label: sum(x.nbytes for x in jax.tree.leaves(tree)) for label, tree in on_device.items()}
        for batch, length in BATCHES:
            inputs = {"input_ids": jnp.asarray(rng.integers(1000, config.vocab_size, (batch, length), dtype=np.int32))}

            def forward(tree: Any, inputs: Any = inputs, dtype: str = dtype) -> Any:
                return lpjax.encode(tree, config, inputs, dtype=jnp.dtype(dtype))

            runs: list[Callable[[], Any]] = [functools.partial(forward, tree) for tree in on_device.values()]
            times = least_seconds(runs, rounds=LEAST, seconds=SECONDS)
            row = {"net": name, "dtype": dtype, "batch": batch, "length": length, "bytes": held}
            rows.append(row | {"seconds": dict(zip(on_device, times, strict=True))})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure all, write the record, print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=RESULTS / "accelerator.json", metavar="FILE")
    out = arguments.parse_args().out
    record: dict[str, Any] = {**run_record(SEED), "solvers": [], "kernels": [], "forward": []}
    base = lpjax.config_from_json(CONFIGS["bert"])
    minilm, random = lpjax.load_checkpoint(find_model(ALIAS)), Checkpoint(random_params(base), base)
    parts: list[tuple[str, Callable[[], list[dict[str, Any]]]]] = [
        *(("solvers", functools.partial(solver_rows, label, MATRICES[label])) for label in LABELS),
        ("kernels", kernel_rows),
        ("forward", functools.partial(forward_rows, ALIAS, minilm, real=True)),
        ("forward", functools.partial(forward_rows, "BERT-base size", random, real=False)),
    ]
    for part, measure in parts:
        record[part] += measure()
        write_json(out, record)
    for table in (accelerator_solvers_table, accelerator_kernels_table, accelerator_forward_table):
        print(table(record))


if __name__ == "__main__":
    main()
