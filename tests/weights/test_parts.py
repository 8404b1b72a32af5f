"""A kind of weight is one entry of the table: one from outside is saved, loaded, refused and exported."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lpjax
from lpjax._tree import walk
from lpjax.checkpoint.safetensors import read_tensors, write_tensors
from lpjax.weights.parts import KINDS, Kind, kind_of, part_name, split_name
from tests.conftest import GOLDENS
from tests.helpers.checkpoints import set_leaf

TABLE = "embeddings/word_embeddings/embedding"
NAME = "embeddings.word_embeddings.weight"


@dataclasses.dataclass(frozen=True, eq=False)
class Rounded:
    """A matrix in 8 bits, with a scale for each row."""

    codes: Any
    scales: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def dtype(self) -> np.dtype:
        return self.scales.dtype

    def blocks(self, height: int) -> Iterator[tuple[int, np.ndarray]]:
        yield 0, self.codes.astype(np.float64) * self.scales[:, None]


def fault(shape: tuple[int, ...], look_inside: bool, scales: Any, codes: Any) -> str | None:
    return None if scales.shape == shape[:1] else f"scales has the shape {scales.shape}, expected ({shape[0]},)"


ROUNDED = Kind(
    parts=("scales", "codes"),
    holds=lambda leaf: isinstance(leaf, Rounded),
    split=lambda leaf: (leaf.scales, leaf.codes),
    join=lambda scales, codes: Rounded(codes, scales),
    factors=2,
    shape=lambda scales, codes: codes.shape,
    fault=fault,
)


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> lpjax.Checkpoint:
    """A BERT whose table of words is of a kind that lpjax does not have."""
    monkeypatch.setitem(KINDS, "rounded", ROUNDED)
    dense = lpjax.load_checkpoint(GOLDENS / "bert_base")
    table = dict(walk(dense.params))[TABLE]
    scales = (np.abs(table).max(axis=1) / 127).astype(np.float32)
    rounded = Rounded(np.round(table / scales[:, None]).astype(np.int8), scales)
    return dataclasses.replace(dense, params=set_leaf(dense.params, TABLE, rounded))


def test_a_kind_from_outside_is_saved_and_loaded(net: lpjax.Checkpoint, tmp_path: Path):
    lpjax.save_checkpoint(net, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()  # which other libraries would read
    tensors, _ = read_tensors(tmp_path / "out" / "lpjax.safetensors")
    assert NAME not in tensors
    assert tensors[f"{NAME}.codes"].dtype == np.int8
    before, after = (
        dict(walk(params))[TABLE] for params in (net.params, lpjax.load_checkpoint(tmp_path / "out").params)
    )
    assert isinstance(after, Rounded)
    np.testing.assert_array_equal(after.codes, before.codes)
    np.testing.assert_array_equal(after.scales, before.scales)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{NAME}.codes"), rf"missing \(1\): {NAME}.codes"),
        (lambda t: t.update({NAME: t[f"{NAME}.codes"]}), rf"duplicate \(2\): {NAME}.scales \(also {NAME}\), "),
        (
            lambda t: t.update({f"{NAME}.left": t[f"{NAME}.scales"]}),
            rf"duplicate \(2\): {NAME}.\w+ \(also {NAME}.left\)",
        ),
        (lambda t: t.update({f"{NAME}.scales": t[f"{NAME}.scales"][1:]}), rf"{NAME}.scales has the shape \(28,\)"),
        (lambda t: t.update({f"{NAME}.scales": t[f"{NAME}.codes"]}), f"{NAME} is int8, expected floating-point"),
        (lambda t: t.update({f"{NAME}.codes": t[f"{NAME}.codes"].T}), r"\(29\) times \(12, 29\), expected \(29, 12\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(net: lpjax.Checkpoint, tmp_path: Path, change: Any, message: str):
    lpjax.save_checkpoint(net, tmp_path / "out")
    path = tmp_path / "out" / "lpjax.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in read_tensors(path)[0].items()}
    path.unlink()
    change(tensors)
    write_tensors(path, tensors.items())
    with pytest.raises(lpjax.CheckpointError, match=message):
        lpjax.load_checkpoint(tmp_path / "out")


def test_a_kind_from_outside_is_exported_densely(net: lpjax.Checkpoint, tmp_path: Path):
    lpjax.export_checkpoint(net, tmp_path / "out")
    leaf = dict(walk(net.params))[TABLE]
    expected = (leaf.codes.astype(np.float64) * leaf.scales[:, None]).astype(np.float32)
    np.testing.assert_array_equal(dict(walk(lpjax.load_checkpoint(tmp_path / "out").params))[TABLE], expected)


def test_names_of_parts():
    assert kind_of(np.ones(3)).parts == ("",)
    for kind in KINDS.values():
        for part in kind.parts:
            assert split_name(part_name("a.weight", part)) == ("a.weight", part)
    assert split_name("left") == ("left", "")
