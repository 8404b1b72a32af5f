"""`lpjax finetune` and what `lpjax evaluate` makes of it: what they write, refuse, and survive."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import lpjax
from lpjax._tree import walk
from lpjax.glue.labels import own_task
from tests.conftest import Command
from tests.helpers.nets import base_net

pytestmark = pytest.mark.filterwarnings("default")

SPLITS = ["--train-split", "train_subset", "--eval-split", "heldout_subset"]
FEW = ["--epochs", 4, "--batch-size", 8, "--lr", 0.01, "--eval-every", 5]


@pytest.fixture
def net(folder: Path, tmp_path: Path) -> Path:
    """A BERT of one layer without a head, with a tokenizer whose words are the letters a to j."""
    lpjax.save_checkpoint(dataclasses.replace(base_net("bert_base", dropout=0.1), source=folder), tmp_path / "net")
    return tmp_path / "net"


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """A GLUE folder with SST-2 of texts that one word tells apart, in splits of other names than GLUE's."""
    rng = np.random.default_rng(0)
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    for split, rows in (("train_subset", 20), ("heldout_subset", 12), ("odd [one]", 3)):
        lines = ["sentence\tlabel"]
        for i in range(rows):
            lines.append(f"{'ab'[i % 2]} {'ab'[i % 2]} {' '.join(rng.choice(list('cdefghij'), size=2))}\t{i % 2}")
        (tmp_path / "glue" / "SST-2" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "glue"


@pytest.fixture
def tune(command: Command, glue: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`lpjax finetune MODEL OUT … on the toy`: (exit status, stdout, stderr in one line)."""
    monkeypatch.setenv("LPJAX_GLUE_DIR", str(glue))

    def call(*arguments: object) -> tuple[int, str, str]:
        task = [] if "--task" in arguments else ["--task", "sst2"]
        status, out, err = command("finetune", *arguments[:2], *task, *SPLITS, *FEW, *arguments[2:])
        return status, out, " ".join(err.split())

    return call


@pytest.fixture
def score(command: Command, tune: Command) -> Command:
    """`lpjax evaluate … --json` on the toy: what it prints, read."""

    def call(*arguments: object):
        status, out, err = command("evaluate", *arguments, "--split", "heldout_subset", "--json")
        assert status == 0, err
        return json.loads(out)

    return call


def snapshot_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.finetune.safetensors")


def ranks_of(folder: Path) -> dict[str, int]:
    params = lpjax.load_checkpoint(folder).params
    return {path: leaf.rank for path, leaf in walk(params) if isinstance(leaf, lpjax.LowRank)}


@pytest.mark.slow
def test_tuned_scored_compressed_and_tuned_again(tune, score, command, net, tmp_path):
    tuned, small, again = (tmp_path / name for name in ("tuned", "small", "again"))
    before = sorted(path.name for path in tmp_path.iterdir())
    status, out, err = tune(net, tuned, "--json")
    assert status == 0, err
    record = json.loads(out)
    assert record.pop("out") == str(tuned)
    assert record == json.loads((tuned / "finetune.json").read_text())
    assert record["task"] == "sst2"
    assert record["train"] == {"split": "train_subset", "rows": 20, "complete": False}
    assert record["dev"] == {"split": "heldout_subset", "rows": 12, "complete": False}
    assert record["settings"]["learning_rate"] == 0.01
    assert [entry["step"] for entry in record["curve"]] == [5, 10, 12]
    assert record["best"] in record["curve"]
    assert record["fresh"] == ["classifier/bias", "classifier/kernel"]
    assert record["seed"] == 0
    assert record["versions"]["lpjax"] == lpjax.__version__
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "tuned"])  # and no snapshot
    assert (tuned / "vocab.txt").exists()

    scored = score(tuned)  # its config.json tells the task
    assert scored["result"]["task"] == "sst2"
    assert scored["result"]["metrics"] == {"accuracy": record["best"]["accuracy"]}
    assert (scored["result"]["rows"], scored["result"]["complete"]) == (12, False)
    assert scored["result"]["tokens_per_second"] > 0
    assert "baseline" not in scored

    options = ["--layers", "(query|key|value)/kernel", "--keep", 0.7, "--method", "svd"]
    assert command("compress", tuned, small, *options)[0] == 0
    compared = score(small, "--baseline", tuned, "--task", "SST-2", "--batch-size", 5)
    assert compared["baseline"] == str(tuned)
    assert compared["baseline_result"]["metrics"] == scored["result"]["metrics"]
    assert compared["result"]["rows"] == 12

    status, _, err = tune(small, again)
    assert status == 0, err
    assert ranks_of(again) == ranks_of(small)
    assert len(ranks_of(small)) == 3
    assert json.loads((again / "finetune.json").read_text())["fresh"] == []
    blocks = [json.loads((folder / "config.json").read_text())["lpjax"] for folder in (small, again)]
    assert blocks[0] == blocks[1]
    path = min(ranks_of(small))
    kernels = [dict(walk(lpjax.load_checkpoint(folder).params))[path] for folder in (small, again)]
    for factor in ("left", "right"):
        assert not np.array_equal(getattr(kernels[0], factor), getattr(kernels[1], factor))


def test_what_is_printed(tune, command, net, tmp_path):
    status, out, err = tune(net, tmp_path / "tuned", "--eval-split", "odd [one]", "--hold-out", 4, "--eval-rows", 2)
    assert status == 0, err
    out = " ".join(out.split())
    assert "SST-2, odd [one], first 2, 2 rows" in out
    assert "update epoch training loss accuracy" in out.replace("┃ ", "").replace("│ ", "")
    assert f"saved in {tmp_path / 'tuned'} as of update" in out
    assert "odd [one], first 2 is a subset: no GLUE score" in out
    assert "SST-2, epoch 4" in err
    record = json.loads((tmp_path / "tuned" / "finetune.json").read_text())
    assert record["train"] == {"split": "train_subset, but 4 held out", "rows": 16, "complete": False}
    options = ["--split", "odd [one]", "--baseline", tmp_path / "tuned"]
    status, out, _ = command("evaluate", tmp_path / "tuned", *options)
    assert status == 0
    assert "SST-2, odd [one], 3 rows" in out
    assert "a subset: no GLUE score" in out
    assert [line.split()[1] for line in out.splitlines() if "accuracy" in line] == ["accuracy"]


def test_what_is_left_of_an_interrupted_run(tune, net, tmp_path, monkeypatch):
    """It is neither gone on with nor thrown away unasked."""
    out = tmp_path / "tuned"
    snapshot = snapshot_of(out)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lpjax.checkpoint.save_checkpoint", interrupt)
        status, printed, err = tune(net, out)
    assert (status, printed) == (130, "")
    assert "interrupted" in err
    assert snapshot.exists()
    assert not out.exists()
    kept = snapshot.read_bytes()

    status, _, err = tune(net, out)
    assert status == 2
    assert f"{snapshot} is from an interrupted run; --resume continues it, --force starts over" in err
    status, _, err = tune(net, out, "--resume", "--seed", 1)
    assert status == 1
    assert "another run: seed was 0 and is 1" in err
    assert snapshot.read_bytes() == kept
    snapshot.write_bytes(kept[:1000])
    status, _, err = tune(net, out, "--resume")
    assert status == 1
    assert f"cannot resume from {snapshot}: " in err

    snapshot.write_bytes(kept)
    status, _, err = tune(net, out, "--resume")
    assert status == 0
    assert "12/12" not in err  # all was done but to save it
    assert not snapshot.exists()
    first = json.loads((out / "finetune.json").read_text())
    snapshot.write_bytes(b"of another run")
    status, _, err = tune(net, out, "--force", "--seed", 1)
    assert status == 0
    assert "12/12" in err
    assert not snapshot.exists()
    assert json.loads((out / "finetune.json").read_text())["curve"] != first["curve"]
    status, _, err = tune(net, out)
    assert status == 2
    assert "exists; choose another folder" in err


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(tune, net, tmp_path):
    """SIGKILL in the middle; with --resume it ends as one that was never interrupted."""
    many = ["--epochs", 120, "--eval-every", 90, "--save-every", 0]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = ["finetune", net, killed, "--task", "sst2", *SPLITS, *FEW, *many]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-m", "lpjax", *map(str, command)]
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not snapshot_of(killed).exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    assert not killed.exists()
    with safe_open(snapshot_of(killed), framework="numpy") as file:
        assert 0 < json.loads(file.metadata()["log"])["step"] < 360
    for out in (killed, whole):
        status, _, err = tune(net, out, *many, "--resume")
        assert status == 0, err
    curves = [json.loads((out / "finetune.json").read_text())["curve"] for out in (killed, whole)]
    assert curves[0] == curves[1]
    weights = [(out / "model.safetensors").read_bytes() for out in (killed, whole)]
    assert weights[0] == weights[1]
    assert not [path.name for path in tmp_path.iterdir() if "finetune.safetensors" in path.name]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--task", "sst3"], 2, "did you mean sst2?"),
        (["--epochs", 0], 2, "Invalid value for '--epochs'"),
        (["--accumulate", 3], 2, "multiple of --accumulate, 3"),
        (["--lr", -1], 2, "--lr is -1.0"),
        (["--dtype", "int8"], 2, "Invalid value for '--dtype'"),
        (["--hold-out", 20], 2, "expected 1 to 19"),
        (["--hold-out", -1], 2, "Invalid value for '--hold-out'"),
        (["--eval-rows", 0], 2, "Invalid value for '--eval-rows'"),
        (["--lr", "much"], 2, "--lr"),
        (["--train-split", "train"], 1, "SST-2 has no train split"),
        (["--eval-split", "test"], 1, "no labels to score by"),
        (["--task", "cola"], 1, "CoLA has no train_subset split"),
    ],
)
def test_misuse_is_told_in_a_line(tune, net, tmp_path, options, code, words):
    before = sorted(path.name for path in tmp_path.iterdir())
    status, out, err = tune(net, tmp_path / "tuned", *options)
    assert (status, out) == (code, "")
    assert words in err
    assert err.count("error:") == 1 or "Usage" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_places_that_are_taken(tune, net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = tune(net, Path())
    assert (status, "exists; choose another folder" in err) == (2, True)
    status, _, err = tune(net, net, "--force")
    assert (status, "overlaps" in err) == (2, True)
    status, _, err = tune(tmp_path / "nowhere", tmp_path / "tuned")
    assert (status, "there is no folder" in err) == (2, True)


def test_a_head_is_needed_to_score_a_task(tune, command, net, folder):
    status, out, err = command("evaluate", net, "--task", "sst2", "--split", "heldout_subset")
    assert (status, out) == (1, "")
    assert "no head for classification" in err
    status, _, err = command("evaluate", net, "--task", "sst3")
    assert (status, "did you mean sst2?" in err) == (2, True)
    status, _, err = command("evaluate", net, "--task", "sst2", "--split", "nowhere")
    # The model is checked before any data is looked for.
    assert (status, "no head for classification" in " ".join(err.split())) == (1, True)
    status, _, err = command("evaluate", net, "--task", "sst2", "--text", folder / "vocab.txt")
    assert (status, "--text is for embeddings" in err) == (2, True)


def test_a_tuned_net_can_be_compared_by_embeddings(tune, command, net, tmp_path):
    assert tune(net, tmp_path / "tuned", "--epochs", 1)[0] == 0
    data = json.loads((tmp_path / "tuned" / "config.json").read_text())
    text = tmp_path / "text.txt"
    text.write_text("a b\nc d\ne f\ng h")
    status, out, err = command("evaluate", tmp_path / "tuned", "--baseline", net, "--text", text, "--json")
    assert status == 0, err
    assert 0 < json.loads(out)["fidelity"]["mean_cosine"] <= 1
    data["id2label"] = {"0": "cat", "1": "dog"}
    (tmp_path / "tuned" / "config.json").write_text(json.dumps(data))
    status, out, err = command("evaluate", tmp_path / "tuned", "--split", "heldout_subset")
    assert (status, out) == (1, "")
    assert "expected the labels of SST-2" in " ".join(err.split())


@pytest.mark.parametrize(
    ("classes", "task", "expected"),
    [
        (["BertForSequenceClassification"], "sst2", "sst2"),
        (["BertForSequenceClassification"], "SST-2", "sst2"),
        (["BertForSequenceClassification"], "imdb", None),
        (["BertForSequenceClassification"], None, None),
        (["BertForSequenceClassification"], ["sst2"], None),
        (["BertModel"], "sst2", None),
        (None, "sst2", None),
        ("BertForSequenceClassification", "sst2", None),
    ],
)
def test_whose_task_is_told(classes, task, expected):
    """Only a model with a head has one; a task outside GLUE is not an error."""
    assert getattr(own_task({"architectures": classes, "finetuning_task": task}), "name", None) == expected
