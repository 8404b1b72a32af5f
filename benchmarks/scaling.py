"""Cost against the number of rows: `python -m benchmarks.scaling`.

768 columns, rank 256, 1,000 to 500,000 rows of a matrix with a slowly falling spectrum and heavy-tailed noise; every
solver with a fixed number of iterations, so that only the rows differ. Times are the least of three (above 64,000 rows,
of one) after a warm-up. The slope is that of log time over log rows, from 16,000 rows on, where the 768 × 768 work that
does not depend on them is small, and over all. Writes benchmarks/results/scaling.json and scaling.png.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import lpjax
from benchmarks.solvers import best_time
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.report.figure import new_figure, save_png

RESULTS = Path(__file__).parent / "results"
COLUMNS, RANK, LARGE = 768, 256, 16_000
ROWS = (1_000, 4_000, 16_000, 64_000, 256_000, 500_000)
CASES: dict[str, dict[str, Any]] = {
    "svd": {},
    "lewis": {"p": 1.0, "num_iters": 3, "tol": 0.0},
    "irls_rows": {"p": 1.0, "num_iters": 2, "tol": 0.0, "init": "svd"},
    "admm_entries": {"p": 1.0, "num_iters": 4, "init": "svd"},
}
COLOURS, MARKERS = ("#444444", "#0072b2", "#d55e00", "#009e73"), "osD^"


def matrix(rows: int) -> np.ndarray:
    """Singular values like i^−0.7 and Laplace noise, made block by block."""
    rng = np.random.default_rng(0)
    right = np.linalg.qr(rng.normal(size=(COLUMNS, COLUMNS)))[0].astype(np.float32)
    right *= (np.arange(1, COLUMNS + 1) ** -0.7).astype(np.float32)[:, None]
    made = np.empty((rows, COLUMNS), np.float32)
    for start in range(0, rows, 10_000):
        block = made[start : start + 10_000]
        block[:] = rng.standard_normal(block.shape, np.float32) @ right
        block += (0.02 * rng.laplace(size=block.shape)).astype(np.float32)
    return made


def slope(points: list[tuple[int, float]]) -> float:
    """The slope of log seconds over log rows, by least squares."""
    rows, seconds = np.log(np.asarray(points, np.float64)).T
    return float(np.polyfit(rows, seconds, 1)[0])


def plot(record: dict[str, Any], path: Path) -> None:
    """Seconds against rows, both logarithmic, with a line of slope one."""
    figure = new_figure(6, 4.2)
    axes = figure.subplots()
    for (name, case), colour, marker in zip(record["cases"].items(), COLOURS, MARKERS, strict=True):
        label = f"{name}, slope {case['slope_large']:.2f}"
        axes.loglog(*zip(*case["points"], strict=True), color=colour, marker=marker, markersize=5, lw=1.5, label=label)
    ends = np.asarray([ROWS[0], ROWS[-1]], float)
    lowest = min(case["points"][-1][1] for case in record["cases"].values())
    axes.loglog(ends, 0.5 * lowest * ends / ends[1], color="0.7", lw=1, ls="--", label="slope 1")
    axes.set_xlabel(f"rows of {COLUMNS} columns, rank {RANK}")
    axes.set_ylabel("seconds")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    save_png(figure, path)


def main() -> None:
    """Time every solver at every height."""
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in CASES}
    for rows in ROWS:
        on_device = jnp.asarray(matrix(rows))
        for name, options in CASES.items():
            run = functools.partial(lpjax.SOLVERS[name], on_device, RANK, **options)
            points[name].append((rows, best_time(run, 3 if rows <= 64_000 else 1)))
            print(rows, name, f"{points[name][-1][1]:.3f} s", file=sys.stderr, flush=True)
    cases = {
        name: {
            "options": options,
            "points": points[name],
            "slope": slope(points[name]),
            "slope_large": slope([point for point in points[name] if point[0] >= LARGE]),
        }
        for name, options in CASES.items()
    }
    record = run_record(seed=0) | {"columns": COLUMNS, "rank": RANK, "large": LARGE, "cases": cases}
    write_json(RESULTS / "scaling.json", record)
    plot(record, RESULTS / "scaling.png")


if __name__ == "__main__":
    main()
