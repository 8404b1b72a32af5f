"""A folder without a checkpoint is refused: the error names what it holds instead, and the way out."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lpjax.checkpoint import CheckpointError, load_checkpoint
from tests.conftest import Command, Edit

Change = Callable[[Path], Path | None]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90868376\n"


def wrote(content: bytes | str, name: str = "model.safetensors") -> Change:
    """The weights replaced by a file of this content."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def only(**files: bytes | str) -> Change:
    """A new folder of these files alone; a name is written with __ for a dot, and ___ for a slash."""

    def change(folder: Path) -> Path:
        target = folder.parent / "other"
        for name, content in files.items():
            path = target / name.replace("___", "/").replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        target.mkdir(exist_ok=True)
        return target

    return change


def without(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def renamed(name: str) -> Change:
    return lambda folder: (folder / "model.safetensors").rename(folder / name) and None


def linked(target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(target)

    return change


def moved(where: str, *more: str) -> Change:
    """The model moved to folders inside another."""

    def change(folder: Path) -> Path:
        root = folder.parent / "root"
        for name in (where, *more):
            shutil.copytree(folder, root / name)
        return root

    return change


def cached(commit: str = "0123abcd") -> Change:
    def change(folder: Path) -> Path:
        root = moved(f"models--owner--name/snapshots/{commit}")(folder)
        assert root is not None
        root = root / "models--owner--name"
        (root / "snapshots" / "9999").mkdir()
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(commit)
        return root

    return change


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("data.pkl", "x")
    elif kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as file:
            file.addfile(tarfile.TarInfo("model.safetensors"))
    else:
        np.savez(buffer, a=np.ones(3)) if kind == "npz" else np.save(buffer, np.ones(300))
    return buffer.getvalue()


HTML = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head>" + " " * 200
PEFT = json.dumps({"base_model_name_or_path": "bert-base-uncased", "peft_type": "LORA"})

CASES: dict[str, tuple[Change, str]] = {
    # Files that are not what their name says.
    "git-lfs": (wrote(LFS), "it is a git-lfs pointer .*`git lfs pull`"),
    "git-lfs, Flax": (wrote(LFS, "flax_model.msgpack"), "it is a git-lfs pointer .*`git lfs pull`"),
    "git-lfs, config": (lambda f: wrote(LFS, "config.json")(f), "config.json cannot be read .*it is a git-lfs pointer"),
    "git-annex": (wrote("/annex/objects/SHA256E-s9--ab.safetensors\n"), "it is a git-annex pointer .*`git annex get`"),
    "HTML": (wrote(HTML), "it is an HTML page"),
    "an answer of the hub": (wrote("Entry not found"), "it is the error message of a server"),
    "zip": (wrote(archive("zip")), "it is a zip archive"),
    "gzip": (wrote(gzip.compress(b"x" * 99)), "it is a compressed archive"),
    "tar": (wrote(archive("tar")), "it is a tar archive"),
    "GGUF as safetensors": (wrote(b"GGUF\x03" + b"\0" * 99), "it is a GGUF file"),
    "HDF5": (wrote(b"\x89HDF\r\n\x1a\n" + b"\0" * 99), "it is an HDF5 file"),
    "NumPy": (wrote(archive("npy")), "it is a NumPy array"),
    "a pickle": (wrote(pickle.dumps({"a": list(range(300))})), "it is a pickle, which may run code"),
    "zeros": (wrote(b"\0" * 9999), "it is full of zeros at its beginning"),
    # Links that lead nowhere.
    "a broken link": (linked("../../blobs/0a1b"), "model.safetensors is a link to ../../blobs/0a1b, .*`cp -L`"),
    "a git-annex link": (linked(".git/annex/objects/x/y"), "is a link to .*: run `git annex get` on it"),
    # Folders of other tools.
    "the hub's cache of a model": (cached(), r"its snapshot is the checkpoint: .*/snapshots/0123abcd$"),
    "the hub's cache": (moved("models--owner--name/snapshots/ab"), "cache of the Hugging Face Hub; .* owner/name"),
    "an adapter": (
        only(adapter_config__json=PEFT, adapter_model__safetensors=b"x"),
        r"it is an adapter of bert-base-uncased: load it with peft, merge it",
    ),
    "diffusers": (only(model_index__json="{}"), "it is a pipeline of diffusers"),
    "Trainer": (moved("checkpoint-500", "checkpoint-60"), "such as .*/checkpoint-500$"),
    "one level below": (moved("net"), "a model lies one level below: .*/root/net$"),
    "a tokenizer alone": (only(vocab__txt="a"), r"it holds a tokenizer alone \(vocab.txt\)"),
    "weights alone": (only(model__safetensors="a"), "it holds weights without their config.json"),
    "a config alone": (
        without("model.safetensors", "pytorch_model.bin"),
        "holds no model.safetensors and no flax_model.msgpack; if the model has them in another format",
    ),
    "nothing": (only(), "it is empty"),
    "DVC": (wrote("outs:", "model.safetensors.dvc"), r"model.safetensors.dvc is a pointer of DVC: run `dvc pull`"),
    # Weights under another name, or in part.
    "another name": (renamed("pytorch_model.safetensors"), "rename it to model.safetensors"),
    "a variant": (renamed("model.fp16.safetensors"), "holds model.fp16.safetensors: rename it to model.safetensors"),
    "shards without an index": (
        renamed("model-00001-of-00002.safetensors"),
        "but not their index, model.safetensors.index.json: fetch that, too",
    ),
    "an index without shards": (
        wrote('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "model.safetensors.index.json"),
        "names shards that are not there: model-00001-of-00002.safetensors",
    ),
    # Other frameworks.
    "pytorch_model.bin": (without("model.safetensors"), "holds only pytorch_model.bin, a pickle"),
}
"""What is done to the folder of a good BERT, and what is said of it."""

FRAMEWORKS = {
    "encoder.onnx": "an ONNX graph",
    "net.gguf": "llama.cpp's",
    "openvino_model.xml": "OpenVINO's",
    "net.mlpackage/x": "Core ML's",
    "bert_model.ckpt.index": "TensorFlow 1's",
    "net.keras": "TensorFlow's or Keras's",
    "weights.npz": "NumPy's",
    "weights.pth": "a pickle, which may run code",
    "last.ckpt": "a pickle, which may run code",
    "training_args.bin": "belongs to a training run, and holds no model",
    "_CHECKPOINT_METADATA": "orbax or flax.training",
    "zero_to_fp32.py": "DeepSpeed's",
    "__0_0.distcp": "a distributed checkpoint of PyTorch",
}


@pytest.mark.parametrize("name", [*CASES, *FRAMEWORKS])
def test_it_is_named_with_the_way_out(name: str, folder: Path):
    if name in FRAMEWORKS:
        (folder / "pytorch_model.bin").unlink()
        change, message = wrote(b"x", name), f"{name.split('/')[0]} .*{FRAMEWORKS[name]}"
    else:
        change, message = CASES[name]
    target = change(folder) or folder
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(target)
    assert str(target) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_file_for_a_folder(folder: Path):
    with pytest.raises(NotADirectoryError, match=r"is a file, expected the folder that holds it: .*/dense$"):
        load_checkpoint(folder / "model.safetensors")
    (folder / "net.gguf").write_bytes(b"GGUF" + b"\0" * 99)
    with pytest.raises(NotADirectoryError, match=r"is a file, expected the folder that holds it; it is a GGUF file"):
        load_checkpoint(folder / "net.gguf")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_a_quantized_net(method: str, edit_config: Edit):
    folder = edit_config(quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(CheckpointError, match=f"`quantization_config` .*{method}.* quantized .* not supported"):
        load_checkpoint(folder)


def test_a_folder_of_a_newer_lpjax(edit_config: Edit):
    newer = {"version": "99.1.0", "ranks": {"pooler/dense/kernel": {"left": 3}}}
    message = r"`lpjax.ranks` .*; it was written by lpjax 99.1.0, and this is .*install -U"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(edit_config(lpjax=newer))
    with pytest.raises(CheckpointError, match=r"`lpjax.ranks` .*whole numbers$"):
        load_checkpoint(edit_config(lpjax=newer | {"version": "0.0.1"}))


def test_the_command_says_so_in_a_line(folder: Path, command: Command):
    wrote(LFS)(folder)
    status, _, err = command("inspect", folder)
    assert status == 1
    assert err.startswith("error: ")
    assert "run `git lfs pull` in its folder" in err
    assert err.count("\n") == 1
