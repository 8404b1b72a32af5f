"""What Keras does in its own ways: JAX's standard promotion of dtypes and of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def promoting() -> Iterator[None]:
    """JAX's standard promotion for every test."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
