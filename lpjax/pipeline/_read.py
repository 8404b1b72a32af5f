"""Reading a folder of sentence-transformers: what it does with a text, or by name what lpjax does not compute of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lpjax._files.json import Fields, read_fields
from lpjax.checkpoint import Checkpoint, CheckpointError
from lpjax.checkpoint.formats import CONFIG, WEIGHTS
from lpjax.checkpoint.safetensors import check_finite, read_tensors
from lpjax.checkpoint.stages import OWN_TYPES, SENTENCE_CONFIGS, net_folder, read_stages
from lpjax.checkpoint.stages import Stage as Entry
from lpjax.pipeline._rules import TextRules
from lpjax.pipeline._stages import (
    ACTIVATIONS,
    POOLINGS,
    TOKENS,
    VECTOR,
    Constant,
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    SentencePipeline,
    Stage,
    Truncate,
)

_MAIN_CONFIG = "config_sentence_transformers.json"
_PICKLE = "pytorch_model.bin"
_ELSE = "lpjax compresses, saves and exports the net all the same, but cannot embed text with it"

# Keys of a pooling's config before pooling_mode, in the order in which their vectors are put side by side.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Arguments that a folder may give to transformers: of these no number depends, the others are refused.
_TRUST = ("trust_remote_code",)
_IDLE_CONFIG = {"use_cache", "output_hidden_states", "output_attentions", "attn_implementation", *_TRUST}
_IDLE_TOKENIZER = {"use_fast", "padding_side", "cache_dir", "token", "revision", "local_files_only", *_TRUST}
_IDLE_CALL = {"padding", "pad_to_multiple_of", "return_tensors", "return_attention_mask", "return_token_type_ids"}


def read_pipeline(checkpoint: Checkpoint) -> SentencePipeline:
    """How the folder that a checkpoint came from makes a vector of a text.

    A net without a folder, or whose folder has no modules.json, averages the hidden states of all tokens, which is also
    what sentence-transformers does then.

    Raises:
        CheckpointError: the folder's files are damaged, or ask for what lpjax does not compute, by name.
        FileNotFoundError: the folder is no longer there.
    """
    folder = checkpoint.source
    if folder is None:
        return SentencePipeline()
    if not folder.is_dir():
        raise FileNotFoundError(f"`checkpoint.source`, {folder}, is no longer there, and it says how to embed a text")
    entries = read_stages(folder)
    if not entries:
        return SentencePipeline()
    _check_first(folder, entries[0])
    main = _fields(folder / _MAIN_CONFIG)
    if main is not None and (kind := main.text("model_type") or "SentenceTransformer") != "SentenceTransformer":
        raise CheckpointError(f"{main.where}: the model is a {kind}, which gives no vector of a text; {_ELSE}")
    sizes = {TOKENS: int(getattr(checkpoint.config, "hidden_size"))}  # noqa: B009
    stages = [stage for entry in entries[1:] for stage in _read_stage(folder, entry, sizes)]
    if VECTOR not in sizes:
        raise CheckpointError(f"{folder}/modules.json has no stage that makes a vector of hidden states; {_ELSE}")
    size = None if main is None else main.count("truncate_dim", least=1)
    if size is not None and size < sizes[VECTOR]:
        stages.append(Truncate(size))
    return SentencePipeline(tuple(stages), _read_rules(net_folder(folder), main))


def _fields(path: Path) -> Fields | None:
    """The object in a file, or None if it is not there."""
    return read_fields(path, CheckpointError) if path.exists() else None


def _check_first(folder: Path, entry: Entry) -> None:
    if not (entry.type.startswith(OWN_TYPES) and entry.type.endswith("Transformer")):
        raise CheckpointError(f"{folder}/modules.json begins with a {entry.type or 'stage without type'}; {_ELSE}")


def _read_stage(folder: Path, entry: Entry, sizes: dict[str, int]) -> list[Stage]:
    """A stage, none for dropout; `sizes` of the features are those before it, and after it then."""
    name = entry.type.rpartition(".")[2]
    place = folder / entry.path
    if name not in _READERS or not entry.type.startswith(OWN_TYPES) or not entry.path:
        raise CheckpointError(f"{folder}: the stage {entry.name} is a {entry.type or '?'}; {_ELSE}")
    fields = _fields(place / CONFIG)
    stage = _READERS[name](place, fields or Fields({}, str(place / CONFIG), error=CheckpointError), sizes)
    return [] if stage is None else [stage]


def _pooling(place: Path, fields: Fields, sizes: dict[str, int]) -> Stage:
    if not fields.data:
        raise CheckpointError(f"{place} holds no {CONFIG}, which says how to pool")
    modes: Any = fields.data.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _FLAGS.items() if fields.flag(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes:
        raise fields.refuse("pooling_mode", "a name, or a list of them")
    unknown = [mode for mode in modes if mode not in POOLINGS]
    flags = {key for key in fields.data if key.startswith("pooling_mode_")} - _FLAGS.keys()
    unknown += [key for key in sorted(flags) if fields.flag(key)]
    if unknown:
        known = ", ".join(POOLINGS)
        raise CheckpointError(f"{fields.where}: the pooling {unknown[0]!r} is not one of {known}; {_ELSE}")
    include = fields.flag("include_prompt")
    sizes[VECTOR] = len(modes) * sizes[TOKENS]
    return Pooling(tuple(modes), include_prompt=include is None or include)


def _dense(place: Path, fields: Fields, sizes: dict[str, int]) -> Stage:
    if not fields.data:
        raise CheckpointError(f"{place} holds no {CONFIG}, which says what the layer computes")
    feature = _feature(fields, sizes)
    size = fields.need("out_features", fields.count("out_features", least=1))
    if (given := fields.need("in_features", fields.count("in_features", least=1))) != sizes[feature]:
        raise CheckpointError(f"{fields.where}: in_features is {given}, but the stage before gives {sizes[feature]}")
    activation = fields.data.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = str(activation).rpartition(".")[2]
    if not isinstance(activation, str) or not activation.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise CheckpointError(
            f"{fields.where}: activation_function is {str(activation)[:100]!r}, expected one of PyTorch's: "
            f"{', '.join(ACTIVATIONS)}; {_ELSE}"
        )
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (size, given)}
    if fields.flag("bias") is not False:
        shapes["linear.bias"] = (size,)
    residual = bool(fields.flag("use_residual"))
    if residual and size != given:
        shapes["residual.weight"] = (size, given)
    tensors = _read_weights(place, shapes)
    bias, projection = tensors.get("linear.bias"), tensors.get("residual.weight")
    sizes[feature] = size
    return Dense(
        Constant(tensors["linear.weight"].T),
        None if bias is None else Constant(bias),
        name,
        residual if projection is None else Constant(projection.T),
        feature,
    )


def _normalize(place: Path, fields: Fields, sizes: dict[str, int]) -> Stage:
    return Normalize(_feature(fields, sizes))


def _layer_norm(place: Path, fields: Fields, sizes: dict[str, int]) -> Stage:
    size = _size(sizes, VECTOR, fields.where)
    tensors = _read_weights(place, {"norm.weight": (size,), "norm.bias": (size,)})
    return LayerNorm(Constant(tensors["norm.weight"]), Constant(tensors["norm.bias"]))


def _dropout(place: Path, fields: Fields, sizes: dict[str, int]) -> None:
    """Nothing: it is for training."""


_READERS = {
    "Pooling": _pooling,
    "Dense": _dense,
    "Normalize": _normalize,
    "LayerNorm": _layer_norm,
    "Dropout": _dropout,
}


def _feature(fields: Fields, sizes: Mapping[str, int]) -> str:
    """Which feature a stage changes."""
    source = fields.text("module_input_name") or VECTOR
    target = fields.text("module_output_name") or source
    if source not in (TOKENS, VECTOR) or target != source:
        raise CheckpointError(f"{fields.where}: the stage makes {target} of {source}; {_ELSE}")
    _size(sizes, source, fields.where)
    return source


def _size(sizes: Mapping[str, int], name: str, where: str) -> int:
    if name not in sizes:
        raise CheckpointError(f"{where}: the stage reads {name}, which no stage before it makes")
    return sizes[name]


def _read_weights(place: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The weights of a stage, float32."""
    path = place / WEIGHTS
    if not path.exists() and (place / _PICKLE).exists():
        raise CheckpointError(
            f"{place} holds its weights only in {_PICKLE}, a pickle, which may run code; where PyTorch is installed, "
            f'convert it by safetensors.torch.save_file(torch.load("{place / _PICKLE}", weights_only=True), "{path}")'
        )
    tensors, _ = read_tensors(path)
    found = {name: array.shape for name, array in tensors.items()}
    if found != dict(shapes):
        actual, expected = (
            ", ".join(f"{name} {list(shape)}" for name, shape in sorted(one.items())) for one in (found, dict(shapes))
        )
        raise CheckpointError(
            f"{path} does not fit {place / CONFIG}: it holds {actual or 'nothing'}; expected {expected}"
        )
    check_finite(tensors.items(), str(path), CheckpointError)
    return {name: np.asarray(array, np.float32) for name, array in tensors.items()}


