"""Reading a model's config from the object of a config.json: every fault is named, none is ignored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from lpjax.models.layers import ACTIVATIONS
from lpjax.models.names import HEADS, head_named

_KINDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
_MOST_LAYERS = 1000  # a config that claims more is a typing error, or meant to fill the memory
_MOST = 2**31 - 1  # ids and sizes are int32


class ConfigReader:
    """Reads keys of a config.json's object and collects what is wrong with them.

    Call `get`, `size` and the other methods for every key that matters, then `finish`.
    """

    def __init__(self, data: Mapping[str, Any]):
        self._data = data
        self._missing: list[str] = []
        self._faults: list[str] = []

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """`data[key]`, of type `kind`; missing without a default, or of another type, is a fault."""
        value = self._data.get(key, default)
        if key not in self._data and default is None:
            self._missing.append(key)
        # bool is an int to Python; a whole number serves as a float.
        elif type(value) is not kind and not (kind is float and type(value) is int):
            self.fault(f"`{key}` is {value!r}, expected {_KINDS[kind]}")
            value = None
        return value

    def size(self, key: str, default: int | None = None, most: int = _MOST) -> int | None:
        """A whole number from 1 to `most`."""
        value = self.get(key, int, default)
        if value is not None and not 1 <= value <= most:
            self.fault(f"`{key}` is {value}, expected " + ("at least 1" if value < 1 else f"at most {most}"))
            return None
        return value

    def layers(self, key: str) -> int | None:
        """A number of layers."""
        return self.size(key, most=_MOST_LAYERS)

    def heads(self, hidden_key: str, heads_key: str) -> None:
        """A hidden size and the number of heads that it is divided into."""
        hidden, heads = self.size(hidden_key), self.size(heads_key)
        if hidden and heads and hidden % heads:
            self.fault(f"`{hidden_key}` is {hidden}, expected a multiple of `{heads_key}`, {heads}")

    def activation(self, key: str, default: str) -> None:
        """The name of an activation function."""
        name = self.get(key, str, default)
        if name is not None and name not in ACTIVATIONS:
            self.fault(f"`{key}` is {name!r}, expected one of {', '.join(ACTIVATIONS)}")

    def share(self, key: str, default: float) -> None:
        """A number from 0, below 1: a rate of dropout, or the ε of a layer normalization."""
        value = self.get(key, float, default)
        if value is not None and not 0 <= value < 1:
            self.fault(f"`{key}` is {value}, expected a number from 0, below 1")

    def given(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self._data.get(key) is not None

    def refuse(self, key: str, allowed: tuple[Any, ...], why: str) -> None:
        """A fault where `key` is given and none of `allowed`."""
        if key in self._data and self._data[key] not in allowed:
            self.fault(f"`{key}` is {self._data[key]!r}, expected {allowed[0]!r}: {why}")

    def fault(self, message: str) -> None:
        """Add a fault found by the caller."""
        self._faults.append(message)

    def finish(self) -> None:
        """Raise a ValueError that lists every fault, if there is one."""
        lacking = [f"lacks {', '.join(f'`{key}`' for key in self._missing)}"] if self._missing else []
        if lacking or self._faults:
            raise ValueError("; ".join([*lacking, *self._faults]))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a net's names and forward pass need of its config.json; hashable, so static under jit.

    A net's own config is a frozen dataclass whose fields are keys of config.json, and says in `check` what they may
    be.

    Attributes:
        head: what `lpjax.classify` takes the net's head for, one of `lpjax.models.names.HEADS`: "sequence", "tokens",
            "spans" or "words". No key of config.json: the class in its `architectures` tells.

    Raises:
        ValueError: listing every field of a wrong type or value.
    """

    model_type: ClassVar[str]
    vocab_size: int
    tie_word_embeddings: bool = dataclasses.field(default=True, kw_only=True)
    head: str = dataclasses.field(default="sequence", kw_only=True)

    def __post_init__(self) -> None:
        reader = ConfigReader(dataclasses.asdict(self))
        self.check(reader)
        reader.get("tie_word_embeddings", bool, True)
        if self.head not in HEADS:
            reader.fault(f"`head` is {self.head!r}, expected one of {', '.join(HEADS)}")
        reader.finish()

    @classmethod
    def check(cls, reader: ConfigReader) -> None:
        """Read every field."""
        raise NotImplementedError

    @classmethod
    def refuse(cls, reader: ConfigReader) -> None:
        """Refuse values of keys, not fields, that ask for what the net here does not compute."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The config in the object of a config.json; keys that do not change what is computed are not read.

        Raises:
            ValueError: listing every key that is missing, of a wrong type or value, or that asks for what
                lpjax does not compute (a decoder, relative positions in BERT, pruned heads, quantization).
        """
        reader = ConfigReader(data)
        cls.check(reader)
        reader.get("tie_word_embeddings", bool, True)
        reader.refuse("model_type", (cls.model_type,), "another kind of model")
        reader.refuse("is_decoder", (False, None), "only encoders are supported")
        reader.refuse("add_cross_attention", (False, None), "only encoders are supported")
        reader.refuse("pruned_heads", ({}, [], None), "pruned heads are not supported")
        reader.refuse("quantization_config", (None,), "quantized checkpoints are not supported")
        cls.refuse(reader)
        code = data.get("auto_map")
        if code and (not isinstance(code, Mapping) or "AutoModel" in code):
            reader.fault("`auto_map` names code of its own for the model, which lpjax does not run")
        reader.finish()
        known = {field.name for field in dataclasses.fields(cls)} - {"head"}
        return cls(**{key: data[key] for key in known if key in data}, head=head_named(data.get("architectures")))

    def to_json(self) -> dict[str, Any]:
        """The object of a config.json that `from_json` reads this config from."""
        from lpjax.models import CLASS_NAMES  # late: the package imports this module

        data = {"model_type": self.model_type, **dataclasses.asdict(self)}
        head = data.pop("head")
        if head == "sequence":
            return data
        return {"architectures": [f"{CLASS_NAMES[self.model_type]}{HEADS[head][0]}"], **data}

    @property
    def max_length(self) -> int | None:
        """Tokens that an input may have; None without a limit."""
        raise NotImplementedError

    @property
    def num_token_types(self) -> int | None:
        """Values that `token_type_ids` may have, from 0; None without a limit."""
        raise NotImplementedError
