"""What devices say to each other while they solve: `python -m benchmarks.traffic`.

Bytes of the collectives in the compiled HLO of each solver whose rows may be spread, for eight devices of this host and
matrices of two heights. Each collective counts with the size of its result, which every device gets: once where it
stands outside of loops, and once an iteration where it stands in one, be it the solver's own or that of its start. Of
branches, such as Gram matrix or QR, all count. Written to benchmarks/results/traffic.json.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table

import lpjax
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.solvers._core import sharded

DEVICES = 8
SPREAD = ("svd", "lewis", "irls_rows", "admm_entries")
HEIGHTS, WIDTH, RANK = (8192, 65536), 384, 200
_COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(?:-start)?\("
)
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


def compiled_text(solver: str, shape: tuple[int, int], rank: int, mesh: Mesh, p: float = 1.0) -> str:
    """The HLO that a solver is compiled to for a matrix of that shape, its rows spread over `mesh`."""
    compiled = []

    def compile_only(*arguments: Any, **static: Any) -> None:
        compiled.append(run.lower(*arguments, **static).compile().as_text())

    run = sharded._on_devices
    matrix = jax.device_put(jnp.ones(shape), NamedSharding(mesh, P(mesh.axis_names, None)))
    with mock.patch.object(sharded, "_on_devices", compile_only):
        lpjax.SOLVERS[solver](matrix, rank, p=p)
    return compiled[0]


def traffic(text: str) -> dict[str, int]:
    """Bytes of the collectives of an HLO module: "once", and "per_iteration" of the loops they stand in."""
    bodies: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line):
            name = header[1]
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    calls = {name: set(re.findall(r"%([\w.\-]+)", "\n".join(lines))) & bodies.keys() for name, lines in bodies.items()}
    looped: set[str] = set()
    todo = re.findall(r"body=%([\w.\-]+)", text)
    while todo:
        name = todo.pop()
        if name not in looped:
            looped.add(name)
            todo += calls[name]
    totals = {"once": 0, "per_iteration": 0}
    for name, lines in bodies.items():
        for line in lines:
            if collective := _COLLECTIVE.search(line):
                totals["per_iteration" if name in looped else "once"] += _size(collective[1])
    return totals


def _size(shapes: str) -> int:
    """Bytes of "f32[2,3]{1,0}" or of a tuple of such."""
    return sum(
        _BYTES[dtype] * math.prod(int(side) for side in sides.split(",") if side)
        for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    )


def main() -> None:
    """Count, tell and record."""
    mesh = jax.make_mesh((DEVICES,), ("rows",))
    rows = []
    table = Table("solver", "rows", "once, MB", "an iteration, MB", title=f"d = {WIDTH}, k = {RANK}, float32")
    for solver in SPREAD:
        for height in HEIGHTS:
            totals = traffic(compiled_text(solver, (height, WIDTH), RANK, mesh))
            rows.append({"solver": solver, "shape": [height, WIDTH], "rank": RANK, "devices": DEVICES, **totals})
            table.add_row(solver, str(height), *(f"{totals[key] / 1e6:.2f}" for key in ("once", "per_iteration")))
    Console().print(table)
    write_json(Path(__file__).parent / "results" / "traffic.json", {"rows": rows, **run_record(0)})


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
    main()
