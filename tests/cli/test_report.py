"""`lpjax report` and `lpjax compress --report`: what they write, refuse, and exit with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lpjax.compression.record import read_record
from tests.conftest import Command
from tests.helpers.pages import Page, check_self_contained

pytestmark = pytest.mark.filterwarnings("default")

DEMO = Path(__file__).parents[2] / "experiments" / "results" / "demo.json"
QUICK = ["--keep", 0.6, "--method", "svd"]


@pytest.fixture
def run(command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command without any GLUE folder: (exit status, stdout, stderr)."""
    monkeypatch.delenv("LPJAX_GLUE_DIR", raising=False)
    monkeypatch.setattr("lpjax.evaluation.latency._SECONDS", 0.05)
    return command


def test_compress_writes_its_page_in_the_same_go(run, folder, tmp_path):
    out = tmp_path / "out"
    status, printed, err = run("compress", folder, out, *QUICK, "--report", "--json")
    assert status == 0
    assert json.loads(printed)["report"] == str(out / "report.html")
    assert "not measured: STS-B" in err
    page = Page(out / "report.html")
    check_self_contained(page)
    (row,) = page.table("layers")
    (step,) = read_record(out / "lpjax_record.json").steps
    kept, frobenius, least, *_ = [number for _, numbers in row for number in numbers]
    assert kept == step.layers[0].stored_size / step.layers[0].dense_size
    assert frobenius == pytest.approx(step.layers[0].error_entries, rel=1e-4)
    assert least == pytest.approx(frobenius, rel=1e-4)
    assert len(page.table("times")) == 2
    # With --force the folder is swapped, page and all.
    status, printed, _ = run("compress", folder, out, *QUICK, "--report", "--force")
    assert (status, "report: " in printed) == (0, True)
    # A factored model has no dense one beside it.
    status, _, err = run("compress", out, tmp_path / "more", *QUICK, "--layers", "attention", "--report")
    assert status == 0
    assert f"--baseline {folder}" in err
    page = Page(tmp_path / "more" / "report.html")
    assert "Step 2" in page.text
    assert sorted(row[-1][0] for row in page.table("layers")) == ["1"] + ["2"] * 8
    assert run("compress", folder, tmp_path / "without", *QUICK)[0] == 0
    assert not (tmp_path / "without" / "report.html").exists()


def test_a_page_that_fails_leaves_the_checkpoint(run, folder, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("lpjax.report.page.write_text", fail)
    status, printed, err = run("compress", folder, tmp_path / "out", *QUICK, "--report")
    assert (status, printed) == (1, "")
    assert "is saved in" in err
    assert "no space left" in err
    assert read_record(tmp_path / "out" / "lpjax_record.json")
    assert not (tmp_path / "out" / "report.html").exists()


def test_report_writes_where_it_is_told(run, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert run("compress", folder, out, *QUICK)[0] == 0
    before = sorted(path.name for path in out.iterdir())
    status, printed, err = run("report", out)
    assert status == 0
    assert printed == f"written: {out / 'report.html'}\n"
    assert f"lpjax report {out} --baseline {folder}" in " ".join(err.split())
    assert sorted(path.name for path in out.iterdir()) == sorted([*before, "report.html"])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("report", out, DEMO)[0] == 0
    assert run("report", DEMO, "--out", "demo.html")[0] == 0
    assert sorted(path.name for path in Path().iterdir()) == ["demo.html", "report.html"]
    check_self_contained(Page(Path("report.html")))
    # Never again over what is there, but by --force.
    for arguments in ([out], [out, DEMO], [DEMO, "--out", "demo.html"]):
        status, _, err = run("report", *arguments)
        assert (status, "--force" in err) == (2, True)
        assert run("report", *arguments, "--force")[0] == 0


def test_report_measures_against_the_dense_net(run, folder, tmp_path):
    out, page = tmp_path / "out", tmp_path / "page.html"
    assert run("compress", folder, out, *QUICK)[0] == 0
    status, _, err = run("report", out, "--baseline", folder, "--out", page)
    assert status == 0
    assert "not measured: STS-B: " in err
    report = Page(page)
    assert len(report.table("times")) == 2
    assert any(tag == "figure" for tag, _ in report.tags)
    assert run("report", out, "--baseline", folder, "--out", page, "--force", "--no-latency")[0] == 0
    assert not any(name == "times" for name, _ in Page(page).tables)


def test_misuse_is_exit_2_and_broken_files_are_exit_1(run, folder, tmp_path):
    out = tmp_path / "out"
    assert run("compress", folder, out, *QUICK)[0] == 0
    (tmp_path / "demo").mkdir()
    shutil.copyfile(DEMO, tmp_path / "demo" / "results.json")
    empty = tmp_path / "empty"
    empty.mkdir()
    odd = tmp_path / "odd.json"
    odd.write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    for arguments, code, words in (
        ([], 2, "Missing argument"),
        ([tmp_path / "nowhere"], 2, "there is no"),
        ([out, "--out", "page.pdf"], 2, "expected a name ending in .html"),
        ([out, "--out", tmp_path / "no" / "page.html"], 2, "there is no folder"),
        ([out, "--baseline", tmp_path / "nowhere"], 2, "there is no folder"),
        ([DEMO, "--baseline", folder], 2, "is a file, and its models cannot be measured"),
        ([tmp_path / "demo"], 2, "results.json"),
        ([out, "--baseline", out], 1, "is itself factored"),
        ([out, "--baseline", folder, "--glue", empty, "--no-latency"], 1, "STS-B/validation.tsv"),
        ([empty], 1, "no config.json"),
        ([folder], 1, "is a dense checkpoint"),
        ([odd, "--out", tmp_path / "page.html"], 1, "lacks `rows` or `score`"),
    ):
        status, printed, err = run("report", *arguments)
        assert (status, printed) == (code, ""), arguments
        assert words in " ".join(err.split())
        assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupt_leaves_no_page(run, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert run("compress", folder, out, *QUICK)[0] == 0
    before = sorted(tmp_path.rglob("*"))

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lpjax._files.replacing.Path.replace", interrupt)
    status, _, err = run("report", out)
    assert (status, "interrupted" in err) == (130, True)
    assert sorted(tmp_path.rglob("*")) == before
