"""`lpjax compress --budget`: from text to a plan and back, and ways to get it wrong."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest

import lpjax
from lpjax._tree import is_table
from lpjax.allocation import Request
from lpjax.compression import load_plan
from lpjax.compression.record import read_record


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("a b c\nd e f g\n\nh i j a\nb\nc d\ne f\nj i h\n")
    return path


def same_weights(first, other) -> bool:
    a, b = (jax.tree.leaves(lpjax.load_checkpoint(folder).params) for folder in (first, other))
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def ranks_of(plan):
    """The ranks of its pairs, without single entries."""
    return {
        path: None if choice.rank is None else choice.rank - int(choice.sparse_share * choice.rank)
        for path, choice in plan.layers.items()
    }


@pytest.mark.covering(0)
@pytest.mark.parametrize("allocation", [None, "measured", "minimax"])
def test_a_budget_by_text_its_plan_and_the_same_again(command, folder, text, tmp_path, allocation):
    options = [] if allocation is None else ["--allocation", allocation]
    plan = tmp_path / "plan.json"
    status, output, errors = command(
        "compress",
        folder,
        tmp_path / "out",
        "--calibrate",
        text,
        "--budget",
        0.7,
        "--plan-out",
        plan,
        *options,
        "--json",
    )
    assert status == 0, errors
    result = json.loads(output)
    assert result["plan"] == str(plan)
    assert 0.6 < result["parameters_after"] / result["parameters_before"] <= 0.7
    assert f"calibrating on {text}" in errors.replace("\n/", " /").replace("  ", " ")
    saved = load_plan(plan)
    assert (saved.budget, saved.allocation, saved.weighting) == (0.7, allocation or "error", "gauss_newton")
    step = read_record(tmp_path / "out" / "lpjax_record.json").steps[-1]
    assert (step.budget, step.budget_of, step.allocation) == (0.7, "parameters", allocation or "error")
    assert {layer.path: layer.rank for layer in step.layers} == ranks_of(saved)
    assert all(is_table(layer.path) for layer in step.layers if layer.nnz)

    assert command("compress", folder, tmp_path / "again", "--plan", plan, "--calibrate", text)[0] == 0
    assert same_weights(tmp_path / "out", tmp_path / "again")
    assert command("report", tmp_path / "out", "--out", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "allocated by <code>" + (allocation or "error") in page
    assert f"from {6 if allocation == 'measured' else 7} texts of {text}" in page
    assert "<code>gauss_newton</code>" in page
    edited = plan.read_text().replace('"weighting": "gauss_newton"', '"weighting": null')
    plan.write_text(edited)
    assert command("compress", folder, tmp_path / "plain", "--plan", plan, "--plan-out", tmp_path / "next.json")[0] == 0
    assert load_plan(tmp_path / "next.json").layers == saved.layers
    ranks = {path: leaf.rank for path, leaf in _pairs(tmp_path / "plain")}
    assert ranks == {path: rank for path, rank in ranks_of(saved).items() if rank is not None}


@pytest.mark.parametrize(("weighting", "allocation"), [("gauss_newton", "error"), ("drone", "uniform")])
def test_a_budget_by_statistics(command, folder, text, tmp_path, weighting, allocation):
    statistics, plan = tmp_path / "statistics.safetensors", tmp_path / "plan.json"
    assert command("calibrate", folder, statistics, "--text", text)[0] == 0
    options = ["--calibrate", statistics, "--weighting", weighting, "--budget", 0.7, "--plan-out", plan]
    status, _, errors = command("compress", folder, tmp_path / "out", *options)
    assert status == 0, errors
    assert (load_plan(plan).allocation, load_plan(plan).weighting) == (allocation, weighting)


def _pairs(folder):
    leaves = lpjax.select.leaves_with_paths(lpjax.load_checkpoint(folder).params)
    return [(path, leaf) for path, leaf in leaves if isinstance(leaf, lpjax.LowRank)]


def test_a_plan_of_several_methods(command, folder, tmp_path):
    plan = tmp_path / "plan.json"
    assert (
        command("compress", folder, tmp_path / "out", "--rank", 2, "--layers", "attention", "--plan-out", plan)[0] == 0
    )
    document = json.loads(plan.read_text())
    assert {layer["method"] for layer in document["layers"]} == {"lewis"}
    document["layers"][0] |= {"method": "irls_rows", "rank": 3}
    document["layers"][1] |= {"rank": None}
    plan.write_text(json.dumps(document))
    status, output, errors = command("compress", folder, tmp_path / "mixed", "--plan", plan)
    assert status == 0, errors
    assert "irls_rows, p = 1 and lewis, p = 1" in output or "lewis, p = 1 and irls_rows, p = 1" in output
    config = json.loads((tmp_path / "mixed" / "config.json").read_text())["lpjax"]
    assert config["method"] == "several"
    assert {step["method"] for step in config["steps"]} == {"lewis", "irls_rows"}
    assert len(_pairs(tmp_path / "mixed")) == len(document["layers"]) - 1
    document["layers"][0] |= {"p": 0.5}
    (tmp_path / "steep.json").write_text(json.dumps(document))
    status, _, errors = command("compress", folder, tmp_path / "steep", "--plan", tmp_path / "steep.json")
    assert status == 2
    assert f"layer {document['layers'][0]['path']}: p is 0.5; expected a number in [1, inf]" in " ".join(errors.split())
    assert command("report", tmp_path / "mixed", "--out", tmp_path / "page.html")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "1.5"], "--budget is 1.5"),
        (["--budget", "0.5", "--keep", "0.5"], "exactly one of --size, --keep, --rank, --budget, --time and --plan"),
        (
            ["--budget", "0.5", "--budget-of", "bytes"],
            "'--budget-of': --budget-of is 'bytes'; expected one of parameters, multiply_adds, time",
        ),
        (["--budget", "0.5", "--allocation", "unifrom"], "did you mean uniform?"),
        (["--budget", "0.5", "--allocation", "measured"], "needs text to measure on"),
        (
            ["--budget", "0.5", "--allocation", "error", "--calibrate", "TEXT", "--weighting", "drone"],
            "--weighting is 'drone'; --allocation error needs gauss_newton, under which errors of layers are",
        ),
        (["--keep", "0.5", "--allocation", "uniform"], "--allocation needs a --budget"),
        (["--time", "1.5"], "--time is 1.5; expected a share of the dense matrices' time"),
        (["--time", "0.5", "--budget", "0.5"], "pass either --time or --budget and --budget-of, not both"),
        (["--time", "0.5", "--keep", "0.5"], "exactly one of --size, --keep, --rank, --budget, --time and --plan"),
        (["--time", "0.5", "--sparse", "0.1"], "--sparse saves parameters, not time"),
        (["--plan", "PLAN", "--method", "svd"], "--plan and --method both choose"),
        (["--plan", "PLAN"], "--weighting is 'drone', which needs --calibrate"),
        (["--plan", "TEXT"], "is not JSON"),
        (["--plan", "OTHER"], "which the model does not have"),
        (["--keep", "0.5", "--plan-out", "TEXT"], "or pass --force to replace it"),
        (["--keep", "0.5", "--plan-out", "nowhere/plan.json"], "there is no folder nowhere"),
    ],
)
def test_misuse_writes_nothing(command, folder, text, tmp_path, arguments, message):
    lpjax.save_plan(lpjax.Plan({"a": lpjax.Choice(1)}, "drone"), tmp_path / "plan.json")
    lpjax.save_plan(lpjax.Plan({"a": lpjax.Choice(1)}), tmp_path / "other.json")
    names = {"TEXT": text, "PLAN": tmp_path / "plan.json", "OTHER": tmp_path / "other.json"}
    before = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.iterdir()}
    status, out, errors = command(
        "compress", folder, tmp_path / "out", *(names.get(argument, argument) for argument in arguments)
    )
    assert status == 2
    assert message in " ".join(errors.replace("│", " ").split())
    assert not out
    assert {path: path.read_bytes() if path.is_file() else None for path in tmp_path.iterdir()} == before


def test_a_plan_tells_what_it_was_replayed_under(command, folder, text, tmp_path):
    plan, other = tmp_path / "plan.json", tmp_path / "other.json"
    arguments = ["compress", folder]
    options = ["--calibrate", text, "--weighting", "drone", "--layers", "attention"]
    assert command(*arguments, tmp_path / "a", "--budget", 0.9, *options, "--plan-out", plan)[0] == 0
    assert load_plan(plan).weighting == "drone"
    options = ["--calibrate", text, "--weighting", "asvd", "--plan-out", other]
    assert command(*arguments, tmp_path / "b", "--plan", plan, *options)[0] == 0
    saved = load_plan(other)
    assert (saved.weighting, saved.budget, saved.layers) == ("asvd", 0.9, load_plan(plan).layers)
    assert command(*arguments, tmp_path / "c", "--plan", other, "--calibrate", text)[0] == 0
    assert same_weights(tmp_path / "b", tmp_path / "c")
    assert not same_weights(tmp_path / "a", tmp_path / "c")
    # Ranks that were raised keep no budget.
    document = json.loads(plan.read_text())
    for layer in document["layers"]:
        layer["rank"] = 5
    document["budget"] = 0.2
    plan.write_text(json.dumps(document))
    options = ["--calibrate", text, "--force", "--plan-out", other]
    assert command(*arguments, tmp_path / "d", "--plan", plan, *options)[0] == 0
    assert load_plan(other).budget is None


def test_a_net_with_pairs_gets_smaller_within_a_budget(command, folder, text, tmp_path):
    assert command("compress", folder, tmp_path / "one", "--keep", 0.6, "--layers", "attention")[0] == 0
    options = ["--budget", 0.7, "--calibrate", text, "--json"]
    status, output, errors = command("compress", tmp_path / "one", tmp_path / "two", *options)
    assert status == 0, errors
    # The budget is a share of the dense model, of which the model with pairs is a smaller one.
    dense = sum(leaf.size for leaf in jax.tree.leaves(lpjax.load_checkpoint(folder).params))
    assert json.loads(output)["parameters_after"] <= 0.7 * dense
    assert len(_pairs(tmp_path / "two")) > len(_pairs(tmp_path / "one"))


def test_a_budget_that_nothing_can_keep(command, folder, tmp_path):
    text = tmp_path / "some.txt"
    text.write_text("a b\nc d\n")
    status, _, errors = command("compress", folder, tmp_path / "out", "--budget", "0.01", "--calibrate", text)
    assert status == 2
    assert "calibrating" not in errors  # before any work
    assert "even with the smallest pairs of the selected layers" in errors.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("goal", [["--keep", "0.9"], ["--rank", "7"], ["--budget", "0.8"]])
def test_tables_have_single_entries_where_there_is_text(command, folder, text, tmp_path, goal):
    plan = tmp_path / "plan.json"
    asked = ["--layers", "word_embeddings,attention", "--calibrate", text]
    status, output, errors = command("compress", folder, tmp_path / "out", *asked, *goal, "--plan-out", plan, "--json")
    assert status == 0, errors
    layers = json.loads(output)["layers"]
    tables = [layer for layer in layers if layer["entries"]]
    assert [layer["path"].split("/")[-2:] for layer in tables] == [["word_embeddings", "embedding"]]
    (step,) = read_record(tmp_path / "out" / "lpjax_record.json").steps
    assert step.sparse == 0.2
    shares = {path: choice.sparse_share for path, choice in load_plan(plan).layers.items()}
    assert {path for path, share in shares.items() if share} == {layer["path"] for layer in tables}
    assert command("compress", folder, tmp_path / "again", "--plan", plan, "--calibrate", text)[0] == 0
    assert same_weights(tmp_path / "out", tmp_path / "again")
    assert command("report", tmp_path / "out", "--out", tmp_path / "page.html")[0] == 0
    assert f"in 1 of {len(layers)} layers" in re.sub(r"<[^>]*>", "", (tmp_path / "page.html").read_text())

    # With --break-even, even for other layers, there are pairs alone; but a plan keeps its entries.
    timings = tmp_path / "break_even.json"
    assert command("bench", folder, "--out", timings, "--layers", "feed_forward")[0] == 0
    status, output, errors = command(
        "compress", folder, tmp_path / "timed", *asked, *goal, "--break-even", timings, "--json"
    )
    assert status == 0, errors
    assert not any(layer["entries"] for layer in json.loads(output)["layers"])
    replayed = ["--plan", plan, "--calibrate", text, "--break-even", timings]
    assert command("compress", folder, tmp_path / "replayed", *replayed)[0] == 0
    assert same_weights(tmp_path / "out", tmp_path / "replayed")


def test_a_text_is_enough(command, roomy, text, tmp_path, monkeypatch):
    """A tenth of the bytes, by one step under the default weighting; so small a model only gets a quarter."""
    assert Request(calibrated=True).size == 0.1
    monkeypatch.setattr("lpjax.allocation.request.SIZE", 0.25)
    plan = tmp_path / "plan.json"
    status, output, errors = command(
        "compress", roomy, tmp_path / "out", "--calibrate", text, "--plan-out", plan, "--json"
    )
    assert status == 0, errors
    saved, result = load_plan(plan), json.loads(output)
    assert (saved.budget, saved.weighting, result["method"]) == (None, "gauss_newton", "rounding")
    assert result["bytes_after"] == pytest.approx(0.25 * result["bytes_before"], rel=0.04)


@pytest.mark.parametrize("option", [["--method", "svd"], ["--allocation", "error"], ["--sparse", 0.1]])
@pytest.mark.covering(1)
def test_an_option_of_factors_makes_factors(command, folder, text, tmp_path, option):
    """Half of the model, shared out by error under the default weighting."""
    plan = tmp_path / "plan.json"
    status, output, errors = command(
        "compress", folder, tmp_path / "out", "--calibrate", text, *option, "--plan-out", plan, "--json"
    )
    assert status == 0, errors
    saved, result = load_plan(plan), json.loads(output)
    assert (saved.budget, saved.allocation, saved.weighting) == (0.5, "error", "gauss_newton")
    assert result["parameters_after"] <= 0.5 * result["parameters_before"]
