"""Whatever writes a checkpoint writes how it was made, and pages need nothing that may be missing."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import lpjax
from lpjax.compression.record import read_record, record_files
from lpjax.weighting import save_calibration
from lpjax.weighting.statistics import Calibration, Statistics
from tests.helpers.pages import Page

pytestmark = pytest.mark.filterwarnings("default")

TABLE = "embeddings/word_embeddings/embedding"


def test_a_net_compressed_in_python_has_its_record(run, folder, tmp_path):
    dense = lpjax.load_checkpoint(folder)
    params, records = lpjax.compress(dense.params, select="embeddings", keep=0.6, solver="svd")
    smaller = dataclasses.replace(dense, params=params, compression={"method": "svd", "p": 2.0})
    files = record_files(dense, params, records, model="a model", method="svd", keep=0.6, patterns=("embeddings",))
    size = lpjax.save_checkpoint(smaller, tmp_path / "out", extra_files=files)
    assert run("compress", folder, tmp_path / "same", "--keep", 0.6, "--method", "svd")[0] == 0
    (ours,), (theirs,) = (read_record(tmp_path / name / "lpjax_record.json").steps for name in ("out", "same"))
    assert (ours.model, ours.bytes_after) == ("a model", size)
    for name in ("method", "keep", "parameters_before", "parameters_after", "bytes_before", "versions", "machine"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert [record.rank for record in ours.layers] == [record.rank for record in theirs.layers]
    # A second step comes after the first.
    again = lpjax.load_checkpoint(tmp_path / "out")
    params, records = lpjax.compress(again.params, select="query/kernel$", rank=2)
    files = record_files(again, params, records)
    lpjax.save_checkpoint(
        dataclasses.replace(again, params=params, compression=None), tmp_path / "two", extra_files=files
    )
    steps = read_record(tmp_path / "two" / "lpjax_record.json").steps
    assert [step.method for step in steps] == ["svd", "unknown"]
    status, _, err = run("report", tmp_path / "two")
    assert status == 0, err
    assert "is not known" not in Page(tmp_path / "two" / "report.html").text
    with pytest.raises(TypeError):
        record_files(again, params, records, no_such_setting=1)


def test_the_page_of_a_calibration_made_in_python(run, folder, tmp_path):
    dense, out = lpjax.load_checkpoint(folder), tmp_path / "out"
    rows, columns = dense.params["embeddings"]["word_embeddings"]["embedding"].shape
    known = Statistics(9, outputs=np.eye(columns), counts=np.ones(rows), gradients=np.ones(rows))
    save_calibration(Calibration({TABLE: known}, "embedding", 3, 9, 0), tmp_path / "c.safetensors")
    assert run("compress", folder, out, "--rank", 4, "--calibrate", tmp_path / "c.safetensors")[0] == 0
    record = json.loads((out / "lpjax_record.json").read_text())
    for provenance in ({}, {"source": "some.txt"}, {"model": "x"}):
        record["steps"][0]["calibration"] |= provenance
        (out / "lpjax_record.json").write_text(json.dumps(record))
        status, _, err = run("report", out, "--force")
        assert status == 0, err
        text = Page(out / "report.html").text
        assert "from 3 texts" in text
        assert ("of some.txt" in text) == ("source" in record["steps"][0]["calibration"])


def test_a_record_with_nothing_but_what_it_must_have_makes_a_page(run, small):
    path = small / "lpjax_record.json"
    (step,) = json.loads(path.read_text())["steps"]
    needed = ("path", "shape", "rank", "dense_size", "stored_size")
    layers = [{key: layer[key] for key in needed} for layer in step["layers"]]
    for extra in ({}, {"weighting": "drone"}, {"budget": 0.5}, {"options": {"items": 1, "keys": 2}, "sparse": 0.1}):
        steps = [{"method": "svd", "layers": layers, **extra}]
        path.write_text(json.dumps({"schema": "lpjax-record/1", "steps": steps}))
        status, _, err = run("report", small, "--force")
        assert status == 0, err


def test_an_export_tells_what_it_was_made_of(run, small, tmp_path):
    out = tmp_path / "dense_again"
    assert run("export", small, out)[0] == 0
    export = json.loads((out / "lpjax_export.json").read_text())
    record = read_record(small / "lpjax_record.json")
    assert (export["schema"], export["model"], export["ranks"]) == ("lpjax-export/1", str(small), record.ranks)
    assert [step["method"] for step in export["steps"]] == ["svd"]
    assert export["versions"]["lpjax"] == lpjax.__version__
    status, _, err = run("report", out)
    assert status == 1
    assert f"it is the dense export of {small}" in " ".join(err.split())
    (out / "lpjax_export.json").write_text("[" * 1000)
    assert run("report", out)[0] == 1
