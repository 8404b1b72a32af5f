"""Division of a budget among matrices: by a common level, or by their losses."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lpjax.compression.latency import LayerTiming
from lpjax.compression.plan import Choice, Costs

_BISECTIONS = 60


class Leaf(NamedTuple):
    """A matrix whose rank is to be chosen.

    Attributes:
        path, shape: path of the leaf, and shape (n, d) of its dense matrix.
        table: whether rows are looked up in it.
        least, most: ranks of its smallest and largest pair.
        multiple: divisor of the ranks between these.
        of: unit of costs.
        pair: cost of a leaf that is already a pair; None for a dense matrix.
        timing: time by rank, if it was measured.
    """

    path: str
    shape: tuple[int, int]
    table: bool
    least: int
    most: int
    multiple: int
    of: Costs = "parameters"
    pair: int | None = None
    timing: LayerTiming | None = None

    def cost(self, rank: int | None) -> int:
        """Parameters, multiply-adds per token, or nanoseconds per batch at a rank; None for the unchanged leaf."""
        return self.pair if rank is None and self.pair is not None else self.cost_of_matrix(rank)

    def cost_of_matrix(self, rank: int | None) -> int:
        """The cost at a rank; None for the dense matrix, even if the leaf is a pair."""
        n, d = self.shape
        if self.of == "time" and self.timing is not None:
            return nanoseconds(self.timing, rank)
        if self.of == "multiply_adds" and self.table:
            return 0 if rank is None else rank * d
        return n * d if rank is None else rank * (n + d)

    def allowed(self, rank: float) -> int | None:
        """The largest allowed rank up to `rank`, at least `least`; None (unchanged) if `rank` exceeds `most`."""
        return None if rank > self.most else max(self.least, int(rank) // self.multiple * self.multiple)

    def ranks(self) -> Iterator[int]:
        """All allowed ranks, ascending."""
        rank = self.least
        while rank <= self.most:
            yield rank
            rank = (rank // self.multiple + 1) * self.multiple

    def rank_within(self, cost: float) -> int:
        """The largest allowed rank of at most this cost; the smallest one if there is none."""
        ranks = list(self.ranks())
        return ranks[max(bisect.bisect_right(ranks, cost, key=self.cost) - 1, 0)]

    @property
    def shrinks(self) -> bool:
        """Whether its smallest pair costs less than the unchanged leaf."""
        return self.cost(self.least) < self.cost(None)


def nanoseconds(timing: LayerTiming, rank: int | None) -> int:
    """Time per batch of a pair of this rank, or of the dense matrix; whole numbers, as other costs."""
    return round(1e9 * timing.dense_seconds * (1.0 if rank is None else timing.ratio(rank)))


class Option(NamedTuple):
    """A choice for a matrix, its cost and its loss."""

    cost: int
    loss: float
    choice: Choice


class PairMethod(NamedTuple):
    """How pairs are computed.

    Attributes:
        solver, p: see `Choice`.
        sparse_shares: path -> share of single entries.
    """

    solver: str
    p: float
    sparse_shares: Mapping[str, float]

    def choice(self, path: str, rank: int | None) -> Choice:
        """The choice for a matrix at a rank."""
        return Choice(rank, self.solver, self.p, self.sparse_shares[path])


Ranks = dict[str, int | None]


def choices_of(ranks: Ranks, method: PairMethod) -> dict[str, Choice]:
    """Choices of one method at the given ranks."""
    return {path: method.choice(path, rank) for path, rank in ranks.items()}


def by_level(leaves: Sequence[Leaf], budget: float, rank: Callable[[Leaf, float], float]) -> Ranks:
    """The ranks at the lowest level in [0, 1] at which all leaves fit the budget; at 1 all ranks are `Leaf.least`.

    Args:
        leaves: the matrices.
        budget: largest total cost.
        rank: (leaf, level) -> rank at a level, which falls as the level rises; infinite for dense.
    """

    def ranks(level: float) -> Ranks:
        return {leaf.path: leaf.allowed(rank(leaf, level)) for leaf in leaves}

    def fits(level: float) -> bool:
        chosen = ranks(level)
        return sum(leaf.cost(chosen[leaf.path]) for leaf in leaves) <= budget

    low, high = 0.0, 1.0
    if fits(low):
        return ranks(low)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return ranks(high)


def rank_of_share(leaf: Leaf, level: float) -> float:
    """The rank whose pair has the share 1 − level of the parameters; infinite at level 0, for the dense matrix."""
    n, d = leaf.shape
    return math.inf if level == 0 else (1 - level) * n * d / (n + d)


def rank_of_loss(losses: np.ndarray, level: float) -> float:
    """The smallest rank k with `losses[k]` ≤ `level`, losses descending from rank 0; infinite at level 0."""
    return math.inf if level == 0 else int(np.argmax(losses <= level))


def squared_errors(values: np.ndarray) -> np.ndarray:
    """Σ_{i>k} σ_i² for ranks k = 0, 1, …"""
    return np.append(np.cumsum(values[::-1].astype(np.float64) ** 2)[::-1], 0.0)


def losses_of(values: np.ndarray, spectral: bool) -> np.ndarray:
    """Losses at ranks k = 0, 1, …: σ_{k+1}/σ_1, or Σ_{i>k} σ_i² / Σ σ_i²; 0 for a matrix of zeros."""
    scaled = values / (values[0] or 1)
    if spectral:
        return np.append(scaled, 0.0)
    errors = squared_errors(scaled)
    return errors / max(errors[0], 1)


def hull(options: Iterable[Option]) -> list[Option]:
    """The options on the lower convex hull of loss over cost, from the cheapest to the one with the least loss."""
    vertices: list[Option] = []
    for option in sorted(options):
        if vertices and option.loss >= vertices[-1].loss:
            continue  # neither cheaper nor better
        while len(vertices) > 1 and _slope(vertices[-1], option) <= _slope(vertices[-2], vertices[-1]):
            vertices.pop()
        if vertices and option.cost == vertices[-1].cost:
            vertices.pop()
        vertices.append(option)
    return vertices


def _slope(a: Option, b: Option) -> float:
    return (b.loss - a.loss) / max(b.cost - a.cost, 1)


def share_out(leaves: Sequence[Leaf], options: Mapping[str, Sequence[Option]], budget: float) -> dict[str, Choice]:
    """One option per leaf, with the least sum of losses within the budget.

    Each step moves the leaf whose loss falls most per unit of cost to the next option on its hull. For sums of convex
    functions that is optimal up to the remainder (Fox, Operations Research 14, 1966), which is spent on ranks between
    two options.
    """
    hulls = {leaf.path: hull(options[leaf.path]) for leaf in leaves}
    chosen = {path: vertices[0] for path, vertices in hulls.items()}
    choices = {path: option.choice for path, option in chosen.items()}
    left = budget - sum(option.cost for option in chosen.values())
    steps = [(_slope(a, b), leaf, a, b) for leaf in leaves for a, b in itertools.pairwise(hulls[leaf.path])]
    stopped: set[str] = set()
    for _, leaf, start, end in sorted(steps, key=lambda step: step[0]):
        if leaf.path in stopped:
            continue
        if end.cost - start.cost <= left:
            choices[leaf.path] = end.choice
            left -= end.cost - start.cost
            continue
        stopped.add(leaf.path)
        rank = leaf.rank_within(start.cost + left)
        if start.choice.rank is not None and rank > start.choice.rank:
            choices[leaf.path] = end.choice._replace(rank=rank) if end.choice.rank else start.choice._replace(rank=rank)
            left -= leaf.cost(rank) - start.cost
    return choices
