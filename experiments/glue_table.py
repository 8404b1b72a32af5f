"""The paper's experiment: fine-tuned nets on GLUE, compressed without further training.

    python -m experiments.glue_table CONFIG [--runs DIR] [--only NET-TASK] [--layers encoder] [--compression 28]
        [--method lewis] [--cell CELL]

nets × tasks × layers × compression × methods, as the config says, of the nets that `experiments.finetune` left in DIR
or of checkpoints that the config names. A record a cell goes to experiments/results/glue/NET-TASK.jsonl, with seed,
versions and machine; a cell that is there is never computed again, and a run that is killed loses the cell it was at.
`--cell minilm-sst2/embeddings/28/lewis/1` computes one cell anew and says whether its scores are those on record.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import lpjax
from experiments.config import Cell, Grid, chosen_cells, parser, read_config, read_grid
from lpjax._provenance import run_record
from lpjax._tree import leaves_with_paths, replace_leaves
from lpjax.checkpoint import Checkpoint
from lpjax.glue import load_examples
from lpjax.glue.evaluate import Prepared, evaluate_task, prepare
from lpjax.glue.split import first_rows, hold_out

RESULTS = Path(__file__).parent / "results" / "glue"
SEED = 0
HELD_OUT = 500  # examples of train, held out of training, that p is chosen on


class Key(NamedTuple):
    """One cell of a net on a task."""

    layers: str
    compression: int
    method: str
    p: float

    def __str__(self) -> str:
        return f"{self.layers}/{self.compression}/{self.method}/{self.p:g}"


DENSE = Key("none", 0, "dense", 2.0)


def keys(grid: Grid) -> Iterator[Key]:
    """The cells of a net on a task: the dense one, then as the grid orders them."""
    yield DENSE
    for compression in grid.compressions:
        for method, exponents in grid.methods.items():
            for p in exponents:
                for layers in grid.layers:
                    yield Key(layers, compression, method, float(p))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file, none if it does not exist. A last line that a killed run left unfinished is cut off."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.decode().splitlines()]


def read_records(path: Path) -> dict[Key, dict[str, Any]]:
    """The cells on record."""
    return {Key(*(record[name] for name in Key._fields)): record for record in read_lines(path)}


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add a line and see it on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def size(params: Any) -> int:
    """Parameters of a net."""
    return sum(leaf.size for _, leaf in leaves_with_paths(params))


def compute_missing(name: str, path: Path, todo: Sequence[Any], make_bench: Callable[[], Any]) -> None:
    """Compute cells of a net on a task and add each to the file; make the bench only if there are any."""
    bench = make_bench() if todo else None
    for i, key in enumerate(todo, start=1):
        assert bench is not None
        record = bench.compute(key)
        append_record(path, record)
        scores = ", ".join(f"{metric} {value:.4f}" for metric, value in record["metrics"].items())
        print(f"{name} {i}/{len(todo)} {key}: {scores}", flush=True)


class Bench:
    """A fine-tuned net with its tokenized examples, and the factors of its layers so far."""

    def __init__(self, cell: Cell, grid: Grid, folder: str | Path):
        self.cell, self.grid = cell, grid
        self.checkpoint = lpjax.load_checkpoint(folder)
        settings = cell.settings
        self.dev = prepare(self.checkpoint, cell.dev())
        self.held: Prepared | None = None
        if settings.get("hold_out"):
            train = load_examples(cell.task, settings.get("train_split", "train"))
            held = first_rows(hold_out(train, settings["hold_out"])[1], HELD_OUT)
            self.held = prepare(self.checkpoint, held)
        self._factors: tuple[Any, dict[str, Any]] = (None, {})

    def compute(self, key: Key) -> dict[str, Any]:
        """The record of a cell."""
        began = time.perf_counter()
        checkpoint, layers = (self.checkpoint, []) if key == DENSE else self._compressed(key)
        solving = time.perf_counter() - began
        dev = evaluate_task(checkpoint, self.dev)
        held = None if self.held is None else evaluate_task(checkpoint, self.held)
        factored = [layer for layer in layers if layer.rank is not None]
        return {
            "net": self.cell.net,
            "task": self.cell.task,
            **key._asdict(),
            "metrics": dev.metrics,
            "split": dev.split,
            "rows": dev.rows,
            "complete": dev.complete,
            "held_out": None if held is None else held.metrics,
            "held_out_rows": None if held is None else held.rows,
            "parameters": size(checkpoint.params),
            "parameters_dense": size(self.checkpoint.params),
            "factored": len(factored),
            "left_dense": len(layers) - len(factored),
            "ranks": sorted({layer.rank for layer in factored}),
            "objective": sum(x.error_entries for x in factored) / len(factored) if factored else None,
            "converged": all(layer.converged for layer in factored),
            "options": self.grid.options.get(key.method, {}),
            "seconds_solving": round(solving, 3),
            "seconds_scoring": round(dev.seconds, 3),
            **run_record(SEED),
        }

    def _compressed(self, key: Key) -> tuple[Checkpoint, list[Any]]:
        how = key[1:]
        if self._factors[0] != how:  # the factors of one way at a time: "both" is made of the two others
            self._factors = (how, {})
        known = self._factors[1]
        params, records = self.checkpoint.params, []
        for part in ("embeddings", "encoder") if key.layers == "both" else (key.layers,):
            if part not in known:
                known[part] = lpjax.compress(
                    self.checkpoint.params,
                    select=part,
                    keep=1 - key.compression / 100,
                    solver=key.method,
                    p=key.p,
                    **self.grid.options.get(key.method, {}),
                )
            compressed = known[part]
            new = dict(leaves_with_paths(compressed.params))
            paths = {record.path for record in compressed.records}
            params = replace_leaves(params, {path: new[path] for path in paths})
            records += compressed.records
        return dataclasses.replace(self.checkpoint, params=params), records


def same_scores(record: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two records of a cell agree in every metric to 1e-6, on dev and on held-out rows."""
    for name in ("metrics", "held_out"):
        a, b = record[name] or {}, other[name] or {}
        if a.keys() != b.keys() or any(abs(a[key] - b[key]) > 1e-6 for key in a):
            return False
    return True


