"""Factors in 8 bits, on their way to a file and back."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import lpjax
from lpjax import CheckpointError, LowRank, load_checkpoint, save_checkpoint
from lpjax._tree import walk
from lpjax.checkpoint.int8 import restored_factors, rounded_factors
from lpjax.checkpoint.safetensors import read_tensors, write_tensors
from tests.conftest import GOLDENS
from tests.helpers.checkpoints import GOLDEN_NAMES, assert_same


def shrink(name, **options):
    dense = load_checkpoint(GOLDENS / name)
    options = {"select": ["encoder", "embeddings"], "rank": 3, "solver": "svd", **options}
    return dataclasses.replace(dense, params=lpjax.compress(dense.params, **options).params)


@pytest.mark.two_models
@pytest.mark.covering(1)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_net_comes_back_within_half_a_step(name, dtype, tmp_path):
    net = shrink(name)
    net = dataclasses.replace(net, params=jax.tree.map(lambda x: np.asarray(x).astype(dtype), net.params))
    save_checkpoint(net, tmp_path / "small", int8=True)
    back = load_checkpoint(tmp_path / "small")
    before, after = dict(walk(net.params)), dict(walk(back.params))
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        if not isinstance(leaf, LowRank):
            assert np.array_equal(leaf, after[path]), path
            continue
        for axis, part in ((0, "left"), (1, "right")):
            factor, other = (np.asarray(getattr(x, part)) for x in (leaf, after[path]))
            assert other.dtype == factor.dtype == dtype
            wide = factor.astype(np.float64)
            largest = np.abs(wide).max(axis=axis, keepdims=True)
            rounding = float(jax.numpy.finfo(factor.dtype).eps)
            assert np.all(np.abs(other.astype(np.float64) - wide) <= largest * (0.5001 / 127 + 2 * rounding)), path
    assert back.compression is not None
    assert back.compression["factors"] == "int8"
    # Saved again it is what it was, and no longer in 8 bits.
    save_checkpoint(back, tmp_path / "again")
    again = load_checkpoint(tmp_path / "again")
    assert_same(again.params, back.params)
    assert "factors" not in (again.compression or {})


def test_the_file_is_a_quarter(tmp_path):
    rng = np.random.default_rng(0)
    pairs = [("a.left", rng.normal(size=(4000, 30)).astype("f4")), ("a.right", rng.normal(size=(30, 500)).astype("f4"))]
    (tmp_path / "x").mkdir()
    sizes = [
        write_tensors(tmp_path / "x" / str(i), tensors) for i, tensors in enumerate((pairs, rounded_factors(pairs)))
    ]
    assert sizes[1] < 0.253 * sizes[0]


def test_columns_of_zeros_and_of_all_sizes():
    left = np.array([[0, 1e-30, 1e30, -1], [0, -3e-31, 2e29, 1]], np.float32)
    pairs = [("w.left", left), ("w.right", np.eye(4, dtype=np.float32))]
    restored = restored_factors(dict(rounded_factors(pairs)))
    assert restored.keys() == {"w.left", "w.right"}
    assert np.allclose(restored["w.left"], left, rtol=0, atol=np.abs(left).max(0) * 0.5001 / 127)
    assert np.array_equal(restored["w.right"], np.eye(4))


def test_rounding_again_changes_nothing():
    rng = np.random.default_rng(1)
    pairs = [("w.left", rng.normal(size=(50, 5)).astype("f4")), ("w.right", rng.normal(size=(5, 20)).astype("f4"))]
    once = restored_factors(dict(rounded_factors(pairs)))
    twice = restored_factors(dict(rounded_factors(list(once.items()))))
    for name, factor in once.items():
        assert np.allclose(factor, twice[name], rtol=1e-6, atol=0)


def test_single_entries_stay_as_they_are(tmp_path):
    net = shrink("bert_base" if "bert_base" in GOLDEN_NAMES else GOLDEN_NAMES[0], sparse_share=0.4)
    save_checkpoint(net, tmp_path / "small", int8=True)
    back = dict(walk(load_checkpoint(tmp_path / "small").params))
    nnz = 0
    for path, leaf in walk(net.params):
        if isinstance(leaf, LowRank) and leaf.sparse is not None:
            assert np.array_equal(leaf.sparse.values, back[path].sparse.values)
            nnz += leaf.nnz
    assert nnz


def test_names_of_scales_beside_the_net_are_refused(tmp_path):
    net = shrink(GOLDEN_NAMES[0])
    save_checkpoint(net, tmp_path / "small", int8=True)
    name = next(
        name for name in read_tensors(tmp_path / "small" / "lpjax.safetensors")[0] if name.endswith("left_scale")
    )
    named = dataclasses.replace(net, extra={name: np.ones(1, np.float32)})
    with pytest.raises(ValueError, match=f"names of the model's own weights: {name}"):
        save_checkpoint(named, tmp_path / "again", int8=True)
    assert not (tmp_path / "again").exists()


def test_what_is_no_pair_is_left_alone():
    pairs = [("odd.left", np.ones((2, 2), np.float32)), ("other.weight", np.ones(3, np.float32))]
    assert all(a is b for (_, a), (_, b) in zip(pairs, rounded_factors(pairs), strict=True))


def test_a_dense_net_has_no_factors(tmp_path):
    with pytest.raises(ValueError, match="`params` has none: compress it first"):
        save_checkpoint(load_checkpoint(GOLDENS / GOLDEN_NAMES[0]), tmp_path / "out", int8=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, left: tensors.pop(left + "_scale"), r"\.left is int8 and has no .*\.left_scale"),
        (lambda tensors, left: tensors.pop(left), r"\.left_scale has no int8 .*\.left beside it"),
        (lambda tensors, left: tensors.update({left: tensors[left].astype("f4")}), "has no int8"),
        (
            lambda tensors, left: tensors.update({left + "_scale": tensors[left + "_scale"][:-1]}),
            "a floating number for each",
        ),
        (
            lambda tensors, left: tensors.update({left + "_scale": tensors[left + "_scale"].astype("i4")}),
            "a floating number",
        ),
        (lambda tensors, left: tensors.update({left + "_scale": tensors[left + "_scale"] * np.nan}), "NaN or infinite"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, message):
    save_checkpoint(shrink(GOLDEN_NAMES[0]), tmp_path / "small", int8=True)
    shutil.copytree(tmp_path / "small", tmp_path / "bad")
    tensors = {
        name: np.array(array) for name, array in read_tensors(tmp_path / "small" / "lpjax.safetensors")[0].items()
    }
    change(tensors, next(name for name in tensors if name.endswith(".left")))
    (tmp_path / "bad" / "lpjax.safetensors").unlink()
    write_tensors(tmp_path / "bad" / "lpjax.safetensors", tensors.items())
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "bad")


def test_the_command(command, folder, tmp_path):
    small, smallest, further = (tmp_path / name for name in ("small", "smallest", "further"))
    assert command("compress", folder, small, "--layers", "attention", "--rank", 3)[0] == 0
    status, output, errors = command("quantize", small, smallest, "--json")
    assert status == 0, errors
    result = json.loads(output)
    assert result["bytes_after"] == (smallest / "lpjax.safetensors").stat().st_size
    assert (smallest / "lpjax_record.json").read_bytes() == (small / "lpjax_record.json").read_bytes()
    assert result["quantized"] == json.loads((small / "config.json").read_text())["lpjax"]["ranks"]
    status, _, errors = command("report", smallest, "--baseline", folder, "--out", tmp_path / "page.html")
    assert status == 0, errors
    assert "factors in 8 bits" in (tmp_path / "page.html").read_text()
    assert command("inspect", smallest)[0] == 0
    assert command("export", smallest, tmp_path / "whole")[0] == 0
    assert command("compress", smallest, further, "--layers", "embeddings", "--keep", 0.5)[0] == 0
    assert "factors" not in json.loads((further / "config.json").read_text())["lpjax"]
    status, _, errors = command("quantize", folder, tmp_path / "out")
    assert status == 2
    assert "is a dense checkpoint" in errors
    status, _, errors = command("quantize", small, smallest)
    assert status == 2
    assert "--force" in errors
    status, output, _ = command("quantize", small, smallest, "--force")
    assert status == 0
    assert "pairs in 8 bits" in output
