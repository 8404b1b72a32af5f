"""Keras models factored in place: the numbers of the dense ones with multiplied weights, and files that load."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import lpjax
from tests.flax.helpers import first_columns, shapes_in

pytest.importorskip("keras")

import keras
from keras import layers

from lpjax.keras import (
    FactoredDense,
    FactoredEinsumDense,
    FactoredEmbedding,
    FactoredModel,
    FactoredReversibleEmbedding,
    compress_keras,
)
from tests.keras.helpers import batch, classifier, scrambled

pytestmark = pytest.mark.filterwarnings("default")

CHEAP: dict[str, Any] = {"rank": 2, "solver": first_columns}
EQUATIONS = {
    # equation, output shape, bias axes, input shape, inputs of the kernel
    "to heads": ("abc,cde->abde", (None, 3, 5), "de", (2, 4, 7), 1),
    "from heads": ("abcd,cde->abe", (None, 7), "e", (2, 4, 3, 5), 2),
    "outputs first": ("abc,dc->abd", (None, 11), None, (2, 4, 7), 1),
    "mixed": ("abcd,ecfd->abef", (None, 4, 3), "f", (2, 4, 3, 5), 2),
    "ellipsis": ("...x,xy->...y", 11, "y", (2, 4, 7), 1),
}


def near(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=tolerance)


def product(layer: Any) -> np.ndarray:
    """left @ right in double precision, as a matrix."""
    left, right = (np.asarray(x, np.float64) for x in (layer.left, layer.right))
    return left.reshape(-1, layer.rank) @ right.reshape(layer.rank, -1)


@pytest.mark.parametrize("case", EQUATIONS)
def test_einsum_dense(case):
    """Against the equation itself, on the product of the factors, which is never formed."""
    equation, outputs, bias, shape, inputs = EQUATIONS[case]
    model_input = keras.Input(shape[1:])
    layer = layers.EinsumDense(equation, outputs, bias_axes=bias, bias_initializer="normal", activation="relu")
    model = keras.Model(model_input, layer(model_input))
    old, wide = layer.kernel.shape, layer.kernel.numpy()
    records = compress_keras(model, select="kernel$", **CHEAP)
    assert isinstance(layer, FactoredEinsumDense)
    assert layer.left.shape[:-1] == tuple(records[0].shape)[:inputs]
    kernel, letters = product(layer), equation.split(",")[1].split("->")[0]
    order = [c for c in letters if c not in equation.split("->")[1]]
    order += [c for c in letters if c not in order]
    sizes = dict(zip(letters, old, strict=True))
    kernel = np.einsum(f"{''.join(order)}->{letters}", kernel.reshape([sizes[c] for c in order]))
    near(layer.kernel, kernel)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = np.einsum(equation, x, kernel) + (0 if bias is None else layer.bias.numpy())
    near(model(x), np.maximum(expected, 0))
    values = [variable.value for variable in layer.trainable_variables]
    shapes = {*shapes_in(jax.make_jaxpr(lambda values, x: layer.stateless_call(values, [], x)[0])(values, x))}
    assert not shapes & {tuple(old), kernel.shape, wide.shape, wide.shape[::-1]}


def test_embeddings_and_dense():
    ids = np.array([[1, 2, 0, 5], [18, 3, 3, 7]])
    inputs = keras.Input((None,), dtype="int32")
    reversible = layers.ReversibleEmbedding(19, 8, logit_soft_cap=5.0, name="words")
    kinds = layers.Embedding(19, 8, mask_zero=True, name="kinds")
    dense = layers.Dense(7, activation="tanh", bias_initializer="normal", name="dense")
    x = reversible(inputs)
    model = keras.Model(inputs, {"words": reversible(x, reverse=True), "kinds": dense(kinds(inputs))})
    mask = np.asarray(kinds.compute_mask(ids))
    records = compress_keras(model, select="(kernel|embedding)$", **CHEAP)
    assert {record.path for record in records} == {"words/embedding", "kinds/embedding", "dense/kernel"}
    assert (type(reversible), type(kinds), type(dense)) == (
        FactoredReversibleEmbedding,
        FactoredEmbedding,
        FactoredDense,
    )
    outputs = model(ids)
    words = product(reversible)
    near(outputs["words"], 5 * np.tanh(words[ids] @ words.T / 5))
    near(outputs["kinds"], np.tanh(product(kinds)[ids] @ product(dense) + dense.bias.numpy()))
    np.testing.assert_array_equal(kinds.compute_mask(ids), mask)
    with pytest.raises(NotImplementedError, match="layer dense is factored"):
        dense.enable_lora(2)


@pytest.fixture(scope="module")
def small() -> Any:
    """A factored classifier, its records, and its logits before and after."""
    pytest.importorskip("keras_hub")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = classifier("Bert")
        inputs = batch("Bert")[0]
        before = np.asarray(model.predict_on_batch(inputs))
        records = compress_keras(model, select=["encoder", "embeddings"], keep=0.6, solver="svd")
        return model, records, before, np.asarray(model.predict_on_batch(inputs))


def test_a_classifier_is_factored_in_place(small):
    """The compiled functions of the dense model are forgotten; logits are lpjax's of the same factors."""
    _, records, before, after = small
    ours = batch("Bert")[1]
    assert [record.path for record in records] == ["token_embedding/embedding"] + [
        f"transformer_layer_0/{name}/kernel"
        for name in (
            *(f"self_attention_layer/{name}" for name in ("query", "key", "value", "attention_output")),
            "feedforward_intermediate_dense",
            "feedforward_output_dense",
        )
    ]
    assert all(record.rank and record.stored_size < record.dense_size for record in records)
    assert not np.allclose(before, after, atol=1e-3)
    dense = classifier("Bert")
    checkpoint = lpjax.keras.from_keras(dense)
    params, _ = lpjax.compress(checkpoint.params, select=["encoder", "embeddings"], keep=0.6, solver="svd")
    near(lpjax.classify(params, checkpoint.config, ours), after)


