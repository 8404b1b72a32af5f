"""Reading a model's config from the object of a config.json: every fault is named, none is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


class ConfigReader:
    """Reads keys of a config.json's object and collects what is wrong with them.

    Call `get`, `size` and `refuse` for every key that matters, then `finish`.
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
            self._faults.append(f"`{key}` is {value!r}, expected {_KINDS[kind]}")
            value = None
        return value

    def size(self, key: str, default: int | None = None) -> int | None:
        """A whole number ≥ 1."""
        value = self.get(key, int, default)
        if value is not None and value < 1:
            self._faults.append(f"`{key}` is {value}, expected at least 1")
        return value

    def refuse(self, key: str, allowed: tuple[Any, ...], why: str) -> None:
        """A fault where `key` is given and none of `allowed`."""
        if key in self._data and self._data[key] not in allowed:
            self._faults.append(f"`{key}` is {self._data[key]!r}, expected {allowed[0]!r}: {why}")

    def fault(self, message: str) -> None:
        """Add a fault found by the caller."""
        self._faults.append(message)

    def finish(self) -> None:
        """Raise a ValueError that lists every fault, if there is one."""
        lacking = [f"lacks {', '.join(f'`{key}`' for key in self._missing)}"] if self._missing else []
        if lacking or self._faults:
            raise ValueError("; ".join([*lacking, *self._faults]))
