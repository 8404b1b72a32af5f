"""A plan for a size: the file has it, errors of layers have equal slopes, and what cannot be is refused."""

from __future__ import annotations

import numpy as np
import pytest

import lpjax
from lpjax._tree import leaves_with_paths
from lpjax.allocation import parse_size, plan_for_size
from lpjax.checkpoint import Checkpoint
from lpjax.compression import Choice
from lpjax.weighting import Calibration, Statistics
from tests.helpers.lattice import random_metric
from tests.helpers.rounding import CONFIG, random_net

pytestmark = pytest.mark.optimized


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return random_net()


@pytest.fixture(scope="module")
def statistics(checkpoint: Checkpoint) -> Calibration:
    rng = np.random.default_rng(1)
    known, tokens = {}, 40_000
    for number, (path, leaf) in enumerate(leaves_with_paths(checkpoint.params)):
        if leaf.ndim != 2 or "position" in path or "token_type" in path:
            continue
        outputs = random_metric(leaf.shape[1], number, 1.0).astype(np.float32)
        if path.endswith("embedding"):
            counts = np.floor(tokens * rng.dirichlet(np.full(len(leaf), 0.1))).astype(np.float32)
            known[path] = Statistics(tokens, counts=counts, outputs=outputs)
        else:
            inputs = random_metric(len(leaf), number + 50, 1.0).astype(np.float32)
            known[path] = Statistics(tokens, inputs=inputs, outputs=outputs)
    return Calibration(known, "embedding", 100, tokens, 0)


@pytest.mark.covering(1)
@pytest.mark.parametrize("size", [0.2, 70_000])
@pytest.mark.parametrize("calibrated", [False, True])
def test_the_file_has_the_size(tmp_path, checkpoint, statistics, size, calibrated):
    known = statistics if calibrated else None
    plan = plan_for_size(checkpoint.params, size, statistics=known)
    small = lpjax.compress(checkpoint.params, plan, known).params
    whole = sum(leaf.nbytes for _, leaf in leaves_with_paths(checkpoint.params))
    written = lpjax.save_checkpoint(Checkpoint(small, CONFIG), tmp_path / "out")
    wanted = size * whole if size <= 1 else size
    assert 0.97 * wanted <= written <= 1.01 * wanted
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


def test_progress_rises_and_ends_within_its_total(checkpoint, statistics):
    said = []
    plan_for_size(checkpoint.params, 0.2, statistics=statistics, progress=lambda *one: said.append(one))
    done = [one[0] for one in said]
    assert done == sorted(done)
    assert all(0 <= number < total for number, total, _ in said)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "`size` is 0; expected bytes"),
        (-0.5, "`size` is -0.5"),
        (float("nan"), "`size` is nan"),
        (1e9, "but the net has"),
        (1.0, "but the net has"),
        (2000, "expected at least"),
    ],
)
def test_sizes_are_refused(checkpoint, statistics, size, said):
    with pytest.raises(ValueError, match=said):
        plan_for_size(checkpoint.params, size, statistics=statistics)


def test_misuse_is_refused(checkpoint, statistics):
    with pytest.raises(ValueError, match="needs `statistics`"):
        plan_for_size(checkpoint.params, 0.2, weighting="gauss_newton")
    with pytest.raises(ValueError, match="expected gauss_newton for a `size`"):
        plan_for_size(checkpoint.params, 0.2, statistics=statistics, weighting="drone")
    with pytest.raises(ValueError, match="no matrix that is worth rounding"):
        plan_for_size({"bias": np.zeros(9)}, 0.5)
    sparse = lpjax.allocate(checkpoint.params, budget=0.5, statistics=statistics, sparse_share=0.3)
    with pytest.raises(ValueError, match="`ranks` has single entries or rounded layers"):
        plan_for_size(checkpoint.params, 0.2, statistics=statistics, ranks=sparse)
    with pytest.raises(ValueError, match="has none of the selected matrices"):
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
