"""flax's msgpack: what is written is the format, what is read is what was written, and memory is what it takes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpjax._tree import walk
from lpjax.checkpoint import CheckpointError
from lpjax.checkpoint import msgpack as _msgpack
from lpjax.checkpoint.msgpack import read_tree, write_tree
from tests.helpers.checkpoints import assert_same, flax_restore

DTYPES = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16, np.int64, np.int32, np.int8, np.uint8, np.bool_]


@st.composite
def leaves(draw: st.DrawFn) -> Any:
    """Arrays of every dtype, NumPy's and jax's, of any rank, size and memory order, empty ones too."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    array = rng.integers(-99, 99, shape).astype(draw(st.sampled_from(DTYPES)))
    match draw(st.sampled_from(["C", "transposed", "strided", "jax"])):
        case "transposed":
            return array.T
        case "strided":
            return np.repeat(array, 2, axis=-1)[..., ::2] if shape else array
        case "jax":
            return jnp.asarray(array if array.dtype.itemsize < 8 else array.astype(np.float32))
    return array


NAMES = st.one_of(
    st.sampled_from(["a", "kernel", "0", "k" * 40, "k" * 200]),
    st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=3),
)
TREES = st.dictionaries(
    NAMES, st.one_of(leaves(), st.dictionaries(NAMES, leaves(), max_size=2), st.just({str(i): {} for i in range(17)}))
)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves of more than 64 bytes in chunks, as those of more than 2³⁰."""
    monkeypatch.setattr(_msgpack, "_CHUNK_BYTES", 64)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tree=TREES)
@pytest.mark.usefixtures("small_chunks")
def test_any_tree_comes_back_bit_for_bit_and_is_in_the_format(tmp_path: Path, tree: dict[str, Any]):
    path = tmp_path / "flax_model.msgpack"
    path.unlink(missing_ok=True)
    assert write_tree(path, tree) == path.stat().st_size
    expected = dict(walk(tree))
    assert_same(read_tree(path), expected)
    assert_same(dict(walk(flax_restore(path.read_bytes()))), expected)


@pytest.mark.usefixtures("small_chunks")
def test_large_leaves_are_in_chunks_as_flax_makes_them(tmp_path: Path):
    array = np.arange(35, dtype=np.float32).reshape(5, 7)
    write_tree(tmp_path / "tree", {"a": {"b": array}})
    entry = msgpack.unpackb((tmp_path / "tree").read_bytes(), ext_hook=lambda _, data: msgpack.unpackb(data))["a"]["b"]
    assert list(entry) == ["__msgpack_chunked_array__", "shape", "chunks"]
    assert entry["__msgpack_chunked_array__"] is True
    assert entry["shape"] == {"0": 5, "1": 7}
    assert [chunk[:2] for chunk in entry["chunks"].values()] == [[[16], "float32"], [[16], "float32"], [[3], "float32"]]
    assert list(entry["chunks"]) == ["0", "1", "2"]
    read = read_tree(tmp_path / "tree")["a/b"]
    np.testing.assert_array_equal(read, array)
    assert not read.flags.writeable


def test_limit_of_a_chunk_is_that_of_flax():
    assert _msgpack._CHUNK_BYTES == 2**30


@pytest.mark.parametrize("width", [4, 300, 70_000])  # bytes in 8, 16 and 32 bits of length, as others pack them
def test_short_and_long_headers(width: int, tmp_path: Path):
    array = np.arange(width // 4, dtype=np.int32)
    inner = msgpack.packb([array.shape, "int32", array.tobytes()])
    tree = {"k" * 200: msgpack.ExtType(1, inner)} | {f"{i}": {} for i in range(20)}
    (tmp_path / "tree").write_bytes(cast(bytes, msgpack.packb(tree)))
    np.testing.assert_array_equal(read_tree(tmp_path / "tree")["k" * 200], array)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_fixed_extensions_are_understood(size: int, tmp_path: Path):
    """msgpack has a header of its own for extensions of 1, 2, 4, 8 and 16 bytes; an array of 16 there is."""
    inner = cast(bytes, msgpack.packb([[], "float32", b"\0" * 4]))
    assert len(inner) == 16
    content = b"\x81\xa1a" + bytes([0xD4 + size.bit_length() - 1, 1]) + inner[:size]
    (tmp_path / "tree").write_bytes(content)
    if size == 16:
        assert read_tree(tmp_path / "tree")["a"].shape == ()
    else:
        with pytest.raises(CheckpointError, match=r"a (is|has|claims) "):
            read_tree(tmp_path / "tree")


def test_arrays_are_views_of_the_file_and_may_be_used_unaligned(tmp_path: Path):
    array = np.random.default_rng(0).standard_normal((33, 7)).astype(ml_dtypes.bfloat16)
    write_tree(tmp_path / "tree", {"k" * length: array for length in range(1, 5)})
    leaves = read_tree(tmp_path / "tree").values()
    assert {leaf.flags.aligned for leaf in leaves} == {True, False}
    for leaf in leaves:
        assert not leaf.flags.owndata
        assert not leaf.flags.writeable
        np.testing.assert_array_equal(np.asarray(jnp.asarray(leaf.T)), array.T)


def test_reading_and_writing_take_no_memory_to_speak_of(tmp_path: Path):
    leaf = np.ones((1024, 2048), np.float32)  # 8 MiB
    tree = {f"{i}": leaf for i in range(4)}
    tracemalloc.start()
    write_tree(tmp_path / "tree", tree)
    read = read_tree(tmp_path / "tree")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    assert tracemalloc.get_traced_memory()[0] < 1 << 18
    tracemalloc.reset_peak()
    (tmp_path / "tree").unlink()
    write_tree(tmp_path / "tree", {name: array.T for name, array in read.items()})
    # Out of order, one leaf at a time is copied.
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()
