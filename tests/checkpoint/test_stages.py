"""Folders of sentence-transformers: where the model is, what goes along, and which file the weights are in."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from lpjax.checkpoint import CheckpointError, export_checkpoint, load_checkpoint, lowrank_ranks, save_checkpoint
from lpjax.checkpoint._torch import TORCH_FILES
from lpjax.checkpoint.source import weight_bytes
from lpjax.checkpoint.stages import net_folder, read_stages
from lpjax.data.tokenizer import load_tokenizer
from tests.conftest import Command
from tests.helpers.checkpoints import assert_same, edit_modules, factor_all, files

TYPES = "sentence_transformers.models."


@pytest.fixture
def old(folder: Path) -> Path:
    """The same encoder in the layout of sentence-transformers before 2.0: the model in 0_Transformer."""
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
        (folder / name).rename(inner / name)
    (inner / "sentence_bert_config.json").write_text('{"max_seq_length": 7, "do_lower_case": false}')
    (folder / "config.json").write_text('{"__version__": "0.4.1"}')
    (folder / "vocab.txt").write_text("of\nanother\nnet\n")
    (folder / "LICENSE").write_text("terms")
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"q": "ask: "}}')
    edit_modules(folder, lambda stages: stages[0].update(path="0_Transformer", idx=0, name="0"))
    return folder


def test_net_in_0_transformer_is_read_and_saved_in_the_root(old: Path, tmp_path: Path):
    net = load_checkpoint(old)
    assert net.source == old
    assert weight_bytes(old) == (old / "0_Transformer" / "model.safetensors").stat().st_size
    assert len(load_tokenizer(old)) == 25
    for write in (save_checkpoint, export_checkpoint):
        out = tmp_path / write.__name__
        assert write(net, out) == weight_bytes(out) == (out / "model.safetensors").stat().st_size
        assert_same(load_checkpoint(out).params, net.params)
        contents = files(out)
        assert contents.keys() == {
            *("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "sentence_bert_config.json"),
            *("modules.json", "1_Pooling/config.json", "1_Pooling/pytorch_model.bin", "LICENSE"),
            *("config_sentence_transformers.json", "README.md"),
        }
        assert contents["vocab.txt"] == (old / "0_Transformer" / "vocab.txt").read_bytes()
        first, second = json.loads(contents["modules.json"])
        assert first == {"idx": 0, "name": "0", "path": "", "type": f"{TYPES}Transformer"}
        assert second["path"] == "1_Pooling"
        # Once more: nothing is left of the old layout.
        write(load_checkpoint(out), tmp_path / f"{write.__name__} again")
        assert files(tmp_path / f"{write.__name__} again") == contents


def test_commands_follow_the_net(old: Path, tmp_path: Path, command: Command):
    assert command("inspect", old)[0] == 0
    small = tmp_path / "small"
    status, _, err = command("compress", old, small, "--layers", "embeddings", "--keep", 0.5, "--method", "svd")
    assert status == 0, err
    assert (small / "lpjax.safetensors").exists()
    status, _, err = command("report", small, "--baseline", old, "--out", tmp_path / "page.html")
    assert status == 0, err
    assert command("export", small, tmp_path / "whole")[0] == 0
    kept = files(small).keys() - {"lpjax.safetensors", "lpjax_record.json", *TORCH_FILES}
    assert files(tmp_path / "whole").keys() == kept | {"model.safetensors", "lpjax_export.json"}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"path": "../dense"}], r"`path` is '../dense', expected a folder inside"),
        ([{"path": "a/../../b"}], "expected a folder inside"),
        ([{"path": "/etc"}], "expected a folder inside"),
        ([{"path": "..\\up"}], "expected a folder inside"),
        ([{"path": "C:net"}], "expected a folder inside"),
        ([{"path": "a\0b"}], "expected a folder inside"),
        ([{"path": ""}, {"path": "/etc"}], "expected a folder inside"),
        ([{"path": "nowhere"}], "says that the model is in nowhere, which is not a folder"),
        ([{"path": 3}], "is missing, or is not a string"),
        ([{}], "is missing, or is not a string"),
        ([3], "does not hold a list of stages"),
        ([], "does not hold a list of stages"),
        ({}, "does not hold a list of stages"),
        ([{"path": "onnx", "type": f"{TYPES}StaticEmbedding"}], "begins with a .*StaticEmbedding, expected a Tra"),
    ],
)
def test_modules_that_lead_astray_are_refused(stages: Any, message: str, folder: Path):
    (folder / "modules.json").write_text(json.dumps(stages))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(folder)
    assert "modules.json" in str(caught.value)


def test_stages_are_those_of_modules_json(folder: Path):
    assert [stage.path for stage in read_stages(folder)] == ["", "1_Pooling"]
    edit_modules(folder, lambda stages: stages[0].update(path="./"))
    assert net_folder(folder) == folder
    (folder / "modules.json").unlink()
    assert read_stages(folder) == ()
    assert net_folder(folder) == folder


def test_code_of_a_folder_goes_along_if_a_stage_is_made_of_it(folder: Path, tmp_path: Path):
    (folder / "my_pooling.py").write_text("raise SystemExit")
    save_checkpoint(load_checkpoint(folder), tmp_path / "without")
    assert not (tmp_path / "without" / "my_pooling.py").exists()
    edit_modules(folder, lambda stages: stages[1].update(type="my_pooling.MyPooling"))
    save_checkpoint(load_checkpoint(folder), tmp_path / "with")
    assert (tmp_path / "with" / "my_pooling.py").exists()


@pytest.fixture
def small(folder: Path, tmp_path: Path) -> Path:
    net = load_checkpoint(folder)
    factored = dataclasses.replace(net, params=factor_all(net.params), compression={"method": "svd"})
    save_checkpoint(factored, tmp_path / "small")
    return tmp_path / "small"


def test_factors_have_a_file_of_their_own(small: Path, tmp_path: Path):
    assert not (small / "model.safetensors").exists()
    assert weight_bytes(small) == (small / "lpjax.safetensors").stat().st_size
    # As older releases wrote them: in model.safetensors, which config.json does not name.
    older = tmp_path / "older"
    shutil.copytree(small, older)
    (older / "lpjax.safetensors").rename(older / "model.safetensors")
    edit_block(older, lambda block: block.pop("weights"))
    net = load_checkpoint(older)
    assert_same(net.params, load_checkpoint(small).params)
    assert weight_bytes(older) == weight_bytes(small)
    # Saved anew, it has today's layout.
    save_checkpoint(net, tmp_path / "anew")
    assert files(tmp_path / "anew") == files(small)


def test_compressed_without_factors_is_dense(folder: Path, tmp_path: Path):
    net = dataclasses.replace(load_checkpoint(folder), compression={"method": "svd"})
    save_checkpoint(net, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "weights" not in json.loads((tmp_path / "out" / "config.json").read_text())["lpjax"]


def edit_block(folder: Path, change: Any) -> None:
    data = json.loads((folder / "config.json").read_text())
    change(data["lpjax"])
    (folder / "config.json").write_text(json.dumps(data))


def test_files_that_contradict_the_config_are_refused(small: Path, folder: Path):
    dense = (folder / "model.safetensors").read_bytes()
    (small / "model.safetensors").write_bytes(dense)  # a dense model's, beside it: config.json names the other one
    assert lowrank_ranks(load_checkpoint(small).params)
    (small / "lpjax.safetensors").rename(small / "kept")
    with pytest.raises(CheckpointError, match=r"says that the weights are in lpjax.safetensors, which is not there"):
        load_checkpoint(small)
    (small / "kept").rename(small / "lpjax.safetensors")
    edit_block(small, lambda block: block.update(weights="../other.safetensors"))
    with pytest.raises(CheckpointError, match=r"`lpjax.weights` is '../other.safetensors', expected"):
        load_checkpoint(small)
    shutil.copyfile(folder / "config.json", small / "config.json")
    with pytest.raises(CheckpointError, match=r"does not name that file, so it is another model's; put back"):
        load_checkpoint(small)
    (small / "lpjax.safetensors").unlink()
    assert_same(load_checkpoint(small).params, load_checkpoint(folder).params)


@pytest.mark.parametrize(
    ("first", "stage", "kind", "fetched"),
    [
        ("", "1_Pooling", f"{TYPES}Pooling", None),
        ("", "pooling", f"{TYPES}Pooling", "pooling/*"),
        ("", "1_Pooling", "my_pooling.MyPooling", "*.py"),
        ("0_Transformer", "1_Pooling", f"{TYPES}Pooling", None),
        ("net", "1_Pooling", f"{TYPES}Pooling", "net/model.safetensors"),
    ],
)
def test_what_is_fetched_of_the_hub(
    first: str, stage: str, kind: str, fetched: str | None, old: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stages are fetched whole; what unusual names hide from the first patterns is fetched in a second request."""
    calls: list[list[str]] = []
    net = old / "net"
    (old / "0_Transformer").rename(net)
    if first == "":
        shutil.copytree(net, old, dirs_exist_ok=True)
    elif first != "net":
        net.rename(old / first)

    def snapshot_download(repo: str, *, allow_patterns: list[str], **_: Any) -> str:
        calls.append(allow_patterns)
        weights = old / "net" / "model.safetensors"
        if first == "net" and len(calls) == 1:
            weights.rename(old / "hidden")
        elif first == "net":
            (old / "hidden").rename(weights)
        return str(old)

    def change(stages: list[Any]) -> None:
        stages[0]["path"] = first
        stages[1].update(path=stage, type=kind)

    edit_modules(old, change)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_checkpoint("owner/name").source == old
    patterns = ["[1-9]_*/*", "0_*/model.safetensors", "lpjax.safetensors"]
    assert all(pattern in call for pattern in patterns for call in calls)
    if fetched is None:
        assert len(calls) == 1
    else:
        assert len(calls) == 2
        assert fetched in calls[1]
