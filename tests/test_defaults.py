"""Python, NNX and the command line do the same if nothing is asked for: one table, and every door held to it."""

from __future__ import annotations

import json
from typing import Any

import flax.nnx as nnx
import jax
import numpy as np
import pytest

import lpjax
import lpjax.flax
from lpjax._tree import leaves_with_paths
from lpjax.compression import load_plan
from lpjax.weighting import save_calibration
from lpjax.weighting.statistics import Calibration, Statistics

TABLE: dict[bool, tuple[str, float, float]] = {False: ("lewis", 1.0, 0.0), True: ("svd", 2.0, 0.2)}
"""Whether there is a calibration -> solver, p, and the share of single entries in an embedding."""

KEEP = 0.9  # at which even so small a table has room for entries


def statistics(n: int, d: int) -> Statistics:
    rng = np.random.default_rng(n)
    outputs = rng.normal(size=(2 * d, d)).astype(np.float32)
    inputs = rng.normal(size=(2 * n, n)).astype(np.float32)
    return Statistics(9, inputs.T @ inputs, outputs=outputs.T @ outputs, counts=np.arange(n, dtype=np.float32))


def calibration_of(params: Any, paths: list[str]) -> Calibration:
    leaves = dict(leaves_with_paths(params))
    return Calibration({path: statistics(*leaves[path].shape) for path in paths}, "embedding", 3, 9, 0)


def same(first: Any, other: Any) -> bool:
    a, b = jax.tree.leaves(first), jax.tree.leaves(other)
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("calibrated", [False, True])
def test_every_door_has_the_defaults_of_one_table(calibrated, command, folder, tmp_path):
    solver, p, share = TABLE[calibrated]
    params = lpjax.load_checkpoint(folder).params
    (path,) = lpjax.select_paths(params, "embeddings")
    calibration = calibration_of(params, [path]) if calibrated else None
    known: dict[str, Any] = {"statistics": calibration}

    # Python
    default = lpjax.compress(params, select="embeddings", keep=KEEP, **known)
    asked = lpjax.compress(params, select="embeddings", keep=KEEP, solver=solver, p=p, sparse_share=share, **known)
    assert same(default.params, asked.params)
    assert default.records[0].error_entries == asked.records[0].error_entries  # in the norm of that p
    assert bool(default.records[0].nnz) == bool(share)

    # `allocate`
    plan = lpjax.allocate(params, budget=0.9, select="embeddings", **known)
    assert {choice[1:4] for choice in plan.layers.values()} == {(solver, p, share)}
    assert plan.allocation == ("error" if calibrated else "uniform")

    # The command
    options = []
    if calibration is not None:
        save_calibration(calibration, tmp_path / "found.safetensors")
        options = ["--calibrate", tmp_path / "found.safetensors"]
    for number, goal in enumerate((["--keep", KEEP], ["--budget", 0.9, "--layers", "embeddings"])):
        file = tmp_path / f"plan{number}.json"
        status, output, errors = command(
            "compress", folder, tmp_path / f"out{number}", *goal, *options, "--plan-out", file, "--json"
        )
        assert status == 0, errors
        assert (json.loads(output)["method"], json.loads(output)["p"]) == (solver, p)
        made = load_plan(file)
        assert {choice[1:4] for choice in made.layers.values()} == {(solver, p, share)}
        assert list(made.layers) == [path]
    assert same(lpjax.load_checkpoint(tmp_path / "out0").params, default.params)

    # NNX, whose factored layers are pairs alone
    table = dict(leaves_with_paths(params))[path]

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.table = nnx.Embed(*table.shape, rngs=nnx.Rngs(0))
            self.table.embedding[...] = jax.numpy.asarray(table)

    model = Model()
    own = (
        {}
        if calibration is None
        else {"statistics": Calibration({"table/embedding": calibration.statistics[path]}, "", 3, 9, 0)}
    )
    lpjax.flax.compress_nnx(model, select="embedding$", keep=KEEP, **own)
    alone = lpjax.compress(params, select="embeddings", keep=KEEP, solver=solver, p=p, sparse_share=0.0, **known).params
    pair = dict(leaves_with_paths(alone))[path]
    factored: Any = model.table
    assert same((factored.left[...], factored.right[...]), (pair.left, pair.right))


def test_the_svd_is_the_solver_of_two(folder):
    params = lpjax.load_checkpoint(folder).params
    record = lpjax.compress(params, select="embeddings", keep=KEEP, solver="svd").records[0]
    assert record.error_entries == pytest.approx(record.error_rows, rel=1e-6)
