"""The tokenizer that comes with a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lpjax.checkpoint import Checkpoint, CheckpointError

_COMPLETE = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""Sets of files, each of which is a whole vocabulary."""

_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def load_tokenizer(folder: str | Path) -> Any:
    """The transformers tokenizer of a checkpoint's folder; local files only, no code of the folder is run.

    Args:
        folder: a local folder, such as `Checkpoint.source`.

    Raises:
        FileNotFoundError: no such folder, or no vocabulary in it.
        CheckpointError: the tokenizer's files are damaged.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; expected the folder of a checkpoint")
    if not any(all((path / name).is_file() for name in names) for names in _COMPLETE):
        options = ", ".join(" with ".join(names) for names in _COMPLETE)
        raise FileNotFoundError(
            f"{path} holds no tokenizer, expected {options}; copy it from the model that this one was made of"
        )
    AutoTokenizer = _auto_tokenizer()
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception on a damaged file
        raise CheckpointError(f"the tokenizer of {path} cannot be loaded: {error}") from error


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The tokenizer in the folder that a checkpoint came from.

    Raises:
        ValueError: it came from none.
        FileNotFoundError, CheckpointError: as `load_tokenizer`.
    """
    if checkpoint.source is None:
        raise ValueError("`tokenizer` is None and the checkpoint has no folder to take one from; pass a tokenizer")
    return load_tokenizer(checkpoint.source)


def _auto_tokenizer() -> Any:
    """transformers.AutoTokenizer, imported without transformers' remark that PyTorch is not installed."""
    before = _ADVICE in os.environ
    os.environ.setdefault(_ADVICE, "1")
    try:
        from transformers import AutoTokenizer
    finally:
        if not before:
            del os.environ[_ADVICE]
    return AutoTokenizer
