"""One table a model: tensor names of Hugging Face files <-> paths of the parameter tree, in both directions.

A model module states its weights once, as `Weight`s built by `dense`, `embedding` and `norm`; `NameTable`
reads a file's tensors into the tree, lists a tree's tensors for a file, and in both directions reports
everything that does not fit instead of stopping at the first.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from lpjax.lowrank import LowRank

FACTORS = ("left", "right")


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight of a model: its name in a file, its path in the tree, and its shape there.

    Attributes:
        name: name in a PyTorch-style file, without the base model's prefix.
        path: keys of the parameter tree joined by "/", without the base model's subtree.
        shape: shape of the leaf in the tree. A string stands for a size that the config does not fix, and is
            the same size wherever it occurs in one table.
        transposed: whether the file holds the transpose (PyTorch's `Linear` is (out, in), kernels (in, out)).
        group: weights of one group are all there or all absent; the empty group must be there.
        tied_to: name of the weight that this one repeats where the two are tied. Not required, and not kept
            where it is equal to it.
    """

    name: str
    path: str
    shape: tuple[int | str, ...]
    transposed: bool = False
    group: str = ""
    tied_to: str | None = None


def dense(name: str, inputs: int | str, outputs: int | str, group: str = "") -> tuple[Weight, Weight]:
    """Kernel (inputs, outputs) and bias (outputs,) of the linear layer `name`."""
    path = name.replace(".", "/")
    return (
        Weight(f"{name}.weight", f"{path}/kernel", (inputs, outputs), transposed=True, group=group),
        Weight(f"{name}.bias", f"{path}/bias", (outputs,), group=group),
    )


def embedding(name: str, rows: int | str, features: int | str, group: str = "") -> tuple[Weight]:
    """Table (rows, features) of the embedding `name`."""
    path = name.replace(".", "/")
    return (Weight(f"{name}.weight", f"{path}/embedding", (rows, features), group=group),)


def norm(name: str, features: int | str, group: str = "") -> tuple[Weight, Weight]:
    """Scale and bias (features,) of the layer normalization `name`."""
    path = name.replace(".", "/")
    return (
        Weight(f"{name}.weight", f"{path}/scale", (features,), group=group),
        Weight(f"{name}.bias", f"{path}/bias", (features,), group=group),
    )


@dataclasses.dataclass
class Misfits:
    """Everything about a set of names that does not fit a table; false where all of it fits."""

    missing: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    duplicate: list[str] = dataclasses.field(default_factory=list)
    misshaped: list[str] = dataclasses.field(default_factory=list)
    unusable: list[str] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return any(dataclasses.asdict(self).values())

    def __str__(self) -> str:
        return "\n".join(
            f"  {kind.replace('misshaped', 'mis-shaped')} ({len(names)}): {', '.join(names)}"
            for kind, names in dataclasses.asdict(self).items()
            if names
        )


