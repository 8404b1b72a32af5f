"""params in, the same tree out with chosen leaves factored, and a record of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lpjax._defaults import default_method, default_weighting, share_of_entries
from lpjax._mesh import data_mesh
from lpjax.compression.latency import BreakEven
from lpjax.compression.plan import Choice, Plan
from lpjax.compression.program import (
    Job,
    Part,
    Solved,
    exponent_of,
    rehearse,
    shifted,
    solve_group,
)
from lpjax.select import (
    InputAxes,
    Select,
    is_table,
    leaves_with_paths,
    max_rank,
    rank_for,
    replace_leaves,
    select_paths,
)
from lpjax.solvers import Solution, solver_named
from lpjax.weighting.metric import PLAIN, Sides
from lpjax.weighting.statistics import Calibration
from lpjax.weighting.weightings import DEFAULT, Weighting, sides_of, weighting_named
from lpjax.weights.low_rank import LowRank, is_lowrank
from lpjax.weights.sparse import Sparse, entries_for


@dataclasses.dataclass(frozen=True)
class LayerRecord:
    """What became of one selected leaf.

    Attributes:
        path: keys joined by slashes.
        shape: of the dense leaf, with all of its axes.
        rank: of the pair, None where the leaf stayed dense.
        dense_size, stored_size: parameters before and after.
        objective_entries, objective_rows: ‖A − LR‖_p / ‖A‖_p of the pair as stored, single entries taken off, too,
            over entries and over rows (the layer's outputs for a kernel, tokens for an embedding); 0 where dense.
            Without any weights.
        objective_weighted: ‖A − LR‖ / ‖A‖ in the Frobenius norm under the weights, of rows or of a calibration, that
            the pair was solved under; None without any.
        bound: what the solver's ellipsoid guarantees for `objective_entries`, before the factors are rounded
            to the leaf's dtype; None without one, and with weights, for which it bounds another norm.
        num_iters, converged: of the solver; of a stack the most, and whether all did.
        seconds: solving, without compilation; divided by how many were solved at a time.
        note: why it stayed dense, or empty.
        time_ratio: time that the layer takes as a share of the dense one's, by `break_even`; None where not known.
        entries: kept by themselves, beside the pair.
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
    time_ratio: float | None = None
    objective_weighted: float | None = None
    entries: int = 0


class Compressed(NamedTuple):
    """The tree with its factored leaves, and a record for each selected leaf, in tree order."""

    params: Any
    records: tuple[LayerRecord, ...]


Progress = Callable[[int, int, LayerRecord], None]


def compress(
    params: Any,
    *,
    select: Select | None = None,
    keep: float | None = None,
    rank: int | None = None,
    plan: Plan | Mapping[str, Choice] | None = None,
    sparse: float | None = None,
    solver: str | Callable[..., Solution] | None = None,
    p: float | None = None,
    calibration: Calibration | None = None,
    weighting: str | Weighting | None = None,
    row_weights: Mapping[str, Any] | None = None,
    rows: str = "auto",
    input_axes: InputAxes | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    break_even: BreakEven | None = None,
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
        plan: a rank, method, exponent and share of entries for each path, from `allocate` or by hand; instead of
            `select`, `keep`, `rank`, `solver`, `p` and `sparse`.
        sparse: share of what each pair may store, in [0, 1), that single entries get instead: those that the smaller
            pair misses worst, under the weights (GoDec, Zhou & Tao, ICML 2011). The net is as small and usually nearer
            to the dense one, but its kernels take the time of dense ones. Rounded down to whole ranks. Of a `solver`
            that is no name, errors are taken to count to the power p. By default 0.2 of tables by "svd" under the
            default weights of a calibration and without a `break_even`, else 0. A matrix is solved 16 times instead of
            once, with more arrays of its size at work.
        solver: a name in `SOLVERS`, or a function matrix, rank, *, p -> `Solution` that jit and vmap can
            transform. By default "lewis", and "svd" with a calibration.
        p: exponent, by default 1, and 2 for "svd", which is the solver of that norm whatever p is.
        calibration: what text says of the matrices, from `calibrate`: errors are then weighted by it.
        weighting: how, a `Weighting` or a name in `WEIGHTINGS`; by default the plan's, or else "gauss_newton".
        row_weights: path -> ω ≥ 0, one a row: (vocab,) for an embedding, (out,) for a kernel; behind the axes of
            a stack.
        rows: axis of a leaf that holds its rows, "first", "last", or "auto": first for a leaf that is called
            `embedding`, last for others.
        input_axes: path -> how many leading axes of that leaf are its inputs, for leaves of more than two axes; or
            a pair (stacked, inputs) where its first axes only stack such kernels, each of which then gets a pair of
            its own, all of one rank. `lpjax.flax.input_axes` finds them for a linen module.
        batch_size: matrices that a device solves at a time, by vmap. By default as many as take at most a quarter of
            its memory; on CPU, where they would only wait for each other, one after another on each core.
        mesh: devices, along an axis "data", that matrices of equal shape are spread over, `batch_size` on each; by
            default all, of all processes, which must call with the same arguments and all get the whole result.
        break_even: timings of this machine, as `measure_break_even` finds them; records then say what time a pair
            takes beside the dense leaf.
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
    if weighting is not None and calibration is None:
        raise ValueError("`weighting` is given without a `calibration` to weight by; see `lpjax.calibrate`")
    if isinstance(plan, Plan) and plan.weighting is not None:
        if calibration is None:
            raise ValueError(
                f"`plan` was made under the weighting {plan.weighting!r}; give the `calibration`, or set it to None"
            )
        weighting = plan.weighting if weighting is None else weighting
    if rows not in ("auto", "first", "last"):
        raise ValueError(f'`rows` is {rows!r}; expected "auto", "first" or "last"')
    if sparse is not None and not 0 <= sparse < 1:
        raise ValueError(f"`sparse` is {sparse}; expected a share of what a pair stores in [0, 1), such as 0.2")
    if batch_size is not None and not _is_count(batch_size):
        raise ValueError(f"`batch_size` is {batch_size!r}; expected a whole number, 1 or more")
    leaves = dict(leaves_with_paths(params))
    if plan is not None:
        given = {"select": select, "keep": keep, "rank": rank, "sparse": sparse, "solver": solver, "p": p}
        if doubled := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"`plan` says what `{doubled[0]}` would; expected one of them")
        layers = plan.layers if isinstance(plan, Plan) else plan
        paths = planned_paths(params, layers, input_axes)
        goals = [_Goal(None, *layers[path]) for path in paths]
    else:
        method = default_method(solver, p, calibrated=calibration is not None)
        if (keep is None) == (rank is None):
            raise ValueError(f"`keep` is {keep} and `rank` is {rank}; expected exactly one of them")
        if keep is not None and not 0 < keep <= 1:
            raise ValueError(f"`keep` is {keep}; expected a share of the dense parameters in (0, 1]")
        if rank is not None and not _is_count(rank):
            raise ValueError(f"`rank` is {rank!r}; expected a whole number, 1 or more")
        if select is None:
            raise ValueError("`select` is missing; expected a group, a pattern or a function, or a `plan` instead")
        paths = select_paths(params, select, input_axes)
        under, by_time = default_weighting(weighting, calibrated=calibration is not None), break_even is not None
        shares = [share_of_entries(sparse, path, under, method.solver, by_time=by_time) for path in paths]
        goals = [_Goal(keep, rank, *method, share) for share in shares]
    solvers = {goal.solver: solver_named(goal.solver) for goal in goals}
    axes = {path: kernel_axes(path, entry, leaves) for path, entry in (input_axes or {}).items()}
    weights = dict(row_weights or {})
    if strangers := sorted(weights.keys() - set(paths)):
        raise ValueError(f"`row_weights` names leaves that are not selected: {', '.join(strangers[:5])}")

    sides = {} if calibration is None else leaf_sides(calibration, weighting or DEFAULT, paths, leaves)
    if both := sorted(path for path in weights.keys() & sides.keys() if sides[path] != PLAIN):
        raise ValueError(f"`row_weights` and `calibration` both weight {', '.join(both[:5])}; expected one of them")

    records: dict[str, LayerRecord] = {}
    groups: dict[Any, list[Job]] = {}
    for path, goal in zip(paths, goals, strict=True):
        view = axes.get(path, (0, 1))
        solve = solvers[goal.solver]
        # A start or a metric of the caller's is of the whole matrix.
        thin = solve.equivariant and not options.keys() & {"init", "metric"}
        jobs = _jobs(path, leaves[path], view, goal, rows, weights.get(path), sides.get(path, PLAIN), thin)
        if isinstance(jobs, LayerRecord):
            records[path] = jobs
        else:
            weighted = jax.tree.structure((jobs[0].weights, jobs[0].metrics))
            dimensions = tuple(leaf.ndim for leaf in jax.tree.leaves(jobs[0].metrics))
            inner = jobs[0].leaf.rank if jobs[0].thin else None
            kind = None if solve.nested else jobs[0].rank, bool(jobs[0].entries), inner, is_lowrank(jobs[0].leaf)
            key = (goal.solver, goal.p, jobs[0].shape, jobs[0].dtype, kind, weighted, dimensions)
            groups.setdefault(key, []).extend(jobs)
    for (name, exponent, *_), jobs in groups.items():
        rehearse(solvers[name], max(jobs, key=lambda job: job.rank), exponent, options)

    replaced: dict[str, LowRank] = {}
    done = 0

    def report(record: LayerRecord) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(paths), record)

    for record in list(records.values()):
        report(record)
    for (name, exponent, *_), jobs in groups.items():
        parts: list[Part] = []  # of one leaf: its matrices follow one another
        devices = data_mesh() if mesh is None else mesh
        for part in solve_group(solvers[name], jobs, exponent, options, batch_size, devices):
            parts.append(part)
            if len(parts) == part.job.height:
                record, pair = _record(parts, exponent)
                if break_even is not None and pair.sparse is None:
                    ratio = break_even.ratio(record.path, record.shape, pair.rank)
                    record = dataclasses.replace(record, time_ratio=ratio)
                records[record.path], replaced[record.path] = record, pair
                report(record)
                parts = []
    return Compressed(replace_leaves(params, replaced), tuple(records[path] for path in paths))


