"""Match the tensors of a file with the weights of a model: prefixes are removed, extra tensors are set apart.

A state dict that was saved from a wrapper (torch.compile, DataParallel, a Lightning module) has a prefix before every
name; a user's own model has extra tensors (weights of a loss, a CRF, a projection). Both are accepted if everything
else fits. Tensors that would change the encoder's outputs are refused: adapters, quantized weights, layers beyond the
config's, misspelt names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lpjax._tree import nested
from lpjax.models.names import Misfits, NameTable, listed

_INNER = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""Name parts that PyTorch's wrappers of single layers insert; no other module has such a name."""

_HINTED = 200  # unknown names that are searched for a hint
_LONGEST = 256  # characters in an extra tensor's name; longer or unprintable names are refused as damage

_FOREIGN = (
    (
        r"(^|\.)(lora_\w+|hada_w\w+|lokr_\w+|oft_[rsR]|ia3_l|vera_\w+|base_layer|modules_to_save|original_module)(\.|$)",
        "the file holds an adapter (LoRA or the like): merge it into the model first, by `merge_and_unload()` of peft",
    ),
    (
        r"(^|\.)(adapters?|prefix_tuning|prefix_encoder|prompt_encoder|prompt_embeddings|soft_prompt)(\.|$)",
        "the file holds an adapter or a trained prompt, which changes what the model computes and is not supported",
    ),
    (
        r"(^|\.)(qweight|qzeros|g_idx|SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|quant_state"
        r"|weight_scale|weight_scale_inv|weight_zero_point|zero_point|weight_packed|input_scale|_packed_params)(\.|$)",
        "the file holds quantized weights (GPTQ, AWQ, bitsandbytes or the like): take the model as it was before",
    ),
    (
        r"(^|\.)(weight_orig|weight_mask|bias_orig|bias_mask|weight_g|weight_v|parametrizations)(\.|$)",
        "the file holds weights in parts (torch.nn.utils.prune or parametrize): remove the parametrization first",
    ),
)
"""Patterns of names that change what a model computes, and a hint for each."""


class Fit(NamedTuple):
    """The tensors of a file, matched with a model.

    Attributes:
        params: the parameter tree; empty if something does not fit.
        extra: extra tensors by name, without the prefix and with parts joined by ".".
        beside: names of the extra tensors in the file.
        wrapper: the prefix that was removed from names, such as "module.", or "".
        outside: names of head weights that lack this prefix in the file.
        misfits: names and shapes that do not fit.
        hints: likely causes of the misfits, one sentence each.
    """

    params: dict[str, Any]
    extra: dict[str, Any]
    beside: frozenset[str]
    wrapper: str
    outside: tuple[str, ...]
    misfits: Misfits
    hints: tuple[str, ...]


def fit(table: NameTable, tensors: Mapping[str, Any], separator: str | None, groups: Iterable[str] = ()) -> Fit:
    """Lay out `tensors` as the parameter tree of a model, with extra ones apart.

    Args:
        table: name table of the model.
        tensors: tensors of a file, by name.
        separator: separator of the parts of a Flax path; None for PyTorch's names.
        groups: groups of weights that are required besides the base.

    Raises:
        ValueError: the paths of a Flax tree do not form a tree.
    """
    own = _OwnNames(table, separator)
    names, wrapper, outside, hints = _unwrapped(own, tensors)
    unwrapped = {name: tensors[original] for name, original in names.items()}
    params, misfits = _read(table, unwrapped, separator, groups)
    in_file = {name.replace(own.separator, "/") if separator else name: name for name in unwrapped}
    absent = own.absent(unwrapped)
    extra: dict[str, str] = {}  # name to keep -> name in the file
    if misfits.unknown and not any(getattr(misfits, kind) for kind in misfits.kinds() if kind != "unknown"):
        refused = [name for name in misfits.unknown if own.refuses(in_file[name], absent)]
        if refused:
            misfits.unknown = refused
        else:
            beside = {in_file[name] for name in misfits.unknown}
            extra = {name.replace(own.separator, "."): names[name] for name in sorted(beside)}
            rest = {name: tensor for name, tensor in unwrapped.items() if name not in beside}
            params, misfits = _read(table, rest, separator, groups)
    if misfits:
        hints += own.hints([in_file.get(name, name) for name in misfits.unknown[:_HINTED]], absent)
        hints += (f"names are compared without `{wrapper}`, which they begin with",) if wrapper else ()
        hints += (f"taken for a head of the model, though outside `{wrapper}`: {listed(outside)}",) if outside else ()
        return Fit({}, {}, frozenset(), wrapper, outside, misfits, hints)
    kept = {name: tensors[original] for name, original in extra.items()}
    return Fit(params, kept, frozenset(extra.values()), wrapper, outside, misfits, ())


