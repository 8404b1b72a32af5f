"""A few mutated files of every kind, always the same: loaded, or refused in a sentence."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import experiments.fuzz as fuzz

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_small_batch_has_no_fault(tmp_path, monkeypatch):
    monkeypatch.delenv("LPJAX_GLUE_DIR", raising=False)
    counts = fuzz.fuzz(tmp_path / "made", seed=3, count=46, failures=tmp_path / "failures")
    assert not (tmp_path / "failures").exists(), sorted((tmp_path / "failures").iterdir())
    total = {name: sum(outcomes.get(name, 0) for outcomes in counts.values()) for name in ("loaded", "refused")}
    assert sum(total.values()) == 46
    assert min(total.values()) > 8  # else the mutations are too weak, or the good files are not good
    assert len(counts) > 15


def test_good_files_are_loaded(tmp_path):
    for case in fuzz.make_cases(tmp_path / "made"):
        assert fuzz.run(case.read, case.folder) == ("loaded", ""), case.kind


def test_what_is_no_refusal_is_told_apart():
    def fault(_: Path) -> None:
        raise KeyError("a")

    def refuse(_: Path) -> None:
        raise ValueError("no")

    assert fuzz.run(fault, Path()) == ("fault", "KeyError: 'a'")
    assert fuzz.run(refuse, Path()) == ("refused", "no")


def test_mutations_repeat(tmp_path):
    content = b'{"a": [1, 2.5, "x"], "b": null}'
    once, twice = ([fuzz.mutated(content, random.Random(i), [b"other"]) for i in range(50)] for _ in range(2))
    assert once == twice
    assert len(set(once)) > 40
