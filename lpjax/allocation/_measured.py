"""The losses of each matrix at some ranks, by a measure of whole models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lpjax._tree import leaves_with_paths, replace_leaves
from lpjax.allocation._budget import Leaf, Option, PairMethod, choices_of, rank_of_share
from lpjax.compression import compress
from lpjax.compression.plan import Choice
from lpjax.solvers import solver_named
from lpjax.weights.dispatch import densify
from lpjax.weights.low_rank import LowRank

Measure = Callable[[Any], float]


def steps(leaves: int, methods: int, levels: int) -> int:
    """Number of steps of `measured_options`."""
    plans = (levels + 1) * methods
    return leaves * (plans + 1) + plans + 1


def measured_options(
    params: Any,
    leaves: Sequence[Leaf],
    around: Mapping[str, Choice],
    measure: Measure,
    methods: Sequence[PairMethod],
    levels: Sequence[float],
    tell: Callable[[str], None],
    solve: Mapping[str, Any],
) -> dict[str, list[Option]]:
    """Options of each leaf: unchanged and at every level by every method, while other leaves are as in `around`.

    `tell` is called with the name of each of the `steps` before it.
    """
    tree = dict(leaves_with_paths(params))
    plans: list[tuple[float, dict[str, Choice]]] = []
    for level in (0.0, *levels):  # at 0 the smallest rank
        ranks = {leaf.path: leaf.allowed(rank_of_share(leaf, 1 - level)) for leaf in leaves}
        for method in methods:
            plan = choices_of({path: rank for path, rank in ranks.items() if rank is not None}, method)
            plans.append((level, plan))

    def pairs_of(plan: Mapping[str, Choice]) -> dict[str, Any]:
        leaves_of_plan = dict(leaves_with_paths(compress(params, plan=plan, **solve).params))
        return {path: leaves_of_plan[path] for path in plan}

    tell("solving")
    nested = _largest_nested([around, *(plan for _, plan in plans)])
    largest = pairs_of(nested) if nested else {}

    def solved(plan: Mapping[str, Choice]) -> dict[str, Any]:
        rest = {path: choice for path, choice in plan.items() if choice.rank is not None and not _nests(choice)}
        pairs = pairs_of(rest) if rest else {}
        for path in plan.keys() - pairs.keys():
            rank = plan[path].rank
            if rank is None:
                pairs[path] = tree[path]
            else:
                pairs[path] = LowRank(largest[path].left[:, :rank], largest[path].right[:rank])
        return {path: densify(jax.tree.map(jnp.asarray, pair)) for path, pair in pairs.items()}

    # Includes leaves that are already pairs, as a `LowRank` has a dtype.
    on_device = {path: jax.tree.map(jnp.asarray, leaf) for path, leaf in tree.items() if hasattr(leaf, "dtype")}
    net = replace_leaves(params, on_device | solved(around))

    def loss_with(path: str, leaf: Any) -> float:
        loss = float(measure(replace_leaves(net, {path: leaf})))
        if not math.isfinite(loss):
            raise ValueError(f"`measure` returned {loss} with {path} replaced; expected a finite number")
        return loss

    options: dict[str, list[Option]] = {leaf.path: [] for leaf in leaves}
    for leaf in leaves:
        tell(leaf.path)
        loss = loss_with(leaf.path, densify(jax.tree.map(jnp.asarray, tree[leaf.path])))
        options[leaf.path].append(Option(leaf.cost(None), loss, Choice(None)))
    for level, plan in plans:
        tell(f"solving at {level:g}")
        pairs = solved(plan)
        for leaf in leaves:
            tell(f"{leaf.path} at {level:g}")
            if leaf.path in plan:
                choice = plan[leaf.path]
                loss = loss_with(leaf.path, pairs[leaf.path])
                options[leaf.path].append(Option(leaf.cost(choice.rank), loss, choice))
    return options


def _largest_nested(plans: Sequence[Mapping[str, Choice]]) -> dict[str, Choice]:
    """The largest rank of each leaf by a nested solver, whose pair contains those of all smaller ranks."""
    largest: dict[str, Choice] = {}
    for path, choice in (item for plan in plans for item in plan.items()):
        if choice.rank is not None and _nests(choice):
            largest[path] = max(largest.get(path, choice), choice, key=lambda choice: choice.rank or 0)
    return largest


def _nests(choice: Choice) -> bool:
    """Whether a pair of larger rank contains those of smaller ranks."""
    return solver_named(choice.method).nested and not choice.sparse_share
