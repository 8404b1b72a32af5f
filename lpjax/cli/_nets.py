"""Loading the models that commands read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lpjax.cli._errors import misuse

if TYPE_CHECKING:
    from lpjax.checkpoint import Checkpoint
    from lpjax.compression import Record


def load_to_save(model: str, out: Path, force: bool) -> Checkpoint:
    """Load the checkpoint from which a command makes another in `out`, after checking that `out` may be written."""
    from lpjax.checkpoint import check_target, load_checkpoint
    from lpjax.checkpoint.source import find_model

    with misuse():
        check_target(out, None, force)
        folder = find_model(model)
    checkpoint = load_checkpoint(folder)
    with misuse():
        check_target(out, checkpoint.source, force)
    return checkpoint


def load_compressed(smaller: Path, out: Path, force: bool) -> tuple[Checkpoint, Record]:
    """`load_to_save` for a compressed checkpoint, with the record of its compression."""
    from lpjax.compression import record_of
    from lpjax.compression.history import require_compressed

    checkpoint = load_to_save(str(smaller), out, force)
    record = record_of(checkpoint)
    with misuse():
        require_compressed(record, smaller)
    return checkpoint, record


def load_selected(model: str, layers: str | None) -> tuple[Checkpoint, list[str] | None]:
    """Load a checkpoint, and split the patterns of --layers, each of which must match a leaf; None without --layers."""
    from lpjax.checkpoint import load_checkpoint
    from lpjax.checkpoint.source import find_model
    from lpjax.select import select_paths

    with misuse():
        folder = find_model(model)
    checkpoint = load_checkpoint(folder)
    patterns = None if layers is None else split_patterns(layers)
    if patterns is not None:
        with misuse():
            select_paths(checkpoint.params, patterns)
    return checkpoint, patterns


def split_patterns(text: str) -> list[str]:
    """The patterns of --layers; a comma inside braces or brackets belongs to a regular expression."""
    return [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text) if part.strip()]
