"""`lpjax inspect`: what it prints, draws, refuses, and exits with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import lpjax
from lpjax._tree import leaves_with_paths
from lpjax.compression import compress
from lpjax.inspection import inspect_params
from lpjax.report import plot_inspection
from tests.conftest import GOLDENS, Command

pytestmark = pytest.mark.filterwarnings("default")

WORDS = "embeddings/word_embeddings/embedding"


@pytest.fixture
def run(command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `lpjax inspect` on a terminal of `columns` columns: (exit status, stdout, stderr)."""

    def call(*arguments: object, columns: int = 120) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        return command("inspect", *arguments)

    return call


@pytest.fixture
def factored(folder: Path, tmp_path: Path) -> Path:
    """The checkpoint with the kernels of its attention factored, saved."""
    checkpoint = lpjax.load_checkpoint(folder)
    params, _ = compress(checkpoint.params, select="attention", rank=3, solver="svd", p=2.0)
    lpjax.save_checkpoint(lpjax.Checkpoint(params, checkpoint.config), tmp_path / "factored")
    return tmp_path / "factored"


def rows_of(printed: str) -> list[list[str]]:
    """Lines of the tables, cut at two blanks or more."""
    return [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines()]


def test_json_has_every_leaf_and_number(run, folder):
    status, printed, _ = run(folder, "--json", "--keep", "0.5, 1")
    assert status == 0
    document = json.loads(printed)
    params = lpjax.load_checkpoint(folder).params
    report = inspect_params(params, keep=(0.5, 1))
    assert (document["parameters"], document["num_leaves"]) == (report.parameters, report.num_leaves)
    assert [leaf["path"] for leaf in document["leaves"]] == [path for path, _ in leaves_with_paths(params)]
    for leaf, record in zip(document["leaves"], report.leaves, strict=True):
        for name in ("size", "share", "dtype", "stable_rank", "rank_90", "keep_90", "kurtosis", "row_ratio", "row"):
            assert leaf[name] == getattr(record, name)
        assert leaf["shape"] == list(record.shape)
        if record.singular_values is not None:
            assert leaf["singular_values"] == pytest.approx(record.singular_values, rel=1e-6)
            assert leaf["row_norms"] == pytest.approx(record.row_norms, rel=1e-6)
            assert [keep["rank"] for keep in leaf["keeps"]] == [keep.rank for keep in record.keeps]


def test_tables_bring_layers_together(run, folder):
    status, printed, err = run(folder)
    assert status == 0
    params = lpjax.load_checkpoint(folder).params
    records = {record.path: record for record in inspect_params(params).leaves}
    rows = rows_of(printed)
    layers = len(params["encoder"]["layer"])
    assert [f"encoder/layer/0–{layers - 1}"] in rows
    (words, spectrum) = (row for row in rows if row[0] == WORDS)
    record = records[WORDS]
    assert words[1:3] == ["×".join(map(str, record.shape)), f"{100 * record.share:.1f} %"]
    assert words[-2:] == [f"{record.row_ratio:.2f}", str(record.row)]
    assert spectrum[1:4] == [str(record.rank_90), str(min(record.shape)), f"{record.keep_90:.2f}"]
    assert spectrum[4].startswith(f"{record.keeps[0].rank}, ")
    query = next(row for row in rows if row[0] == "attention/self/query/kernel")
    ours = [records[f"encoder/layer/{i}/attention/self/query/kernel"] for i in range(layers)]
    assert query[2] == f"{100 * sum(record.share for record in ours):.1f} %"
    ratios = [record.row_ratio or 0.0 for record in ours]
    worst = int(np.argmax(ratios))
    assert query[-2:] == [f"{min(ratios):.2f}…{max(ratios):.2f}", f"{worst}:{ours[worst].row}"]
    vectors = [record for record in records.values() if len(record.shape) != 2]
    assert f"{len(vectors)} other leaves, not matrices" in printed
    assert "bias" not in printed
    assert f"{len(records)}/{len(records)}" in err
    assert "…" not in "".join(re.sub(r"\d…", "", word) for row in rows for word in row if "lo…hi" not in word)


def test_each_and_all(run, folder):
    printed = run(folder, "--each", columns=160)[1]
    for i in range(2):
        assert f"encoder/layer/{i}/attention/self/query/kernel " in printed
    assert "…" not in printed
    printed = run(folder, "--all", columns=160)[1]
    assert "embeddings/LayerNorm/bias " in printed
    assert "other leaves" not in printed
    printed = run(folder, "--layers", "embeddings,pooler/.*kernel", columns=160)[1]
    assert "pooler/dense/kernel" in printed
    assert "query" not in printed
    assert "2 shown" in printed


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_narrow_terminals_get_more_tables_and_lose_nothing(run, folder, columns):
    wide, narrow = (run(folder, columns=width)[1] for width in (200, columns))
    assert max(map(len, narrow.split(" other leaves")[0].splitlines()[1:-1])) <= columns

    def numbers(printed: str) -> list[str]:
        lines = [line for line in printed.splitlines() if re.search(r"(kernel|embedding) ", line)]
        return sorted(cell for line in lines for cell in re.split(r"\s{2,}", line.strip())[1:])

    assert numbers(narrow) == numbers(wide)
    assert "continued" in narrow
    assert "continued" not in wide


