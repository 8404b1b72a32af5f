"""Division of a budget of parameters or multiply-adds: the rank of each matrix."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np

from lpjax._check import check_name, check_share, check_whole
from lpjax._tree import is_table, leaves_with_paths
from lpjax.allocation._budget import (
    Leaf,
    Option,
    PairMethod,
    by_level,
    choices_of,
    losses_of,
    nanoseconds,
    rank_of_loss,
    rank_of_share,
    share_out,
    squared_errors,
)
from lpjax.allocation._measured import Measure, measured_options, steps
from lpjax.allocation._spectra import weighted_singular_values
from lpjax.compression import check_method, check_sparse_share, require_finite
from lpjax.compression.defaults import (
    LAYERS_OF_BUDGET,
    default_allocation,
    default_method,
    default_sparse_share,
    default_weighting,
)
from lpjax.compression.latency import BreakEven, LayerTiming
from lpjax.compression.plan import Choice, Costs, Plan
from lpjax.select import Select, in_group, max_rank, require_unquantized, select_paths
from lpjax.weighting.metric import UNWEIGHTED, Metrics
from lpjax.weighting.statistics import Calibration
from lpjax.weighting.weightings import (
    DEFAULT,
    Weighting,
    check_weighting,
    leaf_metrics,
    require_comparable,
    scale_of_errors,
)
from lpjax.weights.low_rank import LowRank

Allocation = Literal["uniform", "energy", "minimax", "error", "measured"]
Progress = Callable[[int, int, str], None]
LEVELS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
"""Shares of a matrix's parameters that "measured" tries."""


