"""Compressed checkpoints for pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lpjax
from tests.conftest import Command
from tests.helpers.rounding import random_net


@pytest.fixture
def run(command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command without any GLUE folder: (exit status, stdout, stderr)."""
    monkeypatch.delenv("LPJAX_GLUE_DIR", raising=False)
    return command


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the compressed checkpoint is kept that every test has a copy of."""
    return tmp_path_factory.mktemp("made") / "small"


@pytest.fixture
def small(run: Command, folder: Path, tmp_path: Path, made: Path) -> Path:
    """The tiny checkpoint with its embedding and encoder factored, with its record."""
    if not made.exists():
        options = ["--layers", "embeddings,encoder", "--keep", 0.6, "--method", "svd"]
        status, _, err = run("compress", folder, made, *options)
        assert status == 0, err
    return Path(shutil.copytree(made, tmp_path / "small"))


@pytest.fixture
def edit_record(small: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """Change the record in place: `edit_record(lambda record: ...)`."""

    def edit(change: Callable[[dict[str, Any]], Any]) -> Path:
        path = small / "lpjax_record.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))
        return small

    return edit


@pytest.fixture
def roomy(folder: Path, tmp_path: Path) -> Path:
    """A folder whose weights are large beside the names in their file."""
    target = tmp_path / "roomy"
    lpjax.save_checkpoint(random_net(25), target)
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors", "pytorch_model.bin", "onnx"):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target / path.name)
    return target
