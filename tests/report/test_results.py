"""Files of experiments: what a page shows of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lpjax._files.json import RecordError
from lpjax.report import read_results, write_report
from tests.helpers.pages import Page, check_self_contained

DEMO = Path(__file__).parents[2] / "experiments" / "results" / "demo.json"

CELLS = [
    {"net": "a", "task": "sst2", "layers": "none", "compression": 0, "method": "dense", "p": 2.0,
     "metrics": {"accuracy": 0.9}},
    {"net": "a", "task": "sst2", "layers": "encoder", "compression": 28, "method": "svd", "p": 2.0,
     "metrics": {"accuracy": 0.8}, "complete": False, "parameters": 700, "seconds_solving": 1.5,
     "versions": {"jax": "1"}, "machine": {"cores": 2}, "seed": 3},
    {"net": "a", "task": "sst2", "layers": "encoder", "compression": 60, "method": "lewis", "p": 1.5,
     "metrics": {"accuracy": 0.7}, "versions": {"jax": "2"}, "machine": {"cores": 2}, "seed": 3},
    {"net": "b", "task": "sts", "layers": "both", "compression": 0.4, "method": "svd", "p": None, "score": 0.6,
     "dense": 0.65},
]  # fmt: skip


def write_lines(path: Path, cells: list) -> Path:
    path.write_text("\n".join(json.dumps(cell) for cell in cells) + "\n")
    return path


def test_the_demo_is_shown_row_by_row(tmp_path):
    write_report(tmp_path / "page.html", [DEMO])
    page = Page(tmp_path / "page.html")
    check_self_contained(page)
    demo = json.loads(DEMO.read_text())
    for number, layers in enumerate(("embeddings", "encoder")):
        cells = [row for row in demo["rows"] if row["layers"] == layers]
        dense, *rows = page.table("cells", number)
        assert dense[3][1] == [demo["dense"]]
        assert len(rows) == len(cells)
        for row, cell in zip(rows, cells, strict=True):
            assert row[0][0].startswith(cell["method"])
            assert [number for _, numbers in row for number in numbers] == pytest.approx(
                [cell["compression"], cell["parameters"], cell["score"], demo["dense"] - cell["score"], cell["seconds"]]
            )
    assert page.source.count('aria-label="score against compression"') == 2
    assert f"numpy{demo['versions']['numpy']}" in page.text.replace("\n", "")
    assert "nothing was measured for this page" in page.text


def test_lines_are_read_with_scores_of_any_kind(tmp_path):
    results = read_results(write_lines(tmp_path / "cells.jsonl", CELLS))
    assert [cell.label for cell in results.cells] == ["svd", "lewis, p = 1.5", "svd"]
    assert [cell.compression for cell in results.cells] == [0.28, 0.6, 0.4]
    assert results.cells[0].seconds == 1.5
    panels = results.panels
    assert [(panel.net, panel.layers, panel.score, panel.dense) for panel in panels] == [
        ("a", "encoder", "accuracy", 0.9),
        ("b", "both", "score", 0.65),
    ]
    assert results.seeds == (3,)
    assert [versions for versions, _ in results.provenance] == [{"jax": "1"}, {"jax": "2"}]
    assert results.notes == ("1 of 4 were scored on a subset of the split: these are not GLUE scores.",)
    write_report(tmp_path / "page.html", [tmp_path / "cells.jsonl", DEMO])
    page = Page(tmp_path / "page.html")
    check_self_contained(page)
    assert "Seed 3." in page.text
    assert "not GLUE scores" in page.text
    assert [row[3][1] for row in page.table("cells")] == [[0.9], [0.8], [0.7]]


def test_scores_that_are_not_finite_are_told_and_not_drawn(tmp_path):
    cells = [CELLS[3] | {"score": float("nan")}, CELLS[3] | {"score": 0.5, "dense": float("inf")}]
    path = write_lines(tmp_path / "cells.jsonl", cells)
    assert "NaN" in path.read_text()
    write_report(tmp_path / "page.html", [path])
    page = Page(tmp_path / "page.html")
    assert [row[3][0] for row in page.table("cells")] == ["–", "0.5000"]
    assert "1 scores are not finite" in page.text
    write_report(tmp_path / "none.html", [write_lines(path, cells[:1])])
    assert not any(tag == "figure" for tag, _ in Page(tmp_path / "none.html").tags)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": None}, "line 1: method is null; expected a string"),
        ({"compression": None}, "line 1: compression is null; expected a number"),
        ({"compression": float("nan")}, "line 1: compression is null; expected a number"),
        ({"compression": 100}, "line 1: compression is 100; expected a share below 1"),
        ({"compression": "28"}, 'line 1: compression is "28"; expected a number'),
        ({"score": "good"}, 'line 1: score is "good"; expected a number'),
        ({"score": {"a": []}}, "line 1: score[...]: expected a number"),
        ({"scores": {}, "score": None}, None),
        ({"net": 3}, "line 1: net is 3; expected a string"),
        ({"p": [1]}, "line 1: p is a list; expected a number"),
        ({"parameters": -1}, "line 1: parameters is -1; expected a whole number"),
    ],
)
def test_other_cells_are_refused_by_line_and_key(tmp_path, change, words):
    path = write_lines(tmp_path / "cells.jsonl", [CELLS[3] | change])
    if words is None:
        assert read_results(path).cells[0].scores == {"score": None}
        return
    with pytest.raises(RecordError) as caught:
        read_results(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "cells.jsonl"
    bare = {"method": "svd", "compression": 0.5}
    for text, words in (
        ("", "has 0 lines"),
        ("[]", "line 1 is a list"),
        ("{", "line 1 is not JSON"),
        (json.dumps(CELLS[0]), "no cell of a compressed model"),
        (json.dumps(bare), "lacks `score`, `scores` or `metrics`"),
        (json.dumps(bare | {"scores": {}}), "numbers by name"),
    ):
        path.write_text(text)
        with pytest.raises(RecordError, match=words):
            read_results(path)
    with pytest.raises(RecordError, match="lacks `rows` or `score`"):
        read_results(DEMO.with_name("parity.json"))
    (tmp_path / "binary.json").write_bytes(b"\x00\xff")
    with pytest.raises(RecordError, match=r"binary\.json can't be read"):
        read_results(tmp_path / "binary.json")
