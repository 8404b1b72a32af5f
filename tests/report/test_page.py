"""The page: its numbers against the files and NumPy, that it is self-contained, and what it says of what is missing."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import lpjax
from lpjax._tree import leaves_with_paths
from lpjax.compression import record_of
from lpjax.data.tokenizer import load_tokenizer
from lpjax.evaluation.sentences import fidelity
from lpjax.glue import Examples, find_task, label_config
from lpjax.glue.data import load_sentences
from lpjax.models.heads import with_head
from lpjax.report import PAGE, Baseline, write_report
from tests.helpers.pages import Page, check_self_contained
from tests.helpers.rounding import random_net

pytestmark = pytest.mark.filterwarnings("default")

HOSTILE = "<img src=x onerror=alert(1)>"


def baseline(folder: Path) -> Baseline:
    return Baseline(lpjax.load_checkpoint(folder), "dense")


def test_every_number_is_that_of_the_files_and_of_numpy(small, folder, tmp_path):
    write_report(tmp_path / "page.html", [small], baseline=baseline(folder), latency=False)
    page = Page(tmp_path / "page.html")
    check_self_contained(page)
    dense, factored = (lpjax.load_checkpoint(place) for place in (folder, small))
    leaves, whole = dict(leaves_with_paths(factored.params)), dict(leaves_with_paths(dense.params))
    pairs = {path: leaf for path, leaf in leaves.items() if hasattr(leaf, "rank")}
    rows = page.table("layers")
    assert sorted(row[0][0].strip() for row in rows) == sorted(pairs)
    for row in rows:
        path = row[0][0].strip()
        matrix, pair = np.asarray(whole[path], np.float64), pairs[path]
        residual = matrix - np.asarray(pair.left, np.float64) @ np.asarray(pair.right, np.float64)
        if not path.endswith("embedding"):
            matrix, residual = matrix.T, residual.T
        values = np.linalg.svd(matrix, compute_uv=False)
        expected = [
            pair.size / matrix.size,
            np.linalg.norm(residual) / np.linalg.norm(matrix),
            np.sqrt(np.sum(values[pair.rank :] ** 2) / np.sum(values**2)),
            np.abs(residual).sum() / np.abs(matrix).sum(),
            np.linalg.norm(residual, axis=1).sum() / np.linalg.norm(matrix, axis=1).sum(),
        ]
        shown = [number for _, numbers in row for number in numbers]
        np.testing.assert_allclose(shown[:5], expected, rtol=1e-6)
        assert row[1][0] == " × ".join(map(str, whole[path].shape))
        assert row[2][0] == f"{pair.rank} / {min(matrix.shape)}"
        # At p = 2 the recorded objectives are the Frobenius error.
        np.testing.assert_allclose(shown[5:7], [expected[1]] * 2, rtol=1e-4)

    stored, total = (sum(leaf.size for leaf in tree.values()) for tree in (leaves, whole))
    sizes = [[number for _, numbers in row for number in numbers] for row in page.table("bytes")]
    weights = [path.stat().st_size for path in (folder / "model.safetensors", small / "lpjax.safetensors")]
    everything = sum(path.stat().st_size for path in small.rglob("*") if path.is_file())
    assert sizes[0] == [total, 1, weights[0], 1]
    assert sizes[1] == pytest.approx([stored, stored / total, weights[1], weights[1] / weights[0], everything])

    sentences = load_sentences()
    sentences = sentences[:: len(sentences) // 320][:320]
    measured = fidelity(factored, dense, sentences)
    scores = [[number for _, numbers in row for number in numbers] for row in page.table("scores")]
    assert scores[0][-2:] == [1, 1]
    assert scores[1] == pytest.approx(
        [
            sum(leaf.size for leaf in pairs.values()) / sum(whole[path].size for path in pairs),
            stored,
            stored / total,
            measured.spearman,
            measured.mean_cosine,
        ],
        rel=1e-5,
    )
    assert "LPJAX_GLUE_DIR" in page.text  # how to get STS-B
    assert "leave out --no-latency" in page.text


def test_without_the_dense_net_it_says_what_is_missing(small, tmp_path):
    missing = write_report(tmp_path / "page.html", [small])
    page = Page(tmp_path / "page.html")
    check_self_contained(page)
    assert [entry.what for entry in missing] == ["Accuracy, errors in three norms, spectra and latency"]
    assert f"lpjax report {small} --baseline " in page.text
    assert page.text.count("Not measured") == 1
    assert not any(tag == "figure" for tag, _ in page.tags)
    record = json.loads((small / "lpjax_record.json").read_text())["steps"][0]
    layers = {layer["path"]: layer for layer in record["layers"]}
    for row in page.table("layers"):
        layer = layers.pop(row[0][0].strip())
        numbers = [number for _, values in row for number in values]
        kept = layer["stored_size"] / layer["dense_size"]
        assert numbers == [kept, layer["objective_entries"], layer["objective_rows"], layer["seconds"]]
    assert not layers
    for name, version in record["versions"].items():
        assert f"{name}{version}" in page.text.replace("\n", "")


def test_names_are_text_and_nothing_else(edit_record, tmp_path):
    script = "<script>alert(1)</script>$x^$"

    def poison(record):
        step = record["steps"][0]
        step["model"], step["patterns"] = script, [script]
        step["versions"] = {script: script}
        step["machine"]["device"] = "</dd></dl><style>*{display:none}</style>"
        step["layers"][0]["note"] = script

    small = edit_record(poison).rename(tmp_path / HOSTILE)
    write_report(tmp_path / "page.html", [small])
    page = Page(tmp_path / "page.html")
    check_self_contained(page)
    assert page.text.count(script) >= 5
    assert HOSTILE in page.text
    assert [tag for tag, _ in page.tags].count("style") == 1
    cells = tmp_path / "cells.jsonl"
    cell = {"net": HOSTILE, "task": script, "layers": "</svg>", "method": script, "compression": 0.3, "p": 1}
    cells.write_text(json.dumps(cell | {"scores": {HOSTILE: 0.5}, "machine": {"x": HOSTILE}}))
    write_report(tmp_path / "cells.html", [cells])
    page = Page(tmp_path / "cells.html")
    check_self_contained(page)
    assert page.text.count(script) >= 3
    assert page.text.count(HOSTILE) >= 3


def test_odd_letters_and_lone_surrogates_are_written(edit_record, tmp_path):
    small = edit_record(lambda record: record["steps"][0].update(model="\ud800 ☃ ünïcödé \x00\x1b"))
    write_report(tmp_path / "page.html", [small])
    assert "☃ ünïcödé" in Page(tmp_path / "page.html").text


def test_several_runs_are_compared(small, folder, run, tmp_path):
    other = tmp_path / "again" / "small"
    assert run("compress", folder, other, "--rank", 3, "--method", "irls_rows", "--p", 1.5)[0] == 0
    write_report(tmp_path / "page.html", [small, other], baseline=baseline(folder), latency=False)
    page = Page(tmp_path / "page.html")
    check_self_contained(page)
    rows = page.table("scores")
    assert len(rows) == 3
    assert [row[0][0].strip() for row in rows[1:]] == [str(small), str(other)]  # of one name, so in full
    assert [row[1][0] for row in rows] == ["", "svd", "irls_rows, p = 1.5"]
    shares = [row[4][1][0] for row in rows]
    for i, place in enumerate((small, other), start=1):
        sizes = [leaf.size for _, leaf in leaves_with_paths(lpjax.load_checkpoint(place).params)]
        dense = [math.prod(leaf.shape) for _, leaf in leaves_with_paths(lpjax.load_checkpoint(place).params)]
        assert shares[i] == pytest.approx(sum(sizes) / sum(dense))
    assert page.source.count('aria-label="score against compression"') == 2
    # Two kinds have a line each in the charts of errors, a kind of one layer has none.
    assert page.source.count('aria-label="errors by layer"') == 3


def test_scores_of_others_have_a_column_and_a_chart(small, folder, tmp_path):
    dense = baseline(folder)
    write_report(
        tmp_path / "page.html",
        [small],
        baseline=dense,
        latency=False,
        scorers=[lambda net: {"SST-2, accuracy": 0.91 if net is dense.checkpoint else 0.875}],
    )
    page = Page(tmp_path / "page.html")
    assert [row[5][1] for row in page.table("scores")] == [[0.91], [0.875]]
    assert page.source.count('aria-label="score against compression"') == 3


@pytest.mark.slow
def test_a_fine_tuned_net_is_scored_on_its_own_task(folder, tmp_path, monkeypatch):
    """By its head, against the accuracy of `classify` one text at a time."""
    task = find_task("sst2")
    base = lpjax.load_checkpoint(folder)
    params, _ = with_head(base.params, base.config, 2, seed=1)
    config = {"architectures": ["BertForSequenceClassification"], **label_config(task)}
    tuned = dataclasses.replace(base, params=params, config_json={**(base.config_json or {}), **config})
    lpjax.save_checkpoint(tuned, tmp_path / "tuned")
    texts, labels = ["a b c", "d", "e f", "g h i j", "a a a"], np.array([1, 0, 1, 1, 0])
    examples = Examples(task, "validation", texts, None, labels, "here", False)
    monkeypatch.setattr("lpjax.evaluation.scores.load_examples", lambda *_: examples)

    small = lpjax.compress(params, select="encoder", keep=0.3, solver="svd").params
    lpjax.save_checkpoint(dataclasses.replace(tuned, params=small), tmp_path / "small")
    dense = Baseline(lpjax.load_checkpoint(tmp_path / "tuned"), "dense")
    write_report(tmp_path / "page.html", [tmp_path / "small"], baseline=dense, latency=False)

    tokenizer = load_tokenizer(folder)
    expected = []
    for tree in (params, small):
        batches = [{"input_ids": np.asarray([tokenizer(text)["input_ids"]], np.int32)} for text in texts]
        guesses = [int(np.argmax(lpjax.classify(tree, base.config, batch)[0])) for batch in batches]
        expected.append(round(float(np.mean(guesses == labels)), 4))
    page = Page(tmp_path / "page.html")
    assert "SST-2 dev, accuracy" in page.source
    assert [row[5][1] for row in page.table("scores")] == [[score] for score in expected]


def test_latency_is_told_for_both_nets(small, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("lpjax.evaluation.latency._SECONDS", 0.1)
    write_report(tmp_path / "page.html", [small], baseline=baseline(folder))
    rows = Page(tmp_path / "page.html").table("times")
    assert [row[1][0] for row in rows] == ["32 × 9", "1 × 9"]  # the model has nine positions
    for row in rows:
        (dense, *around), (factored, *_), (ratio,) = (numbers for _, numbers in row[2:5])
        assert around[0] <= dense <= around[1]
        assert ratio == pytest.approx(factored / dense)
        assert int(row[5][0]) >= 5


def test_the_same_again_is_the_same_page_whatever_matplotlib_is_set_to(small, folder, tmp_path):
    first, second = tmp_path / "1.html", tmp_path / "2.html"
    write_report(first, [small], baseline=baseline(folder), latency=False)
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "text.usetex": True}):
        before = dict(mpl.rcParams)
        write_report(second, [small], baseline=baseline(folder), latency=False)
        assert dict(mpl.rcParams) == before
    assert first.read_bytes() == second.read_bytes()


def test_a_folder_without_a_record_is_shown_as_far_as_its_files_tell(small, folder, tmp_path):
    (small / "lpjax_record.json").unlink()
    write_report(tmp_path / "page.html", [small], baseline=baseline(folder), latency=False)
    page = Page(tmp_path / "page.html")
    assert "holds no lpjax_record.json" in page.text
    rows = page.table("layers")
    assert len(rows) == 13
    assert all(len(row) == 8 for row in rows)  # up to the errors; nothing of how they were solved


def test_a_rounded_folder_without_a_record_lists_its_layers(tmp_path):
    net = random_net(1500)
    plan = lpjax.plan_for_size(net.params, "75%", select="encoder")
    lpjax.save_checkpoint(dataclasses.replace(net, params=lpjax.compress(net.params, plan).params), tmp_path / "net")
    layers = record_of(lpjax.load_checkpoint(tmp_path / "net")).layers
    assert layers.keys() == plan.layers.keys()
    assert all(layer.rounded and layer.rank is None and layer.stored_bytes for _, layer in layers.values())
    write_report(tmp_path / "page.html", [tmp_path / "net"])
    assert str(len(layers)) in (tmp_path / "page.html").read_text()


def test_a_net_that_was_trained_further_is_told(small, folder, edit_weights, tmp_path):
    edit_weights(lambda tensors: tensors["encoder.layer.0.attention.self.query.bias"].__setitem__(0, 3.0))
    write_report(tmp_path / "page.html", [small], baseline=baseline(folder), latency=False)
    assert (
        "1 weights that are not factored differ from those of dense, such as encoder/layer/0/attention/self/query"
        in Page(tmp_path / "page.html").text
    )


def test_another_baseline_is_refused(small, folder, run, tmp_path):
    out = tmp_path / "page.html"
    with pytest.raises(ValueError, match="small is itself factored, at embeddings"):
        write_report(out, [small], baseline=Baseline(lpjax.load_checkpoint(small), "small"))
    other = baseline(folder)
    other.checkpoint.params["embeddings"]["LayerNorm"]["bias"] = np.zeros(5, np.float32)
    with pytest.raises(ValueError, match=r"dense is not the source .*bias of shape \[12\]: it has \[5\] there"):
        write_report(out, [small], baseline=other)
    with pytest.raises(ValueError, match="is a dense checkpoint; expected one that"):
        write_report(out, [folder])
    with pytest.raises(ValueError, match="`runs` is empty"):
        write_report(out, [])
    with pytest.raises(FileNotFoundError, match="there is no"):
        write_report(out, [tmp_path / "nowhere"])
    assert not out.exists()


@pytest.mark.parametrize("target", ["lpjax.report.page._Page.render", "lpjax._files.replacing.Path.replace"])
def test_an_interrupted_page_leaves_nothing_or_the_old_one(small, tmp_path, monkeypatch, target):
    place = tmp_path / "pages"
    place.mkdir()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for old in ("", "<title>old, lpjax report</title>"):
        if old:
            (place / "page.html").write_text(old)
        with monkeypatch.context() as patch:
            patch.setattr(target, interrupt)
            with pytest.raises(KeyboardInterrupt):
                write_report(place / "page.html", [small], overwrite=True)
        assert [(path.name, path.read_text()) for path in place.iterdir()] == ([("page.html", old)] if old else [])


def test_a_page_is_replaced_only_where_that_is_wished(small, tmp_path):
    out = tmp_path / "page.html"
    out.write_text("mine")
    for wished, words in ((False, "overwrite=True"), (True, "is not a page of lpjax report")):
        with pytest.raises(FileExistsError, match=words):
            write_report(out, [small], overwrite=wished)
    assert out.read_text() == "mine"
    out.write_text("<title>mine, lpjax report</title>")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_report(out, [small])
    assert "mine" in out.read_text()
    write_report(out, [small], overwrite=True)
    assert "mine" not in out.read_text()
    assert "lpjax report" in out.read_text()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_report(tmp_path / "nowhere" / "page.html", [small])
    with pytest.raises(FileExistsError):
        write_report(tmp_path, [small], overwrite=True)


@pytest.mark.parametrize("count", [1, 3])
def test_progress_counts_up_to_its_total(small, folder, tmp_path, count):
    seen = []
    write_report(
        tmp_path / "page.html",
        [small, *(shutil.copytree(small, tmp_path / str(i)) for i in range(count - 1))],
        baseline=baseline(folder),
        latency=False,
        progress=lambda *step: seen.append(step),
    )
    assert [done for done, *_ in seen] == list(range(len(seen)))
    assert {total for _, total, _ in seen} == {len(seen)}
    assert PAGE == "report.html"
