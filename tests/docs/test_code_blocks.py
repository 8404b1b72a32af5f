"""Every block of Python and every shell line in README and docs runs, in order, page by page."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpjax.checkpoint.formats import FORMATS
from lpjax.glue import TASKS
from lpjax.models import ARCHITECTURES
from lpjax.solvers import SOLVERS
from lpjax.weighting import WEIGHTINGS
from tests.conftest import Command
from tests.docs.pages import PAGES, ROOT, Block, blocks_of, prose_of

BLOCKS = {page: list(blocks_of(page)) for page in PAGES}
WITH_CODE = [page for page, blocks in BLOCKS.items() if any(b.language in ("python", "shell") for b in blocks)]
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# Folders that a page takes for granted: page -> the commands that make them.
MADE_BEFORE = {"docs/reference/interruptions.md": [f"lpjax compress {MODEL} small --layers encoder --keep 0.5"]}
# The ids of a text in the README are those of BERT's vocabulary.
VOCABULARY = dict.fromkeys(
    ("README.md", "docs/index.md", "docs/results.md", "docs/guides/sentence_encoder.md", "docs/reference/exports.md"),
    8192,
)
# Pages that are run if an optional package is installed: page -> its module.
NEEDS = {"docs/guides/keras.md": "keras_hub"}
NOT_RUN = {"text", "bibtex", "json", "toml", "diff"}


def test_every_block_says_what_it_is():
    for page, blocks in BLOCKS.items():
        for block in blocks:
            where = f"{block.page}:{block.line}"
            assert block.language in {"python", "shell", *NOT_RUN}, f"{where} is of the language {block.language!r}"
            assert block.reason is None or block.language in ("python", "shell"), f"{where} is never executed"
        indented = re.search(r"^ {4,}(lpjax|python|pip|make|import|>>>) .*$", prose_of(page), re.MULTILINE)
        assert indented is None, f"{page.name}: fence this, so that it is executed: {indented and indented[0]}"


def test_few_blocks_are_left_out():
    reasons = [(block.page, block.reason) for blocks in BLOCKS.values() for block in blocks if block.reason]
    assert len(reasons) <= 3, reasons


@pytest.fixture
def desk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with stand-ins for what pages name: the model, sentences, and a GLUE task."""
    desk = tmp_path / "desk"
    shutil.copytree(folder, desk / MODEL, ignore=shutil.ignore_patterns("*.bin", "onnx"))
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), size=2)) for _ in range(40)]
    sentences = [" ".join(rng.choice(words, size=4)) for _ in range(40)]
    (desk / "sentences.txt").write_text("\n".join(sentences))
    task = dataclasses.replace(TASKS["sst2"], splits={"train": 40, "validation": 12})
    monkeypatch.setitem(TASKS, "sst2", task)
    (desk / "glue" / task.title).mkdir(parents=True)
    for split, rows in task.splits.items():
        lines = ["sentence\tlabel", *(f"{sentences[i]} {'ab'[i % 2]}\t{i % 2}" for i in range(rows))]
        (desk / "glue" / task.title / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("LPJAX_GLUE_DIR", str(desk / "glue"))
    monkeypatch.chdir(desk)
    return desk


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """Tables are what they were after a page that added to them."""
    tables: list[dict[str, Any]] = [SOLVERS, ARCHITECTURES, WEIGHTINGS, FORMATS]
    known = [(table, dict(table)) for table in tables]
    yield
    for table, before in known:
        table.clear()
        table.update(before)


@pytest.mark.covering(0)
@pytest.mark.filterwarnings("default")  # Flax, Orbax and tokenizers have some of their own
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_of(page: Path, desk: Path, command: Command):
    name = str(page.relative_to(ROOT))
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    names: dict[str, object] = {"__name__": "__main__"}
    _resize(desk / MODEL, VOCABULARY.get(name))
    for line in MADE_BEFORE.get(name, []):
        _run_shell(line, command)
    for block in BLOCKS[page]:
        if block.reason is not None:
            continue
        if block.language == "python":
            _run_python(block, names)
        elif block.language == "shell":
            for line in block.code.replace("\\\n", " ").splitlines():
                _run_shell(line, command)


def _resize(folder: Path, vocabulary: int | None = None) -> None:
    """Make all kernels of a model square, for fewer shapes to be compiled, and give it rows for more tokens."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    hidden, words = config["hidden_size"], vocabulary or config["vocab_size"]
    rng = np.random.default_rng(1)
    for name, tensor in tensors.items():
        if re.search(r"\.(intermediate|output)\.dense\.", name):
            tensors[name] = np.ascontiguousarray(tensor[tuple(slice(hidden) for _ in tensor.shape)])
        if name.endswith("word_embeddings.weight"):
            more = rng.normal(size=(words - len(tensor), hidden)).astype(tensor.dtype)
            tensors[name] = np.concatenate([tensor, more])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {"intermediate_size": hidden, "vocab_size": words}
    (folder / "config.json").write_text(json.dumps(config | sizes))


def _run_python(block: Block, names: dict[str, object]) -> None:
    # Lines are counted as in the page, for tracebacks.
    source = "\n" * block.line + block.code
    exec(compile(source, ROOT / block.page, "exec"), names)


def _run_shell(line: str, command: Command) -> None:
    """Run a line of `lpjax`; for other lines, check that what they name exists."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    match words:
        case [] | ["export" | "cd" | "git" | "pre-commit", *_]:
            pass
        case ["lpjax", *arguments]:
            status, out, err = command(*arguments)
            assert status == 0, f"{line}\n{out}\n{err}"
        case ["pip", "install", *packages]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            for package in (name for name in packages if name.startswith(project["name"])):
                extras = re.fullmatch(r"lpjax(?:\[(\S+)\])?", package)
                assert extras, line
                assert {*(extras[1] or "").split(",")} - {""} <= {*project["optional-dependencies"]}, line
        case ["make", *targets]:
            rules = (ROOT / "Makefile").read_text()
            for target in targets:
                assert re.search(rf"^{re.escape(target)}:", rules, re.MULTILINE), line
        case ["python", "-m", module, *arguments]:
            assert importlib.util.find_spec(module), line
            for argument in arguments:
                if re.match(r"(tests|experiments|benchmarks)/.*\.(py|toml)", argument):
                    assert (ROOT / argument.partition("::")[0]).exists(), line
        case _:
            raise AssertionError(f"neither run nor checked: {line}")
