"""What every solver does around its algorithm: check, scale to order one, scale back."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype
from jaxtyping import Array, Bool, Float, Int, Scalar

from lpjax._check import check_whole
from lpjax._exponents import exponent_of, finite_bits, largest_bits, largest_exponent, ldexp, scaled
from lpjax._lapack import eigh, with_pseudo_inverse
from lpjax._numbers import numbers, require_representable, solving_dtype
from lpjax.objectives import Over, blocked_sum, power_sums
from lpjax.solvers._core.mapped import Mapped, map_matrix
from lpjax.solvers._core.rows import Rows, map_rows, over_devices
from lpjax.solvers._core.solution import Solution
from lpjax.solvers.table import SOLVERS


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["matrix", "p", "row_weights", "metric", "tol", "num_iters", "init"],
    meta_fields=["axes", "at_the_end"],
)
@dataclasses.dataclass(frozen=True)
class Problem:
    """A matrix with its weights and settings; the arguments of a jitted solver core, a pytree.

    Attributes:
        matrix: A, shape (n, d), floating; inside `shard_map` the rows of this device, as of all that has n rows. Or
            one that stays in its file.
        p: exponent, a scalar of A's dtype.
        row_weights: ω, shape (n,), or None for ones.
        metric: C, shape (d, d), or None for the identity.
        tol: tolerance, a scalar of A's dtype.
        num_iters: iteration limit, an int32 scalar.
        init: starting pair (left, right), or None.
        axes: names of the mesh axes that the rows are spread over, where the core runs inside `shard_map`.
        at_the_end: whether products of factors of A may exceed the dtype; false where values are not known.
    """

    matrix: Float[Array, "n d"] | Mapped
    p: Scalar
    row_weights: Float[Array, " n"] | None
    metric: Float[Array, "d d"] | None
    tol: Scalar
    num_iters: Scalar
    init: tuple[Float[Array, "n k"], Float[Array, "k d"]] | None
    axes: tuple[str, ...] = ()
    at_the_end: bool = False


def _concrete(value: Any) -> np.ndarray | None:
    """`value` as NumPy where it is known, None inside a jit, vmap or grad trace."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value)


