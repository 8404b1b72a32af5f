"""Small trees of parameters, and solvers that cost nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpjax import Solution
from tests.helpers import heavy_tailed

N, D, RANK = 17, 7, 3


def matrix(seed: int = 0, shape: tuple[int, int] = (N, D), dtype: Any = np.float32) -> np.ndarray:
    return heavy_tailed(*shape, seed).astype(dtype)


def params(dtype: Any = np.float32) -> dict[str, Any]:
    """Tables, kernels of both orientations, and leaves that nothing may touch; NumPy and JAX; dict, list, tuple."""
    layers = [{"up": {"kernel": matrix(i, (D, N), dtype), "bias": np.zeros(N, dtype)}, "none": None} for i in range(2)]
    return {
        "table": {"embedding": matrix(5, (N, D), dtype)},
        "layers": layers,
        "pair": (jnp.asarray(matrix(6, (N, D))).astype(dtype), np.arange(3)),
        "name": "encoder",
    }


def first_columns(matrix: jax.Array, rank: int, *, p: Any, **options: Any) -> Solution:
    """A solver that costs nothing to compile: the first k columns, exactly."""
    keep = jnp.eye(rank, matrix.shape[1], dtype=matrix.dtype)
    zero = jnp.zeros((), matrix.dtype)
    return Solution(matrix[:, :rank], keep, zero, jnp.asarray(4, jnp.int32), jnp.asarray(False))


class NeverRun:
    """The same, but fails the test that runs it; tracing does not count."""

    def __init__(self) -> None:
        self.runs = 0

    def _count(self) -> None:
        self.runs += 1

    def __call__(self, matrix: jax.Array, rank: int, *, p: Any, **options: Any) -> Solution:
        jax.debug.callback(self._count)
        return first_columns(matrix, rank, p=p)


def shapes_in(function: Any, *arguments: Any) -> set[tuple[int, ...]]:
    """Shapes of everything that a function computes, inside nested calls too."""

    def walk(jaxpr: Any) -> set[tuple[int, ...]]:
        shapes = set()
        for equation in jaxpr.eqns:
            shapes |= {tuple(var.aval.shape) for var in equation.outvars}
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                shapes |= walk(inner) if hasattr(inner, "eqns") else set()
        return shapes

    return walk(jax.make_jaxpr(function)(*arguments).jaxpr)
