"""The weights of a checkpoint's folder, whichever of the formats they are in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lpjax.checkpoint._msgpack import MAX_DEPTH, read_tree
from lpjax.checkpoint._recognise import told_of_folder
from lpjax.checkpoint.error import CheckpointError
from lpjax.checkpoint.files import (
    BLOCK,
    CONFIG,
    FACTORED_WEIGHTS,
    FLAX_INDEX,
    FLAX_WEIGHTS,
    INDEX,
    WEIGHTS,
    read_object,
)
from lpjax.checkpoint.tensors import read_tensors

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "model.ckpt")
_OTHERS = ("tf_model.h5", "model.onnx")


class Weights(NamedTuple):
    """What a folder holds.

    Attributes:
        file: the file to blame.
        tensors: by name, in PyTorch's orientation; or of a Flax tree by the keys of their paths.
        separator: between those keys ("/" or "."), or None for PyTorch's names.
    """

    file: Path
    tensors: dict[str, np.ndarray]
    separator: str | None


def read_weights(folder: Path, source: str, architectures: Any, named: Any = None, *, copy: bool = False) -> Weights:
    """The weights of `folder`: those that config.json names, or safetensors, or flax's msgpack; one file or shards.

    Args:
        folder: where they are.
        source: what the user called it, a hub id perhaps, to be told how to convert what is not read.
        architectures: of config.json, for the class that does so without losing a head.
        named: the file that config.json's block names, `FACTORED_WEIGHTS`; None if it names none.
        copy: whether the tensors are in memory, instead of views of the mapped files.

    Raises:
        CheckpointError: there are none, they cannot be read, or config.json and the files contradict each other.
    """
    factored = folder / FACTORED_WEIGHTS
    if named not in (None, FACTORED_WEIGHTS):
        raise CheckpointError(f"{folder / CONFIG}: `{BLOCK}.weights` is {named!r}, expected {FACTORED_WEIGHTS!r}")
    if named is not None and not factored.exists():
        raise CheckpointError(f"{folder / CONFIG} says that the weights are in {FACTORED_WEIGHTS}, which is not there")
    if named is None and factored.exists():
        raise CheckpointError(
            f"{folder} holds {FACTORED_WEIGHTS}, but its {CONFIG} does not name that file, so it is another net's; "
            f"put back the one that was written with it, or remove {FACTORED_WEIGHTS}"
        )

    def of_torch(path: Path) -> dict[str, np.ndarray]:
        return read_tensors(path, copy=copy)[0]

    def of_flax(path: Path) -> dict[str, np.ndarray]:
        return read_tree(path, copy=copy)

    if named is not None:
        return Weights(factored, of_torch(factored), None)
    if (folder / WEIGHTS).exists():
        tensors, metadata = read_tensors(folder / WEIGHTS, copy=copy)
        # transformers' Flax models in safetensors: paths joined by dots.
        return Weights(folder / WEIGHTS, tensors, "." if metadata.get("format") == "flax" else None)
    if (folder / INDEX).exists():
        return Weights(folder / INDEX, _read_shards(folder / INDEX, of_torch), None)
    if (folder / FLAX_WEIGHTS).exists():
        return Weights(folder / FLAX_WEIGHTS, of_flax(folder / FLAX_WEIGHTS), "/")
    if (folder / FLAX_INDEX).exists():
        return Weights(folder / FLAX_INDEX, _read_shards(folder / FLAX_INDEX, of_flax), "/")
    known = isinstance(architectures, list) and architectures and str(architectures[0]).isidentifier()
    convert = (
        f"where PyTorch is installed, convert it by transformers.{architectures[0] if known else 'AutoModel'}"
        f'.from_pretrained("{source}").save_pretrained("<new folder>")'
    )
    renamed = any(folder.glob("*.safetensors*"))  # or a link or pointer to such a file
    for name in _PICKLES:
        if (folder / name).exists() and not renamed:
            raise CheckpointError(f"{folder} holds only {name}, a pickle, which may run code; {convert}")
    for name in _OTHERS:
        if (folder / name).exists() and not renamed:
            raise CheckpointError(f"{folder} holds only {name}, expected {WEIGHTS} or {FLAX_WEIGHTS}; {convert}")
    raise CheckpointError(
        f"{folder} holds no {WEIGHTS} and no {FLAX_WEIGHTS}"
        + (told_of_folder(folder) or f"; if the model has them in another format, {convert}")
    )


def nested(leaves: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """The nested dicts that paths joined by `separator` stand for.

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


def _read_shards(path: Path, read: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = read_object(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(type(name) is str for name in names.values()):
        raise CheckpointError(f"{path}: `weight_map` is missing or not an object of file names")
    suffix = Path(path.name.removesuffix(".index.json")).suffix
    listed: dict[str, set[str]] = {}
    for name, shard in names.items():
        # The index is input like any other: it may not reach out of its folder. A link may, for the hub's cache
        # is made of them.
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(suffix):
            raise CheckpointError(f"{path} names the shard {shard!r} for {name}, expected a {suffix} file beside it")
        listed.setdefault(shard, set()).add(name)
    gone = [f"{shard} (for {min(listed[shard])})" for shard in listed if not (path.parent / shard).exists()]
    if gone:
        raise CheckpointError(f"{path} names shards that are not there: {', '.join(gone)}")
    tensors: dict[str, np.ndarray] = {}
    for shard, expected in listed.items():
        found = read(path.parent / shard)
        if expected != found.keys():
            raise CheckpointError(f"{path} and {shard} differ at {', '.join(sorted(expected ^ found.keys()))}")
        tensors |= found
    return tensors