class _Goal(NamedTuple):
    """What is asked of a matrix: a share of its parameters, a rank, or neither; by which solver, at which exponent, and
    what share of it in single entries."""

    keep: float | None
    rank: int | None
    solver: str | Callable[..., Solution]
    p: float
    sparse: float


def planned_paths(params: Any, layers: Mapping[str, Choice], input_axes: InputAxes | None = None) -> list[str]:
    """The paths of a plan, in tree order.

    Raises:
        ValueError: it names what is no matrix of the tree, or nothing, or ranks that are none.
    """
    if not layers:
        raise ValueError("`plan` names no layer")
    known = {path for path, _ in leaves_with_paths(params)}
    if strangers := [path for path in layers if path not in known]:
        raise ValueError(f"`plan` names {', '.join(strangers[:5])}, which the net does not have: it is of another net")
    for path, choice in layers.items():
        if choice.rank is not None and not _is_count(choice.rank):
            raise ValueError(
                f"`plan` gives {path} the rank {choice.rank!r}; expected a whole number, 1 or more, or None"
            )
        if not 0 <= choice.sparse < 1:
            raise ValueError(f"`plan` gives {path} `sparse` = {choice.sparse!r}; expected a share in [0, 1)")
    return select_paths(params, lambda path, _: path in layers, input_axes)


