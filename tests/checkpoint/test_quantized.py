"""Quantized weights and factors, on their way to a file and back."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lpjax
from lpjax import Checkpoint, CheckpointError, LowRank, export_checkpoint, load_checkpoint, save_checkpoint
from lpjax._tree import walk
from lpjax.checkpoint.safetensors import read_tensors, write_tensors
from lpjax.weights.coded import Coded
from lpjax.weights.entropy import encode_codes
from lpjax.weights.quantized import Quantized
from tests.conftest import GOLDENS
from tests.helpers.checkpoints import GOLDEN_NAMES, assert_same, files, set_leaf

TABLE, KERNEL = "embeddings/word_embeddings/embedding", "encoder/layer/0/attention/self/query/kernel"
TABLE_NAME, NAME = "embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"
Tensors = dict[str, np.ndarray]


def rounded(shape: tuple[int, int], axis: int, most: int = 5, seed: int = 0, **options: Any) -> Quantized:
    rng = np.random.default_rng(seed)
    lines, length = shape if axis else shape[::-1]
    codes = np.round(rng.laplace(size=(lines, length)) * np.geomspace(most, 0.1, length)).astype(int)
    groups = -(-length // options.get("group", length))
    return Quantized.from_codes(codes, rng.uniform(0.5, 2, (lines, groups)) / 64, axis=axis, **options)


def halves(length: int) -> np.ndarray:
    return np.geomspace(2, 0.5, length)


KINDS: dict[str, Callable[[tuple[int, int]], Any]] = {
    "kernel": lambda shape: rounded(shape, 0),
    "table": lambda shape: rounded(shape, 1),
    "steps": lambda shape: rounded(shape, 0, steps=halves(shape[0])),
    "groups": lambda shape: rounded(shape, 1, group=5),
    "8 bits": lambda shape: rounded(shape, 1, bits=8),
    "16 bits": lambda shape: rounded(shape, 0, most=9000, bits=16),
    "zeros": lambda shape: Quantized.from_codes(np.zeros(shape, int), np.ones((shape[0], 1)), axis=1),
    "one of many scales": lambda shape: Quantized.from_codes(np.ones(shape, int), np.ones((shape[0], 1)), axis=1),
    "bfloat16": lambda shape: rounded(shape, 0, dtype=ml_dtypes.bfloat16),
    "transposed": lambda shape: rounded(shape[::-1], 0, steps=halves(shape[1])).T,
    "scales in float32": lambda shape: dataclasses.replace(
        rounded(shape, 1), scales=np.full((shape[0], 1), 1e-9, np.float32)
    ),
    "pair": lambda shape: LowRank(rounded((shape[0], 4), 1), rounded((4, shape[1]), 0, steps=halves(4))),
    "right alone": lambda shape: LowRank(np.ones((shape[0], 4), np.float32), rounded((4, shape[1]), 1)),
}


def with_kind(make: Callable[[tuple[int, int]], Any], name: str = "bert_base") -> Checkpoint:
    """A model with its matrices of one kind."""
    net = load_checkpoint(GOLDENS / name)
    for path, leaf in walk(net.params):
        if leaf.ndim == 2 and path.endswith(("kernel", "embedding")):
            net = dataclasses.replace(net, params=set_leaf(net.params, path, make(leaf.shape)))
    return net


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_bit_for_bit(kind: str, tmp_path: Path):
    net = with_kind(KINDS[kind])
    save_checkpoint(net, tmp_path / "small")
    assert not (tmp_path / "small" / "model.safetensors").exists()
    again = load_checkpoint(tmp_path / "small")
    assert_same(again.params, net.params)
    save_checkpoint(again, tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "small")


@pytest.mark.two_models
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_every_net_comes_back_and_is_exported(name: str, tmp_path: Path):
    net = with_kind(KINDS["kernel"], name)
    save_checkpoint(net, tmp_path / "small")
    assert_same(load_checkpoint(tmp_path / "small").params, net.params)
    export_checkpoint(load_checkpoint(tmp_path / "small"), tmp_path / "dense")
    dense = dict(walk(load_checkpoint(tmp_path / "dense").params))
    for path, leaf in walk(net.params):
        expected = next(leaf.blocks(1 << 20))[1].astype(np.float32) if isinstance(leaf, Quantized) else leaf
        np.testing.assert_array_equal(dense[path], expected, err_msg=path)


@pytest.mark.parametrize("format", ["safetensors", "msgpack"])
def test_pairs_are_exported_densely(format: str, tmp_path: Path):
    net = with_kind(KINDS["pair"])
    export_checkpoint(net, tmp_path / "dense", format=format)
    dense = dict(walk(load_checkpoint(tmp_path / "dense").params))
    pair = dict(walk(net.params))[TABLE]
    left, right = (next(factor.blocks(1 << 20))[1] for factor in (pair.left, pair.right))
    np.testing.assert_array_equal(dense[TABLE], (left @ right).astype(np.float32))


def test_names_in_the_file_and_the_block(tmp_path: Path):
    net = load_checkpoint(GOLDENS / "bert_base")
    params = set_leaf(net.params, KERNEL, rounded((12, 12), 0, group=4))
    params = set_leaf(params, TABLE, LowRank(rounded((29, 3), 1), rounded((3, 12), 0, steps=halves(3))))
    save_checkpoint(dataclasses.replace(net, params=params), tmp_path / "small")
    tensors, _ = read_tensors(tmp_path / "small" / "lpjax.safetensors")
    own = {name for name in tensors if name.startswith((TABLE_NAME, NAME))}
    assert own == {
        *(f"{NAME}.{part}" for part in ("codes", "scales")),
        *(f"{TABLE_NAME}.{part}" for part in ("left.codes", "left.scales")),
        *(f"{TABLE_NAME}.right.{part}" for part in ("codes", "scales", "steps")),
    }
    assert tensors[f"{NAME}.scales"].shape == (12, 3)
    assert tensors[f"{NAME}.scales"].dtype == np.float16
    block = json.loads((tmp_path / "small" / "config.json").read_text())["lpjax"]
    assert block["ranks"] == {TABLE: 3}
    assert block["quantized"] == {KERNEL: 4, f"{TABLE}.left": 3, f"{TABLE}.right": 3}


def test_equal_scales_take_few_bytes(tmp_path: Path):
    scales = np.random.default_rng(0).choice([0.5, 0.25, 0.1], (3000, 1))
    coded = Coded.of(Quantized.from_codes(np.eye(3000, 3, dtype=int), scales, axis=1))
    assert coded.scales.dtype == np.uint8
    assert coded.scales.size < 1200
    np.testing.assert_array_equal(coded.decoded().scales, scales.astype(np.float16))


def test_the_file_is_near_the_entropy(tmp_path: Path):
    rng = np.random.default_rng(0)
    codes = np.round(rng.normal(size=(2000, 384))).astype(int)
    coded = Coded.of(Quantized.from_codes(codes, np.ones((2000, 1)), axis=1))
    counts = np.unique(codes, return_counts=True)[1]
    ideal = float(-(counts * np.log2(counts / counts.sum())).sum()) / 8
    assert ideal < sum(array.nbytes for array in coded.parts.values()) < 1.02 * ideal


def test_int8_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="`params` has quantized weights"):
        save_checkpoint(with_kind(KINDS["pair"]), tmp_path / "out", int8=True)
    assert not (tmp_path / "out").exists()


def test_what_is_not_finite_is_not_saved(tmp_path: Path):
    leaf = rounded((12, 12), 0)
    net = load_checkpoint(GOLDENS / "bert_base")
    leaf = dataclasses.replace(leaf, scales=np.full((12, 1), np.nan, np.float16))
    net = dataclasses.replace(net, params=set_leaf(net.params, KERNEL, leaf))
    with pytest.raises(ValueError, match=rf"{NAME}.scales \(12 of 12\)"):
        save_checkpoint(net, tmp_path / "out")


def test_a_tree_in_memory_may_be_quantized():
    net = with_kind(KINDS["pair"])
    assert net.config_json is not None
    again = lpjax.checkpoint.from_tree(net.params, net.config_json)
    assert_same(again.params, net.params)


def test_other_libraries_refuse_it(tmp_path: Path):
    pytest.importorskip("torch")
    from transformers import AutoModel

    save_checkpoint(with_kind(KINDS["kernel"]), tmp_path / "small")
    with pytest.raises(OSError, match=r"no file named|does not appear to have"):
        AutoModel.from_pretrained(tmp_path / "small")


# Damage


def shape_of(tensors: Tensors, name: str, shape: tuple[int, int]) -> None:
    """Codes of another shape, with scales that fit them."""
    head = tensors[f"{name}.codes"][:12]
    group = np.frombuffer(struct.pack("<I", shape[1]), np.uint8)
    tensors[f"{name}.codes"] = np.concatenate([head[:8], group, encode_codes(np.ones(shape, np.int8))])
    tensors[f"{name}.scales"] = np.ones((shape[0], 1), np.float16)


def flip(place: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[f"{NAME}.codes"][place] ^= 0xFF

    return change


def bomb(tensors: Tensors) -> None:
    tensors[f"{NAME}.scales"] = np.frombuffer(zlib.compress(bytes(1 << 26)), np.uint8)


DAMAGE: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "no scales": (lambda t: t.pop(f"{NAME}.scales"), rf"{NAME}.codes has no {NAME}.scales beside it"),
    "no codes": (lambda t: t.pop(f"{NAME}.codes"), rf"missing \(1\): {NAME}"),
    "both": (lambda t: t.update({NAME: np.ones((12, 12), np.float32)}), f"{NAME}.codes stands beside {NAME},"),
    "and factors": (lambda t: t.update({f"{NAME}.left": np.ones((12, 2), np.float32)}), r"duplicate \(1\)"),
    "scales too many": (
        lambda t: t.update({f"{NAME}.scales": np.ones((12, 2), np.float16)}),
        rf"{NAME}: its scales are float16 of shape \(12, 2\), expected floating-point numbers \(12, 1\)",
    ),
    "whole scales": (lambda t: t.update({f"{NAME}.scales": np.ones((12, 1), np.int32)}), "its scales are int32"),
    "damaged scales": (
        lambda t: t.update({f"{NAME}.scales": np.ones(12, np.uint8)}),
        f"{KERNEL} is refused: its scales are damaged",
    ),
    "scales that grow": (bomb, "its scales are damaged: expected 24 bytes"),
    "infinite scales": (lambda t: t[f"{NAME}.scales"].fill(np.inf), "its scales hold NaN or infinity"),
    "scales times steps": (
        lambda t: t.update({f"{NAME}.scales": np.full((12, 1), 1e38, "f4"), f"{NAME}.steps": np.full(12, 1e38, "f4")}),
        "it has entries up to .*e\\+76, which float32 cannot hold",
    ),
    "steps": (lambda t: t.update({f"{NAME}.steps": np.ones(13, np.float16)}), r"its steps are .*\(13,\), expected"),
    "another shape": (lambda t: shape_of(t, NAME, (13, 12)), rf"{NAME} is \(12, 13\), expected \(12, 12\)"),
    "huge": (lambda t: shape_of(t, NAME, (1 << 14, 1 << 12)), rf"{NAME} is \(4096, 16384\), expected"),
    "another mark": (flip(0), rf"unknown \(2\): .*{NAME}.codes"),
    "another version": (flip(3), f"{NAME}: its codes are of version 254"),
    "another axis": (flip(4), "its header is damaged: axis 255"),
    "other bits": (flip(5), "its header is damaged: axis 0, 0 bits|`codes` go"),
    "another dtype": (flip(6), "dtype 255"),
    "another group": (flip(8), r"its scales are float16|differ at"),
    "another stream": (flip(12), f"{NAME}: it begins with"),
    "another checksum": (flip(24), f"{KERNEL} is refused: its codes do not match its checksum"),
    "another end": (flip(-1), f"{KERNEL} is refused: it"),
    "cut": (lambda t: t.update({f"{NAME}.codes": t[f"{NAME}.codes"][:-1]}), f"{KERNEL} is refused: it"),
    "cut short": (lambda t: t.update({f"{NAME}.codes": t[f"{NAME}.codes"][:7]}), "fewer than a header"),
    "empty": (lambda t: t.update({f"{NAME}.codes": t[f"{NAME}.codes"][:0]}), r"unknown \(2\)"),
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    net = load_checkpoint(GOLDENS / "bert_base")
    net = dataclasses.replace(net, params=set_leaf(net.params, KERNEL, rounded((12, 12), 0)))
    save_checkpoint(net, tmp_path / "small")
    return tmp_path / "small"


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_by_name(damage: str, small: Path):
    change, message = DAMAGE[damage]
    path = small / "lpjax.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in read_tensors(path)[0].items()}
    change(tensors)
    path.unlink()
    write_tensors(path, tensors.items())
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(small)


def test_a_pair_of_a_huge_rank_is_refused_before_it_is_decoded(tmp_path: Path):
    net = load_checkpoint(GOLDENS / "bert_base")
    pair = LowRank(rounded((12, 400), 1), rounded((400, 12), 1))
    save_checkpoint(dataclasses.replace(net, params=set_leaf(net.params, KERNEL, pair)), tmp_path / "small")
    with pytest.raises(CheckpointError, match=rf"{KERNEL} is refused: its rank is 400, more than its shape \(12, 12\)"):
        load_checkpoint(tmp_path / "small")


def test_codes_beside_the_net_are_kept_as_they_are(tmp_path: Path):
    net = load_checkpoint(GOLDENS / "bert_base")
    parts = {f"crf.weight.{name}": part for name, part in Coded.of(rounded((5, 7), 1)).parts.items()}
    net = dataclasses.replace(net, extra=parts)
    save_checkpoint(net, tmp_path / "one")
    again = load_checkpoint(tmp_path / "one")
    assert again.extra.keys() == parts.keys()
    assert all(np.array_equal(again.extra[name], part) for name, part in parts.items())
    save_checkpoint(again, tmp_path / "two")
    assert files(tmp_path / "two") == files(tmp_path / "one")


@pytest.mark.parametrize("part", ["codes", "scales", "steps"])
def test_names_of_parts_beside_the_net_are_refused(tmp_path: Path, part: str):
    net = with_kind(KINDS["steps"])
    net = dataclasses.replace(net, extra={f"{NAME}.{part}": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match=f"names of the model's own weights: {NAME}.{part}"):
        save_checkpoint(net, tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("quantized", "message"),
    [
        ({}, rf"`lpjax.quantized` and the quantized weights of .* differ at {KERNEL}"),
        ({KERNEL: 3}, f"differ at {KERNEL}"),
        ({KERNEL: 12, TABLE: 12}, f"differ at {TABLE}"),
        ({KERNEL: 12.5}, "expected an object of whole numbers"),
        ([KERNEL], "expected an object of whole numbers"),
    ],
)
def test_a_block_that_does_not_fit_is_refused(quantized: Any, message: str, small: Path):
    data = json.loads((small / "config.json").read_text())
    data["lpjax"]["quantized"] = quantized
    (small / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(small)
