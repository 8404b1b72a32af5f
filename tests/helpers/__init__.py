"""Matrices with known answers, the table of solvers that property tests run over, and runs on many devices."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.dtypes import canonicalize_dtype
from safetensors.numpy import load_file, save_file

from lpjax.solvers import SOLVERS as SOLVERS

ITERATIVE = [name for name, solver in SOLVERS.items() if solver.starts]
OBJECTIVE = {name: solver.objective for name, solver in SOLVERS.items()}


def heavy_tailed(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Student-t entries with 2 degrees of freedom: full rank, with outliers of all sizes."""
    return np.random.default_rng(seed).standard_t(2, size=(n, d))


def low_rank(n: int, d: int, rank: int, seed: int = 0) -> np.ndarray:
    """A Gaussian matrix of exactly the given rank."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d))


def truncated_svd(matrix: np.ndarray, rank: int) -> np.ndarray:
    """LAPACK's best rank-k approximation in the Frobenius norm, in double precision."""
    u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def norm(residual: np.ndarray, p: float, over: str = "entries", weights: np.ndarray | None = None) -> float:
    """The lp objective by its definition, in double precision."""
    residual = np.asarray(residual, np.float64)
    weights = np.ones(residual.shape[0]) if weights is None else np.asarray(weights, np.float64)
    if p == np.inf:
        largest = np.abs(residual).max(axis=1) if over == "entries" else np.linalg.norm(residual, axis=1)
        return float(largest[weights > 0].max())
    sums = (np.abs(residual) ** p).sum(axis=1) if over == "entries" else np.linalg.norm(residual, axis=1) ** p
    return float((weights * sums).sum() ** (1 / p))


def product(solution) -> np.ndarray:
    """left @ right in double precision."""
    return np.asarray(solution.left, np.float64) @ np.asarray(solution.right, np.float64)


def subspace_distance(right: np.ndarray, truth: np.ndarray) -> float:
    """Sine of the largest angle between the row spaces of two matrices."""
    a = np.linalg.qr(np.asarray(right, np.float64).T)[0]
    b = np.linalg.qr(np.asarray(truth, np.float64).T)[0]
    return float(np.linalg.norm(b - a @ (a.T @ b), 2))


_CHILD = """
import jax, os, sys
if "PORT" in os.environ:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    count, number = int(os.environ["PROCESSES"]), int(os.environ["PROCESS"])
    jax.distributed.initialize(f"127.0.0.1:{os.environ['PORT']}", count, number, heartbeat_timeout_seconds=10)
from MODULE import NAME
NAME(sys.argv[1])
"""


def on_devices(function: str, target: Path, devices: int = 8, processes: int = 1) -> dict[str, np.ndarray]:
    """What a function of a test module writes by `write_first` to `target`, on `devices` devices of this host.

    Several processes are joined by `jax.distributed`; each has its share of the devices.
    """
    running = start_on_devices(function, target, devices, processes)
    outputs = outcome(running, timeout=600)
    assert all(process.returncode == 0 for process in running), "\n".join(outputs)
    return load_file(target)


def write_first(arrays: dict[str, np.ndarray], target: str | Path) -> None:
    """Have the first process write a safetensors file, once all say the same."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        alike = {name: np.asarray(array, canonicalize_dtype(array.dtype)) for name, array in arrays.items()}
        multihost_utils.assert_equal(alike, "processes have different results")
    if jax.process_index() == 0:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, target)


def outcome(running: list[subprocess.Popen[str]], timeout: float) -> list[str]:
    """What processes print until they end, all within `timeout` seconds."""
    until = time.monotonic() + timeout
    try:
        return [process.communicate(timeout=max(until - time.monotonic(), 0))[0] for process in running]
    except subprocess.TimeoutExpired as error:
        for process in running:
            process.kill()
        output = "\n".join(process.communicate()[0] for process in running)
        raise AssertionError(f"not done within {timeout:g} seconds, but said:\n{output}") from error


def start_on_devices(function: str, target: Path, devices: int, processes: int) -> list[subprocess.Popen[str]]:
    """The processes of `on_devices`, running."""
    module, _, name = function.rpartition(".")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment |= {"PORT": str(free.getsockname()[1]), "PROCESSES": str(processes)}
    command = [sys.executable, "-c", _CHILD.replace("MODULE", module).replace("NAME", name), str(target)]
    return [
        subprocess.Popen(
            command,
            env=environment | {"PROCESS": str(number)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]
