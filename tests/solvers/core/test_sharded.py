"""Rows over many devices and processes: the same answers as on one device, and little said between them."""

from __future__ import annotations

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lpjax
from benchmarks.traffic import SPREAD, compiled_text, traffic
from lpjax._mesh import fetch
from tests.helpers import heavy_tailed, low_rank, on_devices, outcome, start_on_devices, write_first

RANK = 5


def matrices() -> dict[str, np.ndarray]:
    """Matrices of 17 columns: tall, with fewer rows than columns on each of eight devices, deficient, zero and wide."""
    skewed = heavy_tailed(64, 17)
    skewed[:8] *= 1e6  # one device has all that is large
    return {
        "tall": skewed,
        "deficient": low_rank(64, 17, 3),
        "zero": np.zeros((64, 17)),
        "wide": heavy_tailed(8, 17, seed=2),
    }


def options(name: str, rows: int) -> dict[str, dict]:
    """Settings to solve a matrix with."""
    rng = np.random.default_rng(3)
    pair = (rng.normal(size=(rows, RANK)), np.linalg.qr(rng.normal(size=(17, RANK)))[0].T)
    settings: dict[str, dict] = {"p1": {"p": 1.0}, "weights": {"p": 1.5, "row_weights": rng.uniform(0, 2, rows)}}
    if name == "irls_rows":
        settings["metric"] = {"p": 1.5, "metric": np.cov(rng.normal(size=(12, 17)).T)}
    if name == "admm_entries":
        settings["init"] = {"p": 1.5, "init": pair}
    return {key: value | {"num_iters": 15} for key, value in settings.items()}


def answers(mesh: jax.sharding.Mesh | None, few: bool = False) -> dict[str, np.ndarray]:
    """What solves of all cases find, or of a few, with rows spread over all axes of `mesh`."""
    arrays = {}
    jax.config.update("jax_enable_x64", True)
    for name in SPREAD:
        for kind, matrix in matrices().items():
            for key, settings in options(name, len(matrix)).items():
                if (kind == "wide" and key != "p1") or (few and (kind, key) != ("tall", "weights")):
                    continue  # what is wide is solved whole, as on one device
                placed = (
                    jnp.asarray(matrix) if mesh is None else jax.device_put(matrix, NamedSharding(mesh, rows_of(mesh)))
                )
                solution = lpjax.SOLVERS[name](placed, RANK, **settings)
                if mesh is not None and mesh.size > 1 and kind != "wide":
                    assert not solution.left.sharding.is_fully_replicated
                left, right, weights = fetch(
                    (solution.left, solution.right, getattr(solution.ellipsoid, "weights", None))
                )
                case = f"{name}/{kind}/{key}"
                arrays[f"{case}/product"] = left @ right
                arrays[f"{case}/objective"] = np.asarray(solution.objective)
                arrays[f"{case}/lower_bound"] = np.asarray(solution.lower_bound)
                if name == "irls_rows":
                    known = {key: value for key, value in settings.items() if key != "num_iters"}
                    arrays[f"{case}/certified"] = np.asarray(lpjax.certify(placed, solution, **known).lower_bound)
                if weights is not None:
                    arrays[f"{case}/weights"] = weights
    jax.config.update("jax_enable_x64", False)
    return arrays


def rows_of(mesh: jax.sharding.Mesh) -> P:
    return P(mesh.axis_names, None)


def write_answers(target: str) -> None:
    """Write the solutions on a mesh of one axis over all devices."""
    arrays = answers(jax.make_mesh((jax.device_count(),), ("rows",)), few=jax.process_count() > 1)
    write_first(arrays, target)


def write_answers_of_two_axes(target: str) -> None:
    """Write the solutions on a mesh of two axes, neither of them explicit in types."""
    mesh = jax.make_mesh((4, 2), ("hosts", "chips"), axis_types=(AxisType.Auto,) * 2)
    write_first(answers(mesh, few=True), target)


@pytest.fixture(scope="module")
def one_device() -> dict[str, np.ndarray]:
    return answers(None)


