"""Read how a folder of sentence-transformers embeds a text; stages that lpjax does not support are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from lpjax._files.json import Positive, Text, as_type, read_object
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
_ELSE = "lpjax can compress, save and export the model, but cannot embed text with it"

# Keys of older pooling configs, without pooling_mode, in the order in which their vectors are concatenated.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Arguments for transformers that do not affect results; a folder with any others is refused.
_TRUST = ("trust_remote_code",)
_IDLE_CONFIG = {"use_cache", "output_hidden_states", "output_attentions", "attn_implementation", *_TRUST}
_IDLE_TOKENIZER = {"use_fast", "padding_side", "cache_dir", "token", "revision", "local_files_only", *_TRUST}
_IDLE_CALL = {"padding", "pad_to_multiple_of", "return_tensors", "return_attention_mask", "return_token_type_ids"}


def read_pipeline(checkpoint: Checkpoint) -> SentencePipeline:
    """Read how a checkpoint's folder embeds a text.

    Without a folder, or without modules.json in it, the hidden states of all tokens are averaged, as in
    sentence-transformers.

    Raises:
        CheckpointError: the folder's files are damaged, or need something that lpjax does not support; names it.
        FileNotFoundError: the folder no longer exists.
    """
    folder = checkpoint.source
    if folder is None:
        return SentencePipeline()
    if not folder.is_dir():
        raise FileNotFoundError(f"`checkpoint.source`, {folder}, no longer exists, and it says how to embed a text")
    entries = read_stages(folder)
    if not entries:
        return SentencePipeline()
    if not (entries[0].type.startswith(OWN_TYPES) and entries[0].type.endswith("Transformer")):
        kind = entries[0].type or "stage without type"
        raise CheckpointError(f"{folder}/modules.json begins with a {kind}; {_ELSE}")
    main = _read_config(folder / _MAIN_CONFIG, _Main)
    if main.model_type not in (None, "", "SentenceTransformer"):
        raise CheckpointError(
            f"{folder / _MAIN_CONFIG}: the model is a {main.model_type}, which gives no vector of a text; {_ELSE}"
        )
    sizes = {TOKENS: int(getattr(checkpoint.config, "hidden_size"))}  # noqa: B009
    stages = [stage for entry in entries[1:] for stage in _read_stage(folder, entry, sizes)]
    if VECTOR not in sizes:
        raise CheckpointError(f"{folder}/modules.json has no stage that makes a vector of hidden states; {_ELSE}")
    if main.truncate_dim is not None and main.truncate_dim < sizes[VECTOR]:
        stages.append(Truncate(main.truncate_dim))
    return SentencePipeline(tuple(stages), _read_rules(folder, main))


T = TypeVar("T")


class _Main(msgspec.Struct):
    """The keys that are read from config_sentence_transformers.json."""

    model_type: Text | None = None
    truncate_dim: Positive | None = None
    prompts: dict[str, Any] = {}
    default_prompt_name: Text | None = None


class _PoolingConfig(msgspec.Struct):
    """The keys that are read from a pooling's config.json, besides its flags."""

    pooling_mode: Text | list[Text] | None = None
    include_prompt: bool | None = None


class _Feature(msgspec.Struct):
    """The feature that a stage changes."""

    module_input_name: Text | None = None
    module_output_name: Text | None = None

    def check(self, where: Path, sizes: Mapping[str, int]) -> str:
        """The feature's name.

        Raises:
            CheckpointError: the stage's input and output differ, or no earlier stage makes the feature.
        """
        source = self.module_input_name or VECTOR
        target = self.module_output_name or source
        if source not in (TOKENS, VECTOR) or target != source:
            raise CheckpointError(f"{where}: the stage makes {target} of {source}; {_ELSE}")
        _size(sizes, source, where)
        return source


class _DenseConfig(_Feature, kw_only=True):
    """The keys that are read from a dense layer's config.json."""

    in_features: Positive
    out_features: Positive
    activation_function: Text = "torch.nn.modules.activation.Tanh"
    bias: bool | None = None
    use_residual: bool | None = None


class _Processing(msgspec.Struct):
    """Arguments for calls of the tokenizer."""

    text: dict[str, Any] = {}
    common: dict[str, Any] = {}


