"""Score against size of fine-tuned nets: `python -m experiments.task_sizes CONFIG [--runs DIR] [--only NET-TASK]`.

The nets that `experiments.finetune` left in DIR, of six tasks if no others are named. Plain rounding, rounding with
error feedback under weights from text, low rank alone (pairs under the same weights, everything in 8 bits), and
`plan_for_size` at an eighth, a tenth and a twelfth of the dense net's bytes; nothing is trained. The text is the first
1,000 examples that the net was trained on, without their labels.

Each net is saved, loaded and multiplied out, so that all are scored by the same program. A record a net and way goes
to experiments/results/task_sizes/NET-TASK.jsonl; one that is there is not computed again. `python -m
experiments.readme` makes the table.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import lpjax
from examples.sizes import rounding_plan
from experiments.config import Cell, chosen_cells, parser
from experiments.glue_table import compute_missing, read_lines
from lpjax._provenance import run_record
from lpjax.checkpoint.source import weight_bytes
from lpjax.compression import Plan
from lpjax.glue import load_examples
from lpjax.glue.evaluate import evaluate_task, prepare
from lpjax.glue.split import first_rows, hold_out
from lpjax.models import device_params

RESULTS = Path(__file__).parent / "results" / "task_sizes"
SEED = 0
TASKS = ("cola", "sst2", "mrpc", "stsb", "mnli", "rte")
CALIBRATED, HELD_OUT = 1000, 256
SIZES = (8, 10, 12)  # the dense net's bytes by the file's
KINDS = ((8, None), (4, 32), (3, 32), (2, 32))  # bits of a code, and codes that share a scale

Planned = tuple[Plan, lpjax.Calibration | None]


class Way(NamedTuple):
    """How a net is made smaller."""

    method: str
    setting: str

    def __str__(self) -> str:
        return f"{self.method}, {self.setting}"


DENSE = Way("dense", "")


def rounded(params: Any, calibration: lpjax.Calibration, bits: int, group: int | None, fed_back: bool) -> Planned:
    """All matrices in a number of bits."""
    return rounding_plan(params, bits, group), calibration if fed_back else None


def low_rank(params: Any, calibration: lpjax.Calibration, times: int) -> Planned:
    """Pairs of as many parameters as fit in 8 bits each; matrices that stay dense have 8 bits, too."""
    pairs = lpjax.allocate(params, budget=4 / times, statistics=calibration, sparse_share=0.0)
    whole = rounding_plan(params, 8, None)
    chosen = {path: pairs.layers.get(path, choice)._replace(bits=8) for path, choice in whole.layers.items()}
    return dataclasses.replace(pairs, layers=chosen, rest="float16"), calibration


def sized(params: Any, calibration: lpjax.Calibration, times: int) -> Planned:
    """What lpjax makes of a size."""
    return lpjax.plan_for_size(params, 1 / times, statistics=calibration), calibration


def _ways() -> Iterator[tuple[Way, Callable[[Any, lpjax.Calibration], Planned]]]:
    for times in SIZES:
        yield Way("lpjax", f"1/{times}"), functools.partial(sized, times=times)
    for name, fed_back in (("rounding", False), ("rounding with feedback", True)):
        for bits, group in KINDS[fed_back:]:
            setting = f"{bits} bits, " + ("a row" if group is None else f"groups of {group}")
            yield Way(name, setting), functools.partial(rounded, bits=bits, group=group, fed_back=fed_back)
    for times in SIZES:
        yield Way("low rank, 8 bits", f"1/{times}"), functools.partial(low_rank, times=times)


WAYS = dict(_ways())


class Bench:
    """A fine-tuned net with its texts."""

    def __init__(self, cell: Cell, folder: str | Path):
        self.cell, self.dense = cell, lpjax.load_checkpoint(folder)
        settings = cell.settings
        train = load_examples(cell.task, settings.get("train_split", "train"))
        learnt, held = hold_out(train, settings["hold_out"])
        self.dev = prepare(self.dense, cell.dev())
        held = first_rows(held, HELD_OUT)
        self.divergence = lpjax.Divergence(self.dense, held.first, held.second)
        some = first_rows(learnt, CALIBRATED)
        self.calibration = lpjax.calibrate(self.dense, some.first, some.second, seed=SEED)

    def compute(self, way: Way) -> dict[str, Any]:
        """The record of a way."""
        net, more = (self.dense, {"bytes": weight_bytes(self.dense.source)}) if way == DENSE else self._made(way)
        net = dataclasses.replace(net, params=device_params(net.params, np.float32))
        dev = evaluate_task(net, self.dev)
        return {
            "net": self.cell.net,
            "task": self.cell.task,
            **way._asdict(),
            "metrics": dev.metrics,
            "rows": dev.rows,
            "complete": dev.complete,
            "divergence": self.divergence(net.params),
            **more,
            **run_record(SEED),
        }

    def _made(self, way: Way) -> tuple[lpjax.Checkpoint, dict[str, Any]]:
        """The net as its file has it, multiplied out; bytes of the file, and seconds."""
        began = time.perf_counter()
        plan, known = WAYS[way](self.dense.params, self.calibration)
        small = dataclasses.replace(self.dense, params=lpjax.compress(self.dense.params, plan, known).params)
        seconds = round(time.perf_counter() - began, 1)
        with tempfile.TemporaryDirectory() as folder:
            size = lpjax.save_checkpoint(small, Path(folder) / "small")
            lpjax.export_checkpoint(lpjax.load_checkpoint(Path(folder) / "small"), Path(folder) / "dense")
            params = lpjax.load_checkpoint(Path(folder) / "dense", copy=True).params
        return dataclasses.replace(self.dense, params=params), {"bytes": size, "seconds": seconds}


def main() -> int:
    """Compute the missing records."""
    options = parser(__doc__).parse_args()
    jax.config.update("jax_compilation_cache_dir", str((options.runs / ".compiled").resolve()))
    for cell in chosen_cells(options):
        if not options.only and cell.task not in TASKS:
            continue
        path = RESULTS / f"{cell.name}.jsonl"
        done = {Way(record["method"], record["setting"]) for record in read_lines(path)}
        todo = [way for way in (DENSE, *WAYS) if way not in done]
        compute_missing(cell.name, path, todo, functools.partial(Bench, cell, cell.source(options.runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