@dataclasses.dataclass(frozen=True)
class NameTable:
    """The names of one model, for one config.

    Attributes:
        prefix: key of the base model in the tree of a model with a head, and its prefix in a file ("bert").
        base: weights of the base model.
        heads: weights outside it, named and laid out from the root.
        renames: (pattern, replacement) pairs that bring old names to the present ones, by `re.sub`.
        ignored: pattern of names that hold no weight (index buffers of old files).
    """

    prefix: str
    base: tuple[Weight, ...]
    heads: tuple[Weight, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    ignored: str | None = None

    def read(self, tensors: Mapping[str, Any]) -> tuple[dict, Misfits]:
        """The parameter tree that `tensors`, by the names of a file, make up, and what does not fit.

        Base weights are accepted with and without the prefix. The tree holds the base model under `prefix`
        where the file used the prefix or has a head, else at the root. `N.left` and `N.right` make a
        `LowRank` of N. Leaves are views of the tensors.
        """
        misfits = Misfits()
        base, heads = ({weight.name: weight for weight in part} for part in (self.base, self.heads))
        slots: dict[
            tuple[str, str], tuple[str, np.ndarray]
        ] = {}  # (present name, factor) -> (file's name, tensor)
        nested = False
        for given, tensor in tensors.items():
            if self.ignored is not None and re.search(self.ignored, given):
                continue
            name, factor = self._split(self._rename(given))
            bare = name.removeprefix(f"{self.prefix}.")
            if bare in base:
                nested |= bare != name
                name = bare
            elif name in heads:
                nested = True
            else:
                misfits.unknown.append(given)
                continue
            if (name, factor) in slots:
                misfits.duplicate.append(f"{given} (also {slots[name, factor][0]})")
            elif factor and len((base.get(name) or heads[name]).shape) != 2:
                misfits.unknown.append(given)
            else:
                slots[name, factor] = (given, tensor)

        leaves: dict[str, tuple[str, Any]] = {}
        for weight in (*self.base, *self.heads):
            whole, left, right = (slots.get((weight.name, factor)) for factor in ("", *FACTORS))
            if whole and (left or right):
                misfits.duplicate += [f"{part[0]} (also {whole[0]})" for part in (left, right) if part]
            elif whole:
                leaves[weight.name] = (whole[0], whole[1].T if weight.transposed else whole[1])
            elif left and right:
                leaves[weight.name] = (left[0].removesuffix(".left"), LowRank(left[1], right[1]))
            elif left or right:
                misfits.missing.append(f"{weight.name}.{'right' if left else 'left'}")
        self._check(leaves, misfits)

        params: dict = {}
        for part, root in ((self.base, [self.prefix] if nested else []), (self.heads, [])):
            for weight in part:
                if weight.name in leaves and not _repeats(weight, leaves):
                    _put(params, [*root, *weight.path.split("/")], leaves[weight.name][1])
        return params, misfits

    def write(self, params: Mapping[str, Any]) -> tuple[list[tuple[str, Any]], Misfits]:
        """The (name, tensor) pairs of a file for `params`, in the table's order, and what does not fit.

        Tensors are in the file's orientation: views of the leaves, or jax arrays. The misfits name paths.
        """
        nested = self.prefix in params
        paths = dict(walk(params))
        misfits = Misfits()
        leaves: dict[str, tuple[str, Any]] = {}
        pairs: list[tuple[str, Any]] = []
        for weight, root in [*((w, nested) for w in self.base), *((w, False) for w in self.heads)]:
            path = f"{self.prefix}/{weight.path}" if root else weight.path
            if path not in paths:
                continue
            leaf = paths.pop(path)
            name = f"{self.prefix}.{weight.name}" if root else weight.name
            leaves[weight.name] = (path, leaf)
            if isinstance(leaf, LowRank):
                pairs += [(f"{name}.{factor}", getattr(leaf, factor)) for factor in FACTORS]
            else:
                pairs.append((name, leaf.T if weight.transposed and hasattr(leaf, "T") else leaf))
        misfits.unknown += paths
        self._check(leaves, misfits, by_path=True)
        return pairs, misfits

    def _rename(self, name: str) -> str:
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    @staticmethod
    def _split(name: str) -> tuple[str, str]:
        stem, _, last = name.rpartition(".")
        return (stem, last) if last in FACTORS else (name, "")

    def _check(self, leaves: Mapping[str, tuple[str, Any]], misfits: Misfits, by_path: bool = False) -> None:
        """Add to `misfits` what is missing from `leaves`, and what has a wrong shape or dtype."""
        groups = {weight.group for weight in (*self.base, *self.heads) if weight.name in leaves} | {""}
        sizes: dict[str, int] = {}
        listed = {*misfits.missing}
        for weight in (*self.base, *self.heads):
            if weight.name not in leaves:
                halves = {f"{weight.name}.{factor}" for factor in FACTORS}
                if weight.group in groups and weight.tied_to is None and not halves & listed:
                    misfits.missing.append(weight.path if by_path else weight.name)
                continue
            given, leaf = leaves[weight.name]
            arrays = [leaf.left, leaf.right] if isinstance(leaf, LowRank) else [leaf]
            if not all(_is_float(array) for array in arrays):
                kinds = " and ".join(str(getattr(array, "dtype", type(array).__name__)) for array in arrays)
                misfits.unusable.append(f"{given} is {kinds}, expected floating-point numbers")
                continue
            expected = tuple(sizes.get(n, n) if isinstance(n, str) else n for n in weight.shape)
            if _fits(leaf, expected):
                sizes |= {n: size for n, size in zip(expected, leaf.shape, strict=True) if isinstance(n, str)}
            else:
                order = slice(None, None, -1 if weight.transposed and not by_path else 1)
                misfits.misshaped.append(
                    f"{given} is {_describe(leaf, order)}, expected {_size(expected[order])}"
                )


def walk(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) for every leaf of a nested dict, paths joined by "/"; a `LowRank` is one leaf."""
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for key, child in tree.items():
        yield from walk(child, f"{path}/{key}" if path else str(key))


def _put(tree: dict, keys: Iterable[str], leaf: Any) -> None:
    *parents, last = keys
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = leaf


def _repeats(weight: Weight, leaves: Mapping[str, tuple[str, Any]]) -> bool:
    """Whether `weight` only repeats the weight that it is tied to, so that the tree need not keep it."""
    if weight.tied_to is None or weight.tied_to not in leaves:
        return False
    leaf, other = leaves[weight.name][1], leaves[weight.tied_to][1]
    if isinstance(leaf, LowRank) or isinstance(other, LowRank):
        return False
    return np.array_equal(leaf.T if weight.transposed else leaf, other)


def _is_float(array: Any) -> bool:
    # ml_dtypes' bfloat16 is of kind "V" to numpy.
    return hasattr(array, "shape") and (array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def _fits(leaf: Any, expected: tuple[int | str, ...]) -> bool:
    if isinstance(leaf, LowRank):
        left, right = leaf.left.shape, leaf.right.shape
        if len(left) != 2 or len(right) != 2 or left[1] != right[0] or left[1] < 1:
            return False
    return len(leaf.shape) == len(expected) and all(
        isinstance(n, str) or n == size for n, size in zip(expected, leaf.shape, strict=True)
    )


def _describe(leaf: Any, order: slice) -> str:
    if isinstance(leaf, LowRank):
        return f"{_size(leaf.left.shape)} times {_size(leaf.right.shape)}"
    return _size(leaf.shape[order])


def _size(shape: Iterable[int | str]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
