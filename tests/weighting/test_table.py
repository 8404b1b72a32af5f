"""The table of weightings: one line adds one, for Python and the command line."""

from __future__ import annotations

import jax
import numpy as np

import lpjax
from lpjax.weighting import save_calibration


def test_a_weighting_from_outside_is_one_line(command, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(lpjax.WEIGHTINGS, "toy", lpjax.Weighting(inputs_power=0.5, outputs="none", tokens="none"))
    checkpoint = lpjax.load_checkpoint(folder)
    statistics = lpjax.calibrate(checkpoint, ["a b c", "d e f g", "h i j a"], select="attention")
    toy = lpjax.compress(checkpoint.params, select="attention", keep=0.6, statistics=statistics, weighting="toy")
    plain = lpjax.compress(checkpoint.params, select="attention", keep=0.6, statistics=statistics, weighting="none")
    assert all(record.error_weighted is not None for record in toy.records)
    assert any(
        not np.allclose(leaf, other, atol=1e-4)
        for leaf, other in zip(jax.tree.leaves(toy.params), jax.tree.leaves(plain.params), strict=True)
    )

    save_calibration(statistics, tmp_path / "known.safetensors")
    options = ["--layers", "attention", "--keep", 0.6, "--calibrate", tmp_path / "known.safetensors"]
    plan = tmp_path / "plan.json"
    status, _, errors = command(
        "compress", folder, tmp_path / "out", *options, "--weighting", "toy", "--plan-out", plan
    )
    assert status == 0, errors
    assert lpjax.load_plan(plan).weighting == "toy"
    for leaf, other in zip(
        jax.tree.leaves(lpjax.load_checkpoint(tmp_path / "out").params), jax.tree.leaves(toy.params), strict=True
    ):
        assert np.array_equal(leaf, other)
    status, _, errors = command("compress", folder, tmp_path / "no", *options, "--weighting", "ty")
    assert (status, "did you mean toy?" in " ".join(errors.replace("│", " ").split())) == (2, True)
