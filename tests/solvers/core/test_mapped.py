"""Matrices that stay in their file: the answer for the same matrix in memory, without the memory."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax.solvers._core import mapped as _mapped
from lpjax.solvers._core import rows as _rows
from tests.helpers import SOLVERS, heavy_tailed, product, subspace_distance, truncated_svd
from tests.helpers.fresh import forget_programs

pytestmark = pytest.mark.covering(1)

FROM_FILE = ["svd", "lewis", "irls_rows"]


@pytest.fixture
def saved(tmp_path):
    """A function that saves a matrix and opens it memory-mapped."""

    def save(matrix: np.ndarray) -> np.memmap:
        np.save(tmp_path / "matrix.npy", matrix)
        return np.load(tmp_path / "matrix.npy", mmap_mode="r")

    return save


@pytest.fixture(params=[1, 3, 10])
def blocks(request, monkeypatch):
    """Cut 170 × 7 into that many blocks; 3 does not divide 170."""
    forget_programs()
    for name in ("_CPU_ENTRIES", "_ACCELERATOR_ENTRIES"):
        monkeypatch.setattr(_rows, name, -(-170 * 7 // request.param))
    monkeypatch.setattr(_mapped, "_CHECKED_ENTRIES", 40)
    yield
    forget_programs()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["plain", "weighted", "metric"])
@pytest.mark.parametrize("name", FROM_FILE)
def test_same_as_in_memory(saved, blocks, dtype, name, what):
    matrix = heavy_tailed(170, 7).astype(dtype)
    options = {
        "plain": {},
        "weighted": {"row_weights": np.linspace(0, 2, 170)},
        "metric": {"metric": np.cov(matrix[:40].T.astype(np.float64))},
    }[what]
    if (name, what) == ("lewis", "metric"):
        pytest.skip("lewis takes no metric")
    inside = lpjax.SOLVERS[name](jnp.asarray(matrix), 3, p=1.3, **options)
    mapped = lpjax.SOLVERS[name](saved(matrix), 3, p=1.3, **options)
    assert mapped.left.dtype == inside.left.dtype
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(product(mapped), product(inside), atol=tolerance * np.abs(matrix).max())
    assert mapped.objective == pytest.approx(float(inside.objective), rel=tolerance)
    assert mapped.num_iters == inside.num_iters


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_every_solver_takes_a_mapped_matrix(saved, name, shape):
    matrix = heavy_tailed(*shape).astype(np.float32)
    mapped, inside = (lpjax.SOLVERS[name](a, 3, p=1.5) for a in (saved(matrix), jnp.asarray(matrix)))
    np.testing.assert_allclose(product(mapped), product(inside), atol=1e-5 * np.abs(matrix).max())


@pytest.mark.parametrize("stored", ["float16", "float64", "columns first"])
def test_what_the_file_holds_is_cast_block_by_block(saved, blocks, stored):
    matrix = heavy_tailed(170, 7).astype("float16" if stored == "float16" else "float32")
    kept = matrix.astype("float64") if stored == "float64" else matrix
    kept = np.asfortranarray(kept) if stored == "columns first" else kept
    mapped = lpjax.irls_rows(saved(kept), 3, p=1.0)
    inside = lpjax.irls_rows(jnp.asarray(matrix, jnp.float32), 3, p=1.0)
    assert mapped.left.dtype == jnp.float32
    np.testing.assert_allclose(product(mapped), product(inside), atol=1e-5 * float(np.abs(matrix).max()))


def test_two_files_of_one_shape_share_a_program(tmp_path):
    """And neither reads the other's rows."""
    matrices = [heavy_tailed(50, 5, seed).astype(np.float32) for seed in (0, 1)]
    files = []
    for number, matrix in enumerate(matrices):
        np.save(tmp_path / f"{number}.npy", matrix)
        files.append(np.load(tmp_path / f"{number}.npy", mmap_mode="r"))
    first = lpjax.svd(files[0], 2)
    with jax.no_tracing():
        second = lpjax.svd(files[1], 2)
    for matrix, solution in zip(matrices, (first, second), strict=True):
        np.testing.assert_allclose(product(solution), truncated_svd(matrix, 2), atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", FROM_FILE)
def test_bad_entries_are_refused(saved, blocks, name, bad):
    matrix = heavy_tailed(170, 7).astype(np.float32)
    matrix[160, 2] = bad
    with pytest.raises(ValueError, match="`matrix` holds NaN or infinite"):
        lpjax.SOLVERS[name](saved(matrix), 3)


@pytest.mark.parametrize("name", FROM_FILE)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_scales(saved, name, scale):
    matrix = (heavy_tailed(60, 6) * scale).astype(np.float32)
    mapped, inside = (lpjax.SOLVERS[name](a, 2, p=1.2) for a in (saved(matrix), jnp.asarray(matrix)))
    assert bool(jnp.isfinite(mapped.objective))
    np.testing.assert_allclose(product(mapped), product(inside), atol=1e-5 * float(np.abs(matrix).max()))


def test_whole_numbers_are_read_as_floating_ones(saved):
    whole = np.arange(27).reshape(9, 3) % 5
    solution = lpjax.svd(saved(whole), 1)
    assert np.allclose(product(solution), truncated_svd(whole, 1), atol=1e-5)


_LIMITED = """
import resource, sys
import numpy as np
import lpjax

matrix = np.load(sys.argv[1], mmap_mode="r")
name, rank = sys.argv[2], int(sys.argv[3])
lpjax.SOLVERS[name](np.asarray(matrix[:500]), rank)  # threads and libraries take what they need before
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + matrix.nbytes // 2,) * 2)
try:
    np.array(matrix)
except MemoryError:
    print("does not fit")
solution = lpjax.SOLVERS[name](matrix, rank)
np.save(sys.argv[4], solution.right)
"""


@pytest.mark.covering(0)
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are told by Linux")
@pytest.mark.parametrize("name", FROM_FILE)
def test_a_matrix_larger_than_memory(tmp_path, name):
    """384 MiB, in a process that may take half of that; a planted subspace must come out.

    The matrix is wide enough for all that a solver keeps a row of, weights and `left`, to be a small part of it.
    """
    n, d, rank = 393_216, 256, 4
    rng = np.random.default_rng(0)
    right = np.linalg.qr(rng.normal(size=(d, rank)))[0].T
    matrix = np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.float32, (n, d))
    for start in range(0, n, n // 16):
        left = rng.normal(size=(n // 16, rank))
        matrix[start : start + n // 16] = left @ right + 0.01 * rng.normal(size=(n // 16, d))
    matrix.flush()
    out = tmp_path / "right.npy"
    command = [sys.executable, "-c", _LIMITED, str(tmp_path / "large.npy"), name, str(rank), str(out)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "does not fit\n"
    assert subspace_distance(np.load(out), right) < 1e-3
