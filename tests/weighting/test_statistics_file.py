"""A calibration's file: what comes back, what is shared, what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lpjax._files.json import RecordError
from lpjax.checkpoint import CheckpointError
from lpjax.weighting import load_calibration, save_calibration
from lpjax.weighting.statistics import Calibration, Statistics


def some(seed: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    x, g = rng.normal(size=(9, 6)).astype(np.float32), rng.normal(size=(9, 4)).astype(np.float32)
    moment = x.T @ x
    kernel = Statistics(9, moment, x.mean(axis=0), np.abs(x).mean(axis=0), g.T @ g, np.ones(6, np.float32))
    forward = Statistics(9, moment.copy(), x.mean(axis=0), np.abs(x).mean(axis=0))
    table = Statistics(9, outputs=g.T @ g, counts=np.arange(5, dtype=np.float32), gradients=np.ones(5, np.float32))
    statistics = {"a/query/kernel": kernel, "a/key/kernel": forward, "words/embedding": table}
    return Calibration(statistics, "embedding", 3, 9, 7, {"model": "a model", "texts": "some.txt"})


def same(first: Calibration, other: Calibration) -> None:
    for field in dataclasses.fields(first):
        if field.name != "statistics":
            assert getattr(first, field.name) == getattr(other, field.name)
    assert list(first.statistics) == list(other.statistics)
    for path, statistics in first.statistics.items():
        for field in dataclasses.fields(statistics):
            a, b = getattr(statistics, field.name), getattr(other.statistics[path], field.name)
            assert (a is None) == (b is None), (path, field.name)
            assert a is None or np.array_equal(a, b), (path, field.name)


def test_what_is_written_comes_back(tmp_path):
    size = save_calibration(some(), tmp_path / "found.safetensors")
    assert size == (tmp_path / "found.safetensors").stat().st_size
    same(load_calibration(tmp_path / "found.safetensors"), some())
    assert [path.name for path in tmp_path.iterdir()] == ["found.safetensors"]


def test_what_matrices_share_is_written_once(tmp_path):
    save_calibration(some(), tmp_path / "found")
    names = set(load_file(tmp_path / "found"))
    assert "a/query/kernel:inputs" in names
    assert not any(name.startswith("a/key") for name in names)


def test_nothing_is_overwritten_unasked(tmp_path):
    target = tmp_path / "found"
    save_calibration(some(), target)
    with pytest.raises(FileExistsError, match="exists; choose another name"):
        save_calibration(some(1), target)
    same(load_calibration(target), some())
    save_calibration(some(1), target, overwrite=True)
    same(load_calibration(target), some(1))
    with pytest.raises(FileExistsError):
        save_calibration(some(), tmp_path, overwrite=True)


def test_an_interrupted_run_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "found"
    save_calibration(some(), target)

    def interrupt(path, *_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("lpjax.weighting.statistics.write_tensors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_calibration(some(1), target, overwrite=True)
    same(load_calibration(target), some())
    assert len(list(tmp_path.iterdir())) == 1


def edited(tmp_path, change, arrays=None):
    """A file whose document or arrays were changed."""
    target = tmp_path / "found"
    save_calibration(some(), target)
    with safe_open(target, "numpy") as file:
        document = json.loads(file.metadata()["lpjax"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(document)
    for name, make in (arrays or {}).items():
        tensors[name] = make(tensors[name])
    save_file(tensors, target, {"lpjax": json.dumps(document)})
    return target


def nothing(_: object) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema="other/1"), 'schema is "other/1"; expected "lpjax-calibration/1"'),
        (lambda d: d["layers"][0].update(inputs="nowhere"), r"layers\[0\].inputs is \"nowhere\"; expected the name"),
        (lambda d: d["layers"][0].update(inputs=3), r"layers\[0\].inputs is 3; expected a string"),
        (lambda d: d["layers"][0].update(inputs="a/query/kernel:mean"), "a square float32 matrix"),
        (lambda d: d["layers"][1].update(tokens=0), r"layers\[1\].tokens is 0"),
        (lambda d: d["layers"][1].pop("path"), r"layers\[1\].path is missing"),
        (lambda d: d.update(layers=[3]), r"layers\[0\] is 3; expected an object"),
        (lambda d: d.update(texts="many"), "texts is"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_key(tmp_path, change, message):
    with pytest.raises(RecordError, match=message):
        load_calibration(edited(tmp_path, change))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a/query/kernel:inputs", lambda x: x[:-1]),
        ("a/query/kernel:inputs", lambda x: np.full_like(x, np.nan)),
        ("a/query/kernel:outputs", lambda x: -x),
        ("words/embedding:counts", lambda x: x - 10),
        ("words/embedding:counts", lambda x: x.astype(np.float64)),
        ("a/query/kernel:mean", lambda x: np.full_like(x, np.inf)),
    ],
)
def test_arrays_that_mean_nothing_are_refused(tmp_path, name, make):
    with pytest.raises(RecordError, match=name.rpartition(":")[2]):
        load_calibration(edited(tmp_path, nothing, {name: make}))


def test_other_files_are_refused(tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "weights")
    with pytest.raises(RecordError, match="no metadata `lpjax`"):
        load_calibration(tmp_path / "weights")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_calibration(tmp_path / "text")
    with pytest.raises(CheckpointError):
        load_calibration(tmp_path / "missing")
