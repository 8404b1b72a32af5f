"""Factored trees are saved as flax users save trees: flax.serialization and orbax, bit for bit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization as serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training.train_state import TrainState

import lpjax
import lpjax.flax
from lpjax.weights.sparse import Sparse

DOCS = Path(__file__).parents[2] / "docs" / "guides" / "flax.md"


def pair(seed: int = 0, dtype: Any = np.float32, sparse: bool = False) -> lpjax.LowRank:
    rng = np.random.default_rng(seed)
    left, right = (jnp.asarray(rng.normal(size=size), dtype) for size in ((9, 2), (2, 7)))
    single = np.where(rng.uniform(size=(9, 7)) < 0.2, rng.normal(size=(9, 7)), 0).astype(dtype)
    return lpjax.LowRank(left, right, Sparse.of(single) if sparse else None)


def tree(seed: int = 0) -> dict[str, Any]:
    return {
        "dense": {"kernel": pair(seed), "bias": np.arange(7, dtype=np.float32)},
        "half": {"kernel": pair(seed, jnp.bfloat16)},
        "words": {"embedding": pair(seed, sparse=True)},
    }


def same(first: Any, other: Any) -> bool:
    """The same structure, kinds, dtypes and bits."""
    a, b = jax.tree.leaves(first), jax.tree.leaves(other)
    arrays = [(np.asarray(x), np.asarray(y)) for x, y in zip(a, b, strict=True)]
    bits = all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in arrays)
    return jax.tree.structure(first) == jax.tree.structure(other) and bits


def test_params_and_bytes_and_back():
    original = tree()
    back = serialization.from_bytes(tree(seed=1), serialization.to_bytes(original))
    assert same(back, original)
    assert back["words"]["embedding"].sparse.most == original["words"]["embedding"].sparse.most
    # Into what has places elsewhere, too: the file's count.
    assert same(serialization.from_state_dict(tree(seed=2), serialization.to_state_dict(original)), original)


def test_a_train_state_and_back(promoting):
    x = jnp.ones((2, 9))
    module = nn.Dense(7)
    params = {"params": {"kernel": pair(), "bias": jnp.zeros(7)}}
    state = TrainState.create(apply_fn=module.apply, params=params, tx=optax.adamw(1e-2))
    gradients = jax.grad(lambda p: jnp.sum(lpjax.flax.apply(module, p, x) ** 2))(params)
    state = state.apply_gradients(grads=gradients)
    target = TrainState.create(apply_fn=module.apply, params={"params": {"kernel": pair(1), "bias": jnp.ones(7)}},
                              tx=optax.adamw(1e-2))  # fmt: skip
    back: Any = serialization.from_bytes(target, serialization.to_bytes(state))
    assert isinstance(back.params["params"]["kernel"], lpjax.LowRank)
    assert same((back.step, back.params, back.opt_state), (state.step, state.params, state.opt_state))


def test_without_a_factored_target():
    original = tree()
    state = serialization.msgpack_restore(serialization.to_bytes(original))
    assert same(lpjax.flax.with_pairs(state), jax.tree.map(np.asarray, original))
    dense = {"dense": {"kernel": jnp.ones((9, 7)), "bias": jnp.ones(7)}, "half": {"kernel": jnp.ones((9, 7))},
             "words": {"embedding": jnp.ones((9, 7))}}  # fmt: skip
    assert same(
        lpjax.flax.with_pairs(serialization.from_bytes(dense, serialization.to_bytes(original))),
        jax.tree.map(np.asarray, original),
    )
    # A user's modules with these names are not a pair.
    modules = {"left": {"kernel": np.ones((2, 3))}, "right": {"kernel": np.ones((3, 2))}}
    assert same(lpjax.flax.with_pairs(modules), modules)


def test_files_of_other_trees_are_refused_by_name():
    original = {"layer": {"kernel": pair()}}
    for other, description in (
        ({"layer": {"kernel": np.ones((9, 7), np.float32)}}, "an array of shape (9, 7)"),
        ({"layer": {"kernel": {"left": np.ones((9, 2))}}}, "a dict of left"),
        ({"layer": {"kernel": pair(sparse=True)}}, "a dict of left, right, sparse"),
    ):
        with pytest.raises(ValueError, match=re.escape(description)) as caught:
            serialization.from_bytes(original, serialization.to_bytes(other))
        assert "kernel" in str(caught.value)
    damaged = serialization.to_state_dict(pair(sparse=True))
    damaged["sparse"]["columns"] = damaged["sparse"]["columns"] + 100
    with pytest.raises(ValueError, match="`sparse` does not fit"):
        lpjax.flax.with_pairs({"table": damaged})


def test_orbax_and_back(tmp_path):
    original = jax.tree.map(jnp.asarray, tree())
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, original)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "standard", original)
        checkpointer.wait_until_finished()
        assert same(checkpointer.restore(tmp_path / "standard", abstract), original)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "tree", original)
        how = ocp.checkpoint_utils.construct_restore_args(original)
        assert same(checkpointer.restore(tmp_path / "tree", item=original, restore_args=how), original)


def test_the_docs_run(tmp_path, monkeypatch, promoting):
    """flax.serialization, orbax and the state of an NNX model, as the page has them."""
    monkeypatch.chdir(tmp_path)
    section = DOCS.read_text(encoding="utf-8").partition("## Save factored trees")[2]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    kernel = names["same"]["kernel"]
    assert same(jax.tree.map(jnp.asarray, names["small"]["kernel"]), jax.tree.map(jnp.asarray, kernel))
    x = jnp.ones((2, 48))
    assert np.array_equal(names["model"](x), names["make"](0)(x))
