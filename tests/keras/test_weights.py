"""Weights of keras-hub's models in and out, against what Keras and PyTorch compute."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import ml_dtypes  # noqa: F401  (NumPy's bfloat16)
import numpy as np
import pytest

import lpjax
from tests.helpers.goldens import load_golden

pytest.importorskip("keras_hub")

import keras
import keras_hub

import lpjax.keras
from lpjax.keras import from_keras, to_keras
from tests.keras.helpers import HUB, LENGTH, PAD, SIZES, backbone, batch, classifier, hidden_of, scrambled

pytestmark = pytest.mark.filterwarnings("default")

TOLERANCE = 1e-5


def near(actual: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", HUB)
def test_in_and_out(name):
    """Hidden states and logits of padded texts are Keras's; the weights go back bit for bit."""
    model = classifier(name)
    theirs, ours = batch(name)
    checkpoint, base = from_keras(model), from_keras(model.backbone)
    logits = model(theirs)
    near(lpjax.classify(checkpoint.params, checkpoint.config, ours), logits)
    hidden = np.asarray(lpjax.encode(base.params, base.config, ours))
    near(hidden[ours["attention_mask"] == 1], hidden_of(model.backbone, theirs))
    assert checkpoint.config.max_length == LENGTH

    other = scrambled(classifier(name), seed=1)
    assert not np.allclose(other(theirs), logits, atol=0.01)
    to_keras(checkpoint, other)
    for after, before in zip(other.weights, model.weights, strict=True):
        np.testing.assert_array_equal(after.numpy(), before.numpy())
    alone = scrambled(backbone(name), seed=1)
    to_keras(checkpoint, alone)  # the head of the classifier is left out
    near(hidden_of(alone, theirs), hidden_of(model.backbone, theirs), 0)


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_compressed_weights_go_out(name):
    """Factors and codes are multiplied out; or factors become factored layers."""
    theirs, ours = batch(name)
    model, checkpoint = classifier(name), from_keras(classifier(name))
    params, _ = lpjax.compress(checkpoint.params, select=["embeddings", "encoder"], keep=0.6, solver="svd")
    small = dataclasses.replace(checkpoint, params=params)
    expected = np.asarray(lpjax.classify(params, small.config, ours))
    to_keras(small, model)
    near(model(theirs), expected)

    to_keras(small, model, factored=True)
    near(model(theirs), expected)
    dense = model.backbone.transformer_layers[0]._feedforward_output_dense
    assert isinstance(dense, lpjax.keras.FactoredDense)
    again = from_keras(model)
    assert lpjax.checkpoint.lowrank_ranks(again.params) == lpjax.checkpoint.lowrank_ranks(params)
    near(lpjax.classify(again.params, again.config, ours), expected)
    with pytest.raises(ValueError, match="word_embeddings/embedding: its layer is factored"):
        to_keras(checkpoint, model)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("factored", [False, True])
def test_half_precision_is_not_rounded_again(dtype: str, factored: bool):
    """Sums with the vector of a token type and products of factors stay in float32, as lpjax computes them."""
    theirs, ours = batch("Roberta")
    checkpoint, model = from_keras(classifier("Roberta")), classifier("Roberta")
    rng = np.random.default_rng(0)
    types = {"embedding": rng.normal(size=(1, SIZES["hidden_dim"])).astype(np.float32)}
    base = checkpoint.params["roberta"]
    tables = base["embeddings"] | {"token_type_embeddings": types}
    params = checkpoint.params | {"roberta": base | {"embeddings": tables}}
    params = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), params)
    params = lpjax.compress(params, select="position_embeddings|dense/kernel", keep=0.7, solver="svd").params
    small = dataclasses.replace(checkpoint, params=params)
    to_keras(small, model, factored=factored)
    near(model(theirs), lpjax.classify(params, small.config, ours))


