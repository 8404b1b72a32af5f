"""Row blocks: results must not depend on how rows are cut, and every row counts once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax.solvers._core import rows as _rows
from lpjax.solvers._core.rows import Rows, fold_rows, map_rows, multiply
from lpjax.solvers._core.spectrum import gram_of_rows, right_singular, triangle_of_rows
from tests.helpers import OBJECTIVE, heavy_tailed, low_rank, norm, product
from tests.helpers.fresh import forget_programs

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(params=[1, 2, 3, 10, 17])
def blocks(request, monkeypatch):
    """Cut 17 × 7 into that many blocks; 2, 3 and 10 do not divide 17."""
    forget_programs()
    monkeypatch.setattr(_rows, "_CPU_ENTRIES", -(-17 * 7 // request.param))
    monkeypatch.setattr(_rows, "_ACCELERATOR_ENTRIES", -(-17 * 7 // request.param))
    yield request.param
    forget_programs()


def test_every_case_of_blocks_has_a_program_of_its_own(monkeypatch):
    """The tests below would otherwise run the first case's program again."""
    matrix, programs = jnp.asarray(heavy_tailed(17, 7)), set()
    for entries in (17 * 7, 40):
        forget_programs()
        monkeypatch.setattr(_rows, "_CPU_ENTRIES", entries)
        monkeypatch.setattr(_rows, "_ACCELERATOR_ENTRIES", entries)
        programs.add(str(jax.make_jaxpr(lambda matrix: lpjax.lewis(matrix, 3))(matrix)))
    forget_programs()
    assert len(programs) == 2


def as_rows(matrix: np.ndarray, factor: float = 1.0, **options) -> Rows:
    return Rows(jnp.asarray(matrix), jnp.asarray(round(np.log2(factor)), jnp.int32), **options)


def test_a_fold_counts_every_row_once(blocks):
    matrix, weights, state = heavy_tailed(17, 7), np.arange(17.0), np.ones((17, 2))

    def block(total, rows, weights, state):
        return total + jnp.sum(weights), 2 * state, {"sums": jnp.sum(rows, axis=1)}

    total, state, made = jax.jit(
        lambda matrix: fold_rows(block, as_rows(matrix), jnp.zeros(()), jnp.asarray(weights), jnp.asarray(state))
    )(jnp.asarray(matrix))
    np.testing.assert_allclose(total, weights.sum())
    np.testing.assert_array_equal(state, np.full((17, 2), 2))
    np.testing.assert_allclose(made["sums"], matrix.sum(axis=1), atol=1e-12)
    count, *none = fold_rows(lambda total, _, once: (total + jnp.sum(once),), as_rows(matrix), jnp.zeros(()), None)
    assert (count, none) == (17, [])


def test_a_map_makes_arrays_of_all_rows(blocks):
    matrix, factors = heavy_tailed(17, 7), np.arange(17.0)
    made = map_rows(lambda rows, by: (rows * by[:, None], by), as_rows(matrix), jnp.asarray(factors))
    np.testing.assert_array_equal(made[0], matrix * factors[:, None])
    np.testing.assert_array_equal(made[1], factors)


def test_rows_are_scaled_clipped_and_weighted_as_read(blocks):
    matrix, weights, right = heavy_tailed(17, 7), np.linspace(0, 2, 17), low_rank(7, 3, 3)
    expected = (np.clip(matrix / 4, -0.3, 0.3) * weights[:, None]) @ right
    rows = as_rows(matrix, 0.25, limit=jnp.asarray(0.3), row_factors=jnp.asarray(weights))
    np.testing.assert_allclose(multiply(rows, jnp.asarray(right)), expected, atol=1e-12)
    np.testing.assert_allclose(multiply(dataclasses.replace(rows, finite=jnp.zeros((), bool)), jnp.asarray(right)), 0)


def test_gram_and_triangle(blocks):
    matrix = heavy_tailed(17, 7)
    rows = as_rows(matrix, 0.5)
    triangle = np.asarray(triangle_of_rows(rows))
    np.testing.assert_allclose(gram_of_rows(rows), matrix.T @ matrix / 4, rtol=1e-12)
    np.testing.assert_allclose(triangle.T @ triangle, matrix.T @ matrix / 4, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(np.tril(triangle, -1), 0, atol=1e-15)


def test_small_singular_values_come_from_qr(blocks):
    """Twelve decades: the Gram matrix would lose the last six."""
    rng = np.random.default_rng(0)
    left, vectors = (np.linalg.qr(rng.normal(size=(n, 7)))[0] for n in (17, 7))
    values = np.logspace(0, -12, 7)
    computed, _ = right_singular(as_rows((left * values) @ vectors.T), 6)
    np.testing.assert_allclose(computed, values, rtol=1e-3)


# Without weights those that test_mapped.py cuts into blocks, and `admm_entries` below.
@pytest.mark.covering(0)
@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    ("name", "p"), [("svd", 1.5), ("lewis", 1.0), ("lowner", 1.0), ("irls_rows", 1.0), ("admm_entries", 1.5)]
)
def test_solvers_do_not_depend_on_blocks(monkeypatch, name, p, weighted):
    matrix = heavy_tailed(17, 7)
    weights = np.random.default_rng(1).uniform(0, 3, size=17) if weighted else None
    solutions = []
    for entries in (17 * 7, 40):
        forget_programs()
        monkeypatch.setattr(_rows, "_CPU_ENTRIES", entries)
        monkeypatch.setattr(_rows, "_ACCELERATOR_ENTRIES", entries)
        solutions.append(lpjax.SOLVERS[name](jnp.asarray(matrix), 3, p=p, row_weights=weights))
    forget_programs()
    whole, cut = solutions
    # Iterations may end a step apart.
    np.testing.assert_allclose(product(cut), product(whole), atol=1e-5 * np.abs(matrix).max())
    over = OBJECTIVE[name]
    assert cut.objective == pytest.approx(norm(matrix - product(cut), p, over, weights), rel=1e-10)


def test_objective_is_that_of_the_factors_when_blocks_overlap(monkeypatch):
    """17 rows in blocks of 5 and 6: the last one begins with rows whose factors have moved on already."""
    matrix = heavy_tailed(17, 7)
    forget_programs()
    monkeypatch.setattr(_rows, "_CPU_ENTRIES", 40)
    monkeypatch.setattr(_rows, "_ACCELERATOR_ENTRIES", 40)
    for count in (1, 2, 3, 5):
        solution = lpjax.admm_entries(jnp.asarray(matrix), 3, p=1.0, num_iters=count, tol=0.0, init="svd")
        assert solution.objective == pytest.approx(norm(matrix - product(solution), 1), rel=1e-12)
    forget_programs()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "copies"), [("svd", 1.6), ("lewis", 1.6), ("irls_rows", 1.8), ("admm_entries", 3.0)])
def test_peak_memory_in_copies_of_a_tall_matrix(name, copies):
    """What XLA sets aside, the matrix and the factors among it, branches that are not taken among it, too."""
    shape = jax.ShapeDtypeStruct((262_144, 64), jnp.float32)
    run = jax.jit(lambda matrix: lpjax.SOLVERS[name](matrix, 8, p=1.0))
    memory = run.lower(shape).compile().memory_analysis()
    assert memory is not None
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert total <= copies * 4 * shape.size
