"""Solvers lower for GPUs and TPUs on a machine without one, and no program calls what only a CPU has."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from lpjax.rounding.feedback import _by_columns, _tiles
from lpjax.solvers import SOLVERS

CPU_ONLY = ("lapack_", "xla_python_cpu", "xla_ffi_python_cpu", "xla_ffi_partitioned_python_cpu")


def targets(function, *arguments: jax.ShapeDtypeStruct, platform: str) -> set[str]:
    """The custom calls of the program of a function."""
    program = jax.export.export(jax.jit(function), platforms=[platform])(*arguments).mlir_module()
    return set(re.findall(r"stablehlo\.custom_call @(\w+)", program))


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_cpus_program_is_seen_to_call_lapack():
    assert any(target.startswith(CPU_ONLY) for target in targets(jnp.linalg.qr, floats(9, 4), platform="cpu"))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(name, batched, platform):
    solve = functools.partial(SOLVERS[name], rank=3, p=1.0, **({} if name == "svd" else {"num_iters": 2}))
    function, shape = (jax.vmap(solve), (2, 40, 9)) if batched else (solve, (40, 9))
    assert not [
        target for target in targets(function, floats(*shape), platform=platform) if target.startswith(CPU_ONLY)
    ]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_rounding(platform):
    columns = functools.partial(_by_columns, bounds=(-8, 7))
    tiles = functools.partial(_tiles, bounds=(-8, 7))
    assert not targets(lambda a, b, c: columns(a, b, upper=c), *[floats(64, 64)] * 3, platform=platform)
    assert not targets(lambda a, b, c, d: tiles(a, b, above=c, beside=d), *[floats(64, 64)] * 4, platform=platform)
