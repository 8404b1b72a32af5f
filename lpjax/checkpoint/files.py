"""JSON files of a checkpoint, which are not trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lpjax._files.json import read_json
from lpjax.checkpoint._file_hints import file_hint
from lpjax.checkpoint._folder_hints import folder_hint
from lpjax.checkpoint.error import CheckpointError
from lpjax.checkpoint.formats import CONFIG


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    if not path.exists():
        hint = folder_hint(path.parent) if path.name == CONFIG else ""
        raise CheckpointError(f"{path.parent} holds no {path.name}, so it is not a checkpoint{hint}")
    data = read_any(path)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a JSON {type(data).__name__}, expected an object")
    return data


def read_any(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        CheckpointError: it cannot be read, or is not JSON.
    """
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}{file_hint(path)}") from error