def remake(cell: Cell, grid: Grid, runs: Path, key_name: str) -> int:
    """Compute one cell anew and compare; the exit status."""
    key = next((key for key in keys(grid) if str(key) == key_name), None)
    if key is None:
        print(f"{key_name} is not a cell of this config; expected LAYERS/COMPRESSION/METHOD/P", file=sys.stderr)
        return 2
    record = Bench(cell, grid, cell.source(runs)).compute(key)
    print(json.dumps(record, indent=2))
    known = read_records(RESULTS / f"{cell.name}.jsonl").get(key)
    if known is None:
        print("not on record yet")
        return 0
    same = same_scores(record, known)
    print(f"on record: {json.dumps(known['metrics'])}: {'the same' if same else 'NOT the same'}")
    for what in ("machine", "versions"):  # nets that were trained on another processor differ by rounding
        for name, now in record[what].items():
            then = known[what].get(name)
            if not same and then != now:
                print(f"{name}: {then} then, {now} now")
    return 0 if same else 1


def main() -> int:
    """Compute the missing cells, or a single one."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--compression", type=int, action="append", help="only this compression, in percent; may be repeated"
    )
    arguments.add_argument("--layers", action="append", help="only these layers; may be repeated")
    arguments.add_argument("--method", action="append", help="only this method; may be repeated")
    arguments.add_argument("--cell", help="NET-TASK/LAYERS/COMPRESSION/METHOD/P: compute this one and compare")
    options = arguments.parse_args()
    # The nets of a config have the same shapes: what is compiled for one serves the next.
    jax.config.update("jax_compilation_cache_dir", str((options.runs / ".compiled").resolve()))
    cells, grid = read_config(options.config), read_grid(options.config)
    if options.cell:
        name, _, key_name = options.cell.partition("/")
        cell = next((cell for cell in cells if cell.name == name), None)
        if cell is None:
            arguments.error(f"{name} is none of {', '.join(cell.name for cell in cells)}")
        return remake(cell, grid, options.runs, key_name)
    for cell in chosen_cells(options):
        path = RESULTS / f"{cell.name}.jsonl"
        done = read_records(path)
        todo = [key for key in keys(grid) if key not in done]
        for name in ("compression", "layers", "method"):
            allowed = getattr(options, name)
            todo = [key for key in todo if key == DENSE or not allowed or getattr(key, name) in allowed]
        compute_missing(cell.name, path, todo, functools.partial(Bench, cell, grid, cell.source(options.runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
