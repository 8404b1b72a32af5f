"""Hints on a file that cannot be read: what it is, judged by its first bytes, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

TORCH = "load it in PyTorch and save it by `save_pretrained`"
_HEAD = 512  # bytes read

_CONTENTS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "a git-lfs pointer instead of the file: run `git lfs pull` in its folder"),
    (rb"[^\n]{0,99}/annex/objects/", "a git-annex pointer instead of the file: run `git annex get` on it"),
    (rb"(?i)\s*(<!doctype html|<html)", "an HTML page, as from a download that needs a login: download it again"),
    (
        rb"(Entry not found|Repository not found|Invalid (credentials|username)|Access to model|\{\"error\")",
        "the error message of a server: download it again",
    ),
    (rb"PK\x03\x04", f"a zip archive, such as PyTorch's own format: unpack it, or {TORCH}"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf", "a compressed archive: unpack it"),
    (rb"(?s).{257}ustar", "a tar archive: unpack it"),
    (rb"GGUF", "a GGUF file, of llama.cpp: take the model that it was made from"),
    (rb"\x89HDF\r\n", "an HDF5 file, of Keras: load it there, and save it by `save_pretrained` of transformers"),
    (rb"\x93NUMPY", "a NumPy array: save the state dict by `safetensors.numpy.save_file`"),
    (rb"\x80[\x02-\x05][^\x00]", f"a pickle, which may run code: {TORCH}"),
    (rb"\x00{512}", "full of zeros at its beginning, as from a download that was not finished: download it again"),
)
"""(pattern of the first bytes, what the file is and what to do); the first match counts."""


def file_hint(path: Path) -> str:
    """ "; it is …" if the first bytes of a file show what it is, else an empty string."""
    try:
        if hint := link_hint(path):
            return f"; it is {hint}"
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return ""
    return next((f"; it is {kind}" for pattern, kind in _CONTENTS if re.match(pattern, head)), "")


def link_hint(path: Path) -> str:
    """What to do about a broken symlink; empty for anything else."""
    if not path.is_symlink() or path.exists():
        return ""
    target = str(path.readlink())
    way = "run `git annex get` on it" if "annex/objects" in target else "copy what the links lead to (`cp -L`)"
    return f"a link to {target}, which is not there: {way}"