class _TextConfig(msgspec.Struct):
    """The keys that are read from the config of the first stage, one of `SENTENCE_CONFIGS`."""

    max_seq_length: Annotated[int, msgspec.Meta(ge=3)] | None = None
    do_lower_case: bool | None = None
    transformer_task: Text | None = None
    tokenizer_name_or_path: Text | None = None
    module_output_name: Text | None = None
    modality_config: dict[str, Any] = {}
    config_kwargs: dict[str, Any] = {}
    config_args: dict[str, Any] | None = None
    processor_kwargs: dict[str, Any] = {}
    tokenizer_args: dict[str, Any] | None = None
    processing_kwargs: _Processing | None = None


def _read_config(path: Path, kind: type[T], says: str = "") -> T:
    """Read the object in a file as `kind`.

    A missing file means all defaults, unless the stage needs it; then `says` describes what it specifies.

    Raises:
        CheckpointError: a needed file is missing, or a file does not fit; names the file and the key.
    """
    if says and not path.exists():
        raise CheckpointError(f"{path.parent} holds no {path.name}, which says {says}")
    data = read_object(path, error=CheckpointError) if path.exists() else {}
    return as_type(data, kind, str(path), CheckpointError)


def _read_stage(folder: Path, entry: Entry, sizes: dict[str, int]) -> list[Stage]:
    """Read a stage, none for dropout, and update the features' `sizes`."""
    name = entry.type.rpartition(".")[2]
    place = folder / entry.path
    if name not in _READERS or not entry.type.startswith(OWN_TYPES) or not entry.path:
        raise CheckpointError(f"{folder}: the stage {entry.name} is a {entry.type or '?'}; {_ELSE}")
    stage = _READERS[name](place, sizes)
    return [] if stage is None else [stage]


def _pooling(place: Path, sizes: dict[str, int]) -> Stage:
    where = place / CONFIG
    data = _read_config(where, dict[str, Any], "how to pool")
    config = as_type(data, _PoolingConfig, str(where), CheckpointError)
    flags = {key: value for key, value in data.items() if key.startswith("pooling_mode_")}
    chosen = {key for key, on in as_type(flags, dict[str, bool | None], str(where), CheckpointError).items() if on}
    modes = [mode for key, mode in _FLAGS.items() if key in chosen] or ["mean"]
    if config.pooling_mode is not None:
        modes = [config.pooling_mode] if isinstance(config.pooling_mode, str) else config.pooling_mode
    unknown = [mode for mode in modes if mode not in POOLINGS] + sorted(chosen - _FLAGS.keys())
    if unknown or not modes:
        got = f"the pooling {unknown[0]!r}" if unknown else "pooling_mode, an empty list,"
        raise CheckpointError(f"{where}: {got} is not one of {', '.join(POOLINGS)}; {_ELSE}")
    sizes[VECTOR] = len(modes) * sizes[TOKENS]
    return Pooling(tuple(modes), include_prompt=config.include_prompt is not False)


def _dense(place: Path, sizes: dict[str, int]) -> Stage:
    where = place / CONFIG
    config = _read_config(where, _DenseConfig, "what the layer computes")
    feature = config.check(where, sizes)
    in_features, size = config.in_features, config.out_features
    if in_features != sizes[feature]:
        raise CheckpointError(f"{where}: in_features is {in_features}, but the stage before gives {sizes[feature]}")
    name = config.activation_function.rpartition(".")[2]
    if not config.activation_function.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise CheckpointError(
            f"{where}: activation_function is {config.activation_function[:100]!r}, expected one of PyTorch's: "
            f"{', '.join(ACTIVATIONS)}; {_ELSE}"
        )
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (size, in_features)}
    if config.bias is not False:
        shapes["linear.bias"] = (size,)
    residual = bool(config.use_residual)
    if residual and size != in_features:
        shapes["residual.weight"] = (size, in_features)
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


def _normalize(place: Path, sizes: dict[str, int]) -> Stage:
    return Normalize(_read_config(place / CONFIG, _Feature).check(place / CONFIG, sizes))


def _layer_norm(place: Path, sizes: dict[str, int]) -> Stage:
    size = _size(sizes, VECTOR, place / CONFIG)
    tensors = _read_weights(place, {"norm.weight": (size,), "norm.bias": (size,)})
    return LayerNorm(Constant(tensors["norm.weight"]), Constant(tensors["norm.bias"]))


_READERS = {
    "Pooling": _pooling,
    "Dense": _dense,
    "Normalize": _normalize,
    "LayerNorm": _layer_norm,
    "Dropout": lambda *_: None,  # only training needs it
}


