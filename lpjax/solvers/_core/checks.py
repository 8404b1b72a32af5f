"""Checks of solver arguments, before any work, and conversion to one dtype."""

from __future__ import annotations

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.dtypes import canonicalize_dtype
from jaxtyping import Array

from lpjax._check import check_all_finite, check_whole
from lpjax._exponents import largest_bits
from lpjax._numbers import check_fit, numbers, require_representable, solving_dtype
from lpjax.solvers._core.mapped import Mapped, map_matrix
from lpjax.solvers._core.problem import Init, Problem
from lpjax.solvers._core.solution import Solution
from lpjax.solvers.exponents import known_above_two
from lpjax.solvers.table import SOLVERS, Solver


def _concrete(value: Any) -> np.ndarray | None:
    """`value` as NumPy if it is known; None inside a jit, vmap or grad trace."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def _require_finite(name: str, value: Any) -> float | None:
    """The largest magnitude, exact if subnormal; None inside a trace.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    value = value.largest if isinstance(value, Mapped) else value
    if isinstance(value, Tracer):
        return None
    with jax.ensure_compile_time_eval():  # the value of a constant is known inside a caller's jit, too
        # A reduction, as an array sharded over processes cannot be fetched whole, and a mask would be a copy.
        largest = float(np.asarray(largest_bits(value)).view(value.dtype))
    check_all_finite(f"`{name}`", math.isfinite(largest))
    return largest


def check_rank(rank: int, shape: tuple[int, int]) -> None:
    """Refuse a rank outside 1…min(n, d)."""
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or not 1 <= rank <= min(shape):
        raise ValueError(
            f"`rank` is {rank!r}; expected a whole number from 1 to {min(shape)}, the smaller side of {shape}"
        )


def make_problem(
    matrix: Any,
    rank: int,
    solver: str,
    *,
    p: Any,
    num_iters: Any,
    tol: Any,
    row_weights: Any = None,
    metric: Any = None,
    init: Any = None,
) -> Problem:
    """Check a solver's arguments, before any work, and bring them to one dtype.

    Inside jit or vmap only shapes and dtypes are checked: values are not known there. A tall memory-mapped matrix
    (`np.memmap`) stays in its file if the solver reads A by row blocks.

    Args:
        solver: name in `SOLVERS`, whose entry gives the range of p, the default `tol` and the starts.
        matrix, rank, p, num_iters, tol, row_weights, metric, init: as for the solver.

    Raises:
        ValueError: as the solvers document.
    """
    entry = SOLVERS[solver]
    start, pair = _split_init(init, entry.starts)
    matrix = numbers("matrix", matrix)
    shape, dtype = matrix.shape, solving_dtype(canonicalize_dtype(matrix.dtype))
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"`matrix` has shape {shape}; expected (n, d), n and d at least 1 (vmap over stacks)")
    check_rank(rank, (shape[0], shape[1]))
    _check_exponent(p, entry, shape, dtype)
    iters = _concrete(num_iters)
    if iters is not None:
        check_whole("`num_iters`", iters.item() if iters.dtype.kind in "iu" else num_iters, 0)
    tol = float(jnp.finfo(dtype).eps ** entry.tol_power) if tol is None else tol
    known = _concrete(tol)
    if known is not None and (known.ndim or known.dtype.kind not in "iuf" or not 0 <= known < np.inf):
        raise ValueError(f"`tol` is {tol!r}; expected a finite number, 0 or more")

    in_file = entry.from_file and isinstance(matrix, np.memmap) and shape[0] >= shape[1]
    require_representable("matrix", matrix, dtype)
    matrix = map_matrix(matrix, dtype) if in_file else jnp.asarray(matrix, dtype)
    largest = _require_finite("matrix", matrix)
    return Problem(
        matrix,
        jnp.asarray(p, dtype),
        None if row_weights is None else _checked_weights(row_weights, shape, dtype),
        None if metric is None else _checked_metric(metric, shape, dtype),
        jnp.asarray(tol, dtype),
        jnp.asarray(num_iters, jnp.int32),
        None if pair is None else _checked_pair(pair, rank, shape, dtype),
        rank=int(rank),
        start=start,
        # The norm of a row of A may exceed its dtype, and so may sums within left @ right.
        high=known_above_two() if isinstance(p, Tracer) else bool(np.asarray(p) > 2),
        at_the_end=largest is not None and largest > float(jnp.finfo(dtype).max) / math.sqrt(shape[1]),
    )


