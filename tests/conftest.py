"""Strict settings for every test, and the x64 switch."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest
from jaxtyping import install_import_hook

# Shapes in signatures are checked at run time, under the tests only; not where a function checks its arguments
# itself, for there the tests want its own message.
_MODULES = ["_blocks", "_geometry", "_prox", "_solution", "_spectrum", "_start"]
_hook = install_import_hook(["lpjax.lowrank", *(f"lpjax.solvers.{name}" for name in _MODULES)], "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both precisions; x64 is on for float64 only."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield request.param
    jax.config.update("jax_enable_x64", before)
