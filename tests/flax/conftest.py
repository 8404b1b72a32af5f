"""What flax does in its own ways: dtypes are promoted by JAX's rules, and its oldest version warns when imported."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import jax
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # flax 0.12.0's of jax.array_ref
    import flax.nnx  # noqa: F401


@pytest.fixture
def promoting() -> Iterator[None]:
    """JAX's standard promotion of dtypes for one test."""
    with jax.numpy_dtype_promotion("standard"):
        yield
