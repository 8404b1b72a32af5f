"""One budget for all matrices of a net: which of them gets what rank."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from lpjax._allocation import Leaf, Option, Ranks, by_level, losses_of, rank_of_loss, rank_of_share, share_out
from lpjax._solve_group import PLAIN, weighted_matrix
from lpjax.break_even import BreakEven
from lpjax.calibration import Calibration
from lpjax.compress import compress, leaf_sides
from lpjax.inspect import singular_values
from lpjax.lowrank import LowRank, densify
from lpjax.plan import Choice, Costs, Plan
from lpjax.select import GROUPS, Select, is_table, leaves_with_paths, max_rank, replace_leaves, select_paths
from lpjax.solvers import SOLVERS
from lpjax.weighting import DEFAULT, Weighting

Allocation = Literal["uniform", "energy", "minimax", "measured"]
LEVELS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
"""Shares of a matrix that "measured" tries."""

Measure = Callable[[Any], float]
Progress = Callable[[int, int, str], None]


def allocate(
    params: Any,
    *,
    budget: float,
    budget_of: Costs = "parameters",
    select: Select = ("embeddings", "encoder"),
    allocation: Allocation | None = None,
    calibration: Calibration | None = None,
    weighting: str | Weighting | None = None,
    measure: Measure | None = None,
    methods: Sequence[tuple[str, float]] = (("svd", 2.0),),
    sparse: float = 0.0,
    levels: Sequence[float] = LEVELS,
    rank_multiple: int = 1,
    break_even: BreakEven | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Plan:
    """Share out one budget among the matrices of a net.

    - "uniform": the same share of each matrix.
    - "energy": the same share of ‖A‖_F² is lost of each, weighted where there is a calibration.
    - "minimax": the same relative error in the spectral norm, σ_{k+1}/σ_1, the least that all can have (ALDS,
      Liebenwein et al., arXiv 2107.11442, without its splits of a matrix).
    - "measured": the least sum of what each matrix alone, at each of `levels` and by each of `methods`, adds to
      `measure` while the others are as "uniform" has them. Errors of layers do not just add up; around the net that is
      to come out they nearly do.

    Args:
        params: nested containers of arrays.
        budget: share of what the whole net costs, above 0 and below 1; what is not selected counts, too.
        budget_of: "parameters", or "multiply_adds": of a token, in the products with the encoder's kernels. Looking up
            a row costs none, and rank·hidden in a factored table.
        select: the matrices; see `select_paths`. Those that are pairs already stay as they are.
        allocation: one of the above; by default "measured" where there is a `measure`, else "uniform".
        calibration, weighting: as of `compress`.
        measure: params -> what a net loses, such as a `Divergence` from the dense net; leaves are dense ones.
        methods: (solver, p) to choose from; the other allocations take the first.
        sparse: share of each pair that single entries get, as of `compress`; the budget is one of parameters then.
        levels: shares, rising.
        rank_multiple: ranks are multiples of it, in matrices that have so many.
        break_even: no rank that takes longer than dense is chosen, of shapes that were timed.
        progress: called with (steps done, steps in all, the next one).
        **options: of the solvers.

    Raises:
        ValueError: what is not selected, with the smallest pairs, exceeds the budget, saying by how much; a value out
            of range; and what `compress` refuses.
    """
    if not 0 < budget < 1:
        raise ValueError(f"`budget` is {budget}; expected a share of the whole net, above 0 and below 1")
    for name, value, known in (("budget_of", budget_of, Costs), ("allocation", allocation, Allocation)):
        if value is not None and value not in get_args(known):
            raise ValueError(f"`{name}` is {value!r}; expected one of {', '.join(get_args(known))}")
    allocation = allocation or ("uniform" if measure is None else "measured")
    if allocation == "measured" and measure is None:
        raise ValueError('`allocation` is "measured", but there is no `measure`; expected a function of params')
    if not levels or list(levels) != sorted(set(levels)) or not 0 < levels[0] <= levels[-1] < 1:
        raise ValueError(f"`levels` is {levels!r}; expected rising shares, above 0 and below 1")
    if type(rank_multiple) is not int or rank_multiple < 1:
        raise ValueError(f"`rank_multiple` is {rank_multiple!r}; expected a whole number, 1 or more")
    if not methods:
        raise ValueError("`methods` is empty; expected pairs of a solver's name and an exponent")
    if unknown := [name for name, _ in methods if name not in SOLVERS]:
        raise ValueError(f"`methods` names {unknown[0]!r}; expected one of {', '.join(SOLVERS)}")
    if not 0 <= sparse < 1:
        raise ValueError(f"`sparse` is {sparse}; expected a share of what a pair stores in [0, 1), such as 0.2")
    if sparse and (budget_of != "parameters" or break_even is not None):
        raise ValueError("`sparse` saves no time; expected a budget of parameters, and no `break_even`")
    if weighting is not None and calibration is None:
        raise ValueError("`weighting` is given without a `calibration` to weight by; see `lpjax.calibrate`")

    ways = [(*method, sparse) for method in methods]
    tree = dict(leaves_with_paths(params))
    paths = select_paths(params, select)
    found = [_leaf(path, tree[path], rank_multiple, break_even) for path in paths]
    leaves = [leaf for leaf in found if leaf is not None and leaf.shrinks(budget_of)]
    allowed = _allowed(tree, leaves, budget, budget_of)
    sides = {} if calibration is None else leaf_sides(calibration, weighting or DEFAULT, paths, tree)

    if allocation in ("energy", "minimax"):
        losses = {}
        for done, leaf in enumerate(leaves):
            if progress is not None:
                progress(done, len(leaves), leaf.path)
            values = singular_values(weighted_matrix(tree[leaf.path], sides.get(leaf.path, PLAIN)))
            losses[leaf.path] = losses_of(values, spectral=allocation == "minimax")
        ranks = by_level(leaves, allowed, budget_of, lambda leaf, level: rank_of_loss(losses[leaf.path], level))
        choices = _choices(ranks, ways[0])
    else:
        choices = _choices(by_level(leaves, allowed, budget_of, rank_of_share), ways[0])
    if measure is not None and allocation == "measured":
        solve = {"calibration": calibration, "weighting": weighting, **options}
        measured = _measured(params, leaves, choices, measure, ways, levels, budget_of, progress, solve)
        choices = share_out(leaves, measured, allowed, budget_of)
    return Plan(choices, None if calibration is None else weighting or DEFAULT, budget, budget_of, allocation)


def require_budget(params: Any, budget: float, budget_of: Any, select: Select) -> None:
    """Refuse a budget that not even the smallest pairs fit, before there is a calibration or a measure.

    Raises:
        ValueError: as `allocate`.
    """
    tree = dict(leaves_with_paths(params))
    found = [_leaf(path, tree[path], 1, None) for path in select_paths(params, select)]
    _allowed(tree, [leaf for leaf in found if leaf is not None and leaf.shrinks(budget_of)], budget, budget_of)


Way = tuple[str, float, float]
"""Method, exponent, and the share of single entries."""


def _choices(ranks: Ranks, way: Way) -> dict[str, Choice]:
    return {path: Choice(rank, *way) for path, rank in ranks.items()}


def _leaf(path: str, leaf: Any, multiple: int, break_even: BreakEven | None) -> Leaf | None:
    """What is to be known of a leaf; None of one for which there is no pair, or that is one."""
    if isinstance(leaf, LowRank) or leaf.ndim != 2:
        return None
    n, d = leaf.shape
    most = max_rank((n, d)) if n and d else 0
    timed = None if break_even is None else break_even.rank(path, (n, d))
    most = most if timed is None else min(most, timed)
    most = most // multiple * multiple or most
    return Leaf(path, (n, d), is_table(path), min(multiple, most), most, multiple) if most else None


def _allowed(tree: Mapping[str, Any], leaves: Sequence[Leaf], budget: float, of: Costs) -> float:
    """What the leaves together may cost.

    Raises:
        ValueError: less than their smallest pairs.
    """
    ours = sum(leaf.cost(None, of) for leaf in leaves)
    chosen = {leaf.path for leaf in leaves}
    others = sum(_cost(path, leaf, of) for path, leaf in tree.items() if path not in chosen)
    least = sum(leaf.cost(leaf.least, of) for leaf in leaves)
    allowed = budget * (ours + others) - others
    if least > allowed or not leaves:
        share = (least + others) / ((ours + others) or 1)
        raise ValueError(
            f"`budget` is {budget:g}, but with the smallest pairs of what is selected the net has {share:.3f} of its "
            f"{of.replace('_', '-')}; select more layers, or allow more"
        )
    return allowed


def _cost(path: str, leaf: Any, of: Costs) -> int:
    """Of a leaf that stays as it is."""
    if of == "parameters":
        return leaf.size
    if is_table(path):
        return leaf.rank * leaf.shape[-1] if isinstance(leaf, LowRank) else 0
    if isinstance(leaf, LowRank) and leaf.sparse is not None:
        return math.prod(leaf.shape)  # with single entries it is multiplied by as a dense one
    return leaf.size if re.search(GROUPS["encoder"], path, re.IGNORECASE) else 0


def _measured(
    params: Any,
    leaves: Sequence[Leaf],
    around: Mapping[str, Choice],
    measure: Measure,
    ways: Sequence[Way],
    levels: Sequence[float],
    of: Costs,
    progress: Progress | None,
    solve: Mapping[str, Any],
) -> dict[str, list[Option]]:
    """What each leaf loses, dense and at every level by every method, while the others are as `around` has them."""
    tree = dict(leaves_with_paths(params))
    plans = {}
    for level in (0.0, *levels):  # at 0 the least rank
        ranks = {leaf.path: leaf.allowed(rank_of_share(leaf, 1 - level)) for leaf in leaves}
        for way in ways:
            plans[level, way] = _choices({path: rank for path, rank in ranks.items() if rank is not None}, way)
    total, done = len(leaves) * (len(plans) + 1) + len(plans) + 1, 0

    def tell(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, what)
        done += 1

    def pairs_of(plan: Mapping[str, Choice]) -> dict[str, Any]:
        found = dict(leaves_with_paths(compress(params, plan=plan, **solve).params))
        return {path: found[path] for path in plan}

    tell("solving")
    nested = _largest_by_svd([around, *plans.values()])
    largest = pairs_of(nested) if nested else {}

    def solved(plan: Mapping[str, Choice]) -> dict[str, Any]:
        rest = {path: choice for path, choice in plan.items() if choice.rank is not None and not _nests(choice)}
        found = pairs_of(rest) if rest else {}
        for path in plan.keys() - found.keys():
            rank = plan[path].rank
            if rank is None:
                found[path] = tree[path]
            else:
                found[path] = LowRank(largest[path].left[:, :rank], largest[path].right[:rank])
        return {path: densify(jax.tree.map(jnp.asarray, pair)) for path, pair in found.items()}

    # Pairs of before, too: a `LowRank` has a dtype.
    on_device = {path: jax.tree.map(jnp.asarray, leaf) for path, leaf in tree.items() if hasattr(leaf, "dtype")}
    net = replace_leaves(params, on_device | solved(around))

    def loss_with(path: str, leaf: Any) -> float:
        loss = float(measure(replace_leaves(net, {path: leaf})))
        if not math.isfinite(loss):
            raise ValueError(f"`measure` gives {loss} where {path} is changed; expected finite numbers")
        return loss

    options: dict[str, list[Option]] = {leaf.path: [] for leaf in leaves}
    for leaf in leaves:
        tell(leaf.path)
        loss = loss_with(leaf.path, tree[leaf.path])
        options[leaf.path].append(Option(leaf.cost(None, of), loss, Choice(None)))
    for (level, _), plan in plans.items():
        tell(f"solving at {level:g}")
        pairs = solved(plan)
        for leaf in leaves:
            tell(f"{leaf.path} at {level:g}")
            if leaf.path in plan:
                choice = plan[leaf.path]
                loss = loss_with(leaf.path, pairs[leaf.path])
                options[leaf.path].append(Option(leaf.cost(choice.rank, of), loss, choice))
    return options


def _largest_by_svd(plans: Sequence[Mapping[str, Choice]]) -> dict[str, Choice]:
    """Of each leaf its largest rank by the SVD: the pairs of all smaller ranks are the first parts of that one."""
    found: dict[str, Choice] = {}
    for plan in plans:
        for path, choice in plan.items():
            if choice.rank is None or not _nests(choice):
                continue
            if path not in found or choice.rank > (found[path].rank or 0):
                found[path] = choice
    return found


def _nests(choice: Choice) -> bool:
    """Whether pairs of smaller ranks are parts of those of larger ones."""
    return choice.method == "svd" and not choice.sparse
