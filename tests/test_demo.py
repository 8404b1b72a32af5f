"""The demo on a tiny checkpoint: its table, its files, and what it refuses. The real one is `make demo`."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import lpjax
from examples import demo, sizes
from examples.demo import DemoError, run_demo
from lpjax.compression.record import read_record, record_of
from lpjax.evaluation.sentences import stsb
from lpjax.glue import data

pytestmark = pytest.mark.filterwarnings("default")

PAIRS = ["a b\tc d\t1", "e f g\te g\t4.5", "abc\tab c\t3", "h i\tj\t0.5", "g h\tg h i\t5", "b\tf a\t2"]
SENTENCES = ["a b", "c d e", "ab cd", "f", "g h i j", "abc", "j i h"]


@pytest.fixture
def glue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GLUE folder of six pairs in the words of the tiny vocabulary."""
    folder = tmp_path / "glue"
    (folder / "STS-B").mkdir(parents=True)
    lines = ["index\tsentence1\tsentence2\tscore", *(f"{i}\t{pair}" for i, pair in enumerate(PAIRS))]
    (folder / "STS-B" / "validation.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setitem(data.STSB_ROWS, "validation", len(PAIRS))
    return folder


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods and two settings are enough to see the loop work."""
    monkeypatch.setattr(demo, "_METHODS", [("svd, by text", 2.0, {}), ("svd", 2.0, {})])
    monkeypatch.setattr(demo, "load_sentences", lambda: SENTENCES)
    monkeypatch.setattr(demo, "_LAYERS", [("embeddings", 0.5), ("encoder", 0.5)])
    monkeypatch.setattr(sizes, "_ROUNDED", [("4 bits, groups of 4", 4, 4)])
    monkeypatch.setattr(sizes, "_SIZES", (0.6, 0.5))


@pytest.mark.slow
def test_the_table_the_files_and_the_reloaded_score_agree(roomy, glue, tmp_path, short, monkeypatch):
    printed = io.StringIO()
    result = run_demo(tmp_path / "demo", model=roomy, glue=glue, console=Console(file=printed, width=120))
    assert json.loads((tmp_path / "demo" / "results.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "demo" / "results.png").read_bytes().startswith(b"\x89PNG")
    assert [(row["layers"], row["method"]) for row in result["rows"]] == [
        (layers, method) for layers in ("embeddings", "encoder") for method in ("svd, by text", "svd")
    ]
    dense = lpjax.load_checkpoint(roomy)
    pairs = data.load_stsb(glue)
    assert result["dense"] == pytest.approx(stsb(dense, pairs).spearman)
    calibration = lpjax.calibrate(dense, SENTENCES[::2])
    for row in result["rows"]:
        by_text = row["method"] == "svd, by text"
        params = lpjax.compress(
            dense.params,
            select=row["layers"],
            keep=row["keep"],
            solver=None if by_text else row["method"],
            p=row["p"],
            statistics=calibration if by_text else None,
        ).params
        assert row["score"] == pytest.approx(stsb(dataclasses.replace(dense, params=params), pairs).spearman)
        assert 0 < row["compression"] < 1
        assert f"{row['score']:.4f}" in printed.getvalue()
    assert [row["method"] for row in result["sizes"]] == ["rounding", "svd, by text", "lpjax", "lpjax"]
    for row in result["sizes"]:
        assert row["bytes"] < result["dense_bytes"]
        assert f"{row['score']:.4f}" in printed.getvalue()
    assert (tmp_path / "demo" / "sizes.png").read_bytes().startswith(b"\x89PNG")
    reloaded = lpjax.load_checkpoint(tmp_path / "demo" / "model")
    saved = result["saved"]
    assert stsb(reloaded, pairs).spearman == pytest.approx(saved["score_reloaded"])
    assert saved["bytes"] == (tmp_path / "demo" / "model" / "lpjax.safetensors").stat().st_size
    assert saved["bytes"] == result["sizes"][-1]["bytes"] < 0.51 * result["dense_bytes"]
    record = read_record(tmp_path / "demo" / "model" / "lpjax_record.json")
    (step,) = record.steps
    assert (step.method, step.weighting, step.bytes_after) == ("rounding", "gauss_newton", saved["bytes"])
    assert step.calibration["source"] == "Python's documentation"
    assert record.source == str(roomy)
    assert record_of(reloaded) == record
    # A demo may replace a demo, and leaves nothing beside it; a short one shows it.
    monkeypatch.setattr(demo, "_LAYERS", [("embeddings", 0.5)])
    run_demo(tmp_path / "demo", model=roomy, glue=glue, console=Console(file=io.StringIO()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "dense", "glue", "roomy"]


def test_without_glue_it_scores_by_fidelity_and_says_so(roomy, tmp_path, short, monkeypatch):
    monkeypatch.delenv("LPJAX_GLUE_DIR", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    printed = io.StringIO()
    result = run_demo(tmp_path / "demo", model=roomy, console=Console(file=printed, width=120))
    assert result["score"] == "Spearman with the dense model's similarities"
    assert "GLUE was not found" in printed.getvalue()
    assert result["dense"] == pytest.approx(1)


def test_a_folder_of_somebody_else_is_refused_and_kept(roomy, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.json").write_text('{"made_by": "me"}')
    with pytest.raises(DemoError, match="was not made by the demo"):
        run_demo(tmp_path / "mine", model=roomy)
    assert (tmp_path / "mine" / "results.json").read_text() == '{"made_by": "me"}'


@pytest.mark.slow
def test_a_failure_leaves_the_old_demo(roomy, glue, tmp_path, short, monkeypatch):
    out = tmp_path / "demo"
    run_demo(out, model=roomy, glue=glue, console=Console(file=io.StringIO()))
    before = (out / "results.json").read_bytes()
    monkeypatch.setattr(demo, "plot_results", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_demo(out, model=roomy, glue=glue, console=Console(file=io.StringIO()))
    assert (out / "results.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "dense", "glue", "roomy"]


def test_a_saved_checkpoint_that_scores_otherwise_is_an_error(roomy, glue, tmp_path, short, monkeypatch):
    real, draw = demo.load_checkpoint, np.random.default_rng(0)

    def other(path):
        checkpoint = real(path)
        params = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), checkpoint.params)
        return dataclasses.replace(checkpoint, params=params)

    calls = iter([real, other])
    monkeypatch.setattr(demo, "load_checkpoint", lambda *arguments: next(calls)(*arguments))
    with pytest.raises(DemoError, match="the table says"):
        run_demo(tmp_path / "demo", model=roomy, glue=glue, console=Console(file=io.StringIO()))
    assert not (tmp_path / "demo").exists()
