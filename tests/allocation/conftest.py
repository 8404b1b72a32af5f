"""A random model and statistics of it."""

from __future__ import annotations

import numpy as np
import pytest

from lpjax._tree import leaves_with_paths
from lpjax.checkpoint import Checkpoint
from lpjax.weighting import Calibration, Statistics
from tests.helpers.lattice import random_metric
from tests.helpers.rounding import random_net


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
