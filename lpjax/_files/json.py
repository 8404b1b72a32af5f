"""JSON from elsewhere, read within limits and as types; what does not fit is refused by file and key."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec

from lpjax._files.reading import decode, read_bytes

JSON_LIMIT = 1 << 22
"""Bytes of JSON that are parsed by default: enough for 30 000 tensors, and some 200 MB in memory at worst."""
RECORD_LIMIT = 1 << 25
"""Bytes of a record or a file of results that are read at most."""

_MOST_DEPTH = 200  # of objects and lists in each other; writing and walking them stays far from Python's own limit
_MOST_PARTS = 2_000_000  # objects and lists of a file: an empty one takes some 60 bytes in memory
_MOST_DIGITS = 308  # of a whole number, so that it is a float, too: most operations make an OverflowError of more
_MOST_LETTERS = 10_000  # of a string that is read as a field
_MOST = 2**63 - 1

T = TypeVar("T")

Text = Annotated[str, msgspec.Meta(max_length=_MOST_LETTERS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
Plain = Text | int | float | bool
"""A value that is no object and no list."""


class RecordError(ValueError):
    """A record, plan or other file beside the weights does not fit its schema; names the file and the key."""


def parse_json(text: bytes | str, *, limit: int = JSON_LIMIT, unique: bool = False, lenient: bool = False) -> Any:
    """What `text` holds.

    Args:
        text: UTF-8, with or without a byte order mark.
        limit: bytes at most.
        unique: refuse an object that repeats a key; otherwise the last one counts.
        lenient: read NaN, Infinity and numbers beyond float64 (1e999) instead of refusing them, for readers such as
            `Fields` that look at every number.

    Raises:
        ValueError: it is not JSON, longer than `limit`, nested too deeply, or has numbers of too many digits.
    """
    if len(text) > limit:
        raise ValueError(f"it is longer than {limit} bytes")
    text = decode(text) if isinstance(text, bytes) else text.removeprefix("\ufeff")
    if text.count("[") + text.count("{") > _MOST_PARTS:
        raise ValueError(f"it has more than {_MOST_PARTS} objects and lists")

    def whole(digits: str) -> int:
        value = int(digits)  # which refuses more than 4300 digits
        if not lenient and len(digits) > _MOST_DIGITS:
            raise ValueError(f"the number {digits:.20}… has {len(digits)} digits")
        return value

    def number(digits: str) -> float:
        value = float(digits)
        if not lenient and not math.isfinite(value):
            raise ValueError(f"the number {digits:.40} is out of range")
        return value

    try:
        data = json.loads(
            text,
            parse_int=whole,
            parse_float=number,
            parse_constant=float if lenient else _no_constant,
            object_pairs_hook=_unique if unique else None,
        )
    except RecursionError:
        raise ValueError(f"it is nested more than {_MOST_DEPTH} deep") from None
    _check_depth(data)
    return data


def read_json(path: Path, *, limit: int = JSON_LIMIT, unique: bool = False, lenient: bool = False) -> Any:
    """What a JSON file holds.

    Raises:
        OSError, ValueError: as `read_bytes` and `parse_json`; the file is not named.
    """
    return parse_json(read_bytes(path, limit), limit=limit, unique=unique, lenient=lenient)


def read_text(path: Path) -> str:
    """The text of a record's file.

    Raises:
        RecordError: it is no UTF-8 text, or too large for a record.
    """
    try:
        return decode(read_bytes(path, RECORD_LIMIT))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} can't be read as a record: {error}") from None


def parse_object(text: bytes | str, where: str, error: type[ValueError] = RecordError) -> Fields:
    """The JSON object in `text`. NaN and infinities, which JSON does not have but many write, are unknown numbers.

    Raises:
        RecordError: it is no JSON, no object, or repeats a key; or `error`.
    """
    try:
        data = parse_json(text, limit=RECORD_LIMIT, unique=True, lenient=True)
    except ValueError as fault:
        raise error(f"{where} is no JSON: {fault}") from None
    if not isinstance(data, dict):
        raise error(f"{where} is {_name(data)}; expected an object")
    return Fields(data, where, error=error)


def read_fields(path: Path, error: type[ValueError] = RecordError) -> Fields:
    """The JSON object in a file.

    Raises:
        RecordError: it is no regular file of UTF-8 text, or as `parse_object`; or `error`.
    """
    try:
        data = read_bytes(path, RECORD_LIMIT)
    except (OSError, ValueError) as fault:
        raise error(f"{path} can't be read: {fault}") from None
    return parse_object(data, str(path), error)


def read_object(path: Path, schema: str) -> Fields:
    """The JSON object in a file that says to be of this schema.

    Raises:
        RecordError: it is no such file, or of another schema; names the file and the key.
    """
    fields = parse_object(read_text(path), str(path))
    if fields.data.get("schema") != schema:
        raise fields.refuse("schema", f'"{schema}"')
    return fields


def as_type(data: Any, kind: type[T], where: str, error: type[ValueError] = RecordError) -> T:
    """`data` as a value of a type that msgspec knows, with its constraints.

    Args:
        data: what JSON holds.
        kind: such as a dataclass.
        where: name of the file.
        error: the class of the error.

    Raises:
        RecordError: it does not fit; names the file, the key, what is there and what is expected; or `error`.
    """
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as fault:
        raise error(f"{where}: {_fault(str(fault), data)}") from None


_KINDS = {"int": "a whole number", "float": "a number", "str": "a string", "bool": "true or false", "array": "a list",
          "object": "an object"}  # fmt: skip


def _fault(text: str, data: Any) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.a[0].rank`" as 'a[0].rank is "x"; expected a whole number'."""
    what, _, place = text.partition(" - at `$")
    place = place.rstrip("`").removeprefix(".")
    if missing := re.match(r"Object missing required field `(.*)`", what):
        return f"{place}.{missing[1]} is missing".removeprefix(".")
    expected = re.match(r"Expected (.*?)(, got .*)?$", what)
    if expected is None:
        return f"{place}: {what}"
    kinds = re.sub(
        r"`(.*?)`", lambda match: " or ".join(_KINDS.get(one, one) for one in match[1].split(" | ")), expected[1]
    )
    for key, index in re.findall(r"(\w+)|\[(.*?)\]", place):
        if index == "...":  # a value of an object, whose key msgspec does not tell
            return f"{place}: expected {kinds}"
        data = data[int(index)] if index else data[key]
    return f"{place} is {_name(data)}; expected {kinds}"


