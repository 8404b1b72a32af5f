"""StableHLO: a process with JAX alone runs it, at any batch size and length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import lpjax
from lpjax.export import program_of
from tests.helpers.nets import base_net
from tests.helpers.programs import FORWARD, KINDS, case_of, counted

ALONE = """
import sys
import jax
import numpy as np
from safetensors.numpy import load_file

folder, batch, out = sys.argv[1:]
program = jax.export.deserialize(open(f"{folder}/program.bin", "rb").read())
outputs = program.call(load_file(f"{folder}/weights.safetensors"), load_file(batch))
assert not any(name.split(".")[0] in ("lpjax", "transformers", "torch") for name in sys.modules)
np.save(out, outputs[0])
"""


@pytest.mark.two_models
@pytest.mark.covering(1)
@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_lpjax(name: str, kind: str, tmp_path: Path):
    golden, net, expected = case_of(name, kind)
    size = lpjax.export_program(net, tmp_path / "out", "stablehlo")
    assert b".py" not in (tmp_path / "out" / "stablehlo" / "program.bin").read_bytes()  # nor paths of this machine
    folder = tmp_path / "out" / "stablehlo"
    assert size == sum(path.stat().st_size for path in folder.iterdir())
    program = jax.export.deserialize(bytearray((folder / "program.bin").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    weights = load_file(folder / "weights.safetensors")
    inputs = {key: np.asarray(golden.batch[key], np.int32) for key in program_of(net).inputs if key in golden.batch}
    (actual,) = program.call(weights, inputs)
    np.testing.assert_allclose(
        counted(golden, np.asarray(actual)), counted(golden, expected), atol=1e-5 * float(np.abs(expected).max())
    )


def test_it_asks_for_all_of_float32_and_refuses_what_is_too_long(tmp_path: Path):
    net = base_net("bert_base")
    lpjax.export_program(net, tmp_path / "out", "stablehlo")
    folder = tmp_path / "out" / "stablehlo"
    program = jax.export.deserialize(bytearray((folder / "program.bin").read_bytes()))
    products = [line for line in program.mlir_module().splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all(line.count("HIGHEST") == 2 for line in products)
    weights = load_file(folder / "weights.safetensors")
    long = np.ones((1, (net.config.max_length or 0) + 1), np.int32)
    with pytest.raises(ValueError, match="refining shapes"):
        program.call(weights, {"input_ids": long, "attention_mask": long, "token_type_ids": 0 * long})


def test_a_process_without_lpjax_runs_it(tmp_path: Path):
    from safetensors.numpy import save_file

    golden, net, expected = case_of("bert_base", "8 bits")
    lpjax.export_program(net, tmp_path / "out", "stablehlo")
    inputs = {key: np.asarray(golden.batch[key], np.int32) for key in program_of(net).inputs}
    save_file(inputs, tmp_path / "batch.safetensors")
    command = [sys.executable, "-c", ALONE, tmp_path / "out" / "stablehlo", tmp_path / "batch.safetensors"]
    done = subprocess.run([*command, tmp_path / "found.npy"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        counted(golden, np.load(tmp_path / "found.npy")), counted(golden, expected), atol=1e-5 * np.abs(expected).max()
    )
