"""One table a model: tensor names of Hugging Face files <-> paths of the parameter tree, in both directions.

A model module states its weights once, as `Weight`s built by `dense`, `embedding` and `norm`; `NameTable`
reads a file's tensors into the tree, lists a tree's tensors for a file, and in both directions reports
everything that does not fit instead of stopping at the first.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lpjax._tree import put, walk
from lpjax.weights.low_rank import LowRank
from lpjax.weights.sparse import Sparse, fault_of

FACTORS = ("left", "right")
ENTRIES = ("values", "columns", "starts")
PARTS = (*FACTORS, *ENTRIES)
"""What a `LowRank` consists of, without single entries the first two."""
CLASSIFIER = "ForSequenceClassification"
"""How transformers ends the names of such classes."""
HEADS = {
    "sequence": (CLASSIFIER,),
    "tokens": ("ForTokenClassification",),
    "spans": ("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
    "words": ("ForMaskedLM", "ForPreTraining"),
}
"""Heads by what they predict (a text's class, its tokens' classes, where an answer begins and ends, the words behind
masks), and how transformers ends the names of such classes."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight of a model: its name in a file, its path in the tree, and its shape there.

    Attributes:
        name: name in a PyTorch-style file, without the base model's prefix.
        path: keys of the parameter tree joined by "/", without the base model's subtree.
        shape: shape of the leaf in the tree. A string stands for a size that the config does not fix, and is
            the same size wherever it occurs in one table.
        transposed: whether the file holds the transpose (PyTorch's `Linear` is (out, in), kernels (in, out)).
        group: weights of one group are all there or all absent; the empty group must be there.
        tied_to: name of the weight that this one repeats, if the config ties the two. Not required, and not kept
            if it is equal to it.
        optional: not required, though its group is there, and kept if it is.
        file_shape: shape of the file's tensor where that has more axes than the leaf, to whose shape, transposed
            or not, it is reshaped.
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
        """The leaf that a file's tensor is, a view."""
        if self.file_shape is not None:
            tensor = tensor.reshape(self.shape[::-1] if self.transposed else self.shape)
        return tensor.T if self.transposed else tensor

    def to_file(self, leaf: Any) -> Any:
        """The file's tensor of a leaf, a view; the leaf itself where it is no array or not of the leaf's shape."""
        if not hasattr(leaf, "shape") or len(leaf.shape) != len(self.shape):
            return leaf
        tensor = leaf.T if self.transposed else leaf
        misshaped = self.file_shape is not None and tuple(leaf.shape) != self.shape
        return tensor if self.file_shape is None or misshaped else tensor.reshape(self.file_shape)


def dense(name: str, inputs: int | str, outputs: int | str, group: str = "") -> tuple[Weight, Weight]:
    """Kernel (inputs, outputs) and bias (outputs,) of the linear layer `name`."""
    path = name.replace(".", "/")
    return (
        Weight(f"{name}.weight", f"{path}/kernel", (inputs, outputs), transposed=True, group=group),
        Weight(f"{name}.bias", f"{path}/bias", (outputs,), group=group),
    )


def embedding(name: str, rows: int | str, features: int | str, group: str = "") -> tuple[Weight]:
    """Table (rows, features) of the embedding `name`."""
    path = name.replace(".", "/")
    return (Weight(f"{name}.weight", f"{path}/embedding", (rows, features), group=group),)


def norm(name: str, features: int | str, group: str = "") -> tuple[Weight, Weight]:
    """Scale and bias (features,) of the layer normalization `name`."""
    path = name.replace(".", "/")
    return (
        Weight(f"{name}.weight", f"{path}/scale", (features,), group=group),
        Weight(f"{name}.bias", f"{path}/bias", (features,), group=group),
    )


def decoder(
    name: str, features: int, vocab: int, group: str, table: str, bias: str | None = None, *, tied: bool = True
) -> tuple[Weight, Weight]:
    """Kernel (features, vocab) and bias (vocab,) of a word head; files repeat tied ones or leave them out.

    Args:
        name, features, vocab, group: as in `dense`.
        table: name of the embedding that the kernel is tied to.
        bias: the other name of the bias, if there are two.
        tied: `tie_word_embeddings` of the config. If it is false, the kernel must be there, and what is there is kept,
            equal or not. The second bias need not be: transformers 4 never writes it, and ties the two in any case.
    """
    kernel, own = dense(name, features, vocab, group)
    if not tied:
        return kernel, dataclasses.replace(own, optional=bias is not None)
    return dataclasses.replace(kernel, tied_to=table), dataclasses.replace(own, tied_to=bias)


@dataclasses.dataclass
class Misfits:
    """Everything about a set of names that does not fit a table; false where all of it fits."""

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
        """Raise if there are any, of the params and the config that a caller passed.

        Raises:
            ValueError: listing them.
        """
        if self:
            raise ValueError(f"`params` does not fit `config`:\n{self}")

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """The names of the lists."""
        return tuple(field.name for field in dataclasses.fields(cls))


@dataclasses.dataclass(frozen=True)
class NameTable:
    """The names of one model, for one config.

    Attributes:
        prefix: key of the base model in the tree of a model with a head, and its prefix in a file ("bert").
        base: weights of the base model.
        heads: weights outside it, named and laid out from the root.
        renames: (pattern, replacement) pairs that bring old names to the present ones, by `re.sub`.
        ignored: pattern of names that hold no weight (index buffers of old files).
        classifier: groups that make up the head of a model for sequence classification.
        tokens, spans, words: groups that make up the other `HEADS`; empty for those that are not run.
    """

    prefix: str
    base: tuple[Weight, ...]
    heads: tuple[Weight, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    ignored: str | None = None
    classifier: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    spans: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def head_groups(self, head: str) -> tuple[str, ...]:
        """The groups that make up one of `HEADS`."""
        return {"sequence": self.classifier, "tokens": self.tokens, "spans": self.spans, "words": self.words}[head]

    def groups_of(self, architectures: Any) -> tuple[str, ...]:
        """The groups that the file of a model must have, from the `architectures` of its config.json.

        Word heads are not among them: files of encoders often name the class that they were trained as.
        """
        names = names_of(architectures)
        heads = [head for head in HEADS if head != "words" and any(name.endswith(HEADS[head]) for name in names)]
        return self.head_groups(heads[0]) if heads else ()

    def read(self, tensors: Mapping[str, Any], groups: Iterable[str] = ()) -> tuple[dict, Misfits]:
        """The parameter tree that `tensors`, by the names of a file, make up, and what does not fit.

        `groups` must be there besides the base.

        Base weights are accepted with and without the prefix. The tree holds the base model under `prefix`
        where the file used the prefix or has a head, else at the root. `N.left` and `N.right` make a
        `LowRank` of N, with `N.values`, `N.columns` and `N.starts` one with single entries. Leaves are views
        of the tensors. Where anything does not fit, the tree is empty.
        """
        misfits = Misfits()
        slots, nested = self._assign(tensors, misfits)
        leaves: dict[str, tuple[str, tuple[Any, ...]]] = {}
        reported: set[str] = set()
        for weight in (*self.base, *self.heads):
            whole, *parts = (slots.get((weight.name, part)) for part in ("", *PARTS))
            there = [part for part in parts if part]
            if whole:
                misfits.duplicate += [f"{part[0]} (also {whole[0]})" for part in there]
                if weight.file_shape in (None, tuple(whole[1].shape)):
                    leaves[weight.name] = (whole[0], (weight.from_file(whole[1]),))
                else:
                    reported.add(weight.name)
                    found, expected = shape_text(whole[1].shape), shape_text(weight.file_shape or ())
                    misfits.misshaped.append(f"{whole[0]} is {found}, expected {expected}")
            elif there:
                wanted = PARTS if any(parts[len(FACTORS) :]) else FACTORS
                lacking = [name for name, part in zip(wanted, parts, strict=False) if not part]
                misfits.missing += [f"{weight.name}.{name}" for name in lacking]
                if not lacking:
                    leaves[weight.name] = (there[0][0].removesuffix(".left"), tuple(part[1] for part in there))
        for weight in self.heads:
            # Some files keep the second name of a tied weight and leave out the first.
            if weight.tied_to is not None and weight.name in leaves and weight.tied_to not in leaves:
                given, arrays = leaves[weight.name]
                if len(arrays) <= len(FACTORS):
                    leaves[weight.tied_to] = (given, _transposed(arrays))
                    del leaves[weight.name]
        self._check(leaves, misfits, groups, reported)
        params: dict = {}
        if misfits:
            return params, misfits
        for part, root in ((self.base, [self.prefix] if nested else []), (self.heads, [])):
            for weight in part:
                if weight.name in leaves and not _repeats(weight, leaves):
                    put(params, [*root, *weight.path.split("/")], _leaf(leaves[weight.name][1]))
        return params, misfits

    def write(
        self, params: Mapping[str, Any], groups: Iterable[str] = (), *, look_inside: bool = True
    ) -> tuple[list[tuple[str, Any]], Misfits]:
        """The (name, tensor) pairs of a file for `params`, in the table's order, and what does not fit.

        `groups` must be there besides the base. Tensors are in the file's orientation: views of the leaves, or jax
        arrays. The misfits name paths. Without `look_inside` leaves may be traced: only shapes and dtypes are checked.
        """
        nested = self.prefix in params
        paths = dict(walk(params))
        misfits = Misfits()
        leaves: dict[str, tuple[str, tuple[Any, ...]]] = {}
        pairs: list[tuple[str, Any]] = []
        for weight, root in [*((w, nested) for w in self.base), *((w, False) for w in self.heads)]:
            path = f"{self.prefix}/{weight.path}" if root else weight.path
            if path not in paths:
                continue
            leaf = paths.pop(path)
            name = f"{self.prefix}.{weight.name}" if root else weight.name
            if isinstance(leaf, LowRank):
                parts = parts_of(leaf)
                leaves[weight.name] = (path, tuple(parts.values()))
                pairs += [(f"{name}.{part}", array) for part, array in parts.items()]
            else:
                leaves[weight.name] = (path, (leaf,))
                pairs.append((name, weight.to_file(leaf)))
        misfits.unknown += paths
        self._check(leaves, misfits, groups, by_path=True, look_inside=look_inside)
        return pairs, misfits

    def _assign(
        self, tensors: Mapping[str, Any], misfits: Misfits
    ) -> tuple[dict[tuple[str, str], tuple[str, Any]], bool]:
        """(present name, part or "") -> (name in the file, tensor), and whether the base is nested."""
        base, heads = ({weight.name: weight for weight in part} for part in (self.base, self.heads))
        slots: dict[tuple[str, str], tuple[str, Any]] = {}
        nested = False
        for given, tensor in tensors.items():
            if self.ignored is not None and re.search(self.ignored, given):
                continue
            name, factor = self._parsed(given)
            bare = name.removeprefix(f"{self.prefix}.")
            weight = base.get(bare) or heads.get(name)
            if weight is None or (factor and len(weight.shape) != 2):
                misfits.unknown.append(given)
                continue
            nested |= weight.name in heads or bare != name
            if (weight.name, factor) in slots:
                misfits.duplicate.append(f"{given} (also {slots[weight.name, factor][0]})")
            else:
                slots[weight.name, factor] = (given, tensor)
        return slots, nested

    def stem(self, given: str) -> str:
        """The present name of the weight that a name in a file stands for, whole or a part of a `LowRank`."""
        return self._parsed(given)[0]

    def _parsed(self, given: str) -> tuple[str, str]:
        name = given
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        stem, _, last = name.rpartition(".")
        return (stem, last) if last in PARTS else (name, "")

    def _check(
        self,
        leaves: Mapping[str, tuple[str, tuple[Any, ...]]],
        misfits: Misfits,
        required: Iterable[str],
        reported: Iterable[str] = (),
        by_path: bool = False,
        look_inside: bool = True,
    ) -> None:
        """Add to `misfits` what is missing from `leaves`, and what has a wrong shape or dtype.

        Weights in `reported` are among the misfits already. `leaves` holds, by present name, what to call a weight, and
        its array or its `PARTS` as in the tree.
        """
        groups = {weight.group for weight in (*self.base, *self.heads) if weight.name in leaves} | {"", *required}
        reported = {*reported, *(name.rpartition(".")[0] for name in misfits.missing)}
        sizes: dict[str, int] = {}
        for weight in (*self.base, *self.heads):
            if weight.name not in leaves:
                may_lack = weight.group not in groups or weight.tied_to is not None or weight.optional
                if not may_lack and weight.name not in reported:
                    misfits.missing.append(weight.path if by_path else weight.name)
                continue
            given, parts = leaves[weight.name]
            arrays, entries = parts[: len(FACTORS)], parts[len(FACTORS) :]
            if not all(_is_float(array) for array in (*arrays, *entries[:1])):
                kinds = " and ".join(str(getattr(x, "dtype", type(x).__name__)) for x in (*arrays, *entries[:1]))
                misfits.unusable.append(f"{given} is {kinds}, expected floating-point numbers")
                continue
            expected = tuple(sizes.get(n, n) if isinstance(n, str) else n for n in weight.shape)
            shape = _product_shape(arrays)
            if shape is not None and len(shape) == len(expected):
                sizes |= {n: size for n, size in zip(expected, shape, strict=True) if isinstance(n, str)}
                if shape == tuple(sizes.get(n, n) if isinstance(n, str) else n for n in expected):
                    if len(entries) == len(ENTRIES):
                        values, columns, starts = entries
                        if fault := fault_of(values, columns, starts, shape, look_inside=look_inside):
                            misfits.unusable.append(f"{given}.{fault}")
                    continue
            # As the reader has it: in the file's orientation, which for factors is the tree's.
            step = -1 if weight.transposed and not by_path and len(arrays) == 1 else 1
            found = " times ".join(shape_text(array.shape[::step]) for array in arrays)
            misfits.misshaped.append(f"{given} is {found}, expected {shape_text(expected[::step])}")


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def names_classifier(architectures: Any) -> bool:
    """Whether the `architectures` of a config.json name a class for sequence classification."""
    return any(name.endswith(CLASSIFIER) for name in names_of(architectures))


def names_of(architectures: Any) -> list[str]:
    """The names of classes in the `architectures` of a config.json."""
    return [str(name) for name in architectures] if isinstance(architectures, list) else []


def head_named(architectures: Any) -> str:
    """Which of `HEADS` the `architectures` of a config.json name; "sequence" if they name none of them."""
    names = names_of(architectures)
    return next((head for head, ends in HEADS.items() if any(name.endswith(ends) for name in names)), "sequence")


def parts_of(leaf: LowRank) -> dict[str, Any]:
    """The arrays of a `LowRank` by name, in the order of `PARTS`."""
    entries = {} if leaf.sparse is None else {name: getattr(leaf.sparse, name) for name in ENTRIES}
    return {name: getattr(leaf, name) for name in FACTORS} | entries


def _leaf(arrays: tuple[Any, ...]) -> Any:
    """The leaf that an array is, or the arrays of a pair make."""
    if len(arrays) == 1:
        return arrays[0]
    if len(arrays) == len(FACTORS):
        return LowRank(arrays[0], arrays[1])
    left, right, values, columns, starts = arrays
    return LowRank(left, right, Sparse.from_parts(values, columns, starts))


def _repeats(weight: Weight, leaves: Mapping[str, tuple[str, tuple[Any, ...]]]) -> bool:
    """Whether `weight` only repeats the weight that it is tied to, so that the tree need not keep it."""
    if weight.tied_to is None or weight.tied_to not in leaves:
        return False
    arrays, others = leaves[weight.name][1], leaves[weight.tied_to][1]
    if len(arrays) != len(others) or len(arrays) > len(FACTORS):
        return False
    return all(map(np.array_equal, _transposed(arrays) if weight.transposed else arrays, others))


def _transposed(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """The transpose of an array, or the factors of the transpose of a product."""
    return tuple(array.T for array in reversed(arrays))


def _is_float(array: Any) -> bool:
    # ml_dtypes' bfloat16 is of kind "V" to numpy.
    return hasattr(array, "shape") and (array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def _product_shape(arrays: tuple[Any, ...]) -> tuple[int, ...] | None:
    """Shape of the array, or of the product of the two factors; None where they make none."""
    if len(arrays) == 1:
        return tuple(arrays[0].shape)
    left, right = (array.shape for array in arrays)
    if len(left) != 2 or len(right) != 2 or left[1] != right[0] or left[1] < 1:
        return None
    return (left[0], right[1])


def shape_text(shape: Iterable[int | str]) -> str:
    """A shape as text, "(3, 4)"."""
    return "(" + ", ".join(map(str, shape)) + ")"
