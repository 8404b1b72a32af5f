"""README.md, the model card of a folder: who wrote it, and which cards of a source folder go along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lpjax._files.reading import read_bytes
from lpjax.checkpoint.links import LinkError, check_inside

CARD = "README.md"
SOURCE_CARD = "README.source.md"
"""The card that a person wrote for the model that a folder was made from."""
CARD_LIMIT = 1 << 20
"""Bytes of a card that are read at most."""
MARKER = "<!-- written by lpjax, which replaces it; delete this line to keep what you change -->"


def is_own_card(content: bytes) -> bool:
    """Whether lpjax wrote a card, and may write it again."""
    return MARKER.split(",")[0].encode() in content


def wrote_card(path: Path) -> bool:
    """Whether a file is a card that lpjax wrote; what cannot be read is a person's."""
    try:
        return is_own_card(read_bytes(path, CARD_LIMIT))
    except (OSError, ValueError):
        return False


def source_cards(source: Path) -> Iterator[tuple[Path, str]]:
    """The card of a source folder that a person wrote, and its name beside a new card."""
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
