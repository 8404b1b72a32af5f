"""Names before and beside the model's own: prefixes of wrappers, tensors of the user's, and what is refused."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpjax._tree import walk
from lpjax.checkpoint import CheckpointError, export_checkpoint, load_checkpoint, save_checkpoint
from lpjax.checkpoint.safetensors import read_tensors, write_tensors
from tests.checkpoint.hostile_files import packed
from tests.conftest import GOLDENS, Command, Edit
from tests.helpers.checkpoints import assert_same, factor_all, flax_restore

BESIDE = {
    "loss_fct.weight": np.array([0.5, np.nan, np.inf], np.float32),
    "crf.transitions": np.arange(9, dtype=np.float64).reshape(3, 3),
    "linear.weight": np.ones((16, 12), ml_dtypes.bfloat16),
    "classifier2.weight": np.ones((3, 12), np.float32),
    "queue_ptr": np.array(7),
    "hashes": np.array([2**63 + 1, 3], np.uint64),
    "seen": np.array([True, False]),
    "empty.codes": np.zeros((0, 5), np.uint8),
}


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in read_tensors(path)[0].items()}
    path.unlink()
    write_tensors(path, change(tensors).items())
    return target


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "lpjax"]


def assert_bits(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape)
        assert np.asarray(actual[name]).tobytes() == array.tobytes()


# --- what a wrapper puts before the names

PREFIXES = (
    "_orig_mod.",
    "module.",
    "module._orig_mod.",
    "model.",
    "0.auto_model.",
    "transformer.",
    "bert.bert.",
    "a.b.c.",
)


@pytest.mark.parametrize("name", ["bert_base", "bert_classifier", "xlnet_classifier"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_that_all_names_share(name: str, prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    if name.startswith("xlnet") and prefix == "transformer.":
        prefix = "transformer.net."
    expected = load_checkpoint(GOLDENS / name)
    source = rewritten(GOLDENS / name, tmp_path / "net", lambda t: {prefix + key: value for key, value in t.items()})
    assert messages(caplog) == []
    loaded = load_checkpoint(source)
    base = next(iter(loaded.params)) if name == "bert_base" and "embeddings" not in loaded.params else None
    assert_same(loaded.params if base is None else loaded.params[base], expected.params)
    assert loaded.extra == {}
    (line,) = messages(caplog)
    assert line.startswith(f"{source / 'model.safetensors'}: names begin with ")
    assert line.endswith(", which is left out")
    # What is saved has clean names.
    save_checkpoint(loaded, tmp_path / "saved")
    with_base = {key for key in load_file(tmp_path / "saved" / "model.safetensors") if key.startswith("bert.")}
    names = {key.removeprefix("bert.") for key in load_file(tmp_path / "saved" / "model.safetensors")}
    assert names == {key.removeprefix("bert.") for key in load_file(GOLDENS / name / "model.safetensors")}
    assert bool(with_base) == (base == "bert" or name == "bert_classifier")


def test_wrappers_of_single_layers(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def wrap(tensors: dict[str, Any]) -> dict[str, Any]:
        return {re.sub(r"(layer\.\d)", r"\1._orig_mod", key): value for key, value in tensors.items()}

    loaded = load_checkpoint(rewritten(GOLDENS / "bert_base", tmp_path / "net", wrap))
    assert_same(loaded.params, load_checkpoint(GOLDENS / "bert_base").params)
    assert "_orig_mod." in messages(caplog)[0]


@pytest.mark.parametrize("outer", ["params", "model", "module/net"])
def test_a_flax_tree_inside_another(outer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    expected = load_checkpoint(GOLDENS / "bert_classifier").params
    folder = tmp_path / "net"
    folder.mkdir()
    shutil.copyfile(GOLDENS / "bert_classifier" / "config.json", folder / "config.json")
    leaves = {f"{outer}/{path}": leaf for path, leaf in walk(expected)} | {f"{outer}/crf/transitions": np.eye(3)}
    (folder / "flax_model.msgpack").write_bytes(packed(leaves))
    loaded = load_checkpoint(folder)
    assert_same(loaded.params, expected)
    assert_bits(loaded.extra, {"crf.transitions": np.eye(3)})
    assert [line.partition(": ")[2].split()[0] for line in messages(caplog)] == ["names", "kept"]


def test_every_part_of_a_prefix_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def wrap(tensors: dict[str, Any]) -> dict[str, Any]:
        return {f"_orig_mod.module.{key}": value for key, value in tensors.items()}

    load_checkpoint(rewritten(GOLDENS / "bert_base", tmp_path / "net", wrap))
    assert messages(caplog)[0].endswith(": names begin with _orig_mod.module., which is left out")


@pytest.mark.parametrize(
    ("name", "before", "run"), [("bert_base", "roberta.", "bert"), ("roberta_base", "bert.", "roberta")]
)
def test_a_prefix_of_another_kind_of_net_is_doubted(
    name: str, before: str, run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Weights of a RoBERTa run as a BERT have the wrong positions, if it is config.json that is wrong."""
    load_checkpoint(rewritten(GOLDENS / name, tmp_path / "net", lambda t: {before + key: x for key, x in t.items()}))
    assert messages(caplog)[0].endswith(f"{before} (but config.json says that the model is {run}), which is left out")


