"""The README says what the records say."""

from __future__ import annotations

from experiments.readme import ROOT, render


def test_tables_are_those_of_the_records():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert render(text) == text
