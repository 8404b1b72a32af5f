"""What a GPU computes is what the CPU computes; skipped without a GPU.

`JAX_PLATFORMS=cuda,cpu python -m pytest -n 0 tests/test_gpu.py`: both platforms are needed, and one process.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax import models
from lpjax.compression import Choice, Plan
from lpjax.select import leaves_with_paths
from tests.conftest import GOLDENS
from tests.helpers import heavy_tailed, norm, product

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU")


def on(platform: str, tree: Any) -> Any:
    """The tree on the first device of a platform."""
    return jax.device_put(tree, jax.devices(platform)[0])


@pytest.mark.parametrize("shape", [(3000, 128), (128, 300)])
@pytest.mark.parametrize("name", ["svd", "lewis", "irls_rows", "admm_entries"])
def test_solvers(name, shape):
    matrix = heavy_tailed(*shape).astype(np.float32)
    solutions = {
        platform: lpjax.SOLVERS[name](on(platform, jnp.asarray(matrix)), 32, p=1.0) for platform in ("gpu", "cpu")
    }
    assert next(iter(solutions["gpu"].left.devices())).platform == "gpu"
    over = "rows" if name == "irls_rows" else "entries"
    errors = {platform: norm(matrix - product(solution), 1.0, over) for platform, solution in solutions.items()}
    # Two descents of a function that is not convex part by rounding.
    assert errors["gpu"] == pytest.approx(errors["cpu"], rel=1e-2 if name == "admm_entries" else 1e-4)
    assert float(solutions["gpu"].objective) == pytest.approx(errors["gpu"], rel=1e-4)


@pytest.mark.parametrize("name", ["lewis", "irls_rows", "admm_entries"])
def test_a_batch_is_each_alone(name):
    kernels = jnp.asarray(np.stack([heavy_tailed(200, 64, seed) for seed in range(5)]), jnp.float32)

    def solve(matrix: jax.Array) -> jax.Array:
        return lpjax.SOLVERS[name](matrix, 16, p=1.0, num_iters=8).objective

    assert np.allclose(jax.vmap(solve)(kernels), [solve(kernel) for kernel in kernels], rtol=1e-2)


def test_matrices_that_have_to_be_handled():
    nothing = lpjax.admm_entries(jnp.zeros((50, 20)), 3, p=1.0)
    assert float(nothing.objective) == 0
    huge = heavy_tailed(300, 40).astype(np.float32) * np.float32(1e18)
    assert np.isfinite(float(lpjax.irls_rows(jnp.asarray(huge), 5, p=1.0).objective))
    deficient = (np.ones((300, 1)) * np.arange(40)).astype(np.float32)
    assert float(lpjax.lewis(jnp.asarray(deficient), 5, p=1.0).objective) <= 1e-4 * np.abs(deficient).sum()


def test_compress_fills_the_gpu_with_matrices_of_a_shape():
    tree = {f"layer{i}": {"kernel": heavy_tailed(96, 64, i).astype(np.float32)} for i in range(7)}
    whole = lpjax.compress(tree, select="kernel", keep=0.5, solver="lewis", p=1.0)
    single = lpjax.compress(tree, select="kernel", keep=0.5, solver="lewis", p=1.0, batch_size=1)
    assert [r.error_entries for r in whole.records] == pytest.approx(
        [r.error_entries for r in single.records], rel=1e-3
    )


KINDS = {
    "factors": {"select": "encoder", "keep": 0.5, "solver": "svd"},
    "4 bits": Choice(None, bits=4, group=32),
    "a step": Choice(None, step=0.3),
}


def smaller(params: dict[str, Any], kind: str) -> dict[str, Any]:
    """The model, made smaller on the default device."""
    how = KINDS[kind]
    if isinstance(how, dict):
        return lpjax.compress(params, **how).params
    matrices = lpjax.select_paths(params, ["encoder", "embeddings"])
    return lpjax.compress(params, Plan(dict.fromkeys(matrices, how))).params


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_rounding(kind):
    params = lpjax.load_checkpoint(GOLDENS / "bert_classifier").params
    on_gpu = smaller(params, kind)
    with jax.default_device(jax.devices("cpu")[0]):
        on_cpu = smaller(params, kind)
    for path in lpjax.select_paths(params, ["encoder", "embeddings"]):
        gpu, cpu = (np.asarray(lpjax.densify(dict(leaves_with_paths(tree))[path])) for tree in (on_gpu, on_cpu))
        # Codes between two values may part by rounding.
        assert np.mean(~np.isclose(gpu, cpu, atol=1e-4 * np.abs(cpu).max())) < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", ["bert", "distilbert", "roberta", "xlnet", "modernbert", "albert", "mpnet", "electra"])
def test_nets(net, kind):
    checkpoint = lpjax.load_checkpoint(GOLDENS / f"{net}_classifier")
    small = smaller(checkpoint.params, kind)
    ids = 5 + np.arange(24, dtype=np.int32).reshape(4, 6)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for params in (checkpoint.params, small):
        logits = [
            np.asarray(models.classify(on(platform, params), checkpoint.config, on(platform, batch)))
            for platform in ("gpu", "cpu")
        ]
        assert np.allclose(*logits, atol=1e-4)  # float32 is float32 on a GPU too
