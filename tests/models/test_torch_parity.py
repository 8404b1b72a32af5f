"""Optional, where PyTorch is installed: every model against transformers, at full size with random weights."""

# lpjax does not depend on PyTorch.
# pyright: reportMissingImports=false

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lpjax

pytest.importorskip("torch")

from experiments.parity import NETS, measure

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("net", NETS)
def test_full_base_size(net: str, tmp_path: Path):
    errors = measure(net, tmp_path)
    assert errors["live"] <= 1e-4
    assert errors["round trip"] == 0
    assert errors["reload"] == 0
    assert errors["export"] <= 1e-5
    assert errors["base"] <= 2e-5  # entries of order 5
    assert errors["full rank"] <= 1e-4


@pytest.mark.parametrize(("kind", "name"), [("xlm-roberta", "XLMRoberta"), ("camembert", "Camembert")])
def test_roberta_by_another_name(kind: str, name: str, tmp_path: Path):
    """Logits, before and after a dense export, which keeps the model type."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
    config = transformers.AutoConfig.for_model(kind, **sizes, vocab_size=50, max_position_embeddings=20, num_labels=3)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    model.save_pretrained(tmp_path / "model")
    batch = {
        "input_ids": [[0, 6, 7, 8, 2, 1, 1], [0, 9, 9, 9, 9, 9, 2]],
        "attention_mask": [[1] * 5 + [0] * 2, [1] * 7],
    }
    ours = lpjax.load_checkpoint(tmp_path / "model")
    lpjax.export_checkpoint(ours, tmp_path / "export")
    again, loading_info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "export", output_loading_info=True
    )
    assert type(again) is type(model)
    assert not any(loading_info.values())
    for net in (model, again):
        with torch.no_grad():
            expected = net(**{key: torch.tensor(value) for key, value in batch.items()}).logits
        np.testing.assert_allclose(lpjax.classify(ours.params, ours.config, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_export_of_a_word_head_has_every_weight_that_transformers_wants(tied: bool, tmp_path: Path):
    """Without ties, a decoder that is left out because it equals the table would be random there."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
    config = transformers.BertConfig(vocab_size=60, **sizes, max_position_embeddings=20, tie_word_embeddings=tied)
    model = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        model.cls.predictions.decoder.weight.copy_(model.bert.embeddings.word_embeddings.weight)
    model.save_pretrained(tmp_path / "model")
    lpjax.export_checkpoint(lpjax.load_checkpoint(tmp_path / "model"), tmp_path / "export")
    again, loading_info = transformers.BertForMaskedLM.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not any(loading_info.values())
    ids = torch.tensor([[2, 8, 9, 3]])
    with torch.no_grad():
        np.testing.assert_array_equal(again(ids).logits, model(ids).logits)
