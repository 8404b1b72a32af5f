"""Texts and records as files, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpjax._files.replacing import replacing


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 under a temporary name and rename it: an interrupted run leaves the old file or none.

    Characters that UTF-8 cannot encode, such as half of a surrogate pair, become question marks.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        fresh.write_bytes(text.encode("utf-8", "replace"))


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON, as `write_text` does.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
        OSError: the folder cannot be written to.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
