"""Factorizations of a batch: the answers of NumPy, and on a CPU never a call that waits for its own threads."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax import _lapack
from tests.helpers import SOLVERS, heavy_tailed

pytestmark = [
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="where LAPACK is not used, a batch is one call"),
]


def batched_calls(function: Any, *arrays: Any) -> list[str]:
    """Calls of LAPACK, in the compiled program, of more than one matrix."""
    text = jax.jit(function).lower(*arrays).compile().as_text()
    calls = [line for line in text.splitlines() if 'custom_call_target="lapack_' in line]
    assert calls
    shapes = [re.findall(r"f(?:32|64)\[([\d,]*)\]", call) for call in calls]
    return [call for call, sizes in zip(calls, shapes, strict=True) if any(shape.count(",") > 1 for shape in sizes)]


def test_a_batch_by_jax_itself_is_one_call():
    """What the other tests look for can be found."""
    assert batched_calls(jax.vmap(lambda matrix: jnp.linalg.qr(matrix)[0]), np.ones((3, 9, 7), np.float32))


@pytest.mark.covering(0)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_mapped_solver_makes_no_call_of_a_batch(name):
    stack = np.stack([heavy_tailed(40, 9, seed) for seed in range(3)]).astype(np.float32)
    solve = lambda matrix: lpjax.SOLVERS[name](matrix, 3, p=1.5, num_iters=3).left  # noqa: E731
    assert not batched_calls(jax.vmap(solve), stack)
    assert not batched_calls(jax.vmap(jax.vmap(solve)), stack[None])


def test_the_svd_is_differentiable(x64):
    """By each way to differentiate, against differences."""
    matrix = np.random.default_rng(0).normal(size=(9, 5))
    value = lambda matrix: lpjax.svd(matrix, 2).objective  # noqa: E731
    step = np.random.default_rng(1).normal(size=matrix.shape)
    expected = (value(matrix + 1e-6 * step) - value(matrix - 1e-6 * step)) / 2e-6
    gradient = jax.grad(value)(jnp.asarray(matrix))
    assert np.sum(gradient * step) == pytest.approx(float(expected), rel=1e-5)
    assert jax.jvp(value, (jnp.asarray(matrix),), (jnp.asarray(step),))[1] == pytest.approx(float(expected), rel=1e-5)
    assert np.allclose(jax.jacfwd(value)(jnp.asarray(matrix)), gradient)
    assert np.allclose(jax.vmap(jax.grad(value))(jnp.asarray(matrix)[None]), gradient)


def test_factorizations_of_a_batch(x64):
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(4, 6, 6))
    definite = np.einsum("bij,bkj->bik", stack, stack) + np.eye(6)
    q, r = jax.vmap(_lapack.qr)(stack[:, :, :3])
    assert np.allclose(q @ r, stack[:, :, :3])
    assert np.allclose(np.abs(jax.vmap(_lapack.qr_triangle)(stack)), np.abs(np.linalg.qr(stack, mode="r")))
    basis = jax.vmap(_lapack.complete_basis)(stack[:, :, :3])
    assert np.allclose(basis @ basis.transpose(0, 2, 1), np.eye(6))
    assert np.allclose(jax.vmap(_lapack.eigh)(definite)[0], np.linalg.eigvalsh(definite))
    u, values, vt = jax.vmap(_lapack.svd)(stack)
    assert np.allclose((u * values[:, None, :]) @ vt, stack)
    for right in (stack[0], stack[0, 0]):  # of all of the batch the same, and a vector
        solved = jax.vmap(_lapack.solve_definite, in_axes=(0, None))(definite, right)
        assert np.allclose(solved, np.stack([np.linalg.solve(matrix, right) for matrix in definite]))
