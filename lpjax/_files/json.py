"""JSON: read untrusted files within limits and as types, with errors that name file and key; and write our own."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import msgspec

from lpjax._files.reading import check_length, decode, read_bytes
from lpjax._files.replacing import write_text

JSON_LIMIT = 1 << 22
"""Default for the largest JSON text, in bytes: enough for 30 000 tensors, and at most some 200 MB in memory."""
RECORD_LIMIT = 1 << 25
"""Largest record or file of results, in bytes."""

_MOST_DEPTH = 200  # of nested objects and lists; far below Python's own limit for writing and walking them
_TOO_DEEP = f"it is nested more than {_MOST_DEPTH} deep"
_MOST_PARTS = 2_000_000  # objects and lists of a file; an empty one takes some 60 bytes in memory
_MOST_DIGITS = 308  # of a whole number, so that it fits a float; most operations raise OverflowError for more
_MOST_LETTERS = 10_000  # of a string that is read as a field
_MOST = 2**63 - 1
_LARGEST = 1e300  # largest floating-point number; larger ones count as infinite

T = TypeVar("T")

Text = Annotated[str, msgspec.Meta(max_length=_MOST_LETTERS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
Plain = Text | int | float | bool
"""A value other than an object, a list or null."""
Exponent = float | Literal["inf"]
"""An exponent p in a file: JSON has no infinity."""


class RecordError(ValueError):
    """A record, a plan or a similar file does not fit its schema; the message names the key."""


def parse_json(text: bytes | str, *, limit: int = JSON_LIMIT, unique: bool = False, lenient: bool = False) -> Any:
    """Parse a JSON text.

    Args:
        text: UTF-8 text, with or without a byte order mark.
        limit: largest length in bytes.
        unique: whether to refuse an object that repeats a key; otherwise the last value counts.
        lenient: whether to read NaN, Infinity and numbers beyond float64 (1e999) instead of refusing them, for readers
            that check every number, or apply `finite`.

    Raises:
        ValueError: it is not JSON, longer than `limit`, nested too deeply, or has numbers of too many digits.
    """
    check_length(len(text), limit)
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
        raise ValueError(_TOO_DEEP) from None
    _check_depth(data)
    return data


def read_json(path: Path, *, limit: int = JSON_LIMIT, unique: bool = False, lenient: bool = False) -> Any:
    """Read a JSON file.

    Raises:
        OSError, ValueError: as `read_bytes` and `parse_json`; the message does not name the file.
    """
    return parse_json(read_bytes(path, limit), limit=limit, unique=unique, lenient=lenient)


def parse_object(
    text: bytes | str, where: str, *, schema: str = "", error: type[ValueError] = RecordError
) -> dict[str, Any]:
    """Parse the JSON object in `text`.

    NaN, infinities and numbers beyond 1e300, which JSON does not have but many programs write, become null.

    Args:
        text: UTF-8 text, with or without a byte order mark.
        where: name of the file, for messages.
        schema: required value of the key "schema"; "" for none.
        error: class of the error.

    Raises:
        RecordError, or `error`: the text is not a JSON object, repeats a key, or has another schema.
    """
    try:
        data = finite(parse_json(text, limit=RECORD_LIMIT, unique=True, lenient=True))
    except ValueError as fault:
        raise error(f"{where} is not JSON: {fault}") from None
    if not isinstance(data, dict):
        raise error(f"{where} is {_shown(data)}; expected an object")
    if schema and data.get("schema") != schema:
        got = f"is {_shown(data['schema'])}" if "schema" in data else "is missing"
        raise error(f'{where}: schema {got}; expected "{schema}"')
    return data


def read_text(path: Path, error: type[ValueError] = RecordError) -> str:
    """Read the text of a record's file.

    Raises:
        RecordError, or `error`: it is not a regular file, not UTF-8 text, or too large.
    """
    try:
        return decode(read_bytes(path, RECORD_LIMIT))
    except (OSError, ValueError) as fault:
        raise error(f"{path} can't be read: {fault}") from None


def read_object(path: Path, *, schema: str = "", error: type[ValueError] = RecordError) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        RecordError, or `error`: as `read_text` and `parse_object`.
    """
    return parse_object(read_text(path, error), str(path), schema=schema, error=error)


def as_type(data: Any, kind: type[T], where: str, error: type[ValueError] = RecordError) -> T:
    """Convert `data` to a type that msgspec supports, and check its constraints.

    Args:
        data: parsed JSON.
        kind: type to convert to, such as a dataclass.
        where: name of the file.
        error: class of the error.

    Raises:
        RecordError, or `error`: the data does not fit; names the file, the key, the value and the expectation.
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
    if expected is not None:
        kinds = re.sub(
            r"`(.*?)`", lambda match: " or ".join(_KINDS.get(name, name) for name in match[1].split(" | ")), expected[1]
        )
    elif what.startswith("Invalid enum value") and re.search(r"(^|\.)p$", place):
        kinds = 'a number or "inf"'  # of `Exponent`
    else:
        return f"{place}: {what}".removeprefix(": ")
    for key, index in re.findall(r"(\w+)|\[(.*?)\]", place):
        if index == "...":  # a value of an object; msgspec does not report its key
            return f"{place}: expected {kinds}"
        data = data[int(index)] if index else data[key]
    return f"{place} is {_shown(data)}; expected {kinds}"


def exponent_text(p: float | None) -> Exponent | None:
    """An exponent for JSON, with "inf" for infinity."""
    return "inf" if p == math.inf else p


def exponent_of(value: Any) -> float | None:
    """The exponent from JSON, a number above 0 or "inf"; None if it is neither."""
    if value == "inf":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
        return None
    return float(value)


def finite(value: Any) -> Any:
    """`value` with null for numbers that JSON does not have: NaN, infinities, and numbers beyond 1e300."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not abs(value) <= _LARGEST else value


def without_nulls(data: Any) -> Any:
    """`data` without keys whose values are null, so that a schema's defaults apply."""
    if isinstance(data, dict):
        return {key: without_nulls(value) for key, value in data.items() if value is not None}
    return [without_nulls(value) for value in data] if isinstance(data, list) else data


def json_line(content: Any, *, ascii: bool = True) -> str:
    """`content` as one line of JSON, without a line end.

    Args:
        content: value of JSON's types.
        ascii: whether to escape characters outside of ASCII.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have; see `finite`.
        TypeError: `content` holds values of other types.
    """
    return json.dumps(content, ensure_ascii=ascii, allow_nan=False)


def json_text(content: Any, *, ascii: bool = True) -> str:
    """`content` as the text of a JSON file, indented by two; otherwise as `json_line`."""
    return json.dumps(content, indent=2, ensure_ascii=ascii, allow_nan=False) + "\n"


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        ValueError, TypeError: as `json_line`.
        OSError: as `write_text`.
    """
    write_text(path, json_text(content, ascii=False))


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {key[:100]!r} is repeated")
    return data


def _check_depth(data: Any) -> None:
    level = [data]
    for _ in range(_MOST_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)
