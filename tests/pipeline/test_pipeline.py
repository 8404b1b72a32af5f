"""Stages of sentence-transformers by NumPy's definitions, what is read of a folder, and what is refused of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import special

import lpjax
from lpjax.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from lpjax.evaluation.sentences import embed_sentences, fidelity
from lpjax.pipeline import (
    ACTIVATIONS,
    MEAN,
    POOLINGS,
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    Truncate,
    read_pipeline,
    sentence_tokenizer,
    sentence_vectors,
)
from lpjax.pipeline._stages import Constant
from lpjax.pipeline.outputs import Embedding, outputs_of
from tests.conftest import GOLDENS
from tests.helpers.checkpoints import edit_modules

TYPES = "sentence_transformers.models."
SENTENCES = ["a b", "c d e f g h", "", "j"]


def pooled(mode: str, tokens: np.ndarray) -> np.ndarray:
    """The pooled vector of the tokens of one text, without padding, by definition."""
    places = np.arange(1, len(tokens) + 1)[:, None]
    return {
        "cls": lambda: tokens[0],
        "max": lambda: tokens.max(axis=0),
        "mean": lambda: tokens.mean(axis=0),
        "mean_sqrt_len_tokens": lambda: tokens.sum(axis=0) / np.sqrt(len(tokens)),
        "weightedmean": lambda: (tokens * places).sum(axis=0) / places.sum(),
        "lasttoken": lambda: tokens[-1],
    }[mode]()


@pytest.mark.parametrize("left", [False, True])
def test_poolings_by_definition(left: bool):
    """On either side of the padding, and a row without a token is 0, with a finite derivative."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((4, 6, 5)).astype(np.float32)
    lengths = [6, 1, 4, 0]
    mask = np.arange(6) < np.array(lengths)[:, None]
    mask = mask[:, ::-1] if left else mask
    stages = (Pooling(tuple(POOLINGS)),)
    vectors = np.asarray(sentence_vectors(stages, jnp.asarray(hidden), jnp.asarray(mask)))
    for row, length in enumerate(lengths[:-1]):
        expected = np.concatenate([pooled(mode, hidden[row][mask[row]]) for mode in POOLINGS])
        np.testing.assert_allclose(vectors[row], expected, atol=1e-6)
        assert length == mask[row].sum()
    assert not vectors[3].any()
    every = (*stages, Normalize())
    slope = jax.grad(lambda x: jnp.sum(sentence_vectors(every, x, jnp.asarray(mask))))(jnp.asarray(hidden))
    assert np.isfinite(slope).all()
    assert not np.asarray(slope)[~mask].any()


def test_an_mpnet_with_its_own_tokenizer(tmp_path: Path):
    """Laid out as all-mpnet-base-v2: means over the tokens of MPNetTokenizer, scaled to length 1."""
    folder = Path(shutil.copytree(GOLDENS / "mpnet_base", tmp_path / "net"))
    words = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", *"abcdefghijklmnopqrstuvw", "<mask>"]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "MPNetTokenizer", "do_lower_case": true}')
    stages = ["", "1_Pooling", "2_Normalize"]
    entries = [{"path": path, "type": TYPES + (path[2:] or "Transformer")} for path in stages]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    net = load_checkpoint(folder)
    vectors = embed_sentences(net, SENTENCES, batch_size=4).vectors
    for row, sentence in enumerate(SENTENCES):
        ids = [0, *(words.index(word) for word in sentence.split()), 2]
        mean = np.asarray(lpjax.encode(net.params, net.config, {"input_ids": [ids]}), np.float64)[0].mean(axis=0)
        np.testing.assert_allclose(vectors[row], mean / np.linalg.norm(mean), atol=1e-6)
    small = dataclasses.replace(net, params=lpjax.compress(net.params, select="encoder", rank=4, solver="svd").params)
    lpjax.save_checkpoint(small, tmp_path / "small")
    again = load_checkpoint(tmp_path / "small")
    expected = embed_sentences(small, SENTENCES).vectors
    np.testing.assert_array_equal(embed_sentences(again, SENTENCES).vectors, expected)


@pytest.mark.parametrize("left", [False, True])
def test_tokens_of_the_prompt_do_not_count(left: bool):
    rng = np.random.default_rng(1)
    tokens = rng.standard_normal((5, 3)).astype(np.float32)
    padding = np.full((2, 3), 9, np.float32)
    hidden = np.concatenate([padding, tokens] if left else [tokens, padding])[None]
    mask = np.array([[False] * 2 + [True] * 5 if left else [True] * 5 + [False] * 2])
    vectors = sentence_vectors((Pooling(tuple(POOLINGS), skipped=2),), jnp.asarray(hidden), jnp.asarray(mask))
    expected = [pooled(mode, tokens[2:]) for mode in POOLINGS]
    # Weights of places stay those of the whole text.
    expected[4] = (tokens[2:] * [[3], [4], [5]]).sum(axis=0) / 12
    np.testing.assert_allclose(np.asarray(vectors)[0], np.concatenate(expected), atol=1e-6)


