"""The fit of ADMM's constants: its gradient, and that it lowers the loss."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.admm_schedule import START, fit, loss_of
from lpjax.solvers._admm_schedule import FITTED


@pytest.fixture(scope="module")
def matrix() -> np.ndarray:
    rng = np.random.default_rng(0)
    basis = rng.standard_t(4, size=(24, 10))
    return ((rng.standard_t(4, size=(60, 24)) * np.geomspace(1, 0.1, 24)) @ basis).astype(np.float32)


@pytest.mark.slow
def test_the_loss_falls(matrix):
    constants, losses = fit(matrix, 4, (4, 8), 6)
    assert min(losses) < losses[0]
    assert losses[0] == pytest.approx(float(loss_of(np.array(START, np.float32), matrix, 4, (4, 8))), abs=1e-5)
    assert all(np.isfinite(value) for value in constants)


def test_the_constants_in_the_code_beat_the_start(matrix):
    fitted, start = (float(loss_of(np.array(c, np.float32), matrix, 4, (8, 16))) for c in (FITTED, START))
    assert fitted <= start < 0