def compare(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """To 1e-5 of the matrix, where x64 leaves nothing but rounding, which IRLS at p = 1 magnifies."""
    scales = {kind: np.abs(matrix).max() for kind, matrix in matrices().items()}
    for case in actual:
        scale = 1.0 if case.endswith("weights") else max(scales[case.split("/")[1]], 1.0)
        assert np.abs(actual[case] - expected[case]).max() <= 1e-5 * scale, case


@pytest.mark.slow
@pytest.mark.parametrize("function", ["write_answers", "write_answers_of_two_axes"])
def test_eight_devices_say_the_same_as_one(function, one_device, tmp_path):
    actual = on_devices(f"tests.solvers.core.test_sharded.{function}", tmp_path / "found.safetensors")
    assert function != "write_answers" or actual.keys() == one_device.keys()
    compare(actual, one_device)


@pytest.mark.slow
def test_a_mesh_of_one_device_is_no_different(one_device):
    """Its axes are explicit: an array tells them by its type, be it on one device."""
    compare(answers(jax.make_mesh((1,), ("rows",)), few=True), one_device)


def test_spread_columns_are_refused():
    matrix = jax.device_put(heavy_tailed(17, 7), NamedSharding(jax.make_mesh((1,), ("a",)), P(None, "a")))
    with pytest.raises(ValueError, match=r"`matrix` is sharded by .* expected sharded rows"):
        lpjax.svd(matrix.astype(np.float32), 2)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 4), pytest.param(4, 4, marks=pytest.mark.slow)])
def test_processes_say_the_same_as_one_device(processes, devices, one_device, tmp_path):
    target = tmp_path / "found.safetensors"
    compare(on_devices("tests.solvers.core.test_sharded.write_answers", target, devices, processes), one_device)


def write_traffic(target: str) -> None:
    """Bytes of the collectives of every solver, for two heights of a matrix."""
    mesh = jax.make_mesh((8,), ("rows",))
    volumes = {}
    for name in SPREAD:
        for height in (8000, 16000):
            counted = traffic(compiled_text(name, (height, 17), RANK, mesh))
            volumes[f"{name}/{height}"] = np.array([counted["once"], counted["per_iteration"]])
    write_first(volumes, target)


@pytest.mark.slow
def test_what_devices_say_does_not_depend_on_the_number_of_rows(tmp_path):
    volumes = on_devices("tests.solvers.core.test_sharded.write_traffic", tmp_path / "found.safetensors")
    for name in SPREAD:
        once, per_iteration = volumes[f"{name}/16000"]
        assert np.array_equal(volumes[f"{name}/8000"], [once, per_iteration])
        # A few matrices of d × d, including the QR of eight triangles. admm_entries chooses its start by a sample of
        # the rows: it sends more matrices, and a sample of 2¹⁶ entries for a median.
        chooses = name == "admm_entries"
        assert 0 < once <= 4 * (17 * 17 * (60 if chooses else 40) + (2**16 + 17 if chooses else 0))
        assert (per_iteration > 0) == (name != "svd")
        assert per_iteration <= 4 * (17 * 17 * (3 if chooses else 2) + 20)


def test_collectives_are_counted_in_loops_and_out_of_them():
    text = """HloModule m
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}
%inner (x: f32[2,3]) -> f32[2,3] {
  ROOT %r = f32[2,3]{1,0} all-reduce(%x), to_apply=%add
}
%loop (s: (f32[2,3])) -> (f32[2,3]) {
  %f = f32[2,3]{1,0} call(%s), to_apply=%inner
}
ENTRY %main (x: f32[2,3]) -> f32[2,3] {
  %g = (f64[4]{0}, pred[]) all-gather-start(%x), dimensions={0}
  ROOT %w = (f32[2,3]{1,0}) while(%x), condition=%cond, body=%loop
}
"""
    assert traffic(text) == {"once": 4 * 8 + 1, "per_iteration": 2 * 3 * 4}


def die_in_the_middle(target: str) -> None:
    """Solve again and again; the last process kills itself after the first time."""
    mesh = jax.make_mesh((jax.device_count(),), ("rows",))
    matrix = jax.device_put(heavy_tailed(64, 17).astype(np.float32), NamedSharding(mesh, rows_of(mesh)))
    for _ in range(100_000):
        jax.block_until_ready(lpjax.irls_rows(matrix, RANK))
        if jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_an_error(tmp_path):
    running = start_on_devices("tests.solvers.core.test_sharded.die_in_the_middle", tmp_path / "none", 2, 2)
    outputs = outcome(running, timeout=300)
    assert running[1].returncode == -signal.SIGKILL
    assert running[0].returncode not in (0, None), outputs[0]