def test_layers_by_definition():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 4)).astype(np.float32)
    kernel, residual, bias, scale = (rng.standard_normal(shape) for shape in ((4, 2), (4, 2), 2, 2))
    hidden, mask = jnp.asarray(x[:, None]), jnp.ones((3, 1), bool)
    stages: list[Any] = [Pooling(("cls",)), Dense(Constant(kernel), Constant(bias), "GELU", Constant(residual))]
    inner = x @ kernel + bias
    expected = inner * (1 + special.erf(inner / np.sqrt(2))) / 2 + x @ residual
    np.testing.assert_allclose(sentence_vectors(stages, hidden, mask), expected, atol=1e-5)
    stages.append(LayerNorm(Constant(scale), Constant(bias)))
    centred = expected - expected.mean(axis=1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * scale + bias
    np.testing.assert_allclose(sentence_vectors(stages, hidden, mask), expected, atol=1e-5)
    stages += [Normalize(), Truncate(1)]
    expected = (expected / np.linalg.norm(expected, axis=1, keepdims=True))[:, :1]
    np.testing.assert_allclose(sentence_vectors(stages, hidden, mask), expected, atol=1e-5)
    assert not np.asarray(sentence_vectors((*MEAN, Normalize()), 0 * hidden, mask)).any()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("Tanh", np.tanh),
        ("Sigmoid", special.expit),
        ("ReLU", lambda x: np.maximum(x, 0)),
        ("LeakyReLU", lambda x: np.where(x > 0, x, 0.01 * x)),
        ("ELU", lambda x: np.where(x > 0, x, np.expm1(x))),
        ("SiLU", lambda x: x * special.expit(x)),
        ("Softplus", lambda x: np.log1p(np.exp(x))),
        ("Mish", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
        ("Hardshrink", lambda x: x * (np.abs(x) > 0.5)),
    ],
)
def test_activations_by_definition(name: str, function: Any):
    x = np.linspace(-4, 4, 65, dtype=np.float32)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), function(x.astype(np.float64)), atol=1e-6)


def test_stages_are_compared_by_their_numbers():
    first, same, other = (Dense(Constant(np.full((2, 2), value)), None) for value in (1, 1, 2))
    assert first == same
    assert hash(first) == hash(same)
    assert first != other


def add_stage(folder: Path, kind: str, config: dict[str, Any] | None, tensors: dict[str, np.ndarray] | None = None):
    """Append a stage to a folder."""
    number = len(json.loads((folder / "modules.json").read_text()))
    place = folder / f"{number}_{kind.rpartition('.')[2]}"
    place.mkdir(exist_ok=True)
    if config is not None:
        (place / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        save_file(tensors, place / "model.safetensors")
    edit_modules(
        folder, lambda stages: stages.append({"path": place.name, "type": kind if "." in kind else TYPES + kind})
    )


def write(folder: Path, name: str, data: Any) -> None:
    (folder / name).write_text(json.dumps(data))


DENSE = {"in_features": 24, "out_features": 3, "bias": True, "activation_function": "torch.nn.modules.linear.Identity"}


@pytest.fixture
def encoder(folder: Path) -> Path:
    """cls and mean side by side, a dense layer, the length 1, a prompt, a length: nothing as it is by default."""
    rng = np.random.default_rng(3)
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}
    write(folder / "1_Pooling", "config.json", flags | {"word_embedding_dimension": 12})
    weights = {"linear.weight": rng.standard_normal((3, 24)), "linear.bias": rng.standard_normal(3)}
    add_stage(folder, "Dense", DENSE, {name: x.astype(np.float32) for name, x in weights.items()})
    add_stage(folder, "Dropout", {"dropout": 0.5})
    add_stage(folder, "Normalize", None)
    main = {"prompts": {"ask": "a b ", "say": "c "}, "default_prompt_name": "ask", "similarity_fn_name": "cosine"}
    write(folder, "config_sentence_transformers.json", main)
    write(folder, "sentence_bert_config.json", {"max_seq_length": 7, "do_lower_case": True})
    return folder


