"""Loading a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lpjax.checkpoint._error import CheckpointError
from lpjax.checkpoint._source import find_folder
from lpjax.checkpoint._tensors import not_finite, read_tensors
from lpjax.lowrank import LowRank
from lpjax.models import BertConfig, architecture, config_from_json
from lpjax.models.names import walk

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
BLOCK = "lpjax"  # key of config.json under which a compressed checkpoint says how it was made

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "model.ckpt")
_OTHERS = ("tf_model.h5", "flax_model.msgpack", "model.onnx")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model: its weights, its config, and where it came from.

    Attributes:
        params: nested dict in the layout of Hugging Face's Flax models; leaves are arrays or `LowRank`.
        config: static config of the forward pass.
        source: folder that the tokenizer's files are copied from by `save_checkpoint`, or None.
        compression: how the weights were compressed (method, p, ranks by path), or None.
        config_json: the whole object of the config.json that was read, so that saving keeps what `config`
            does not know; or None.
    """

    params: dict[str, Any]
    config: BertConfig
    source: Path | None = None
    compression: dict[str, Any] | None = None
    config_json: Mapping[str, Any] | None = None


def load_checkpoint(source: str | Path) -> Checkpoint:
    """Load a checkpoint from a folder or from the Hugging Face Hub; nothing is unpickled.

    Reads config.json and model.safetensors (or its shards), dense or written by `save_checkpoint`. Leaves are
    read-only views of the file in the dtype it holds: memory is touched as weights are used.

    Args:
        source: a folder, or a hub id such as "sentence-transformers/all-MiniLM-L6-v2".

    Raises:
        CheckpointError: naming the file and everything in it that is missing, unknown, repeated, mis-shaped,
            not finite, or not supported.
        FileNotFoundError, NotADirectoryError, PermissionError, ConnectionError: `source` is nothing here or
            on the hub, or cannot be fetched.
    """
    folder = find_folder(source)
    data = _read_object(folder / CONFIG)
    try:
        config = config_from_json(data)
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    compression = _compression(data, folder / CONFIG)

    path, tensors = _read_weights(folder)
    params, misfits = architecture(config).name_table(config).read(tensors)
    if misfits:
        raise CheckpointError(f"{path} does not fit the {config.model_type} of {folder / CONFIG}:\n{misfits}")
    ranks = lowrank_ranks(params)
    if compression is not None and compression["ranks"] != ranks:
        differing = sorted(set(compression["ranks"].items()) ^ set(ranks.items()))
        raise CheckpointError(
            f"{folder / CONFIG}: `{BLOCK}.ranks` and the factored weights of {path} differ at "
            + ", ".join(dict.fromkeys(name for name, _ in differing))
        )
    bad = [*not_finite((name, tensor) for name, tensor in tensors.items() if tensor.dtype.kind not in "iub")]
    if bad:
        raise CheckpointError(f"{path} holds NaN or infinite weights: {', '.join(bad)}")
    return Checkpoint(params, config, folder, compression, data)


def lowrank_ranks(params: Mapping[str, Any]) -> dict[str, int]:
    """Rank of every factored weight, by path."""
    return {path: leaf.rank for path, leaf in walk(params) if isinstance(leaf, LowRank)}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} holds no {path.name}, so it is no checkpoint") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a JSON {type(data).__name__}, expected an object")
    return data


def _compression(data: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    block = data.get(BLOCK)
    if block is None:
        return None
    if not isinstance(block, dict):
        raise CheckpointError(f"{path}: `{BLOCK}` is {block!r}, expected an object")
    ranks = block.get("ranks")
    if not isinstance(ranks, dict) or not all(type(rank) is int for rank in ranks.values()):
        raise CheckpointError(f"{path}: `{BLOCK}.ranks` is {ranks!r}, expected an object of whole numbers")
    return block


def _read_weights(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The file to blame, and its tensors, over all shards."""
    if (folder / WEIGHTS).exists():
        return folder / WEIGHTS, read_tensors(folder / WEIGHTS)
    if (folder / INDEX).exists():
        return folder / INDEX, _read_shards(folder / INDEX)
    convert = (
        "where PyTorch is installed, convert it by "
        'transformers.AutoModel.from_pretrained("<folder>").save_pretrained("<new folder>")'
    )
    for name in _PICKLES:
        if (folder / name).exists():
            raise CheckpointError(f"{folder} holds only {name}, a pickle, which may run code; {convert}")
    for name in _OTHERS:
        if (folder / name).exists():
            raise CheckpointError(f"{folder} holds only {name}, expected {WEIGHTS}; {convert}")
    raise CheckpointError(f"{folder} holds no {WEIGHTS}; if the model has them in another format, {convert}")


def _read_shards(path: Path) -> dict[str, np.ndarray]:
    names = _read_object(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(type(name) is str for name in names.values()):
        raise CheckpointError(f"{path}: `weight_map` is missing or not an object of file names")
    shards = list(dict.fromkeys(names.values()))
    for shard in shards:
        # The index is input like any other: it may not reach out of its folder.
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{path} names the shard {shard!r}, expected a .safetensors file beside it")
    gone = [shard for shard in shards if not (path.parent / shard).exists()]
    if gone:
        raise CheckpointError(f"{path} names shards that are not there: {', '.join(gone)}")
    tensors: dict[str, np.ndarray] = {}
    for shard in shards:
        found = read_tensors(path.parent / shard)
        listed = {name for name, where in names.items() if where == shard}
        if listed != found.keys():
            raise CheckpointError(f"{path} and {shard} differ at {', '.join(sorted(listed ^ found.keys()))}")
        tensors |= found
    return tensors
