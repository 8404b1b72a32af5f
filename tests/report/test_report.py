"""Records, tables and plots."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.report import plot_results, plot_sizes, results_table

ROWS = [
    {"layers": "embeddings", "method": "svd", "p": 2.0, "compression": 0.28, "parameters": 19_430_000, "score": 0.861,
     "seconds": 0.3},
    {"layers": "embeddings", "method": "lewis", "p": 1.5, "compression": 0.6, "parameters": 15_700_000, "score": 0.84,
     "seconds": 1.2},
    {"layers": "encoder", "method": "lewis", "p": 1.5, "compression": 0.25, "parameters": 20_060_000, "score": 0.85,
     "seconds": 3.0},
]  # fmt: skip


def test_record_says_what_repeating_needs():
    record = run_record(seed=7)
    assert record["seed"] == 7
    assert {"python", "jax", "numpy", "lpjax"} <= record["versions"].keys()
    assert record["machine"]["cores"] >= 1
    json.dumps(record)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_table_and_plot(tmp_path):
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(results_table(ROWS, score="Spearman", dense=0.867))
    text = console.export_text()
    for words in ("lewis", "28 %", "19.43", "0.8610", "+0.0060", "1.2"):
        assert words in text
    assert "…" not in text
    console.file.close()
    path = tmp_path / "plot.png"
    plot_results(path, ROWS, score="Spearman", dense=0.867)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "plot.png"]


def test_sizes_are_drawn(tmp_path):
    rows = [{"method": "rounding", "bytes": 12.8e6, "score": 0.86}, {"method": "lpjax", "bytes": 7e6, "score": 0.85}]
    plot_sizes(tmp_path / "sizes.png", rows, score="Spearman", dense=(90.9e6, 0.867))
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")
