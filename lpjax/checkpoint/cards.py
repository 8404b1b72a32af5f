"""README.md, the model card of a folder: who wrote it, and which card of a source folder is copied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lpjax._files.reading import read_bytes
from lpjax.checkpoint.links import LinkError, check_inside

CARD = "README.md"
SOURCE_CARD = "README.source.md"
"""Name for a copy of the card that a person wrote for the source model."""
CARD_LIMIT = 1 << 20
"""Largest number of bytes of a card that are read."""
MARKER = "<!-- written by lpjax, which replaces it; delete this line to keep what you change -->"


def is_own_card(content: bytes) -> bool:
    """Whether lpjax wrote a card, and may write it again."""
    return MARKER.split(",")[0].encode() in content


def wrote_card(path: Path) -> bool:
    """Whether lpjax wrote a card; a file that cannot be read counts as a person's."""
    try:
        return is_own_card(read_bytes(path, CARD_LIMIT))
    except (OSError, ValueError):
        return False


def source_cards(source: Path) -> Iterator[tuple[Path, str]]:
    """The card of a source folder, if a person wrote it, and its name in the new folder."""
    for path in (source / CARD, source / SOURCE_CARD):
        if path.is_file() and _is_inside(path, source) and not wrote_card(path):
            yield path, SOURCE_CARD
            return


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        check_inside(path, folder)
    except LinkError:  # not copied, but no reason to refuse a model
        return False
    return True
