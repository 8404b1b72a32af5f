"""Solvers against LAPACK's SVD of the same matrix, in one run: `python -m benchmarks.solvers [MATRIX ...]`.

By default the word embedding of all-MiniLM-L6-v2 (30522 × 384, float32), rank 200; `benchmarks.matrices` has others.
Times are the least of several, after a warm-up and blocked on; each is divided by that of SciPy's gesdd, the fastest
LAPACK SVD at hand (NumPy's and JAX's are recorded too), timed between the solvers. Peak memory is that of a second
solve in a process of its own (Linux), in copies of the matrix; the matrix itself is one of them. Writes
benchmarks/results/solvers/MATRIX.json; `python -m experiments.readme` makes the tables.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from rich.console import Console
from rich.table import Table

import lpjax
from benchmarks.matrices import MATRICES
from lpjax._files.json import write_json
from lpjax._provenance import run_record

REPEATS = 3
LARGE = 2e7  # entries; from here on once is enough
# Label, solver, options, and the share above the best objective known that the iterations are to come within, if any.
CASES: list[tuple[str, str, dict[str, Any], float | None]] = [
    ("svd", "svd", {"p": 1.0}, None),
    ("lewis p=1, residual 1e-3", "lewis", {"p": 1.0, "tol": 1e-3}, None),
    ("lewis p=1.5, residual 1e-3", "lewis", {"p": 1.5, "tol": 1e-3}, None),
    ("irls_rows p=1, within 0.01 %", "irls_rows", {"p": 1.0}, 1e-4),
    ("irls_rows p=1.5, within 0.01 %", "irls_rows", {"p": 1.5}, 1e-4),
    ("admm_entries p=1, within 5 %", "admm_entries", {"p": 1.0}, 0.05),
    ("admm_entries p=1, within 1 %", "admm_entries", {"p": 1.0}, 0.01),
    ("admm_entries p=1.5, within 5 %", "admm_entries", {"p": 1.5}, 0.05),
    ("admm_entries p=1.5, within 1 %", "admm_entries", {"p": 1.5}, 0.01),
]
# How the best objective known was found: this number of iterations from each of these starts.
REFERENCES: dict[str, dict[str, Any]] = {
    "irls_rows": {"num_iters": 50, "tol": 0.0},
    "admm_entries": {"num_iters": 128, "schedule": 128, "tol": 0.0},
}
STARTS = ("svd", "lewis")


def best_time(run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Least seconds of `repeats` runs after a warm-up."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return min(times)


class Known:
    """The best objectives known of one matrix: the lowest after very many iterations, from each start."""

    def __init__(self, matrix: jax.Array, rank: int) -> None:
        self.matrix, self.rank = matrix, rank
        self._lowest: dict[tuple[str, float], float] = {}

    def how(self, solver: str) -> dict[str, Any]:
        """Options of the long runs; half of the steps of admm_entries if the matrix is large."""
        options = REFERENCES[solver] | {"init": STARTS}
        if solver == "admm_entries" and self.matrix.size > LARGE:
            options |= {"num_iters": 64, "schedule": 64, "init": ("best",)}
        return options

    def best(self, solver: str, p: float) -> float:
        """The lowest objective."""
        if (solver, p) not in self._lowest:
            options = self.how(solver)
            starts = options.pop("init")
            run = functools.partial(lpjax.SOLVERS[solver], self.matrix, self.rank, p=p, **options)
            self._lowest[solver, p] = min(float(run(init=init).objective) for init in starts)
        return self._lowest[solver, p]

    def iterations_within(self, solver: str, p: float, share: float) -> int:
        """Fewest iterations that come within `share` of it, by bisection: more come nearer."""

        def is_near(count: int) -> bool:
            objective = lpjax.SOLVERS[solver](self.matrix, self.rank, p=p, num_iters=count, tol=0.0).objective
            return bool(objective <= (1 + share) * self.best(solver, p))

        most = REFERENCES[solver]["num_iters"]
        count = bisect.bisect_left(range(most + 1), True, key=is_near)
        if count > most:
            raise RuntimeError(f"{solver} does not come within {share} of {self.best(solver, p)}")
        return count


def peak_copies(label: str, solver: str, options: dict[str, Any]) -> float:
    """Peak memory of one solve in a fresh process, in copies of the matrix."""
    command = [sys.executable, "-m", "benchmarks.solvers", label, "--memory", solver, json.dumps(options)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def restart_peak() -> None:
    """Reset the high-water mark to the memory in use now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure_memory(label: str, solver: str, options: dict[str, Any]) -> None:
    """Print the peak of one solve, the matrix and the result included; compilation is over before it."""
    matrix, rank = jnp.array(MATRICES[label].make()), MATRICES[label].rank
    jax.block_until_ready(lpjax.SOLVERS[solver](matrix, rank, **options))
    gc.collect()
    others = resident("VmRSS") - matrix.nbytes
    restart_peak()
    jax.block_until_ready(lpjax.SOLVERS[solver](matrix, rank, **options))
    print((resident("VmHWM") - others) / matrix.nbytes)


