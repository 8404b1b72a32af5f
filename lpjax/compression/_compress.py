"""`compress`: factor or round selected leaves of a tree, with a record of each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from jax.sharding import Mesh

from lpjax._check import check_name, check_whole
from lpjax._mesh import data_mesh
from lpjax._repr import short_repr
from lpjax._tree import leaves_with_paths, replace_leaves
from lpjax.compression.defaults import default_weighting
from lpjax.compression.latency import BreakEven
from lpjax.compression.plan import Choice, Plan, SolverLike, check_only_plan, check_units, uniform_plan
from lpjax.compression.program import program_key, rehearse, solve_group
from lpjax.compression.record import LayerRecord
from lpjax.compression.rounding import damped_moments_of, moments_of, round_layer, round_rest, rounded_record
from lpjax.compression.tasks import MatrixTask, leaf_of_results, require_finite, tasks_of_leaf, unchanged_record
from lpjax.compression.threads import as_done
from lpjax.select import InputAxes, Select, matrix_views
from lpjax.weighting.metric import UNWEIGHTED, Metrics
from lpjax.weighting.statistics import Calibration
from lpjax.weighting.weightings import DEFAULT, Weighting, leaf_metrics
from lpjax.weights.low_rank import LowRank


class Compressed(NamedTuple):
    """The compressed tree, and a record for each selected leaf, in tree order."""

    params: Any
    records: tuple[LayerRecord, ...]

    def __repr__(self) -> str:
        return short_repr(self)


Progress = Callable[[int, int, LayerRecord], None]


def compress(
    params: Any,
    plan: Plan | Mapping[str, Choice] | None = None,
    statistics: Calibration | None = None,
    *,
    select: Select | None = None,
    keep: float | None = None,
    rank: int | None = None,
    solver: SolverLike | None = None,
    p: float | None = None,
    sparse_share: float | None = None,
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
    """Replace matrices of a params tree by `LowRank` pairs or `Quantized` matrices, as a plan says.

    An embedding (vocab, hidden) is factored directly, so that rows are tokens. A kernel (in, out) is factored as its
    transpose, so that rows are the outputs ("neurons") of the layer. In a row objective outliers are rows, and each row
    constrains the level set of a geometric solver. `input_axes` says how to view a kernel of more axes as a
    matrix (inputs, outputs); its factors, left (∏ inputs, rank) and right (rank, ∏ outputs), run in `lpjax.flax`.
    Matrices of equal shape and dtype are solved together, `batch_size` at a time.

    Args:
        params: nested containers of arrays (NumPy or JAX); not changed.
        plan: a `Choice` for each path, from `uniform_plan`, `allocate`, `plan_for_size`, `load_plan` or by hand.
            Without one, `select`, `keep` or `rank`, `solver`, `p` and `sparse_share` make a `uniform_plan`.
        statistics: result of `lpjax.calibrate`, which weights errors.
        select: matrices to compress; see `select_paths`.
        keep: largest share of a leaf's parameters that its pair (left, right) may have, in (0, 1]; determines the rank.
        rank: rank of every pair, instead of `keep`.
        solver: name in `SOLVERS`, or a function (matrix, rank, *, p) -> `Solution` that jit and vmap can transform. By
            default "lewis", with `statistics` "svd".
        p: exponent, by default that of the solver: 1, or 2 for "svd", which minimises that norm for any p.
        sparse_share: share of the parameters of each pair, in [0, 1), that is spent on single entries instead, those
            with the largest weighted errors of the smaller pair (GoDec, Zhou & Tao, ICML 2011); rounded down to whole
            ranks. The model has the same size and is usually closer to the dense one, but its kernels take the time of
            dense ones, and a matrix is solved 16 times instead of once, with more memory. For a custom solver, errors
            are ranked by |e|^p. By default 0.2 for embeddings solved by "svd" under the default weighting and without
            `break_even`, else 0.
        weighting: weighting of errors by `statistics`, a `Weighting` or its name; by default the plan's, or
            "gauss_newton".
        row_weights: path -> ω ≥ 0, one per row: shape (vocab,) for an embedding, (out,) for a kernel; with leading axes
            for a stack.
        rows: axis of the rows in a leaf, "first", "last", or "auto": first for a leaf called `embedding`, else last.
        input_axes: path -> number of leading axes of the leaf that are inputs, for leaves of more than two axes; or a
            pair (stacked, inputs) if its first axes stack such kernels, each of which gets its own pair, all of one
            rank. `lpjax.flax.input_axes` finds them for a linen module.
        batch_size: number of matrices that a device solves at a time, by vmap. By default as many as fit into a quarter
            of its memory; on a CPU one on each core.
        mesh: devices, along an axis "data", over which matrices of equal shape are spread, `batch_size` on each. By
            default all devices of all processes; all processes must then call with the same arguments, and each gets
            the whole result.
        break_even: timings of this machine, from `measure_break_even`; records then give the time of a pair relative
            to the dense leaf's.
        progress: called with (leaves done, leaves in all, record) after each leaf.
        **options: further keywords for the solver: num_iters, tol, init, …

    Returns:
        `Compressed(params, records)`; factors have the leaf's dtype and are NumPy arrays on the host. A rounded
        matrix becomes `Quantized`, or a pair of `Quantized` factors. A leaf whose pair would not be
        smaller is unchanged, as its record notes.

    Raises:
        ValueError: before any solving: an argument that `uniform_plan`, `Plan.check` or the solver refuses, a leaf that
            is not finite, or a function that does not return a `Solution` of the right shapes.
        TypeError: before any solving: an option that the solver does not have.
    """
    check_name("rows", rows, ("auto", "first", "last"))
    if batch_size is not None:
        check_whole("`batch_size`", batch_size, 1)
    uniform: dict[str, Any] = {"keep": keep, "rank": rank, "solver": solver, "p": p, "sparse_share": sparse_share}
    uniform |= {"select": select}
    if plan is None:
        under = default_weighting(weighting, calibrated=statistics is not None)
        plan = uniform_plan(params, weighting=under, break_even=break_even, input_axes=input_axes, **uniform)
    else:
        check_only_plan(**uniform)
        if not isinstance(plan, Plan):
            plan = Plan(plan, weighting=default_weighting(weighting, calibrated=statistics is not None))
        elif statistics is not None:
            check_units(plan)
        plan = plan if weighting is None else dataclasses.replace(plan, weighting=weighting)
    plan.check(params, statistics, input_axes)
    tasks, unchanged = _tasks(params, plan, statistics, row_weights or {}, rows, input_axes, options)
    groups: dict[Any, list[MatrixTask]] = {}
    for task in tasks:
        groups.setdefault(program_key(task), []).append(task)
    for group in groups.values():
        rehearse(group, options)

    records: dict[str, LayerRecord] = {}
    leaves: dict[str, Any] = {}
    mesh = data_mesh() if mesh is None else mesh
    solved = (
        leaf_of_results([result, *itertools.islice(results, result.task.height - 1)])  # a leaf's results are adjacent
        for group in groups.values()
        for results in [solve_group(group, options, batch_size, mesh)]
        for result in results
    )
    dense = dict(leaves_with_paths(params))

    def rounded(item: tuple[LayerRecord, LowRank | None]) -> tuple[LayerRecord, Any]:
        record, pair = item
        path, choice = record.path, plan.layers[record.path]
        if not choice.rounds:
            return item
        known = statistics, path, plan.weighting
        leaf = round_layer(path, dense[path] if pair is None else pair, choice, damped_moments_of(*known))
        return rounded_record(record, choice, dense[path], leaf, moments_of(*known)), leaf

    each = as_done if any(choice.rounds for choice in plan.layers.values()) else map
    for record, leaf in each(rounded, itertools.chain(((record, None) for record in unchanged), solved)):
        path = record.path
        if leaf is not None:
            leaves[path] = leaf
        if break_even is not None and isinstance(leaf, LowRank) and leaf.sparse is None:
            ratio = break_even.ratio(path, record.shape, leaf.rank)
            record = msgspec.structs.replace(record, time_ratio=ratio)
        records[path] = record
        if progress is not None:
            progress(len(records), len(plan.layers), record)
    smaller = replace_leaves(params, leaves)
    if plan.rest is not None:
        smaller = round_rest(smaller, plan.layers, plan.rest)
    return Compressed(smaller, tuple(records[path] for path in dense if path in records))


def _tasks(
    params: Any,
    plan: Plan,
    statistics: Calibration | None,
    row_weights: Mapping[str, Any],
    rows: str,
    input_axes: InputAxes | None,
    options: Mapping[str, Any],
) -> tuple[list[MatrixTask], list[LayerRecord]]:
    """The matrices to be solved, in tree order, and the records of unchanged leaves.

    Raises:
        ValueError: `row_weights` do not fit, or a leaf is not finite.
    """
    views = matrix_views(params, (path for path, _ in leaves_with_paths(params) if path in plan.layers), input_axes)
    leaves = {path: leaf for path, (leaf, _) in views.items()}
    if strangers := sorted(row_weights.keys() - leaves.keys()):
        raise ValueError(f"`row_weights` names leaves that are not selected: {', '.join(strangers[:5])}")
    metrics: dict[str, Metrics] = {}
    if statistics is not None:
        weighted_leaves = {path: leaves[path] for path in plan.weighted(statistics)}
        metrics = leaf_metrics(statistics, plan.weighting or DEFAULT, weighted_leaves)
    weighted = {path for path, known in metrics.items() if known != UNWEIGHTED}
    if both := sorted(weighted & row_weights.keys()):
        raise ValueError(f"`row_weights` and `statistics` both weight {', '.join(both[:5])}; expected one of them")
    factored, unchanged = set(plan.factored(params, input_axes)), plan.unchanged(params, input_axes)
    records = [
        unchanged_record(path, leaf, unchanged.get(path, "")) for path, leaf in leaves.items() if path not in factored
    ]
    tasks: list[MatrixTask] = []
    for path, (leaf, view) in views.items():
        if path not in factored and plan.layers[path].rounds:
            require_finite(path, leaf)  # before any work; `tasks_of_leaf` checks the others
        if path in factored:
            known: dict[str, Any] = {"row_weights": row_weights.get(path), "metrics": metrics.get(path, UNWEIGHTED)}
            tasks += tasks_of_leaf(path, leaf, view, plan.layers[path], rows=rows, options=options, **known)
    return tasks, records
