"""The config of a model, read from config.json with all faults reported, and `Architecture`, a table entry for it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args, get_type_hints

from jaxtyping import Array

from lpjax._check import MOST
from lpjax.models.layers import ACTIVATIONS
from lpjax.models.names import HEADS, NameTable, head_named

OWN_CODE = "modeling_lpjax"
"""Module in a compressed folder whose classes `auto_map` of config.json names, for PyTorch. lpjax does not run it."""


class Rule(NamedTuple):
    """The values that a key of config.json may have.

    Attributes:
        expected: description of these values.
        fits: predicate that is true for an allowed value.
    """

    expected: str
    fits: Callable[[Any], bool]


def whole(least: int, most: int = MOST) -> Rule:
    """An integer in a range, not a bool; sizes and ids are int32."""
    return Rule(f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most)


def one_of(names: Iterable[str]) -> Rule:
    """One of some strings."""
    return Rule(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


Size = Annotated[int, whole(1)]
Layers = Annotated[int, whole(1, 1000)]  # more is a typo, or an attack on memory
Flag = Annotated[bool, Rule("true or false", lambda value: type(value) is bool)]
Activation = Annotated[str, one_of(ACTIVATIONS)]
Share = Annotated[float, Rule("a number from 0, below 1", lambda value: type(value) in (int, float) and 0 <= value < 1)]
"""A dropout rate, or the ε of a layer normalization."""

_UNSUPPORTED = {
    "is_decoder": ((False, None), "only encoders are supported"),
    "add_cross_attention": ((False, None), "only encoders are supported"),
    "pruned_heads": (({}, [], None), "pruned heads are not supported"),
    "quantization_config": ((None,), "quantized checkpoints are not supported"),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The fields of config.json that a model's name table and forward pass need, and the model's traits.

    Hashable, so static under jit.

    The config of a model is a frozen dataclass that derives from this one. Its fields are keys of config.json,
    annotated with their allowed values (`Size`, `Share`, …). Its class attributes and properties are traits of the
    model: code that pads, masks or selects reads these and never checks the class.

    Attributes:
        model_type: `model_type` of config.json.
        class_name: prefix of the model's class names in transformers.
        padding_side: side on which texts are padded.
        wants_token_types: whether the model needs token types even for single texts.
        has_flax_class: whether transformers 4 has a Flax class of the model.
        no_decay: last path keys of weights without weight decay.
        groups: group of `select` -> regular expression for more paths of the group, in this model.
        unsupported: key of config.json that is not a field -> (supported values, reason).
        heads_divide: names of the fields of the hidden size and of the number of heads, which must divide it.
        vocab_size: number of token ids.
        tie_word_embeddings: whether the decoder of a word head is the table of word embeddings.
        head: head that `lpjax.classify` runs, one of `lpjax.models.names.HEADS`. It is not a key of config.json: it
            follows from the class in `architectures`.

    Raises:
        ValueError: fields have a wrong type or value; lists all of them.
    """

    model_type: ClassVar[str]
    class_name: ClassVar[str]
    padding_side: ClassVar[Literal["left", "right"]] = "right"
    wants_token_types: ClassVar[bool] = False
    has_flax_class: ClassVar[bool] = True
    no_decay: ClassVar[frozenset[str]] = frozenset({"bias", "scale"})
    groups: ClassVar[Mapping[str, str]] = {}
    unsupported: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {}
    heads_divide: ClassVar[tuple[str, str]] = ("hidden_size", "num_attention_heads")

    vocab_size: Size
    tie_word_embeddings: Flag = dataclasses.field(default=True, kw_only=True)
    head: Annotated[str, one_of(HEADS)] = dataclasses.field(default="sequence", kw_only=True)

    def __post_init__(self) -> None:
        _refuse(self._faults(dataclasses.asdict(self)))

    @classmethod
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[str]:
        """The faults in the contents of a config.json: missing fields, wrong values, conflicts."""
        values: dict[str, Any] = {}
        missing, faults = [], []
        for name, (rule, optional, default) in _rules(cls).items():
            value = data.get(name, default)
            if value is dataclasses.MISSING:
                missing.append(f"`{name}`")
            elif rule.fits(value) or (optional and value is None):
                values[name] = value
            else:
                faults.append(f"`{name}` is {value!r}, expected {rule.expected}")
        if missing:
            yield f"lacks {', '.join(missing)}"
        yield from faults
        yield from cls.conflicts(values, data)

    @classmethod
    def conflicts(cls, values: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
        """Conflicts between fields; `values` holds the fields that are valid on their own."""
        size, heads = cls.heads_divide
        if size in values and heads in values and values[size] % values[heads]:
            yield f"`{size}` is {values[size]}, expected a multiple of `{heads}`, {values[heads]}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the config from the contents of a config.json; keys that do not affect the computation are ignored.

        Raises:
            ValueError: keys are missing, have a wrong type or value, or need something that lpjax does not support (a
                decoder, relative positions in BERT, pruned heads, quantization); lists all of them.
        """
        data = {key: value for key, value in data.items() if key != "head"}
        faults = [*cls._faults(data)]
        kind = {"model_type": ((cls.model_type,), "another kind of model")}
        for key, (supported, reason) in {**kind, **_UNSUPPORTED, **cls.unsupported}.items():
            if key in data and data[key] not in supported:
                faults.append(f"`{key}` is {data[key]!r}, expected {supported[0]!r}: {reason}")
        code = data.get("auto_map")
        own = isinstance(code, Mapping) and str(code.get("AutoModel", OWN_CODE)).split(".")[0] == OWN_CODE
        if code and not own:
            faults.append("`auto_map` names code of its own for the model, which lpjax does not run")
        _refuse(faults)
        fields = {key: data[key] for key in _rules(cls) if key in data}
        return cls(**fields, head=head_named(data.get("architectures")) or "sequence")

    def to_json(self) -> dict[str, Any]:
        """The contents of a config.json from which `from_json` reads this config."""
        data = dataclasses.asdict(self)
        head = data.pop("head")
        classes = {} if head == "sequence" else {"architectures": [self.class_for(head)]}
        return {**classes, "model_type": self.model_type, **data}

    def class_for(self, head: str) -> str:
        """The name of transformers' class for this model with a head, one of `HEADS`."""
        return self.class_name + HEADS[head][0]

    @property
    def max_length(self) -> int | None:
        """The largest number of tokens of an input; None without a limit."""
        raise NotImplementedError

    @property
    def num_token_types(self) -> int | None:
        """The number of values of `token_type_ids`, which count from 0; None without a limit."""
        raise NotImplementedError

    @property
    def padding_id(self) -> int | None:
        """The id that padding must have, if the model counts positions by it; None if any id will do."""
        return None

    @property
    def batch_multiple(self) -> int:
        """A divisor of the number of rows of every batch; if it is above 1, batches cannot be split."""
        return 1


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: static under jit
class Architecture:
    """A kind of model: how to read its config, name its weights and run it.

    Attributes:
        config: its `ModelConfig`, with its traits.
        name_table: config -> `NameTable`.
        forward: (base params, config, `Inputs`) -> hidden states of the last layer.
        head_slice: config -> slice of the tokens that the head for sequences reads.
        heads: head, one of `HEADS` -> (params, config, hidden states of the tokens that it reads, dropout) -> logits.
        pool: (config, hidden states in `head_slice`, mask of those that are not padding) -> input of the head for
            sequences; by default these hidden states.
    """

    config: type[ModelConfig]
    name_table: Callable[[Any], NameTable]
    forward: Callable[..., Array]
    head_slice: Callable[[Any], slice]
    heads: Mapping[str, Callable[..., Array]]
    pool: Callable[[Any, Array, Array], Array] = lambda config, hidden, mask: hidden


@functools.cache
def _rules(config: type[ModelConfig]) -> dict[str, tuple[Rule, bool, Any]]:
    """Field -> (its rule, whether null is allowed, default)."""
    hints = get_type_hints(config, include_extras=True)
    rules = {}
    for field in dataclasses.fields(config):
        kinds = [hints[field.name], *get_args(hints[field.name])]
        rule = next(extra for kind in kinds for extra in getattr(kind, "__metadata__", ()))
        rules[field.name] = (rule, type(None) in kinds, field.default)
    return rules


def _refuse(faults: Iterable[str]) -> None:
    if faults := [*faults]:
        raise ValueError("; ".join(faults))
