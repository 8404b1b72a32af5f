"""A plan for a size: the file has it, errors of layers have equal slopes, and what cannot be is refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import lpjax
from lpjax._tree import leaves_with_paths
from lpjax.allocation import parse_size, plan_for_size
from lpjax.allocation._sizes import sketch_of
from lpjax.checkpoint import Checkpoint
from lpjax.checkpoint.safetensors import write_tensors
from lpjax.compression import Choice
from lpjax.compression.rounding import Moments
from lpjax.rounding import round_pair
from lpjax.weighting import Calibration
from lpjax.weights.coded import split_coded
from lpjax.weights.low_rank import LowRank
from lpjax.weights.quantized import Quantized
from tests.helpers.lattice import random_metric
from tests.helpers.rounding import CONFIG

pytestmark = pytest.mark.optimized


@pytest.mark.covering(1)
@pytest.mark.parametrize("size", [0.2, 70_000])
@pytest.mark.parametrize("calibrated", [False, True])
def test_the_file_has_the_size(tmp_path, checkpoint, statistics, size, calibrated):
    known = statistics if calibrated else None
    plan = plan_for_size(checkpoint.params, size, statistics=known)
    small = lpjax.compress(checkpoint.params, plan, known).params
    whole = sum(leaf.nbytes for _, leaf in leaves_with_paths(checkpoint.params))
    written = lpjax.save_checkpoint(Checkpoint(small, CONFIG), tmp_path / "out")
    expected = size * whole if size <= 1 else size
    assert 0.97 * expected <= written <= 1.01 * expected
    steps = {choice.step for choice in plan.layers.values() if choice.step is not None}
    assert len(steps) == 1
    assert plan.rest == "float16"
    assert plan.weighting == ("gauss_newton" if calibrated else None)


def test_matrices_without_statistics_get_bits(checkpoint, statistics):
    plan = plan_for_size(checkpoint.params, 0.2, statistics=statistics)
    layers = dict(plan.layers)
    position = layers.pop("embeddings/position_embeddings/embedding")
    assert position == Choice(None, bits=6, group=32)
    assert all(choice.bits is None for choice in layers.values())
    assert "embeddings/token_type_embeddings/embedding" not in layers  # too small to be worth it


def test_selected_matrices_alone_are_rounded(checkpoint, statistics):
    plan = plan_for_size(checkpoint.params, 0.6, statistics=statistics, select="encoder")
    assert all("encoder" in path for path in plan.layers)


@pytest.mark.slow
def test_ranks_by_another_budget_are_kept(tmp_path, checkpoint, statistics):
    ranks = lpjax.allocate(
        checkpoint.params, budget=0.6, budget_of="multiply_adds", select="encoder", statistics=statistics
    )
    plan = plan_for_size(checkpoint.params, 0.15, statistics=statistics, ranks=ranks)
    for path, choice in plan.layers.items():
        before = ranks.layers.get(path, Choice(None))
        assert choice[:4] == (before if before.rank else Choice(None))[:4]
    small = lpjax.compress(checkpoint.params, plan, statistics).params
    leaves = dict(leaves_with_paths(small))
    factored = [path for path, choice in ranks.layers.items() if choice.rank]
    assert factored
    assert all(leaves[path].rank <= plan.layers[path].rank for path in factored)
    assert all(isinstance(leaves[path].left, lpjax.Quantized) for path in factored)
    written = lpjax.save_checkpoint(Checkpoint(small, CONFIG), tmp_path / "out")
    whole = sum(leaf.nbytes for _, leaf in leaves_with_paths(checkpoint.params))
    assert 0.97 * 0.15 * whole <= written <= 1.01 * 0.15 * whole


def written(params: dict, plan: lpjax.Plan, known: Calibration | None, folder: Path) -> int:
    """Bytes of the tensors that a plan makes, in one file with their headers."""
    small = lpjax.compress(params, plan, known).params
    tensors = dict(split_coded([*parts(small)]))
    write_tensors(folder / "net.safetensors", [*tensors.items()])
    return (folder / "net.safetensors").stat().st_size


def parts(params: dict) -> Iterator[tuple[str, Any]]:
    """(name, array or quantized matrix) of what a file has."""
    for path, leaf in leaves_with_paths(params):
        if isinstance(leaf, LowRank):
            yield from ((f"{path}.{part}", getattr(leaf, part)) for part in ("left", "right"))
            yield from ((f"{path}.{number}", part) for number, part in enumerate(jax.tree.leaves(leaf.sparse)))
        else:
            yield path, leaf


def kernels(odd: int | None = None, *, make: str = "sparse") -> dict:
    """Eight kernels of one kind; number `odd` differs from the others."""
    rng = np.random.default_rng(0)
    layers = {}
    for i in range(8):
        kernel = rng.standard_t(3, (96, 128)).astype(np.float32)
        if i == odd and make == "sparse":
            kernel = np.where(rng.random(kernel.shape) < 0.9, 0, kernel).astype(np.float32)
        if i == odd and make == "outlier":
            kernel[1, 1] = 500
        layers[str(i)] = {"dense": {"kernel": kernel}}
    return {"encoder": layers}


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
@pytest.mark.parametrize(("odd", "make"), [(0, "sparse"), (5, "sparse"), (3, "outlier")])
@pytest.mark.covering(1)
def test_matrices_of_one_kind_may_differ(tmp_path, odd, make, share):
    params = kernels(odd, make=make)
    whole = sum(leaf.nbytes for _, leaf in leaves_with_paths(params))
    size = written(params, plan_for_size(params, share), None, tmp_path)
    assert 0.97 * share * whole <= size <= share * whole * 1.003


def test_an_outlier_does_not_waste_what_others_need(tmp_path):
    """A matrix with an entry far beyond the others gets a step of its own, so that its codes have 16 bits."""
    params = kernels(3, make="outlier")
    params["encoder"]["3"]["dense"]["kernel"][2, 2] = 1e5
    plan = plan_for_size(params, 0.3)
    whole = sum(leaf.nbytes for _, leaf in leaves_with_paths(params))
    assert 0.9 * 0.3 * whole <= written(params, plan, None, tmp_path) <= 0.3 * whole
    steps = {path: choice.step or 0 for path, choice in plan.layers.items()}
    assert steps.pop("encoder/3/dense/kernel") > 2 * max(steps.values())


@pytest.mark.parametrize("table", [False, True])
def test_the_largest_code_of_a_pair_is_foreseen(table):
    # Inputs that are nearly all alike give one direction nearly all of the energy.
    rng = np.random.default_rng(0)
    left, right = rng.normal(1, 0.3, (96, 12)), rng.normal(size=(12, 40))
    rows = rng.pareto(1.0, 96) + 0.01 if table else np.ones((96, 96)) + 0.01 * np.eye(96)
    pair, moments = LowRank(left.astype(np.float32), right.astype(np.float32)), Moments(rows, random_metric(40, 1))
    sketch = sketch_of("embeddings/word_embeddings/embedding" if table else "kernel", pair, moments)
    step = sketch.largest / 2**14
    rounded = round_pair(pair.left, pair.right, step, *moments)
    sides = [part for part in (rounded.left, rounded.right) if isinstance(part, Quantized)]
    assert len(sides) == 2
    assert 2**13 < max(np.abs(side.host_codes()).max() for side in sides) < 2**15


def test_a_matrix_without_effect_takes_its_share_alone(checkpoint, statistics):
    """If no output depends on a kernel, it gets few bits, and the others the rest."""
    path = next(path for path in statistics.statistics if path.endswith("intermediate/dense/kernel"))
    known = statistics.statistics[path]
    zero = dataclasses.replace(known, outputs=np.zeros_like(known.outputs))
    none = dataclasses.replace(statistics, statistics={**statistics.statistics, path: zero})
    zeroed, other = (
        plan_for_size(checkpoint.params, 0.25, statistics=calibration) for calibration in (none, statistics)
    )
    assert zeroed.layers[path] == Choice(None, bits=4, group=32)
    table = "embeddings/word_embeddings/embedding"
    assert zeroed.layers[table].step == pytest.approx(other.layers[table].step, rel=0.5)


def test_what_else_the_file_has_counts(tmp_path, checkpoint, statistics):
    limit, extra = 130_000, {"crf.weight": np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)}
    whole = Checkpoint(checkpoint.params, CONFIG, extra=extra)
    plan = plan_for_size(checkpoint.params, limit, statistics=statistics, other_bytes=whole.extra_bytes)
    small = dataclasses.replace(whole, params=lpjax.compress(checkpoint.params, plan, statistics).params)
    assert 0.97 * limit <= lpjax.save_checkpoint(small, tmp_path / "out") <= limit


def test_pairs_with_single_entries_keep_them(tmp_path):
    params = kernels()
    path = "encoder/0/dense/kernel"
    paired = lpjax.compress(params, select=path, keep=0.7, sparse_share=0.3, solver="svd").params
    plan = plan_for_size(paired, 110_000)
    assert 0.95 * 110_000 <= written(paired, plan, None, tmp_path) <= 110_000


def test_numbers_too_large_for_float16_stay(tmp_path):
    params = kernels() | {"norm": {"scale": np.array([1.0, 1e6], np.float32)}}
    plan = plan_for_size(params, 0.3)
    assert plan.rest is None
    assert lpjax.compress(params, plan).params["norm"]["scale"].dtype == np.float32


def test_the_least_size_that_is_named_is_accepted(checkpoint, statistics):
    with pytest.raises(ValueError, match="expected at least") as error:
        plan_for_size(checkpoint.params, 2000, statistics=statistics)
    least = re.search(r"at least ([\d.]+) MB", str(error.value))
    assert least is not None
    plan_for_size(checkpoint.params, f"{least[1]}MB", statistics=statistics)


def test_a_large_table_is_estimated_from_some_rows(checkpoint, statistics, monkeypatch, tmp_path):
    monkeypatch.setattr("lpjax.allocation._bytes._LARGE", 20_000)
    plan = plan_for_size(checkpoint.params, 0.2, statistics=statistics)
    whole = sum(leaf.nbytes for _, leaf in leaves_with_paths(checkpoint.params))
    small = lpjax.compress(checkpoint.params, plan, statistics).params
    size = lpjax.save_checkpoint(Checkpoint(small, CONFIG), tmp_path / "out")
    assert 0.96 * 0.2 * whole <= size <= 1.02 * 0.2 * whole


def test_progress_rises_and_ends_within_its_total(checkpoint, statistics):
    calls = []
    plan_for_size(checkpoint.params, 0.2, statistics=statistics, progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert all(0 <= number < total for number, total, _ in calls)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "`size` is 0; expected bytes"),
        (-0.5, "`size` is -0.5"),
        (float("nan"), "`size` is nan"),
        (1e9, "but the model has"),
        (1.0, "but the model has"),
        (2000, "expected at least"),
    ],
)
def test_sizes_are_refused(checkpoint, statistics, size, message):
    with pytest.raises(ValueError, match=message):
        plan_for_size(checkpoint.params, size, statistics=statistics)


def test_misuse_is_refused(checkpoint, statistics):
    with pytest.raises(ValueError, match="needs `statistics`"):
        plan_for_size(checkpoint.params, 0.2, weighting="gauss_newton")
    with pytest.raises(ValueError, match="`size` needs gauss_newton"):
        plan_for_size(checkpoint.params, 0.2, statistics=statistics, weighting="drone")
    with pytest.raises(ValueError, match="no matrix of the model is large enough to be worth rounding"):
        plan_for_size({"bias": np.zeros(9)}, 0.5)
    sparse = lpjax.allocate(checkpoint.params, budget=0.5, statistics=statistics, sparse_share=0.3)
    with pytest.raises(ValueError, match="`ranks` has single entries or rounded layers"):
        plan_for_size(checkpoint.params, 0.2, statistics=statistics, ranks=sparse)
    with pytest.raises(ValueError, match="has no statistics of"):
        plan_for_size(checkpoint.params, 0.2, statistics=statistics, select="position_embeddings")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("9MB", 9e6), ("9 mb", 9e6), ("9m", 9e6), ("1.5GB", 1.5e9), ("512KiB", 512 * 1024), ("2MiB", 2 * 1024**2),
        ("9000000", 9e6), ("9e6", 9e6), ("10%", 0.1), ("0.5 %", 0.005), ("800 B", 800),
    ],
)  # fmt: skip
def test_sizes_in_words(text, size):
    assert parse_size(text) == pytest.approx(size)


@pytest.mark.parametrize("text", ["", "MB", "nine", "9TB", "-9MB", "0", "0%", "100%", "200%", "0.5", "1..2MB", "inf"])
def test_words_that_are_no_size(text):
    with pytest.raises(ValueError, match="`size` is"):
        parse_size(text)


def test_statistics_without_any_effect_leave_bits(checkpoint, statistics):
    """No matrix has a step, and there is none to be found."""
    silent = dataclasses.replace(
        statistics,
        statistics={
            path: dataclasses.replace(known, outputs=np.zeros_like(known.outputs))
            for path, known in statistics.statistics.items()
        },
    )
    plan = plan_for_size(checkpoint.params, 0.5, statistics=silent)
    assert {choice.step for choice in plan.layers.values()} == {None}
    with pytest.raises(ValueError, match=r"expected at least [\d.]+ MB, the size in which no matrix has a step"):
        plan_for_size(checkpoint.params, 0.05, statistics=silent)


def test_the_first_matrix_that_is_not_finite_is_named(checkpoint):
    damaged = dict(leaves_with_paths(checkpoint.params))
    paths = [path for path, leaf in damaged.items() if len(leaf.shape) == 2 and leaf.size >= 1 << 13]
    for path in paths[1:]:
        damaged[path] = np.full_like(damaged[path], np.nan)
    for _ in range(5):
        with pytest.raises(ValueError, match=paths[1]):
            plan_for_size(damaged, 0.5)
