"""The tokenizer that comes with a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lpjax._extras import MissingExtra, require, without_advice
from lpjax.checkpoint import Checkpoint, CheckpointError
from lpjax.checkpoint.stages import net_folder

_SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
"""Vocabularies that the package sentencepiece reads."""

_COMPLETE = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"), *((name,) for name in _SENTENCEPIECE))
"""Sets of files that form a whole vocabulary."""


def load_tokenizer(folder: str | Path, **options: Any) -> Any:
    """Load the transformers tokenizer of a checkpoint's folder, from local files only and without running its code.

    A folder without tokenizer.json whose vocabulary is a SentencePiece model (sentencepiece.bpe.model, spiece.model,
    tokenizer.model) needs the packages sentencepiece and protobuf.

    Args:
        folder: a local folder, such as `Checkpoint.source`.
        **options: options of `AutoTokenizer.from_pretrained`.

    Raises:
        FileNotFoundError: there is no such folder, or no vocabulary in it.
        CheckpointError: the tokenizer's files are damaged, its class does not read them, or a package that it needs is
            not installed.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; expected the folder of a checkpoint")
    path = net_folder(path)
    present = [names for names in _COMPLETE if all((path / name).is_file() for name in names)]
    if not present:
        complete = ", ".join(" with ".join(names) for names in _COMPLETE)
        raise FileNotFoundError(
            f"{path} holds no tokenizer, expected {complete}; copy it from the model that this one was made from"
        )
    if all(names[0] in _SENTENCEPIECE for names in present):
        _require_sentencepiece(path / present[0][0])

    def unread(name: str, does: str) -> str:
        return (
            f"{path} holds {' and '.join(present[0])}, but its tokenizer's class, {name}{does}; name the class that "
            "reads it as `tokenizer_class` in tokenizer_config.json"
        )

    AutoTokenizer = _auto_tokenizer()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # tokenizers raises bare Exception on a damaged file
        unless = "unless that is damaged, reads other files"  # transformers 4 raises where 5 makes an empty tokenizer
        raise CheckpointError(f"the tokenizer of {path} cannot be loaded: {error}; {unread('', unless)}") from error
    # If the class finds none of its files, transformers silently makes a tokenizer of special tokens alone.
    files = [name for name in tokenizer.vocab_files_names.values() if isinstance(name, str)]
    if files and not any((path / name).is_file() for name in files):
        raise CheckpointError(unread(f"{type(tokenizer).__name__}, ", f"reads {' or '.join(files)}"))
    return tokenizer


def tokenizer_of(checkpoint: Checkpoint, **options: Any) -> Any:
    """The tokenizer in the folder that a checkpoint came from; `options` are those of `load_tokenizer`.

    Raises:
        ValueError: the checkpoint came from no folder.
        FileNotFoundError, CheckpointError: as `load_tokenizer`.
    """
    if checkpoint.source is None:
        raise ValueError("`tokenizer` is None and the checkpoint has no folder to take one from; pass a tokenizer")
    return load_tokenizer(checkpoint.source, **options)


def _require_sentencepiece(vocabulary: Path) -> None:
    try:
        require("sentencepiece", f"{vocabulary}, a SentencePiece vocabulary,")
    except MissingExtra as error:
        raise CheckpointError(f"{error}, or add the tokenizer.json of the model that this one was made from") from None


def _auto_tokenizer() -> Any:
    """transformers.AutoTokenizer, imported without transformers' remark that PyTorch is not installed."""
    with without_advice():
        from transformers import AutoTokenizer
    return AutoTokenizer