def test_quantized_weights_go_out():
    """A kernel of codes, and one whose factors are codes, which are expanded for factored layers, too."""
    theirs, ours = batch("DistilBert")
    model, checkpoint = classifier("DistilBert"), from_keras(classifier("DistilBert"))
    inner, outer = _codes(12, 17), lpjax.LowRank(_codes(17, 4), _codes(4, 12))
    layer = checkpoint.params["distilbert"]["transformer"]["layer"]["0"]
    for name, kernel in (("lin1", inner), ("lin2", outer)):
        layer["ffn"][name]["kernel"] = kernel
    expected = np.asarray(lpjax.classify(checkpoint.params, checkpoint.config, ours))
    to_keras(checkpoint, model)
    near(model(theirs), expected)
    to_keras(checkpoint, model, factored=True)
    near(model(theirs), expected)
    assert isinstance(model.backbone.transformer_layers[0]._feedforward_output_dense, lpjax.keras.FactoredDense)


def _codes(n: int, d: int) -> lpjax.Quantized:
    """A random kernel (n, d) in 4 bits, a scale for every 4 inputs."""
    rng = np.random.default_rng(n)
    codes, scales = rng.integers(-8, 8, (d, n)).astype(np.int8), rng.uniform(0.05, 0.1, (d, -(-n // 4)))
    return lpjax.Quantized.from_codes(codes, scales.astype(np.float16), axis=0, group=4, bits=4)


def test_goldens_go_out():
    """The outputs of PyTorch's transformers that tests/goldens holds."""
    golden = load_golden("bert_classifier")  # gelu by tanh, as keras-hub's BERT
    model = keras_hub.models.BertTextClassifier(_backbone_for("Bert", golden.checkpoint.config), num_classes=3)
    to_keras(golden.checkpoint, model)
    near(model(_inputs(golden.batch)), golden.logits)

    golden = load_golden("distilbert_base")
    config = golden.checkpoint.config
    model = backbone("DistilBert", vocabulary_size=29, num_layers=2)
    to_keras(golden.checkpoint, model)
    there = golden.batch["attention_mask"] == 1
    near(hidden_of(model, _inputs(golden.batch)), golden.hidden_states[there])
    assert config.dim == SIZES["hidden_dim"]


@pytest.mark.parametrize("name", ["Bert", "DistilBert", "XLMRoberta"])
def test_pytorch_runs_what_keras_ran(name, tmp_path):
    """Through `export_checkpoint`, and from a random model of PyTorch, whose token type is not zero, into Keras."""
    torch = pytest.importorskip("torch")
    import transformers

    def run(folder: Any, inputs: Any) -> Any:
        again, loading_info = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True
        )
        assert not any(loading_info.values())
        with torch.no_grad():
            return again.eval()(**{key: torch.from_numpy(value).long() for key, value in inputs.items()}).logits

    theirs, ours = batch(name)
    model = classifier(name)
    checkpoint = from_keras(model)
    lpjax.export_checkpoint(checkpoint, tmp_path / "dense")
    near(run(tmp_path / "dense", ours), model(theirs))

    torch.manual_seed(0)
    data = checkpoint.config.to_json() | {"initializer_range": 0.4, "num_labels": 3}
    kind = data.pop("model_type")
    data.pop("architectures", None)
    config = transformers.AutoConfig.for_model(kind, **data)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "torch")
    to_keras(lpjax.load_checkpoint(tmp_path / "torch"), model)
    near(model(theirs), run(tmp_path / "torch", ours))


def test_other_models_are_refused():
    bert, roberta = from_keras(backbone("Bert")), backbone("Roberta")
    before = [variable.numpy() for variable in roberta.weights]
    with pytest.raises(ValueError, match="`checkpoint` is a bert, `model` a roberta"):
        to_keras(bert, roberta)
    with pytest.raises(ValueError, match=r"num_attention_heads is 3, expected 2; .*max_length is 9, expected 8"):
        to_keras(bert, backbone("Bert", num_heads=2, max_sequence_length=8))
    with pytest.raises(ValueError, match="`checkpoint` has no classifier/kernel, which `model`"):
        to_keras(bert, classifier("Bert"))
    exact = load_golden("roberta_base").checkpoint
    with pytest.raises(ValueError, match="layer_norm_eps is 1e-12, expected 1e-05"):
        to_keras(exact, backbone("Roberta", num_layers=2))
    for before_, variable in zip(before, roberta.weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), before_)
    for other in (
        keras.Sequential([keras.layers.Dense(3)]),
        "bert",
        keras_hub.models.BertTextEmbedder(backbone("Bert")),
    ):
        with pytest.raises(ValueError, match="expected one of BertBackbone, DistilBertBackbone, XLMRobertaBackbone"):
            from_keras(other)