def read_tree(table: NameTable, tree: Mapping[str, Any], groups: Iterable[str] = ()) -> tuple[dict, Misfits]:
    """`tree` in the layout of `table.read`, and the misfits, by path."""
    pairs, misfits = table.write(tree, groups)
    return ({}, misfits) if misfits else table.read(dict(pairs))


class _OwnNames:
    """The names of a table, spelled as in a file."""

    def __init__(self, table: NameTable, separator: str | None):
        self.separator = separator or "."
        self._table, self._torch = table, separator is None
        self._base = {self._spelled(weight) for weight in table.base}
        self.required = {self._spelled(weight) for weight in table.base if not weight.group}
        self._heads = {self._spelled(weight) for weight in table.heads}
        self._prefix = table.prefix + self.separator
        self._modules = {table.prefix, *(name.split(self.separator)[0] for name in self._base)}
        self._depth = 1 + max(name.count(self.separator) + 1 for name in (*self._base, *self._heads))

    def _spelled(self, weight: Any) -> str:
        return weight.name if self._torch else weight.path.replace("/", self.separator)

    def is_head(self, name: str) -> bool:
        """Whether it is the name of a weight outside of the base model."""
        return (self._table.stem(name) if self._torch else name) in self._heads

    def before(self, full_name: str) -> tuple[str, str] | None:
        """Split a name into (what precedes a base weight, the base weight's name without the base model's prefix)."""
        parts = (self._table.stem(full_name) if self._torch else full_name).split(self.separator)
        for start in range(max(0, len(parts) - self._depth), len(parts)):
            name = self.separator.join(parts[start:]).removeprefix(self._prefix)
            if name in self._base:
                return "".join(part + self.separator for part in parts[:start]), name
        return None

    def absent(self, present: Iterable[str]) -> list[str]:
        """The names of the table that are not in the file."""
        there = {(self._table.stem(name) if self._torch else name).removeprefix(self._prefix) for name in present}
        return [name for name in (*self._base, *self._heads) if name not in there]

    def refuses(self, name: str, absent: Iterable[str]) -> bool:
        """Whether an unknown tensor is refused, because it may change what the model computes."""
        return (
            name.split(self.separator)[0] in self._modules
            or len(name) > _LONGEST
            or not name.isprintable()
            or self._foreign(name) is not None
            or self._nearest(name, absent) is not None
        )

    def hints(self, unknown: Iterable[str], absent: Iterable[str]) -> tuple[str, ...]:
        """What the unknown names suggest, a sentence each."""
        suggestions: dict[str, None] = {}
        for name in unknown:
            if (reason := self._foreign(name)) is not None:
                suggestions[reason] = None
            elif re.sub(r"\d+", "0", name.removeprefix(self._prefix)) in self._base:
                suggestions["the file has more layers than its config.json says"] = None
            elif (near := self._nearest(name, absent)) is not None:
                suggestions[f"{name} looks like {near}"] = None
        return tuple(suggestions)[:5]

    def _foreign(self, name: str) -> str | None:
        dotted = name.replace(self.separator, ".")
        return next((reason for pattern, reason in _FOREIGN if re.search(pattern, dotted)), None)

    def _nearest(self, name: str, absent: Iterable[str]) -> str | None:
        """An absent weight whose name differs from `name` by a misspelling in one of its parts."""
        parts = name.removeprefix(self._prefix).split(self.separator)
        for other in absent:
            theirs = other.split(self.separator)
            if len(theirs) != len(parts):
                continue
            different = [(a, b) for a, b in zip(parts, theirs, strict=True) if a != b]
            if len(different) == 1 and _is_misspelled(*different[0]):
                return other
        return None


