"""Records that are computed row by row: a row that is there is not computed again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a record; none if there is no record."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def has_row(rows: Iterable[Mapping[str, Any]], values: Mapping[str, Any]) -> bool:
    """Whether a row has all of these values."""
    return any(values.items() <= row.items() for row in rows)
