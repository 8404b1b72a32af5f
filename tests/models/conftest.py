from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.goldens import CASES, GOLDENS, NETS, Golden, load_golden


@pytest.fixture
def golden() -> Golden:
    """The plain case: two layers, three heads, pooler, exact gelu."""
    return load_golden("bert_base")


@pytest.fixture(params=CASES)
def any_golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


@pytest.fixture(params=NETS)
def each_net(request: pytest.FixtureRequest) -> Golden:
    """One plain case of each model."""
    return load_golden(request.param)


@pytest.fixture
def goldens() -> Path:
    return GOLDENS
