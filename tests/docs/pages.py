"""The pages of the documentation, and the code in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / folder / "README.md" for folder in ("experiments", "benchmarks")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOT_EXECUTED = re.compile(r"<!-- not executed: (?P<reason>.+) -->")


class Block(NamedTuple):
    """A fenced block of code.

    Attributes:
        page: relative to the repository.
        line: of its opening fence, from 1.
        language: after the fence.
        code: between the fences.
        reason: why it is not executed, from a comment in the line before it; None if it is.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None


def blocks_of(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        fence = re.fullmatch(r"\s*```(\S*).*", line)
        if fence is None:
            continue
        if start is None:
            start, language = number, fence[1]
            marked = NOT_EXECUTED.fullmatch(lines[number - 1].strip()) if number else None
            continue
        code = "\n".join(lines[start + 1 : number])
        name = str(page.relative_to(ROOT))
        yield Block(name, start + 1, language, code, marked["reason"] if marked else None)
        start = None
    assert start is None, f"{page}: the block of line {start} has no end"


def prose_of(page: Path) -> str:
    """The text of a page outside its fenced blocks."""
    return re.sub(r"^\s*```.*?^\s*```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
