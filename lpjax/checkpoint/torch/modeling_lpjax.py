"""Load this folder, which lpjax compressed, in PyTorch without lpjax. Weights stay compressed in memory.

`AutoModel.from_pretrained(folder, trust_remote_code=True)` and `SentenceTransformer(folder, trust_remote_code=True)`
use this file through `auto_map`; or call `load_factored(folder)`. It needs lpjax_weights.py and lpjax_codes.py.

The model is that of transformers, with a `Weight` in place of each factored or quantized parameter.
"""

import contextlib
import functools
import re

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers.utils import cached_file

try:
    from .lpjax_codes import FLOATS  # noqa: F401 (transformers 4 copies the files that this one names, no further ones)
    from .lpjax_weights import Weight, weight_of
except ImportError:  # if this file is imported from its folder, not by transformers
    from lpjax_weights import Weight, weight_of

PART = re.compile(r"(.+?)\.((?:left|right)(?:_scale|\.(?:code|scale|step)s)?|codes|scales|steps|values|columns|starts)")
HUB = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}
IDLE = {"trust_remote_code", "adapter_kwargs", "_from_auto", "use_safetensors", "low_cpu_mem_usage", "weights_only"}


def load_factored(folder, auto=None, *, config=None, dtype=None, device_map=None, attn_implementation=None, **hub):
    """Load the model in a folder or a repository of the hub, in eval mode.

    `auto` is a class of transformers such as AutoModelForMaskedLM, by default that of the head in the folder. `dtype`
    is the file's by default; `device_map` is one device. Other arguments are those of transformers."""
    if unknown := hub.keys() - HUB:
        raise ValueError(f"a model that lpjax compressed does not take {', '.join(sorted(unknown))}")
    if isinstance(device_map, dict) or device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        raise ValueError(f"device_map is {device_map!r}; a compressed model needs one device, such as 'cuda'")
    config = config or transformers.AutoConfig.from_pretrained(folder, **hub)
    auto = auto or getattr(transformers, max((name for name in config.auto_map if "Model" in name), key=len))
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with _parameters_on_meta():
        model = auto.from_config(config, trust_remote_code=False, **options)
    path = cached_file(folder, "lpjax.safetensors", **hub)
    try:
        _fill(model, load_file(path))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} can't be loaded: {error}") from error
    # Other buffers keep their dtype: transformers has the frequencies of rotary positions in float32.
    parts = [*model.parameters(), *(module.like for module in model.modules() if isinstance(module, Weight))]
    if dtype in (None, "auto"):
        dtype = functools.reduce(torch.promote_types, {part.dtype for part in parts})
    for part in parts:
        part.data = part.data.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    model.save_pretrained = _refuse_to_save
    return model.to(device=device_map).eval()


def _fill(model, tensors):
    """Load a file's tensors into a model, with a `Weight` in place of each parameter that the file has in parts."""
    prefix = f"{model.base_model_prefix}."
    if model.base_model is model and any(name.startswith(prefix) for name in tensors):  # the file has a head, too
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if model.base_model is model and not any(name.startswith("pooler.") for name in tensors):
        model.pooler = None  # the file has none, and a new one would be random
    parameters, parts = dict(model.named_parameters(remove_duplicate=False)), {}
    for name in [*tensors]:
        match = PART.fullmatch(name)
        if match and match[1] in parameters:
            parts.setdefault(match[1], {})[match[2]] = tensors.pop(name)
    for name, own in parts.items():
        shape, linear = parameters[name].shape, isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
        expected = shape[::-1] if linear else (shape[0], shape[1:].numel())
        try:
            weight = weight_of(own, max(expected))
            if weight.matrix_shape != tuple(expected) or name in tensors:
                raise ValueError(f"it is {weight.matrix_shape}, expected {tuple(expected)} and nothing beside it")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}, which has the parts {', '.join(sorted(own))}, is refused: {error}") from error
        weight.shape, weight.transposed = shape, linear
        _replace(model, name, weight)
    head, tied = model.get_output_embeddings(), None
    if head is not None:
        stem = next(name for name, module in model.named_modules() if module is head)
        tied = f"{stem}.weight" if {f"{stem}.weight"}.isdisjoint([*tensors, *parts]) else None
        biases = [f"{stem}.bias", f"{stem.rpartition('.')[0]}.bias"]  # a word head has one or both, which are equal
        for name, other in (biases, biases[::-1]):
            if name in tensors and other in parameters:
                tensors.setdefault(other, tensors[name])
    model.load_state_dict(tensors, strict=False, assign=True)
    if tied and model.config.tie_word_embeddings:
        _replace(model, tied, model.get_input_embeddings().weight)
    if missing := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if bad := [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]:
        raise ValueError(f"it holds NaN or infinity in {', '.join(bad)}")


def _replace(model, name, weight):
    owner, _, last = name.rpartition(".")
    delattr(model.get_submodule(owner), last)
    setattr(model.get_submodule(owner), last, weight)


@contextlib.contextmanager
def _parameters_on_meta():
    """Make the parameters of new modules on the meta device, without memory or initialization; not their buffers."""
    register = nn.Module.register_parameter

    def on_meta(module, name, parameter):
        register(module, name, parameter if parameter is None else nn.Parameter(parameter.to("meta")))

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _refuse_to_save(*args, **options):
    raise NotImplementedError("PyTorch can't save what lpjax compressed; copy its folder, or use `lpjax export`")


class LpjaxModel:
    """The class that `auto_map` names; `from_pretrained` returns a model of transformers, of the class of `auto`."""

    auto = transformers.AutoModel

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModel"):
        """Do nothing: registering is for saving, which is refused."""

    @classmethod
    def from_pretrained(cls, folder, *args, output_loading_info=False, torch_dtype=None, **options):
        """As `load_factored`."""
        options = {name: value for name, value in options.items() if name not in IDLE}
        options.setdefault("dtype", torch_dtype)
        model = load_factored(folder, cls.auto, **options)
        info = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return (model, info) if output_loading_info else model


def _stand_in(head):
    return type(f"LpjaxModelFor{head}", (LpjaxModel,), {"auto": getattr(transformers, f"AutoModelFor{head}")})


LpjaxModelForSequenceClassification = _stand_in("SequenceClassification")
LpjaxModelForTokenClassification = _stand_in("TokenClassification")
LpjaxModelForQuestionAnswering = _stand_in("QuestionAnswering")
LpjaxModelForMaskedLM = _stand_in("MaskedLM")
