"""The schedule of admm_entries: what it says, and what it is worth."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax.solvers._admm_schedule import scheduled_step
from tests.helpers import heavy_tailed

pytestmark = pytest.mark.optimized


def noisy(n: int, d: int, seed: int = 0) -> np.ndarray:
    """A matrix with the slowly falling spectrum of real weights, and Laplace noise."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(size, d)))[0] for size in (n, d))
    smooth = (left * np.arange(1, d + 1) ** -0.7) @ right.T
    return smooth + rng.laplace(size=(n, d)) * np.abs(smooth).mean()


@functools.cache
def optimum_of_irls(rank: int, p: float) -> float:
    """The best objective of alternating IRLS for `noisy(400, 40)`, in hundreds of sweeps."""
    return float(lpjax.irls_entries(noisy(400, 40), rank, p=p, num_iters=300, tol=1e-7).objective)


@pytest.mark.covering(0)
@pytest.mark.parametrize(("p", "steps", "share"), [(1.0, 5, 0.5), (1.0, 16, 0.15), (1.5, 4, 0.4), (1.5, 16, 0.1)])
@pytest.mark.parametrize("rank", [6, pytest.param(20, marks=pytest.mark.slow), 30])
def test_a_short_schedule_comes_near_the_optimum(p, steps, share, rank, x64):
    """Measured by the decrease that alternating IRLS reaches below the SVD in hundreds of sweeps."""
    matrix = noisy(400, 40)
    optimum = optimum_of_irls(rank, p)
    start = lpjax.svd(matrix, rank, p=p).objective
    objective = lpjax.admm_entries(matrix, rank, p=p, num_iters=steps).objective
    assert (objective - optimum) / (start - optimum) <= share


def test_a_schedule_that_ends_in_time_beats_one_that_is_cut_short(x64):
    matrix = noisy(400, 40)
    run = functools.partial(lpjax.admm_entries, matrix, 20, p=1.0, init="svd", num_iters=10)
    assert run().objective == run(schedule=10).objective
    assert run().objective < 0.995 * run(schedule=100).objective


def test_after_a_schedule_follows_a_longer_one(x64):
    matrix = noisy(400, 40)
    run = functools.partial(lpjax.admm_entries, matrix, 20, p=1.0, schedule=5, tol=0.0)
    short, long = run(num_iters=5), run(num_iters=15)
    assert (short.num_iters, long.num_iters) == (5, 15)
    assert long.objective < 0.99 * short.objective
    assert not short.converged
    settled = run(num_iters=1000, tol=1e-2)
    assert settled.converged
    assert settled.num_iters < 1000


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("p", [1.0, 1.25, 1.75, 2.0])
def test_what_a_schedule_says(p, sparse, x64):
    for length in (1, 2, 3, 5, 16, 100, 3000):
        for share in (0.01, 0.5, 1.0):
            steps = [
                scheduled_step(jnp.asarray(age), jnp.asarray(length), jnp.asarray(p), share, jnp.asarray(sparse))
                for age in range(0, length, 7)
            ]
            rho = np.asarray([step.rho for step in steps])
            assert np.all((rho > 1e-4) & (rho < 1e4))
            assert rho[-1] >= rho[0]
            assert all(0 < step.alpha < 2 and 0 <= step.delta <= 1 for step in steps)


@pytest.mark.parametrize("steps", [1, 2, 20, 21, 30, 59, 61, 90, 141, 1000])
def test_schedules_fit_into_the_steps(steps, x64):
    """Whatever their number, all steps are done, unless a schedule brings nothing; and more of them do no worse."""
    matrix = noisy(60, 12)
    run = functools.partial(lpjax.admm_entries, matrix, 4, p=1.0, tol=0.0)
    solution = run(num_iters=steps)
    assert solution.num_iters == steps or (solution.converged and steps > 90)
    assert solution.objective <= lpjax.svd(matrix, 4, p=1.0).objective
    assert run(num_iters=4 * steps).objective <= 1.01 * solution.objective


@pytest.mark.covering(0)
@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
@pytest.mark.parametrize(("n", "d", "rank"), [(120, 60, 8), (60, 120, 8), (120, 60, 12), (300, 40, 3)])
def test_planted_outliers_are_recovered_exactly(n, d, rank, share, x64):
    rng = np.random.default_rng(rank)
    truth = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d))
    corrupted = truth + 3 * truth.std() * rng.choice([-1, 0, 1], p=[share / 2, 1 - share, share / 2], size=truth.shape)
    solution = lpjax.admm_entries(corrupted, rank, p=1.0, num_iters=140, tol=0.0)
    error = np.linalg.norm(solution.left @ solution.right - truth) / np.linalg.norm(truth)
    assert error < 1e-7


def test_planted_outliers_are_recovered_from_a_start_that_the_first_schedule_does_not_better(x64):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 30))
    wild = 5 * rng.choice([-1, 0, 1], p=[0.03, 0.94, 0.03], size=truth.shape)
    left, values, right = np.linalg.svd(truth, full_matrices=False)
    near = left[:, :4] * values[:4] + 1e-3 * rng.normal(size=(60, 4)), right[:4]
    solution = lpjax.admm_entries(truth + wild, 4, p=1.0, init=near, num_iters=140)
    assert np.linalg.norm(solution.left @ solution.right - truth) < 1e-9 * np.linalg.norm(truth)


def test_schedule_may_be_traced_and_mapped():
    matrix = jnp.asarray(heavy_tailed(17, 7), jnp.float32)
    run = functools.partial(lpjax.admm_entries, matrix, 3, num_iters=6)
    objectives = jax.vmap(lambda schedule: run(schedule=schedule).objective)(jnp.asarray([2, 6]))
    assert np.allclose(objectives, [run(schedule=2).objective, run(schedule=6).objective], rtol=1e-4)


@pytest.mark.parametrize("schedule", [0, -1, 2.5, "long"])
def test_bad_schedules(schedule):
    with pytest.raises(ValueError, match="`schedule` is"):
        lpjax.admm_entries(np.ones((5, 4), np.float32), 2, schedule=schedule)
