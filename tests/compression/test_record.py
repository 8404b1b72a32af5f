"""`lpjax_record.json`: what compress writes, what is read back, and what is refused."""

from __future__ import annotations

import json
import math

import pytest

import lpjax
from lpjax._files.json import RecordError
from lpjax._provenance import run_record
from lpjax.checkpoint import save_checkpoint
from lpjax.compression import LayerRecord
from lpjax.compression.record import Record, Step, read_record, record_of, record_text
from tests.conftest import Command

pytestmark = pytest.mark.filterwarnings("default")


def test_what_is_written_is_read_back(tmp_path):
    layers = (
        LayerRecord("a/kernel", (3, 4), 1, 12, 7, 0.25, 0.125, 0.5, 3, False, 0.75, error_weighted=0.1),
        LayerRecord("b/kernel", (2, 2), None, 4, 4, note="stays dense"),
    )
    step = Step("net", "lewis", 1.5, 0.6, None, {"tol": 1e-3}, ("a", "b"), 16, 11, 64, 44, layers, 7)
    origin = {"source": "some.txt", "texts": "5"}
    record = Record((step, Step(method="svd", rank=2, weighting="drone", calibration=origin)))
    path = tmp_path / "record.json"
    path.write_text(record_text(record))
    assert read_record(path) == record
    assert record.source == "net"
    assert record.ranks == {"a/kernel": 1}
    assert {path: number for path, (number, _) in record.layers.items()} == {"a/kernel": 0, "b/kernel": 0}


def test_numbers_that_are_not_finite_become_null_and_unknown(tmp_path):
    layer = LayerRecord("a", (3, 4), 1, 12, 7, math.nan, math.inf, math.inf, seconds=math.nan)
    path = tmp_path / "record.json"
    path.write_text(record_text(Record((Step(method="svd", p=math.nan, layers=(layer,)),))))
    step = read_record(path).steps[0]
    assert (step.p, step.layers[0].bound) == (None, None)
    assert math.isnan(step.layers[0].error_entries)
    json.loads(path.read_text(), parse_constant=pytest.fail)