def leaf_sides(
    calibration: Calibration, weighting: str | Weighting, paths: Sequence[str], leaves: Mapping[str, Any]
) -> dict[str, Sides]:
    """What `calibration` weights each leaf by, in the net's orientation.

    Raises:
        ValueError: it has no statistics of a leaf, those of another net's, or some that are not finite.
    """
    weighting = weighting_named(weighting)
    if missing := [path for path in paths if path not in calibration.statistics]:
        raise ValueError(
            f"`calibration` has no statistics of {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}; "
            "calibrate with the same `select`"
        )
    found = {}
    for path in paths:
        statistics, shape = calibration.statistics[path], tuple(leaves[path].shape)
        if len(shape) != 2:
            raise ValueError(f"`calibration` is of matrices, but {path} has shape {shape}; compress it without one")
        for field in dataclasses.fields(statistics):
            value = getattr(statistics, field.name)
            size = shape[1] if field.name == "outputs" else shape[0]
            if isinstance(value, np.ndarray) and set(value.shape) != {size}:
                found_shape = f"`{field.name}` of {path} has shape {value.shape}, the leaf {shape}"
                raise ValueError(f"`calibration` is of another net: {found_shape}")
        if name := statistics.not_finite():
            raise ValueError(f"`{name}` of {path} in `calibration` is not finite; calibrate a net whose weights are")
        found[path] = sides_of(statistics, weighting, is_table(path))
    return found


