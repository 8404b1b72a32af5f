"""Peak memory of encoding, dense and compressed: `python -m benchmarks.encode_memory`.

all-MiniLM-L6-v2 dense, with half of its parameters in pairs, in 8 and in 4 bits, and at a tenth of its bytes. Each net
is loaded and encodes 32 texts of 64 tokens in a process of its own, whose programs were compiled before. Peaks of both
are high-water marks of the process beyond what it held before loading (Linux), so pages of the mapped file that were
read count. Writes benchmarks/results/encode_memory.json; `python -m experiments.readme` makes the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lpjax
from benchmarks.solvers import resident, restart_peak
from examples.sizes import rounding_plan
from experiments.readme import encode_memory_table
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.checkpoint.source import ALIAS, find_model
from lpjax.models import device_params

RESULTS = Path(__file__).parent / "results" / "encode_memory.json"
SEED = 0
BATCH, LENGTH = 32, 64


def peak(folder: str) -> None:
    """Print the bytes of the weights on the device, and the peaks of loading and of encoding."""
    ids = np.random.default_rng(SEED).integers(1000, 30000, (BATCH, LENGTH), dtype=np.int32)
    jax.block_until_ready(jnp.asarray(ids) + 1)  # JAX has started
    before = resident("VmRSS")
    restart_peak()
    checkpoint = lpjax.load_checkpoint(folder)
    config, params = checkpoint.config, jax.block_until_ready(device_params(checkpoint.params))
    del checkpoint
    loading = resident("VmHWM") - before
    restart_peak()
    jax.block_until_ready(lpjax.encode(params, config, {"input_ids": jnp.asarray(ids)}))
    encoding = resident("VmHWM") - before
    print(sum(leaf.nbytes for leaf in jax.tree.leaves(params)), loading, encoding)


def nets(params: Any) -> dict[str, Callable[[], Any]]:
    """How each net is made."""
    pairs = lpjax.uniform_plan(params, select=["encoder", "embeddings"], keep=0.5, solver="svd")
    return {
        "dense": lambda: params,
        "half of the parameters": lambda: lpjax.compress(params, pairs).params,
        "8 bits, a scale a row": lambda: lpjax.compress(params, rounding_plan(params, 8, None)).params,
        "4 bits, groups of 32": lambda: lpjax.compress(params, rounding_plan(params, 4, 32)).params,
        "a tenth of the bytes": lambda: lpjax.compress(params, lpjax.plan_for_size(params, 0.1)).params,
    }


def measure(name: str, params: Any, dense: lpjax.Checkpoint) -> dict[str, Any]:
    """One net: bytes of its file, of its weights in memory, and the peak."""
    with tempfile.TemporaryDirectory() as out:
        size = lpjax.save_checkpoint(dataclasses.replace(dense, params=params), Path(out) / "net")
        command = [sys.executable, "-m", "benchmarks.encode_memory", "--folder", str(Path(out) / "net")]
        cached = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(Path(out) / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        runs = [subprocess.run(command, check=True, capture_output=True, text=True, env=cached) for _ in range(2)]
        held, loading, encoding = map(int, runs[1].stdout.split())  # the first one compiles
    return {"net": name, "file": size, "weights": held, "loading": loading, "encoding": encoding}


def main() -> None:
    """Measure all nets, write the record, print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", help=argparse.SUPPRESS)
    folder = arguments.parse_args().folder
    if folder is not None:
        peak(folder)
        return
    dense = lpjax.load_checkpoint(find_model(ALIAS))
    rows = [measure(name, make(), dense) for name, make in nets(dense.params).items()]
    record = {"batch": BATCH, "length": LENGTH, **run_record(SEED), "rows": rows}
    write_json(RESULTS, record)
    print(encode_memory_table(record))


if __name__ == "__main__":
    main()
