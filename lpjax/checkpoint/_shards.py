"""The safetensors files of any model, shard by shard, under their own names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lpjax.checkpoint._weights import check_shard, listed_shards, no_weights
from lpjax.checkpoint.error import CheckpointError
from lpjax.checkpoint.files import read_object
from lpjax.checkpoint.formats import BLOCK, CONFIG, FORMATS
from lpjax.checkpoint.safetensors import read_tensors
from lpjax.checkpoint.source import find_folder
from lpjax.checkpoint.stages import net_folder


class Shard(NamedTuple):
    """A safetensors file: its tensors by name, as read-only views, and its metadata."""

    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Shards:
    """The weight files of a folder.

    Attributes:
        source: the folder.
        inner: folder of config.json and the weights: `source`, except in old folders of sentence-transformers.
        config: contents of config.json, of any model.
        index: file that says which shard holds which tensor; None for a single file.
        files: shards by file name.
    """

    source: Path
    inner: Path
    config: Mapping[str, Any]
    index: Path | None
    files: Mapping[str, Shard]

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Every tensor by name."""
        return {name: tensor for shard in self.files.values() for name, tensor in shard.tensors.items()}

    @property
    def size(self) -> int:
        """Size of the files in bytes."""
        return sum((self.inner / name).stat().st_size for name in self.files)


def read_shards(source: str | Path) -> Shards:
    """Read the tensors of a folder or a repository of the hub, whatever the model, as memory-mapped views.

    Reads model.safetensors, else the shards of its index, else the only index or safetensors file of another name.

    Raises:
        CheckpointError: there are no such files, they are damaged or contradict each other, or the weights are
            quantized or were compressed by lpjax.
        FileNotFoundError, NotADirectoryError, PermissionError, ConnectionError: as `load_checkpoint`.
    """
    folder = find_folder(source, any_net=True)
    inner = net_folder(folder)
    config = read_object(inner / CONFIG)
    if BLOCK in config:
        raise CheckpointError(f"{inner} holds a model that lpjax compressed; `lpjax export` makes a dense folder of it")
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{inner / CONFIG} has a `quantization_config`: the weights are codes; expected floating-point numbers"
        )
    path = _find(inner)
    if path is None:
        name = str(source) if inner == folder else str(inner)
        raise CheckpointError(no_weights(inner, name, config.get("architectures")))
    if path.suffix != ".json":
        return Shards(folder, inner, config, None, {path.name: Shard(*read_tensors(path))})
    files = {}
    for name, listed in listed_shards(path, ".safetensors").items():
        files[name] = Shard(*read_tensors(inner / name))
        check_shard(path, name, listed, files[name].tensors.keys())
    return Shards(folder, inner, config, path, files)


def _find(folder: Path) -> Path | None:
    """The file of weights, or the index of its shards."""
    usual = FORMATS["safetensors"]
    for name in (usual.file, usual.index):
        if (folder / name).exists():
            return folder / name
    for pattern in ("*.safetensors.index.json", "*.safetensors"):  # such as diffusion_pytorch_model.safetensors
        if len(matches := [*folder.glob(pattern)]) == 1:
            return matches[0]
    return None
