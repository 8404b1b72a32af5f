"""Folders of exported programs: what is in them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lpjax
from lpjax._extras import MissingExtra
from lpjax.checkpoint import formats
from lpjax.data.tokenizer import tokenizer_of
from lpjax.evaluation import embed_sentences
from lpjax.export import DENSE, RUNTIMES, TARGETS
from tests.conftest import Command
from tests.helpers.checkpoints import files
from tests.helpers.goldens import load_golden

pytestmark = pytest.mark.filterwarnings("default")


def test_the_command_offers_every_runtime_and_format():
    assert set(TARGETS) == DENSE.keys() | RUNTIMES.keys()
    assert RUNTIMES.keys() == formats.PROGRAM_FILES.keys()
    assert set(DENSE.values()) == formats.FORMATS.keys()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_folder_holds_the_program_and_what_its_users_read(command: Command, folder: Path, tmp_path: Path, runtime: str):
    small, out = tmp_path / "small", tmp_path / "out"
    assert command("compress", folder, small, "--layers", "embeddings,encoder", "--rank", 3)[0] == 0
    status, printed, err = command("export", small, out, "--to", runtime, "--json")
    assert status == 0, err
    result = json.loads(printed)
    names = files(out).keys()
    assert {"config.json", "tokenizer_config.json", "lpjax_export.json"} <= names
    inside = {"onnx": {"onnx/model.onnx"}, "stablehlo": {"stablehlo/program.bin", "stablehlo/weights.safetensors"}}
    assert {name for name in names if name.startswith(f"{runtime}/")} == inside[runtime]
    assert result["bytes_after"] == sum((out / name).stat().st_size for name in inside[runtime])
    assert result["factors"] == json.loads((small / "config.json").read_text())["lpjax"]["ranks"]
    assert not {"lpjax", "auto_map"} & json.loads((out / "config.json").read_text()).keys()
    # --force replaces it, and it is not a checkpoint.
    assert command("export", small, out, "--to", runtime)[0] == 2
    assert command("export", small, out, "--to", runtime, "--force")[0] == 0
    status, _, err = command("inspect", out)
    assert status != 0
    assert "program for another runtime" in " ".join(err.split())


def test_onnx_folder_gives_the_vectors_of_lpjax(command: Command, folder: Path, tmp_path: Path):
    runtime = pytest.importorskip("onnxruntime")
    small, out = tmp_path / "small", tmp_path / "out"
    assert command("compress", folder, small, "--layers", "embeddings,encoder", "--rank", 3)[0] == 0
    assert command("export", small, out, "--to", "onnx", "--pooled")[0] == 0
    session = runtime.InferenceSession(str(out / "onnx" / "model.onnx"))
    assert [info.name for info in session.get_outputs()] == ["last_hidden_state", "sentence_embedding"]
    texts = ["a b c", "c a"]
    net = lpjax.load_checkpoint(small)
    tokens = tokenizer_of(net)(texts, padding=True, return_tensors="np")
    inputs = {info.name: np.asarray(tokens[info.name], np.int64) for info in session.get_inputs()}
    vectors = session.run(["sentence_embedding"], inputs)[0]
    np.testing.assert_allclose(vectors, embed_sentences(net, texts).vectors, atol=1e-5)


def test_sentence_transformers_gives_the_vectors_of_lpjax(command: Command, folder: Path, tmp_path: Path):
    pytest.importorskip("optimum.onnxruntime")
    package = pytest.importorskip("sentence_transformers")
    small, out = tmp_path / "small", tmp_path / "out"
    assert command("compress", folder, small, "--layers", "embeddings,encoder", "--rank", 3)[0] == 0
    assert command("export", small, out, "--to", "onnx")[0] == 0
    model = package.SentenceTransformer(str(out), backend="onnx", model_kwargs={"provider": "CPUExecutionProvider"})
    expected = embed_sentences(lpjax.load_checkpoint(small), ["a b c", "c a"]).vectors
    np.testing.assert_allclose(model.encode(["a b c", "c a"]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "tflite"], "stablehlo"),
        (["--pooled"], "--pooled is for programs; expected --to onnx or stablehlo"),
    ],
)
def test_misuse_is_exit_2(command: Command, folder: Path, tmp_path: Path, arguments: list[str], message: str):
    status, _, err = command("export", folder, tmp_path / "out", *arguments)
    assert status == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_heads_have_no_vectors(tmp_path: Path):
    with pytest.raises(ValueError, match="`pooled` is for encoders of sentences, but this model has a head"):
        lpjax.export_program(load_golden("bert_classifier").checkpoint, tmp_path / "out", "onnx", pooled=True)
    with pytest.raises(ValueError, match=r"reads half of each batch backwards \(`bi_data`\)"):
        lpjax.export_program(load_golden("xlnet_both_directions").checkpoint, tmp_path / "out", "onnx")
    with pytest.raises(ValueError, match=r"`runtime` is 'onx'; .* did you mean onnx\?"):
        lpjax.export_program(load_golden("bert_base").checkpoint, tmp_path / "out", "onx")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path):
    net, out = load_golden("bert_base").checkpoint, tmp_path / "project"
    (out / "onnx").mkdir(parents=True)
    (out / "config.json").write_text("{}")
    (out / "source.py").write_text("work")
    with pytest.raises(FileExistsError, match="is not empty and not a checkpoint"):
        lpjax.export_program(net, out, "onnx", overwrite=True)
    assert (out / "source.py").read_text() == "work"


def test_a_stage_in_the_place_of_the_program_is_refused(folder: Path, tmp_path: Path):
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "onnx").mkdir(exist_ok=True)
    (folder / "onnx" / "model.onnx").write_bytes(b"of a stage")
    (folder / "onnx" / "config.json").write_text("{}")
    kind = "sentence_transformers.models.Normalize"
    (folder / "modules.json").write_text(json.dumps([*modules, {"path": "onnx", "type": kind}]))
    with pytest.raises(ValueError, match="a stage of the folder is in onnx"):
        lpjax.export_program(lpjax.load_checkpoint(folder), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_prompts_that_the_pooling_leaves_out_are_refused(folder: Path, tmp_path: Path):
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"include_prompt": False}))
    main = folder / "config_sentence_transformers.json"
    main.write_text(json.dumps({"prompts": {"query": "a b "}, "default_prompt_name": "query"}))
    with pytest.raises(ValueError, match="pooling leaves out the tokens of prompts"):
        lpjax.export_program(lpjax.load_checkpoint(folder), tmp_path / "out", "onnx", pooled=True)
    lpjax.export_program(lpjax.load_checkpoint(folder), tmp_path / "out", "onnx")


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lpjax._extras._is_installed", lambda module: module != "onnx")
    with pytest.raises(MissingExtra, match=r"needs onnx: pip install 'lpjax\[onnx\]'"):
        lpjax.export_program(load_golden("bert_base").checkpoint, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.iterdir())