def without_unknown(data: Any) -> Any:
    """`data` without the keys whose values are null, or numbers that are not finite or beyond 1e300: not known."""
    if isinstance(data, dict):
        return {key: without_unknown(value) for key, value in data.items() if not _unknown(value)}
    return [without_unknown(value) for value in data] if isinstance(data, list) else data


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not abs(value) <= 1e300)


def finite(value: Any) -> Any:
    """`value` with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Fields:
    """One object; `where` names its file and `inside` its place there, such as "steps[0]"; `error` is raised."""

    def __init__(
        self, data: Mapping[str, Any], where: str, inside: str = "", error: type[ValueError] = RecordError
    ) -> None:
        self.data, self.where, self.inside, self.error = data, where, inside, error

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def text(self, key: str) -> str | None:
        """A string; None if it is absent."""
        return self._get(key, "a string", lambda value: _text(value))

    def number(self, key: str) -> float | None:
        """A number; None if it is absent or not finite."""
        return self._get(key, "a number", _number, finite=False)

    def count(self, key: str, least: int = 0, most: int = _MOST) -> int | None:
        """A whole number; None if it is absent."""
        expected = f"a whole number, {least} or more" if most == _MOST else f"a whole number from {least} to {most}"
        return self._get(key, expected, lambda value: _count(value, least, most))

    def flag(self, key: str) -> bool | None:
        """true or false; None if it is absent."""
        return self._get(key, "true or false", lambda value: value if isinstance(value, bool) else None)

    def numbers(self, key: str) -> dict[str, float | None] | None:
        """An object of numbers; one that is not finite is None."""
        found = self._get(key, "an object of numbers", lambda value: value if isinstance(value, dict) else None)
        if found is None:
            return None
        inside = Fields(found, self.where, self._inside(key), self.error)
        return {name: inside.number(name) for name in found}

    def plain(self, key: str) -> dict[str, str]:
        """An object of strings and numbers, as text; empty if it is absent."""

        def convert(value: Any) -> dict[str, str] | None:
            if not isinstance(value, dict) or any(isinstance(one, dict | list) for one in value.values()):
                return None
            return {name: str(one)[:_MOST_LETTERS] for name, one in value.items() if one is not None}

        return self._get(key, "an object of strings and numbers", convert) or {}

    def anything(self, key: str) -> dict[str, Any]:
        """An object of anything; empty if it is absent."""
        found = self.data.get(key, {})
        if not isinstance(found, dict):
            raise self.refuse(key, "an object")
        return found

    def object(self, key: str) -> Fields | None:
        """An object; None if it is absent."""
        found = self._get(key, "an object", lambda value: value if isinstance(value, dict) else None)
        return None if found is None else Fields(found, self.where, self._inside(key), self.error)

    def objects(self, key: str) -> Iterator[Fields]:
        """The objects of a list."""
        found = self._get(key, "a list of objects", lambda value: value if isinstance(value, list) else None)
        for i, value in enumerate(found or ()):
            place = f"{self._inside(key)}[{i}]"
            if not isinstance(value, dict):
                raise self.error(f"{self.where}: {place} is {_name(value)}; expected an object")
            yield Fields(value, self.where, place, self.error)

    def need(self, key: str, value: T | None) -> T:
        """`value`, read from `key`.

        Raises:
            RecordError: it is None.
        """
        if value is None:
            lacks = "is not finite" if key in self else "is missing"
            raise self.error(f"{self.where}: {self._inside(key)} {lacks}")
        return value

    def refuse(self, key: str, expected: str) -> ValueError:
        """The error that `key` holds anything but `expected`."""
        found = f"is {_name(self.data[key])}" if key in self.data else "is missing"
        return self.error(f"{self.where}: {self._inside(key)} {found}; expected {expected}")

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
    return value if isinstance(value, str) and len(value) <= _MOST_LETTERS else None


def _number(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300
    return float(value) if fits else None


def _count(value: Any, least: int, most: int = _MOST) -> int | None:
    return value if type(value) is int and least <= value <= most else None


def _name(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, _ in pairs:
            if key not in found:
                raise ValueError(f"the key {key[:100]!r} is repeated")
            del found[key]
    return found


def _check_depth(data: Any) -> None:
    level = [data]
    for _ in range(_MOST_DEPTH):
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {_MOST_DEPTH} deep")