def test_what_lpjax_does_not_compute_is_refused():
    with pytest.raises(ValueError, match="output_dense has the activation softmax, expected linear"):
        from_keras(classifier("Bert", activation="softmax"))
    model = backbone("DistilBert")
    layer = model.transformer_layers[0]
    layer._feedforward_intermediate_dense.activation = keras.activations.elu
    with pytest.raises(ValueError, match="the activation elu, expected gelu"):
        from_keras(model)
    layer._feedforward_intermediate_dense.activation = keras.activations.relu
    assert from_keras(model).config.activation == "relu"
    layer._feedforward_layer_norm.epsilon = 1e-3
    with pytest.raises(ValueError, match="several values of epsilon"):
        from_keras(model)


def test_gelu_must_be_the_same_unless_allowed():
    """keras-hub's BERT has the gelu by tanh, most checkpoints the exact one."""
    golden = load_golden("bert_base")
    model = backbone("Bert", vocabulary_size=29, num_layers=2)
    with pytest.raises(ValueError, match="hidden_act is 'gelu', expected 'gelu_new': pass `approximate_gelu=True`"):
        to_keras(golden.checkpoint, model)
    to_keras(golden.checkpoint, model, approximate_gelu=True)
    hidden, there = hidden_of(model, _inputs(golden.batch)), golden.batch["attention_mask"] == 1
    near(hidden, golden.hidden_states[there], 5e-3)
    assert np.abs(hidden - golden.hidden_states[there]).max() > TOLERANCE


def test_a_token_type_is_folded_and_several_are_refused():
    golden = from_keras(backbone("Roberta"))
    base = golden.params["embeddings"]
    types = np.random.default_rng(0).normal(size=(2, SIZES["hidden_dim"])).astype(np.float32)
    config = dataclasses.replace(golden.config, type_vocab_size=2)

    def having(rows: np.ndarray) -> lpjax.Checkpoint:
        tables = base | {"token_type_embeddings": {"embedding": rows}}
        return dataclasses.replace(golden, params=golden.params | {"embeddings": tables}, config=config)

    model, (theirs, ours) = backbone("Roberta"), batch("Roberta")
    with pytest.raises(ValueError, match="has 2 token types, which differ"):
        to_keras(having(types), model)
    same = having(np.repeat(types[:1], 2, axis=0))
    to_keras(same, model)
    expected = np.asarray(lpjax.encode(same.params, same.config, ours))
    near(hidden_of(model, theirs), expected[ours["attention_mask"] == 1])


def test_lora_is_merged_on_the_way_out_and_refused_on_the_way_in():
    model, (theirs, ours) = classifier("DistilBert"), batch("DistilBert")
    dense = model.backbone.transformer_layers[0]._feedforward_output_dense
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.random.default_rng(0).normal(size=dense.lora_kernel_b.shape))
    checkpoint = from_keras(model)
    near(lpjax.classify(checkpoint.params, checkpoint.config, ours), model(theirs))
    with pytest.raises(ValueError, match="lin2/kernel: its layer has LoRA weights"):
        to_keras(checkpoint, model)


def test_padding_of_a_roberta():
    """lpjax counts positions from the padding's id, by zeros that no token reads."""
    checkpoint = from_keras(backbone("Roberta"))
    positions = checkpoint.params["embeddings"]["position_embeddings"]["embedding"]
    assert positions.shape == (LENGTH + PAD + 1, SIZES["hidden_dim"])
    assert not positions[: PAD + 1].any()
    assert checkpoint.config.pad_token_id == PAD


def _backbone_for(name: str, config: Any) -> Any:
    sizes = {"num_layers": config.num_hidden_layers, "num_heads": config.num_attention_heads}
    sizes |= {"hidden_dim": config.hidden_size, "intermediate_dim": config.intermediate_size}
    return backbone(name, **sizes, max_sequence_length=config.max_length)


def _inputs(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = {"input_ids": "token_ids", "attention_mask": "padding_mask", "token_type_ids": "segment_ids"}
    return {names[key]: value.astype(np.int32) for key, value in ours.items()}
