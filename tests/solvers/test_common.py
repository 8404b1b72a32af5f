"""What holds for every solver."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from tests.helpers import ITERATIVE, OBJECTIVE, SOLVERS, heavy_tailed, low_rank, norm, product, truncated_svd

# The two for small matrices, which have tests of their own beside these, are slow.
_NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in ("lowner", "irls_entries"))) for name in SOLVERS]
pytestmark = [pytest.mark.parametrize("name", _NAMES), pytest.mark.covering(1)]


def solve(name: str, matrix, rank: int, **options):
    """Run a solver on a NumPy or JAX matrix."""
    return lpjax.SOLVERS[name](jnp.asarray(matrix), rank, **options)


@pytest.mark.parametrize(("shape", "rank"), [((17, 7), 3), ((7, 17), 3), ((7, 7), 7)])
@pytest.mark.parametrize("weighted", [False, True])
def test_p2_is_the_truncated_svd(name, dtype, shape, rank, weighted):
    matrix = heavy_tailed(*shape).astype(dtype)
    weights = np.random.default_rng(1).uniform(0, 3, size=shape[0]).astype(dtype) if weighted else None
    solution = solve(name, matrix, rank, p=2.0, row_weights=weights)
    root = np.sqrt(np.ones(shape[0]) if weights is None else weights.astype(np.float64))[:, None]
    expected = np.linalg.norm(root * matrix - truncated_svd(root * matrix, rank))
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    floor = tolerance * float(np.linalg.norm(matrix))  # at full rank the residual is rounding
    assert solution.objective == pytest.approx(expected, rel=tolerance, abs=floor)
    assert norm(matrix - product(solution), 2, weights=weights) == pytest.approx(expected, rel=tolerance, abs=floor)
    assert solution.converged


def test_p2_tells_a_tail_far_below_the_largest_singular_value(name, dtype):
    """Singular values over five (twelve) decades: squared, the tail would drown in rounding."""
    rng = np.random.default_rng(3)
    left, right = (np.linalg.qr(rng.normal(size=(n, 7)))[0] for n in (17, 7))
    decades = 5 if dtype == "float32" else 12
    values = np.logspace(0, -decades, 7)
    matrix = ((left * values) @ right.T).astype(dtype)
    solution = solve(name, matrix, 3, p=2.0)
    expected = np.linalg.norm(matrix - truncated_svd(matrix, 3))
    assert norm(matrix - product(solution), 2) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("p", [1.0, 1.3])
def test_objective_is_that_of_the_factors(name, dtype, p):
    matrix = heavy_tailed(17, 7).astype(dtype)
    weights = np.random.default_rng(2).uniform(0, 2, size=17).astype(dtype)
    solution = solve(name, matrix, 3, p=p, row_weights=weights)
    assert solution.left.shape == (17, 3)
    assert solution.right.shape == (3, 7)
    assert solution.left.dtype == solution.right.dtype == solution.objective.dtype == jnp.dtype(dtype)
    expected = norm(matrix - product(solution), p, OBJECTIVE[name], weights)
    assert solution.objective == pytest.approx(expected, rel=1e-4 if dtype == "float32" else 1e-10)


@pytest.mark.parametrize("p", [1.0, 1.5])
def test_full_rank_is_lossless(name, p):
    for shape in ((17, 7), (7, 17)):
        matrix = heavy_tailed(*shape).astype(np.float32)
        assert np.allclose(product(solve(name, matrix, 7, p=p)), matrix, atol=2e-5 * np.abs(matrix).max())


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("shape", [(17, 7), (7, 17)])
def test_rank_deficient_matrices_are_recovered(name, dtype, p, shape):
    matrix = low_rank(*shape, rank=2).astype(dtype)
    solution = solve(name, matrix, 3, p=p)
    error = np.abs(product(solution) - matrix).max() / np.abs(matrix).max()
    assert error < (1e-12 if dtype == "float64" else 1e-5)
    assert np.all(np.isfinite(solution.left))
    assert np.all(np.isfinite(solution.right))


@pytest.mark.parametrize("p", [1.0, 1.5])
def test_zero_and_single_row_matrices(name, p):
    zero = solve(name, np.zeros((17, 7), np.float32), 3, p=p)
    assert zero.objective == 0
    assert zero.converged
    assert np.all(product(zero) == 0)
    row = heavy_tailed(1, 5).astype(np.float32)
    assert np.allclose(product(solve(name, row, 1, p=p)), row, atol=1e-6 * np.abs(row).max())
    column = row.T
    assert np.allclose(product(solve(name, column, 1, p=p)), column, atol=1e-6 * np.abs(row).max())


def test_zero_rows_zero_columns_and_equal_rows(name):
    matrix = heavy_tailed(17, 7).astype(np.float32)
    matrix[3:8] = 0
    matrix[:, 2] = 0
    matrix[10:] = matrix[10]
    solution = solve(name, matrix, 3, p=1.0)
    approximation = product(solution)
    assert np.all(np.isfinite(approximation))
    assert np.abs(approximation[:, 2]).max() <= 1e-5 * np.abs(matrix).max()
    over = OBJECTIVE[name]
    assert norm(matrix - approximation, 1, over) <= norm(matrix, 1, over)


@pytest.mark.parametrize("scale", [1e-18, 1e18])
@pytest.mark.parametrize("p", [1.0, 1.5])
def test_scale(name, scale, p):
    """The objective scales with the matrix, by powers of two exactly."""
    matrix = heavy_tailed(17, 7).astype(np.float32)
    exponent = np.float32(2.0 ** round(np.log2(scale)))
    plain = solve(name, matrix, 3, p=p)
    scaled = solve(name, matrix * exponent, 3, p=p)
    assert scaled.objective == pytest.approx(float(plain.objective) * float(exponent), rel=1e-6)
    assert np.allclose(product(scaled), product(plain) * float(exponent), rtol=1e-5, atol=1e-6 * float(exponent))


def test_row_weights_scale_and_zero_weights(name):
    """ω and 1e12·ω give the same factors; a row of weight 0 has no say in `right`."""
    matrix = heavy_tailed(17, 7).astype(np.float32)
    weights = np.random.default_rng(4).uniform(0.5, 2, 17).astype(np.float32)
    weights[5] = 0
    limit = 1000 if name == "lowner" else 5  # whose limit is static
    first = solve(name, matrix, 3, p=1.3, row_weights=weights, num_iters=limit)
    second = solve(name, matrix, 3, p=1.3, row_weights=weights * 2.0**40, num_iters=limit)
    assert np.allclose(product(first), product(second), rtol=1e-4, atol=1e-5 * np.abs(matrix).max())
    changed = matrix.copy()
    changed[5] = -3 * changed[5] + 1
    third = solve(name, changed, 3, p=1.3, row_weights=weights, num_iters=limit)
    span = np.asarray(first.right.T @ first.right)
    assert np.allclose(span, np.asarray(third.right.T @ third.right), atol=2e-3)


def test_row_weights_that_are_constants_of_a_jit(name):
    """Their values are known there, and what is wrong with them is told."""
    matrix = jnp.asarray(heavy_tailed(17, 7).astype(np.float32))
    weights = jnp.linspace(0, 2, 17, dtype=jnp.float32)

    def run(matrix, weights):
        return jax.jit(lambda matrix: solve(name, matrix, 3, p=1.5, num_iters=5, row_weights=weights).objective)(matrix)

    eager = solve(name, matrix, 3, p=1.5, num_iters=5, row_weights=weights).objective
    assert run(matrix, weights) == pytest.approx(float(eager), rel=1e-4)
    with pytest.raises(ValueError, match="`row_weights` has a negative entry"):
        run(matrix, -weights)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_row_weights_that_are_not_finite_inside_a_jit(name, bad):
    """Nothing can be raised there: the objective tells."""
    weights = jnp.ones(17, jnp.float32).at[3].set(bad)
    run = jax.jit(lambda matrix, weights: solve(name, matrix, 3, p=1.5, num_iters=5, row_weights=weights))
    solution = run(heavy_tailed(17, 7).astype(np.float32), weights)
    assert solution.objective == np.inf
    assert not solution.converged
    assert np.all(np.asarray(solution.left) == 0)


def test_rows_of_right_are_orthonormal(name):
    solution = solve(name, heavy_tailed(17, 7).astype(np.float32), 3, p=1.0)
    assert np.allclose(solution.right @ solution.right.T, np.eye(3), atol=1e-5)


def test_jit_vmap_and_eager_agree(name, x64):
    stack = np.stack([heavy_tailed(17, 7, seed) for seed in range(3)])
    stack[1] = low_rank(17, 7, 2)
    run = functools.partial(lpjax.SOLVERS[name], rank=3, p=1.0, num_iters=10)
    loop = [run(jnp.asarray(matrix)) for matrix in stack]
    mapped = jax.vmap(run)(jnp.asarray(stack))
    compiled = jax.jit(run)
    jitted = [compiled(jnp.asarray(matrix)) for matrix in stack]
    for i, solution in enumerate(loop):
        batched = jax.tree.map(lambda x, i=i: x[i], mapped)
        for other in (jitted[i], batched):
            assert np.allclose(product(solution), product(other), atol=1e-9 * np.abs(stack[i]).max())
            assert solution.objective == pytest.approx(float(other.objective), abs=1e-9 * np.abs(stack[i]).max())


def test_compiles_once_a_shape(name):
    """Values, p, tolerance and iteration limit may change; a rank or a shape that changes compiles anew."""
    core = getattr(__import__(f"lpjax.solvers._{name}", fromlist=[name]), f"_{name}")
    core.clear_cache()
    solve(name, heavy_tailed(17, 7).astype(np.float32), 3, p=1.0)
    compiled = core._cache_size()
    for seed, p in ((1, 1.2), (2, 2.0)):
        solve(name, heavy_tailed(17, 7, seed).astype(np.float32), 3, p=p, tol=10.0 ** -(seed + 2))
    assert core._cache_size() == compiled
    solve(name, heavy_tailed(17, 7).astype(np.float32), 2, p=1.0)
    assert core._cache_size() == compiled + 1


def test_p_may_be_traced(name):
    matrix = jnp.asarray(heavy_tailed(17, 7).astype(np.float32))
    run = jax.jit(lambda p: lpjax.SOLVERS[name](matrix, 3, p=p).objective)
    for p in (1.0, 1.5, 2.0):
        assert run(p) == pytest.approx(float(solve(name, matrix, 3, p=p).objective), rel=2e-3)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_is_solved_in_float32(name, half):
    matrix = jnp.asarray(heavy_tailed(17, 7), jnp.float32).astype(half)
    solution = solve(name, matrix, 3, p=1.0)
    assert solution.left.dtype == jnp.float32
    assert np.allclose(product(solution), product(solve(name, matrix.astype(jnp.float32), 3, p=1.0)))


@pytest.mark.parametrize(
    ("matrix", "rank", "options", "words"),
    [
        (np.ones(5, np.float32), 1, {}, "`matrix` has shape (5,)"),
        (np.ones((2, 3, 4), np.float32), 1, {}, "`matrix` has shape (2, 3, 4)"),
        (np.ones((0, 4), np.float32), 1, {}, "`matrix` has shape (0, 4)"),
        (np.ones((5, 4), np.complex64), 1, {}, "`matrix` has dtype complex64"),
        (np.full((5, 4), np.nan, np.float32), 1, {}, "`matrix` holds NaN"),
        (np.full((5, 4), np.inf, np.float32), 1, {}, "`matrix` holds NaN or infinite"),
        (np.ones((5, 4), np.float32), 0, {}, "`rank` is 0"),
        (np.ones((5, 4), np.float32), 5, {}, "`rank` is 5"),
        (np.ones((5, 4), np.float32), 2.0, {}, "`rank` is 2.0"),
        (np.ones((5, 4), np.float32), 2, {"p": float("nan")}, "`p` is nan"),
        (np.ones((5, 4), np.float32), 2, {"p": -1.0}, "`p` is -1.0"),
        (np.ones((5, 4), np.float32), 2, {"p": 0.0}, "`p` is 0.0"),
        (np.ones((5, 4), np.float32), 2, {"tol": -1.0}, "`tol` is -1.0"),
        (np.ones((5, 4), np.float32), 2, {"num_iters": -1}, "`num_iters` is -1"),
        (
            np.ones((5, 4), np.float32),
            2,
            {"row_weights": np.ones(4, np.float32)},
            "`row_weights` has shape (4,)",
        ),
        (
            np.ones((5, 4), np.float32),
            2,
            {"row_weights": -np.ones(5, np.float32)},
            "`row_weights` has a negative",
        ),
        (np.ones((5, 4), np.float32), 2, {"row_weights": np.zeros(5, np.float32)}, "only zeros"),
    ],
)
def test_misuse_is_refused_before_any_work(name, matrix, rank, options, words):
    with pytest.raises(ValueError) as caught:
        lpjax.SOLVERS[name](matrix, rank, **options)
    assert words in str(caught.value)


def test_p_below_one(name):
    matrix = heavy_tailed(17, 7).astype(np.float32)
    if 0.5 in SOLVERS[name].p_range:
        assert np.isfinite(solve(name, matrix, 3, p=0.5).objective)
    else:
        with pytest.raises(ValueError, match=r"expected a number in \[1, inf\]"):
            solve(name, matrix, 3, p=0.5)


def test_p_whose_norms_overflow_is_refused(name):
    """lewis goes below 1, but not so far that (nd)^{1/p} overflows the dtype."""
    with pytest.raises(ValueError, match=r"`p` is 0\.01; expected"):
        solve(name, heavy_tailed(17, 7).astype(np.float32), 3, p=0.01)
    if name == "lewis":
        solution = solve(name, heavy_tailed(300, 7).astype(np.float32), 3, p=0.12)
        assert np.all(np.isfinite(product(solution)))
        assert np.isfinite(solution.objective)


def test_not_finite_inside_jit_is_data(name):
    """Nothing can be raised under jit: the objective is infinite, the factors zero, and never a NaN."""
    matrix = heavy_tailed(17, 7).astype(np.float32)
    matrix[2, 1] = np.nan
    solution = jax.jit(lambda a: lpjax.SOLVERS[name](a, 3, p=1.0))(matrix)
    assert np.isinf(solution.objective)
    assert not solution.converged
    assert np.all(np.asarray(solution.left) == 0)
    assert np.all(np.asarray(solution.right) == 0)


@pytest.mark.parametrize("p", [1.0, 1.4])
def test_never_worse_than_the_start_and_monotone(name, p, x64):
    if name not in ITERATIVE:
        pytest.skip("no start to compare with")
    over = OBJECTIVE[name]
    matrix = jnp.asarray(heavy_tailed(17, 7))
    plan = {"schedule": 30} if name == "admm_entries" else {}  # without it, each limit has a schedule of its own
    starts = {init: solve(init, matrix, 3, p=p, over=over).objective for init in ("svd", "lewis")}
    for init in ("svd", "lewis"):
        values = [
            float(solve(name, matrix, 3, p=p, init=init, num_iters=i, tol=0.0, **plan).objective) for i in range(12)
        ]
        # A start needs only one map of the Lewis iteration, so it may differ a little from `lewis`.
        assert values[0] == pytest.approx(float(starts[init]), rel=1e-9 if init == "svd" else 5e-2)
        assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(values))
        assert values[-1] < values[0] * 0.999
    best = solve(name, matrix, 3, p=p, num_iters=0).objective
    assert best <= starts["svd"] * (1 + 1e-12)
    # From an arbitrary pair, and from its own result.
    rng = np.random.default_rng(5)
    pair = (jnp.asarray(rng.normal(size=(17, 3))), jnp.asarray(rng.normal(size=(3, 7))))
    assert solve(name, matrix, 3, p=p, init=pair).objective <= norm(matrix - pair[0] @ pair[1], p, over)
    first = solve(name, matrix, 3, p=p)
    again = solve(name, matrix, 3, p=p, init=first)
    assert again.objective <= first.objective * (1 + 1e-12)


def test_bad_starts(name):
    matrix = heavy_tailed(9, 4).astype(np.float32)
    if name not in ITERATIVE:
        pytest.skip("takes no start")
    for init in ("spectral", 3, (matrix[:, :2], matrix[:3])):
        with pytest.raises(ValueError, match="`init`"):
            solve(name, matrix, 2, init=init)
