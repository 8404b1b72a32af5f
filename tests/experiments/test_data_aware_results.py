"""Tables of what text is worth, against what is counted by hand."""

from __future__ import annotations

import json

import experiments.data_aware_results as results


def write(folder, task, cells, complete=True):
    """Records of (keep, way, then, score held out, score on dev)."""
    names = ("keep", "way", "then")
    lines = [
        dict(zip(names, cell[:3], strict=True))
        | {"complete": complete, "held_out": {"accuracy": cell[3]}, "metrics": {"accuracy": cell[4]}}
        for cell in cells
    ]
    (folder / f"minilm-{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_ways_stand_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    dense = (1.0, "dense", "", 0.9, 0.9)
    ways = ("FWSVD", "ASVD", "DRONE", "ours", "ours, ranks by error", "ours, ranks by error, single entries")
    others = [(0.75, way, "", 0.5, 0.5 + i / 100) for i, way in enumerate(ways)]
    lewis = [(0.75, "lewis, p = 1", "", 0.6, 0.55), (0.75, "lewis, p = 1.5", "", 0.7, 0.65)]
    write(tmp_path, "cola", [dense, (0.75, "SVD", "", 0.65, 0.8), *lewis, *others])
    # Here p = 2, the SVD, is what held-out train chooses.
    write(tmp_path, "qqp", [dense, (0.75, "SVD", "", 0.8, 0.7), *lewis, *others], complete=False)
    lines = results.compressed_table().splitlines()
    assert lines[2].startswith(
        "| 0.75 | CoLA | 90.00 | 80.00 | 65.00 | 50.00 | 51.00 | 52.00 | 53.00 | 54.00 | 55.00 |"
    )
    assert lines[3].startswith("| 0.75 | QQP (subset) | 90.00 | 70.00 | 70.00 | 50.00 |")
    assert lines[4].startswith("| 0.75 | **mean of 2** | 90.00 | 75.00 | 67.50 | 50.00 |")
    assert lines[5] == "| 0.5 | CoLA | 90.00 | – | – | – | – | – | – | – | – |"


def test_recovery_is_beside_what_it_started_from(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    cells = [(1.0, "dense", "", 0.9, 0.9), (0.5, "SVD", "", 0.1, 0.2), (0.5, "SVD", "recover", 0.1, 0.4)]
    write(tmp_path, "rte", cells)
    assert results.recovery_table().splitlines()[2:] == ["| 0.5 | RTE | 90.00 | 20.00 | – | 40.00 | – | – | – |"]
