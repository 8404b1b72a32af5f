"""Files of a checkpoint, and the table of weight formats. A new one is a file such as `msgpack.py` and a line here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lpjax.checkpoint import msgpack, safetensors

CONFIG = "config.json"
BLOCK = "lpjax"
"""Key of config.json under which a compressed checkpoint says how it was made."""
WEIGHTS_KEY = "weights"
"""Key of that block: the name of the file of the weights."""
RANKS = "ranks"
"""Key of that block: the rank of each factored weight, by path."""
QUANTIZED = "quantized"
"""Key of that block: how many numbers share a scale, for each quantized weight or factor, by path."""
FACTORED_WEIGHTS = "lpjax.safetensors"
"""The weight file if some weights are factored or quantized. Other libraries do not look for this name; under theirs
they would load the dense weights and initialize the others at random. The files of `_torch.py` read it in PyTorch."""


PROGRAM_FILES = {"onnx": "model.onnx", "stablehlo": "program.bin"}
"""Subfolder of an export, by runtime -> the file of its program."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format of weights.

    Attributes:
        file: name of the file in a checkpoint's folder; shards are called "model-00001-of-00002.safetensors" and so on.
        read: (path, copy=…) -> tensors by name, and the separator in these names if they are paths of a Flax tree, else
            None for PyTorch's names. With `copy`, tensors are in memory, else views of the file.
        write: (path, pairs of name and tensor) -> size of the file in bytes.
        separator: separator in the names that `write` takes; None for PyTorch's names.
        target: name for `lpjax export --to`, if not the key in the table.
    """

    file: str
    read: Callable[..., tuple[dict[str, np.ndarray], str | None]]
    write: Callable[[Path, Iterable[tuple[str, Any]]], int]
    separator: str | None = None
    target: str | None = None

    @property
    def stem(self) -> str:
        """The name of the file without its suffix."""
        return self.file.removesuffix(self.suffix)

    @property
    def suffix(self) -> str:
        """The suffix of the file, such as ".safetensors"."""
        return Path(self.file).suffix

    @property
    def index(self) -> str:
        """The name of the file that says which shard holds which tensor."""
        return f"{self.file}.index.json"

    @property
    def patterns(self) -> tuple[str, str]:
        """Patterns of the names of the file and of its shards, for globbing and the hub."""
        return self.file, f"{self.stem}-*{self.suffix}"


FORMATS = {
    "safetensors": Format("model.safetensors", safetensors.read_named, safetensors.write_tensors, target="dense"),
    "msgpack": Format("flax_model.msgpack", msgpack.read_paths, msgpack.write_paths, separator="/", target="flax"),
}
"""Formats by name; if a folder has files of several, the first is read."""
WEIGHTS = FORMATS["safetensors"].file