def _size(sizes: Mapping[str, int], name: str, where: Path) -> int:
    if name not in sizes:
        raise CheckpointError(f"{where}: the stage reads {name}, which no stage before it makes")
    return sizes[name]


def _read_weights(place: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Read the weights of a stage, as float32."""
    path = place / WEIGHTS
    if not path.exists() and (place / _PICKLE).exists():
        raise CheckpointError(
            f"{place} holds its weights only in {_PICKLE}, a pickle, which may run code; with PyTorch installed, "
            f'convert it by safetensors.torch.save_file(torch.load("{place / _PICKLE}", weights_only=True), "{path}")'
        )
    tensors, _ = read_tensors(path)
    actual = {name: array.shape for name, array in tensors.items()}
    if actual != dict(shapes):
        got, expected = (
            ", ".join(f"{name} {list(shape)}" for name, shape in sorted(table.items())) for table in (actual, shapes)
        )
        raise CheckpointError(f"{path} does not fit {place / CONFIG}: it holds {got or 'nothing'}; expected {expected}")
    check_finite(tensors.items(), str(path), CheckpointError)
    return {name: np.asarray(array, np.float32) for name, array in tensors.items()}


def _read_rules(folder: Path, main: _Main) -> TextRules:
    """Read the rules for text from the model's folder and the main config."""
    prompts = {"query": "", "document": ""}
    for name, text in main.prompts.items():
        if not isinstance(text, str | None):
            raise CheckpointError(f"{folder / _MAIN_CONFIG}: the prompt {name} is not text")
        prompts[name] = text or ""
    default = main.default_prompt_name
    if default is not None and default not in prompts:
        raise CheckpointError(
            f"{folder / _MAIN_CONFIG}: default_prompt_name is {default!r}, and there is no such prompt"
        )
    pairs = tuple(prompts.items())
    paths = (net_folder(folder) / name for name in SENTENCE_CONFIGS)
    where = next((path for path in paths if path.exists() and read_object(path, error=CheckpointError)), None)
    if where is None:
        return TextRules(prompts=pairs, default_prompt=default)
    config = _read_config(where, _TextConfig)
    _check_transformer(config, where)
    options = _arguments(config.tokenizer_args, config.processor_kwargs, _IDLE_TOKENIZER)
    calls = config.processing_kwargs or _Processing()
    call = calls.text | calls.common
    lengths = call.pop("max_length", None), options.pop("model_max_length", None), config.max_seq_length
    length = next((length for length in lengths if length is not None), None)
    case, side = options.pop("do_lower_case", None), options.pop("truncation_side", None)
    strange = [key for key in call if key not in _IDLE_CALL and (key, call[key]) not in _WHOLE]
    if options or strange:
        raise CheckpointError(f"{where}: {[*options, *strange][0]} is not supported; {_ELSE}")
    if length is not None and (type(length) is not int or length < 3):
        raise CheckpointError(f"{where}: the token limit is {length!r}; expected a whole number, 3 or more")
    further: list[tuple[str, bool | str]] = []
    if isinstance(case, bool):
        further.append(("do_lower_case", case))
    if side in ("left", "right"):
        further.append(("truncation_side", side))
    return TextRules(length, bool(config.do_lower_case), pairs, default, tuple(further))


_WHOLE = (("truncation", True), ("truncation", "longest_first"), ("add_special_tokens", True))
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


def _check_transformer(config: _TextConfig, where: Path) -> None:
    """Refuse a first stage that does not compute the last hidden states of the model in config.json."""
    if config.transformer_task not in (None, "", "feature-extraction"):
        raise CheckpointError(f"{where}: transformer_task is {config.transformer_task}; {_ELSE}")
    if config.tokenizer_name_or_path is not None:
        raise CheckpointError(f"{where}: tokenizer_name_or_path names another tokenizer; {_ELSE}")
    known = config.modality_config
    if known and (known.get("text") != _TEXT or "message" in known or config.module_output_name != TOKENS):
        raise CheckpointError(f"{where}: modality_config asks for more than last hidden states; {_ELSE}")
    if strange := _arguments(config.config_args, config.config_kwargs, _IDLE_CONFIG):
        raise CheckpointError(f"{where}: {next(iter(strange))} changes the config of the model; {_ELSE}")


def _arguments(older: dict[str, Any] | None, newer: dict[str, Any], idle: set[str]) -> dict[str, Any]:
    """Arguments for transformers that affect results, from the older key if it exists, else from the newer one."""
    return {key: value for key, value in (newer if older is None else older).items() if key not in idle}
