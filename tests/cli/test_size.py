"""`lpjax compress --size`."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import lpjax
from lpjax.compression import break_even_document, record_of

TEXT = "\n".join(f"{a} {b} {c}" for a in "abcdefg" for b in "abcd" for c in "hij")


def test_a_size_its_plan_and_its_page(command, roomy, tmp_path):
    text, plan = tmp_path / "text.txt", tmp_path / "plan.json"
    text.write_text(TEXT)
    options = ["--calibrate", text]
    status, output, errors = command(
        "compress", roomy, tmp_path / "out", "--size", "25%", *options,
        "--plan-out", plan, "--report", "--json",
    )  # fmt: skip
    assert status == 0, errors
    result = json.loads(output)
    assert result["method"] == "rounding"
    assert result["bytes_after"] == pytest.approx(0.25 * result["bytes_before"], rel=0.04)
    checkpoint = lpjax.load_checkpoint(tmp_path / "out")
    step = record_of(checkpoint).steps[-1]
    stored = lpjax.load_plan(plan).layers
    assert {layer.path: (layer.step, layer.bits) for layer in step.layers} == {
        path: (choice.step, choice.bits) for path, choice in stored.items()
    }
    again = [*options, "--plan", plan]
    status, _, errors = command("compress", roomy, tmp_path / "again", *again)
    assert status == 0, errors
    first, other = (jax.tree.leaves(lpjax.load_checkpoint(tmp_path / name).params) for name in ("out", "again"))
    assert all(map(np.array_equal, first, other))
    status, output, errors = command("compress", roomy, tmp_path / "table", "--plan", plan, *options)
    assert status == 0, errors
    assert "bits" in output


def test_it_says_what_text_would_bring(command, roomy, tmp_path):
    status, output, errors = command("compress", roomy, tmp_path / "out", "--size", "30%")
    assert status == 0, errors
    assert "with --calibrate TEXT a file of this size scores better" in " ".join(output.split())


def test_it_says_why_a_file_is_much_smaller(command, roomy, tmp_path):
    status, output, errors = command("compress", roomy, tmp_path / "out", "--size", "95%")
    assert status == 0, errors
    assert "rounding has reached its finest step" in " ".join(output.split())
    status, output, errors = command("compress", roomy, tmp_path / "small", "--size", "20%")
    assert status == 0, errors
    assert "finest step" not in output


def test_fast_and_small(command, roomy, tmp_path):
    options = ["--size", "25%", "--budget", 0.6, "--budget-of", "multiply_adds", "--layers", "encoder"]
    status, output, errors = command("compress", roomy, tmp_path / "out", *options, "--json")
    assert status == 0, errors
    layers = json.loads(output)["layers"]
    assert any(layer["rank"] for layer in layers)
    assert all(layer["step"] for layer in layers)


@pytest.fixture
def timings(roomy) -> lpjax.BreakEven:
    """Every shape of the encoder, its pairs at a time in proportion to their ranks."""
    shapes = lpjax.measure_break_even(lpjax.load_checkpoint(roomy).params, select="encoder", tokens=2)
    return dataclasses.replace(
        shapes,
        timings=tuple(
            dataclasses.replace(
                timing, dense_seconds=1e-3, ratios=tuple(0.9 * k / timing.ranks[-1] for k in timing.ranks)
            )
            for timing in shapes.timings
        ),
    )


def test_time_and_size(command, roomy, tmp_path, timings, monkeypatch):
    """Timings are made on the spot if there is no file of them."""
    calls = []
    monkeypatch.setattr(
        "lpjax.allocation.request.measure_break_even", lambda *args, **options: calls.append(options) or timings
    )
    options = ["--size", "25%", "--time", 0.6, "--layers", "encoder"]
    status, output, errors = command("compress", roomy, tmp_path / "out", *options, "--json")
    assert status == 0, errors
    result = json.loads(output)
    assert [call["select"] for call in calls] == [["encoder"]]
    assert 0.5 < result["time_share"] <= 0.6
    assert all(layer["step"] for layer in result["layers"])


def test_time_by_a_file(command, roomy, tmp_path, timings):
    """The plan names the budget."""
    (tmp_path / "times.json").write_text(json.dumps(break_even_document("net", timings, 0)))
    options = ["--time", 0.6, "--layers", "encoder", "--break-even", tmp_path / "times.json"]
    options += ["--plan-out", tmp_path / "plan.json"]
    status, output, errors = command("compress", roomy, tmp_path / "fast", *options)
    assert status == 0, errors
    assert "these layers take 0." in " ".join(output.split())
    plan = lpjax.load_plan(tmp_path / "plan.json")
    assert (plan.budget, plan.budget_of) == (0.6, "time")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "nine"], "--size is 'nine'; expected bytes or a share"),
        (["--size", "200%"], "expected less than 100%"),
        (["--size", "5GB"], "but the model has"),
        (["--size", "50%", "--keep", 0.5], "expected exactly one of"),
        (["--size", "50%", "--budget", 0.5, "--keep", 0.5], "expected exactly one of"),
        (["--size", "50%", "--method", "svd"], "--method has no effect; omit --method"),
        (["--size", "50%", "--sparse", 0.1], "--sparse has no effect; omit --sparse"),
        (["--size", "50%", "--allocation", "error"], "--allocation needs a --budget"),
    ],
)
def test_misuse_is_exit_2_and_writes_nothing(command, folder, tmp_path, options, message):
    status, _, errors = command("compress", folder, tmp_path / "out", *options)
    assert status == 2
    assert message in " ".join(errors.split())
    assert not (tmp_path / "out").exists()


def test_inspect_predicts_sizes(command, roomy, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    status, output, errors = command("inspect", roomy, "--sizes", "40%, 25%", "--calibrate", text, "--json")
    assert status == 0, errors
    result = json.loads(output)
    assert result["error"] == "divergence of embeddings"
    large, small = result["sizes"]
    assert small["bytes"] == pytest.approx(0.625 * large["bytes"])
    assert 0 < large["error"] < small["error"]
    assert command("compress", roomy, tmp_path / "out", "--size", "25%", "--calibrate", text)[0] == 0
    step = record_of(lpjax.load_checkpoint(tmp_path / "out")).steps[-1]
    assert small["step"] == pytest.approx(max(layer.step or 0 for layer in step.layers), rel=0.3)
    status, output, errors = command("inspect", roomy, "--sizes", "25%")
    assert status == 0, errors
    assert "relative squared error" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calibrate", "text.txt"], "--calibrate is for --sizes"),
        (["--sizes", "25%", "--each"], "omit --plot, --all and --each"),
        (["--sizes", "3 apples"], "--sizes is '3 apples'; expected bytes or a share"),
        (["--sizes", "40%, 3 apples"], "--sizes is '3 apples'; expected bytes or a share"),
    ],
)
def test_inspect_refuses_before_any_work(command, roomy, options, message):
    status, output, errors = command("inspect", roomy, *options)
    assert (status, output) == (2, "")
    assert message in " ".join(errors.split())
