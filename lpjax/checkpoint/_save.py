"""Saving a checkpoint, all of it or nothing."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from lpjax.checkpoint._load import BLOCK, CONFIG, WEIGHTS, Checkpoint, lowrank_ranks
from lpjax.checkpoint._tensors import not_finite, write_tensors
from lpjax.models import architecture, config_from_json

# What a tokenizer and sentence-transformers read. A list of what to copy, not of what to leave out: a source
# folder also holds the weights in other formats, logs, and whatever else lay there.
_SIDE_FILES = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
}
_LICENSES = re.compile(r"(LICENSE|LICENCE|NOTICE|COPYING)(\.\w+)?", re.IGNORECASE)
_MODULES = re.compile(r"[0-9]+_\w+")  # stages of sentence-transformers, such as 1_Pooling
_MODULE_FILES = {
    "config.json",
    "model.safetensors",
}  # a stage such as 2_Dense has weights of its own


def save_checkpoint(checkpoint: Checkpoint, folder: str | Path, *, overwrite: bool = False) -> int:
    """Save `checkpoint` as a Hugging Face folder that `load_checkpoint` reads back bit-exactly.

    Writes model.safetensors with PyTorch's names, config.json, and the tokenizer's and sentence-transformers'
    files of `checkpoint.source`. A dense checkpoint loads in transformers too. A `LowRank` weight N becomes
    `N.left` (in, rank) and `N.right` (rank, out), and config.json says so under "lpjax". Everything is
    written beside `folder` and then renamed, so that `folder` is never half written.

    Args:
        checkpoint: what to save; leaves keep their dtype.
        folder: where to; parent folders are made.
        overwrite: replace `folder` where it is there, is a checkpoint or empty, and does not hold
            `checkpoint.source`.

    Returns:
        Size of model.safetensors in bytes.

    Raises:
        FileExistsError: `folder` exists and may not be replaced.
        FileNotFoundError: `checkpoint.source` is no longer there.
        ValueError: params that do not fit the config or are not finite, with every path; nothing is written.
    """
    target = check_target(folder, checkpoint.source, overwrite)
    pairs, misfits = architecture(checkpoint.config).name_table(checkpoint.config).write(checkpoint.params)
    if misfits:
        raise ValueError(f"`params` does not fit `config`:\n{misfits}")
    config = json.dumps(_config_json(checkpoint), indent=2, allow_nan=False) + "\n"
    bad = [*not_finite(pairs)]
    if bad:
        raise ValueError(f"`params` holds NaN or infinite weights: {', '.join(bad)}")

    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    try:
        fresh.mkdir()
        size = write_tensors(fresh / WEIGHTS, pairs)
        (fresh / CONFIG).write_text(config, encoding="utf-8")
        if checkpoint.source is not None:
            _copy_side_files(checkpoint.source, fresh)
        swap_in(fresh, target, overwrite)
    finally:
        # Also after Ctrl-C; gone already where the rename was reached.
        shutil.rmtree(fresh, ignore_errors=True)
    return size


def check_target(folder: str | Path, source: Path | None, overwrite: bool) -> Path:
    """`folder` in full, if it may be written: refused as `save_checkpoint` says, and so is a `source` that is gone."""
    target = Path(folder).expanduser().resolve()
    if source is not None and not source.is_dir():
        raise FileNotFoundError(f"`checkpoint.source`, {source}, is no longer there; None saves without a tokenizer")
    if not target.exists():
        return target
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file, expected a folder that is not there yet")
    if not overwrite:
        raise FileExistsError(f"{target} exists; choose another folder, or overwrite=True (--force) to replace it")
    if source is not None:
        origin = source.resolve()
        if origin == target or target in origin.parents or origin in target.parents:
            raise FileExistsError(f"{target} overlaps {origin}, which the checkpoint came from; choose another folder")
    inside = {path.name for path in target.iterdir()}
    if inside and not (CONFIG in inside and any(name.endswith(".safetensors") for name in inside)):
        raise FileExistsError(f"{target} is not empty and not a checkpoint; choose another folder")
    return target


def swap_in(fresh: Path, target: Path, overwrite: bool) -> None:
    """Rename `fresh` to `target`; what was there is kept until the new one stands in its place."""
    if not (overwrite and target.exists()):
        # Made in the meantime, an empty folder is replaced by rename and any other makes it fail.
        fresh.rename(target)
        return
    old = fresh.with_suffix(".old")
    try:
        target.rename(old)
        fresh.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _config_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config.json to write: all of the source's, as far as it still holds, and the `lpjax` block."""
    from lpjax import __version__  # Late: the package imports this module.

    data = dict(checkpoint.config_json or {})
    data.pop(BLOCK, None)
    if not data or config_from_json(data) != checkpoint.config:
        data |= checkpoint.config.to_json()
    ranks = lowrank_ranks(checkpoint.params)
    if checkpoint.compression is not None or ranks:
        data[BLOCK] = {"version": __version__, **(checkpoint.compression or {}), "ranks": ranks}
    return data


def _copy_side_files(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if path.is_file() and (path.name in _SIDE_FILES or _LICENSES.fullmatch(path.name)):
            shutil.copyfile(path, target / path.name)
        elif path.is_dir() and _MODULES.fullmatch(path.name):
            files = [file for file in path.iterdir() if file.is_file() and file.name in _MODULE_FILES]
            if files:
                (target / path.name).mkdir()
            for file in files:
                shutil.copyfile(file, target / path.name / file.name)
