"""The structure of the package: what imports what, and what stands in `__init__` files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lpjax

ROOT = Path(lpjax.__path__[0])
FILES = sorted(ROOT.rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of lpjax that a file imports, `module.name` for `from module import name`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lpjax":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "lpjax")


def owner(name: str) -> str | None:
    """The package whose private part a dotted name is; None if the name is public."""
    parts = name.split(".")
    private = [i for i, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
    return ".".join(parts[: private[0]]) if private else None


def test_no_package_imports_the_private_parts_of_another():
    for path in FILES:
        importer = module(path)
        package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        for name in imports(path):
            owned = owner(name)
            assert owned is None or f"{package}.".startswith(f"{owned}."), f"{importer} imports {name}"


def test_a_private_part_of_another_package_would_be_seen():
    assert owner("lpjax.solvers._core.rows.Rows") == "lpjax.solvers"
    assert owner("lpjax.checkpoint._save.check") == "lpjax.checkpoint"
    assert owner("lpjax.__version__") is None


def test_the_root_has_few_modules():
    assert len([path for path in ROOT.glob("*.py") if path.stem not in ("__init__", "__main__")]) <= 12


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=module)
def test_init_files_only_reexport(path: Path):
    """Imports, docstrings and what loads names on first use; no class, and no function with a public name."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        assert not isinstance(node, ast.ClassDef)
        if isinstance(node, ast.FunctionDef):
            assert node.name.startswith("_"), node.name
