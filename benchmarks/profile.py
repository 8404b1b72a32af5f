"""Where the time of each solver goes: `python -m benchmarks.profile`.

The word embedding of all-MiniLM-L6-v2, rank 200, float32, as in `benchmarks.solvers`. The parts of a solver are timed
by themselves, each a compiled function of its own (an iteration by the difference of two numbers of them); what they
leave of the whole is "other". The work of a part is that of its matrix products, an eigendecomposition has none to
speak of; the machine's peak is that of the fastest product of large and of cache-sized matrices in the same run. Writes
benchmarks/results/profile.json; `python -m experiments.readme` makes the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

import lpjax
from benchmarks.matrices import MATRICES
from experiments.readme import profile_table
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.compression.timing import least_seconds
from lpjax.solvers._core.checks import make_problem
from lpjax.solvers._core.problem import normalize, project
from lpjax.solvers._core.rows import Rows, multiply
from lpjax.solvers._core.spectrum import gram_of_rows, no_gram
from lpjax.solvers._svd import svd_right

RESULTS = Path(__file__).parent / "results" / "profile.json"
ROUNDS = 6
RANK = MATRICES["embedding"].rank

Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a solve: its title, the key of its time, its number of runs, and the multiply-adds of a run."""

    title: str
    timed: str
    times: int
    work: float = 0.0


def profile(matrix: np.ndarray) -> list[dict[str, Any]]:
    """Every solver with its parts."""
    on_device = jnp.asarray(matrix)
    n, d = matrix.shape
    rows = Rows(on_device)
    gram = jax.jit(gram_of_rows)(rows)
    right = jnp.asarray(np.linalg.qr(np.random.default_rng(0).standard_normal((d, RANK)))[0].T, on_device.dtype)
    problem = make_problem(on_device, RANK, "svd", p=1.0, num_iters=0, tol=0.0)

    def compiled(function: Callable[..., Any], *arguments: Any) -> Run:
        return functools.partial(jax.jit(function), *arguments)

    def solve(name: str, **options: Any) -> Run:
        return functools.partial(lpjax.SOLVERS[name], on_device, RANK, tol=0.0, **options)

    runs: dict[str, Run] = {
        "checks": compiled(lambda a: jnp.isfinite(jnp.max(jnp.abs(a))), on_device),
        "spectrum": compiled(lambda problem: svd_right(normalize(problem)[0]), problem),
        "axes": compiled(lambda a: jnp.linalg.svd(a)[1:], gram),
        "eigenvectors": compiled(jnp.linalg.eigh, gram),
        "left": compiled(multiply, rows, right.T),
        "project": compiled(lambda problem, right: project(normalize(problem)[0], right, "entries"), problem, right),
        "gesdd": lambda: scipy.linalg.svd(matrix, full_matrices=False, check_finite=False),
        "peak, large": compiled(_product, jnp.ones((4096, 2048)), jnp.ones((2048, 2048))),
        "peak, in cache": compiled(_product, jnp.ones((2730, 384)), jnp.ones((384, 384))),
    }
    peaks = {"peak, large": 4096 * 2048 * 2048, "peak, in cache": 2730 * 384 * 384}
    steps = {"lewis": (2, 6), "irls_rows": (1, 5), "admm_entries": (4, 12)}  # an iteration is their difference
    cases: list[tuple[str, dict[str, Any]]] = [
        ("svd", {"p": 1.0}),
        ("lewis", {"p": 1.0, "num_iters": 4}),
        ("irls_rows", {"p": 1.0, "num_iters": 1}),
        ("admm_entries", {"p": 1.0, "num_iters": 16, "schedule": 16}),
        ("admm_entries", {"p": 1.5, "num_iters": 16, "schedule": 16}),
    ]
    for name, options in cases:
        runs[f"{name} {options['p']}"] = solve(name, **options)
        for count in steps.get(name, ()):
            runs[f"{name} {options['p']} {count}"] = solve(name, **options | {"num_iters": count})
    seconds = dict(zip(runs, least_seconds([*runs.values()], rounds=ROUNDS), strict=True))
    for name, options in cases:
        if name in steps:
            few, many = steps[name]
            key = f"{name} {options['p']}"
            seconds[f"{key} step"] = (seconds[f"{key} {many}"] - seconds[f"{key} {few}"]) / (many - few)
    for name in ("spectrum", "project"):
        seconds[name] -= seconds["checks"]  # they look for the scale first
    peak = max(work / seconds[name] for name, work in peaks.items())

    upper = n * sum(panel.shape[0] * panel.shape[1] for panel in no_gram(d, on_device.dtype))
    checks = Part("checks, scale: a pass each", "checks", 2)
    spectrum = Part("Gram matrix, eigenvectors", "spectrum", 1, upper)
    projected = Part("left, and the objective", "project", 1, 2 * n * d * RANK)
    whitened = n * d * d + upper
    outside = n * d * (d - RANK) + upper
    parts = {
        "svd": (checks, spectrum, projected),
        "lewis": (
            checks, spectrum, Part("map: whitening, Gram matrix, eigenvectors", "lewis 1.0 step", 4, whitened),
            Part("SVD of the axes", "axes", 1), projected,
        ),
        "irls_rows": (
            checks, spectrum, Part("a map of lewis, for a start", "lewis 1.0 step", 1, whitened),
            Part("eigenvectors of its axes", "eigenvectors", 1),
            Part("step or start: complement, Gram matrix, eigenvectors", "irls_rows 1.0 step", 3, outside),
            Part("left", "left", 1, n * d * RANK),
        ),
    }  # fmt: skip
    solver_rows = []
    for name, options in cases:
        key = f"{name} {options['p']}"
        step = Part("step: residual, prox, left, right", f"{key} step", 16, 3 * n * d * RANK)
        pieces = parts.get(name, (checks, spectrum, projected, step))
        whole, rest = seconds[key], seconds[key] - sum(part.times * seconds[part.timed] for part in pieces)
        part_rows = [
            {
                "part": part.title,
                "times": part.times,
                "share": part.times * seconds[part.timed] / whole,
                "of_peak": part.work / seconds[part.timed] / peak if part.work else None,
            }
            for part in pieces
        ]
        part_rows.append({"part": "all else", "times": 1, "share": rest / whole, "of_peak": None})
        work = sum(part.times * part.work for part in pieces)
        solver_rows.append(
            {"solver": name, "options": options, "seconds": whole, "of_peak": work / whole / peak, "parts": part_rows}
        )
    solver_rows.append({"solver": "gesdd", "options": {}, "seconds": seconds["gesdd"], "of_peak": None, "parts": []})
    return [{"peak_gflops": 2 * peak / 1e9} | row for row in solver_rows]


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")


def main() -> None:
    """Measure and write the record."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    matrix = MATRICES["embedding"].make()
    record = {"shape": list(matrix.shape), "rank": RANK, **run_record(0), "rows": profile(matrix)}
    write_json(RESULTS, record)
    print(profile_table(record))


if __name__ == "__main__":
    main()