def by_hand(net: Checkpoint, sentences: list[str]) -> np.ndarray:
    """The vectors of `encoder`, one text at a time, by NumPy."""
    from safetensors.numpy import load_file

    assert net.source is not None
    weights = load_file(net.source / "2_Dense" / "model.safetensors")
    tokenizer = sentence_tokenizer(net)
    rows = []
    for sentence in sentences:
        ids = np.asarray([tokenizer(sentence, truncation=True, max_length=7)["input_ids"]])
        hidden = np.asarray(lpjax.encode(net.params, net.config, {"input_ids": ids}))[0]
        vector = np.concatenate([hidden[0], hidden.mean(axis=0)]) @ weights["linear.weight"].T + weights["linear.bias"]
        rows.append(vector / np.linalg.norm(vector))
    return np.stack(rows)


def test_folder_is_embedded_as_it_says(encoder: Path):
    net = load_checkpoint(encoder)
    vectors = np.asarray(embed_sentences(net, SENTENCES).vectors)
    np.testing.assert_allclose(vectors, by_hand(net, [f"a b {text}" for text in SENTENCES]), atol=1e-5)
    vectors = embed_sentences(net, SENTENCES, prompt_name="say").vectors
    np.testing.assert_allclose(np.asarray(vectors), by_hand(net, [f"c {text}" for text in SENTENCES]), atol=1e-5)
    vectors = embed_sentences(net, SENTENCES, prompt="").vectors
    np.testing.assert_allclose(np.asarray(vectors), by_hand(net, SENTENCES), atol=1e-5)
    with pytest.raises(ValueError, match="`prompt_name` is 'tell'; expected one of query, document, ask, say"):
        embed_sentences(net, SENTENCES, prompt_name="tell")
    with pytest.raises(ValueError, match="pass one of them"):
        embed_sentences(net, SENTENCES, prompt="a", prompt_name="say")
    assert fidelity(net, net, SENTENCES, prompt_name="say").mean_cosine == pytest.approx(1, abs=1e-6)


def test_what_calibrates_and_recovers_sees_the_same_vectors(encoder: Path):
    """Half the mean squared distance of the vectors, at length 1, is the divergence; calibrate runs their gradient."""
    net = load_checkpoint(encoder)
    params = lpjax.compress(net.params, select=["attention"], rank=3, solver="svd").params
    small = dataclasses.replace(net, params=params)
    vectors = [np.asarray(embed_sentences(checkpoint, SENTENCES).vectors, np.float64) for checkpoint in (net, small)]
    expected = np.mean(np.sum((vectors[0] - vectors[1]) ** 2, axis=1)) / 2
    assert lpjax.Divergence(net, SENTENCES)(params) == pytest.approx(expected, rel=1e-3)
    assert outputs_of(net) == Embedding(read_pipeline(net).stages) != Embedding()
    tokens = lpjax.calibrate(net, SENTENCES, select="attention").tokens
    tokenizer = sentence_tokenizer(net)
    assert tokens == sum(
        len(tokenizer(f"a b {text}", truncation=True, max_length=7)["input_ids"]) for text in SENTENCES
    )
    plain = dataclasses.replace(small, source=encoder / "1_Pooling")
    with pytest.raises(ValueError, match="embed a text differently"):
        lpjax.recover(plain, net, SENTENCES)


def test_gradient_of_the_embedding_is_that_of_its_vectors(encoder: Path):
    """Against finite differences, of a dense layer after two poolings."""
    checkpoint = load_checkpoint(encoder)
    kind = outputs_of(checkpoint)
    rng = np.random.default_rng(4)
    hidden, along = (rng.standard_normal((2, 3, 12)).astype(np.float32) for _ in range(2))
    inputs = {"attention_mask": jnp.asarray([[1, 1, 1], [1, 1, 0]])}

    def total(x: Any) -> Any:
        return jnp.sum(kind.outputs(None, checkpoint.config, x, inputs) * jnp.arange(3.0)[None])

    slope = np.sum(np.asarray(jax.grad(total)(jnp.asarray(hidden))) * along)
    step = 1e-2
    ahead, behind = (float(total(jnp.asarray(hidden + sign * step * along))) for sign in (1, -1))
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=2e-2, abs=1e-4)


def test_prompt_that_is_not_pooled(encoder: Path):
    write(encoder / "1_Pooling", "config.json", {"pooling_mode": "lasttoken", "include_prompt": False})
    edit_modules(encoder, lambda stages: stages.__delitem__(slice(2, None)))
    net = load_checkpoint(encoder)
    assert read_pipeline(net).stages == (Pooling(("lasttoken",), include_prompt=False),)
    write(encoder / "1_Pooling", "config.json", {"pooling_mode": ["mean"], "include_prompt": False})
    tokenizer = sentence_tokenizer(net)
    ids = np.asarray([tokenizer("a b c d")["input_ids"]])
    hidden = np.asarray(lpjax.encode(net.params, net.config, {"input_ids": ids}))[0]
    vector = np.asarray(embed_sentences(net, ["c d"]).vectors)[0]
    np.testing.assert_allclose(vector, hidden[3:].mean(axis=0), atol=1e-5)  # without [CLS], a, b