def _read_rules(inner: Path, main: Fields | None) -> TextRules:
    """What the net's folder and the main config say of text."""
    fields = next((one for name in SENTENCE_CONFIGS if (one := _fields(inner / name)) is not None and one.data), None)
    prompts, default = {"query": "", "document": ""}, None
    if main is not None:
        for name, text in main.anything("prompts").items():
            if not isinstance(text, str | None):
                raise CheckpointError(f"{main.where}: the prompt {name} is no text")
            prompts[name] = text or ""
        default = main.text("default_prompt_name")
        if default is not None and default not in prompts:
            raise CheckpointError(f"{main.where}: default_prompt_name is {default!r}, and there is no such prompt")
    pairs = tuple(prompts.items())
    if fields is None:
        return TextRules(prompts=pairs, default_prompt=default)
    _check_transformer(fields)
    options = _arguments(fields, "processor_kwargs", "tokenizer_args", _IDLE_TOKENIZER)
    length, case, side = (options.pop(key, None) for key in ("model_max_length", "do_lower_case", "truncation_side"))
    call = {key: value for part in ("text", "common") for key, value in _part(fields, part).items()}
    most = call.pop("max_length", None)
    strange = [key for key in call if key not in _IDLE_CALL and (key, call[key]) not in _WHOLE]
    if options or strange:
        raise CheckpointError(f"{fields.where}: {[*options, *strange][0]} is not what lpjax reads text by; {_ELSE}")
    for value in (most, length, fields.count("max_seq_length", least=3)):
        if value is not None:
            if type(value) is not int or value < 3:
                raise CheckpointError(
                    f"{fields.where}: the most tokens are {value!r}; expected a whole number, 3 or more"
                )
            length = value
            break
    further: list[tuple[str, bool | str]] = []
    if isinstance(case, bool):
        further.append(("do_lower_case", case))
    if side in ("left", "right"):
        further.append(("truncation_side", side))
    return TextRules(length, bool(fields.flag("do_lower_case")), pairs, default, tuple(further))


