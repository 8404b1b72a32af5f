"""Tables of the GLUE experiment, against what is counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import experiments.glue_results as glue_results


def test_p_is_chosen_without_a_look_at_dev():
    def cell(p: float, held: float, dev: float) -> dict:
        return {"p": p, "held_out": {"accuracy": held}, "metrics": {"accuracy": dev}}

    chosen = glue_results.choose_p([cell(1, 0.7, 0.9), cell(1.5, 0.8, 0.1), cell(2, 0.8, 0.95)])
    assert chosen is not None
    assert chosen["p"] == 1.5
    assert glue_results.choose_p([{"p": 1.0, "held_out": None, "metrics": {"accuracy": 1.0}}]) is None


def test_a_mean_is_over_all_tasks_or_there_is_none():
    def record(method: str, p: float, value: float) -> dict:
        place = {"layers": "encoder", "compression": 40, "method": method, "p": p}
        return place | {"metrics": {"accuracy": value}, "held_out": {"accuracy": value}}

    records_by_task = {
        "sst2": [record("dense", 2, 0.9), record("svd", 2, 0.8), record("lewis", 1, 0.85)],
        "rte": [record("dense", 2, 0.6), record("svd", 2, 0.59)],
    }
    assert glue_results.mean_change(records_by_task, "encoder", 40, "svd", 2.0) == pytest.approx(-5.5)
    assert glue_results.mean_change(records_by_task, "encoder", 40, "lewis", 1.0) is None
    assert glue_results.mean_change(records_by_task, "encoder", 40, "lewis", None) is None
    records_by_task["rte"].append(record("lewis", 1, 0.58))
    # At p = 2 the method is the SVD, which is the better choice for rte.
    assert glue_results.mean_change(records_by_task, "encoder", 40, "lewis", None) == pytest.approx((-5 - 1) / 2)


Cell = tuple[str, int, str, float, float, float]


def write_records(folder: Path, net: str, tasks: dict[str, list[Cell]], subsets: tuple[str, ...] = ()) -> None:
    """Records of (layers, compression, method, p, score held out, score on dev)."""
    (folder / "glue").mkdir(exist_ok=True)
    for task, cells in tasks.items():
        lines = [
            {
                **dict(zip(("layers", "compression", "method", "p"), cell[:4], strict=True)),
                "complete": task not in subsets,
                "held_out": {"accuracy": cell[4]},
                "metrics": {"accuracy": cell[5]},
            }
            for cell in cells
        ]
        (folder / "glue" / f"{net}-{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_tables_compare_each_method_with_the_svd(tmp_path, monkeypatch):
    """Counted and averaged by hand."""
    monkeypatch.setattr(glue_results, "RESULTS", tmp_path)
    dense, svd = ("none", 0, "dense", 2.0, 0.9, 0.9), ("encoder", 28, "svd", 2.0, 0.8, 0.8)
    tasks = {
        "sst2": [dense, svd, ("encoder", 28, "lewis", 1.0, 0.85, 0.84)],  # p = 1 is chosen: 4 points better
        "rte": [dense, svd, ("encoder", 28, "lewis", 1.0, 0.81, 0.79)],  # and here, 1 point worse
        "cola": [dense, svd, ("encoder", 28, "lewis", 1.0, 0.7, 0.9)],  # p = 2 is, though dev would have it otherwise
    }
    write_records(tmp_path, "small-net", tasks)
    lines = glue_results.against_svd_table("small-net").splitlines()
    # (4, −1, 0): σ = √7, over √3; (4, −1): σ = 5/√2, over √2.
    assert lines[2:] == ["| encoder | lewis | 3 | 1 | 1 | 1 | +1.00 ± 1.53 | +1.50 ± 2.50 |"]
    assert glue_results.small_table().splitlines()[2:] == ["| small-net | encoder | −28 | -10.00 | -9.00 | – | – |"]
    headline = glue_results.headline_table("small-net", "encoder").splitlines()
    assert headline[3] == "| SST-2 | 90.00 | 80.00 | 84.00 (p = 1) | – | – |"
    assert headline[-1] == "| mean change, whole tasks | | -10.00 | -9.00 | – | – |"
    changes = glue_results.change_table("small-net", "encoder").splitlines()
    assert changes[2:] == ["| svd | -10.00 |", "| lewis, p = 1 | -5.67 |"]


def test_a_subset_is_named_and_has_no_share_in_means(tmp_path, monkeypatch):
    monkeypatch.setattr(glue_results, "RESULTS", tmp_path)
    dense = ("none", 0, "dense", 2.0, 0.9, 0.9)
    tasks = {
        "sst2": [dense, ("embeddings", 28, "svd", 2.0, 0.8, 0.88)],
        "mnli": [dense, ("embeddings", 28, "svd", 2.0, 0.8, 0.3)],
    }
    write_records(tmp_path, "net", tasks, subsets=("mnli",))
    headline = glue_results.headline_table("net").splitlines()
    assert headline[2:] == [
        "| SST-2 | 90.00 | 88.00 | – | – | – |",
        "| MNLI (subset) | 90.00 | 30.00 | – | – | – |",
        "| mean change, whole tasks | | -2.00 | – | – | – |",
    ]
    assert glue_results.change_table("net", "embeddings").splitlines()[2] == "| svd | -2.00 |"


def test_the_best_of_an_outlier_study_is_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(glue_results, "RESULTS", tmp_path)
    rows = [
        {"keep": 0.4, "method": method, "p": p, "metrics": {"accuracy": value}}
        for method, p, value in (("svd", 2.0, 0.5), ("lewis", 1.0, 0.75))
    ]
    record = {"net": "net", "task": "rte", "layers": "embeddings", "variant": "int8", "rows": rows}
    record |= {"outliers": {"row_max": 3.14159, "kurtosis": 2.5}, "dense": {"accuracy": 0.875}}
    (tmp_path / "outliers.jsonl").write_text(json.dumps(record) + "\n")
    lines = glue_results.outliers_table().splitlines()
    assert lines[0].endswith("| largest row | kurtosis | dense | keep | svd | lewis, p = 1 |")
    assert lines[2:] == ["| net, RTE | embeddings | int8 | 3.1 | 2.5 | 87.50 | 0.4 | 50.00 | **75.00** |"]


def test_speeds_are_told_with_their_ratio(tmp_path, monkeypatch):
    monkeypatch.setattr(glue_results, "RESULTS", tmp_path)
    row = {"task": "mrpc", "rows": 408, "tokens": 21723, "ratio": 1.25, "logits_apart": 7e-8}
    row |= {"tokens_per_second": {"lpjax": 8000.4, "torch": 6400.2}}
    (tmp_path / "throughput.json").write_text(json.dumps({"rows": [row]}))
    assert glue_results.throughput_table().splitlines()[2] == "| MRPC | 408 | 21723 | 8000 | 6400 | 1.25 | 7e-08 |"