def test_a_file_goes_round(small, tmp_path):
    model, _, _, after = small
    assert isinstance(model, FactoredModel)
    assert isinstance(model, type(classifier("Bert")))
    model.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras", compile=False)
    assert type(again).__mro__[2] is type(classifier("Bert"))
    assert [variable.path for variable in again.weights] == [variable.path for variable in model.weights]
    np.testing.assert_array_equal(again.predict_on_batch(batch("Bert")[0]), after)
    # Weights alone go into a model that was factored in the same way, and into no other.
    path = tmp_path / "small.weights.h5"
    model.save_weights(path)
    other = classifier("Bert")
    compress_keras(other, select=["encoder", "embeddings"], keep=0.6, solver=first_columns)
    other.load_weights(path)
    np.testing.assert_array_equal(other.predict_on_batch(batch("Bert")[0]), after)
    part = classifier("Bert")
    compress_keras(part, select="feed_forward", **CHEAP)
    with pytest.raises(ValueError, match=r"object|layer|Layer"):
        part.load_weights(path)


def test_a_functional_model_trains_and_goes_round(tmp_path):
    """Also its optimizer; and layers can be made smaller later."""
    inputs = keras.Input((6,))
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(9, activation="relu", name="wide")], name="inner")
    model = scrambled(keras.Model(inputs, layers.Dense(8, name="last")(inner(inputs))))
    x, y = (np.random.default_rng(seed).normal(size=(5, n)).astype(np.float32) for seed, n in ((0, 6), (1, 8)))
    compress_keras(model, select="kernel$", rank=3, solver="svd")
    model.compile(optimizer="adam", loss="mse")
    first = model.train_on_batch(x, y)
    for _ in range(3):
        last = model.train_on_batch(x, y)
    assert last < first
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(x), model(x))
    for after, before in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(after, before)
    whole = product(again.get_layer("last"))
    records = compress_keras(again, select="last/kernel", rank=1, solver="svd")
    assert [record.rank for record in records] == [1]
    u, s, v = np.linalg.svd(whole, full_matrices=False)
    near(product(again.get_layer("last")), u[:, :1] * s[:1] @ v[:1])


def test_what_cannot_be_factored_is_refused():
    class Own(layers.Dense):
        pass

    inputs = keras.Input((6,))
    kernel = {"kernel_regularizer": "l2"}
    chain = [Own(6, name="own"), layers.Dense(6, name="ruled", **kernel), layers.Dense(6, name="lora")]
    chain += [layers.Dense(6, name="plain")]
    model = keras.Sequential([inputs, *chain])
    chain[2].enable_lora(1)
    for name, fault in (
        ("own", "it is a Own"),
        ("ruled", "it has a kernel_regularizer"),
        ("lora", "it has LoRA weights"),
    ):
        with pytest.raises(ValueError, match=f"{name}/kernel .{fault}.; expected those of Dense, EinsumDense"):
            compress_keras(model, select=f"{name}/kernel", **CHEAP)
    with pytest.raises(ValueError, match=r"matches no leaf; nearest: .*plain/kernel"):
        compress_keras(model, select="plane", **CHEAP)
    with pytest.raises(ValueError, match="`sparse_share` is not for Keras models"):
        compress_keras(model, select="plain/kernel", sparse_share=0.2, **CHEAP)
    with pytest.raises(ValueError, match="is not built, so it has no weights"):
        compress_keras(keras.Sequential([layers.Dense(3)]), select="kernel", **CHEAP)
    with pytest.raises(ValueError, match="`model` is a str, expected a keras"):
        compress_keras("model", select="kernel", **CHEAP)
    apart = keras.Input((4, 7))  # a kernel for each position
    stacked = keras.Model(apart, layers.EinsumDense("abc,bcd->abd", (4, 5), name="stacked")(apart))
    with pytest.raises(ValueError, match=r"its equation abc,bcd->abd is not one product"):
        compress_keras(stacked, select="stacked", **CHEAP)
    assert not isinstance(model, FactoredModel)
    assert type(model.get_layer("plain")) is layers.Dense


def test_the_group_of_embeddings_has_distilberts_tokens():
    pytest.importorskip("keras_hub")
    model = classifier("DistilBert")
    records = compress_keras(model, select="embeddings", **CHEAP)
    assert [record.path for record in records] == ["token_and_position_embedding/token_embedding/embedding"]
