"""Parameter trees: leaves and their paths, keys joined by "/"; a `LowRank` or `Quantized` is one leaf."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from lpjax.weights.dispatch import is_weight

MAX_DEPTH = 32
"""Largest number of keys of a path in a file; real parameter trees have far fewer."""


def leaves_with_paths(params: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of every array, `LowRank` or `Quantized` in a pytree, in the order of its leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_weight)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def check_tree(params: Any) -> None:
    """Refuse anything but nested dicts of arrays.

    Raises:
        ValueError: naming its type.
    """
    if not isinstance(params, Mapping):
        raise ValueError(
            f"`params` is {type(params).__name__}, expected nested dicts of arrays, such as Checkpoint.params"
        )


def replace_leaves(params: Any, leaves: Mapping[str, Any]) -> Any:
    """`params` with the leaves at the paths of `leaves` replaced, as `leaves_with_paths` names them."""

    def swap(path: Any, leaf: Any) -> Any:
        return leaves.get(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)

    return jax.tree_util.tree_map_with_path(swap, params, is_leaf=is_weight)


def walk(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) for every leaf of nested dicts, in insertion order; leaves may be anything, including None."""
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for key, child in tree.items():
        yield from walk(child, f"{path}/{key}" if path else str(key))


def put(tree: dict, keys: Iterable[str], leaf: Any) -> None:
    """Set a leaf of nested dicts, creating the dicts on its path."""
    *parents, last = keys
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = leaf


def nested(leaves: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """The nested dicts of leaves by paths joined by `separator`.

    Raises:
        ValueError: a path leads through a leaf, or has more than `MAX_DEPTH` keys.
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(separator)
        if len(parents) >= MAX_DEPTH:
            raise ValueError(f"{path} is nested {len(parents) + 1} deep, expected at most {MAX_DEPTH}")
        branch = tree
        for key in parents:
            branch = branch.setdefault(key, {})
            if not isinstance(branch, dict):
                raise ValueError(f"{path} leads through another array")
        if last in branch:
            raise ValueError(f"{path} is both an array and a group of arrays")
        branch[last] = leaf
    return tree


def is_table(path: str) -> bool:
    """Whether a leaf is a table whose rows are looked up, not a kernel, judged by its name."""
    # Flax's boxes, such as nn.Partitioned, call their content value
    return path.removesuffix("/value").split("/")[-1] == "embedding"