class _Unwrapped(NamedTuple):
    """Tensor names of a file without the prefix of a wrapper.

    Attributes:
        names: names without the prefix -> names in the file.
        wrapper: the prefix, or "".
        outside: names of head weights that lack the prefix.
        hints: why no prefix was found, a sentence each.
    """

    names: dict[str, str]
    wrapper: str = ""
    outside: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


def _unwrapped(own: _OwnNames, tensor_names: Iterable[str]) -> _Unwrapped:
    """The names without what wrappers put before the whole model, or into the path of its layers."""
    original = list(tensor_names)
    names = _without_inner(own, original)
    wrapper, hint = _prefix(own, names)
    if hint:
        return _Unwrapped(names, hints=(hint,))
    bare = {name.removeprefix(wrapper): in_file for name, in_file in names.items()}
    if len(bare) < len(names):
        return _Unwrapped(names, hints=(f"some names are there with and without `{wrapper}`",))
    outside = tuple(name for name in names if not name.startswith(wrapper) and own.is_head(name))
    if list(names) != original:
        # Report the prefix as it is in the file: of "_orig_mod.module.", the first part was removed above.
        parts = next(parts for name in original if not _INNER.isdisjoint(parts := name.split(own.separator)))
        inner = next(part for part in parts if part in _INNER) + own.separator
        wrapper = inner + wrapper if wrapper and parts[0] in _INNER else wrapper or inner
    return _Unwrapped(bare, wrapper, outside)


def _without_inner(own: _OwnNames, names: Sequence[str]) -> dict[str, str]:
    """Names without the parts of `_INNER` -> names in the file; all as they are if two would become one."""
    cleared = {own.separator.join(part for part in n.split(own.separator) if part not in _INNER): n for n in names}
    return cleared if len(cleared) == len(names) else {name: name for name in names}


def _prefix(own: _OwnNames, names: Iterable[str]) -> tuple[str, str]:
    """(what precedes the names of the model's weights, ""); or ("", why that cannot be told)."""
    weights_after: dict[str, set[str]] = {}
    for name in names:
        if (split := own.before(name)) is not None:
            weights_after.setdefault(split[0], set()).add(split[1])
    if not weights_after:
        return "", "no tensor name in the file belongs to this kind of model"
    most = max(map(len, weights_after.values()))
    whole = [prefix for prefix, weights in weights_after.items() if own.required <= weights]
    best = whole or [prefix for prefix, weights in weights_after.items() if len(weights) == most]
    if "" in best:
        return "", ""
    if len(best) > 1:
        prefixes = ", ".join(f"`{prefix}`" for prefix in best[:5])
        return "", f"the file holds several models, under {prefixes}; expected one"
    return best[0], ""


def _read(
    table: NameTable, tensors: Mapping[str, Any], separator: str | None, groups: Iterable[str]
) -> tuple[dict, Misfits]:
    if separator is None:
        return table.read(tensors, groups)
    return read_tree(table, nested(tensors, separator), groups)


def _is_misspelled(word: str, other: str) -> bool:
    """Whether two words differ by one or two letters, but not only in digits, which number heads of a kind."""
    if re.sub(r"\d", "", word) == re.sub(r"\d", "", other) or abs(len(word) - len(other)) > 2:
        return False
    row = list(range(len(other) + 1))  # Levenshtein distance
    for i, letter in enumerate(word, 1):
        before, row = row, [i]
        for j, theirs in enumerate(other, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != theirs)))
    return row[-1] <= (1 if len(other) < 8 else 2)
