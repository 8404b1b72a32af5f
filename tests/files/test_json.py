"""The reader of everybody's JSON and text: what it takes, and what it refuses, within its limits."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import msgspec
import pytest

from lpjax._files.json import (
    Count,
    RecordError,
    as_type,
    finite,
    json_line,
    json_text,
    parse_json,
    parse_object,
    read_object,
    write_json,
)
from lpjax._files.reading import LINE_LIMIT, TextError, read_lines


@pytest.mark.parametrize(
    "text", ["null", "[1, -2.5e3, true]", '{"a": {"b": "ü\\u2028"}}', '{"a": 1, "a": 2}', str(10**300)]
)
def test_what_json_says_is_read_as_python_reads_it(text):
    assert parse_json(text.encode()) == parse_json(text) == json.loads(text)
    assert parse_json(b"\xef\xbb\xbf" + text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" * 200_000, "nested more than 200 deep"),
        (b"[" * 201 + b"]" * 201, "nested more than 200 deep"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nested more than 200 deep"),
        (b" " * 5_000_000, "longer than 4194304 bytes"),
        (b"[1e999]", "the number 1e999 is out of range"),
        (b"[-1e400]", "out of range"),
        (b"9" * 400, "has 400 digits"),
        (b"9" * 5000, "limit"),
        (b"[NaN]", "NaN is not JSON"),
        (b"-Infinity", "-Infinity is not JSON"),
        ("{}".encode("utf-16"), "UTF-16"),
        ("{}".encode("utf-32"), "UTF-32"),
        ("{}".encode("utf-16-le"), "UTF-16"),
        ("{}".encode("utf-16-be"), "UTF-16"),
        (b'{"\xff": 1}', "utf-8"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_refused(text, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_json(text)


def test_limits_hold_at_their_ends():
    assert parse_json(b"[" * 200 + b"]" * 200) is not None
    assert parse_json(b" " * 4_194_303 + b"1") == 1
    assert parse_json("9" * 308) == 10**308 - 1


def test_unknown_numbers_become_null():
    data = parse_object('{"a": NaN, "b": 1e999, "c": [-Infinity, 1e301, -2], "d": {"e": 1e300}}', "file")
    assert data == {"a": None, "b": None, "c": [None, None, -2], "d": {"e": 1e300}}
    assert finite({"a": (float("nan"), 1.5)}) == {"a": [None, 1.5]}


class Inner(msgspec.Struct):
    name: str


class Outer(msgspec.Struct):
    number: float = 0.0
    count: Count = 0
    inner: Inner | None = None
    inners: tuple[Inner, ...] = ()


def test_what_does_not_fit_is_refused_by_key():
    for data, words in (
        ({"number": True}, "file: number is true; expected a number"),
        ({"count": -2}, "file: count is -2; expected a whole number >= 0"),
        ({"count": 2**63}, "file: count is 9223372036854775808; expected a whole number"),
        ({"inner": 3}, "file: inner is 3; expected an object"),
        ({"inner": {}}, "file: inner.name is missing"),
        ({"inners": [{"name": "a"}, {"name": None}]}, "file: inners[1].name is null; expected a string"),
    ):
        with pytest.raises(RecordError, match=re.escape(words)):
            as_type(data, Outer, "file")


def test_a_key_that_is_repeated_is_refused_by_name():
    with pytest.raises(RecordError, match="file is not JSON: the key 'rank' is repeated"):
        parse_object('{"layers": [{"rank": 1, "rank": 2}]}', "file")


def test_a_reader_chooses_the_error(tmp_path):
    class Own(ValueError):
        pass

    with pytest.raises(Own, match=re.escape("file: inners[0].name is 1; expected a string")):
        as_type({"inners": [{"name": 1}]}, Outer, "file", Own)
    with pytest.raises(Own, match=re.escape('file: schema is missing; expected "a/1"')):
        parse_object("{}", "file", schema="a/1", error=Own)
    with pytest.raises(Own, match="can't be read"):
        read_object(tmp_path / "nothing", error=Own)


def test_what_is_written_is_json(tmp_path):
    content = {"a": "ü", "b": [1, 2.5, None]}
    write_json(tmp_path / "new" / "file.json", content)
    text = (tmp_path / "new" / "file.json").read_text(encoding="utf-8")
    assert text == json_text(content, ascii=False) == json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    assert json_line(content) == json.dumps(content)
    for make in (json_line, json_text, lambda content: write_json(tmp_path / "other.json", content)):
        with pytest.raises(ValueError, match="not JSON compliant"):
            make({"a": float("nan")})
    assert not (tmp_path / "other.json").exists()


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder", tmp_path / "nothing", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(RecordError, match=re.escape(f"{path} can't be read")):
            read_object(path)
        with pytest.raises((ValueError, OSError)):
            read_lines(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"\xef\xbb\xbfa\r\nb\n\nc\r\n", ["a", "b", "", "c"]),
        ("a\u2028b\x0bc\x85d\x1ce\n".encode(), ["a\u2028b\x0bc\x85d\x1ce"]),
        (b"a\rb\r\n", ["a\rb"]),
    ],
)
def test_lines_end_at_line_feeds_alone(tmp_path, content, expected):
    (tmp_path / "text").write_bytes(content)
    assert read_lines(tmp_path / "text") == expected


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("a\nb\n".encode("utf-16"), 1, "UTF-16"),
        ("a\nb\n".encode("utf-16-le"), 1, "UTF-16"),
        (b"a\nb\xff\n", 2, "utf-8"),
        (b"a\nb\nc\0d\n", 3, "NUL"),
        (b"\xef\xbb\xbfa\n" + b"b" * (LINE_LIMIT + 1), 2, f"it has {LINE_LIMIT + 1} characters"),
    ],
)
def test_what_is_no_text_is_refused_by_line(tmp_path, content, line, words):
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(TextError, match=words) as caught:
        read_lines(tmp_path / "text")
    assert caught.value.line == line