def measure(label: str) -> dict[str, Any]:
    """Every case on one matrix."""
    matrix, rank = MATRICES[label].make(), MATRICES[label].rank
    on_device = jnp.asarray(matrix)
    known = Known(on_device, rank)
    repeats = 1 if matrix.size > LARGE else REPEATS
    singular = scipy.linalg.svdvals(matrix.astype(np.float64))

    def gesdd() -> Any:
        return scipy.linalg.svd(matrix, full_matrices=False, check_finite=False)

    lapack = {
        "scipy": best_time(gesdd, repeats),
        "numpy": best_time(lambda: np.linalg.svd(matrix, full_matrices=False), repeats),
        "jax": best_time(lambda: jnp.linalg.svd(on_device, full_matrices=False), repeats),
    }
    rows = []
    for title, solver, options, share in CASES:
        options, lowest = dict(options), None
        if share is not None:
            # Without a tolerance, by which a run may end before.
            options |= {"num_iters": known.iterations_within(solver, options["p"], share), "tol": 0.0}
            lowest = known.best(solver, options["p"])
        began = time.perf_counter()
        jax.clear_caches()
        jax.block_until_ready(lpjax.SOLVERS[solver](on_device, rank, **options))
        first = time.perf_counter() - began
        # LAPACK right before and after, so that both see the same machine.
        around = [best_time(gesdd, repeats)]
        run = functools.partial(lpjax.SOLVERS[solver], on_device, rank, **options)
        seconds = best_time(run, repeats)
        around.append(best_time(gesdd, repeats))
        solution = run()
        over = "rows" if solver == "irls_rows" else "entries"
        exact = lpjax.svd(on_device, rank, p=options["p"], over=over).objective
        rows.append(
            {
                "case": title,
                "solver": solver,
                "options": options,
                "seconds": seconds,
                "gesdd_seconds": min(around),
                "ratio": seconds / min(around),
                "compile_seconds": first - seconds,
                "num_iters": int(solution.num_iters),
                "converged": bool(solution.converged),
                "objective": float(solution.objective),
                "objective_over_svd": float(solution.objective / exact),
                "best_known": lowest,
                "best_known_by": known.how(solver) if lowest else None,
                "above_best_known": float(solution.objective) / lowest - 1 if lowest else None,
                "peak_copies": peak_copies(label, solver, options),
            }
        )
        print(f"{label}: {title}: {rows[-1]['ratio']:.2f}", file=sys.stderr, flush=True)
    frobenius = float(lpjax.svd(on_device, rank).objective)
    return run_record(seed=0) | {
        "matrix": label,
        "shape": list(matrix.shape),
        "rank": rank,
        "lapack_seconds": lapack,
        "svd_objective_p2_relative_to_lapack_f64": frobenius / float(np.linalg.norm(singular[rank:])) - 1,
        "rows": rows,
    }


def print_table(record: dict[str, Any]) -> None:
    """What was measured on one matrix."""
    n, d = record["shape"]
    lapack = record["lapack_seconds"]["scipy"]
    table = Table(title=f"{record['matrix']}: {n} × {d}, rank {record['rank']}; gesdd {lapack:.2f} s")
    for heading in ("solver", "time / gesdd", "objective / SVD's", "iterations", "peak, copies", "compile, s"):
        table.add_column(heading, justify="left" if heading == "solver" else "right")
    for row in record["rows"]:
        table.add_row(
            row["case"],
            f"{row['ratio']:.2f}",
            f"{row['objective_over_svd']:.4f}",
            str(row["num_iters"]),
            f"{row['peak_copies']:.1f}",
            f"{row['compile_seconds']:.1f}",
        )
    Console(width=110).print(table)


def main() -> None:
    """Run every case on the chosen matrices; print tables and write records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("matrices", nargs="*", choices=MATRICES, default="embedding", metavar="MATRIX")
    parser.add_argument("--memory", nargs=2, metavar=("SOLVER", "OPTIONS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    labels = [options.matrices] if isinstance(options.matrices, str) else options.matrices
    if options.memory:
        measure_memory(labels[0], options.memory[0], json.loads(options.memory[1]))
        return
    for label in labels:
        record = measure(label)
        write_json(Path(__file__).parent / "results" / "solvers" / f"{label}.json", record)
        print_table(record)


if __name__ == "__main__":
    main()
