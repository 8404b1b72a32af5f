"""The name table of a model: names of tensors in Hugging Face's files <-> paths of the parameter tree.

The module of a model lists its weights once, by `dense`, `embedding` and `norm`. `NameTable` reads the tensors of a
file into a tree, and lists the tensors of a tree for a file. In both directions it reports everything that does not
fit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lpjax._tree import put, walk
from lpjax.weights.parts import DENSE, Kind, kind_of, kind_with, part_name, split_name

HEADS = {
    "sequence": ("ForSequenceClassification",),
    "tokens": ("ForTokenClassification",),
    "spans": ("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
    "words": ("ForMaskedLM", "BertForPreTraining", "AlbertForPreTraining"),
}
"""Heads by what they predict (the class of a text, the classes of its tokens, where an answer begins and ends, masked
words), and the endings of the names of their classes in transformers."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight of a model: its name in a file, its path in the tree, and its shape there.

    Attributes:
        name: name in a PyTorch-style file, without the base model's prefix.
        path: keys of the parameter tree joined by "/", without the base model's subtree.
        shape: shape of the leaf in the tree. A string stands for a size that the config does not fix, and is
            the same size wherever it occurs in one table.
        transposed: whether the file holds the transpose (PyTorch's `Linear` is (out, in), kernels (in, out)).
        group: group of the weight; the weights of a group are all present or all absent, and the empty group is
            required.
        tied_to: name of the weight that this one repeats, if the config ties the two. Then it is not required, and
            not kept if both are equal.
        optional: whether it may be absent even if its group is present.
        file_shape: shape of the file's tensor, if that has more axes than the leaf; it is reshaped to the shape of
            the leaf, or of its transpose.
    """

    name: str
    path: str
    shape: tuple[int | str, ...]
    transposed: bool = False
    group: str = ""
    tied_to: str | None = None
    optional: bool = False
    file_shape: tuple[int, ...] | None = None

    def from_file(self, tensor: Any) -> Any:
        """The leaf of a file's tensor, as a view."""
        if self.file_shape is not None:
            tensor = tensor.reshape(self.shape[::-1] if self.transposed else self.shape)
        return tensor.T if self.transposed else tensor

    def to_file(self, leaf: Any) -> Any:
        """A leaf's tensor in a file, as a view; the leaf itself if it is not an array or has another number of axes."""
        if not hasattr(leaf, "shape") or len(leaf.shape) != len(self.shape):
            return leaf
        tensor = leaf.T if self.transposed else leaf
        misshaped = self.file_shape is not None and tuple(leaf.shape) != self.shape
        return tensor if self.file_shape is None or misshaped else tensor.reshape(self.file_shape)


def dense(
    name: str, inputs: int | str, outputs: int | str, group: str = "", *, bias: bool = True
) -> tuple[Weight, ...]:
    """Kernel (inputs, outputs) and, if there is one, bias (outputs,) of the linear layer `name`."""
    path = name.replace(".", "/")
    kernel = Weight(f"{name}.weight", f"{path}/kernel", (inputs, outputs), transposed=True, group=group)
    return (kernel, Weight(f"{name}.bias", f"{path}/bias", (outputs,), group=group))[: 1 + bias]


def embedding(name: str, rows: int | str, features: int | str, group: str = "") -> tuple[Weight]:
    """Table (rows, features) of the embedding `name`."""
    path = name.replace(".", "/")
    return (Weight(f"{name}.weight", f"{path}/embedding", (rows, features), group=group),)


def norm(name: str, features: int | str, group: str = "", *, bias: bool = True) -> tuple[Weight, ...]:
    """Scale and, if there is one, bias (features,) of the layer normalization `name`."""
    path = name.replace(".", "/")
    scale = Weight(f"{name}.weight", f"{path}/scale", (features,), group=group)
    return (scale, Weight(f"{name}.bias", f"{path}/bias", (features,), group=group))[: 1 + bias]


def decoder(
    name: str, features: int, vocab: int, group: str, table: str, bias: str | None = None, *, tied: bool = True
) -> tuple[Weight, Weight]:
    """Kernel (features, vocab) and bias (vocab,) of a word head; files repeat or omit tied ones.

    Args:
        name, features, vocab, group: as in `dense`.
        table: name of the embedding that the kernel is tied to.
        bias: second name of the bias, if it has one.
        tied: `tie_word_embeddings` of the config. If it is false, the kernel is required, and kept even if it equals
            the table. The second bias stays optional: transformers 4 never writes it, and always ties the two.
    """
    kernel, own = dense(name, features, vocab, group)
    if not tied:
        return kernel, dataclasses.replace(own, optional=bias is not None)
    return dataclasses.replace(kernel, tied_to=table), dataclasses.replace(own, tied_to=bias)


@dataclasses.dataclass
class Misfits:
    """Names and shapes that do not fit a table, by kind of fault; false if everything fits."""

    missing: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    duplicate: list[str] = dataclasses.field(default_factory=list)
    misshaped: list[str] = dataclasses.field(default_factory=list)
    unusable: list[str] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return any(getattr(self, kind) for kind in self.kinds())

    def __str__(self) -> str:
        return "\n".join(
            f"  {kind.replace('misshaped', 'mis-shaped')} ({len(names)}): {listed(names)}"
            for kind in self.kinds()
            if (names := getattr(self, kind))
        )

    def refuse(self) -> None:
        """Raise if there are any, for a caller's `params` and `config`.

        Raises:
            ValueError: there are misfits; lists them.
        """
        if self:
            raise ValueError(f"`params` does not fit `config`:\n{self}")

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """The names of the lists."""
        return tuple(field.name for field in dataclasses.fields(cls))


class _Stored(NamedTuple):
    """The arrays of a weight in a file or a tree; `label` is its name in messages."""

    label: str
    kind: Kind
    arrays: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class NameTable:
    """The names of one model, for one config.

    Attributes:
        prefix: key of the base model in the tree of a model with a head, and its prefix in a file ("bert").
        base: weights of the base model.
        heads: weights outside it, named and laid out from the root.
        renames: pairs of pattern and replacement that turn old names into current ones, by `re.sub`.
        ignored: pattern of names that hold no weight (index buffers of old files).
        head_groups: head, one of `HEADS` -> groups of its weights; heads that the model cannot run are missing.
    """

    prefix: str
    base: tuple[Weight, ...]
    heads: tuple[Weight, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    ignored: str | None = None
    head_groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def groups_of(self, architectures: Any) -> tuple[str, ...]:
        """The groups that the file of a model must have, from the `architectures` of its config.json.

        Word heads are not among them: files of encoders often name the class that they were trained as.
        """
        head = head_named(architectures, but="words")
        return () if head is None else self.head_groups.get(head, ())

    def located(self, nested: bool) -> list[tuple[Weight, str, str]]:
        """(weight, name in a file, path in the tree) of every weight; `nested`: the base model is under its prefix."""
        dot, slash = (f"{self.prefix}.", f"{self.prefix}/") if nested else ("", "")
        base = [(weight, dot + weight.name, slash + weight.path) for weight in self.base]
        return base + [(weight, weight.name, weight.path) for weight in self.heads]

    def weights_of(self, head: str) -> list[tuple[Weight, str]]:
        """(weight, path) of every weight of a head, one of `HEADS`; the base model is under its prefix."""
        groups = self.head_groups.get(head, ())
        return [(weight, path) for weight, _, path in self.located(nested=True) if weight.group in groups]

    def read(self, tensors: Mapping[str, Any], groups: Iterable[str] = ()) -> tuple[dict, Misfits]:
        """The parameter tree of `tensors`, by their names in a file, and the misfits.

        The groups in `groups` are required besides the base. Base weights are accepted with and without the prefix.
        The tree holds the base model under `prefix` if the file has the prefix or a head, else at the root. A weight
        that is not dense is made of its parts (`lpjax/weights/parts.py`). Leaves are views of the tensors. If anything
        does not fit, the tree is empty.
        """
        misfits = Misfits()
        parts_by_weight, nested = self._grouped(tensors, misfits)
        stored, reported = self._stored(parts_by_weight, misfits)
        for weight in self.heads:
            # Some files keep the second name of a tied weight and leave out the first.
            if weight.tied_to is not None and weight.name in stored and weight.tied_to not in stored:
                label, kind, arrays = stored[weight.name]
                if kind.transpose is not None:
                    stored[weight.tied_to] = _Stored(label, kind, kind.transpose(*arrays))
                    del stored[weight.name]
        self._check(stored, misfits, groups, reported)
        params: dict = {}
        if not misfits:
            for weight, _, path in self.located(nested):
                if weight.name in stored and not _repeats(weight, stored):
                    _, kind, arrays = stored[weight.name]
                    put(params, path.split("/"), kind.join(*arrays))
        return params, misfits

    def write(
        self, params: Mapping[str, Any], groups: Iterable[str] = (), *, look_inside: bool = True
    ) -> tuple[list[tuple[str, Any]], Misfits]:
        """The (name, tensor) pairs of a file for `params`, in the order of the table, and the misfits.

        The groups in `groups` are required besides the base. Tensors are oriented as in a file: views of the leaves, or
        jax arrays. The misfits name paths. If `look_inside` is false, leaves may be traced: only shapes and dtypes are
        checked.
        """
        leaves = dict(walk(params))
        misfits = Misfits()
        stored: dict[str, _Stored] = {}
        pairs: list[tuple[str, Any]] = []
        for weight, name, path in self.located(self.prefix in params):
            if path in leaves:
                leaf = leaves.pop(path)
                kind = kind_of(leaf)
                arrays = kind.split(leaf)
                stored[weight.name] = _Stored(path, kind, arrays)
                tensors = (weight.to_file(leaf),) if kind is DENSE else arrays
                pairs += [(part_name(name, part), tensor) for part, tensor in zip(kind.parts, tensors, strict=True)]
        misfits.unknown += leaves
        self._check(stored, misfits, groups, by_path=True, look_inside=look_inside)
        return pairs, misfits

    def stem(self, name: str) -> str:
        """The current name of the weight that a name in a file, old or of a part, belongs to."""
        return self._parsed(name)[0]

    def _parsed(self, name: str) -> tuple[str, str]:
        """The current name of a weight, and the part."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return split_name(name)

    def _grouped(
        self, tensors: Mapping[str, Any], misfits: Misfits
    ) -> tuple[dict[str, dict[str, tuple[str, Any]]], bool]:
        """Name of a weight -> part -> (name in the file, tensor), and whether the base is nested."""
        base, heads = ({weight.name: weight for weight in part} for part in (self.base, self.heads))
        parts_by_weight: dict[str, dict[str, tuple[str, Any]]] = {}
        nested = False
        for original, tensor in tensors.items():
            if self.ignored is not None and re.search(self.ignored, original):
                continue
            name, part = self._parsed(original)
            bare = name.removeprefix(f"{self.prefix}.")
            weight = base.get(bare) or heads.get(name)
            if weight is None or (part and len(weight.shape) != 2):
                misfits.unknown.append(original)
                continue
            nested |= weight.name in heads or bare != name
            first = parts_by_weight.setdefault(weight.name, {}).setdefault(part, (original, tensor))
            if first[0] != original:
                misfits.duplicate.append(f"{original} (also {first[0]})")
        return parts_by_weight, nested

    def _stored(
        self, parts_by_weight: Mapping[str, Mapping[str, tuple[str, Any]]], misfits: Misfits
    ) -> tuple[dict[str, _Stored], set[str]]:
        """The weights whose arrays are all present, and the names of those that are among the misfits."""
        stored: dict[str, _Stored] = {}
        reported: set[str] = set()
        for weight in (*self.base, *self.heads):
            if weight.name not in parts_by_weight:
                continue
            parts = parts_by_weight[weight.name]
            kind = kind_with({part: tensor for part, (_, tensor) in parts.items()})
            first, tensor = next(parts[part] for part in kind.parts if part in parts)
            others = [original for part, (original, _) in parts.items() if part not in kind.parts]
            misfits.duplicate += [f"{original} (also {first})" for original in others]
            lacking = [f"{weight.name}.{part}" for part in kind.parts if part not in parts]
            misfits.missing += lacking
            if kind is DENSE and weight.file_shape not in (None, tuple(tensor.shape)):
                shape, expected = shape_text(tensor.shape), shape_text(weight.file_shape or ())
                misfits.misshaped.append(f"{first} is {shape}, expected {expected}")
                lacking = [first]
            if lacking:
                reported.add(weight.name)
                continue
            arrays = (weight.from_file(tensor),) if kind is DENSE else tuple(parts[part][1] for part in kind.parts)
            stored[weight.name] = _Stored(split_name(first)[0], kind, arrays)
        return stored, reported

    def _check(
        self,
        stored: Mapping[str, _Stored],
        misfits: Misfits,
        required: Iterable[str],
        reported: Iterable[str] = (),
        *,
        by_path: bool = False,
        look_inside: bool = True,
    ) -> None:
        """Add to `misfits` the weights that `stored` lacks, or that have a wrong shape or dtype.

        Weights in `reported` are among the misfits already. Arrays are oriented as in the tree; messages show shapes as
        in a file, or as in the tree if `by_path` is true.
        """
        groups = {weight.group for weight in (*self.base, *self.heads) if weight.name in stored} | {"", *required}
        sizes: dict[int | str, int] = {}
        for weight in (*self.base, *self.heads):
            if weight.name not in stored:
                may_lack = weight.group not in groups or weight.tied_to is not None or weight.optional
                if not may_lack and weight.name not in reported:
                    misfits.missing.append(weight.path if by_path else weight.name)
                continue
            label, kind, arrays = stored[weight.name]
            floating, factors = arrays[: kind.floating], arrays[: kind.factors]
            if not all(map(_is_float, floating)):
                kinds = " and ".join(str(getattr(x, "dtype", type(x).__name__)) for x in floating)
                misfits.unusable.append(f"{label} is {kinds}, expected floating-point numbers")
                continue
            expected = tuple(sizes.get(n, n) for n in weight.shape)
            shape = kind.shape(*factors)
            if shape is not None and len(shape) == len(expected):
                sizes |= {n: size for n, size in zip(expected, shape, strict=True) if isinstance(n, str)}
                if shape == tuple(sizes.get(n, n) for n in expected):
                    if fault := kind.fault(shape, look_inside, *arrays):
                        misfits.unusable.append(f"{label}.{fault}")
                    continue
            step = -1 if weight.transposed and not by_path and kind is DENSE else 1
            shapes = " times ".join(shape_text(array.shape[::step]) for array in factors)
            misfits.misshaped.append(f"{label} is {shapes}, expected {shape_text(expected[::step])}")


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first `most` names, and the number of the rest."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def names_of(architectures: Any) -> list[str]:
    """The names of classes in the `architectures` of a config.json."""
    return [str(name) for name in architectures] if isinstance(architectures, list) else []


def head_named(architectures: Any, but: str = "") -> str | None:
    """The first of `HEADS`, other than `but`, that the `architectures` of a config.json name; None if there is none."""
    names = names_of(architectures)
    return next((head for head in HEADS if head != but and any(name.endswith(HEADS[head]) for name in names)), None)


def names_classifier(architectures: Any) -> bool:
    """Whether the `architectures` of a config.json name a class for sequence classification."""
    return head_named(architectures) == "sequence"


def shape_text(shape: Iterable[int | str]) -> str:
    """A shape as text, "(3, 4)"."""
    return "(" + ", ".join(map(str, shape)) + ")"


def _repeats(weight: Weight, stored: Mapping[str, _Stored]) -> bool:
    """Whether `weight` only repeats the weight that it is tied to, so that the tree need not keep it."""
    if weight.tied_to is None or weight.tied_to not in stored:
        return False
    (_, kind, arrays), (_, other_kind, others) = stored[weight.name], stored[weight.tied_to]
    if kind is not other_kind or kind.transpose is None:
        return False
    return all(map(np.array_equal, kind.transpose(*arrays) if weight.transposed else arrays, others))


def _is_float(array: Any) -> bool:
    # ml_dtypes' bfloat16 is of kind "V" to numpy.
    return hasattr(array, "shape") and (array.dtype.kind == "f" or array.dtype.name == "bfloat16")
