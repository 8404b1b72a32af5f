"""What a folder or file that holds no checkpoint is, and the way out, by two tables of recognisers.

The first that fits speaks. They are asked after reading has failed, and look at no more than names
and the first bytes of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lpjax._files.json import read_json

_HEAD = 512  # bytes of a file that are looked at

_RUN = "training_args|optimizer|scheduler|rng_state"  # beginnings of a Trainer's files beside the net
_TORCH = "load it in PyTorch and save it by `save_pretrained`"


class _Content(NamedTuple):
    """A kind of file by its first bytes."""

    pattern: bytes
    what: str


_CONTENTS = (
    _Content(rb"version https://git-lfs", "a git-lfs pointer instead of the file: run `git lfs pull` in its folder"),
    _Content(rb"[^\n]{0,99}/annex/objects/", "a git-annex pointer instead of the file: run `git annex get` on it"),
    _Content(rb"(?i)\s*(<!doctype html|<html)", "an HTML page, as of a download that needs a login: fetch it anew"),
    _Content(
        rb"(Entry not found|Repository not found|Invalid (credentials|username)|Access to model|\{\"error\")",
        "the error message of a server: fetch it anew",
    ),
    _Content(rb"PK\x03\x04", f"a zip archive, such as PyTorch's own format: unpack it, or {_TORCH}"),
    _Content(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf", "a compressed archive: unpack it"),
    _Content(rb"(?s).{257}ustar", "a tar archive: unpack it"),
    _Content(rb"GGUF", "a GGUF file, of llama.cpp: take the net that it was made of"),
    _Content(
        rb"\x89HDF\r\n", "an HDF5 file, of Keras: load it there, and save it by `save_pretrained` of transformers"
    ),
    _Content(rb"\x93NUMPY", "a NumPy array: save the state dict by `safetensors.numpy.save_file`"),
    _Content(rb"\x80[\x02-\x05][^\x00]", f"a pickle, which may run code: {_TORCH}"),
    _Content(rb"\x00{512}", "full of zeros at its beginning, as of a download that was not finished: fetch it anew"),
)


def told_of_file(path: Path) -> str:
    """ "; it is …" if the beginning of a file tells what it is, else an empty string."""
    try:
        if path.is_symlink() and not path.exists():
            return f"; {_dangling(path)}"
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return ""
    return next((f"; it is {kind.what}" for kind in _CONTENTS if re.match(kind.pattern, head)), "")


class _Folder(NamedTuple):
    """A folder that the recognisers look at.

    Attributes:
        path: it.
        names: of what is in it.
    """

    path: Path
    names: tuple[str, ...]

    def first(self, *patterns: str) -> str | None:
        """The first name that one of the regular expressions matches whole."""
        return next((name for pattern in patterns for name in self.names if re.fullmatch(pattern, name)), None)


def told_of_folder(path: Path) -> str:
    """ "; …" if a folder without config.json or weights tells what it is, else an empty string."""
    try:
        folder = _Folder(path, tuple(sorted(entry.name for entry in path.iterdir())))
        found = next((told for recognise in FOLDERS if (told := recognise(folder)) is not None), None)
    except (OSError, ValueError):
        return ""
    return "" if found is None else f"; {found}"


def _empty(folder: _Folder) -> str | None:
    return None if folder.names else "it is empty"


def _links(folder: _Folder) -> str | None:
    for name in folder.names:
        path = folder.path / name
        if re.search(r"\.(safetensors|msgpack|json)$", name) and path.is_symlink() and not path.exists():
            return f"{name} {_dangling(path).removeprefix('it ')}"
    return None


def _dangling(path: Path) -> str:
    target = str(path.readlink())
    way = "run `git annex get` on it" if "annex/objects" in target else "copy what the links lead to (`cp -L`)"
    return f"it is a link to {target}, which is not there: {way}"


def _hub_cache(folder: _Folder) -> str | None:
    if not {"refs", "snapshots"} <= set(folder.names):
        inner = [name for name in folder.names if name.startswith("models--")]
        return f"it is the cache of the Hugging Face Hub; pass a hub id, such as {_hub_id(inner[0])}" if inner else None
    snapshots = [path for path in (folder.path / "snapshots").iterdir() if path.is_dir()]
    main = folder.path / "refs" / "main"
    if main.is_file() and main.stat().st_size < 200:
        snapshots.sort(key=lambda path: path.name != main.read_text().strip())
    if not snapshots:
        return "it is a model's cache of the Hugging Face Hub, without a snapshot: fetch the model anew"
    return f"it is a model's cache of the Hugging Face Hub; its snapshot is the checkpoint: {snapshots[0]}"


def _hub_id(name: str) -> str:
    return name.removeprefix("models--").replace("--", "/")


def _adapter(folder: _Folder) -> str | None:
    if folder.first("adapter_config.json", r"adapter_model\..*") is None:
        return None
    base = _value_of(folder.path / "adapter_config.json", "base_model_name_or_path")
    net = f" of {base}" if base else ""
    way = "load it with peft, merge it by `merge_and_unload()`, and save the net by `save_pretrained`"
    return f"it is an adapter{net}: {way}"


def _pipeline(folder: _Folder) -> str | None:
    if "model_index.json" not in folder.names:
        return None
    return f"it is a pipeline of diffusers, of several nets{_such_as(_nets_in(folder))}"


def _trainer(folder: _Folder) -> str | None:
    runs = [path for path in _nets_in(folder) if re.fullmatch(r"checkpoint-\d+", path.name)]
    if not runs:
        return None
    last = max(runs, key=lambda path: int(path.name.rpartition("-")[2]))
    return f"it is a Trainer's output folder; give one of its checkpoints, such as {last}"


def _below(folder: _Folder) -> str | None:
    nets = _nets_in(folder)
    return f"a net lies one level below: {', '.join(map(str, nets[:5]))}" if nets else None


def _nets_in(folder: _Folder) -> list[Path]:
    """Folders inside that hold config.json and weights."""
    paths = [folder.path / name for name in folder.names]
    return [
        path
        for path in paths[:1000]
        if _value_of(path / "config.json", "model_type")
        and any(re.search(r"\.(safetensors|msgpack|bin)$", entry.name) for entry in path.iterdir())
    ]


def _such_as(nets: list[Path]) -> str:
    return f"; give the folder of one, such as {nets[0]}" if nets else ""


def _shards(folder: _Folder) -> str | None:
    name = folder.first(r"(model|flax_model)-\d+-of-\d+\.(safetensors|msgpack)")
    if name is None:
        return None
    index = re.sub(r"-\d+-of-\d+", "", name) + ".index.json"
    return f"it holds shards such as {name}, but not their index, {index}: fetch that, too"


def _renamed(folder: _Folder) -> str | None:
    name = folder.first(rf"(?!adapter|lpjax|{_RUN}).*\.safetensors")
    if name is None:
        return None
    if name == "model.safetensors":
        return "it holds weights without their config.json: fetch that, too"
    return f"it holds {name}: rename it to model.safetensors if it is the net's (`mv {name} model.safetensors`)"


_FRAMEWORKS = (
    ((r"zero_to_fp32\.py", r"global_step\d+"), "is DeepSpeed's: run its `zero_to_fp32.py`, then save as safetensors"),
    ((r".*\.distcp", r"\.metadata"), "is a distributed checkpoint of PyTorch: gather it into one file first"),
    ((r".*\.ckpt\.(index|meta)", r".*\.ckpt\.data-.*"), "is TensorFlow 1's: convert it by transformers 4"),
    ((r".*\.h5", r"saved_model\.pb", r".*\.keras", r".*\.weights\.h5"), "is TensorFlow's or Keras's: convert it there"),
    ((r".*\.onnx",), "is an ONNX graph: take the net that it was made of"),
    ((r"openvino_model\..*", r".*_openvino.*\.xml"), "is OpenVINO's: take the net that it was made of"),
    ((r".*\.gguf", r"ggml.*\.bin"), "is llama.cpp's: take the net that it was made of"),
    ((r".*\.mlpackage", r".*\.mlmodel", r".*\.mlmodelc"), "is Core ML's: take the net that it was made of"),
    ((r".*\.tflite",), "is TensorFlow Lite's: take the net that it was made of"),
    ((r"rust_model\.ot",), "is rust-bert's: take the net that it was made of"),
    (
        (r"_CHECKPOINT_METADATA", r"manifest\.ocdbt", r"_METADATA", r"ocdbt\.process_\d+", r"checkpoint_\d+"),
        "is a checkpoint of orbax or flax.training: restore it there, and pass the params to `lpjax.from_tree`",
    ),
    ((r".*\.npz", r".*\.npy"), "is NumPy's: pass the arrays as a tree to `lpjax.from_tree`"),
    (
        (rf"(?!{_RUN}).*\.(bin|pt|pth|ckpt|pkl)",),
        f"is a pickle, which may run code: {_TORCH}",
    ),
    (
        (rf"({_RUN}).*\.(bin|pt|pth)",),
        "belongs to a training run, and holds no net",
    ),
)


def _other_framework(folder: _Folder) -> str | None:
    for patterns, told in _FRAMEWORKS:
        if (name := folder.first(*patterns)) is not None:
            return f"{name} {told}"
    return None


def _pointer_file(folder: _Folder) -> str | None:
    name = folder.first(r".*\.(safetensors|msgpack|bin)\.dvc")
    return None if name is None else f"{name} is a pointer of DVC: run `dvc pull` in the folder"


def _tokenizer(folder: _Folder) -> str | None:
    name = folder.first(r"tokenizer\.json", r"vocab\.(txt|json)", r"spiece\.model", r"sentencepiece\.bpe\.model")
    if name is None or "config.json" in folder.names:
        return None
    return f"it holds a tokenizer alone ({name}): give the folder of the net"


FOLDERS: tuple[Callable[[_Folder], str | None], ...] = (
    _empty,
    _links,
    _hub_cache,
    _adapter,
    _pipeline,
    _trainer,
    _pointer_file,
    _shards,
    _renamed,
    _below,
    _other_framework,
    _tokenizer,
)
"""Recognisers of folders, in the order in which they are asked."""


def newer_lpjax(block: Any) -> str:
    """A sentence if config.json's block was written by a later version than this one, else an empty string."""
    from lpjax import __version__  # Late: the package imports this module.

    version = block.get("version") if isinstance(block, dict) else None
    numbers = [re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", str(v)) for v in (version, __version__)]
    if not all(numbers):
        return ""
    theirs, ours = ([int(n or 0) for n in found.groups()] for found in numbers if found)
    if theirs <= ours:
        return ""
    return (
        f"; it was written by lpjax {str(version)[:20]}, and this is {__version__}: upgrade by `pip install -U lpjax`"
    )


def _value_of(path: Path, key: str) -> str | None:
    try:
        data = read_json(path) if path.is_file() else {}
    except (OSError, ValueError):
        return None
    value = data.get(key) if isinstance(data, dict) else None
    return value[:200] if isinstance(value, str) else None
