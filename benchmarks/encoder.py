"""All kernels of a BERT-base encoder against as many LAPACK SVDs: `python -m benchmarks.encoder`.

48 kernels of 768 × 768, 12 of 768 × 3072 and 12 of 3072 × 768, random, their singular values falling as those of real
kernels do; at keep 0.5 through `lpjax.compress`, twice: the first call compiles. Beside it SciPy's gesdd on the same
matrices, timed before and after, the lesser counts. Writes benchmarks/results/encoder.json;
`python -m experiments.readme` makes the table.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.linalg

import lpjax
from experiments.readme import kernels_table
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.compression import program

RESULTS = Path(__file__).parent / "results" / "encoder.json"
SEED = 0
KEEP = 0.5
CASES = (("svd", 2.0), ("lewis", 1.0), ("irls_rows", 1.0))


def kernels() -> dict[str, Any]:
    """The tree of 72 kernels."""
    rng = np.random.default_rng(SEED)

    def kernel(n: int, d: int) -> dict[str, np.ndarray]:
        # A product of Gaussian matrices with columns of falling size: a spectrum between flat and low rank, and a
        # little of everything beside it.
        falling = np.arange(1, 769, dtype=np.float32) ** -0.5
        product = (rng.standard_normal((n, 768), np.float32) * falling) @ rng.standard_normal((768, d), np.float32)
        return {"kernel": 0.02 * product + 0.01 * rng.standard_normal((n, d), np.float32)}

    layers = {}
    for i in range(12):
        square = {name: kernel(768, 768) for name in ("query", "key", "value", "merge")}
        layers[str(i)] = {"attention": square, "intermediate": kernel(768, 3072), "output": kernel(3072, 768)}
    return {"layer": layers}


def main() -> None:
    """Measure and write the record."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = kernels()
    matrices = jax.tree.leaves(params)

    lapack = [gesdd_seconds(matrices)]
    rows = solver_rows(params)
    lapack.append(gesdd_seconds(matrices))
    record = {"keep": KEEP, "kernels": len(matrices), "gesdd_seconds": min(lapack), **run_record(SEED), "rows": rows}
    write_json(RESULTS, record)
    print(kernels_table(record))


def gesdd_seconds(matrices: list[np.ndarray]) -> float:
    """Seconds of LAPACK's SVDs of all matrices, one after another."""
    began = time.perf_counter()
    for matrix in matrices:
        scipy.linalg.svd(matrix, full_matrices=False, check_finite=False)
    return time.perf_counter() - began


def solver_rows(params: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds of `compress` for all kernels, a case a row; the first call compiles."""
    rows = []
    for solver, p in CASES:
        program._compile.cache_clear()
        jax.clear_caches()
        times, records = [], ()
        for _ in range(2):
            began = time.perf_counter()
            records = lpjax.compress(params, select="kernel", keep=KEEP, solver=solver, p=p).records
            times.append(time.perf_counter() - began)
        rows.append(
            {
                "solver": solver,
                "p": p,
                "first_seconds": times[0],
                "seconds": times[1],
                "programs": program._compile.cache_info().misses,
                "converged": all(record.converged for record in records),
                "objective_rows": float(np.mean([record.error_rows for record in records])),
            }
        )
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
