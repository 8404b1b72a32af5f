"""safetensors files: zero-copy reading, streamed writing."""

from __future__ import annotations

import collections
import json
import mmap
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from lpjax.checkpoint._error import CheckpointError

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_CHUNK = 1 << 18  # elements that are checked at a time: small beside any weight, large beside a call


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file by name, as read-only views of the mapped file.

    Raises:
        CheckpointError: where the file cannot be read, is not whole, repeats a name, or holds a number format
            that lpjax does not know.
    """
    try:
        # The library checks the header, and that it accounts for every byte of the file.
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        length = struct.unpack("<Q", content[:8])[0]
        pairs = json.loads(content[8 : 8 + length], object_pairs_hook=list)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}; fetch or save it again") from error

    names = [name for name, _ in pairs if name != "__metadata__"]
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise CheckpointError(f"{path} holds more than one tensor of the name {', '.join(repeated)}")
    entries = {name: dict(entry) for name, entry in pairs if name != "__metadata__"}
    strange = [f"{name} ({entry['dtype']})" for name, entry in entries.items() if entry["dtype"] not in _DTYPES]
    if strange:
        raise CheckpointError(f"{path} holds tensors in a format that lpjax does not read: {', '.join(strange)}")

    data = np.frombuffer(content, np.uint8, offset=8 + length)
    tensors = {}
    for name, entry in entries.items():
        start, stop = entry["data_offsets"]
        tensors[name] = data[start:stop].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def write_tensors(path: Path, tensors: Iterable[tuple[str, Any]]) -> int:
    """Write (name, array) pairs as a safetensors file, one array in memory at a time, and return its size.

    The arrays, numpy or jax, may be views in any memory order; names must differ.
    """
    pairs = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    offset = 0
    for name, array in pairs:
        size = array.size * array.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[np.dtype(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # so that the data is aligned
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, array in pairs:
            # Bytes, since numpy's writer does not know bfloat16.
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return path.stat().st_size


def not_finite(arrays: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """A description of every array that holds NaN or an infinity; memory for one array at most."""
    for name, array in arrays:
        dense = np.asarray(array)
        flat = (dense if dense.flags.c_contiguous else dense.T).reshape(-1)
        bad = sum(
            int(np.count_nonzero(~np.isfinite(flat[start : start + _CHUNK]))) for start in range(0, flat.size, _CHUNK)
        )
        if bad:
            yield f"{name} ({bad} of {flat.size})"
