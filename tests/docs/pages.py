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
    name = str(page.relative_to(ROOT))
    fences = [(number, line) for number, line in enumerate(lines) if line.lstrip().startswith("```")]
    assert len(fences) % 2 == 0, f"{name}: a fence has no end"
    for (start, opening), (end, _) in zip(fences[::2], fences[1::2], strict=True):
        marked = NOT_EXECUTED.fullmatch(lines[start - 1].strip()) if start else None
        language = opening.strip().removeprefix("```").split(" ")[0]
        code = "\n".join(lines[start + 1 : end])
        yield Block(name, start + 1, language, code, marked["reason"] if marked else None)


def prose_of(page: Path) -> str:
    """The text of a page outside its fenced blocks."""
    return re.sub(r"^\s*```.*?^\s*```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
