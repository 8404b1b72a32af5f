"""A model is one file and one line of the table: one from outside goes all the way."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import lpjax
from lpjax._mesh import data_mesh
from lpjax.data.batching import round_up
from lpjax.models import ARCHITECTURES, architecture_of, device_params
from lpjax.models.heads import with_head
from tests.models import toy_net

VOCAB, WIDTH = 29, 12


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a toy checkpoint, and its model in the table."""
    monkeypatch.setitem(ARCHITECTURES, "bag", toy_net.BAG)
    rng = np.random.default_rng(0)
    shapes = {"bag.words.weight": (VOCAB, WIDTH), "bag.mix.weight": (WIDTH, WIDTH), "bag.mix.bias": (WIDTH,)}
    shapes |= {"classifier.weight": (3, WIDTH), "classifier.bias": (3,)}
    folder = tmp_path / "bag"
    folder.mkdir()
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"vocab_size": VOCAB, "width": WIDTH, "architectures": ["BagForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config | {"num_labels": 3}))  # its class says the model type
    return folder


def test_a_net_from_outside_is_loaded_compressed_saved_and_run(toy: Path, tmp_path: Path):
    net = lpjax.load_checkpoint(toy)
    assert isinstance(net.config, toy_net.BagConfig)
    small, records = lpjax.compress(net.params, select=["embeddings", "feed_forward"], keep=0.9, solver="svd")
    assert [record.path for record in records] == ["bag/mix/kernel", "bag/words/embedding"]
    lpjax.save_checkpoint(lpjax.Checkpoint(small, net.config, net.source), tmp_path / "small")
    again = lpjax.load_checkpoint(tmp_path / "small")
    assert again.config == net.config
    batch = {"input_ids": np.arange(12, dtype=np.int32).reshape(3, 4)}
    for run, shape in ((lpjax.encode, (3, 4, WIDTH)), (lpjax.classify, (3, 3))):
        outputs = run(again.params, again.config, batch)
        assert outputs.shape == shape
        np.testing.assert_allclose(outputs, run(jax.tree.map(np.asarray, small), net.config, batch), rtol=1e-6)
        dense = jax.tree.map(lpjax.densify, device_params(small), is_leaf=lambda leaf: isinstance(leaf, lpjax.LowRank))
        np.testing.assert_allclose(outputs, run(dense, net.config, batch), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="whose word head fills no masks"):
        lpjax.fill_mask(again.params, again.config, batch)


def test_traits_of_a_net_from_outside_count(toy: Path):
    net = lpjax.load_checkpoint(toy)
    assert architecture_of(net.config) is toy_net.BAG
    assert round_up(7, data_mesh(jax.devices()[:1]), net.config) == 9
    assert net.config.padding_side == "right"
    assert "kernel" not in net.config.no_decay
    _, added = with_head(net.params, net.config, 2)
    assert added == ["classifier/bias", "classifier/kernel"]
    (toy / "config.json").write_text(json.dumps({"model_type": "bag", "vocab_size": 0, "activation": "gelo"}))
    with pytest.raises(lpjax.CheckpointError, match=r"lacks `width`; `vocab_size` is 0, .*; `activation` is 'gelo'"):
        lpjax.load_checkpoint(toy)
