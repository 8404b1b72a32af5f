"""Names of a checkpoint's files, and their bytes and JSON objects; what is read here is not trusted."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

from lpjax._files.json import read_json
from lpjax.checkpoint._recognise import told_of_file, told_of_folder
from lpjax.checkpoint.error import CheckpointError

WEIGHTS = "model.safetensors"
FACTORED_WEIGHTS = "lpjax.safetensors"
"""Weights of which some are factors: a name that no other library reads, for it would load the rest and make up what it
misses."""
INDEX = "model.safetensors.index.json"
FLAX_WEIGHTS = "flax_model.msgpack"
FLAX_INDEX = "flax_model.msgpack.index.json"
CONFIG = "config.json"
BLOCK = "lpjax"  # key of config.json under which a compressed checkpoint says how it was made
WEIGHTS_KEY = "weights"  # of that block: the file that the weights are in


def map_file(path: Path, *, copy: bool = False) -> mmap.mmap | bytes:
    """The file's bytes, read-only: mapped, or with `copy` read into memory.

    Mapped bytes are the file's own: they change if somebody writes into it, and if it is made shorter, reading beyond
    its end kills the process (SIGBUS). A copy is safe from both.

    Raises:
        OSError, ValueError: it cannot be read, has no bytes, or changes while it is copied.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")  # A pipe would never end.
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        if before.st_size == 0:
            raise ValueError("it is empty")
        if not copy:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = file.read()
        after = os.fstat(file.fileno())
    if len(content) != before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ValueError("it changed while it was read")
    return content


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    if not path.exists():
        hint = told_of_folder(path.parent) if path.name == CONFIG else ""
        raise CheckpointError(f"{path.parent} holds no {path.name}, so it is no checkpoint{hint}")
    data = read_any(path)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a JSON {type(data).__name__}, expected an object")
    return data


def read_any(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        CheckpointError: it cannot be read, or is not JSON.
    """
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}{told_of_file(path)}") from error
