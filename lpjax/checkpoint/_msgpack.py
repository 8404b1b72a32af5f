"""flax's msgpack files, without flax: zero-copy reading, streamed writing.

The format (flax.serialization): nested maps whose leaves are extension objects of type 1 (3 for a scalar), each a
packed array (shape, dtype name, bytes). A leaf of more than 2³⁰ bytes is a map of `__msgpack_chunked_array__`, its
shape and its pieces. The msgpack package reads and writes all of that but the bytes, which stay where they are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgpack
import numpy as np

from lpjax.checkpoint._error import CheckpointError
from lpjax.checkpoint._files import map_file
from lpjax.checkpoint._tensors import DTYPES, MAX_NDIM
from lpjax.models.names import walk

_CHUNKED = "__msgpack_chunked_array__"
_CHUNK_BYTES = 1 << 30  # flax's: the bytes that an unchunked leaf has at most
_ARRAY, _SCALAR = 1, 3
_FLAT_DTYPES = {dtype.name: dtype for dtype in DTYPES.values()}

# What a file may ask for; a params tree comes nowhere near. A file lies without cost, so that nothing is allocated
# by a length before it is compared with these and with the bytes that are there.
MAX_DEPTH = 32
_MAX_KEYS = 1 << 15  # in all maps together
_MAX_KEY_BYTES = 256
_WINDOW = 512  # bytes that the msgpack package sees at a time: more than a key or a map's header takes
_NOTHING_LARGE = dict.fromkeys(("max_bin_len", "max_array_len", "max_map_len", "max_ext_len"), 0)

_KINDS = {
    "map": {*range(0x80, 0x90), 0xDE, 0xDF},
    "list": {*range(0x90, 0xA0), 0xDC, 0xDD},
    "string": {*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB},
    "nil": {0xC0},
    "byte string": {0xC4, 0xC5, 0xC6},
    "extension": {*range(0xC7, 0xCA), *range(0xD4, 0xD9)},
    "float": {0xCA, 0xCB},
    "bool": {0xC2, 0xC3},
    "integer": {*range(0x80), *range(0xCC, 0xD4), *range(0xE0, 0x100)},
}
_KIND = {byte: kind for kind, firsts in _KINDS.items() for byte in firsts}
_LENGTHS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}


def read_tree(path: Path) -> dict[str, np.ndarray]:
    """Every array of a flax msgpack file, by its keys joined by "/", as read-only views of the mapped file.

    The views are unaligned, for msgpack does not pad; NumPy and jax take them. A chunked array is a copy.

    Raises:
        CheckpointError: naming the key: where the file cannot be read or is not whole, repeats a key, nests or
            claims more than a params tree does, or holds anything but arrays in a number format of `DTYPES`.
    """
    try:
        content = map_file(path)
        if _KIND.get(content[0]) != "map":
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
        raise CheckpointError(f"{path} is not a whole flax msgpack file: {error}; fetch or save it again") from error
    return leaves


class _Reader:
    """Walks over msgpack objects; every fault is a ValueError that names the key."""

    def __init__(self, content: Any):
        self._content = content
        self._at = 0
        self._keys = 0

    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self._content) - self._at

    def value(self, where: tuple[str, ...]) -> Any:
        """The next object: a dict, an array, or a whole number or truth value, which chunked arrays have."""
        if not self.left():
            raise ValueError(f"{_name(where)} is cut off: the file ends at byte {self._at}")
        kind = _KIND.get(self._content[self._at], "byte 0xc1, which begins nothing")
        if kind == "map":
            return self._map(where)
        if kind == "extension":
            return self._array(where)
        if kind in ("integer", "bool"):
            return self._small("unpack", where)
        raise ValueError(f"{_name(where)} is a {kind}, expected an array or a map")

    def _small(self, method: str, where: tuple[str, ...]) -> Any:
        """What a method of msgpack's `Unpacker` makes of the next few bytes."""
        unpacker = msgpack.Unpacker(max_buffer_size=_WINDOW, max_str_len=_MAX_KEY_BYTES, **_NOTHING_LARGE)
        unpacker.feed(self._content[self._at : self._at + _WINDOW])
        try:
            value = getattr(unpacker, method)()
        except msgpack.OutOfData:
            raise ValueError(f"{_name(where)} is cut off: the file ends at byte {len(self._content)}") from None
        except (ValueError, msgpack.UnpackException) as error:
            raise ValueError(f"{_name(where)} is damaged at byte {self._at}: {error}") from error
        self._at += unpacker.tell()
        return value

    def _map(self, where: tuple[str, ...]) -> Any:
        if len(where) >= MAX_DEPTH:
            raise ValueError(f"{_name(where)} is nested {len(where)} deep, expected less than {MAX_DEPTH}")
        count = self._small("read_map_header", where)
        if 2 * count > self.left():
            raise ValueError(f"{_name(where)} claims {count} keys, but only {self.left()} bytes follow")
        self._keys += count
        if self._keys > _MAX_KEYS:
            raise ValueError(f"{_name(where)} brings the keys to {self._keys}, expected at most {_MAX_KEYS}")
        entries: dict[str, Any] = {}
        for _ in range(count):
            key = self._small("unpack", where)
            if not isinstance(key, str) or not key or "/" in key:
                raise ValueError(f"{_name(where)} has the key {key!r}, expected a name without a slash")
            if key in entries:
                raise ValueError(f"{_name((*where, key))} is there twice")
            entries[key] = self.value((*where, key))
        return _joined(entries, where) if _CHUNKED in entries else entries

    def _array(self, where: tuple[str, ...]) -> np.ndarray:
        code, stop = self._extension(where)
        if code not in (_ARRAY, _SCALAR):
            what = "a complex number" if code == 2 else f"an extension of type {code}"
            raise ValueError(f"{_name(where)} is {what}, expected an array")
        if self._small("read_array_header", where) != 3:
            raise ValueError(f"{_name(where)} is no (shape, dtype, bytes)")
        ndim = self._small("read_array_header", where)
        if ndim > MAX_NDIM:
            raise ValueError(f"{_name(where)} has {ndim} dimensions, expected at most {MAX_NDIM}")
        shape = tuple(self._small("unpack", where) for _ in range(ndim))
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{_name(where)} has the shape {shape}, expected whole numbers")
        name = self._small("unpack", where)
        length = self._byte_count(where)
        if self._at + length != stop:
            raise ValueError(f"{_name(where)} has {length} bytes, but its object ends {stop - self._at} bytes on")
        dtype = _FLAT_DTYPES.get(name) if isinstance(name, str) else None
        if dtype is None:
            raise ValueError(f"{_name(where)} is of dtype {name!r}, expected one of {', '.join(_FLAT_DTYPES)}")
        if math.prod(shape) * dtype.itemsize != length:
            raise ValueError(f"{_name(where)} is {shape} of {name}, but has {length} bytes")
        flat = np.frombuffer(self._content, np.uint8)[self._at : stop].view(dtype)
        self._at = stop
        return _shaped(flat, shape, where)

    def _extension(self, where: tuple[str, ...]) -> tuple[int, int]:
        """Type and end of the extension object that begins here; moves to its content."""
        first = self._content[self._at]
        if first in _LENGTHS:
            length = self._length(where)
        else:
            length, self._at = 1 << (first - 0xD4), self._at + 1
        if length + 1 > self.left():
            raise ValueError(f"{_name(where)} claims {length} bytes, but only {max(self.left() - 1, 0)} follow")
        (code,) = struct.unpack("b", self._content[self._at : self._at + 1])
        self._at += 1
        return code, self._at + length

    def _byte_count(self, where: tuple[str, ...]) -> int:
        """Length of the byte string that begins here; moves to its content."""
        if not self.left() or _KIND.get(self._content[self._at]) != "byte string":
            raise ValueError(f"{_name(where)} has no bytes after its dtype")
        return self._length(where)

    def _length(self, where: tuple[str, ...]) -> int:
        format = _LENGTHS[self._content[self._at]]
        start, self._at = self._at + 1, self._at + 1 + struct.calcsize(format)
        if self._at > len(self._content):
            raise ValueError(f"{_name(where)} is cut off: the file ends at byte {len(self._content)}")
        return struct.unpack(format, self._content[start : self._at])[0]


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
        raise ValueError(f"{_name(where)} is no array in chunks: it lacks a shape or flat chunks of one dtype")
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