def require_finite(path: str, leaf: Any) -> float:
    """The largest magnitude in a leaf, where NaN and infinity are refused; of a pair in its factors.

    Raises:
        ValueError: naming it.
    """
    if isinstance(leaf, LowRank):
        parts = (leaf.left, leaf.right) if leaf.sparse is None else (leaf.left, leaf.right, leaf.sparse.values)
        return max(require_finite(path, part) for part in parts)
    largest = 0.0
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)  # without x64, what float32 cannot hold is infinite
    for start in range(0, leaf.shape[0], 4096):  # in pieces: a mask of the whole would be a copy
        with np.errstate(over="ignore"):
            whole = np.asarray(leaf[start : start + 4096])
            piece = whole.astype(dtype)
        if not np.all(np.isfinite(piece)):
            raise ValueError(
                f"{path} holds NaN or infinite entries (as {dtype}); expected finite weights: mend the checkpoint"
            )
        if whole.size:
            largest = max(largest, float(np.max(whole)), -float(np.min(whole)))
    return largest


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def kernel_axes(path: str, entry: Any, leaves: Mapping[str, Any]) -> tuple[int, int]:
    """An entry of `input_axes` as (stacked, inputs), checked against its leaf."""
    if path not in leaves:
        raise ValueError(
            f"`input_axes` names {path}, which is no leaf of the tree; its paths start where those of `params` do"
        )
    if isinstance(leaves[path], LowRank):
        return len(leaves[path].shape) - 2, 1  # a matrix already, or a stack of such
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


def _jobs(
    path: str,
    leaf: Any,
    axes: tuple[int, int],
    goal: _Goal,
    rows: str,
    weights: Any,
    sides: Sides,
    thin: bool,
) -> list[Job] | LayerRecord:
    """The matrices of a leaf that are to be solved, or its record if it stays as it is.

    A leaf that is a pair is a matrix of the dense one's shape, of which a smaller pair is wanted.
    """
    size, shape = math.prod(leaf.shape), tuple(leaf.shape)
    pair = isinstance(leaf, LowRank)
    stays = "stays as it is" if pair else "stays dense"

    def unchanged(note: str) -> LayerRecord:
        if not isinstance(leaf, LowRank):
            return LayerRecord(path, shape, None, size, size, note=f"{stays}: {note}")
        return LayerRecord(path, shape, leaf.rank, size, leaf.size, note=f"{stays}: {note}", entries=leaf.entries)

    axes = (len(shape) - 2, 1) if pair else axes
    stack, inputs, outputs = shape[: axes[0]], shape[axes[0] : sum(axes)], shape[sum(axes) :]
    n, d = math.prod(inputs), math.prod(outputs)
    if goal.keep is None and goal.rank is None:
        return unchanged("so the plan says")
    chosen = rank_for((n, d), goal.keep) if goal.keep is not None else int(goal.rank or 0)
    if chosen < 1:
        return unchanged("even rank 1 keeps more than asked")
    if pair and math.prod(stack) * chosen * (n + d) >= leaf.size:
        return unchanged(
            f"rank {chosen} is no smaller than the pair of rank {leaf.rank} that it is, "
            f"which keeps {leaf.size / size:.2g} of the dense matrix"
        )
    if not pair and (not size or chosen > max_rank((n, d))):
        return unchanged(f"a pair of rank {chosen} has {chosen * (n + d)} parameters, no fewer")
    entries = 0
    if goal.sparse:
        if len(shape) != 2:
            raise ValueError(f"`sparse` is for matrices, but {path} has shape {shape}; leave it out of `select`")
        # A share of 0.1 of rank 10 must not miss a whole rank by a rounding.
        smaller = max(1, chosen - int(goal.sparse * chosen * (1 + 1e-12)))
        entries = entries_for((chosen - smaller) * (n + d), (n, d), leaf.dtype)
        chosen = smaller if entries else chosen
    largest = require_finite(path, leaf)
    transposed = rows == "last" or (rows == "auto" and not is_table(path))
    view = (d, n) if transposed else (n, d)
    if weights is not None:
        weights, expected = np.asarray(weights, np.float32), (*stack, view[0])
        if weights.shape != expected or not np.all(np.isfinite(weights)) or np.any(weights < 0):
            raise ValueError(
                f"`row_weights` of {path} has shape {weights.shape}; expected {expected}, finite and not negative"
            )
        if not np.all(np.any(weights, axis=-1)):
            raise ValueError(f"`row_weights` of {path} is all zero; expected a weight above 0")
    if transposed:
        sides = Sides(sides.columns, sides.rows)
    if sides.rows is not None and sides.rows.base.ndim == 1 and weights is None:
        # Weights of rows are the solver's own: at p < 2 an error of one counts to the power p, its weight but once.
        base = sides.rows.base
        weights = (base / np.mean(base, dtype=np.float64) + sides.rows.shrinkage) ** sides.rows.power
        weights = weights.astype(jax.dtypes.canonicalize_dtype(np.float64))
        sides = Sides(None, sides.columns)
    return [
        Job(
            path,
            leaf,
            place,
            math.prod(stack),
            view,
            transposed,
            chosen,
            None if weights is None else weights[place],
            sides,
            entries,
            _pair_exponent(leaf, place) if pair else _exponent(largest, leaf.dtype),
            pair and thin and leaf.sparse is None and not entries,
        )
        for place in np.ndindex(stack)
    ]