def test_compress_writes_the_whole_record(run: Command, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--layers", "embeddings,layer/1/.*query/kernel", "--keep", 0.5, "--p", 1.5, "--num-iters", 7, "--json"]
    status, printed, err = run("compress", "dense", "out", *options)
    assert status == 0, err
    result = json.loads(printed)
    text = (tmp_path / "out" / "lpjax_record.json").read_text()
    record = read_record(tmp_path / "out" / "lpjax_record.json")
    (step,) = record.steps
    assert (step.model, step.method, step.p, step.keep, step.rank) == ("dense", "lewis", 1.5, 0.5, None)
    assert step.options == {"num_iters": 7}
    assert step.patterns == ("embeddings", "layer/1/.*query/kernel")
    for key in ("parameters_before", "parameters_after", "bytes_before", "bytes_after"):
        assert getattr(step, key) == result[key]
    assert step.bytes_after == (tmp_path / "out" / "lpjax.safetensors").stat().st_size
    assert json.loads(text)["steps"][0]["layers"] == result["layers"]
    provenance = run_record(None)
    assert (step.versions, step.seed) == (provenance["versions"], None)
    assert step.machine["cores"] == provenance["machine"]["cores"]
    # Nothing of the machine's folders, beyond what was typed.
    assert "/tmp" not in text
    assert str(tmp_path) not in text


def test_a_second_run_keeps_the_steps_of_the_first(run: Command, folder, tmp_path):
    first_out, second_out = tmp_path / "one", tmp_path / "two"
    assert run("compress", folder, first_out, "--keep", 0.6, "--method", "svd")[0] == 0
    # The embedding is a pair of as much already, and stays as it is.
    assert run("compress", first_out, second_out, "--keep", 0.7, "--layers", "attention,embeddings")[0] == 0
    record = read_record(second_out / "lpjax_record.json")
    assert record.steps[0] == read_record(first_out / "lpjax_record.json").steps[0]
    assert [step.method for step in record.steps] == ["svd", "lewis"]
    assert [step.model for step in record.steps] == [str(folder), str(first_out)]
    assert record.source == str(folder)
    steps = {path: step for path, (step, _) in record.layers.items()}
    assert steps["embeddings/word_embeddings/embedding"] == 0
    assert sum(step == 1 for step in steps.values()) == 8


def test_without_a_record_the_steps_are_those_of_config_json(run: Command, folder, tmp_path):
    first_out, second_out = tmp_path / "one", tmp_path / "two"
    assert run("compress", folder, first_out, "--keep", 0.6, "--method", "svd")[0] == 0
    (first_out / "lpjax_record.json").unlink()
    assert run("compress", first_out, second_out, "--keep", 0.5, "--layers", "attention")[0] == 0
    first, second = read_record(second_out / "lpjax_record.json").steps
    assert (first.method, first.p, first.keep, first.versions) == ("svd", 2.0, None, {})
    (layer,) = first.layers
    assert (layer.path, layer.shape) == ("embeddings/word_embeddings/embedding", (29, 12))
    assert math.isnan(layer.error_entries)
    assert second.method == "lewis"
    # Saved by hand: one step, of which nothing else is known.
    checkpoint = lpjax.load_checkpoint(second_out)
    save_checkpoint(lpjax.Checkpoint(checkpoint.params, checkpoint.config), tmp_path / "bare")
    record = record_of(lpjax.load_checkpoint(tmp_path / "bare"))
    assert not record.complete
    assert len(record.steps) == 1
    assert len(record.ranks) == 9
    assert record_of(lpjax.load_checkpoint(folder)).steps == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(schema="lpjax-record/2"), 'schema is "lpjax-record/2"; expected "lpjax-record/1"'),
        (lambda r: r.pop("schema"), "schema is missing; expected"),
        (lambda r: r.update(steps={}), "steps is an object; expected a list"),
        (lambda r: r.update(steps=[]), "steps is a list; expected a list of length >= 1"),
        (lambda r: r.update(steps=[3]), "steps[0] is 3; expected an object"),
        (lambda r: r["steps"][0].update(p="one"), 'steps[0].p is "one"; expected a number'),
        (lambda r: r["steps"][0].update(method=None), "steps[0]: method is missing"),
        (lambda r: r["steps"][0].update(model=["x"]), "steps[0].model is a list; expected a string"),
        (lambda r: r["steps"][0].update(options={"tol": "x"}), "steps[0].options[...]: expected a number"),
        (lambda r: r["steps"][0].update(options=[1]), "steps[0].options is a list; expected an object"),
        (lambda r: r["steps"][0].update(versions={"a": {}}), "steps[0].versions[...]: expected true or false or"),
        (lambda r: r["steps"][0].update(bytes_after=1.5), "steps[0].bytes_after is 1.5; expected a whole number"),
        (lambda r: r["steps"][0].update(keep=True), "steps[0].keep is true; expected a number"),
        (lambda r: r["steps"][0]["layers"][0].update(rank=0), "steps[0].layers[0].rank is 0; expected a whole number"),
        (lambda r: r["steps"][0]["layers"][0].update(shape=[2, "x"]), 'shape[1] is "x"; expected a whole'),
        (lambda r: r["steps"][0]["layers"][0].pop("path"), "steps[0].layers[0].path is missing"),
        (lambda r: r["steps"][0]["layers"][0].update(note=7), "steps[0].layers[0].note is 7; expected a string"),
        (lambda r: r["steps"][0]["layers"][0].update(converged="yes"), 'converged is "yes"; expected true or false'),
        (lambda r: r["steps"][0]["layers"][0].update(dense_size=10**400), "dense_size is 1000"),
        (lambda r: r["steps"][0]["layers"][0].update(rank=1), "is the record of other weights: the ranks differ at"),
        (lambda r: r["steps"][0]["layers"].pop(), "is the record of other weights"),
    ],
)
def test_a_record_of_another_schema_is_refused_by_file_and_key(run: Command, edit_record, change, words):
    small = edit_record(change)
    status, _, err = run("report", small)
    assert status == 1
    assert "lpjax_record.json" in err
    assert words in " ".join(err.split())
    assert not (small / "report.html").exists()


def test_what_is_no_json_is_refused(run: Command, small, tmp_path):
    path = small / "lpjax_record.json"
    cases = [(content, "is not JSON") for content in (b"{", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}")]
    for content, words in (*cases, (b"[]", "is a list; expected an object"), (b"\xff", "utf-8")):
        path.write_bytes(content)
        with pytest.raises(RecordError, match=words):
            read_record(path)
        status, _, err = run("compress", small, tmp_path / "out", "--keep", 0.5)
        assert (status, "lpjax_record.json" in err) == (1, True)
        assert not (tmp_path / "out").exists()
    path.unlink()
    path.mkdir()
    with pytest.raises(RecordError, match="not a regular file"):
        read_record(path)


def test_nan_and_infinity_of_others_are_unknown(run: Command, small):
    path = small / "lpjax_record.json"
    record = json.loads(path.read_text())
    layer = record["steps"][0]["layers"][0]
    layer["objective_entries"], layer["seconds"], record["steps"][0]["p"] = math.nan, math.inf, -math.inf
    path.write_text(json.dumps(record).replace('"keep": 0.6', '"keep": 1e999'))
    assert run("report", small)[0] == 0
    text = (small / "report.html").read_text()
    assert text.count('title="not known"') >= 4
    assert ">nan<" not in text
    assert ">inf<" not in text
