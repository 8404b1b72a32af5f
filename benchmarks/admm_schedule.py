"""Fit the constants of `admm_entries`' schedule again: `python -m benchmarks.admm_schedule [--iterations N]`.

The loss is the mean, over schedules of 4, 8, 16 and 32 steps, of log(objective / the SVD's objective) at p = 1, on
every 64th row of the embedding of all-MiniLM-L6-v2 at rank 200 (k/d = 0.52). Its gradient with respect to the nine
constants is taken through the iteration, forward mode, and L-BFGS follows it from a plain start: a constant ρ of the
objective's own unit, no over-relaxation, hardly any damping. The record, benchmarks/results/admm_schedule.json, has the
constants that were found beside those in the code, and the losses of both, on these rows and on the whole embedding:
there is a valley of constants that are about equally good, so losses are what to compare.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich.console import Console
from scipy.optimize import minimize

from benchmarks.matrices import EMBEDDING, of_minilm
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.solvers import svd
from lpjax.solvers._admm_entries import solve_scheduled
from lpjax.solvers._admm_schedule import FITTED, Constants
from lpjax.solvers._core.checks import make_problem

RESULTS = Path(__file__).parent / "results" / "admm_schedule.json"
LENGTHS = (4, 8, 16, 32)
RANK = 200
START = Constants(
    begin=0.0,
    begin_slope=0.0,
    middle=0.0,
    end=0.0,
    end_slope=0.0,
    relaxation=1.0,
    relaxation_fall=0.0,
    damping=0.1,
    damping_fall=0.0,
)


def loss_of(
    values: Float[Array, " constants"], matrix: Float[np.ndarray, "n d"], rank: int, lengths: tuple[int, ...]
) -> Array:
    """Mean of log(objective / the SVD's) after one schedule of each length."""
    constants = Constants(*values)
    least = jnp.sum(jnp.abs(matrix - jnp.matmul(*svd(matrix, rank)[:2], precision="highest")))
    objectives = []
    for length in lengths:
        problem = make_problem(matrix, rank, "admm_entries", p=1.0, num_iters=length, tol=0.0, init="svd")
        rho = jnp.ones((), problem.p.dtype)
        objectives.append(solve_scheduled(problem, rho, jnp.asarray(length, jnp.int32), constants).objective)
    return jnp.mean(jnp.log(jnp.stack(objectives) / least))


def fit(
    matrix: Float[np.ndarray, "n d"], rank: int, lengths: tuple[int, ...], iterations: int, *, tell: Any = None
) -> tuple[Constants, list[float]]:
    """The constants of the lowest loss that was found, and all losses on the way there."""
    loss = functools.partial(loss_of, matrix=matrix, rank=rank, lengths=lengths)
    value_and_slope = jax.jit(lambda values: (loss(values), jax.jacfwd(loss)(values)))
    losses: list[float] = []

    def evaluate(values: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = value_and_slope(jnp.asarray(values, jnp.float32))
        losses.append(float(value))
        if tell is not None:
            tell(len(losses), losses[-1])
        return losses[-1], np.asarray(slope, np.float64)

    result: Any = minimize(evaluate, np.array(START), jac=True, method="L-BFGS-B", options={"maxfun": iterations})
    return Constants(*(round(float(value), 3) for value in result.x)), losses


def main() -> None:
    """Fit, and write the record."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--iterations", type=int, default=25, metavar="N")
    iterations = arguments.parse_args().iterations
    console, whole = Console(), of_minilm(EMBEDDING).astype(np.float32)
    matrix = whole[::64]
    began = time.perf_counter()

    def tell(iteration: int, loss: float) -> None:
        console.print(f"{iteration}/{iterations} loss {loss:.5f} {time.perf_counter() - began:.0f} s")

    fitted, losses = fit(matrix, RANK, LENGTHS, iterations, tell=tell)

    def evaluate(constants: Constants, rows: np.ndarray) -> float:
        return float(loss_of(jnp.asarray(constants, jnp.float32), rows, RANK, LENGTHS))

    sets = {"start": START, "found": fitted, "in the code": FITTED}
    record = {
        "matrix": "embedding, every 64th row",
        "shape": list(matrix.shape),
        "rank": RANK,
        "lengths": LENGTHS,
        **run_record(0),
        "rows": [
            {
                "constants": name,
                "loss": evaluate(constants, matrix),
                "loss_whole": evaluate(constants, whole),
                **{key: float(value) for key, value in constants._asdict().items()},
            }
            for name, constants in sets.items()
        ],
        "losses": losses,
    }
    write_json(RESULTS, record)
    console.print(record["rows"])


if __name__ == "__main__":
    main()
