"""Every name of lpjax that README, docs and docstrings mention is there after `import lpjax` alone."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from collections import defaultdict

from tests.docs.pages import PAGES, ROOT, blocks_of, prose_of

NAME = r"lpjax(?:\.[A-Za-z_]\w*)+"
# What contributors write inside the package; `test_code_blocks` executes it.
PRIVATE_IMPORT = re.compile(r"^from lpjax\S*( import _\w|\._\w+ import ).*$", re.MULTILINE)
FILES = ("safetensors", "json", "txt", "md")  # suffixes: `lpjax.safetensors` is a file

# Each group of names, those of one submodule, starts from `import lpjax` alone; what others import stays, for speed.
_RESOLVE = """
import importlib, json, sys
import jax, numpy  # noqa: F401
try:
    import flax  # noqa: F401
except ImportError:
    pass
missing = []
for names in json.load(sys.stdin):
    for module in [name for name in sys.modules if name.partition(".")[0] == "lpjax"]:
        del sys.modules[module]
    lpjax = importlib.import_module("lpjax")
    for name in names:
        value = lpjax
        for part in name.split(".")[1:]:
            try:
                value = getattr(value, part)
            except AttributeError as error:
                missing.append(f"{name}: {error}")
                break
print(json.dumps(missing))
"""


def mentioned() -> dict[str, set[str]]:
    """name -> where it is mentioned."""
    places: dict[str, set[str]] = defaultdict(set)
    for page in PAGES:
        where = str(page.relative_to(ROOT))
        prose = prose_of(page)
        names = re.findall(rf"`({NAME})", prose) + re.findall(rf"^::: ({NAME})$", prose, re.MULTILINE)
        names += re.findall(rf"\]\[({NAME})\]", prose)
        for block in blocks_of(page):
            if block.language == "python":
                names += re.findall(rf"(?<![\w.\"/]){NAME}", PRIVATE_IMPORT.sub("", block.code))
        for name in names:
            places[name].add(where)
    for path in sorted((ROOT / "lpjax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for name in re.findall(rf"`({NAME})", ast.get_docstring(node) or ""):
                    places[name].add(str(path.relative_to(ROOT)))
    return {name: where for name, where in places.items() if not name.endswith(FILES)}


def test_names_resolve():
    names = mentioned()
    assert len(names) > 50
    if importlib.util.find_spec("keras") is None:  # tests/keras uses them where it is installed
        names = {name: where for name, where in names.items() if not name.startswith("lpjax.keras")}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        parts = name.split(".")
        groups[parts[1] if len(parts) > 2 else ""].append(name)
    resolve = [sys.executable, "-c", _RESOLVE]
    run = subprocess.run(resolve, input=json.dumps([*groups.values()]), capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    missing = [f"{entry} ({', '.join(sorted(names[entry.split(':')[0]]))})" for entry in json.loads(run.stdout)]
    assert not missing, "\n".join(missing)


def test_the_api_pages_have_every_public_name():
    import lpjax

    pages = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "api").glob("*.md")))
    documented = set(re.findall(rf"^::: ({NAME})$", pages, re.MULTILINE))
    names = [name for name in dir(lpjax) if name[0] != "_" and name != "keras"]  # a module, which may lack its package
    public = {name for name in names if not inspect.ismodule(getattr(lpjax, name))}
    assert {f"lpjax.{name}" for name in public} <= documented, sorted({f"lpjax.{n}" for n in public} - documented)


def test_the_site_lists_every_page():
    import tomllib

    nav = re.findall(r"[\w/]+\.md", json.dumps(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages == set(nav)
    assert len(nav) == len(set(nav))
