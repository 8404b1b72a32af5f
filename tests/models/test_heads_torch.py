"""Optional, if PyTorch is installed: models with heads for tokens, answers and words, exported to transformers."""

# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import transformers

import lpjax
from tests.helpers.heads import CASES, load_head, run, there

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("name", CASES)
def test_what_is_exported_loads_there_whole_and_says_the_same(name, tmp_path):
    golden, _ = load_head(name)
    net = golden.checkpoint
    small = lpjax.compress(net.params, select=["encoder", "embeddings"], rank=2, solver="svd").params
    lpjax.export_checkpoint(dataclasses.replace(net, params=small), tmp_path / "dense")
    (kind,) = (net.config_json or {})["architectures"]
    loaded, loading_info = getattr(transformers, kind).from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not loading_info["missing_keys"]
    assert not loading_info["unexpected_keys"]
    assert not loading_info["mismatched_keys"]
    batch = {key: torch.tensor(np.asarray(value, np.int64)) for key, value in golden.batch.items()}
    with torch.no_grad():
        outputs = loaded.eval()(**batch)
    spans = net.config.head == "spans"
    expected = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1) if spans else outputs.logits
    got = np.asarray(run(small, golden))
    np.testing.assert_allclose(got[there(golden)], expected.numpy()[there(golden)], rtol=0, atol=1e-5)
