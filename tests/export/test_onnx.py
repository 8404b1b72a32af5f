"""ONNX of every model: onnxruntime gives PyTorch's numbers, or lpjax's if weights are compressed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax._tree import replace_leaves
from lpjax.checkpoint import Checkpoint
from lpjax.export import Program, program_of
from lpjax.pipeline import Pooling
from tests.helpers.goldens import CASES, GOLDENS, load_golden
from tests.helpers.nets import base_net
from tests.helpers.programs import FORWARD, KINDS, case_of, counted

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from lpjax.export._onnx import onnx_model  # noqa: E402

BOTH = "xlnet_both_directions"
HEADS = sorted(f"heads/{path.name}" for path in (GOLDENS / "heads").iterdir())


def run(model: Any, batch: dict[str, np.ndarray], **options: Any) -> list[np.ndarray]:
    """Outputs of a model, or of its file."""
    content = model if isinstance(model, str | bytes) else model.SerializeToString()
    session = runtime.InferenceSession(content, **options)
    ids = np.asarray(batch["input_ids"], np.int64)
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    known |= {name: np.asarray(array, np.int64) for name, array in batch.items()}
    return session.run(None, {info.name: known[info.name] for info in session.get_inputs()})


def translated(checkpoint: Checkpoint, **options: Any) -> Any:
    model = onnx_model(program_of(dataclasses.replace(checkpoint, source=None), **options))
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.covering(0)
@pytest.mark.parametrize("name", [name for name in (*CASES, *HEADS) if name != BOTH])
def test_numbers_are_those_of_pytorch(name: str):
    golden = load_golden(name)
    program = program_of(dataclasses.replace(golden.checkpoint, source=None))
    net = golden.checkpoint
    expected = golden.hidden_states if program.outputs == ("last_hidden_state",) else golden.logits
    if expected is None:  # a word head whose logits are not recorded
        expected = np.asarray(lpjax.fill_mask(net.params, net.config, golden.batch))
    outputs = run(translated(net), golden.batch)
    actual = np.stack(outputs, -1) if len(outputs) == 2 else outputs[0]
    np.testing.assert_allclose(counted(golden, actual), counted(golden, expected), atol=1e-5 * np.abs(expected).max())


@pytest.mark.two_models
@pytest.mark.covering(1)
@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("kind", KINDS)
def test_compressed_weights_give_the_numbers_of_lpjax(name: str, kind: str):
    golden, net, expected = case_of(name, kind)
    model = translated(net)
    (actual,) = run(model, golden.batch)
    np.testing.assert_allclose(
        counted(golden, actual), counted(golden, expected), atol=1e-5 * float(np.abs(expected).max())
    )
    # The weights in the file are those in memory, none of them expanded.
    packed = sum(array.nbytes for array in program_of(net).weights.values())
    inside = sum(onnx.numpy_helper.to_array(array).nbytes for array in model.graph.initializer)
    assert inside <= 1.05 * packed + 4096  # constants of the program, such as layouts of bits


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 9), (5, 3)])
def test_any_batch_and_length_run(rows: int, length: int):
    model = translated(base_net("bert_base"))
    net = base_net("bert_base")
    ids = np.random.default_rng(0).integers(1, 20, (rows, length))
    np.testing.assert_allclose(
        run(model, {"input_ids": ids})[0], lpjax.encode(net.params, net.config, {"input_ids": ids}), atol=1e-5
    )


def test_one_array_may_be_both_factors():
    net = base_net("bert_base")
    square = np.eye(net.config.to_json()["hidden_size"], dtype=np.float32)
    path = "encoder/layer/0/attention/self/query/kernel"
    params = replace_leaves(net.params, {path: lpjax.LowRank(square, square)})
    ids = np.array([[1, 2, 3]])
    expected = lpjax.encode(params, net.config, {"input_ids": ids})
    (actual,) = run(translated(dataclasses.replace(net, params=params)), {"input_ids": ids})
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_ids_outside_the_table_and_too_long_texts_are_refused():
    model = translated(base_net("bert_base"))
    for ids in ([[10_000]], [[1] * 600]):
        with pytest.raises(runtime.capi.onnxruntime_pybind11_state.InvalidArgument, match="out of data bounds"):
            run(model, {"input_ids": np.array(ids)})


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_sentence_vectors_are_an_output(mode: str, monkeypatch: pytest.MonkeyPatch):
    golden = load_golden("bert_base")
    stages = (Pooling((mode,)), lpjax.pipeline.Normalize())
    net = dataclasses.replace(golden.checkpoint, source=None)
    pipeline = lpjax.pipeline.SentencePipeline(stages)
    monkeypatch.setattr("lpjax.export.program.read_pipeline", lambda _: pipeline)
    model = onnx_model(program_of(net, pooled=True))
    hidden, vectors = run(model, golden.batch)
    mask = jnp.asarray(golden.batch["attention_mask"]).astype(bool)
    expected = lpjax.pipeline.sentence_vectors(stages, jnp.asarray(hidden), mask)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert vectors.shape == (len(mask), hidden.shape[2])


def test_names_are_those_of_optimum():
    model = translated(load_golden("heads/bert_spans").checkpoint)
    assert [info.name for info in model.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [info.name for info in model.graph.output] == ["start_logits", "end_logits"]
    assert [info.name for info in translated(base_net("roberta_base")).graph.input][:2] == [
        "input_ids",
        "attention_mask",
    ]
    first = model.graph.input[0].type.tensor_type
    assert first.elem_type == onnx.TensorProto.INT64
    assert [dim.dim_param for dim in first.shape.dim] == ["batch", "length"]


def test_weights_beyond_the_limit_of_a_protobuf_go_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lpjax.export._files._LARGEST", 1000)
    net = base_net("bert_base")
    size = lpjax.export_program(net, tmp_path / "out", "onnx")
    folder = tmp_path / "out" / "onnx"
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx_data"]
    assert size == sum(path.stat().st_size for path in folder.iterdir())
    ids = np.array([[1, 2, 3]])
    expected = lpjax.encode(net.params, net.config, {"input_ids": ids})
    np.testing.assert_allclose(run(str(folder / "model.onnx"), {"input_ids": ids})[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x, axis=1), "the primitive `sort` has no rule"),
        (lambda x: jnp.fft.fft(x), "the primitive `fft` has no rule"),
        (lambda x: x >> 1, "shifts of signed numbers"),
        (lambda x: jax.lax.reduce_precision(x / 3, 8, 7), "rounding to fewer bits"),
        (lambda x: jax.lax.reduce_precision(x / 3, 5, 23), "rounding to fewer bits"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(function: Any, message: str):
    program = Program(lambda _, inputs: (function(inputs["input_ids"]),), {}, ("input_ids",), ("out",))
    with pytest.raises(NotImplementedError, match=message):
        onnx_model(program)


OPERATIONS = {
    "arithmetic": lambda x: jnp.sin(x) * jnp.cos(x) - jnp.abs(x) / 3 + x**3 - jnp.sign(x) + jnp.floor(x),
    "near one": lambda x: jnp.log1p(jnp.abs(x)) + jnp.expm1(x / 50) + jnp.exp2(x / 50),
    "all bits kept": lambda x: jax.lax.reduce_precision(x / 3, 8, 23),
    "comparisons": lambda x: jnp.where((x < 3) | (x >= 7) & ~(x == 9), x, -x),
    "bits": lambda x: ((x.astype(jnp.uint32) << 3 | 5) >> 1 & 1023).astype(jnp.float32),
    "shapes": lambda x: jnp.concatenate([x[:, ::-1], jnp.stack([x, 2 * x], 2)[:, :, 1]], axis=1).T.reshape(-1),
    "pads": lambda x: jnp.pad(x, ((1, 2), (0, 3)), constant_values=4),
    "sums": lambda x: jnp.cumsum(x, 1) + x.max(1, keepdims=True) - x.min() + x.sum(0)[None],
    "logic": lambda x: jnp.any(x > 3, 1) & ~jnp.all(x > 5, 1),
    "places": lambda x: jnp.argmax(x, 1) - jnp.argmin(x, 1) + jnp.argmax(x > 5, 1),
    "rows": lambda x: jnp.take_along_axis(x, jnp.argmax(x, 1)[:, None], 1) + x[jnp.array([1, 0])][:, :1].sum(),
    "scatter": lambda x: (
        jnp.zeros((4, 5)).at[jnp.array([0, 3, 9]), jnp.array([1, 4, 2])].add(2.0, mode="drop") + x.sum()
    ),
    "products": lambda x: jnp.einsum("ab,cb->ac", x, x) + jnp.einsum("ab,cb,c->ac", x, x, x[:, 0]),
    "sizes": lambda x: jnp.arange(x.shape[1] * 2, dtype=jnp.float32)[None] + x.sum(1)[:, None] * x.shape[0],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_give_the_numbers_of_jax(name: str):
    program = Program(
        lambda _, inputs: (OPERATIONS[name](inputs["input_ids"].astype(jnp.float32)),), {}, ("input_ids",), ("out",)
    )
    model = onnx_model(program)
    onnx.checker.check_model(model, full_check=True)
    for shape in ((3, 4), (2, 7)):
        ids = np.random.default_rng(0).integers(0, 12, shape)
        (actual,) = run(model, {"input_ids": ids})
        (expected,) = program.function({}, {"input_ids": jnp.asarray(ids)})
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
