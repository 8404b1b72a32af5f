"""Names of a checkpoint's files, and their bytes and JSON objects; what is read here is not trusted."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any, NoReturn

from lpjax.checkpoint._error import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLAX_WEIGHTS = "flax_model.msgpack"
FLAX_INDEX = "flax_model.msgpack.index.json"
CONFIG = "config.json"
BLOCK = "lpjax"  # key of config.json under which a compressed checkpoint says how it was made

JSON_LIMIT = 1 << 22
"""Bytes of JSON that are parsed at most: enough for 30 000 tensors, and some 200 MB in memory where it is a bomb."""


def map_file(path: Path) -> mmap.mmap:
    """The file's bytes, mapped and read-only.

    Raises:
        OSError, ValueError: it cannot be read, or has no bytes.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")  # A pipe would never end.
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def parse_json(text: bytes, *, unique: bool = False) -> Any:
    """What `text` holds; with `unique`, no object may repeat a key.

    Raises:
        ValueError: it is not JSON (NaN and Infinity are not), or larger than `JSON_LIMIT`.
        RecursionError: it is nested too deeply.
    """
    if len(text) > JSON_LIMIT:
        raise ValueError(f"it is longer than {JSON_LIMIT} bytes")
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique if unique else None)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    if not path.exists():
        raise CheckpointError(f"{path.parent} holds no {path.name}, so it is no checkpoint")
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        with path.open("rb") as file:
            data = parse_json(file.read(JSON_LIMIT + 1))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a JSON {type(data).__name__}, expected an object")
    return data


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, _ in pairs:
            if key not in found:
                raise ValueError(f"the key {key!r} is repeated")
            del found[key]
    return found
