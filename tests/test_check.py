"""The list of `make check` names tests that are there, of every part."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent


def test_every_line_is_a_test_and_every_part_has_one():
    lines = (TESTS / "check.txt").read_text().splitlines()
    assert lines == sorted(set(lines))
    for line in lines:
        file, _, name = line.partition("::")
        text = (TESTS.parent / file).read_text()
        assert f"def {name}" in text, line
    parts = {path.parent for path in TESTS.rglob("test_*.py")}
    assert {(TESTS.parent / line.partition("::")[0]).parent for line in lines} == parts
