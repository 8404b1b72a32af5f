"""Charts and the numbers behind them."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax.evaluation.errors import cut_spectrum, relative_errors
from lpjax.evaluation.latency import measure_latency
from lpjax.report.charts import draw_curves, draw_errors, draw_scores, draw_spectra
from lpjax.report.figure import SERIES, svg_of
from lpjax.weights.low_rank import LowRank
from tests.helpers import heavy_tailed


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16"])
def test_errors_are_those_of_their_definition(monkeypatch, transpose, kind):
    monkeypatch.setattr("lpjax.evaluation.errors._ENTRIES", 50)  # several blocks
    dtype = jnp.bfloat16 if kind == "bfloat16" else np.dtype(kind)
    leaf = heavy_tailed(17, 11).astype(dtype)
    left, right = heavy_tailed(17, 3, 1).astype(dtype), heavy_tailed(3, 11, 2).astype(dtype)
    pair = LowRank(left, right)
    errors = relative_errors(leaf, pair, transpose=transpose)
    matrix = leaf.astype(np.float64)
    residual = matrix - left.astype(np.float64) @ right.astype(np.float64)
    axis = 0 if transpose else 1
    for value, part, whole in zip(
        errors,
        (np.linalg.norm(residual), np.abs(residual).sum(), np.linalg.norm(residual, axis=axis).sum()),
        (np.linalg.norm(matrix), np.abs(matrix).sum(), np.linalg.norm(matrix, axis=axis).sum()),
        strict=True,
    ):
        assert value == pytest.approx(part / whole, rel=1e-12)


def test_nothing_of_nothing_has_no_error():
    zeros = LowRank(np.zeros((5, 1)), np.zeros((1, 4)))
    assert relative_errors(np.zeros((5, 4)), zeros, transpose=False) == (None, None, None)
    assert cut_spectrum(np.zeros(4), 1).least is None
    assert cut_spectrum(np.array([3.0, 4.0]), 2).least == 0
    assert cut_spectrum(np.array([4.0, 3.0]), 1).least == pytest.approx(0.6)


def chart(draw: Callable[..., None], *arguments: object) -> str:
    return svg_of(draw, *arguments, number=1, title="chart")


def test_charts_show_every_mark_and_cut():
    def count(svg: str, variable: str) -> int:
        return len(re.findall(rf"stroke: var\(--{variable}\)", svg))

    spectra = [np.geomspace(1, 1e-3, 40), np.geomspace(2, 1e-4, 40)]
    assert count(chart(draw_spectra, spectra, [7, 7]), "c0") == 2
    assert count(chart(draw_spectra, spectra, [7, 7]), "c1") == 1
    assert count(chart(draw_spectra, spectra, [7, 9]), "c1") == 2
    assert "var(--c1)" in chart(draw_scores, [(0.5, 0.8, 0), (0.7, 0.9, 1)], 0.95)
    assert count(chart(draw_curves, {0: [(0.3, 0.5), (0.6, 0.4)], 9: [(0.3, 0.2)]}, None), "c2") >= 1
    assert count(chart(draw_errors, {3: [(0, 0.1), (1, 0.2)]}), "c3") >= 1


def test_degenerate_charts_are_drawn():
    for svg in (
        chart(draw_scores, [(1.0, 0.0, 0)], None),
        chart(draw_scores, [(0.2, 0.9, 15)], 0.9),
        chart(draw_curves, {20: [(0.0, 0.0)]}, 0.0),
        chart(draw_errors, {0: [(5, 0.0)]}),
        chart(draw_spectra, [np.array([1.0, 0.0])], [1]),
        chart(draw_spectra, [np.ones(3)], [3]),
    ):
        assert svg.count("<svg") == 1
        assert "nan" not in svg
        assert "http" not in svg
        assert not any(colour.lower() in svg for colour in SERIES)  # all by the style sheet


def test_latency_takes_turns_and_skips_the_first(folder, monkeypatch):
    monkeypatch.setattr("lpjax.evaluation.latency._SECONDS", 0)
    seen = []

    def watch(params, config, batch):
        seen.append(("dense" if params["embeddings"]["mark"].size else "factored", batch["input_ids"].shape))
        return jnp.zeros(())

    monkeypatch.setattr("lpjax.evaluation.latency.encode", watch)
    checkpoint = lpjax.load_checkpoint(folder)

    def marked(size: int) -> lpjax.Checkpoint:
        params = {"embeddings": {"mark": np.zeros(size, np.float32)}}
        return lpjax.Checkpoint(params, checkpoint.config)

    first, two = measure_latency(marked(1), marked(0), shapes=[(4, 64), (1, 3)])
    assert (first.batch, first.length, two.length) == (4, 9, 3)
    assert (len(first.dense), len(first.factored)) == (5, 5)
    own = [net for net, shape in seen if shape == (4, 9)]
    assert own == ["dense", "factored"] * 2 + ["dense", "factored", "factored", "dense"] * 2 + ["dense", "factored"]
    assert first.ratio == pytest.approx(np.median(first.factored) / np.median(first.dense))
