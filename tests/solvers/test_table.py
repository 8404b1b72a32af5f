"""The table of solvers: what it says holds, and a solver from outside is one more entry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
from lpjax.solvers import SOLVERS, Interval, Solver, solver_named
from tests.conftest import Command
from tests.helpers import heavy_tailed, low_rank


def by_columns(matrix, rank, *, p=1.0, row_weights=None, **_):
    """A toy: the first columns, and what combination of them is nearest to the others."""
    left = matrix[:, :rank]
    right = jnp.linalg.lstsq(left, matrix)[0]
    value = lpjax.lp_norm(matrix - left @ right, p)
    return lpjax.Solution(left, right, value, jnp.zeros((), jnp.int32), jnp.ones((), bool))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Solver:
    """A solver that the library does not know, in its table for one test."""
    entry = Solver(by_columns, p_range=Interval(0.5, 3), default_p=1.5)
    monkeypatch.setitem(SOLVERS, "toy", entry)
    return entry


def test_a_solver_from_outside_compresses(toy):
    kernel = low_rank(40, 30, 3).astype(np.float32)
    for solver in ("toy", toy, by_columns):
        params, records = lpjax.compress({"kernel": kernel}, select=".", rank=3, solver=solver)
        np.testing.assert_allclose(lpjax.densify(params["kernel"]), kernel, atol=1e-4)
        assert records[0].rank == 3


def test_a_solver_from_outside_is_a_choice_of_the_command(toy, folder: Path, tmp_path: Path, command: Command):
    options = ["--layers", "encoder", "--rank", 2, "--method", "toy"]
    status, printed, err = command("compress", folder, tmp_path / "out", *options, "--json")
    assert status == 0, err
    assert {layer["rank"] for layer in json.loads(printed)["layers"]} == {2}
    block = json.loads((tmp_path / "out" / "config.json").read_text())["lpjax"]
    assert (block["method"], block["p"]) == ("toy", 1.5)
    status, _, err = command("compress", folder, tmp_path / "other", *options, "--p", 4)
    assert status == 2
    assert "[0.5, 3]" in err


def test_intervals():
    ends = {True: (True, True), False: (False, False), "low": (True, False), "high": (False, True)}
    for closed, (low, high) in ends.items():
        interval = Interval(0.5, 3, closed)
        assert (0.5 in interval, 2 in interval, 3 in interval, 4 in interval) == (low, True, high, False)
        assert str(interval) == f"{'[' if low else '('}0.5, 3{']' if high else ')'}"
    assert str(Interval(0, np.inf, "high")) == "(0, inf]"


def test_a_name_or_a_function_finds_its_entry():
    assert solver_named("svd") is solver_named(lpjax.svd) is SOLVERS["svd"]
    assert solver_named(by_columns) == Solver(by_columns)
    with pytest.raises(ValueError, match="`solver` is 'lewi'; expected one of svd, lewis, "):
        solver_named("lewi")


@pytest.mark.parametrize("name", SOLVERS)
def test_ranges_are_what_solvers_take(name):
    matrix, interval = heavy_tailed(9, 5).astype(np.float32), SOLVERS[name].p_range
    least = interval.low if interval.low in interval else interval.low + 0.25
    assert interval.high == np.inf
    for p in (least, 2.5, interval.high, SOLVERS[name].default_p):
        assert p in interval
        assert np.isfinite(SOLVERS[name](matrix, 2, p=p, num_iters=3).objective)
    for p in (interval.low - 0.5, *[interval.low] * (least > interval.low), -interval.high, np.nan):
        assert p not in interval
        with pytest.raises(ValueError, match="`p` is"):
            SOLVERS[name](matrix, 2, p=p)


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if not solver.uses_p])
def test_factors_that_do_not_depend_on_p(name):
    first, second = (SOLVERS[name](heavy_tailed(9, 5), 2, p=p).right for p in (1.0, 2.0))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if solver.nested])
def test_smaller_ranks_are_the_first_part_of_larger_ones(name):
    large, small = (SOLVERS[name](heavy_tailed(9, 5), rank) for rank in (3, 2))
    np.testing.assert_allclose(large.left[:, :2], small.left, atol=1e-5)
    np.testing.assert_allclose(large.right[:2], small.right, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if solver.equivariant])
def test_turned_rows_give_turned_factors(name, x64):
    matrix, turn = heavy_tailed(17, 5), np.linalg.qr(heavy_tailed(5, 5, 1))[0]
    options = {"num_iters": 20, "tol": 1e-12}
    plain, turned = (SOLVERS[name](a, 2, p=1.0, **options) for a in (matrix, matrix @ turn))
    np.testing.assert_allclose(turned.left @ turned.right, plain.left @ plain.right @ turn, atol=1e-6)


def test_the_table_loads_no_jax():
    code = "import sys, lpjax.solvers; lpjax.solvers.SOLVERS; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