_WHOLE = (("truncation", True), ("truncation", "longest_first"), ("add_special_tokens", True))


def _check_transformer(fields: Fields) -> None:
    """Refuse a first stage that gives something else than the last hidden states of the net in config.json."""
    task = fields.text("transformer_task") or "feature-extraction"
    if task != "feature-extraction":
        raise CheckpointError(f"{fields.where}: transformer_task is {task}; {_ELSE}")
    if fields.text("tokenizer_name_or_path") is not None:
        raise CheckpointError(f"{fields.where}: tokenizer_name_or_path names another tokenizer; {_ELSE}")
    known = fields.anything("modality_config")
    if known and (known.get("text") != _TEXT or "message" in known or fields.text("module_output_name") != TOKENS):
        raise CheckpointError(f"{fields.where}: modality_config asks for more than last hidden states; {_ELSE}")
    if strange := _arguments(fields, "config_kwargs", "config_args", _IDLE_CONFIG):
        raise CheckpointError(f"{fields.where}: {next(iter(strange))} changes the config of the net; {_ELSE}")


_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


def _arguments(fields: Fields, name: str, older: str, idle: set[str]) -> dict[str, Any]:
    """Arguments of transformers that matter."""
    return {key: value for key, value in fields.anything(older if older in fields else name).items() if key not in idle}


def _part(fields: Fields, name: str) -> dict[str, Any]:
    inside = fields.object("processing_kwargs")
    return {} if inside is None else inside.anything(name)
