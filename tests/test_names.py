"""What variables are called: names that say nothing about what is in them are refused."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for folder in ("lpjax", "experiments", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
)
VAGUE = {"found", "fresh", "given", "one", "said", "told", "wanted"}
# File -> the vague names that it may bind.
KEPT = {
    # Arguments that are passed on to a function, `*given`, as `map_rows` does.
    "lpjax/solvers/_core/problem.py": {"given"},
    "lpjax/solvers/_core/rows.py": {"given"},
    "lpjax/solvers/_core/sharded.py": {"given"},
    # A field that is a key of finetune.json.
    "lpjax/training/_finetune.py": {"Finetuned.fresh"},
}


def bindings(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) for every name that Python code binds; a class's annotated field as `Class.field`."""
    tree = ast.parse(source)
    owners = {
        field.target: node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=str(name), ctx=ast.Store()):
                yield node.lineno, f"{owners[node]}.{name}" if node in owners else name
            case (
                ast.arg(arg=str(name))
                | ast.Attribute(attr=str(name), ctx=ast.Store())
                | ast.FunctionDef(name=str(name))
                | ast.AsyncFunctionDef(name=str(name))
                | ast.ClassDef(name=str(name))
                | ast.ExceptHandler(name=str(name))
                | ast.MatchAs(name=str(name))
                | ast.MatchStar(name=str(name))
                | ast.MatchMapping(rest=str(name))
                | ast.alias(asname=str(name))
            ):
                yield node.lineno, name


def vague(source: str) -> list[tuple[int, str]]:
    """The bindings of vague names, in any case and with or without underscores, in the order of their lines."""
    return sorted(
        (line, name) for line, name in bindings(source) if name.rpartition(".")[2].strip("_").lower() in VAGUE
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_say_what_they_are_of(path: Path):
    file = path.relative_to(ROOT).as_posix()
    refused = [
        f"{file}:{line}: `{name}`; expected a name that says what it is"
        for line, name in vague(path.read_text(encoding="utf-8"))
        if name not in KEPT.get(file, ())
    ]
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize("file", KEPT)
def test_names_that_are_kept_are_there(file: str):
    assert {name for _, name in vague((ROOT / file).read_text(encoding="utf-8"))} == KEPT[file]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("found = 1", "found"),
        ("found: int = 1", "found"),
        ("if (found := 1): pass", "found"),
        ("first, (_, *found) = 1, (2, 3)", "found"),
        ("for one in (): pass", "one"),
        ("[one for one in ()]", "one"),
        ("lambda one: 0", "one"),
        ("def f(*, told=0): pass", "told"),
        ("def f(*given, **options): pass", "given"),
        ("def f():\n    def _told(): pass", "_told"),
        ("class Said: pass", "Said"),
        ("_WANTED = 1", "_WANTED"),
        ("self._found = 1", "_found"),
        ("with open() as fresh: pass", "fresh"),
        ("import numpy as one", "one"),
        ("try: pass\nexcept ValueError as found: pass", "found"),
        ("match 1:\n    case {'key': one, **found}: pass", "found"),
        ("class Tuned:\n    fresh: int", "Tuned.fresh"),
    ],
)
def test_every_way_to_bind_a_vague_name_would_be_seen(code: str, name: str):
    assert name in [name for _, name in vague(code)]


def test_reading_names_and_longer_ones_are_not_refused():
    assert vague("print(found, one.said, told(wanted=1))\nfound_at = matched = one_device = 1") == []
