"""What a compressed folder holds for PyTorch: its own code, and `auto_map` in config.json. Needs no PyTorch."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import lpjax
from lpjax import export_checkpoint, load_checkpoint, save_checkpoint
from lpjax.checkpoint._torch import TORCH_FILES, torch_texts
from tests.conftest import GOLDENS, Command
from tests.helpers.checkpoints import assert_same, files
from tests.helpers.goldens import load_golden
from tests.helpers.kinds import KINDS, in_kind, saved_in_kind

HEADS = {
    "bert_base": "",
    "bert_classifier": "ForSequenceClassification",
    "bert_pretraining": "ForMaskedLM",
    "distilbert_classifier": "ForSequenceClassification",
    "heads/bert_untied_words": "ForMaskedLM",
    "heads/roberta_tokens": "ForTokenClassification",
    "heads/xlnet_spans": "ForQuestionAnswering",
    "xlnet_base": "",
    "mpnet_base": "",
    "electra_pretraining": "",
    "heads/electra_words": "ForMaskedLM",
}


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_compressed_folder_has_the_files_and_names_them(kind: str, tmp_path: Path):
    folder = saved_in_kind(load_checkpoint(GOLDENS / "bert_base"), kind, tmp_path / "small")
    assert {name: (folder / name).read_text(encoding="utf-8") for name in TORCH_FILES} == torch_texts()
    assert config_of(folder)["auto_map"] == {"AutoModel": "modeling_lpjax.LpjaxModel"}


@pytest.mark.parametrize("name", HEADS)
def test_auto_map_names_the_class_of_the_head(name: str, tmp_path: Path):
    kinds = dict.fromkeys(["", HEADS[name]])
    folder = saved_in_kind(load_golden(name).checkpoint, "factored", tmp_path / "small")
    assert config_of(folder)["auto_map"] == {f"AutoModel{kind}": f"modeling_lpjax.LpjaxModel{kind}" for kind in kinds}


def test_a_head_that_is_not_there_is_not_named(tmp_path: Path):
    net = load_golden("bert_classifier").checkpoint
    net = dataclasses.replace(net, params=net.params["bert"])
    assert config_of(saved_in_kind(net, "factored", tmp_path / "small"))["auto_map"].keys() == {"AutoModel"}


def test_lpjax_loads_the_folder_and_saves_the_same(tmp_path: Path):
    net = in_kind(load_checkpoint(GOLDENS / "bert_base"), "groups")
    save_checkpoint(net, tmp_path / "small")
    again = load_checkpoint(tmp_path / "small")
    assert_same(again.params, net.params)
    save_checkpoint(again, tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "small")


@pytest.mark.parametrize("write", [export_checkpoint, save_checkpoint])
def test_dense_folders_have_none(write, tmp_path: Path):
    dense = load_checkpoint(GOLDENS / "bert_base")
    small = load_checkpoint(saved_in_kind(dense, "factored", tmp_path / "small"))
    if write is save_checkpoint:
        small = dataclasses.replace(small, params=dense.params)
    write(small, tmp_path / "exported")
    assert not TORCH_FILES & files(tmp_path / "exported").keys()
    assert "auto_map" not in config_of(tmp_path / "exported")


def test_dense_folders_of_the_command_have_none(folder: Path, tmp_path: Path, command: Command):
    small = saved_in_kind(load_checkpoint(folder), "factored", tmp_path / "small")
    assert command("export", small, tmp_path / "exported")[0] == 0
    assert not TORCH_FILES & files(tmp_path / "exported").keys()
    assert "auto_map" not in config_of(tmp_path / "exported")


def test_code_of_others_is_not_named_beside_compressed_weights(tmp_path: Path):
    """Its files are not copied, and who trusts the folder trusts lpjax alone; a dense folder keeps the entry."""
    net = load_checkpoint(GOLDENS / "bert_base")
    other = {"AutoModelForSequenceClassification": "theirs.Classifier"}
    net = dataclasses.replace(net, config_json={**(net.config_json or {}), "auto_map": other})
    folder = saved_in_kind(net, "factored", tmp_path / "small")
    assert config_of(folder)["auto_map"] == {"AutoModel": "modeling_lpjax.LpjaxModel"}
    export_checkpoint(net, tmp_path / "exported")
    assert config_of(tmp_path / "exported")["auto_map"] == other


def test_code_in_the_source_does_not_replace_the_files(folder: Path, tmp_path: Path):
    """A folder with a stage of its own code has all of its code copied, except what lpjax writes anew."""
    stages = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*stages, {"path": "", "type": "theirs.Stage"}]))
    for name in ("theirs.py", *TORCH_FILES):
        (folder / name).write_text("old = True\n")
    net = load_checkpoint(folder)
    small = saved_in_kind(net, "factored", tmp_path / "small")
    assert (small / "theirs.py").read_text() == "old = True\n"
    assert {name: (small / name).read_text(encoding="utf-8") for name in TORCH_FILES} == torch_texts()
    export_checkpoint(net, tmp_path / "exported")
    assert not TORCH_FILES & files(tmp_path / "exported").keys()


def test_records_do_not_replace_the_files(folder: Path, tmp_path: Path):
    from lpjax.checkpoint.targets import check_replaceable

    small = saved_in_kind(load_checkpoint(folder), "factored", tmp_path / "small")
    for name in TORCH_FILES:
        with pytest.raises(FileExistsError, match="is the name of a file of the checkpoint"):
            check_replaceable(small / name, "plan")


def test_the_files_are_short_and_need_no_jax():
    """So that a user can read them before trusting them."""
    lines = {name: len(text.splitlines()) for name, text in torch_texts().items()}
    assert lines["modeling_lpjax.py"] <= 150
    assert lines["lpjax_weights.py"] <= 225
    assert lines["lpjax_codes.py"] <= 400
    allowed = {"torch", "transformers", "safetensors", "numpy", *(name.removesuffix(".py") for name in TORCH_FILES)}
    for name, text in torch_texts().items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {module.split(".")[0] for module in names} <= allowed | sys.stdlib_module_names, name
        assert "pickle" not in text


def test_the_first_file_names_the_others():
    """transformers 4 copies what the file that `auto_map` names imports, and no more, to where it runs it."""
    named = re.findall(r"^ *from \.(\w+) import", torch_texts()["modeling_lpjax.py"], re.MULTILINE)
    assert {f"{name}.py" for name in named} == TORCH_FILES - {"modeling_lpjax.py"}


def test_the_decoder_that_is_shipped_decodes(tmp_path: Path):
    """The text of lpjax_codes.py alone, run as a module."""
    from lpjax.weights.entropy import encode_codes

    module: dict = {"__name__": "lpjax_codes"}
    path = tmp_path / "lpjax_codes.py"
    path.write_text(torch_texts()[path.name], encoding="utf-8")
    sys.path.insert(0, str(tmp_path))
    try:
        exec("from lpjax_codes import decode_codes, pack_codes", module)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("lpjax_codes", None)
    rng = np.random.default_rng(0)
    for lines, length, spread in ((1, 1, 1), (3, 700, 0.1), (64, 33, 3), (11, 5, 4000)):
        codes = np.round(rng.laplace(size=(lines, length)) * spread).clip(-32768, 32767).astype(int)
        np.testing.assert_array_equal(module["decode_codes"](encode_codes(codes)), codes)
        quantized = lpjax.Quantized.from_codes(codes, np.ones((lines, 1)), axis=1)
        packed, runs, _ = module["pack_codes"](codes)
        assert runs == quantized.runs
        assert [run.tobytes() for run in packed] == [np.asarray(run).tobytes() for run in quantized.codes]


def test_the_package_holds_the_files():
    """The wheel is made of all files in lpjax/ (hatchling)."""
    root = Path(lpjax.__path__[0])
    build = tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build == {"packages": ["lpjax"]}
    assert sorted(path.name for path in (root / "checkpoint" / "torch").glob("*.py")) == [
        "lpjax_weights.py",
        "modeling_lpjax.py",
    ]
