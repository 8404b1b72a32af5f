"""Both readers on damaged and invented files: a correct load or a CheckpointError, nothing else."""

from __future__ import annotations

import functools
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import numpy as safetensors

from lpjax.checkpoint import CheckpointError, load_checkpoint
from lpjax.checkpoint._msgpack import read_tree
from lpjax.checkpoint._tensors import read_tensors
from lpjax.models.names import walk
from tests.checkpoint.hostile_files import flax_leaves, packed
from tests.conftest import GOLDENS

SOURCE = GOLDENS / "bert_no_pooler"
FILES = ["model.safetensors", "flax_model.msgpack"]
quick = functools.partial(settings, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@functools.cache
def good(file: str) -> bytes:
    path = SOURCE / "model.safetensors"
    return path.read_bytes() if file == "model.safetensors" else packed(flax_leaves(path))


def read(path: Path) -> dict[str, np.ndarray]:
    return read_tensors(path)[0] if path.suffix == ".safetensors" else read_tree(path)


def by_the_book(file: str, content: bytes) -> dict[str, np.ndarray]:
    """What the safetensors and msgpack packages make of it; the latter as flax does."""
    if file == "model.safetensors":
        return safetensors.load(content)

    def unpack(code: int, data: bytes) -> np.ndarray:
        shape, dtype, buffer = msgpack.unpackb(data)
        return np.frombuffer(buffer, dtype).reshape(shape)

    return dict(walk(msgpack.unpackb(content, ext_hook=unpack)))


def check(path: Path, content: bytes) -> None:
    """The reader refuses `content`, or finds in it what others do."""
    path.unlink(missing_ok=True)  # Never overwritten: views of it may be alive.
    path.write_bytes(content)
    try:
        found = read(path)
    except CheckpointError:
        return
    expected = by_the_book(path.name, content)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.shape == expected[name].shape
        assert tensor.tobytes() == expected[name].tobytes()


BYTES = st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 0x7F, 0x80, 0xC6, 0xC9, 0xDB, 0xDD, 0xDF, 0xFF]))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` cut, overwritten, spliced, or with bytes put in or left out, in one to three places."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.one_of(st.integers(0, 400), st.integers(0, len(content))))
        length = draw(st.integers(1, 40))
        match draw(st.sampled_from(["cut", "byte", "insert", "delete", "repeat"])):
            case "cut":
                del result[at:]
            case "byte":
                result[at : at + 1] = bytes([draw(BYTES)])
            case "insert":
                result[at:at] = bytes(draw(st.lists(BYTES, min_size=1, max_size=9)))
            case "delete":
                del result[at : at + length]
            case "repeat":
                result[at:at] = result[at : at + length]
    return bytes(result)


@pytest.mark.parametrize("file", FILES)
@quick(max_examples=200)
@given(data=st.data())
def test_damaged_file(file: str, tmp_path: Path, data: st.DataObject):
    check(tmp_path / file, data.draw(damaged(good(file))))


@pytest.mark.parametrize("file", FILES)
@quick(max_examples=100)
@given(data=st.data())
def test_damaged_checkpoint(file: str, tmp_path: Path, data: st.DataObject):
    """Through `load_checkpoint`: a tree of the same paths and shapes, all finite, or a CheckpointError."""
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copyfile(SOURCE / "config.json", folder / "config.json")
    (folder / file).write_bytes(data.draw(damaged(good(file))))
    try:
        found = dict(walk(load_checkpoint(folder).params))
    except CheckpointError:
        return
    expected = dict(walk(load_checkpoint(SOURCE).params))
    assert {path: leaf.shape for path, leaf in found.items()} == {path: leaf.shape for path, leaf in expected.items()}
    assert all(np.isfinite(leaf).all() for leaf in found.values())


SIZES = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1, 2**64]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), SIZES, st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
NAMES = st.one_of(st.sampled_from(["a", "b", "__metadata__", "a.b", ""]), st.text(max_size=4))


@st.composite
def tensor_entry(draw: st.DrawFn) -> Any:
    """A description that is right in form at least, and often in numbers."""
    dtype = draw(st.sampled_from(["F32", "F32", "F16", "BOOL", "I64", "F8_E5M2", "F4", "X"]))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    start = draw(st.sampled_from([0, 0, 4, 8, 12]))
    size = int(np.prod(shape)) * {"F32": 4, "F16": 2, "I64": 8}.get(dtype, 1)
    strange = draw(st.integers(0, 5)) == 0
    return {
        "dtype": draw(JSON) if strange else dtype,
        "shape": draw(st.lists(SIZES, max_size=9)) if strange else shape,
        "data_offsets": draw(st.lists(SIZES, max_size=3)) if strange else [start, start + size],
    }


@quick(max_examples=250)
@given(
    header=st.one_of(st.dictionaries(NAMES, st.one_of(tensor_entry(), JSON), max_size=3), JSON),
    size=st.integers(0, 24),
    lie=st.sampled_from([0, 0, 0, 0, 1, -1, 2**40]),
)
@example(header={"a": ["F32", [1], [0, 4]]}, size=4, lie=0)  # which the safetensors package takes
@example(header={"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}, size=0, lie=0)
def test_invented_safetensors(tmp_path: Path, header: Any, size: int, lie: int):
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    content = struct.pack("<Q", max(len(text) + lie, 0)) + text + bytes(range(size))
    check(tmp_path / "model.safetensors", content)


def _array(shape: list[int], dtype: Any, data: bytes, code: int) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb([shape, dtype, data]))


PACKABLE_SIZES = SIZES.filter(lambda n: n < 2**64)
ARRAYS = st.one_of(
    st.integers(0, 3).map(lambda n: _array([n, 2], "float16", b"\0" * 4 * n, 1)),
    st.builds(
        _array,
        st.lists(PACKABLE_SIZES, max_size=9),
        st.sampled_from(["float32", "bool", "object", "bfloat16", "<f4", 7, None]),
        st.binary(max_size=12),
        st.sampled_from([1, 1, 1, 2, 3, 9]),
    ),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
)
CHUNKED = st.fixed_dictionaries(
    {"__msgpack_chunked_array__": st.just(True)},
    optional={
        "shape": st.dictionaries(st.sampled_from(["0", "1", "x"]), PACKABLE_SIZES),
        "chunks": st.dictionaries(st.sampled_from(["0", "1", "x"]), ARRAYS),
    },
)
KEYS = st.one_of(st.sampled_from(["a", "b", "a/b", "", "shape", "chunks"]), st.text(max_size=4), st.integers(0, 3))
TREES = st.recursive(
    st.one_of(ARRAYS, ARRAYS, CHUNKED, PACKABLE_SIZES, st.none(), st.floats(), st.binary(max_size=3)),
    lambda inner: st.one_of(st.dictionaries(KEYS, inner, max_size=3), st.lists(inner, max_size=2)),
    max_leaves=8,
)


@quick(max_examples=250)
@given(tree=st.one_of(st.dictionaries(KEYS, TREES, max_size=3), TREES), data=st.data())
def test_invented_msgpack(tmp_path: Path, tree: Any, data: st.DataObject):
    content = cast(bytes, msgpack.packb(tree, unicode_errors="surrogatepass"))
    if data.draw(st.booleans()):
        content = data.draw(damaged(content))
    path = tmp_path / "flax_model.msgpack"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        found = read_tree(path)
    except CheckpointError:
        return
    # Chunked arrays, which only flax puts together, are compared in test_msgpack.py.
    if b"chunked" not in content:
        expected = by_the_book("flax_model.msgpack", content)
        assert found.keys() == expected.keys()
        assert all(leaf.tobytes() == expected[name].tobytes() for name, leaf in found.items())
    assert all(isinstance(leaf, np.ndarray) for leaf in found.values())


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "change", [lambda content: content, lambda content: content[:-1], lambda content: content + b"\0"]
)
def test_the_whole_file_and_no_more(file: str, change: Callable[[bytes], bytes], tmp_path: Path):
    content = change(good(file))
    (tmp_path / file).write_bytes(content)
    if content == good(file):
        assert len(read(tmp_path / file)) == len(safetensors.load_file(SOURCE / "model.safetensors"))
    else:
        with pytest.raises(CheckpointError):
            read(tmp_path / file)
