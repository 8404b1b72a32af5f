"""What tests of checkpoints compare with: trees, files, and flax's format by the msgpack package alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import msgpack
import numpy as np

from lpjax._tree import walk
from lpjax.weights.low_rank import LowRank
from tests.conftest import GOLDENS

GOLDEN_NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/model.safetensors"))


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    """The same paths, kinds of leaf, dtypes and bits."""
    flat_left, flat_right = dict(walk(left)), dict(walk(right))
    assert flat_left.keys() == flat_right.keys()
    for path, leaf in flat_left.items():
        other = flat_right[path]
        assert jax.tree.structure(leaf) == jax.tree.structure(other), path
        for a, b in zip(jax.tree.leaves(leaf), jax.tree.leaves(other), strict=True):
            assert a.dtype == b.dtype, path
            assert a.shape == b.shape, path
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def set_leaf(params: dict[str, Any], path: str, leaf: Any) -> dict[str, Any]:
    """A copy of `params` with `leaf` at `path`."""
    first, _, rest = path.partition("/")
    return params | {first: set_leaf(params[first], rest, leaf) if rest else leaf}


def random_leaf(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def factor_all(params: dict[str, Any], scale: float = 1, dtype: Any = None) -> dict[str, Any]:
    """`params` with random pairs of rank 2 in the place of every kernel and embedding."""
    rng = np.random.default_rng(0)
    for path, leaf in walk(params):
        if path.endswith(("kernel", "embedding")):
            kind = leaf.dtype if dtype is None else dtype
            left, right = (rng.standard_normal(shape) for shape in ((leaf.shape[0], 2), (2, leaf.shape[1])))
            params = set_leaf(params, path, LowRank((scale * left).astype(kind), right.astype(kind)))
    return params


def flax_restore(content: bytes) -> Any:
    """What flax.serialization.msgpack_restore makes of `content`, by its description of the format."""

    def unpack(code: int, data: bytes) -> Any:
        shape, dtype, buffer = msgpack.unpackb(data)
        assert code in (1, 3)
        return np.frombuffer(buffer, getattr(ml_dtypes, dtype, dtype)).reshape(shape)

    def join(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        if "__msgpack_chunked_array__" in tree:
            shape, chunks = ([tree[key][str(i)] for i in range(len(tree[key]))] for key in ("shape", "chunks"))
            return np.concatenate(chunks).reshape(shape)
        return {key: join(child) for key, child in tree.items()}

    return join(msgpack.unpackb(content, ext_hook=unpack))


def edit_modules(folder: Path, change: Any) -> None:
    path = folder / "modules.json"
    stages = json.loads(path.read_text())
    change(stages)
    path.write_text(json.dumps(stages))