def test_an_adapter_beside_a_net_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    shutil.copytree(GOLDENS / "bert_base", tmp_path / "net")
    (tmp_path / "net" / "adapter_config.json").write_text("{}")
    load_checkpoint(tmp_path / "net")
    (line,) = messages(caplog)
    assert "adapter_config.json belongs to an adapter, which is not applied; if model.safetensors is not" in line


@pytest.mark.parametrize("wrapper", ["", "_orig_mod."])
def test_a_head_outside_the_wrapper_is_told(wrapper: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A module of the user's own, whose head may read something else than the model's."""

    def wrap(tensors: dict[str, Any], inputs: int = 12) -> dict[str, Any]:
        own = {"classifier.weight": np.ones((3, inputs), np.float32), "classifier.bias": np.ones(3, np.float32)}
        return {f"{wrapper}{key}": x for key, x in ({f"encoder.{key}": x for key, x in tensors.items()} | own).items()}

    loaded = load_checkpoint(rewritten(GOLDENS / "bert_base", tmp_path / "net", wrap))
    assert loaded.params.keys() == {"bert", "classifier"}
    warning = f": taken for a head of the model, though outside {wrapper}encoder.: classifier.weight, classifier.bias"
    assert messages(caplog)[1].endswith(warning)
    source = rewritten(GOLDENS / "bert_base", tmp_path / "other", lambda tensors: wrap(tensors, 24))
    with pytest.raises(
        CheckpointError, match=r"though outside `(_orig_mod\.)?encoder\.`: classifier\.weight, classifier"
    ):
        load_checkpoint(source)


def test_a_prefix_of_the_net_alone_and_tensors_besides(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """As Lightning saves: the model under `model.`, the loss beside it."""
    source = rewritten(
        GOLDENS / "bert_classifier",
        tmp_path / "net",
        lambda t: {f"model.{key}": value for key, value in t.items()} | {"criterion.weight": np.ones(3)},
    )
    loaded = load_checkpoint(source)
    assert_same(loaded.params, load_checkpoint(GOLDENS / "bert_classifier").params)
    assert loaded.extra.keys() == {"criterion.weight"}
    assert len(messages(caplog)) == 2


@pytest.mark.parametrize("alike", [True, False])
def test_two_nets_in_one_file_are_refused(alike: bool, tmp_path: Path):
    """Though one of them has a pooler and the other has not."""

    def twice(tensors: dict[str, Any]) -> dict[str, Any]:
        both = {f"{side}.{key}": value for side in ("query", "document") for key, value in tensors.items()}
        return {key: value for key, value in both.items() if alike or not key.startswith("document.pooler")}

    with pytest.raises(CheckpointError, match=r"holds several models, under `query.`, `document.`; expected one"):
        load_checkpoint(rewritten(GOLDENS / "bert_base", tmp_path / "net", twice))


def test_a_whole_net_comes_before_one_with_a_prefix(tmp_path: Path):
    """A teacher beside the model, which has a pooler, and the model has none."""
    source = rewritten(
        GOLDENS / "bert_base",
        tmp_path / "net",
        lambda t: (
            {f"teacher.{key}": value for key, value in t.items()}
            | {key: 2 * value for key, value in t.items() if not key.startswith("pooler")}
        ),
    )
    loaded = load_checkpoint(source)
    table = load_checkpoint(GOLDENS / "bert_base").params["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_array_equal(loaded.params["embeddings"]["word_embeddings"]["embedding"], 2 * table)
    assert len(loaded.extra) == 39
    assert "teacher.pooler.dense.bias" in loaded.extra


def test_what_does_not_fit_without_the_prefix_is_told_once(tmp_path: Path):
    def damage(tensors: dict[str, Any]) -> dict[str, Any]:
        del tensors["bert.encoder.layer.0.output.dense.bias"]
        return {f"module.{key}": value for key, value in tensors.items()}

    source = rewritten(GOLDENS / "bert_classifier", tmp_path / "net", damage)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(source)
    assert str(caught.value).splitlines()[1:] == [
        "  missing (1): encoder.layer.0.output.dense.bias",
        "  names are compared without `module.`, which they begin with",
    ]


def test_long_lists_of_misfits_are_cut(tmp_path: Path):
    source = rewritten(
        GOLDENS / "bert_base", tmp_path / "net", lambda t: {f"x{i}": v for i, v in enumerate(t.values())}
    )
    with pytest.raises(
        CheckpointError, match=r"missing \(37\): (\S+, ){9}\S+ and 27 more\n  unknown \(\d+\): x0"
    ) as caught:
        load_checkpoint(source)
    assert "no tensor name in the file belongs to this kind of model" in str(caught.value)
    assert len(str(caught.value)) < 1500


# --- what lies beside the model


@pytest.fixture
def beside(folder: Path, edit_weights: Edit) -> Path:
    path = folder / "model.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in read_tensors(path)[0].items()}
    path.unlink()
    write_tensors(path, (tensors | BESIDE).items())
    return folder


def test_tensors_beside_the_net_are_kept_and_told(beside: Path, caplog: pytest.LogCaptureFixture):
    loaded = load_checkpoint(beside)
    assert_same(loaded.params, load_checkpoint(GOLDENS / "bert_base").params)
    assert_bits(loaded.extra, BESIDE)
    (line,) = messages(caplog)
    assert line.startswith(f"{beside / 'model.safetensors'}: kept beside the model, and written back as they are: ")
    assert all(name in line for name in BESIDE)


@pytest.mark.parametrize("factored", [False, True])
def test_they_are_written_back_bit_for_bit(beside: Path, tmp_path: Path, factored: bool):
    loaded = load_checkpoint(beside)
    if factored:
        params = factor_all(loaded.params)
        loaded = dataclasses.replace(loaded, params=params, compression={"method": "svd"})
    save_checkpoint(loaded, tmp_path / "saved")
    assert_bits(load_checkpoint(tmp_path / "saved").extra, BESIDE)
    assert_same(load_checkpoint(tmp_path / "saved").params, loaded.params)
    if factored:
        save_checkpoint(loaded, tmp_path / "int8", int8=True)
        assert_bits(load_checkpoint(tmp_path / "int8").extra, BESIDE)
    export_checkpoint(loaded, tmp_path / "export")
    written = read_tensors(tmp_path / "export" / "model.safetensors")[0]
    assert_bits({name: written[name] for name in BESIDE}, BESIDE)
    export_checkpoint(loaded, tmp_path / "flax", format="msgpack")
    assert_bits(load_checkpoint(tmp_path / "flax").extra, BESIDE)
    restored = flax_restore((tmp_path / "flax" / "flax_model.msgpack").read_bytes())
    np.testing.assert_array_equal(restored["loss_fct"]["weight"], BESIDE["loss_fct.weight"])


def test_commands_keep_them_and_say_so_in_one_line(beside: Path, tmp_path: Path, command: Command):
    small, smaller, dense = (tmp_path / name for name in ("small", "smaller", "dense-again"))
    for arguments in (
        ("compress", beside, small, "--layers", "encoder", "--keep", "0.4", "--method", "svd"),
        ("quantize", small, smaller),
        ("export", smaller, dense),
    ):
        status, _, err = command(*arguments)
        assert status == 0, err
        assert err.count("note: ") == 1
        assert "kept beside the model" in err
    assert_bits(load_checkpoint(dense).extra, BESIDE)


def test_names_that_cannot_be_written_are_refused(folder: Path, tmp_path: Path):
    loaded = load_checkpoint(folder)
    for extra, format, message in (
        ({"pooler.dense.bias": np.ones(3)}, "safetensors", "holds names of the model's own weights: pooler.dense.bias"),
        ({"loss": [1.0]}, "safetensors", "holds values that are not arrays of a supported dtype: loss"),
        ({"a": np.ones(1), "a.b": np.ones(1)}, "msgpack", "cannot be written as a Flax tree: "),
        ({"pooler.dense.bias.x": np.ones(1)}, "msgpack", "leads through another array"),
        ({"head/scale": np.ones(1)}, "msgpack", "head/scale has a slash or an empty part; "),
        ({"head..scale": np.ones(1)}, "msgpack", "head..scale has a slash or an empty part; "),
    ):
        with pytest.raises(ValueError, match=f"`checkpoint.extra` .*{re.escape(message)}"):
            export_checkpoint(dataclasses.replace(loaded, extra=extra), tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


# --- what is refused: it may be a part of what the model computes

NUMBERS = np.ones((12, 12), np.float32)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("encoder.layer.2.output.dense.weight", "the file has more layers than its config.json says"),
        ("bert.encoder.layer.99.output.dense.weight", "the file has more layers than its config.json says"),
        ("encoder.layers.0.output.dense.weight", ""),
        ("encoder.layer.0.output.dense.wieght", ""),
        ("embeddings.LayerNorm.weights", ""),
        ("encoder.relative_attention_bias.weight", ""),
        ("bert.linear.weight", ""),
        ("clasifier.weight", "clasifier.weight looks like classifier.weight"),
        ("qa_output.weight", "qa_output.weight looks like qa_outputs.weight"),
        ("encoder.layer.0.output.adapters.down.weight", "an adapter or a trained prompt"),
        ("prefix_encoder.embedding.weight", "an adapter or a trained prompt"),
        ("head.lora_A.default.weight", r"an adapter \(LoRA or the like\): merge it"),
        ("encoder.layer.0.output.dense.weight_scale", "quantized weights"),
        ("head.qweight", "quantized weights"),
        ("head.zero_point", "quantized weights"),
        ("encoder.layer.0.output.dense.SCB", "quantized weights"),
        ("head.weight_mask", "weights in parts"),
        ("a" * 300, ""),
        ("odd\x07name", ""),
    ],
)
def test_what_may_be_a_part_of_the_net_is_refused(name: str, hint: str, edit_weights: Edit):
    folder = edit_weights(lambda tensors: tensors.update({name: NUMBERS}))
    with pytest.raises(CheckpointError, match=rf"unknown \(1\): [^\n]+(\n  .*{hint})?") as caught:
        load_checkpoint(folder)
    assert hint == "" or re.search(hint, str(caught.value))


@pytest.mark.parametrize("golden", ["bert_base", "xlnet_classifier"])
def test_no_weight_of_the_net_is_ever_taken_for_one_beside_it(golden: str, tmp_path: Path):
    """Each weight is renamed in turn, and left out with another in its place."""
    whole = {name: np.array(tensor) for name, tensor in load_file(GOLDENS / golden / "model.safetensors").items()}
    folder = tmp_path / golden
    folder.mkdir()
    shutil.copyfile(GOLDENS / golden / "config.json", folder / "config.json")
    for name in whole:
        for other in (f"x{name}", f"old.{name}", name.replace(".weight", ".kernel").replace(".bias", ".b") + "_"):
            save_file(
                {other if key == name else key: value for key, value in whole.items()}, folder / "model.safetensors"
            )
            with pytest.raises(CheckpointError, match=r"missing \(\d+\)"):
                load_checkpoint(folder)


def test_transformers_ignores_what_lies_beside_and_nothing_else(beside: Path, tmp_path: Path):
    pytest.importorskip("torch")
    import transformers

    export_checkpoint(load_checkpoint(beside), tmp_path / "out")
    _, loading_info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert set(loading_info["unexpected_keys"]) == BESIDE.keys()
    assert not loading_info["missing_keys"]
    assert not loading_info["mismatched_keys"]