def _comfortable(dtype: Any) -> tuple[float, float]:
    """Magnitudes between which the largest entry of a matrix of a dtype leaves room for what is computed of it."""
    info = jax.numpy.finfo(jax.dtypes.canonicalize_dtype(dtype))
    # Subnormal numbers of half precision are normal ones where they are computed with.
    least = 8 * float(info.tiny) if info.bits == 16 and info.nmant > 8 else float(info.tiny) / float(info.eps)
    return least, float(info.max) * 2.0**-12


def _exponent(largest: float, dtype: Any) -> int:
    """Of the power of two that a matrix is to be divided by, 0 for a comfortable one."""
    least, most = _comfortable(dtype)
    return 0 if largest == 0 or least <= largest <= most else math.frexp(largest)[1]


def _pair_exponent(leaf: LowRank, place: tuple[int, ...]) -> int:
    left, right = (exponent_of(np.asarray(part)[place]) for part in (leaf.left, leaf.right))
    return left + right if leaf.sparse is None else max(left + right, exponent_of(np.asarray(leaf.sparse.values)))


def _rescaled(left: np.ndarray, right: np.ndarray, exponent: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors of 2^exponent times their product: left has the scale if that leaves it comfortable, else both."""
    sizes = exponent_of(left), exponent_of(right)
    least, most = _comfortable(left.dtype)
    a = exponent
    if np.any(left) and not least <= math.ldexp(1.0, max(min(sizes[0] + a, 1023), -1074)) <= most:
        a = (exponent + sizes[1] - sizes[0]) // 2
    return shifted(left, a), shifted(right, exponent - a)


def _record(parts: Sequence[Part], p: float) -> tuple[LayerRecord, LowRank]:
    job, solved = parts[0].job, [part.solved for part in parts]
    stack = job.leaf.shape[: len(job.place)]

    def stacked(factors: Sequence[jax.Array], shape: tuple[int, ...]) -> np.ndarray:
        # Without x64, float64 was solved in float32.
        arrays = [np.asarray(factor, job.dtype) for factor in factors]
        return np.stack(arrays).reshape(*stack, *shape) if stack else arrays[0]

    factors = [(part.solved.left, part.solved.right) for part in parts]
    if any(part.job.exponent for part in parts):
        factors = [
            _rescaled(np.asarray(left, job.dtype), np.asarray(right, job.dtype), part.job.exponent)
            for (left, right), part in zip(factors, parts, strict=True)
        ]
    lefts, rights = zip(*factors, strict=True)
    pair = LowRank(
        stacked(lefts, (job.shape[0], job.rank)),
        stacked(rights, (job.rank, job.shape[1])),
    )
    pair = pair.T if job.transposed else pair
    if solved[0].single is not None:
        single = shifted(np.asarray(solved[0].single, job.dtype), job.exponent)
        pair = dataclasses.replace(pair, sparse=Sparse.of(single.T if job.transposed else single))
    # Of a stack, whose matrices have a scale each, in units of the largest.
    most = max(part.job.exponent for part in parts)
    scales = [math.ldexp(1.0, max(part.job.exponent - most, -1074)) for part in parts]
    totals, rows_totals = ([float(one.totals[i]) * s for one, s in zip(solved, scales, strict=True)] for i in (0, 1))
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
        objective_weighted=_weighted(solved, scales),
        entries=pair.entries,
    )
    return record, pair


def _weighted(solved: Sequence[Solved], scales: Sequence[float]) -> float | None:
    squares = [(one.squares, scale**2) for one, scale in zip(solved, scales, strict=True) if one.squares is not None]
    if not squares:
        return None
    left, whole = (sum(float(one[i]) * scale for one, scale in squares) for i in (0, 1))
    return math.sqrt(left / whole) if whole > 0 else 0.0


def _joint(shares: list[float], totals: list[float], p: float) -> float:
    """(Σ (share_i·total_i)^p)^{1/p} / (Σ total_i^p)^{1/p}: what share of a stack's norm its parts' shares are."""
    if len(shares) == 1 or not max(totals):
        return shares[0]
    scaled = np.asarray(totals) / max(totals)
    return float((np.sum((np.asarray(shares) * scaled) ** p) / np.sum(scaled**p)) ** (1 / p))
