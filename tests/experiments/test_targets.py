"""The record of every net in every runtime, and, if all of these are installed, one net of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from experiments.readme import ROOT
from lpjax.models import ARCHITECTURES

ROWS = json.loads((ROOT / "experiments" / "results" / "targets.json").read_text(encoding="utf-8"))["rows"]
KINDS = ("dense", "factored", "quantized", "bfloat16")


def check(row: dict[str, Any]) -> None:
    for runtime in ("onnx", "torch", "stablehlo", "keras"):
        if runtime not in row:
            assert runtime == "keras"
            continue
        rounded = row["kind"] == "bfloat16" and runtime == "torch"
        assert row[runtime]["error"] <= (0.1 if rounded else 1e-4)
        if row["kind"] != "quantized" and not (row["kind"] == "bfloat16" and runtime == "keras"):
            assert row[runtime]["bytes"] == pytest.approx(row["bytes"], rel=0.02)


def test_the_record_has_every_net_and_kind():
    assert [(row["net"], row["kind"]) for row in ROWS] == [
        (net, kind) for net in dict.fromkeys(row["net"] for row in ROWS) for kind in KINDS
    ]
    assert {row["net"] for row in ROWS} == ARCHITECTURES.keys() - {"xlm-roberta", "camembert"}
    assert {row["net"] for row in ROWS if "keras" in row} == {"bert", "distilbert", "roberta"}


def test_errors_and_sizes_of_the_record():
    for row in ROWS:
        check(row)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("torch", "onnxruntime", "keras_hub"):
        pytest.importorskip(name)
    from experiments.targets import measure

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # for Keras
        rows = measure("distilbert", tmp_path)
    assert [row["kind"] for row in rows] == list(KINDS)
    for row in rows:
        check(row)