def allocate(
    params: Any,
    *,
    budget: float,
    budget_of: Costs = "parameters",
    select: Select = LAYERS_OF_BUDGET,
    allocation: Allocation | None = None,
    statistics: Calibration | None = None,
    weighting: str | Weighting | None = None,
    measure: Measure | None = None,
    methods: Sequence[tuple[str, float]] | None = None,
    sparse_share: float | None = None,
    levels: Sequence[float] = LEVELS,
    rank_multiple: int = 1,
    break_even: BreakEven | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Plan:
    """Divide one budget among the matrices of a model.

    - "uniform": every matrix keeps the same share of its parameters.
    - "energy": every matrix loses the same share of ‖A‖_F², weighted if there are statistics.
    - "minimax": every matrix has the same relative error in the spectral norm, σ_{k+1}/σ_1, as small as possible
      (ALDS, Liebenwein et al., arXiv 2107.11442, without splitting matrices).
    - "error": the sum of squared errors is minimised: ‖A − LR‖_F² or, with statistics (default weighting only),
      tokens·‖H^{1/2}(A − LR)G^{1/2}‖_F². The latter estimates the loss in the model's outputs without running the
      model (block-diagonal Gauss–Newton, each block a product of two metrics: K-FAC, Martens & Grosse, arXiv
      1503.05671), so that errors of different matrices are comparable. Errors ignore single entries.
    - "measured": the sum of measured losses is minimised. A loss is the `measure` of the model with one matrix at one
      of `levels`, by one of `methods`, while the others have the ranks of "error", or of "uniform" under another
      weighting. Layer errors are not additive, but nearly so close to the final model.

    Args:
        params: nested containers of arrays.
        budget: share of the cost of the whole dense model, above 0 and below 1; leaves that are not selected count too.
        budget_of: "parameters"; "multiply_adds" per token in products with the encoder's kernels, where a lookup costs
            0 in a dense table and rank·hidden in a factored one; or "time" per batch by `break_even`, where leaves that
            were not timed cost nothing.
        select: matrices to factor; see `select_paths`. A leaf that is already a pair gets a smaller one or is kept.
        allocation: one of the above; by default "measured" if there is a `measure`, else "error" if there are
            `statistics` and the weighting is the default one, else "uniform".
        statistics, weighting: see `compress`.
        measure: params, all leaves dense -> loss of the model, such as its `Divergence` from the dense model.
        methods: pairs (solver, p) to choose from; all allocations except "measured" use the first. By default that of
            `compress`: "lewis" at p = 1, or "svd" with `statistics`.
        sparse_share: share of each pair for single entries, see `compress`; only for a budget of parameters. The
            default is 0 for other budgets and with `break_even`.
        levels: shares of a matrix's parameters that "measured" tries, ascending.
        rank_multiple: ranks are multiples of it, except in matrices whose largest rank is smaller.
        break_even: timings; for timed shapes no chosen rank is slower than dense.
        progress: called with (steps done, steps in all, the next step).
        **options: options of the solvers.

    Raises:
        ValueError: the model exceeds the budget even with the smallest pairs (saying by how much), a value is out of
            range, or an argument is refused by `compress`.
    """
    check_weighting(weighting, calibrated=statistics is not None)
    weighting = default_weighting(weighting, calibrated=statistics is not None)
    check_allocation(
        budget=budget,
        budget_of=budget_of,
        allocation=allocation,
        weighting=weighting,
        methods=methods,
        sparse_share=sparse_share,
        break_even=break_even,
    )
    chosen = allocation or default_allocation(weighting, measured=measure is not None)
    if chosen == "measured" and measure is None:
        raise ValueError('`allocation` is "measured", but there is no `measure`; expected a function of params')
    if not levels or list(levels) != sorted(set(levels)) or not 0 < levels[0] <= levels[-1] < 1:
        raise ValueError(f"`levels` is {levels!r}; expected rising shares, above 0 and below 1")
    check_whole("`rank_multiple`", rank_multiple, 1)
    tree, paths = dict(leaves_with_paths(params)), select_paths(params, select)
    by_time = budget_of != "parameters" or break_even is not None
    known_methods = [
        PairMethod(
            solver,
            p,
            {path: default_sparse_share(sparse_share, path, weighting, solver, by_time=by_time) for path in paths},
        )
        for solver, p in methods or [default_method(calibrated=statistics is not None)]
    ]
    leaves, allowed = _within(tree, paths, budget, budget_of, rank_multiple, break_even)
    selected = {path: tree[path] for path in paths}
    metrics = {} if statistics is None else leaf_metrics(statistics, weighting or DEFAULT, selected)

    first = default_allocation(weighting) if chosen == "measured" else chosen
    spectral = 0 if first == "uniform" else len(leaves)
    measures = steps(len(leaves), len(known_methods), len(levels)) if chosen == "measured" else 0
    done = itertools.count()

    def tell(what: str) -> None:
        if progress is not None:
            progress(next(done), spectral + measures, what)

    spectra = _spectra(tree, leaves, metrics, tell) if spectral else {}
    scales = {
        leaf.path: scale_of_errors(statistics.statistics[leaf.path], leaf.table) if statistics else 1.0
        for leaf in leaves
        if first == "error"
    }
    choices = _by_spectra(first, leaves, spectra, scales, known_methods[0], allowed)
    if measure is not None and chosen == "measured":
        solve = {"statistics": statistics, "weighting": weighting, **options}
        measured = measured_options(params, leaves, choices, measure, known_methods, levels, tell, solve)
        choices = share_out(leaves, measured, allowed)
    return Plan(choices, weighting, budget, budget_of, chosen)


def _by_spectra(
    allocation: str,
    leaves: Sequence[Leaf],
    spectra: Mapping[str, np.ndarray],
    scales: Mapping[str, float],
    method: PairMethod,
    allowed: float,
) -> dict[str, Choice]:
    """The choices of an allocation that does not run the model.

    Args:
        allocation: its name.
        leaves: the matrices.
        spectra: path -> singular values; unused by "uniform".
        scales: path -> factor of squared errors; used by "error".
        method: method of all choices.
        allowed: largest total cost.
    """
    if allocation == "uniform":
        return choices_of(by_level(leaves, allowed, rank_of_share), method)
    if allocation == "error":
        errors = {leaf.path: squared_errors(spectra[leaf.path]) * scales[leaf.path] for leaf in leaves}
        return share_out(leaves, {leaf.path: _by_rank(leaf, errors[leaf.path], method) for leaf in leaves}, allowed)
    losses = {path: losses_of(values, spectral=allocation == "minimax") for path, values in spectra.items()}
    ranks = by_level(leaves, allowed, lambda leaf, level: rank_of_loss(losses[leaf.path], level))
    return choices_of(ranks, method)


def check_allocation(
    *,
    budget: float,
    budget_of: str = "parameters",
    allocation: str | None = None,
    weighting: str | Weighting | None = None,
    methods: Sequence[tuple[str, float]] | None = None,
    sparse_share: float | None = None,
    break_even: Any = None,
    **options: Any,
) -> None:
    """Refuse arguments of `allocate` that are invalid for any model.

    Args:
        budget, budget_of, allocation, methods, sparse_share, break_even: see `allocate`.
        weighting: weighting of errors; None for unweighted errors.
        **options: options of the solvers.

    Raises:
        ValueError: naming the first.
    """
    check_share("budget", budget)
    check_name("budget_of", budget_of, get_args(Costs))
    if allocation is not None:
        check_name("allocation", allocation, get_args(Allocation))
    if methods is not None and not methods:
        raise ValueError("`methods` is empty; expected pairs of a solver's name and an exponent")
    for solver, p in methods or ():
        check_method(solver, p, name="solver", **options)
    check_sparse_share(sparse_share, budget_of=budget_of, break_even=break_even)
    if allocation == "error":
        require_comparable(weighting, "`allocation` error")


def require_budget(
    params: Any, budget: float, budget_of: Any, select: Select, break_even: BreakEven | None = None
) -> None:
    """Refuse a budget that even the smallest pairs exceed, before any calibration or measure.

    Raises:
        ValueError: as `allocate`.
    """
    tree = dict(leaves_with_paths(params))
    _within(tree, select_paths(params, select), budget, budget_of, break_even=break_even)


def _spectra(
    tree: Mapping[str, Any], leaves: Sequence[Leaf], metrics: Mapping[str, Metrics], tell: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """Singular values of each matrix under its weights."""
    for leaf in leaves:
        require_finite(leaf.path, tree[leaf.path])
    spectra = {}
    for leaf in leaves:
        tell(leaf.path)
        spectra[leaf.path] = weighted_singular_values(tree[leaf.path], metrics.get(leaf.path, UNWEIGHTED))
    return spectra


def _by_rank(leaf: Leaf, errors: np.ndarray, method: PairMethod) -> list[Option]:
    """An option for every rank of a leaf, and one for the unchanged leaf."""
    pairs = [Option(leaf.cost(rank), float(errors[rank]), method.choice(leaf.path, rank)) for rank in leaf.ranks()]
    return [*pairs, Option(leaf.cost(None), 0.0, Choice(None))]


def _leaf(path: str, leaf: Any, of: Costs, multiple: int, break_even: BreakEven | None) -> Leaf | None:
    """Shape, ranks and costs of a leaf; None if it has no pair, or no smaller one."""
    if leaf.ndim != 2:
        return None
    n, d = leaf.shape
    pair = None
    most = max_rank((n, d)) if n and d else 0
    if isinstance(leaf, LowRank):
        by_token = leaf.rank * d if is_table(path) else n * d if leaf.sparse is not None else leaf.size
        pair = by_token if of == "multiply_adds" else leaf.size
        most = min(most, (leaf.size - 1) // (n + d))
    timing = None if break_even is None else break_even.timing(path, (n, d))
    if timing is not None and most:
        most = min(most, timing.rank)
        pair = _time(leaf, timing) if pair is not None and of == "time" else pair
    most = most // multiple * multiple or most
    return Leaf(path, (n, d), is_table(path), min(multiple, most), most, multiple, of, pair, timing) if most else None


def _time(leaf: Any, timing: LayerTiming) -> int:
    """Nanoseconds per batch of a leaf as it is. With single entries, it is multiplied by as a dense matrix."""
    return nanoseconds(timing, leaf.rank if isinstance(leaf, LowRank) and leaf.sparse is None else None)


def _within(
    tree: Mapping[str, Any],
    paths: Sequence[str],
    budget: float,
    of: Costs,
    multiple: int = 1,
    break_even: BreakEven | None = None,
) -> tuple[list[Leaf], float]:
    """The leaves that a pair makes cheaper, and their largest total cost.

    Raises:
        ValueError: their smallest pairs cost more, some are quantized, or a budget of time lacks their timings.
    """
    require_unquantized({path: tree[path] for path in paths})
    if of == "time":
        _require_timings({path: tree[path].shape for path in paths}, break_even)
    smaller = [_leaf(path, tree[path], of, multiple, break_even) for path in paths]
    leaves = [leaf for leaf in smaller if leaf is not None and leaf.shrinks]
    chosen = {leaf.path for leaf in leaves}
    rest = {path: leaf for path, leaf in tree.items() if path not in chosen}
    others = sum(_cost(path, leaf, of, break_even) for path, leaf in rest.items())
    least = sum(leaf.cost(leaf.least) for leaf in leaves)
    dense = sum(leaf.cost_of_matrix(None) for leaf in leaves)
    dense += sum(_cost(path, leaf, of, break_even, dense=True) for path, leaf in rest.items())
    allowed = budget * dense - others
    if least > allowed or not leaves:
        share = (least + others) / (dense or 1)
        slow = "" if break_even is None else " (none slower than dense)"
        what = "`budget` of time" if of == "time" else "`budget`"
        raise ValueError(
            f"{what} is {budget:g}, but even with the smallest pairs of the selected layers{slow} the model keeps "
            f"{share:.3f} of its {of.replace('_', '-')}; select more layers, or raise the budget"
        )
    return leaves, allowed


def _require_timings(shapes: Mapping[str, tuple[int, ...]], break_even: BreakEven | None) -> None:
    """Refuse matrices of shapes that were not timed."""
    for path, shape in shapes.items():
        if len(shape) == 2 and (break_even is None or break_even.timing(path, shape) is None):
            raise ValueError(
                f"`break_even` has no timing of {path}, {shape[0]} × {shape[1]}; a budget of time needs one of each "
                "selected shape, from `measure_break_even` (lpjax bench)"
            )


def _cost(path: str, leaf: Any, of: Costs, break_even: BreakEven | None, *, dense: bool = False) -> int:
    """Cost of an unchanged leaf or, with `dense`, of the dense matrix in place of a pair."""
    if dense and isinstance(leaf, LowRank):
        leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    if of == "parameters":
        return leaf.size
    if of == "time":
        timing = None if break_even is None else break_even.timing(path, leaf.shape)
        return 0 if timing is None else _time(leaf, timing)
    if is_table(path):
        return leaf.rank * leaf.shape[-1] if isinstance(leaf, LowRank) else 0
    if isinstance(leaf, LowRank) and leaf.sparse is not None:
        return math.prod(leaf.shape)  # with single entries, products use the dense matrix
    return leaf.size if in_group(path, "encoder") else 0
