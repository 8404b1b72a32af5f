"""The reader of everybody's JSON and text: what it takes, and what it refuses, within its limits."""

from __future__ import annotations

import json
import os
import re

import pytest

from lpjax._files.json import Fields, RecordError, parse_json, parse_object, read_fields
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


def test_fields_tell_unknown_numbers_from_wrong_ones():
    fields = parse_object('{"a": NaN, "b": 1e999, "c": -2, "d": true, "e": 3}', "file")
    assert (fields.number("a"), fields.number("b"), fields.number("c"), fields.count("e", 1, 3)) == (None, None, -2, 3)
    for attempt, words in (
        (lambda: fields.number("d"), "file: d is true; expected a number"),
        (lambda: fields.count("c"), "file: c is -2; expected a whole number, 0 or more"),
        (lambda: fields.count("e", 0, 2), "file: e is 3; expected a whole number from 0 to 2"),
        (lambda: fields.object("e"), "file: e is 3; expected an object"),
        (lambda: fields.need("z", fields.text("z")), "file: z is missing"),
    ):
        with pytest.raises(RecordError, match=re.escape(words)):
            attempt()


def test_a_key_that_is_repeated_is_refused_by_name():
    with pytest.raises(RecordError, match="file is no JSON: the key 'rank' is repeated"):
        parse_object('{"layers": [{"rank": 1, "rank": 2}]}', "file")


def test_fields_raise_the_error_that_they_are_given():
    class Own(ValueError):
        pass

    with pytest.raises(Own, match=re.escape("file: a[0].b is 1; expected a string")):
        next(parse_object('{"a": [{"b": 1}]}', "file", Own).objects("a")).text("b")
    assert issubclass(Fields({}, "file").refuse("a", "b").__class__, RecordError)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder", tmp_path / "nothing"):
        with pytest.raises(RecordError, match=re.escape(f"{path} can't be read")):
            read_fields(path)
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
