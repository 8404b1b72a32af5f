"""What a notebook prints of a plan, a calibration and a compressed model fits a line or two."""

from __future__ import annotations

import numpy as np

import lpjax
from lpjax.weighting import Calibration, Statistics
from tests.helpers.trees import RANK, first_columns, params


def test_representations_are_short():
    tree = params()
    plan = lpjax.uniform_plan(tree, select=["table", "up/kernel"], rank=RANK, solver="svd")
    result = lpjax.compress(tree, select=["table", "up/kernel"], rank=RANK, solver=first_columns)
    statistics = Statistics(9, inputs=np.eye(100, dtype=np.float32), counts=np.ones(100, np.float32))
    calibration = Calibration({str(i): statistics for i in range(9)}, "embedding", 3, 9, 0, {"model": "a model"})
    for value, words in (
        (plan, "Plan(layers={3 items}"),
        (result, "records=3 of `LayerRecord`"),
        (statistics, "inputs=f32[100,100]"),
        (calibration, "target='embedding', texts=3, tokens=9, seed=0"),
    ):
        assert words in repr(value), repr(value)
        assert len(repr(value)) < 240
        assert "\n" not in repr(value)
