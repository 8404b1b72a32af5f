"""The experiment on a tiny model: cells are computed once, survive a kill, and come out the same again."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import experiments.glue_table as glue_table
import lpjax
from experiments.config import read_config, read_grid
from lpjax.glue import find_task, label_config
from lpjax.glue.data import load_examples
from lpjax.models.heads import with_head

GRID = """
[grid]
layers = ["embeddings", "encoder", "both"]
compressions = [40]

[grid.methods]
svd = [2]
lewis = [1, 1.5]

[grid.options]
lewis = { num_iters = 3 }

[nets.tiny.tasks.sst2]
checkpoint = "%s"
train_split = "train_subset"
eval_split = "heldout_subset"
hold_out = 6
"""


@pytest.fixture
def config(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A config of one fine-tuned model on a GLUE folder of a few rows; its records go to tmp_path."""
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    base = lpjax.load_checkpoint(folder)
    params, _ = with_head(base.params, base.config, 2, seed=3)
    labels = {"architectures": ["BertForSequenceClassification"], **label_config(find_task("sst2"))}
    tuned = dataclasses.replace(base, params=params, config_json={**(base.config_json or {}), **labels})
    lpjax.save_checkpoint(tuned, tmp_path / "tuned")
    rng = np.random.default_rng(0)
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    for split, rows in (("train_subset", 30), ("heldout_subset", 25)):
        lines = [f"{' '.join(rng.choice(list('abcdefghij'), 1 + i % 9))}\t{i % 2}" for i in range(rows)]
        (tmp_path / "glue" / "SST-2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    monkeypatch.setenv("LPJAX_GLUE_DIR", str(tmp_path / "glue"))
    monkeypatch.setattr(glue_table, "RESULTS", tmp_path / "results")
    path = tmp_path / "tiny.toml"
    path.write_text(GRID % (tmp_path / "tuned"))
    yield path
    jax.config.update("jax_compilation_cache_dir", cache)  # which the command sets, for this process


def run(config: Path, *options: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["glue_table", str(config), "--runs", str(config.parent), *options])
    return glue_table.main()


def scores(path: Path) -> list[tuple]:
    """What must come out the same again: all but times."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [tuple((k, json.dumps(v)) for k, v in record.items() if not k.startswith("seconds")) for record in records]


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_killed_run_loses_one_cell_and_ends_the_same(config, tmp_path, monkeypatch, capsys):
    path = tmp_path / "results" / "tiny-sst2.jsonl"
    assert run(config, monkeypatch=monkeypatch) == 0
    whole = scores(path)
    assert len(whole) == 1 + 3 * 3
    path.unlink()

    computed = []
    original = glue_table.Bench.compute

    def compute(bench, key):
        computed.append(key)
        if len(computed) == 5:
            raise Killed
        return original(bench, key)

    monkeypatch.setattr(glue_table.Bench, "compute", compute)
    with pytest.raises(Killed):
        run(config, monkeypatch=monkeypatch)
    assert scores(path) == whole[:4]
    with path.open("a") as file:
        file.write('{"model": "tiny", "ta')  # the kill came while a line was written
    assert run(config, monkeypatch=monkeypatch) == 0
    assert scores(path) == whole
    assert len(computed) == 10 + 1  # the cell that was lost, twice
    assert run(config, monkeypatch=monkeypatch) == 0
    assert len(computed) == 11


@pytest.mark.slow
def test_one_cell_is_made_again_and_compared(config, tmp_path, monkeypatch, capsys):
    cell = "tiny-sst2/encoder/40/lewis/1.5"
    assert run(config, "--cell", cell, monkeypatch=monkeypatch) == 0
    assert "not on record yet" in capsys.readouterr().out
    assert run(config, "--method", "lewis", "--layers", "encoder", monkeypatch=monkeypatch) == 0
    path = tmp_path / "results" / "tiny-sst2.jsonl"
    assert len(scores(path)) == 3
    assert run(config, "--cell", cell, monkeypatch=monkeypatch) == 0
    assert "the same" in capsys.readouterr().out
    other = path.read_text().replace('"accuracy": 0', '"accuracy": 7').replace('"cores": ', '"cores": 100')
    path.write_text(other)
    assert run(config, "--cell", cell, monkeypatch=monkeypatch) == 1
    output = capsys.readouterr().out
    assert "NOT the same" in output
    assert "cores: 100" in output  # what may be the reason
    assert run(config, "--cell", "tiny-sst2/encoder/41/lewis/1", monkeypatch=monkeypatch) == 2


@pytest.mark.slow
def test_a_cell_is_what_compress_and_evaluate_give(config, tmp_path, monkeypatch):
    """Also the one of both, which is put together from the factors of the two others."""
    cell, grid = read_config(config)[0], read_grid(config)
    bench = glue_table.Bench(cell, grid, cell.checkpoint or "")
    dense = bench.compute(glue_table.DENSE)
    keys = [glue_table.Key(layers, 40, "lewis", 1.5) for layers in ("embeddings", "encoder", "both")]
    results = [bench.compute(key) for key in keys]
    checkpoint = lpjax.load_checkpoint(tmp_path / "tuned")
    for key, record in zip(keys, results, strict=True):
        select = ["embeddings", "encoder"] if key.layers == "both" else key.layers
        params, records = lpjax.compress(checkpoint.params, select=select, keep=0.6, solver="lewis", p=1.5, num_iters=3)
        small = dataclasses.replace(checkpoint, params=params)
        expected = lpjax.glue.evaluate_task(small, load_examples("sst2", "heldout_subset"))
        assert record["metrics"] == expected.metrics
        assert record["factored"] == sum(layer.rank is not None for layer in records)
        assert record["parameters"] < dense["parameters"] == record["parameters_dense"]
    assert results[0]["held_out_rows"] == 6
    assert not results[0]["complete"]


@pytest.mark.parametrize("name", ["minilm", "small", "full_size"])
def test_configs_are_read(name):
    path = Path(glue_table.__file__).parent / "configs" / f"{name}.toml"
    cells, grid = read_config(path), read_grid(path)
    assert len({cell.name for cell in cells}) == len(cells) == {"minilm": 9, "small": 3, "full_size": 36}[name]
    assert len(list(glue_table.keys(grid))) == 1 + 3 * 6 * 13
    assert all(cell.model or cell.checkpoint for cell in cells)


def test_the_config_of_the_outlier_study_is_read():
    (cell,) = read_config(Path(glue_table.__file__).parent / "configs" / "high_lr.toml")
    assert cell.name == "minilm-high-lr-stsb"
