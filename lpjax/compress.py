"""params in, the same tree out with chosen leaves factored, and a record of each."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lpjax.lowrank import LowRank
from lpjax.objectives import entries_bound, lp_norm
from lpjax.select import InputAxes, Select, leaves_with_paths, rank_for, replace_leaves, select_paths
from lpjax.solvers import SOLVERS, Solution
from lpjax.solvers._problem import solving_dtype


@dataclasses.dataclass(frozen=True)
class LayerRecord:
    """What became of one selected leaf.

    Attributes:
        path: keys joined by slashes.
        shape: of the dense leaf, with all of its axes.
        rank: of the pair, None where the leaf stayed dense.
        dense_size, stored_size: parameters before and after.
        objective_entries, objective_rows: ‖A − LR‖_p / ‖A‖_p of the pair as stored, over entries and over
            rows (the layer's outputs for a kernel, tokens for an embedding); 0 where dense. Without any row
            weights.
        bound: what the solver's ellipsoid guarantees for `objective_entries`, before the factors are rounded
            to the leaf's dtype; None without one, and with row weights, for which it bounds another norm.
        num_iters, converged: of the solver; of a stack the most, and whether all did.
        seconds: solving, without compilation; a group's time divided by its layers.
        note: why it stayed dense, or empty.
    """

    path: str
    shape: tuple[int, ...]
    rank: int | None
    dense_size: int
    stored_size: int
    objective_entries: float = 0.0
    objective_rows: float = 0.0
    bound: float | None = None
    num_iters: int = 0
    converged: bool = True
    seconds: float = 0.0
    note: str = ""


class Compressed(NamedTuple):
    """The tree with its factored leaves, and a record for each selected leaf, in tree order."""

    params: Any
    records: tuple[LayerRecord, ...]


Progress = Callable[[int, int, LayerRecord], None]


def compress(
    params: Any,
    *,
    select: Select,
    keep: float | None = None,
    rank: int | None = None,
    solver: str | Callable[..., Solution] = "lewis",
    p: float = 1.0,
    row_weights: Mapping[str, Any] | None = None,
    rows: str = "auto",
    input_axes: InputAxes | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Compressed:
    """Replace chosen matrices of a params tree by `LowRank` pairs.

    An embedding (vocab, hidden) is factored as it is, its rows being tokens. A kernel (in, out) is factored
    as its transpose, its rows being the outputs ("neurons") of the layer: the side on which a row objective
    looks for outliers, and a geometric solver takes for the constraints of its level set. A kernel of more
    axes is viewed as such a matrix (inputs, outputs) where `input_axes` says how; its pair is one of matrices,
    left (∏ inputs, rank) and right (rank, ∏ outputs), which `lpjax.flax` runs. Matrices of equal shape and
    dtype are solved together, `batch_size` at a time.

    Args:
        params: nested containers of arrays (NumPy or JAX); not changed.
        select: see `select_paths`.
        keep: largest share of a leaf's parameters that its pair may have, in (0, 1]; gives the rank.
        rank: the rank of every pair; instead of `keep`.
        solver: a name in `SOLVERS`, or a function matrix, rank, *, p -> `Solution` that jit and vmap can
            transform.
        p: exponent.
        row_weights: path -> ω ≥ 0, one a row: (vocab,) for an embedding, (out,) for a kernel; behind the axes of
            a stack.
        rows: axis of a leaf that holds its rows, "first", "last", or "auto": first for a leaf that is called
            `embedding`, last for others.
        input_axes: path -> how many leading axes of that leaf are its inputs, for leaves of more than two axes; or
            a pair (stacked, inputs) where its first axes only stack such kernels, each of which then gets a pair of
            its own, all of one rank. `lpjax.flax.input_axes` finds them for a linen module.
        batch_size: matrices solved at a time, by vmap. By default 1 on CPU, where they would only wait for each
            other, and elsewhere as many as take at most a quarter of the device's memory.
        progress: called with (leaves done, leaves in all, record) after each leaf.
        **options: further keywords for the solver: num_iters, tol, init, …

    Returns:
        `Compressed(params, records)`; factors have the leaf's dtype and are NumPy arrays on the host. A pair
        that would not be smaller stays dense, and the record says so.

    Raises:
        ValueError: before any solving: nothing matches, a leaf is no floating matrix or not finite, keep or
            rank out of range, `input_axes` that do not fit the tree, what the solver refuses, or a function that
            returns no `Solution` that fits.
        TypeError: an option that the solver does not have, before any solving.
    """
    solve = _solver(solver)
    if (keep is None) == (rank is None):
        raise ValueError(f"`keep` is {keep} and `rank` is {rank}; expected exactly one of them")
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"`keep` is {keep}; expected a share of the dense parameters in (0, 1]")
    if rank is not None and not _is_count(rank):
        raise ValueError(f"`rank` is {rank!r}; expected a whole number, 1 or more")
    if rows not in ("auto", "first", "last"):
        raise ValueError(f'`rows` is {rows!r}; expected "auto", "first" or "last"')
    if batch_size is not None and not _is_count(batch_size):
        raise ValueError(f"`batch_size` is {batch_size!r}; expected a whole number, 1 or more")
    leaves = dict(leaves_with_paths(params))
    axes = {path: kernel_axes(path, entry, leaves) for path, entry in (input_axes or {}).items()}
    paths = select_paths(params, select, input_axes)
    weights = dict(row_weights or {})
    if strangers := sorted(weights.keys() - set(paths)):
        raise ValueError(f"`row_weights` names leaves that are not selected: {', '.join(strangers[:5])}")

    records: dict[str, LayerRecord] = {}
    groups: dict[tuple[tuple[int, int], np.dtype, bool], list[_Job]] = {}
    for path in paths:
        jobs = _plan(path, leaves[path], axes.get(path, (0, 1)), keep, rank, rows, weights.get(path))
        if isinstance(jobs, LayerRecord):
            records[path] = jobs
        else:
            key = (jobs[0].shape, jobs[0].leaf.dtype, jobs[0].weights is not None)
            groups.setdefault(key, []).extend(jobs)
    for jobs in groups.values():
        _rehearse(solve, jobs[0], p, options)

    replaced: dict[str, LowRank] = {}
    done = 0

    def report(record: LayerRecord) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(paths), record)

    for record in list(records.values()):
        report(record)
    for (shape, _, _), jobs in groups.items():
        size = batch_size or _default_batch(shape)
        parts: list[_Part] = []  # of one leaf: its matrices follow one another
        for part in _solve_group(solve, jobs, p, options, size):
            parts.append(part)
            if len(parts) == part.job.height:
                record, pair = _record(parts, p)
                records[record.path], replaced[record.path] = record, pair
                report(record)
                parts = []
    return Compressed(replace_leaves(params, replaced), tuple(records[path] for path in paths))


class _Job(NamedTuple):
    """A matrix to be factored, `leaf[place]` of a stack; `shape` is that of A, after any transposition."""

    path: str
    leaf: Any
    place: tuple[int, ...]
    height: int  # of the stack: how many matrices the leaf has
    shape: tuple[int, int]
    transposed: bool
    rank: int
    weights: np.ndarray | None

    def matrix(self) -> np.ndarray:
        """A, on the host."""
        matrix = np.asarray(self.leaf[self.place] if self.place else self.leaf)
        return matrix.reshape(self.shape[::-1]).T if self.transposed else matrix.reshape(self.shape)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _solver(solver: str | Callable[..., Solution]) -> Callable[..., Solution]:
    if callable(solver):
        return solver
    if solver not in SOLVERS:
        raise ValueError(f"`solver` is {solver!r}; expected one of {', '.join(SOLVERS)}, or a function")
    return SOLVERS[solver]


def kernel_axes(path: str, entry: Any, leaves: Mapping[str, Any]) -> tuple[int, int]:
    """An entry of `input_axes` as (stacked, inputs), checked against its leaf."""
    if path not in leaves:
        raise ValueError(
            f"`input_axes` names {path}, which is no leaf of the tree; its paths start where those of `params` do"
        )
    stacked, inputs = entry if isinstance(entry, tuple) and len(entry) == 2 else (0, entry)
    if not isinstance(inputs, int) or not isinstance(stacked, int) or inputs < 1 or stacked < 0:
        raise ValueError(
            f"`input_axes` of {path} is {entry!r}; expected a number of axes, 1 or more, or a pair (stacked, inputs)"
        )
    shape = getattr(leaves[path], "shape", ())
    if stacked + inputs >= len(shape):
        raise ValueError(
            f"`input_axes` of {path} is {entry!r}, but its shape is {tuple(shape)}; expected fewer axes, so that one "
            f"or more are left for the outputs"
        )
    return stacked, inputs


def _plan(
    path: str, leaf: Any, axes: tuple[int, int], keep: float | None, rank: int | None, rows: str, weights: Any
) -> list[_Job] | LayerRecord:
    size = math.prod(leaf.shape)
    if isinstance(leaf, LowRank):
        return LayerRecord(path, leaf.shape, leaf.rank, size, leaf.size, note="is factored already; left as it is")
    shape = tuple(leaf.shape)
    stack, inputs, outputs = shape[: axes[0]], shape[axes[0] : sum(axes)], shape[sum(axes) :]
    n, d = math.prod(inputs), math.prod(outputs)
    chosen = rank_for((n, d), keep) if keep is not None else int(rank or 0)
    if chosen < 1:
        return LayerRecord(path, shape, None, size, size, note="stays dense: even rank 1 keeps more than asked")
    if chosen * (n + d) >= n * d or not size:
        note = f"stays dense: a pair of rank {chosen} has {chosen * (n + d)} parameters, no fewer"
        return LayerRecord(path, shape, None, size, size, note=note)
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)  # without x64, what float32 cannot hold is infinite
    for start in range(0, shape[0], 4096):  # in pieces: a mask of the whole would be a copy
        with np.errstate(over="ignore"):
            piece = np.asarray(leaf[start : start + 4096]).astype(dtype)
        if not np.all(np.isfinite(piece)):
            raise ValueError(
                f"{path} holds NaN or infinite entries (as {dtype}); expected finite weights: mend the checkpoint"
            )
    name = path.removesuffix("/value").split("/")[-1]  # flax's boxes, such as nn.Partitioned, call what they hold value
    transposed = rows == "last" or (rows == "auto" and name != "embedding")
    view = (d, n) if transposed else (n, d)
    if weights is not None:
        weights, expected = np.asarray(weights, np.float32), (*stack, view[0])
        if weights.shape != expected or not np.all(np.isfinite(weights)) or np.any(weights < 0):
            raise ValueError(
                f"`row_weights` of {path} has shape {weights.shape}; expected {expected}, finite and not negative"
            )
        if not np.all(np.any(weights, axis=-1)):
            raise ValueError(f"`row_weights` of {path} is all zero; expected a weight above 0")
    return [
        _Job(path, leaf, place, math.prod(stack), view, transposed, chosen, None if weights is None else weights[place])
        for place in np.ndindex(stack)
    ]


def _rehearse(solve: Callable[..., Solution], job: _Job, p: float, options: dict[str, Any]) -> None:
    """The solver's own checks, on shapes, p and options, without solving; then of what it would return."""
    dtype = solving_dtype(jax.dtypes.canonicalize_dtype(job.leaf.dtype))
    matrix = jax.ShapeDtypeStruct(job.shape, dtype)
    weights = None if job.weights is None else jax.ShapeDtypeStruct(job.shape[:1], job.weights.dtype)

    def run(matrix: Array, weights: Array | None) -> Solution:
        return solve(matrix, job.rank, p=p, **_with_weights(options, weights))

    found = jax.eval_shape(run, matrix, weights)
    if not isinstance(found, Solution):
        raise ValueError(f"`solver` returned a {type(found).__name__}; expected a `Solution`")
    shapes, expected = (
        (found.left.shape, found.right.shape),
        ((job.shape[0], job.rank), (job.rank, job.shape[1])),
    )
    if shapes != expected:
        raise ValueError(f"`solver` returned factors of shapes {shapes}; expected {expected}")


def _with_weights(options: dict[str, Any], weights: Array | None) -> dict[str, Any]:
    return options if weights is None else options | {"row_weights": weights}


def _default_batch(shape: tuple[int, int]) -> int:
    device = jax.devices()[0]
    if device.platform == "cpu":
        return 1
    available = (device.memory_stats() or {}).get("bytes_limit", 2**33) / 4
    return max(1, int(available // (8 * 4 * shape[0] * shape[1])))


class _Solved(NamedTuple):
    left: Array
    right: Array
    entries: Array
    rows: Array
    bound: Array | None
    totals: tuple[Array, Array]  # ‖A‖_p over entries and over rows, of which the three above are shares
    num_iters: Array
    converged: Array


class _Part(NamedTuple):
    """A matrix of a leaf, solved."""

    job: _Job
    solved: _Solved
    seconds: float


def _solve_group(
    solve: Callable[..., Solution], jobs: list[_Job], p: float, options: dict[str, Any], batch_size: int
) -> Iterator[_Part]:
    rank = jobs[0].rank

    def one(matrix: Array, weights: Array | None, p: Array) -> _Solved:
        wide = matrix.astype(solving_dtype(matrix.dtype))
        solution = solve(wide, rank, p=p, **_with_weights(options, weights))
        left, right = solution.left.astype(matrix.dtype), solution.right.astype(matrix.dtype)
        # Measured on the factors as they will be stored, after any rounding to half precision.
        residual = wide - jnp.matmul(left.astype(wide.dtype), right.astype(wide.dtype), precision="highest")
        total, rows_total = lp_norm(wide, p), lp_norm(wide, p, "rows")
        bound = None
        if solution.ellipsoid is not None and weights is None:
            ellipsoid = solution.ellipsoid
            bound = entries_bound(ellipsoid.values, rank, ellipsoid.upper, wide.shape[1], p)
            bound = _share(jnp.where(p <= 2, bound, jnp.inf), total)
        return _Solved(
            left,
            right,
            _share(lp_norm(residual, p), total),
            _share(lp_norm(residual, p, "rows"), rows_total),
            bound,
            (total, rows_total),
            solution.num_iters,
            solution.converged,
        )

    compiled: dict[int, Any] = {}
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        stacked = [job.matrix() for job in batch]
        known = [job.weights for job in batch if job.weights is not None]  # of all jobs of a group, or of none
        weights = np.stack(known) if known else None
        # One alone is not vmapped: under vmap both sides of a solver's branches would be computed.
        single = len(batch) == 1
        matrices = jnp.asarray(stacked[0] if single else np.stack(stacked))
        weights = weights[0] if single and weights is not None else weights
        arguments = (matrices, weights, jnp.asarray(p, solving_dtype(matrices.dtype)))
        if len(batch) not in compiled:
            run = one if single else jax.vmap(one, in_axes=(0, None if weights is None else 0, None))
            compiled[len(batch)] = jax.jit(run).lower(*arguments).compile()
        began = time.perf_counter()
        solved = jax.device_get(compiled[len(batch)](*arguments))
        seconds = (time.perf_counter() - began) / len(batch)
        for i, job in enumerate(batch):
            own = solved if single else jax.tree.map(lambda x, i=i: x[i], solved)
            yield _Part(job, own, seconds)


def _share(part: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def _record(parts: Sequence[_Part], p: float) -> tuple[LayerRecord, LowRank]:
    job, solved = parts[0].job, [part.solved for part in parts]
    stack = job.leaf.shape[: len(job.place)]

    def stacked(factors: Sequence[Array], shape: tuple[int, ...]) -> np.ndarray:
        # Without x64, float64 was solved in float32.
        arrays = [np.asarray(factor, job.leaf.dtype) for factor in factors]
        return np.stack(arrays).reshape(*stack, *shape) if stack else arrays[0]

    pair = LowRank(
        stacked([one.left for one in solved], (job.shape[0], job.rank)),
        stacked([one.right for one in solved], (job.rank, job.shape[1])),
    )
    pair = pair.T if job.transposed else pair
    totals, rows_totals = ([float(one.totals[i]) for one in solved] for i in (0, 1))
    bounds = [None if one.bound is None or not np.isfinite(one.bound) else float(one.bound) for one in solved]
    bound = None if None in bounds else _joint([bound for bound in bounds if bound is not None], totals, p)
    record = LayerRecord(
        path=job.path,
        shape=tuple(job.leaf.shape),
        rank=job.rank,
        dense_size=math.prod(job.leaf.shape),
        stored_size=pair.size,
        objective_entries=_joint([float(one.entries) for one in solved], totals, p),
        objective_rows=_joint([float(one.rows) for one in solved], rows_totals, p),
        bound=bound,
        num_iters=max(int(one.num_iters) for one in solved),
        converged=all(bool(one.converged) for one in solved),
        seconds=sum(part.seconds for part in parts),
    )
    return record, pair


def _joint(shares: list[float], totals: list[float], p: float) -> float:
    """(Σ (share_i·total_i)^p)^{1/p} / (Σ total_i^p)^{1/p}: what share of a stack's norm its parts' shares are."""
    if len(shares) == 1 or not max(totals):
        return shares[0]
    scaled = np.asarray(totals) / max(totals)
    return float((np.sum((np.asarray(shares) * scaled) ** p) / np.sum(scaled**p)) ** (1 / p))
