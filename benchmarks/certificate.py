"""Lower bounds over what solvers return, and their cost: `python -m benchmarks.certificate`.

Real matrices, and one with heavy tails: the bound that comes with each solve and that of `lpjax.certify`, as shares of
the objective of irls_rows, with the time of each over that of SciPy's gesdd. Wall times are the least of several, in
turns; processor times, which other work on the machine disturbs less, are recorded beside them. Tiny matrices, whose
optimum is known: rank 1 of two columns, where the best of all angles is found by search. Writes
benchmarks/results/certificate.json; `python -m experiments.readme` makes the tables.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
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
from lpjax.solvers._certify import _certify
from lpjax.solvers._core.certificate import rows_bound
from lpjax.solvers._core.checks import make_problem
from lpjax.solvers._core.problem import Problem, normalize

REPEATS = 3
SEED = 0
# Matrix, stride of its rows, ranks.
CASES = [
    ("embedding", 4, (20, 60, 120, 200)),
    ("kernel", 1, (110,)),
    ("square-kernel", 1, (96,)),
    ("bert-kernel-tails", 1, (192,)),
]
PS = (1.0, 1.5, 2.0)
COUNTS = (1, 3)  # iterations of `certify`
TINY = {"normal": 1.0, "outlier rows": 30.0}  # kinds, and how much longer a fifth of the rows is
TINY_PS = (1.0, 1.5, 2.0, 3.0, 6.0, np.inf)
TINY_COUNT, TINY_ROWS, TINY_ITERATIONS = 25, 9, 30


def in_turns(runs: dict[str, Callable[[], Any]]) -> dict[str, tuple[float, float]]:
    """Least seconds of wall time and of processor time of each run, after a warm-up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for repeat in range(REPEATS + 1):
        for name, run in runs.items():
            began = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            if repeat:
                times[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return {name: (min(wall for wall, _ in own), min(cpu for _, cpu in own)) for name, own in times.items()}


def share_of(solution: lpjax.Solution) -> float:
    """Lower bound over objective."""
    assert solution.lower_bound is not None
    return float(solution.lower_bound / solution.objective)


@jax.jit
def simple_bound(problem: Problem) -> jax.Array:
    """What every solve does for its lower bound, alone."""
    scaled, _ = normalize(problem)
    assert scaled.init is not None
    return rows_bound(scaled, scaled.init[1])


def measure(label: str, stride: int, rank: int) -> Iterator[dict[str, Any]]:
    """All exponents of one matrix at one rank."""
    matrix = np.ascontiguousarray(MATRICES[label].make()[::stride])
    on_device = jnp.asarray(matrix)
    gesdd = functools.partial(scipy.linalg.svd, matrix, full_matrices=False, check_finite=False)
    for p in PS:
        solution = lpjax.irls_rows(on_device, rank, p=p)
        problem = make_problem(on_device, rank, "irls_rows", p=p, num_iters=0, tol=0.0, init=solution)
        runs: dict[str, Callable[[], Any]] = {"gesdd": gesdd, "simple": functools.partial(simple_bound, problem)}
        shares = {"simple": share_of(solution)}
        for count in COUNTS:
            run = functools.partial(lpjax.certify, on_device, solution, p=p, num_iters=count)
            runs[f"certify {count}"] = run
            shares[f"certify {count}"] = share_of(run())
        seconds = in_turns(runs)
        yield {
            "matrix": label + (f", every {stride}th row" if stride > 1 else ""),
            "shape": list(matrix.shape),
            "rank": rank,
            "p": p,
            "objective": float(solution.objective),
            "bound_over_objective": shares,
            "seconds": {name: wall for name, (wall, _) in seconds.items()},
            "processor_seconds": {name: cpu for name, (_, cpu) in seconds.items()},
        }


def exact_optimum(matrix: np.ndarray, p: float) -> float:
    """Over rank 1 of two columns: the best of all angles, refined about the best ones."""

    def value(angles: np.ndarray) -> np.ndarray:
        across = np.abs(matrix @ np.stack([-np.sin(angles), np.cos(angles)]))
        return across.max(axis=0) if np.isinf(p) else (across**p).sum(axis=0) ** (1 / p)

    angles = np.concatenate([np.linspace(0, np.pi, 4001), np.arctan2(matrix[:, 1], matrix[:, 0])])
    best = angles[np.argsort(value(angles))[:4]]
    fine = best[:, None] + np.linspace(-1e-3, 1e-3, 1001)[None, :]
    return float(min(value(angles).min(), value(fine.ravel()).min()))


def measure_tiny() -> Iterator[dict[str, Any]]:
    """Bounds over optima that are known."""
    rng = np.random.default_rng(SEED)
    for kind, outliers in TINY.items():
        longer = np.where(rng.uniform(size=(TINY_COUNT, TINY_ROWS, 1)) < 0.2, outliers, 1)
        stack = (rng.normal(size=(TINY_COUNT, TINY_ROWS, 2)) * longer).astype(np.float32)
        for p in TINY_PS:
            simple, sharper = [], []
            for matrix in stack:
                best = exact_optimum(matrix.astype(np.float64), p)
                start = lpjax.irls_rows(matrix, 1, p=min(p, 2.0))
                known: dict[str, Any] = {"tol": 0.0, "init": start, "num_iters": TINY_ITERATIONS}
                problem = make_problem(matrix, 1, "irls_rows", p=2.0, **known)
                problem = dataclasses.replace(problem, p=jnp.asarray(p, jnp.float32))
                _, scaling = normalize(problem)
                simple.append(float(jnp.ldexp(simple_bound(problem), scaling.matrix)) / best)
                sharper.append(float(_certify(problem, "rows").lower_bound) / best)  # pyright: ignore
            yield {
                "kind": kind,
                "p": p if np.isfinite(p) else "inf",
                "matrices": len(stack),
                "bound_over_optimum": {
                    name: {"least": min(own), "median": float(np.median(own)), "most": max(own)}
                    for name, own in (("simple", simple), (f"certify {TINY_ITERATIONS}", sharper))
                },
            }


def print_tables(record: dict[str, Any]) -> None:
    """What was measured."""
    names = ["simple", *(f"certify {count}" for count in COUNTS)]
    table = Table(title="lower bound / objective of irls_rows; time / gesdd in brackets")
    for heading in ("matrix", "shape", "rank", "p", *names):
        table.add_column(heading, justify="left" if heading == "matrix" else "right")
    for row in record["rows"]:
        cells = [
            f"{row['bound_over_objective'][name]:.3f} ({row['seconds'][name] / row['seconds']['gesdd']:.2f})"
            for name in names
        ]
        shape = "×".join(map(str, row["shape"]))
        table.add_row(row["matrix"], shape, str(row["rank"]), f"{row['p']:g}", *cells)
    tiny = Table(title="lower bound / optimum of tiny matrices: least, median, most")
    for heading in ("kind", "p", "simple", f"certify {TINY_ITERATIONS}"):
        tiny.add_column(heading)
    for row in record["tiny"]:
        cells = [
            ", ".join(f"{own[name]:.4f}" for name in ("least", "median", "most"))
            for own in row["bound_over_optimum"].values()
        ]
        tiny.add_row(row["kind"], str(row["p"]), *cells)
    console = Console(width=120)
    console.print(table)
    console.print(tiny)


def main() -> None:
    """Measure, print tables and write the record."""
    tiny = list(measure_tiny())
    rows = [row for label, stride, ranks in CASES for rank in ranks for row in measure(label, stride, rank)]
    record = run_record(SEED) | {"rows": rows, "tiny": tiny}
    write_json(Path(__file__).parent / "results" / "certificate.json", record)
    print_tables(record)


if __name__ == "__main__":
    main()
