"""safetensors files: zero-copy reading, streamed writing."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lpjax._files.json import JSON_LIMIT, parse_json
from lpjax._files.reading import map_file
from lpjax.checkpoint._file_hints import file_hint
from lpjax.checkpoint.error import CheckpointError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
MAX_NDIM = 8  # of an array in a file; bounds the product of its sizes
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
ENTRY = 78
"""Approximate size of an array's entry in the header of a file, in bytes, without its name."""
_CHUNK = 1 << 18  # elements checked at a time: small beside any weight, large beside the cost of a call


def read_tensors(path: Path, *, copy: bool = False) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every tensor of a safetensors file by name, and its metadata.

    Tensors are read-only views of the mapped file, or with `copy` of its bytes in memory. The header is parsed here,
    because the safetensors library accepts shapes that NumPy does not, and rarely says which tensor is at fault.

    Raises:
        CheckpointError: the file cannot be read, is not whole, or holds an unknown number format; names every tensor at
            fault.
    """
    try:
        content = map_file(path, copy=copy)
        header, start = _header(content)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its __metadata__ is not an object of strings")
        data = np.frombuffer(content, np.uint8)[start:]
        _check_layout(header, len(data))
        strange = [f"{name} ({entry['dtype']})" for name, entry in header.items() if entry["dtype"] not in DTYPES]
        if strange:
            raise CheckpointError(f"{path} holds tensors in a format that lpjax does not read: {', '.join(strange)}")
        tensors = {name: _view(data, name, entry) for name, entry in header.items()}
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}; fetch or save it again{file_hint(path)}"
        ) from error
    return tensors, metadata


def read_named(path: Path, *, copy: bool = False) -> tuple[dict[str, np.ndarray], str | None]:
    """`read_tensors` without the metadata, and the separator of the names: transformers' Flax models join paths by ".".

    Raises:
        CheckpointError: as `read_tensors`.
    """
    tensors, metadata = read_tensors(path, copy=copy)
    return tensors, "." if metadata.get("format") == "flax" else None


def _header(content: Any) -> tuple[dict[str, Any], int]:
    """The header's object, and where the data starts."""
    if len(content) < 8:
        raise ValueError(f"it has {len(content)} bytes, fewer than the header's length takes")
    (length,) = struct.unpack("<Q", content[:8])
    if length > len(content) - 8:
        raise ValueError(
            f"it begins with {content[:8]!r}, which is a header of {length} bytes, but only {len(content) - 8} follow"
        )
    if length > JSON_LIMIT:
        raise ValueError(f"its header is {length} bytes long, expected at most {JSON_LIMIT}")
    try:
        header = parse_json(content[8 : 8 + length], unique=True)
    except ValueError as error:
        raise ValueError(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"its header is a JSON {type(header).__name__}, expected an object")
    return header, 8 + length


def _check_layout(header: Mapping[str, Any], size: int) -> None:
    """Check that entries are valid, and that tensors fill the `size` bytes of data without gap or overlap."""
    faults = [f"{name} {fault}" for name, entry in header.items() if (fault := _fault(entry, size))]
    if faults:
        raise ValueError(_first_few(faults))
    end, before = 0, ""
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start < end:
            faults.append(f"{name} overlaps {before}")
        elif start > end:
            faults.append(f"bytes {end} to {start}, before {name}, belong to no tensor")
        end, before = max(end, stop), name
    if end < size:
        faults.append(f"its last {size - end} bytes belong to no tensor")
    if faults:
        raise ValueError(_first_few(faults))


def _first_few(faults: list[str]) -> str:
    """The first few of many faults: in a file that is cut off, every tensor after the cut is one."""
    more = [f"and {len(faults) - 3} more"] if len(faults) > 4 else []
    return "; ".join([*(faults[:3] if more else faults), *more])


def _fault(entry: Any, size: int) -> str | None:
    """What is wrong with the description of one tensor."""
    if not isinstance(entry, dict):
        return f"is described by a JSON {type(entry).__name__}, expected an object"
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if type(dtype) is not str:
        return "has no dtype that is a string"
    if not isinstance(shape, list) or len(shape) > MAX_NDIM or not all(type(n) is int and n >= 0 for n in shape):
        return f"has no shape that is a list of at most {MAX_NDIM} whole numbers"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        return "has no data_offsets that are two whole numbers"
    start, stop = offsets
    if not 0 <= start <= stop <= size:
        return f"lies at bytes {start} to {stop}, but the file has {size} bytes of data"
    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != stop - start:
        return f"is {shape} of {dtype}, but lies at bytes {start} to {stop}, {stop - start} in all"
    return None


def _view(data: np.ndarray, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    start, stop = entry["data_offsets"]
    try:
        return data[start:stop].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    except (ValueError, OverflowError) as error:  # a size of 2⁶³ beside one of 0
        raise ValueError(f"{name} has the shape {entry['shape']}: {error}") from error


def write_tensors(path: Path, tensors: Iterable[tuple[str, Any]], metadata: Mapping[str, str] | None = None) -> int:
    """Write (name, array) pairs as a safetensors file, one array in memory at a time, and return its size.

    Arrays are NumPy's, JAX's, or anything that NumPy can convert; views may be in any memory order. Names must differ.
    `metadata` is {"format": "pt"} by default: transformers refuses a file without it.
    """
    pairs = list(tensors)
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
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
    """A description of every array that holds NaN or an infinity; needs memory for one array."""
    for name, array in arrays:
        dense = np.asarray(array)
        flat = (dense if dense.flags.c_contiguous else dense.T).reshape(-1)
        bad = sum(
            int(np.count_nonzero(~np.isfinite(flat[start : start + _CHUNK]))) for start in range(0, flat.size, _CHUNK)
        )
        if bad:
            yield f"{name} ({bad} of {flat.size})"


def check_finite(arrays: Iterable[tuple[str, Any]], owner: str, error: type[ValueError] = ValueError) -> None:
    """Refuse arrays that hold NaN or an infinity.

    Raises:
        ValueError, or `error`: there are some; names `owner` and every such array.
    """
    if bad := [*not_finite(arrays)]:
        raise error(f"{owner} holds NaN or infinite weights: {', '.join(bad)}")
