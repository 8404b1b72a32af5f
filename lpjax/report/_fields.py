"""Objects of somebody's JSON, read key by key: what does not fit is refused with its file and key."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

_LIMIT = 1 << 25  # bytes of a file that are read at most
_TEXT_LIMIT = 10_000  # letters of a string
_MOST = 2**63 - 1

T = TypeVar("T")


class RecordError(ValueError):
    """A record is not what it should be; names the file and the key."""


def read_text(path: Path) -> str:
    """The text of a record's file.

    Raises:
        RecordError: it is no UTF-8 text, or too large for a record.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise ValueError(f"it is longer than {_LIMIT} bytes")
        return data.decode("utf-8")
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} can't be read as a record: {error}") from None


def parse_object(text: str, where: str) -> Fields:
    """The JSON object in `text`. NaN and infinities, which JSON does not have but many write, are unknown numbers.

    Raises:
        RecordError: it is no JSON, or no object.
    """
    try:
        data = json.loads(text, parse_constant=float)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where} is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise RecordError(f"{where} is {_name(data)}; expected an object")
    return Fields(data, where)


def read_object(path: Path, schema: str) -> Fields:
    """The JSON object in a file that says to be of this schema.

    Raises:
        RecordError: it is no such file, or of another schema; names the file and the key.
    """
    fields = parse_object(read_text(path), str(path))
    if fields.data.get("schema") != schema:
        raise fields.refuse("schema", f'"{schema}"')
    return fields


class Fields:
    """One object; `where` names its file and `inside` its place there, such as "steps[0]"."""

    def __init__(self, data: Mapping[str, Any], where: str, inside: str = ""):
        self.data, self.where, self.inside = data, where, inside

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def text(self, key: str) -> str | None:
        """A string, or None where there is none."""
        return self._get(key, "a string", lambda value: _text(value))

    def number(self, key: str) -> float | None:
        """A number, or None where there is none or it is not finite."""
        return self._get(key, "a number", _number, finite=False)

    def count(self, key: str, least: int = 0) -> int | None:
        """A whole number, or None where there is none."""
        return self._get(key, f"a whole number, {least} or more", lambda value: _count(value, least))

    def flag(self, key: str) -> bool | None:
        """true or false, or None where there is neither."""
        return self._get(key, "true or false", lambda value: value if isinstance(value, bool) else None)

    def counts(self, key: str) -> tuple[int, ...] | None:
        """A list of whole numbers, 1 or more, such as a shape."""
        return self._get(key, "a list of whole numbers", lambda value: _each(value, lambda one: _count(one, 1)))

    def positives(self, key: str) -> tuple[float, ...] | None:
        """A list of numbers above 0."""

        def positive(value: Any) -> float | None:
            number = _number(value)
            return number if number is not None and number > 0 else None

        return self._get(key, "a list of numbers above 0", lambda value: _each(value, positive))

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of strings."""
        return self._get(key, "a list of strings", lambda value: _each(value, _text))

    def numbers(self, key: str) -> dict[str, float | None] | None:
        """An object of numbers; one that is not finite is None."""
        found = self._get(key, "an object of numbers", lambda value: value if isinstance(value, dict) else None)
        return (
            None
            if found is None
            else {name: Fields(found, self.where, self._inside(key)).number(name) for name in found}
        )

    def plain(self, key: str) -> dict[str, str]:
        """An object of strings and numbers, as text; empty where there is none."""

        def convert(value: Any) -> dict[str, str] | None:
            if not isinstance(value, dict) or any(isinstance(one, dict | list) for one in value.values()):
                return None
            return {name: str(one)[:_TEXT_LIMIT] for name, one in value.items() if one is not None}

        return self._get(key, "an object of strings and numbers", convert) or {}

    def anything(self, key: str) -> dict[str, Any]:
        """An object, of whatever; empty where there is none."""
        found = self.data.get(key, {})
        if not isinstance(found, dict):
            raise self.refuse(key, "an object")
        return found

    def objects(self, key: str) -> Iterator[Fields]:
        """The objects of a list."""
        found = self._get(key, "a list of objects", lambda value: value if isinstance(value, list) else None)
        for i, value in enumerate(found or ()):
            place = f"{self._inside(key)}[{i}]"
            if not isinstance(value, dict):
                raise RecordError(f"{self.where}: {place} is {_name(value)}; expected an object")
            yield Fields(value, self.where, place)

    def need(self, key: str, value: T | None) -> T:
        """`value`, read from `key`.

        Raises:
            RecordError: it is None.
        """
        if value is None:
            lacks = "is not finite" if key in self else "is missing"
            raise RecordError(f"{self.where}: {self._inside(key)} {lacks}")
        return value

    def refuse(self, key: str, expected: str) -> RecordError:
        """The error that `key` holds something else than `expected`."""
        found = f"is {_name(self.data[key])}" if key in self.data else "is missing"
        return RecordError(f"{self.where}: {self._inside(key)} {found}; expected {expected}")

    def _inside(self, key: str) -> str:
        return f"{self.inside}.{key}" if self.inside else key

    def _get(self, key: str, expected: str, convert: Callable[[Any], T | None], finite: bool = True) -> T | None:
        value = self.data.get(key)
        if value is None or (not finite and isinstance(value, float) and not math.isfinite(value)):
            return None
        found = convert(value)
        if found is None:
            raise self.refuse(key, expected)
        return found


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and len(value) <= _TEXT_LIMIT else None


def _number(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300
    return float(value) if fits else None


def _count(value: Any, least: int) -> int | None:
    return value if type(value) is int and least <= value <= _MOST else None


def _each(value: Any, convert: Callable[[Any], T | None]) -> tuple[T, ...] | None:
    if not isinstance(value, list):
        return None
    found = [convert(one) for one in value]
    return None if any(one is None for one in found) else tuple(found)  # pyright: ignore[reportReturnType]


def _name(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
