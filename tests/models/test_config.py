"""Reading config.json: what is understood, and what is refused by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from lpjax.models import BertConfig, config_from_json
from tests.helpers.goldens import CASES, GOLDENS

SIZES: dict[str, Any] = {
    "vocab_size": 29,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 17,
    "max_position_embeddings": 9,
}


def test_config_round_trips_through_json():
    config = BertConfig(**SIZES, hidden_act="swish", layer_norm_eps=1e-5, type_vocab_size=1)
    assert config_from_json(json.loads(json.dumps(config.to_json()))) == config
    assert hash(config) == hash(dataclasses.replace(config))


def test_config_of_the_first_checkpoints_has_no_model_type():
    assert config_from_json({"architectures": ["BertForMaskedLM"], **SIZES}) == BertConfig(**SIZES, head="words")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "`model_type` is 'gpt2', expected one of 'bert'"),
        ({"model_type": None}, "lacks `model_type`"),
        ({"model_type": ["bert"]}, r"`model_type` is \['bert'\]"),
        ({"vocab_size": None}, "`vocab_size` is None, expected a whole number"),
        ({"vocab_size": "29"}, "`vocab_size` is '29', expected a whole number"),
        ({"num_hidden_layers": True}, "`num_hidden_layers` is True, expected a whole number"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` is 0, expected a whole number from 1 to 1000"),
        ({"num_attention_heads": 5}, "`hidden_size` is 12, expected a multiple of `num_attention_heads`, 5"),
        ({"hidden_act": "prelu"}, "`hidden_act` is 'prelu', expected one of gelu, "),
        ({"hidden_act": {"name": "gelu"}}, "`hidden_act` is .*, expected one of gelu"),
        ({"layer_norm_eps": "1e-12"}, "`layer_norm_eps` is '1e-12', expected a number"),
        ({"layer_norm_eps": float("nan")}, "`layer_norm_eps` is nan, expected a number from 0, below 1"),
        ({"position_embedding_type": "relative_key"}, "`position_embedding_type` is 'relative_key'"),
        ({"is_decoder": True}, "`is_decoder` is True, expected False"),
        ({"add_cross_attention": True}, "`add_cross_attention` is True"),
        ({"pruned_heads": {"0": [1]}}, "`pruned_heads` is"),
        ({"quantization_config": {"bits": 8}}, "`quantization_config` is"),
        ({"auto_map": {"AutoModel": "modeling.Custom"}}, "`auto_map` names code of its own"),
        ({"auto_map": "modeling.Custom"}, "`auto_map` names code of its own"),
        ({"tie_word_embeddings": "no"}, "`tie_word_embeddings` is 'no', expected true or false"),
    ],
)
def test_bad_config_is_refused_by_name(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config_from_json({"model_type": "bert", **SIZES, **change})


def test_bad_config_names_every_fault_at_once():
    data = {"model_type": "bert", **SIZES, "vocab_size": -1, "is_decoder": True}
    del data["hidden_size"], data["intermediate_size"]
    with pytest.raises(ValueError, match="lacks `hidden_size`, `intermediate_size`; `vocab_size` is -1") as caught:
        config_from_json(data)
    assert "`is_decoder` is True" in str(caught.value)
    with pytest.raises(ValueError, match="`hidden_act` is 'gelo'"):
        BertConfig(**SIZES, hidden_act="gelo")


@pytest.mark.parametrize("name", CASES)
def test_configs_of_all_nets_come_back(name: str):
    data = json.loads((GOLDENS / name / "config.json").read_text())
    config = config_from_json(data)
    assert config.model_type == name.split("_")[0]
    assert config_from_json(config.to_json()) == config


def config_of(name: str, **changes: Any) -> Any:
    return config_from_json(json.loads((GOLDENS / name / "config.json").read_text()) | changes)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("roberta_base", {"pad_token_id": -1}, "`pad_token_id` is -1, expected a whole number from 0"),
        ("roberta_base", {"pad_token_id": None}, "`pad_token_id` is None, expected a whole number"),
        ("roberta_base", {"max_position_embeddings": 2}, "expected at least 3: positions of tokens begin after"),
        ("roberta_base", {"position_embedding_type": "relative_key_query"}, "`position_embedding_type` is"),
        ("roberta_base", {"is_decoder": True}, "`is_decoder` is True"),
        ("distilbert_base", {"dim": 13}, "`dim` is 13, expected a multiple of `n_heads`, 3"),
        ("distilbert_base", {"activation": "gelo"}, "`activation` is 'gelo', expected one of gelu"),
        ("distilbert_base", {"n_layers": 0}, "`n_layers` is 0, expected a whole number from 1 to 1000"),
        ("distilbert_base", {"n_layers": 10**9}, "`n_layers` is 1000000000, expected a whole number from 1 to 1000"),
        ("distilbert_base", {"dropout": 1.0}, "`dropout` is 1.0, expected a number from 0, below 1"),
        (
            "distilbert_base",
            {"vocab_size": 10**12},
            "`vocab_size` is 1000000000000, expected a whole number from 1 to",
        ),
        ("xlnet_base", {"attn_type": "uni"}, "`attn_type` is 'uni', expected 'bi'"),
        ("xlnet_base", {"summary_type": "attn"}, "`summary_type` is 'attn', expected one of last, first"),
        ("xlnet_base", {"summary_activation": "tanhh"}, "`summary_activation` is 'tanhh'"),
        ("xlnet_base", {"summary_proj_to_labels": True}, "`summary_proj_to_labels` is True"),
        ("xlnet_base", {"d_head": 5}, "`d_head` is 5, expected 4"),
        ("xlnet_base", {"clamp_len": 2.5}, "`clamp_len` is 2.5, expected a whole number"),
        ("xlnet_base", {"bi_data": 1}, "`bi_data` is 1, expected true or false"),
        ("xlnet_base", {"ff_activation": None}, "`ff_activation` is None, expected one of gelu"),
        (
            "modernbert_base",
            {"layer_types": ["sliding_attention"] * 3},
            "`layer_types` is",
        ),
        ("modernbert_base", {"layer_types": ["full_attention"]}, r"`layer_types` is \['full_attention'\], expected"),
        ("modernbert_base", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "`rope_parameters` is"),
        ("modernbert_base", {"rope_parameters": {"rope_theta": 10.0}}, "`rope_parameters` is"),
        ("modernbert_base", {"rope_parameters": {"full_attention": {"rope_theta": 0}}}, "`global_rope_theta` is 0"),
        ("modernbert_base", {"rope_scaling": {"rope_type": "linear"}}, "`rope_scaling` is"),
        ("modernbert_base", {"local_rope_theta": None, "rope_parameters": None}, "`local_rope_theta` is None"),
        ("modernbert_base", {"num_attention_heads": 4}, "`hidden_size` / `num_attention_heads` is 3, expected an even"),
        ("modernbert_base", {"classifier_pooling": "max"}, "`classifier_pooling` is 'max', expected one of cls, mean"),
        ("modernbert_base", {"norm_bias": None}, "`norm_bias` is None, expected true or false"),
        ("albert_base", {"num_hidden_groups": 0}, "`num_hidden_groups` is 0, expected a whole number from 1"),
        ("albert_base", {"inner_group_num": None}, "`inner_group_num` is None, expected a whole number"),
        ("albert_base", {"embedding_size": 0}, "`embedding_size` is 0, expected a whole number"),
        ("albert_base", {"position_embedding_type": "relative_key"}, "`position_embedding_type` is 'relative_key'"),
        ("mpnet_base", {"relative_attention_num_buckets": 40}, "`relative_attention_num_buckets` is 40, expected 32"),
        ("mpnet_base", {"max_position_embeddings": 2}, "expected at least 3: positions of tokens begin after"),
        ("mpnet_base", {"hidden_size": 13}, "`hidden_size` is 13, expected a multiple of `num_attention_heads`, 3"),
        ("electra_base", {"embedding_size": 0}, "`embedding_size` is 0, expected a whole number from 1"),
        ("electra_base", {"is_decoder": True}, "`is_decoder` is True"),
        ("bert_base", {"model_type": "xlnet"}, "lacks .*`d_model`"),
    ],
)
def test_bad_configs_of_other_nets_are_refused_by_name(name: str, change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config_of(name, **change)


@pytest.mark.parametrize("change", [{"summary_activation": None}, {"mem_len": 1024}, {"untie_r": True}, {"d_head": 4}])
def test_what_changes_nothing_here_is_accepted(change: dict[str, Any]):
    config_of("xlnet_base", **change)


def test_modernbert_is_told_alike_by_transformers_4_and_5():
    five = config_of("modernbert_biases")
    assert (five.global_rope_theta, five.local_rope_theta, five.global_attn_every_n_layers) == (13, 7.5, 3)
    assert config_of("modernbert_base").global_attn_every_n_layers == 2
    data = five.to_json()
    of_five = {key: data.pop(key) for key in ("layer_types", "rope_parameters")}
    assert config_from_json(data) == five
    rest = {key: value for key, value in data.items() if "rope_theta" not in key and not key.startswith("global_")}
    assert config_from_json(rest | of_five) == five
    assert config_from_json(rest | of_five | {"global_rope_theta": 99.0, "global_attn_every_n_layers": 2}) == (
        dataclasses.replace(five, global_attn_every_n_layers=2)
    )


def test_first_checkpoints_name_only_their_class():
    for name, golden in (
        ("Roberta", "roberta_base"),
        ("XLMRoberta", "xlm-roberta_classifier"),
        ("Camembert", "camembert_base"),
        ("DistilBert", "distilbert_base"),
        ("XLNet", "xlnet_base"),
        ("ModernBert", "modernbert_base"),
        ("Albert", "albert_base"),
        ("MPNet", "mpnet_base"),
        ("Electra", "electra_base"),
    ):
        data = json.loads((GOLDENS / golden / "config.json").read_text())
        del data["model_type"]
        expected = dataclasses.replace(config_of(golden), head="words")
        assert config_from_json(data | {"architectures": [f"{name}ForMaskedLM"]}) == expected


LOOK_ALIKES = {
    "xlm-roberta-xl": "XLMRobertaXLModel",
    "roberta-prelayernorm": "RobertaPreLayerNormForMaskedLM",
    "data2vec-text": "Data2VecTextModel",
    "bert-generation": "BertGenerationEncoder",
    "xmod": "XmodModel",
    "roformer": "RoFormerModel",
}


@pytest.mark.parametrize(("kind", "name"), LOOK_ALIKES.items())
def test_nets_that_look_like_these_are_refused(kind: str, name: str):
    """By their model type, and by their class if a config has no model type."""
    with pytest.raises(ValueError, match=f"`model_type` is '{kind}', expected one of 'bert'"):
        config_of("roberta_base", model_type=kind)
    data = json.loads((GOLDENS / "roberta_base" / "config.json").read_text()) | {"architectures": [name]}
    del data["model_type"]
    with pytest.raises(ValueError, match="lacks `model_type`"):
        config_from_json(data)
