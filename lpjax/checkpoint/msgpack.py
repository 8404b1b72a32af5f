"""flax's msgpack files, without flax: zero-copy reading, streamed writing.

The format (flax.serialization): nested maps whose leaves are extension objects of type 1 (3 for a scalar), each a
packed array (shape, dtype name, bytes). A leaf of more than 2³⁰ bytes is a map of `__msgpack_chunked_array__`, its
shape and its pieces. The reader is our own: msgpack's `Unpacker` copies a leaf three times and cannot skip one, and
its C and Python versions apply the limits on hostile files in different ways.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgpack
import numpy as np

from lpjax._files.reading import map_file
from lpjax._tree import MAX_DEPTH, nested, walk
from lpjax.checkpoint._file_hints import file_hint
from lpjax.checkpoint.error import CheckpointError
from lpjax.checkpoint.safetensors import DTYPES, MAX_NDIM

_CHUNKED = "__msgpack_chunked_array__"
_CHUNK_BYTES = 1 << 30  # flax's limit for an unchunked leaf
_ARRAY, _SCALAR = 1, 3
_FLAT_DTYPES = {dtype.name: dtype for dtype in DTYPES.values()}

# Limits far above any tree of params. A hostile file can claim any length, so lengths are compared with these limits
# and with the bytes that are there before anything is allocated.
_MAX_KEYS = 1 << 15  # in all maps together
_MAX_TEXT = 256  # bytes of a key or the name of a dtype

# First byte of an object -> its kind, and the format of the length or number that follows.
_SIZED = {
    first + i: (kind, f">{format}")
    for kind, first, formats in (
        ("byte string", 0xC4, "BHI"),
        ("extension", 0xC7, "BHI"),
        ("float", 0xCA, "fd"),
        ("whole number", 0xCC, "BHIQbhiq"),
        ("string", 0xD9, "BHI"),
        ("list", 0xDC, "HI"),
        ("map", 0xDE, "HI"),
    )
    for i, format in enumerate(formats)
}
_MAPS = {*range(0x80, 0x90), 0xDE, 0xDF}


def read_tree(path: Path, *, copy: bool = False) -> dict[str, np.ndarray]:
    """Every array of a flax msgpack file, by its keys joined by "/".

    Arrays are read-only views of the mapped file, or with `copy` of its bytes in memory. The views are unaligned,
    because msgpack does not pad; NumPy and jax accept them. A chunked array is a copy.

    Raises:
        CheckpointError: the file cannot be read or is not whole, repeats a key, nests or claims more than a params tree
            does, or holds anything but arrays in a number format of `DTYPES`; names the key.
    """
    try:
        content = map_file(path, copy=copy)
        if content[0] not in _MAPS:
            raise ValueError(f"it begins with {content[:8]!r}, expected a map")
        reader = _Reader(content)
        tree = reader.value(())
        if not isinstance(tree, dict):
            raise ValueError("it is a single array")
        if reader.left():
            raise ValueError(f"{reader.left()} bytes follow its end")
        leaves = dict(walk(tree))
        for key, leaf in leaves.items():
            if not isinstance(leaf, np.ndarray):
                raise ValueError(f"{key} is {leaf!r}, expected an array or a map")
    except (OSError, ValueError) as error:
        hint = f"fetch or save it again{file_hint(path)}"
        raise CheckpointError(f"{path} is not a whole flax msgpack file: {error}; {hint}") from error
    return leaves


def read_paths(path: Path, *, copy: bool = False) -> tuple[dict[str, np.ndarray], str | None]:
    """`read_tree`, and the separator of its paths.

    Raises:
        CheckpointError: as `read_tree`.
    """
    return read_tree(path, copy=copy), "/"


class _Reader:
    """Reads msgpack objects; every fault is a ValueError that names the key."""

    def __init__(self, content: Any):
        self._content = content
        self._at = 0
        self._keys = 0

    def left(self) -> int:
        """Number of bytes that are not read yet."""
        return len(self._content) - self._at

    def value(self, where: tuple[str, ...]) -> Any:
        """The next object: a dict, an array, or a whole number or truth value, which chunked arrays have."""
        kind, size = self._head(where)
        if kind == "map":
            return self._map(where, size)
        if kind == "extension":
            return self._array(where, size)
        if kind in ("whole number", "truth value"):
            return size
        raise ValueError(f"{_name(where)} is a {kind}, expected an array or a map")

    def _take(self, count: int, where: tuple[str, ...]) -> bytes:
        if count > self.left():
            raise ValueError(f"{_name(where)} is cut off: the file ends at byte {len(self._content)}")
        self._at += count
        return self._content[self._at - count : self._at]

    def _head(self, where: tuple[str, ...]) -> tuple[str, Any]:
        """Kind of the next object, and its value (of a number) or its length; moves to its content."""
        (first,) = self._take(1, where)
        if first in _SIZED:
            kind, format = _SIZED[first]
            (size,) = struct.unpack(format, self._take(struct.calcsize(format), where))
            return kind, size
        if first < 0x80 or first >= 0xE0:
            return "whole number", first if first < 0x80 else first - 256
        if first < 0x90:
            return "map", first & 15
        if first < 0xA0:
            return "list", first & 15
        if first < 0xC0:
            return "string", first & 31
        if first >= 0xD4:
            return "extension", 1 << (first - 0xD4)
        return {0xC0: ("nil", 0), 0xC1: ("byte 0xc1", 0), 0xC2: ("truth value", False), 0xC3: ("truth value", True)}[
            first
        ]

    def _text(self, where: tuple[str, ...], what: str) -> str:
        kind, size = self._head(where)
        if kind != "string":
            raise ValueError(f"{_name(where)} has a {what} that is a {kind}, expected a string")
        if size > _MAX_TEXT:
            raise ValueError(f"{_name(where)} has a {what} of {size} bytes, expected at most {_MAX_TEXT}")
        try:
            return self._take(size, where).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{_name(where)} has a {what} that is not UTF-8: {error}") from error

    def _map(self, where: tuple[str, ...], count: int) -> Any:
        if len(where) >= MAX_DEPTH:
            raise ValueError(f"{_name(where)} is nested {len(where)} deep, expected less than {MAX_DEPTH}")
        if 2 * count > self.left():
            raise ValueError(f"{_name(where)} claims {count} keys, but only {self.left()} bytes follow")
        self._keys += count
        if self._keys > _MAX_KEYS:
            raise ValueError(f"{_name(where)} brings the keys to {self._keys}, expected at most {_MAX_KEYS}")
        entries: dict[str, Any] = {}
        for _ in range(count):
            key = self._text(where, "key")
            if not key or "/" in key:
                raise ValueError(f"{_name(where)} has the key {key!r}, expected a name without a slash")
            if key in entries:
                raise ValueError(f"{_name((*where, key))} appears twice")
            entries[key] = self.value((*where, key))
        return _joined(entries, where) if _CHUNKED in entries else entries

    def _array(self, where: tuple[str, ...], size: int) -> np.ndarray:
        (code,) = struct.unpack("b", self._take(1, where))
        if size > self.left():
            raise ValueError(f"{_name(where)} claims {size} bytes, but only {self.left()} follow")
        if code not in (_ARRAY, _SCALAR):
            what = "a complex number" if code == 2 else f"an extension of type {code}"
            raise ValueError(f"{_name(where)} is {what}, expected an array")
        stop = self._at + size
        if self._head(where) != ("list", 3):
            raise ValueError(f"{_name(where)} is not a list of shape, dtype and bytes")
        kind, ndim = self._head(where)
        if kind != "list" or ndim > MAX_NDIM:
            actual = f"{ndim} numbers" if kind == "list" else f"a {kind}"
            raise ValueError(f"{_name(where)} has a shape of {actual}, expected a list of at most {MAX_NDIM}")
        sizes = [self._head(where) for _ in range(ndim)]
        shape = tuple(n for _, n in sizes)
        if not all(kind == "whole number" and n >= 0 for kind, n in sizes):
            raise ValueError(f"{_name(where)} has the shape {shape}, expected whole numbers")
        dtype = _FLAT_DTYPES.get(name := self._text(where, "dtype"))
        if dtype is None:
            raise ValueError(f"{_name(where)} is of dtype {name!r}, expected one of {', '.join(_FLAT_DTYPES)}")
        kind, length = self._head(where)
        if kind != "byte string" or self._at + length != stop:
            actual = f"{length} bytes" if kind == "byte string" else f"a {kind}"
            left = max(stop - self._at, 0)
            raise ValueError(f"{_name(where)} has {actual} after its dtype, where {left} bytes are left for it")
        if math.prod(shape) * dtype.itemsize != length:
            raise ValueError(f"{_name(where)} is {shape} of {name}, but has {length} bytes")
        flat = np.frombuffer(self._content, np.uint8)[self._at : stop].view(dtype)
        self._at = stop
        return _shaped(flat, shape, where)


def _joined(entries: Mapping[str, Any], where: tuple[str, ...]) -> np.ndarray:
    """The array of a map {`_CHUNKED`: True, "shape": {"0": n, …}, "chunks": {"0": array, …}}."""
    shape, chunks = (_listed(entries.get(key)) for key in ("shape", "chunks"))
    if not (
        entries.keys() == {_CHUNKED, "shape", "chunks"}
        and shape is not None
        and len(shape) <= MAX_NDIM
        and all(type(n) is int and n >= 0 for n in shape)
        and chunks
        and all(isinstance(chunk, np.ndarray) and chunk.ndim == 1 for chunk in chunks)
        and len({chunk.dtype for chunk in chunks}) == 1
    ):
        raise ValueError(f"{_name(where)} is not an array in chunks: it lacks a shape or flat chunks of one dtype")
    size = sum(chunk.size for chunk in chunks)
    if math.prod(shape) != size:
        raise ValueError(f"{_name(where)} is {tuple(shape)}, but its chunks hold {size} numbers")
    whole = np.concatenate(chunks)
    whole.flags.writeable = False  # like every other leaf
    return _shaped(whole, tuple(shape), where)


def _listed(numbered: Any) -> list[Any] | None:
    """The values of {"0": …, "1": …}, in order."""
    if not isinstance(numbered, dict) or numbered.keys() != {str(i) for i in range(len(numbered))}:
        return None
    return [numbered[str(i)] for i in range(len(numbered))]


def _shaped(flat: np.ndarray, shape: tuple[int, ...], where: tuple[str, ...]) -> np.ndarray:
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError) as error:  # a size of 2⁶³ beside one of 0
        raise ValueError(f"{_name(where)} has the shape {shape}: {error}") from error


def _name(where: tuple[str, ...]) -> str:
    return "/".join(where) or "the outermost map"


def write_tree(path: Path, tree: Mapping[str, Any]) -> int:
    """Write nested dicts of arrays as a flax msgpack file, one array in memory at a time, and return its size.

    `flax.serialization.msgpack_restore` reads it. The arrays are as in `write_tensors`.
    """
    with path.open("xb") as file:
        _write(file, tree)
    return path.stat().st_size


def write_paths(path: Path, leaves: Iterable[tuple[str, Any]]) -> int:
    """`write_tree` for leaves by path, with keys joined by "/"."""
    return write_tree(path, nested(dict(leaves), "/"))


def _packed(value: Any) -> bytes:
    return bytes(cast(Any, msgpack.packb(value)))


def _write(file: BinaryIO, value: Any) -> None:
    if isinstance(value, Mapping):
        file.write(msgpack.Packer().pack_map_header(len(value)))
        for key, child in value.items():
            file.write(_packed(key))
            _write(file, child)
    elif isinstance(value, bool | int):
        file.write(_packed(value))
    else:
        flat = np.ascontiguousarray(value).reshape(-1)
        if flat.nbytes <= _CHUNK_BYTES:
            _write_array(file, value.shape, flat)
            return
        step = _CHUNK_BYTES // flat.itemsize
        chunks = [flat[start : start + step] for start in range(0, flat.size, step)]
        _write(file, {_CHUNKED: True, "shape": _numbered(value.shape), "chunks": _numbered(chunks)})


def _write_array(file: BinaryIO, shape: tuple[int, ...], flat: np.ndarray) -> None:
    head = msgpack.Packer().pack_array_header(3) + _packed(tuple(shape)) + _packed(flat.dtype.name)
    head += struct.pack(">BI", 0xC6, flat.nbytes)
    file.write(struct.pack(">BIb", 0xC9, len(head) + flat.nbytes, _ARRAY) + head)
    file.write(flat.view(np.uint8).data)  # bytes, since numpy's writer does not know bfloat16


def _numbered(values: Any) -> dict[str, Any]:
    return {str(i): value for i, value in enumerate(values)}
