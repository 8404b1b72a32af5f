"""The stages of a sentence-transformers folder, as its modules.json lists them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from lpjax._files.json import json_text
from lpjax.checkpoint.error import CheckpointError
from lpjax.checkpoint.files import read_any
from lpjax.checkpoint.formats import CONFIG

MODULES = "modules.json"
SENTENCE_CONFIGS = tuple(
    f"sentence_{net}_config.json"
    for net in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Possible names of the file that says how the first stage reads text; the first that exists counts, as in
sentence-transformers."""
OWN_TYPES = "sentence_transformers."  # classes of the package itself; all others are code in the folder


class Stage(NamedTuple):
    """An entry of modules.json.

    Attributes:
        type: class that computes it, such as "sentence_transformers.models.Pooling"; empty if none is named.
        path: folder of its files, relative to the root and with "/" between its parts; empty for the root itself.
    """

    type: str
    path: str

    @property
    def name(self) -> str:
        """Name of the stage in messages."""
        return self.path or self.type or "the first stage"


def read_stages(folder: Path) -> tuple[Stage, ...]:
    """The stages of `folder`, in order; none if it has no modules.json.

    Raises:
        CheckpointError: modules.json is damaged, or names a folder outside of `folder`.
    """
    path = folder / MODULES
    return tuple(_stage(entry, path) for entry in _entries(path)) if path.exists() else ()


def net_folder(folder: Path) -> Path:
    """The folder of the model itself: that of the first stage, which is `folder` itself except in old folders.

    Raises:
        CheckpointError: as `read_stages`, or if modules.json names a folder that is not there or holds no model.
    """
    stages = read_stages(folder)
    if not stages:
        return folder
    first = folder / stages[0].path
    if not first.is_dir():
        raise CheckpointError(f"{folder / MODULES} says that the model is in {stages[0].path}, which is not a folder")
    kind = stages[0].type
    if kind and not kind.endswith("Transformer") and not (first / CONFIG).exists():
        raise CheckpointError(f"{folder / MODULES} begins with a {kind}, expected a Transformer; lpjax reads no other")
    return first


def modules_at_root(folder: Path) -> str:
    """The text of modules.json once the files of the first stage lie in the root."""
    first, *rest = _entries(folder / MODULES)
    return json_text([first | {"path": ""}, *rest])


def _entries(path: Path) -> list[dict[str, Any]]:
    data = read_any(path)
    if not isinstance(data, list) or not data or not all(isinstance(entry, dict) for entry in data):
        raise CheckpointError(f"{path} does not hold a list of stages, as sentence-transformers writes it")
    return data


def _stage(entry: dict[str, Any], path: Path) -> Stage:
    where, kind = entry.get("path"), entry.get("type", "")
    if not isinstance(where, str) or not isinstance(kind, str):
        raise CheckpointError(f"{path}: `path` or `type` of a stage is missing, or is not a string")
    windows = PureWindowsPath(where)
    if windows.anchor or ".." in windows.parts or "\\" in where or not where.isprintable():
        raise CheckpointError(f"{path}: a stage's `path` is {where!r}, expected a folder inside {path.parent}")
    inside = str(PurePosixPath(where))
    return Stage(kind, "" if inside == "." else inside)
