"""Load a checkpoint, or make one from a tree in memory."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import wadler_lindig as wl

from lpjax._repr import short_repr
from lpjax._tree import check_tree, walk
from lpjax.checkpoint._fit import fit, read_tree
from lpjax.checkpoint._folder_hints import newer_lpjax
from lpjax.checkpoint._weights import read_weights
from lpjax.checkpoint.error import CheckpointError, printable
from lpjax.checkpoint.files import read_object
from lpjax.checkpoint.formats import BLOCK, CONFIG, QUANTIZED, RANKS, WEIGHTS_KEY
from lpjax.checkpoint.int8 import restored_factors
from lpjax.checkpoint.safetensors import ENTRY, check_finite
from lpjax.checkpoint.source import find_folder
from lpjax.checkpoint.stages import net_folder
from lpjax.models import ARCHITECTURES, ModelConfig, UnknownModel, config_from_json, name_table
from lpjax.models.names import listed, shape_text
from lpjax.weights.coded import Coded, join_coded, split_coded
from lpjax.weights.low_rank import LowRank
from lpjax.weights.parts import part_name, parts_of
from lpjax.weights.quantized import Quantized

_ADAPTER = "adapter_config.json"  # of peft
_WEIGHTS_ONLY = "; `lpjax compress --weights-only` factors the matrices of any model, without running it"
_log = logging.getLogger("lpjax")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model: its weights, its config, and where it came from.

    Attributes:
        params: nested dict in the layout of Hugging Face's Flax models; leaves are arrays, `Quantized` or
            `LowRank`.
        config: static config of the forward pass.
        source: folder with the files of the tokenizer and of sentence-transformers, which `save_checkpoint` copies; or
            None.
        compression: how the weights were compressed (method, p, ranks by path, file), or None.
        config_json: contents of the config.json that was read, or None. Saving keeps its keys that `config` lacks.
        extra: arrays of any dtype, by name, that the file holds besides the model's weights (weights of a loss, a CRF,
            a projection). They are not used; `save_checkpoint` and `export_checkpoint` write them back bit for bit.
    """

    params: dict[str, Any]
    config: ModelConfig
    source: Path | None = None
    compression: dict[str, Any] | None = None
    config_json: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def extra_bytes(self) -> int:
        """Size of `extra` in a file, in bytes, including its header entries."""
        return sum(array.nbytes + len(name) + ENTRY for name, array in self.extra.items())

    def __pdoc__(self, **options: Any) -> wl.AbstractDoc:
        """One line, also as a field of a printed result."""
        return wl.TextDoc(repr(self))

    def __repr__(self) -> str:
        """One line: arrays are counted, and the config is shown as its class."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shown = {name: short_repr(value) for name, value in values.items() if value not in (None, {})}
        shown["config"] = f"{type(self.config).__name__}(…)"
        return f"Checkpoint({', '.join(f'{name}={text}' for name, text in shown.items())})"


def load_checkpoint(source: str | Path, *, copy: bool = False) -> Checkpoint:
    """Load a checkpoint from a folder or from the Hugging Face Hub; nothing is unpickled.

    Reads config.json and the weights: lpjax.safetensors if config.json names it, as `save_checkpoint` does for a model
    with factors, else model.safetensors (or its shards), else flax_model.msgpack. If modules.json says that the model
    is in a subfolder such as 0_Transformer, as in old folders of sentence-transformers, they are read from there.
    Leaves are read-only views of the memory-mapped file, in its dtype, so memory is used only as weights are read. int8
    factors become new arrays in their original dtype; the codes of quantized weights are decoded to packed codes.

    Views follow the file. If another program overwrites it, the weights change; if one truncates it, reading the
    weights kills the process with SIGBUS. Replacing or deleting the file is harmless, and lpjax itself only replaces
    files. Use `copy` if another program may write to the folder while the checkpoint is in use.

    If the rest of the file fits, the prefix of a wrapper ("module.", "_orig_mod.") is removed from names, and extra
    tensors are kept in `extra`; the logger "lpjax" warns of each in one line. Tensors that may change what the model
    computes are refused: layers beyond the config's, adapters, quantized weights of other libraries, misspelt names.

    Args:
        source: a folder, or a hub id such as "sentence-transformers/all-MiniLM-L6-v2".
        copy: whether to read the files into memory instead of mapping them.

    Raises:
        CheckpointError: something is missing, unknown, repeated, mis-shaped, not finite or not supported; names the
            file and the first ten tensors of each kind.
        FileNotFoundError, NotADirectoryError, PermissionError, ConnectionError: `source` is neither a folder nor a
            repository of the hub, or cannot be fetched.
    """
    folder = find_folder(source)
    inner = net_folder(folder)
    data = read_object(inner / CONFIG)
    try:
        return _load(source, folder, inner, data, copy)
    except CheckpointError as error:
        if hint := newer_lpjax(data.get(BLOCK)):
            raise CheckpointError(f"{error}{hint}") from error
        raise


def _load(source: str | Path, folder: Path, inner: Path, data: dict[str, Any], copy: bool) -> Checkpoint:
    """The checkpoint in `folder`, whose model is in `inner`, with the config.json `data`."""
    try:
        config = config_from_json(data)
    except ValueError as error:
        advice = _WEIGHTS_ONLY if isinstance(error, UnknownModel) else ""
        raise CheckpointError(f"{inner / CONFIG}: {error}{advice}") from error
    compression = _compression(data, inner / CONFIG)

    name = str(source) if inner == folder else str(inner)
    named = (compression or {}).get(WEIGHTS_KEY)
    path, tensors, separator = read_weights(inner, name, data.get("architectures"), named, copy=copy)
    try:
        tensors = restored_factors(join_coded(tensors))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    table = name_table(config)
    try:
        fitted = fit(table, tensors, separator, table.groups_of(data.get("architectures")))
    except ValueError as error:
        raise CheckpointError(f"{path} holds no tree: {error}") from error
    if fitted.misfits:
        report = "\n".join([str(fitted.misfits), *(f"  {hint}" for hint in fitted.hints)])
        raise CheckpointError(f"{path} does not fit the {config.model_type} of {inner / CONFIG}:\n{report}")
    own = ((name, tensor) for name, tensor in tensors.items() if name not in fitted.beside)
    floats = (pair for pair in own if pair[1].dtype.kind not in "iub" and not isinstance(pair[1], Coded))
    check_finite(floats, str(path), CheckpointError)
    params = _decoded(fitted.params, path)
    if compression is not None:
        for key, kind, actual in (
            (RANKS, "factored", lowrank_ranks(params)),
            (QUANTIZED, "quantized", quantized_groups(params)),
        ):
            if differing := sorted(set(compression.get(key, {}).items()) ^ set(actual.items())):
                raise CheckpointError(
                    f"{inner / CONFIG}: `{BLOCK}.{key}` and the {kind} weights of {path} differ at "
                    + ", ".join(dict.fromkeys(name for name, _ in differing))
                )
    if fitted.wrapper:
        # The wrapper may be a user's `self.bert` that holds any model, or config.json may belong to another model.
        last = re.split(r"[./]", fitted.wrapper)[-2]
        other = last in ARCHITECTURES and last != table.prefix
        kind = f" (but config.json says that the model is {config.model_type})" if other else ""
        _log.warning(printable(f"{path}: names begin with {fitted.wrapper}{kind}, which is left out"))
    if fitted.outside:
        names = listed(fitted.outside)
        _log.warning(printable(f"{path}: taken for a head of the model, though outside {fitted.wrapper}: {names}"))
    if (inner / _ADAPTER).exists():
        _log.warning(
            printable(
                f"{inner / _ADAPTER} belongs to an adapter, which is not applied; if {path.name} is not the merged "
                "model, merge it first by `merge_and_unload()` of peft"
            )
        )
    if fitted.extra:
        names = listed([f"{name} {shape_text(array.shape)}" for name, array in fitted.extra.items()])
        _log.warning(printable(f"{path}: kept beside the model, and written back as they are: {names}"))
    return Checkpoint(params, config, folder, compression, data, dict(split_coded([*fitted.extra.items()])))


def from_tree(params: Mapping[str, Any], config: Any, *, source: str | Path | None = None) -> Checkpoint:
    """Make a checkpoint from a tree in memory, such as `FlaxBertForSequenceClassification.params`.

    Args:
        params: nested mappings (dict, flax's FrozenDict, …) in the layout of Hugging Face's Flax models, with or
            without a head, and also with {"params": …} around them; leaves are arrays or `LowRank`, and are
            not copied.
        config: the transformers model's `config`, the contents of a config.json, or a config of lpjax.
        source: folder with the tokenizer's files, for `save_checkpoint`.

    Returns:
        A `Checkpoint`; its tree has the base model under its prefix if there is a head.

    Raises:
        ValueError: `params` is not such a tree, does not fit the config or is not finite (names every path); or lpjax
            does not support the config.
    """
    data: dict[str, Any] | None = None
    if isinstance(config, Mapping) or hasattr(config, "to_diff_dict"):
        config_dict = config if isinstance(config, Mapping) else config.to_diff_dict()
        data = {key: value for key, value in config_dict.items() if not key.startswith("_")}  # such as _name_or_path
        try:
            config = config_from_json(data)
        except ValueError as error:
            raise ValueError(f"`config` {error}") from error
    check_tree(params)
    table = name_table(config)
    tree = _plain(params["params"] if params.keys() == {"params"} else params)
    kept, misfits = read_tree(table, tree)
    misfits.refuse()
    check_finite(_arrays(kept), "`params`")
    return Checkpoint(kept, config, None if source is None else Path(source), config_json=data)


def lowrank_ranks(params: Mapping[str, Any]) -> dict[str, int]:
    """Rank of every factored weight, by path."""
    return {path: leaf.rank for path, leaf in walk(params) if isinstance(leaf, LowRank)}


def quantized_groups(params: Mapping[str, Any]) -> dict[str, int]:
    """Group size (numbers that share a scale) of every quantized weight or factor, by path ("….kernel.left")."""
    return {name: matrix.group for name, matrix in _matrices(params) if isinstance(matrix, Quantized)}


def _matrices(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path, leaf) of every leaf; a `LowRank` leaf gives (path.left, factor) and (path.right, factor) instead."""
    for path, leaf in walk(params):
        if isinstance(leaf, LowRank):
            yield from ((part_name(path, part), getattr(leaf, part)) for part in ("left", "right"))
        else:
            yield path, leaf


def _check_rank(pair: LowRank, file: Path, path: str) -> None:
    """Refuse coded factors larger than their matrix before decoding: a few bytes can expand to very many zeros."""
    if isinstance(pair.left, Coded) and pair.rank > max(pair.shape):
        raise CheckpointError(f"{file}: {path} is refused: its rank is {pair.rank}, more than its shape {pair.shape}")


def _decoded(tree: Mapping[str, Any], file: Path, path: str = "") -> dict[str, Any]:
    """`tree` with its coded matrices decoded; a CheckpointError names the file and the matrix."""

    def decode(matrix: Any, name: str) -> Any:
        try:
            return matrix.decoded() if isinstance(matrix, Coded) else matrix
        except ValueError as error:
            raise CheckpointError(f"{file}: {name} is refused: {error}") from error

    decoded = {}
    for key, child in tree.items():
        here = f"{path}/{key}" if path else key
        if isinstance(child, Mapping):
            decoded[key] = _decoded(child, file, here)
        elif isinstance(child, LowRank):
            _check_rank(child, file, here)
            factors = {part: decode(getattr(child, part), part_name(here, part)) for part in ("left", "right")}
            decoded[key] = dataclasses.replace(child, **factors)
        else:
            decoded[key] = decode(child, here)
    return decoded


def _plain(tree: Mapping[Any, Any], path: str = "") -> dict[str, Any]:
    """`tree` as nested dicts."""
    plain = {}
    for key, child in tree.items():
        if not isinstance(key, str) or "/" in key:
            hint = "flax.traverse_util.unflatten_dict makes nested dicts of a flat one"
            raise ValueError(f"`params` has the key {key!r} in {path or 'its root'}, expected a plain name; {hint}")
        plain[key] = _plain(child, f"{path}/{key}" if path else key) if isinstance(child, Mapping) else child
    return plain


def _arrays(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path, array) for every array, including each part of a weight that is not dense."""
    for path, leaf in walk(params):
        yield from ((part_name(path, part), array) for part, array in parts_of(leaf).items())


def _compression(data: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    block = data.get(BLOCK)
    if block is None:
        return None
    if not isinstance(block, dict):
        raise CheckpointError(f"{path}: `{BLOCK}` is {block!r}, expected an object")
    for key, numbers in ((RANKS, block.get(RANKS)), (QUANTIZED, block.get(QUANTIZED, {}))):
        if not isinstance(numbers, dict) or not all(type(number) is int for number in numbers.values()):
            raise CheckpointError(f"{path}: `{BLOCK}.{key}` is {numbers!r}, expected an object of whole numbers")
    return block
