"""Groups of leaves that occur in each layer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, Protocol, TypeVar


class _HasPath(Protocol):
    @property
    def path(self) -> str: ...


Leaf = TypeVar("Leaf", bound=_HasPath)


@dataclasses.dataclass(frozen=True)
class Kind(Generic[Leaf]):
    """Similar leaves whose paths differ only in the layer number.

    Attributes:
        before, after: parts of the path before and after the number; for a leaf outside of layers, the path and "".
        layers: layer numbers, ascending; empty for a leaf outside of layers.
        leaves: records of the leaves, in the same order.
    """

    before: str
    after: str
    layers: tuple[int, ...]
    leaves: tuple[Leaf, ...]

    @property
    def span(self) -> str:
        """The layers as ranges, "0–11" or "0–3, 5"."""
        runs: list[list[int]] = []
        for layer in self.layers:
            if runs and layer == runs[-1][-1] + 1:
                runs[-1][1:] = [layer]
            else:
                runs.append([layer])
        return ", ".join("–".join(map(str, run)) for run in runs)

    @property
    def name(self) -> str:
        """The path, with the layer number replaced by `span`."""
        return f"{self.before}{self.span}{self.after}"


def kinds_of(
    leaves: Iterable[Leaf], alike: Callable[[Any], Hashable] = lambda leaf: (leaf.shape, leaf.dtype, leaf.rank)
) -> list[Kind[Leaf]]:
    """Group similar leaves of different layers, in the order in which the groups first occur.

    Among paths that are equal except for their numbers, the layer is the first number that differs. A number is a key,
    the end of a key after an underscore, or an index in brackets.

    Args:
        leaves: records with a `path`.
        alike: function of a leaf that is equal for all leaves of a kind; by default shape, dtype and rank.
    """
    templates: dict[tuple[str, ...], list[tuple[int, list[str], Leaf]]] = {}
    for position, leaf in enumerate(leaves):
        parts = re.split(r"((?<![^/_[])\d+(?=/|]|$))", leaf.path)
        templates.setdefault(tuple(parts[::2]), []).append((position, parts, leaf))
    groups: dict[tuple[Any, ...], list[tuple[int, int, Leaf]]] = {}
    for template, members in templates.items():
        numbers = range(1, 2 * len(template) - 1, 2)
        varying = next((i for i in numbers if len({parts[i] for _, parts, _ in members}) > 1), None)
        for position, parts, leaf in members:
            around, layer = (leaf.path, ""), -1
            if varying is not None:
                around = "".join(parts[:varying]), "".join(parts[varying + 1 :])
                layer = int(parts[varying])
            groups.setdefault((*around, alike(leaf)), []).append((layer, position, leaf))
    kinds = []
    for (before, after, _), members in groups.items():
        ordered = sorted(members, key=lambda member: member[:2])
        layers = tuple(layer for layer, *_ in ordered if layer >= 0)
        first = min(position for _, position, _ in members)
        kinds.append((first, Kind(before, after, layers, tuple(leaf for *_, leaf in ordered))))
    return [kind for _, kind in sorted(kinds, key=lambda pair: pair[0])]
