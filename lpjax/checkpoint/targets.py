"""Which files a command may write or, with --force, replace: only files of its own kind, and none of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lpjax._files.json import read_object
from lpjax._files.replacing import check_parent, check_regular
from lpjax.checkpoint import CheckpointError
from lpjax.checkpoint.formats import CONFIG, FORMATS
from lpjax.checkpoint.safetensors import read_tensors

# What lpjax, transformers, tokenizers and sentence-transformers read in the folder of a model.
_OWN = re.compile(
    r"""
    .*\.(safetensors|msgpack|bin|h5|onnx|pt|pth|ckpt|gguf)(\.index\.json)?  # weights, also of other libraries
    | (generation_|adapter_|preprocessor_)?config\.json
    | tokenizer.*\.json | special_tokens_map\.json | added_tokens\.json | vocab\.(txt|json) | merges\.txt
    | .*\.model | chat_template\..* | modules\.json | sentence_.*_config\.json | config_sentence_transformers\.json
    | modeling_lpjax\.py | lpjax_weights\.py | lpjax_codes\.py  # by which PyTorch loads a compressed folder
    | lpjax_record\.json | lpjax_export\.json | lpjax_weights_only\.json | recover\.json | finetune\.json
    | (LICENSE|LICENCE|NOTICE|COPYING|README)(\.\w+)*
    """,
    re.IGNORECASE | re.VERBOSE,
)
_CALIBRATION = re.compile(r".*\.safetensors", re.IGNORECASE)
_WEIGHTS = re.compile(r"(.*model.*|lpjax)\.safetensors", re.IGNORECASE)


def check_new_file(path: Path, kind: str, *, overwrite: bool, suffixes: tuple[str, ...] = ()) -> None:
    """Refuse a file that cannot be written, before any work.

    Args:
        path: the file to write.
        kind: one of `KINDS`.
        overwrite: whether a file of that kind may be replaced.
        suffixes: allowed suffixes of its name, in lower case; any by default.

    Raises:
        ValueError: its name has another suffix.
        FileNotFoundError: its folder does not exist.
        FileExistsError: as `refuse_existing`, or it is not a regular file.
        PermissionError: its folder is not writable.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} is not a valid name for a {kind}; expected a name ending in {suffixes[0]}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} can't be written: there is no folder {path.parent}")
    refuse_existing(path, kind, overwrite=overwrite)
    check_regular(path)
    check_parent(path.resolve())


def refuse_existing(path: Path, kind: str, *, overwrite: bool) -> None:
    """Refuse to overwrite a folder, a file unless `overwrite` is true, a file of another kind, or a checkpoint's file.

    Raises:
        FileExistsError: `path` is one of these.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        hint = "" if path.is_dir() else ", or pass `overwrite=True` to replace it"
        raise FileExistsError(f"{path} exists; choose another name{hint}")
    check_replaceable(path, kind)


def check_replaceable(path: Path, kind: str) -> None:
    """Refuse to overwrite a checkpoint's own file, or a file of another kind. An empty file may be replaced.

    Args:
        path: the file to write.
        kind: one of `KINDS`.

    Raises:
        FileExistsError: `path` is a checkpoint's own file, or a file of another kind.
    """
    for place in {path, path.resolve()}:
        own = _OWN.fullmatch(place.name) or place.name.endswith(tuple(format.suffix for format in FORMATS.values()))
        if (place.parent / CONFIG).exists() and own:
            # A calibration may lie beside the weights, under another name than theirs.
            if kind == "calibration" and _CALIBRATION.fullmatch(place.name) and not _WEIGHTS.fullmatch(place.name):
                continue
            raise FileExistsError(f"{path} is the name of a file of the checkpoint in {place.parent}; choose another")
    if path.is_file() and path.stat().st_size and not KINDS[kind](path):
        raise FileExistsError(
            f"{path} exists but is not a {kind}, so `overwrite=True` does not replace it; choose another name"
        )


def _is_calibration(path: Path) -> bool:
    try:
        return "lpjax-calibration/" in read_tensors(path)[1].get("lpjax", "")
    except CheckpointError:
        return False


def _of_schema(name: str) -> Callable[[Path], bool]:
    def fits(path: Path) -> bool:
        try:
            return str(read_object(path).get("schema")).startswith(name)
        except ValueError:
            return False

    return fits


def _is_png(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return b"lpjax report</title>" in file.read(1 << 16)


KINDS: dict[str, Callable[[Path], bool]] = {
    "calibration": _is_calibration,
    "plan": _of_schema("lpjax-plan/"),
    "break-even file": _of_schema("lpjax-break-even/"),
    "PNG picture": _is_png,
    "page of lpjax report": _is_page,
}
"""How a file of each kind is recognised."""
