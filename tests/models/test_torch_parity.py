"""Optional, where PyTorch is installed: every net live against transformers, at full base size with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from experiments.parity import NETS, measure

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("net", NETS)
def test_full_base_size(net: str, tmp_path: Path):
    found = measure(net, tmp_path)
    assert found["live"] <= 1e-4
    assert found["round trip"] == 0
    assert found["reload"] == 0
    assert found["export"] <= 1e-5
    assert found["base"] <= 2e-5  # entries of order 5
    assert found["full rank"] <= 1e-4
