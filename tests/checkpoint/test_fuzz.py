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

from lpjax._tree import walk
from lpjax.checkpoint import CheckpointError, load_checkpoint
from lpjax.checkpoint.msgpack import read_tree
from lpjax.checkpoint.safetensors import read_tensors
from tests.checkpoint.hostile_files import flax_leaves, packed
from tests.conftest import GOLDENS
from tests.helpers.checkpoints import flax_restore

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
    return safetensors.load(content) if file == "model.safetensors" else dict(walk(flax_restore(content)))


def check(path: Path, content: bytes) -> None:
    """The reader refuses `content`, or finds in it what others do."""
    path.unlink(missing_ok=True)  # Never overwritten: views of it may be alive.
    path.write_bytes(content)
    try:
        tensors = read(path)
    except CheckpointError:
        return
    expected = by_the_book(path.name, content)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.shape == expected[name].shape
        assert tensor.tobytes() == expected[name].tobytes()


BYTES = st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 0x7F, 0x80, 0xC6, 0xC9, 0xDB, 0xDD, 0xDF, 0xFF]))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` cut, overwritten, spliced, or with bytes put in or left out, in one to three places."""
    result = bytearray(content)
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        at = draw(st.one_of(st.integers(0, len(content)), st.integers(0, len(content)).map(lambda n: len(content) - n)))
        length = draw(st.integers(1, 40))
        match draw(st.sampled_from(["byte"] * 4 + ["cut", "insert", "delete", "repeat"])):
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
        leaves = dict(walk(load_checkpoint(folder).params))
    except CheckpointError:
        return
    expected = dict(walk(load_checkpoint(SOURCE).params))
    assert {path: leaf.shape for path, leaf in leaves.items()} == {path: leaf.shape for path, leaf in expected.items()}
    assert all(np.isfinite(leaf).all() for leaf in leaves.values())


SIZES = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]))
SHAPES = st.lists(st.integers(0, 3), max_size=3)
STRANGE = st.one_of(
    SIZES,
    st.lists(SIZES, max_size=9),
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=3),
    st.dictionaries(st.text(max_size=3), SIZES, max_size=2),
)


@st.composite
def safetensors_file(draw: st.DrawFn) -> bytes:
    """Three tensors at most, laid out as they should be; in half of the files something is strange."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}} if draw(st.booleans()) else {}
    size = 0
    for name in draw(st.lists(st.sampled_from(["a", "b", "a.b", "", "\n"]), max_size=3, unique=True)):
        dtype, width = draw(st.sampled_from([("F32", 4), ("F16", 2), ("F64", 8), ("BOOL", 1), ("I64", 8), ("U8", 1)]))
        shape = draw(SHAPES)
        start, size = size, size + width * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, size]}
    lie = 0
    match draw(st.sampled_from(["nothing"] * 5 + ["entry", "field", "length", "size", "header"])):
        case "entry":
            header[draw(st.sampled_from(["a", "__metadata__"]))] = draw(STRANGE)
        case "field" if set(header) - {"__metadata__"}:
            entry = header[draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))]
            entry[draw(st.sampled_from(sorted(entry)))] = draw(st.one_of(STRANGE, st.sampled_from(["F8_E5M2", "F4"])))
        case "length":
            lie = draw(st.sampled_from([1, -1, 2**40]))
        case "size":
            size += draw(st.integers(1, 9))
        case "header":
            header = draw(STRANGE)
    text = json.dumps(header).encode()
    return struct.pack("<Q", max(len(text) + lie, 0)) + text + bytes(i % 2 for i in range(size))


def one_tensor(description: Any) -> bytes:
    text = json.dumps({"a": description}).encode()
    return struct.pack("<Q", len(text)) + text


@quick(max_examples=300)
@given(content=safetensors_file())
@example(content=one_tensor(["F32", [0], [0, 0]]))  # which the safetensors package takes
@example(content=one_tensor({"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}))
def test_invented_safetensors(content: bytes, tmp_path: Path):
    check(tmp_path / "model.safetensors", content)


@st.composite
def extensions(draw: st.DrawFn) -> msgpack.ExtType:
    """An array; in one of ten something is strange."""
    name, width = draw(st.sampled_from([("float32", 4), ("float16", 2), ("bfloat16", 2), ("bool", 1), ("int64", 8)]))
    shape: Any = draw(SHAPES)
    data: Any = bytes(i % 2 for i in range(width * int(np.prod(shape))))
    code, dtype = 1, cast(Any, name)
    match draw(st.sampled_from(["nothing"] * 45 + ["shape", "dtype", "data", "code", "all"])):
        case "shape":
            shape = draw(STRANGE)
        case "dtype":
            dtype = draw(st.one_of(STRANGE, st.sampled_from(["object", "complex64", "<f4", "float8_e5m2"])))
        case "data":
            data = draw(st.one_of(STRANGE, st.binary(max_size=9)))
        case "code":
            code = draw(st.sampled_from([0, 2, 3, 9, 127]))
        case "all":
            return msgpack.ExtType(code, draw(st.binary(max_size=20)))
    return msgpack.ExtType(code, cast(bytes, msgpack.packb([shape, dtype, data])))


@st.composite
def chunked(draw: st.DrawFn) -> Any:
    """The map of a chunked array; in half of them something is strange."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    arrays = [msgpack.packb([[n], "float16", b"\0\1" * n]) for n in sizes]
    chunks = {str(i): msgpack.ExtType(1, cast(bytes, array)) for i, array in enumerate(arrays)}
    whole = {"__msgpack_chunked_array__": True, "shape": {"0": sum(sizes)}, "chunks": chunks}
    match draw(st.sampled_from(["nothing"] * 6 + ["shape", "chunks", "size", "array", "left out", "more"])):
        case "shape" | "chunks" as key:
            whole[key] = draw(STRANGE)
        case "size":
            whole["shape"] = {"0": draw(SIZES)}
        case "array":
            chunks["0"] = draw(st.one_of(extensions(), STRANGE))
        case "left out":
            del whole[draw(st.sampled_from(["shape", "chunks"]))]
        case "more":
            whole[draw(st.text(max_size=2))] = draw(STRANGE)
    return whole


TREES = st.recursive(
    st.one_of(extensions(), extensions(), extensions(), chunked()),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), inner, min_size=1, max_size=3),
    max_leaves=6,
)
ODD_KEYS = st.one_of(st.text(max_size=4), SIZES, st.booleans(), st.none(), st.just("a/b"))


@quick(max_examples=300)
@given(data=st.data())
def test_invented_msgpack(tmp_path: Path, data: st.DataObject):
    tree: Any = data.draw(st.dictionaries(st.sampled_from(["a", "b", "c"]), TREES, max_size=3))
    match data.draw(st.sampled_from(["nothing"] * 5 + ["value", "key", "tree", "bytes"])):
        case "value":
            tree["v"] = data.draw(st.one_of(STRANGE, st.binary(max_size=3)))
        case "key":
            tree[data.draw(ODD_KEYS)] = {}
        case "tree":
            tree = data.draw(STRANGE)
    content = cast(bytes, msgpack.packb(tree, unicode_errors="surrogatepass"))
    if data.draw(st.integers(0, 4)) == 0:
        content = data.draw(damaged(content))
    check(tmp_path / "flax_model.msgpack", content)


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