def test_what_is_factored_tied_and_of_which_dtype(run, factored):
    printed = run(factored, columns=160)[1]
    shape = (
        lpjax.load_checkpoint(factored).params["encoder"]["layer"]["0"]["attention"]["self"]["query"]["kernel"].shape
    )
    share = 3 * sum(shape) / (shape[0] * shape[1])
    assert f"factored, rank 3: {100 * share:.1f} % of dense" in printed
    assert "dtype" not in printed
    printed = run(GOLDENS / "bert_pretraining", columns=160)[1]
    assert "tied: cls/predictions/decoder/kernel" in printed
    printed = run(GOLDENS / "bert_bfloat16", columns=160)[1]
    assert re.search(r"dtype|bfloat16", printed)


def test_plot_is_written_and_not_overwritten(run, folder, tmp_path):
    picture = tmp_path / "spectra.png"
    status, printed, _ = run(folder, "--plot", picture)
    assert status == 0
    assert str(picture) in "".join(printed.split("\n"))
    first = picture.read_bytes()
    pixels = matplotlib.image.imread(picture)
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50
    status, printed, err = run(folder, "--plot", picture)
    assert (status, printed) == (2, "")
    assert "exists; choose another name, or pass --force to replace it" in " ".join(err.split())
    picture.write_bytes(first[:100])
    assert run(folder, "--plot", picture, "--force", "--json")[0] == 0
    assert picture.read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "spectra.png"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep", "0"], "--keep is 0.0; expected a share of the dense parameters in (0, 1]"),
        (["--keep", "0.5,1.5"], "--keep is 1.5"),
        (["--keep", "half"], "--keep is 'half'"),
        (["--keep", "0.5,"], "--keep is '0.5,'"),
        (["--layers", "querry"], "matches no leaf; nearest: "),
        (["--layers", "bias"], "not floating matrices"),
        (["--layers", "("], "not a valid regular expression"),
        (["--layers", "encoder", "--all"], "at most one"),
        (["--plot", "spectra.pdf"], "expected a name ending in .png"),
        (["--plot", "nowhere/spectra.png"], "there is no folder nowhere"),
        (["--each", "yes"], "yes"),
        (["--ech"], "--ech"),
    ],
)
def test_misuse_is_exit_2_and_writes_nothing(run, folder, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    status, printed, err = run(folder, *options)
    assert (status, printed) == (2, "")
    assert words in " ".join(err.split())
    assert sorted(tmp_path.iterdir()) == before


def test_places_and_files_that_are_no_good(run, folder, edit_weights, tmp_path):
    assert run(tmp_path / "nowhere")[0] == 2
    edit_weights(lambda tensors: tensors["embeddings.word_embeddings.weight"].__setitem__((3, 1), np.nan))
    status, printed, err = run(folder, "--plot", tmp_path / "spectra.png")
    assert (status, printed) == (1, "")
    assert "embeddings.word_embeddings.weight" in "".join(err.split())
    assert not (tmp_path / "spectra.png").exists()


def test_plots_of_odd_trees(tmp_path):
    """Zero and tiny matrices are left out, rank-deficient ones drawn as far as they go, of many kinds the largest."""
    rng = np.random.default_rng(0)
    params = {
        f"kind_{name}": {"kernel": rng.normal(size=(5 + i, 7)).astype(np.float32)}
        for i, name in enumerate("abcdefghijklmnopqr")
    }
    params |= {"zero": {"kernel": np.zeros((9, 5))}, "tiny": {"kernel": np.ones((3, 2))}, "bias": np.ones(5)}
    params["pair"] = {"kernel": lpjax.LowRank(rng.normal(size=(50, 4)), rng.normal(size=(4, 20)))}
    half = rng.normal(size=(40, 30))
    half[:, 2:] = 0  # most of the rows of the kernel, so that their median is 0
    params["half"] = {"kernel": half}
    half = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 30))
    params["deficient"] = {"0": half, "1": half[:, ::-1].copy()}
    report = inspect_params(params)
    before = np.geterr()
    with np.errstate(all="raise"):
        plot_inspection(tmp_path / "odd.png", report, title="odd")
    assert np.geterr() == before
    assert (tmp_path / "odd.png").read_bytes().startswith(b"\x89PNG")
    for nothing in ({"bias": np.ones(5)}, {"zero": np.zeros((9, 5))}, {"tiny": np.ones((3, 2))}, {}):
        with pytest.raises(ValueError, match="no leaf has a spectrum to draw"):
            plot_inspection(tmp_path / "none.png", inspect_params(nothing))
    assert [path.name for path in tmp_path.iterdir()] == ["odd.png"]