def test_folder_without_modules_and_net_without_folder_are_averaged(encoder: Path):
    net = load_checkpoint(encoder)
    (encoder / "modules.json").unlink()
    assert read_pipeline(net).stages == MEAN
    assert read_pipeline(net).text.max_length is None
    assert read_pipeline(dataclasses.replace(net, source=None)).stages == MEAN
    with pytest.raises(FileNotFoundError, match="no longer exists, and it says how to embed"):
        read_pipeline(dataclasses.replace(net, source=encoder / "gone"))


def change_main(**keys: Any) -> Any:
    return lambda folder: write(folder, "config_sentence_transformers.json", keys)


def change_bert(**keys: Any) -> Any:
    return lambda folder: write(folder, "sentence_bert_config.json", keys)


def change_pooling(**keys: Any) -> Any:
    return lambda folder: write(folder / "1_Pooling", "config.json", keys)


def change_dense(**keys: Any) -> Any:
    return lambda folder: write(folder / "2_Dense", "config.json", DENSE | keys)


def change_type(number: int, kind: str) -> Any:
    return lambda folder: edit_modules(folder, lambda stages: stages[number].update(type=kind))


def pickled(folder: Path) -> None:
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")


REFUSED = {
    "stage": (
        change_type(1, f"{TYPES}WordWeights"),
        "the stage 1_Pooling is a sentence_transformers.models.WordWeights",
    ),
    "code of the folder": (change_type(2, "my_dense.Dense"), "the stage 2_Dense is a my_dense.Dense"),
    "first stage": (change_type(0, "my_net.Net"), "begins with a my_net.Net"),
    "no pooling": (
        lambda folder: edit_modules(folder, lambda stages: stages.__delitem__(slice(1, 2))),
        "no stage before",
    ),
    "nothing but the model": (
        lambda folder: edit_modules(folder, lambda stages: stages.__delitem__(slice(1, None))),
        "no st",
    ),
    "pooling mode": (change_pooling(pooling_mode="attention"), "the pooling 'attention' is not one of cls, max"),
    "pooling flag": (change_pooling(pooling_mode_median_tokens=True), "'pooling_mode_median_tokens' is not one of"),
    "pooling's config": (lambda folder: (folder / "1_Pooling" / "config.json").unlink(), "which says how to pool"),
    "activation": (change_dense(activation_function="my.Swish"), "activation_function is 'my.Swish', expected one of"),
    "activation of torch": (
        change_dense(activation_function="torch.nn.modules.activation.Softmax"),
        "is 'torch.nn.mod",
    ),
    "pickle": (pickled, "only in pytorch_model.bin, a pickle, which may run code"),
    "sizes": (change_dense(out_features=4), r"it holds linear.bias \[3\], linear.weight \[3, 24\]; expected"),
    "width": (change_dense(in_features=12), "in_features is 12, but the stage before gives 24"),
    "feature": (change_dense(module_output_name="other"), "makes other of sentence_embedding"),
    "kind of model": (change_main(model_type="SparseEncoder"), "the model is a SparseEncoder"),
    "default prompt": (change_main(default_prompt_name="ask"), "default_prompt_name is 'ask', and there is no such"),
    "prompts": (change_main(prompts={"a": 3}), "the prompt a is not text"),
    "task": (change_bert(transformer_task="fill-mask"), "transformer_task is fill-mask"),
    "tokenizer": (change_bert(tokenizer_name_or_path="owner/name"), "names another tokenizer"),
    "config": (change_bert(config_args={"num_hidden_layers": 1}), "num_hidden_layers changes the config"),
    "tokenizer's arguments": (
        change_bert(tokenizer_args={"add_prefix_space": True}),
        "add_prefix_space is not supported; lpjax can",
    ),
    "length": (change_bert(max_seq_length=2), "max_seq_length is 2"),
    "modality": (change_bert(modality_config={"message": {}}), "more than last hidden states"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name_and_goes_along(name: str, encoder: Path, tmp_path: Path):
    change, message = REFUSED[name]
    change(encoder)
    net = load_checkpoint(encoder)
    with pytest.raises(CheckpointError, match=message) as caught:
        embed_sentences(net, SENTENCES)
    assert str(encoder) in str(caught.value)
    lpjax.save_checkpoint(net, tmp_path / "saved")
    before, after = (
        {path.relative_to(root) for path in root.glob("[1-9]*/*")} for root in (encoder, tmp_path / "saved")
    )
    listed = {entry["path"] for entry in json.loads((encoder / "modules.json").read_text())}
    assert after == {path for path in before if str(path.parent) in listed}
