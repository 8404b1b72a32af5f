"""Hints on a folder that holds no checkpoint: what it is, judged by the names in it, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lpjax._files.json import read_json
from lpjax.checkpoint._file_hints import TORCH, link_hint
from lpjax.checkpoint.formats import CONFIG, FORMATS, PROGRAM_FILES

_TRAINING = "training_args|optimizer|scheduler|rng_state"  # prefixes of a Trainer's own files
_MOST_FOLDERS = 1000


class _Folder(NamedTuple):
    """A folder and its sorted entries."""

    path: Path
    names: tuple[str, ...]

    def first(self, pattern: str) -> str | None:
        """The first name that fully matches a regular expression."""
        return next((name for name in self.names if re.fullmatch(pattern, name)), None)

    def nets(self) -> list[Path]:
        """The folders in it that hold config.json and weights."""
        return [
            path
            for path in (self.path / name for name in self.names[:_MOST_FOLDERS])
            if _value_of(path / CONFIG, "model_type")
            and any(entry.name.endswith((*_suffixes(), ".bin")) for entry in path.iterdir())
        ]


_Recogniser = Callable[[_Folder], str | None]


def _suffixes() -> tuple[str, ...]:
    return tuple(format.suffix for format in FORMATS.values())


def folder_hint(path: Path) -> str:
    """ "; …" if the names in a folder without config.json or weights show what it is, else an empty string."""
    try:
        folder = _Folder(path, tuple(sorted(entry.name for entry in path.iterdir())))
        first_hint = next((hint for recognise in _FOLDERS if (hint := recognise(folder)) is not None), None)
    except (OSError, ValueError):
        return ""
    return "" if first_hint is None else f"; {first_hint}"


def _empty(folder: _Folder) -> str | None:
    return None if folder.names else "it is empty"


def _links(folder: _Folder) -> str | None:
    names = (name for name in folder.names if name.endswith((*_suffixes(), ".json")))
    return next((f"{name} is {hint}" for name in names if (hint := link_hint(folder.path / name))), None)


def _hub_cache(folder: _Folder) -> str | None:
    if not {"refs", "snapshots"} <= set(folder.names):
        inner = next((name for name in folder.names if name.startswith("models--")), None)
        hub_id = (inner or "").removeprefix("models--").replace("--", "/")
        return f"it is the cache of the Hugging Face Hub; pass a hub id, such as {hub_id}" if inner else None
    snapshots = [path for path in (folder.path / "snapshots").iterdir() if path.is_dir()]
    main = folder.path / "refs" / "main"
    if main.is_file() and main.stat().st_size < 200:
        snapshots.sort(key=lambda path: path.name != main.read_text().strip())
    if not snapshots:
        return "it is a model's cache of the Hugging Face Hub, without a snapshot: download the model again"
    return f"it is a model's cache of the Hugging Face Hub; its snapshot is the checkpoint: {snapshots[0]}"


def _adapter(folder: _Folder) -> str | None:
    if folder.first(r"adapter_config\.json|adapter_model\..*") is None:
        return None
    base = _value_of(folder.path / "adapter_config.json", "base_model_name_or_path")
    net = f" of {base}" if base else ""
    way = "load it with peft, merge it by `merge_and_unload()`, and save the model by `save_pretrained`"
    return f"it is an adapter{net}: {way}"


def _pipeline(folder: _Folder) -> str | None:
    if "model_index.json" not in folder.names:
        return None
    nets = folder.nets()
    advice = f"; give the folder of one, such as {nets[0]}" if nets else ""
    return f"it is a pipeline of diffusers, of several models{advice}"


def _trainer(folder: _Folder) -> str | None:
    runs = [path for path in folder.nets() if re.fullmatch(r"checkpoint-\d+", path.name)]
    if not runs:
        return None
    last = max(runs, key=lambda path: int(path.name.rpartition("-")[2]))
    return f"it is a Trainer's output folder; give one of its checkpoints, such as {last}"


def _shards(folder: _Folder) -> str | None:
    for format in FORMATS.values():
        if name := folder.first(re.escape(format.stem) + r"-\d+-of-\d+" + re.escape(format.suffix)):
            return f"it holds shards such as {name}, but not their index, {format.index}: fetch that, too"
    return None


def _renamed(folder: _Folder) -> str | None:
    name = folder.first(rf"(?!adapter|lpjax|{_TRAINING}).*\.safetensors")
    if name == "model.safetensors":
        return "it holds weights without their config.json: fetch that, too"
    advice = f"rename it to model.safetensors if it is the model's (`mv {name} model.safetensors`)"
    return None if name is None else f"it holds {name}: {advice}"


def _below(folder: _Folder) -> str | None:
    nets = folder.nets()
    return f"a model lies one level below: {', '.join(map(str, nets[:5]))}" if nets else None


def _tokenizer(folder: _Folder) -> str | None:
    name = folder.first(r"tokenizer\.json|vocab\.(txt|json)|spiece\.model|sentencepiece\.bpe\.model")
    alone = name is not None and CONFIG not in folder.names
    return f"it holds a tokenizer alone ({name}): give the folder of the model" if alone else None


def _named(pattern: str, hint: str) -> _Recogniser:
    """Recognise a folder by the name of one file in it."""

    def recognise(folder: _Folder) -> str | None:
        name = folder.first(pattern)
        return None if name is None else f"{name} {hint}"

    return recognise


def _program(folder: _Folder) -> str | None:
    # Only what `lpjax export` wrote: many folders of the hub hold a program for another runtime beside weights.
    exported = "lpjax_export.json" in folder.names
    runtime = next((name for name in PROGRAM_FILES if exported and name in folder.names), None)
    return None if runtime is None else f"{runtime} is a program for another runtime: {_SOURCE}"


_SOURCE = "take the model that it was made from"
_FOLDERS: tuple[_Recogniser, ...] = (
    _empty,
    _links,
    _hub_cache,
    _adapter,
    _pipeline,
    _trainer,
    _named(r".*\.(safetensors|msgpack|bin)\.dvc", "is a pointer of DVC: run `dvc pull` in the folder"),
    _shards,
    _renamed,
    _below,
    _named(r"zero_to_fp32\.py|global_step\d+", "is DeepSpeed's: run its `zero_to_fp32.py`, then save as safetensors"),
    _named(r".*\.distcp|\.metadata", "is a distributed checkpoint of PyTorch: gather it into one file first"),
    _named(r".*\.ckpt\.(index|meta|data-.*)", "is TensorFlow 1's: convert it by transformers 4"),
    _named(r".*\.h5|saved_model\.pb|.*\.keras", "is TensorFlow's or Keras's: convert it there"),
    _named(r".*\.onnx", f"is an ONNX graph: {_SOURCE}"),
    _named(r"openvino_model\..*|.*_openvino.*\.xml", f"is OpenVINO's: {_SOURCE}"),
    _named(r".*\.gguf|ggml.*\.bin", f"is llama.cpp's: {_SOURCE}"),
    _named(r".*\.(mlpackage|mlmodelc?)", f"is Core ML's: {_SOURCE}"),
    _named(r".*\.tflite", f"is TensorFlow Lite's: {_SOURCE}"),
    _named(r"rust_model\.ot", f"is rust-bert's: {_SOURCE}"),
    _named(
        r"_CHECKPOINT_METADATA|manifest\.ocdbt|_METADATA|ocdbt\.process_\d+|checkpoint_\d+",
        "is a checkpoint of orbax or flax.training: restore it there, and pass the params to `lpjax.from_tree`",
    ),
    _named(r".*\.np[zy]", "is NumPy's: pass the arrays as a tree to `lpjax.from_tree`"),
    _named(rf"(?!{_TRAINING}).*\.(bin|pt|pth|ckpt|pkl)", f"is a pickle, which may run code: {TORCH}"),
    _named(rf"({_TRAINING}).*\.(bin|pt|pth)", "belongs to a training run, and holds no model"),
    _tokenizer,
    _program,
)
"""Recognisers of folders; the first that gives a hint counts."""


def newer_lpjax(block: Any) -> str:
    """A hint if a newer version of lpjax wrote config.json's block, else an empty string."""
    from lpjax import __version__

    version = block.get("version") if isinstance(block, dict) else None
    numbers = [re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", str(v)) for v in (version, __version__)]
    if not all(numbers):
        return ""
    theirs, ours = ([int(n or 0) for n in match.groups()] for match in numbers if match)
    if theirs <= ours:
        return ""
    advice = f"this is {__version__}: upgrade by `pip install -U lpjax`"
    return f"; it was written by lpjax {str(version)[:20]}, and {advice}"


def _value_of(path: Path, key: str) -> str | None:
    try:
        data = read_json(path) if path.is_file() else {}
    except (OSError, ValueError):
        return None
    value = data.get(key) if isinstance(data, dict) else None
    return value[:200] if isinstance(value, str) else None