def _require_finite(name: str, value: Any) -> float | None:
    """The largest magnitude, of subnormal numbers, too; None inside a trace.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    value = value.largest if isinstance(value, Mapped) else value
    if isinstance(value, jax.core.Tracer):
        return None
    with jax.ensure_compile_time_eval():  # a constant inside somebody's jit is known, too
        # By a reduction: what is spread over processes cannot be fetched whole, and a mask would be a copy.
        largest = float(np.asarray(largest_bits(value)).view(value.dtype))
    if not math.isfinite(largest):
        raise ValueError(f"`{name}` holds NaN or infinite entries; expected finite numbers")
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
    *,
    solver: str,
    p: Any,
    num_iters: Any,
    tol: Any,
    row_weights: Any = None,
    metric: Any = None,
    init: Any = None,
    from_file: bool = False,
) -> Problem:
    """Check a solver's arguments, before any work, and bring them to one dtype.

    Inside jit or vmap only shapes and dtypes are checked, for values are not known there. A tall memory-mapped matrix
    (`np.memmap`) stays in its file if the solver says `from_file`: that it reads A by row blocks and stores nothing
    that is n × d.

    Raises:
        ValueError: as the solvers document.
    """
    matrix = numbers("matrix", matrix)
    shape, dtype = matrix.shape, solving_dtype(canonicalize_dtype(matrix.dtype))
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"`matrix` has shape {shape}; expected (n, d), n and d at least 1 (vmap over stacks)")
    check_rank(rank, (shape[0], shape[1]))

    known_p = _concrete(p)
    if known_p is not None:
        if known_p.ndim or known_p.dtype.kind not in "iuf":
            raise ValueError(f"`p` is a {type(p).__name__}; expected a number in {SOLVERS[solver].p_range}")
        SOLVERS[solver].check_p(p)
        # A sum of nd terms of order one to the power 1/p, and (n/d)^{1/p}, the size of a Lewis ellipsoid, must fit.
        least = np.log(max(2, shape[0] * shape[1])) / np.log(float(jnp.finfo(dtype).max)) / 0.9
        if known_p < least:
            raise ValueError(
                f"`p` is {p}; expected {least:.2g} or more: below, norms of {shape} matrices overflow {dtype}"
            )
    known_iters = _concrete(num_iters)
    if known_iters is not None:
        check_whole("`num_iters`", known_iters.item() if known_iters.dtype.kind in "iu" else num_iters, 0)
    known_tol = _concrete(tol)
    if known_tol is not None and (known_tol.ndim or known_tol.dtype.kind not in "iuf" or not 0 <= known_tol < np.inf):
        raise ValueError(f"`tol` is {tol!r}; expected a finite number, 0 or more")

    in_file = from_file and isinstance(matrix, np.memmap) and shape[0] >= shape[1]
    require_representable("matrix", matrix, dtype)
    matrix = map_matrix(matrix, dtype) if in_file else jnp.asarray(matrix, dtype)
    largest = _require_finite("matrix", matrix)
    # A row of A may be longer than any number of its dtype, so that a sum in a product of factors may be, too.
    at_the_end = largest is not None and largest > float(jnp.finfo(dtype).max) / math.sqrt(shape[1])
    if row_weights is not None:
        row_weights = jnp.asarray(numbers("row_weights", row_weights), dtype)
        if row_weights.shape != shape[:1]:
            raise ValueError(f"`row_weights` has shape {row_weights.shape}; expected {shape[:1]}, one a row")
        heaviest = _require_finite("row_weights", row_weights)
        if not isinstance(row_weights, jax.core.Tracer):
            with jax.ensure_compile_time_eval():  # as in `_require_finite`
                least = float(jnp.min(row_weights))
            if least < 0 or heaviest == 0:
                raise ValueError("`row_weights` has a negative entry or only zeros; expected ω ≥ 0, one above 0")
    if metric is not None:
        metric = jnp.asarray(numbers("metric", metric), dtype)
        if metric.shape != (shape[1], shape[1]):
            raise ValueError(f"`metric` has shape {metric.shape}; expected {(shape[1], shape[1])}")
        _require_finite("metric", metric)
        known = _concrete(metric)
        if known is not None and not np.allclose(known, known.T, rtol=1e-3, atol=1e-5 * np.abs(known).max()):
            raise ValueError("`metric` is not symmetric; expected C = Cᵀ: pass (C + Cᵀ)/2")
    if init is not None:
        left, right = (numbers("init", factor) for factor in init)
        if jnp.shape(left) != (shape[0], rank) or jnp.shape(right) != (rank, shape[1]):
            raise ValueError(
                f"`init` has factors of shapes {jnp.shape(left)} and {jnp.shape(right)}; "
                f"expected {(shape[0], rank)} and {(rank, shape[1])}"
            )
        init = (jnp.asarray(left, dtype), jnp.asarray(right, dtype))
        _require_finite("init", init[0])
        _require_finite("init", init[1])
    return Problem(
        matrix,
        jnp.asarray(p, dtype),
        row_weights,
        metric,
        jnp.asarray(tol, dtype),
        jnp.asarray(num_iters, jnp.int32),
        init,
        at_the_end=at_the_end,
    )


def require_products(solution: Solution) -> Solution:
    """`solution`, if left @ right has no NaN, such as the sum of +∞ and −∞ is.

    Raises:
        ValueError: it has one; the matrix is too near the end of its dtype's range.
    """
    if bool(jnp.any(jnp.isnan(solution.left @ solution.right))):
        raise ValueError(
            f"`matrix` is so near the end of the range of {solution.left.dtype} that sums within left @ right "
            "overflow; scale it, such as by 2**-8"
        )
    return solution


def default_tol(matrix: Any, power: float) -> float:
    """eps**power of the dtype that `matrix` will be solved in."""
    dtype = canonicalize_dtype(numbers("matrix", matrix).dtype)
    return float(jnp.finfo(solving_dtype(dtype)).eps ** power)


class Scaled(NamedTuple):
    """A problem of order one, without a metric: what algorithms work on. Attributes as of `Problem`."""

    rows: Rows
    p: Scalar
    row_weights: Float[Array, " n"] | None
    tol: Scalar
    num_iters: Scalar
    init: tuple[Float[Array, "n k"], Float[Array, "k d"]] | None


class Scaling(NamedTuple):
    """How `normalize` scaled a problem, for `finish`.

    Attributes:
        matrix, row_weights, metric: exponents of powers of two; of 4 for the metric.
        metric_inverse_half: pseudo-inverse of the root of the scaled metric.
        finite: whether all of it was.
        axes: as of `Problem`.
    """

    matrix: Int[Array, ""]
    row_weights: Int[Array, ""]
    metric: Int[Array, ""]
    metric_inverse_half: Float[Array, "d d"] | None
    finite: Bool[Array, ""]
    axes: tuple[str, ...]


def normalize(problem: Problem) -> tuple[Scaled, Scaling]:
    """Scale to order one by powers of two (exact), fold the metric into the matrix, read as zeros what is not finite.

    Σ ω_i ‖a_i − l_i R‖_C^p is Σ ω_i ‖b_i − l_i S‖^p with b = a C^{1/2} and S = R C^{1/2}: no algorithm below needs to
    know of C.
    """
    matrix, weights, metric = problem.matrix, problem.row_weights, problem.metric
    rows = Rows(matrix, axes=problem.axes)
    dtype = rows.dtype
    bits = rows.largest_bits()
    finite = finite_bits(bits, dtype)
    # One less than the largest: its inverse is a normal number, and one product scales an entry.
    exponent = jnp.minimum(exponent_of(bits, dtype), jnp.finfo(dtype).maxexp - 2)
    none = jnp.zeros((), jnp.int32)
    weight_exponent = metric_exponent = none
    if weights is not None:
        heaviest = over_devices(jax.lax.pmax, largest_bits(weights), problem.axes)
        finite &= finite_bits(heaviest, dtype)
        weight_exponent = exponent_of(heaviest, dtype)
        weights = jnp.where(finite, jnp.maximum(scaled(weights, -weight_exponent), 0), 1)
    half = inverse_half = None
    if metric is not None:
        finite &= jnp.all(jnp.isfinite(metric))
        metric_exponent = largest_exponent(metric) // 2
        half, inverse_half = _square_roots(jnp.where(finite, scaled(metric, -2 * metric_exponent), 0))
    rows = dataclasses.replace(rows, exponent=-exponent, finite=finite)
    init = problem.init
    if init is not None:
        # A pair may come with its scale on either side.
        inner = largest_exponent(init[1])
        init = scaled(init[0], inner - exponent), scaled(init[1], -inner)
    if half is not None:
        if isinstance(matrix, Mapped):
            rows = dataclasses.replace(rows, turn=half)
        else:  # once, not in every pass
            rows = Rows(rows.read() @ half, axes=problem.axes)
        if init is not None:
            init = (init[0], init[1] @ half)
    found = Scaled(rows, problem.p, weights, problem.tol, problem.num_iters, init)
    return found, Scaling(exponent, weight_exponent, metric_exponent, inverse_half, finite, problem.axes)


def _square_roots(metric: Float[Array, "d d"]) -> tuple[Float[Array, "d d"], Float[Array, "d d"]]:
    """C^{1/2} and its pseudo-inverse, through eigenvalues: a singular C is no failure, unlike with Cholesky."""
    values, vectors = eigh(metric)
    floor = values.shape[0] * jnp.finfo(values.dtype).eps * jnp.maximum(values[-1], 0)
    root = jnp.sqrt(jnp.where(values > floor, values, 0))
    return with_pseudo_inverse(vectors, root)


def project(problem: Scaled, right: Float[Array, "k d"], over: Over) -> tuple[Float[Array, "n k"], Scalar]:
    """left = A Rᵀ for R of orthonormal rows, and the ℓp objective of the pair."""

    def of_rows(rows: Array) -> tuple[Array, Array]:
        left = rows @ right.T
        return left, power_sums(rows - left @ right, problem.p, over)

    left, sums = map_rows(of_rows, problem.rows)
    return left, root_of_sum(problem, sums)


def objective(problem: Scaled, left: Float[Array, "n k"], right: Float[Array, "k d"], over: Over) -> Scalar:
    """The ℓp objective of a pair."""
    return root_of_sum(problem, residual_sums(problem, left, right, over))


def residual_sums(
    problem: Scaled, left: Float[Array, "n k"], right: Float[Array, "k d"], over: Over
) -> Float[Array, " n"]:
    """What each row adds to the p-th power of the objective of a pair, without its weight."""
    return over_residual(problem, left, right, lambda residual: power_sums(residual, problem.p, over))


def over_residual(
    problem: Scaled, left: Float[Array, "n k"], right: Float[Array, "k d"], summary: Callable[[Array], Any]
) -> Any:
    """What `summary` says of each row of A − LR, in arrays of as many rows."""
    return map_rows(lambda rows, left: summary(rows - left @ right), problem.rows, left)


def root_of_sum(problem: Scaled, sums: Float[Array, " n"]) -> Scalar:
    """(Σ_i ω_i sums_i)^{1/p}."""
    if problem.row_weights is not None:
        sums = problem.row_weights * sums
    return over_devices(jax.lax.psum, blocked_sum(sums), problem.rows.axes) ** (1 / problem.p)


def finish(solution: Solution, scaling: Scaling, p: Scalar) -> Solution:
    """Undo `normalize` on a solution.

    The scale of A goes to left, unless left would overflow or be subnormal: then both factors share it.
    """
    left, right, ellipsoid, dtype = solution.left, solution.right, solution.ellipsoid, solution.left.dtype
    if scaling.metric_inverse_half is not None:
        right = right @ scaling.metric_inverse_half
    a, b = scaling.matrix + scaling.metric, -scaling.metric
    largest = over_devices(jax.lax.pmax, largest_bits(left), scaling.axes)
    sizes = exponent_of(largest, dtype), largest_exponent(right)
    info = jnp.finfo(dtype)
    inside = [(i + e < info.maxexp) & (i + e > info.minexp + info.nmant) for i, e in zip(sizes, (a, b), strict=True)]
    alone = (inside[0] & inside[1]) | (largest == 0)
    shared = (scaling.matrix + sizes[1] - sizes[0]) // 2
    a, b = jnp.where(alone, a, shared), jnp.where(alone, b, scaling.matrix - shared)
    # Of the p-th root of the weights' power of two, what is no power of two.
    root = scaling.row_weights.astype(dtype) / p
    whole = jnp.floor(root)
    factor, exponent = jnp.exp2(root - whole), scaling.matrix + scaling.metric + whole.astype(jnp.int32)
    if ellipsoid is not None:
        ellipsoid = ellipsoid._replace(values=ldexp(ellipsoid.values * factor, exponent))
    finite = scaling.finite
    return solution._replace(
        left=jnp.where(finite, scaled(left, a), 0),
        right=jnp.where(finite, scaled(right, b), 0),
        objective=jnp.where(finite, ldexp(solution.objective * factor, exponent), jnp.inf),
        converged=solution.converged & finite,
        ellipsoid=ellipsoid,
    )
