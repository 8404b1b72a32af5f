"""Save and export checkpoints, each folder whole or not at all."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lpjax._check import check_name
from lpjax._files.json import json_text
from lpjax._files.replacing import check_parent, overlap, put_back, replacing_folder
from lpjax._tree import nested, walk
from lpjax.checkpoint._dense import densified
from lpjax.checkpoint._load import Checkpoint, lowrank_ranks, quantized_groups
from lpjax.checkpoint._torch import AUTO_MAP, TORCH_FILES, auto_map, others_code, torch_texts
from lpjax.checkpoint.cards import CARD, source_cards, wrote_card
from lpjax.checkpoint.error import printable
from lpjax.checkpoint.formats import (
    BLOCK,
    CONFIG,
    FACTORED_WEIGHTS,
    FORMATS,
    PROGRAM_FILES,
    QUANTIZED,
    RANKS,
    WEIGHTS,
    WEIGHTS_KEY,
)
from lpjax.checkpoint.int8 import FACTORS, INT8, rounded_factors
from lpjax.checkpoint.links import check_inside, copy_inside, files_inside
from lpjax.checkpoint.safetensors import DTYPES, check_finite, write_tensors
from lpjax.checkpoint.stages import MODULES, OWN_TYPES, SENTENCE_CONFIGS, modules_at_root, net_folder, read_stages
from lpjax.models import config_from_json, name_table
from lpjax.models.names import NameTable, head_named, listed
from lpjax.weights.coded import split_coded
from lpjax.weights.parts import DENSE, kind_of, part_name, parts_of

Text = str | Callable[[int], str]
"""A text, or a function that makes it from the size of the weights in bytes."""

# The files that a tokenizer and sentence-transformers read. Only these are copied, since a source folder may also hold
# weights in other formats, logs, and anything else.
_ROOT_FILES = {MODULES, "config_sentence_transformers.json"}
_NET_FILES = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tekken.json",
    *SENTENCE_CONFIGS,
}
_CHAT_TEMPLATES = "additional_chat_templates"
_LICENSES = re.compile(r"(LICENSE|LICENCE|NOTICE|COPYING)(\.\w+)?", re.IGNORECASE)
_log = logging.getLogger("lpjax")


def save_checkpoint(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    overwrite: bool = False,
    int8: bool = False,
    extra_files: Mapping[str, Text] | None = None,
) -> int:
    """Save `checkpoint` as a Hugging Face folder that `load_checkpoint` reads back bit-exactly.

    Writes the weights with PyTorch's names, config.json, and the tokenizer's and sentence-transformers' files of
    `checkpoint.source`, including all of its stages. The model itself goes to the root even if it was in 0_Transformer.
    Dense weights go to model.safetensors, which transformers and sentence-transformers load, too. If any weight is
    factored or quantized, the weights go to lpjax.safetensors, which config.json names under "lpjax"; both libraries
    load it only with `trust_remote_code=True`, through modeling_lpjax.py in the same folder. A `LowRank` weight N
    becomes `N.left` (in, rank) and `N.right` (rank, out), with single entries also `N.values`, `N.columns` and
    `N.starts` (`Sparse`). A `Quantized` weight or factor N becomes `N.codes`, entropy coded, `N.scales`, and `N.steps`
    if it has any. README.md is a model card for the hub, unless `extra_files` has one or `folder` has one without
    lpjax's own line. Everything is written beside `folder` and then renamed, so `folder` is never half written.

    Args:
        checkpoint: the checkpoint; leaves keep their dtype.
        folder: the folder to write; parent folders are made.
        overwrite: whether to replace `folder` if it is a checkpoint or empty, and does not hold `checkpoint.source`.
        int8: whether to round factors to 8 bits, symmetrically, with a scale for each column of left and each row of
            right: `N.left_scale` and `N.right_scale`, (rank,). Loading restores floating-point factors, so only the
            file is smaller, and a model that is trained further must be rounded again.
        extra_files: texts to write beside the weights, by file name, such as a record of the run; or functions that
            make such a text from the size of the weight file in bytes.

    Returns:
        Size of the weight file in bytes.

    Raises:
        FileExistsError: `folder` exists and may not be replaced.
        FileNotFoundError: `checkpoint.source` is no longer there.
        CheckpointError: modules.json of `checkpoint.source` is damaged, or a file to be copied is a link that leads
            out of that folder, and not into the blobs of the hub's cache.
        ValueError: `params` does not fit the config or is not finite (names every path), or `int8` is set for a model
            without factors or with quantized weights; nothing is written.
    """
    target = check_target(folder, checkpoint.source, overwrite)
    pairs = _checked_pairs(checkpoint)
    if int8 and not lowrank_ranks(checkpoint.params):
        raise ValueError("`int8` is for factors, and `params` has none: compress it first")
    if int8 and quantized_groups(checkpoint.params):
        raise ValueError("`int8` is for factors of floating-point numbers, and `params` has quantized weights")
    stored_pairs = split_coded(rounded_factors(pairs) if int8 else pairs)
    _refuse_names(checkpoint.extra, stored_pairs)
    pairs = [*stored_pairs, *checkpoint.extra.items()]
    config = json_text(_config_data(checkpoint, int8))
    compressed = _has_parts(checkpoint.params)
    texts = {CONFIG: config, **(torch_texts() if compressed else {}), **(extra_files or {})}
    name = FACTORED_WEIGHTS if compressed else WEIGHTS
    stored = _bytes_by_path(checkpoint, pairs)
    return _write_folder(
        target, checkpoint, overwrite, texts, lambda staging: write_tensors(staging / name, pairs), stored=stored
    )


def export_checkpoint(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    format: str = "safetensors",
    overwrite: bool = False,
    extra_files: Mapping[str, Text] | None = None,
) -> int:
    """Save `checkpoint` densely, as a folder that other libraries read without lpjax.

    Each `LowRank` weight is multiplied out, and each `Quantized` weight expanded, in double precision and rounded to
    its dtype; all other weights stay bit for bit. PyTorch's `AutoModel….from_pretrained` loads the folder without a
    missing or unexpected key, if the weights are those of its class; Flax classes do so with the format "msgpack".
    XLNet never had a Flax class: its tree is lpjax's own. Export needs memory for one dense weight at a time.

    Args:
        checkpoint: the checkpoint to export, dense or compressed.
        folder: the folder to write, as in `save_checkpoint`.
        format: "safetensors" (model.safetensors, PyTorch's names) or "msgpack" (flax_model.msgpack, the tree of
            Hugging Face's Flax models).
        overwrite, extra_files: as in `save_checkpoint`.

    Returns:
        Size of the weight file in bytes.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: as `save_checkpoint`; also a ValueError if a product
            overflows its dtype, with its path.
    """
    check_name("format", format, FORMATS)
    target = check_target(folder, checkpoint.source, overwrite)
    _checked_pairs(checkpoint)
    dense = dataclasses.replace(checkpoint, params=densified(checkpoint.params), compression=None)
    table = name_table(dense.config)
    base = dense.params.get(table.prefix)
    head = table.groups_of((dense.config_json or {}).get("architectures"))
    if base is not None and head and "pooler" not in head:
        # Left over from pre-training; PyTorch's class has none and would warn.
        params = dense.params | {table.prefix: {key: leaf for key, leaf in base.items() if key != "pooler"}}
        dense = dataclasses.replace(dense, params=params)
    pairs = table.write(dense.params)[0]
    kind = FORMATS[format]
    if kind.separator is None:
        pairs = [*pairs, *dense.extra.items()]
    else:
        # Read back to put the base model where Hugging Face's trees have it.
        pairs = _paths(table.read(dict(pairs))[0], dense.extra, kind.separator)
    texts = {CONFIG: json_text(_config_data(dense)), **(extra_files or {})}
    return _write_folder(target, checkpoint, overwrite, texts, lambda staging: kind.write(staging / kind.file, pairs))


def export_folder(
    checkpoint: Checkpoint,
    folder: str | Path,
    write: Callable[[Path], int],
    *,
    overwrite: bool = False,
    extra_files: Mapping[str, Text] | None = None,
    stored: Mapping[str, int] | None = None,
) -> int:
    """Save a folder for another runtime: its own files, config.json, and the files of the tokenizer and the stages.

    Args:
        checkpoint: the checkpoint to export.
        folder: the folder to write, as in `save_checkpoint`.
        write: function that writes the runtime's files into a new folder, and returns their size in bytes.
        overwrite, extra_files: as in `save_checkpoint`.
        stored: bytes that each weight takes in these files, by path, for the model card; None if all are dense.

    Returns:
        Size of the runtime's files in bytes.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: as `save_checkpoint`; also a ValueError if a stage lies in a
            folder that an exported program uses.
    """
    target = check_target(folder, checkpoint.source, overwrite)
    _checked_pairs(checkpoint)
    data = _config_data(checkpoint)
    for key in (BLOCK, AUTO_MAP):  # an export has no code beside it
        data.pop(key, None)
    if checkpoint.source is not None:
        taken = [stage.path for stage in read_stages(checkpoint.source) if stage.path.split("/")[0] in PROGRAM_FILES]
        if taken:
            raise ValueError(f"a stage of the folder is in {taken[0]}, which is reserved for exported programs")
    texts = {CONFIG: json_text(data), **(extra_files or {})}
    return _write_folder(target, checkpoint, overwrite, texts, write, stored=stored)


def _checked_pairs(checkpoint: Checkpoint) -> list[tuple[str, Any]]:
    """The (name, tensor) pairs of a file for `checkpoint`; a ValueError names everything that cannot be saved."""
    pairs, misfits = name_table(checkpoint.config).write(checkpoint.params)
    misfits.refuse()
    strange = [f"{name} ({array.dtype})" for name, array in pairs if np.dtype(array.dtype) not in DTYPES.values()]
    if strange:
        raise ValueError(f"`params` holds weights of a dtype that files cannot hold: {', '.join(strange)}")
    check_finite(
        ((part_name(name, part), array) for name, leaf in pairs for part, array in parts_of(leaf).items()), "`params`"
    )
    _refuse_names(checkpoint.extra, pairs)
    formats = {str(dtype) for dtype in DTYPES.values()}
    odd = [name for name, array in checkpoint.extra.items() if str(getattr(array, "dtype", "")) not in formats]
    if odd:
        raise ValueError(f"`checkpoint.extra` holds values that are not arrays of a supported dtype: {listed(odd)}")
    return pairs


def _refuse_names(extra: Mapping[str, Any], pairs: list[tuple[str, Any]]) -> None:
    """Refuse extra tensors named like the model's own weights."""
    repeated = sorted(extra.keys() & {name for name, _ in pairs})
    if repeated:
        raise ValueError(f"`checkpoint.extra` holds names of the model's own weights: {listed(repeated)}")


def _paths(tree: Mapping[str, Any], extra: Mapping[str, Any], separator: str) -> list[tuple[str, Any]]:
    """(path, leaf) of a Flax tree and of extra arrays, whose names become paths at each ".".

    Raises:
        ValueError: together they do not form a tree.
    """
    odd = [name for name in extra if "/" in name or not all(name.split("."))]
    if odd:
        raise ValueError(
            f"`checkpoint.extra` cannot be written as a Flax tree: {listed(odd)} has a slash or an empty part; "
            'leave it out of `extra`, or write format "safetensors"'
        )
    leaves = {path.replace("/", separator): leaf for path, leaf in walk(tree)}
    more = {name.replace(".", separator): array for name, array in extra.items()}
    try:
        if both := leaves.keys() & more.keys():
            raise ValueError(f"{min(both)} is an array of the model")
        nested(leaves | more, separator)
    except ValueError as error:
        raise ValueError(f"`checkpoint.extra` cannot be written as a Flax tree: {error}") from error
    return [*leaves.items(), *more.items()]


def _bytes_by_path(checkpoint: Checkpoint, pairs: Collection[tuple[str, Any]]) -> dict[str, int]:
    """Size of each weight in a file of these pairs, in bytes, over all its parts, by path."""
    table = name_table(checkpoint.config)
    nbytes = {name: 0 for _, name, _ in table.located(table.prefix in checkpoint.params)}
    for name, array in pairs:
        own = name
        while own and own not in nbytes:
            own = own.rpartition(".")[0]
        nbytes[own] = nbytes.get(own, 0) + array.nbytes
    located = table.located(table.prefix in checkpoint.params)
    return {path: nbytes[name] for _, name, path in located if nbytes[name]}


def _write_folder(
    target: Path,
    checkpoint: Checkpoint,
    overwrite: bool,
    texts: Mapping[str, Text],
    write: Callable[[Path], int],
    *,
    stored: Mapping[str, int] | None = None,
) -> int:
    """Replace `target` by a folder that `write` fills, whole or not at all, and return what `write` returns.

    Files are created, never truncated: leaves may be views of the files that are replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(target, overwrite) as staging:
        size = write(staging)
        for file, text in texts.items():
            (staging / file).write_text(text if isinstance(text, str) else text(size), encoding="utf-8")
        if checkpoint.source is not None:
            copy_side_files(checkpoint.source, staging)
        if CARD not in texts:
            from lpjax.hub import card_text  # Late: the package imports this one.

            write_card(staging, target / CARD, lambda: card_text(staging, checkpoint, size, stored))
    return size


def write_card(folder: Path, old: Path, make: Callable[[], str]) -> None:
    """Write the model card of a new folder, or keep the old one if a person wrote it."""
    if old.is_file() and not old.is_symlink() and not wrote_card(old):
        shutil.copyfile(old, folder / CARD)
        _log.warning(printable(f"{old} was not written by lpjax and is kept: check that it describes the new model"))
    else:
        (folder / CARD).write_text(make(), encoding="utf-8")


def check_target(folder: str | Path, source: Path | None, overwrite: bool) -> Path:
    """The absolute path of `folder`, if a checkpoint from `source` may be written there.

    Raises:
        FileExistsError, FileNotFoundError, CheckpointError: as `save_checkpoint`.
    """
    target = Path(folder).expanduser().resolve()
    put_back(target)
    if source is not None and not source.is_dir():
        raise FileNotFoundError(f"`checkpoint.source`, {source}, is no longer there; None saves without a tokenizer")
    if source is not None:
        check_side_files(source)
    check_parent(target)
    if source is not None and overlap(target, source):
        origin = source.resolve()
        raise FileExistsError(f"{target} overlaps {origin}, which the checkpoint came from; choose another folder")
    if not target.exists():
        return target
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file, expected a folder that is not there yet")
    if not overwrite:
        raise FileExistsError(f"{target} exists; choose another folder, or pass `overwrite=True` to replace it")
    if target.is_mount():
        raise FileExistsError(f"{target} is a mount point, which cannot be replaced; choose a folder inside it")
    inside = {path.name for path in target.iterdir()}
    if inside and not (CONFIG in inside and holds_weights(target)):
        raise FileExistsError(f"{target} is not empty and not a checkpoint; choose another folder")
    return target


def holds_weights(folder: Path) -> bool:
    """Whether a folder has a weight file, or an exported program."""
    suffixes = tuple(format.suffix for format in FORMATS.values())
    programs = (folder / runtime / file for runtime, file in PROGRAM_FILES.items())
    return any(path.name.endswith(suffixes) for path in folder.iterdir()) or any(path.is_file() for path in programs)


def _config_data(checkpoint: Checkpoint, int8: bool = False) -> dict[str, Any]:
    """The config.json to write: that of the source, as far as it still holds, and the `lpjax` block."""
    from lpjax import __version__  # Late: the package imports this module.

    config, params = checkpoint.config, checkpoint.params
    data = dict(checkpoint.config_json or {})
    data.pop(BLOCK, None)
    code = others_code(data.pop(AUTO_MAP, None))
    if not data or config_from_json(data) != config:
        data |= config.to_json()
    data["model_type"] = config.model_type  # transformers needs it; the first checkpoints lack it
    if (classes := _architectures(checkpoint, data.get("architectures"))) is not None:
        data["architectures"] = classes
    labels = _num_labels(name_table(config), params)
    if labels is not None and labels != _declared_labels(data):
        # Otherwise transformers would make a head of another size.
        data.pop("num_labels", None)
        data["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        data["label2id"] = {name: int(i) for i, name in data["id2label"].items()}
    compressed = _has_parts(params)
    if compressed:
        # No entries of others: their files are not copied, and who trusts this folder should trust lpjax's files only.
        code = auto_map(config.head if _has_head(checkpoint) else None)
    data |= {AUTO_MAP: code} if code else {}
    if checkpoint.compression is not None or compressed:
        derived_keys = (FACTORS, WEIGHTS_KEY, RANKS, QUANTIZED)
        known = {key: value for key, value in (checkpoint.compression or {}).items() if key not in derived_keys}
        known |= {FACTORS: INT8} if int8 else {}
        known |= {WEIGHTS_KEY: FACTORED_WEIGHTS} if compressed else {}
        known |= {QUANTIZED: groups} if (groups := quantized_groups(params)) else {}
        data[BLOCK] = {"version": __version__, **known, RANKS: lowrank_ranks(params)}
    return data


def _architectures(checkpoint: Checkpoint, named: Any) -> list[str] | None:
    """The class names for config.json: those of the source, unless they name another head than the weights have."""
    config, table = checkpoint.config, name_table(checkpoint.config)
    if (head_named(named) or "sequence") != config.head:
        named = [config.class_for(config.head)]
    if table.write(checkpoint.params, table.groups_of(named))[1]:
        # The base model of a classifier: with the classifier's class name, loading would fail for lack of the head.
        named = [f"{str(named[0]).split('For')[0]}Model"]
    return named


def _has_head(checkpoint: Checkpoint) -> bool:
    """Whether the weights of the config's head are there."""
    table = name_table(checkpoint.config)
    groups = table.head_groups.get(checkpoint.config.head)
    return bool(groups) and not table.write(checkpoint.params, groups)[1]


def _has_parts(params: Mapping[str, Any]) -> bool:
    """Whether any weight is not dense, so that other libraries must not read the file."""
    return any(kind_of(leaf) is not DENSE for _, leaf in walk(params))


def _num_labels(table: NameTable, params: Mapping[str, Any]) -> int | None:
    """Number of outputs of the classification head, or None without one."""
    paths = dict(walk(params))
    for weight in table.heads:
        if "labels" in weight.shape and weight.path in paths:
            return paths[weight.path].shape[weight.shape.index("labels")]
    return None


def _declared_labels(data: Mapping[str, Any]) -> int:
    """The number of labels as transformers reads it from a config.json."""
    names = data.get("id2label")
    return len(names) if isinstance(names, Mapping) else data.get("num_labels", 2)


def check_side_files(source: Path) -> None:
    """Refuse a folder whose side files are links that lead out of it, before any work.

    Raises:
        LinkError: there is one; names the first.
    """
    for path, _ in _side_files(source):
        check_inside(path, source)


def copy_side_files(source: Path, target: Path) -> None:
    """Copy the files of the tokenizer and of sentence-transformers, without running or unpickling any."""
    for stage in read_stages(source)[1:]:
        if stage.path and (source / stage.path).is_dir():
            (target / stage.path).mkdir(parents=True, exist_ok=True)
    for path, name in _side_files(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copy_inside(path, target / name, source)
    if net_folder(source) != source:
        (target / MODULES).write_text(modules_at_root(source), encoding="utf-8")


def _side_files(source: Path) -> Iterator[tuple[Path, str]]:
    """Each file to be copied, and its path in the copy."""
    stages, inner = read_stages(source), net_folder(source)
    own_code = any(stage.type and not stage.type.startswith(OWN_TYPES) for stage in stages)
    for folder, names in ((source, _ROOT_FILES), (inner, _NET_FILES)):
        for path in folder.iterdir():
            code = own_code and folder == source and path.suffix == ".py" and path.name not in TORCH_FILES
            if path.is_file() and (path.name in names or code or _LICENSES.fullmatch(path.name)):
                yield path, path.name
    if (inner / _CHAT_TEMPLATES).is_dir():
        for path in files_inside(inner / _CHAT_TEMPLATES, source):
            if path.suffix == ".jinja":
                yield path, path.relative_to(inner).as_posix()
    yield from source_cards(source)
    for stage in stages[1:]:
        if stage.path and (source / stage.path).is_dir():
            for path in files_inside(source / stage.path, source):
                yield path, path.relative_to(source).as_posix()
