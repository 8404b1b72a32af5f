"""Where iterative solvers begin."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax.solvers._core import start as _start
from tests.helpers import low_rank, norm, product

pytestmark = pytest.mark.optimized

TALL = (6000, 12)  # so tall that a start is chosen by a sample of the rows


@pytest.fixture(autouse=True)
def _double(x64):
    return x64


def with_outlier_entries(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix of rank 3 and the same with one entry in twenty off by thirty times their size."""
    truth = low_rank(*TALL, 3, seed)
    rng = np.random.default_rng(seed)
    return truth, truth + (rng.random(TALL) < 0.05) * rng.normal(size=TALL) * 30


def test_a_tall_matrix_is_sampled():
    matrix = jnp.ones(TALL)
    problem = _start.Scaled(
        _start.Rows(matrix), jnp.ones(()), jnp.ones(TALL[0]), jnp.zeros(()), jnp.ones(()), None, 3, "best"
    )
    sample = _start._sample(problem)
    assert sample is not None
    assert sample.row_weights is not None
    assert sample.rows.shape[0] == sample.row_weights.shape[0] >= _start._SAMPLED_ROWS
    assert _start._sample(problem._replace(rows=_start.Rows(matrix[:4000]))) is None


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_of_a_tall_matrix_with_outlier_entries_the_clipped_start_is_taken(weighted):
    truth, matrix = with_outlier_entries(0)
    weights = np.random.default_rng(1).uniform(0.5, 2, TALL[0]) if weighted else None
    starts = {
        init: lpjax.admm_entries(matrix, 3, p=1.0, init=init, num_iters=0, row_weights=weights).objective
        for init in ("svd", "lewis", "clipped", "best")
    }
    assert starts["best"] == starts["clipped"] < 0.9 * min(starts["svd"], starts["lewis"])
    solution = lpjax.admm_entries(matrix, 3, p=1.0, num_iters=200, row_weights=weights)
    # A few rows may have too many outliers among their twelve entries to be recovered.
    assert solution.objective <= norm(matrix - truth, 1, weights=weights)
    assert np.quantile(np.abs(product(solution) - truth), 0.9) <= 1e-2 * np.abs(truth).max()


@pytest.mark.slow
def test_a_sampled_start_under_jit_and_vmap():
    stack = np.stack([with_outlier_entries(0)[1], low_rank(*TALL, 3, 1)])
    run = lambda matrix: lpjax.admm_entries(matrix, 3, p=1.0, num_iters=4).objective  # noqa: E731
    mapped = jax.jit(jax.vmap(run))(jnp.asarray(stack))
    for matrix, value in zip(stack, mapped, strict=True):
        assert run(matrix) == pytest.approx(float(value), rel=1e-6, abs=1e-9)