def _check_exponent(p: Any, solver: Solver, shape: tuple[int, ...], dtype: Any) -> None:
    known = _concrete(p)
    if known is None:
        return
    if known.ndim or known.dtype.kind not in "iuf":
        raise ValueError(f"`p` is a {type(p).__name__}; expected a number in {solver.p_range}")
    solver.p_range.check(p)
    # (nd)^{1/p}, the size of the objective, and (n/d)^{1/p}, that of a Lewis ellipsoid, must not overflow.
    least = np.log(max(2, shape[0] * shape[1])) / np.log(float(jnp.finfo(dtype).max)) / 0.9
    if known < least:
        raise ValueError(f"`p` is {p}; expected {least:.2g} or more: below, norms of {shape} matrices overflow {dtype}")


def _checked_weights(weights: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    weights = jnp.asarray(numbers("row_weights", weights), dtype)
    check_fit(shape, row_weights=weights)
    heaviest = _require_finite("row_weights", weights)
    if not isinstance(weights, Tracer):
        with jax.ensure_compile_time_eval():  # as in `_require_finite`
            least = float(jnp.min(weights))
        if least < 0 or heaviest == 0:
            raise ValueError("`row_weights` has a negative entry or only zeros; expected ω ≥ 0, one above 0")
    return weights


def _checked_metric(metric: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    metric = jnp.asarray(numbers("metric", metric), dtype)
    check_fit(shape, metric=metric)
    _require_finite("metric", metric)
    known = _concrete(metric)
    if known is not None and not np.allclose(known, known.T, rtol=1e-3, atol=1e-5 * np.abs(known).max()):
        raise ValueError("`metric` is not symmetric; expected C = Cᵀ: pass (C + Cᵀ)/2")
    return metric


def _checked_pair(init: Any, rank: int, shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    left, right = (numbers("init", factor) for factor in init)
    if jnp.shape(left) != (shape[0], rank) or jnp.shape(right) != (rank, shape[1]):
        raise ValueError(
            f"`init` has factors of shapes {jnp.shape(left)} and {jnp.shape(right)}; "
            f"expected {(shape[0], rank)} and {(rank, shape[1])}"
        )
    pair = jnp.asarray(left, dtype), jnp.asarray(right, dtype)
    for factor in pair:
        _require_finite("init", factor)
    return pair


def require_products(solution: Solution) -> Solution:
    """Refuse a solution whose product left @ right overflows to ∞ − ∞ = NaN; return any other.

    Raises:
        ValueError: the product has a NaN, as the matrix is too near the end of its dtype's range.
    """
    if bool(jnp.any(jnp.isnan(solution.left @ solution.right))):
        raise ValueError(
            f"`matrix` is so near the end of the range of {solution.left.dtype} that sums within left @ right "
            "overflow; scale it, such as by 2**-8"
        )
    return solution


def _split_init(init: Any, names: tuple[str, ...]) -> tuple[Init, Any]:
    """A solver's `init` argument as (name of the start, pair); the name is unused if there is a pair.

    Raises:
        ValueError: `init` is neither a known name nor a pair of factors.
    """
    if init is None:
        return "best", None
    if isinstance(init, str):
        if init not in names:
            raise ValueError(f"`init` is {init!r}; expected one of {', '.join(names)}, or a pair (left, right)")
        return cast(Init, init), None
    if hasattr(init, "left") and hasattr(init, "right"):
        return "best", (init.left, init.right)
    if isinstance(init, tuple | list) and len(init) == 2:
        return "best", (init[0], init[1])
    raise ValueError(f"`init` is a {type(init).__name__}; expected a name, a LowRank, or a pair (left, right)")
