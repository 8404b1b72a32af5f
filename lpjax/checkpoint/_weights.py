"""Read the weights of a checkpoint's folder, in any of the formats."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lpjax.checkpoint._folder_hints import folder_hint
from lpjax.checkpoint.error import CheckpointError
from lpjax.checkpoint.files import read_object
from lpjax.checkpoint.formats import BLOCK, CONFIG, FACTORED_WEIGHTS, FORMATS, Format

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "model.ckpt")
_OTHERS = ("tf_model.h5", "model.onnx")


class Weights(NamedTuple):
    """The weights of a folder.

    Attributes:
        file: file to name in errors.
        tensors: tensors by PyTorch's names, in PyTorch's orientation; or leaves of a Flax tree by path.
        separator: separator of the keys in these paths ("/" or "."), or None for PyTorch's names.
    """

    file: Path
    tensors: dict[str, np.ndarray]
    separator: str | None


def read_weights(folder: Path, source: str, architectures: Any, named: Any = None, *, copy: bool = False) -> Weights:
    """The weights of `folder`: the file that config.json names, or else the first of `FORMATS`, one file or shards.

    Args:
        folder: folder of the weights.
        source: the user's name for it, such as a hub id, for advice on how to convert other formats.
        architectures: `architectures` of config.json, whose class the same advice names.
        named: the file that config.json's block names, `FACTORED_WEIGHTS`; None if it names none.
        copy: whether to read the files into memory instead of mapping them.

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
            f"{folder} holds {FACTORED_WEIGHTS}, but its {CONFIG} does not name that file, so it is another model's; "
            f"put back the one that was written with it, or remove {FACTORED_WEIGHTS}"
        )
    if named is not None:
        return Weights(factored, FORMATS["safetensors"].read(factored, copy=copy)[0], None)
    for format in FORMATS.values():
        if (folder / format.file).exists():
            return Weights(folder / format.file, *format.read(folder / format.file, copy=copy))
        if (folder / format.index).exists():
            return _read_shards(folder / format.index, format, copy)
    raise CheckpointError(no_weights(folder, source, architectures))


def no_weights(folder: Path, source: str, architectures: Any) -> str:
    """A sentence on a folder without weights in one of `FORMATS`."""
    known = isinstance(architectures, list) and architectures and str(architectures[0]).isidentifier()
    convert = (
        f"with PyTorch installed, convert it by transformers.{architectures[0] if known else 'AutoModel'}"
        f'.from_pretrained("{source}").save_pretrained("<new folder>")'
    )
    files = [format.file for format in FORMATS.values()]
    if not any([*folder.glob(f"*{format.suffix}*")] for format in FORMATS.values()):  # nor a pointer to one
        reasons = dict.fromkeys(_PICKLES, "a pickle, which may run code")
        reasons |= dict.fromkeys(_OTHERS, f"expected {' or '.join(files)}")
        for name, reason in reasons.items():
            if (folder / name).exists():
                return f"{folder} holds only {name}, {reason}; {convert}"
    advice = folder_hint(folder) or f"; if the model has them in another format, {convert}"
    return f"{folder} holds no {' and no '.join(files)}{advice}"


def listed_shards(path: Path, suffix: str) -> dict[str, set[str]]:
    """The shards that an index lists, and the names of the tensors of each.

    Raises:
        CheckpointError: it is damaged, or names files that are not beside it.
    """
    names = read_object(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(type(name) is str for name in names.values()):
        raise CheckpointError(f"{path}: `weight_map` is missing or not an object of file names")
    expected: dict[str, set[str]] = {}
    for name, shard in names.items():
        # The index is not trusted: it may not name files outside its folder. A link may lead there, as in the hub's
        # cache.
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(suffix):
            raise CheckpointError(f"{path} names the shard {shard!r} for {name}, expected a {suffix} file beside it")
        expected.setdefault(shard, set()).add(name)
    gone = [f"{shard} (for {min(expected[shard])})" for shard in expected if not (path.parent / shard).exists()]
    if gone:
        raise CheckpointError(f"{path} names shards that are not there: {', '.join(gone)}")
    return expected


def check_shard(index: Path, shard: str, listed: Set[str], present: Set[str]) -> None:
    """Refuse a shard whose tensors are not those that its index lists.

    Raises:
        CheckpointError: they differ; names the tensors.
    """
    if listed != present:
        raise CheckpointError(f"{index} and {shard} differ at {', '.join(sorted(listed ^ present))}")


def _read_shards(path: Path, format: Format, copy: bool) -> Weights:
    tensors: dict[str, np.ndarray] = {}
    separator = None
    for shard, listed in listed_shards(path, format.suffix).items():
        shard_tensors, separator = format.read(path.parent / shard, copy=copy)
        check_shard(path, shard, listed, shard_tensors.keys())
        tensors |= shard_tensors
    return Weights(path, tensors, separator)
