"""What text is worth on fine-tuned nets: `python -m experiments.data_aware_glue CONFIG [--runs DIR] [--only NET-TASK]`.

The nets that `experiments.finetune` left in DIR, their encoder's kernels at keep 0.75 and 0.5, by the SVD, the paper's
ℓp (`lewis`), FWSVD, ASVD and DRONE as `lpjax.WEIGHTINGS` has them, and under the default weights, ranks uniform, by
"error" and by "error" with a fifth in single entries. They are calibrated on the first 1,000 examples that the net was
trained on, of which only FWSVD sees the labels.

Without further training; then, at keep 0.5, after one epoch of `lpjax.recover`, without labels, and after one of fine-
tuning (`lpjax.glue.finetune`, at the rate that the net was trained at), for the SVD and for ranks by "error", on the
examples that the net was trained on, 20,000 at most (SST-2 has more). With `--measured` also "measured" ranks, which
take longest: by the divergence on 64 examples that were held out of training, of outputs and hidden states, or of
outputs alone. A record a cell goes to experiments/results/data_aware_glue/NET-TASK.jsonl; a cell that is there is not
computed again. `python -m experiments.readme` makes the tables.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

import lpjax
from experiments.config import Cell, chosen_cells, parser
from experiments.glue_table import compute_missing, read_lines, size
from lpjax._provenance import run_record
from lpjax.allocation import Allocation
from lpjax.checkpoint import Checkpoint
from lpjax.glue import Examples, load_examples
from lpjax.glue.evaluate import evaluate_task, prepare
from lpjax.glue.labels import output_labels
from lpjax.glue.split import first_rows, hold_out
from lpjax.training import Settings, finetune

RESULTS = Path(__file__).parent / "results" / "data_aware_glue"
SEED = 0
KEEPS = (0.75, 0.5)
CALIBRATED, HELD_OUT, MEASURED, TRAINED = 1000, 500, 64, 20_000
LEVELS = (0.2, 0.35, 0.5, 0.65, 0.8)


class Way(NamedTuple):
    """How a net is compressed: `weighting` None is without calibration, `hidden` of the measure of "measured", `sparse`
    the share of single entries."""

    weighting: str | None
    solver: str = "svd"
    p: float = 2.0
    allocation: Allocation = "uniform"
    hidden: float | None = None
    sparse: float = 0.0


WAYS = {
    "SVD": Way(None),
    "lewis, p = 1": Way(None, "lewis", 1.0),
    "lewis, p = 1.5": Way(None, "lewis", 1.5),
    "FWSVD": Way("fwsvd"),
    "ASVD": Way("asvd"),
    "DRONE": Way("drone"),
    "ours": Way("gauss_newton"),
    "ours, ranks by error": Way("gauss_newton", allocation="error"),
    "ours, ranks by error, single entries": Way("gauss_newton", allocation="error", sparse=0.2),
    "ours, measured ranks": Way("gauss_newton", allocation="measured"),
    "ours, ranks by outputs alone": Way("gauss_newton", allocation="measured", hidden=0.0),
}
RECOVERED = ("SVD", "ours, ranks by error")


class Key(NamedTuple):
    """A cell of a net on a task; `then` is "", "finetune" or "recover"."""

    keep: float
    way: str
    then: str

    def __str__(self) -> str:
        return "/".join(filter(None, (f"{self.keep:g}", self.way, self.then)))


DENSE = Key(1.0, "dense", "")


def keys(measured: bool) -> Iterator[Key]:
    """All cells of a net on a task, with or without measured ranks."""
    yield DENSE
    for keep in KEEPS:
        for name, way in WAYS.items():
            if measured or way.allocation != "measured":
                yield Key(keep, name, "")
    for then in ("recover", "finetune"):
        for name in RECOVERED:
            yield Key(KEEPS[-1], name, then)


class Bench:
    """A fine-tuned net with its texts, and the results that are kept between cells."""

    def __init__(self, cell: Cell, folder: str | Path):
        self.cell = cell
        self.dense = lpjax.load_checkpoint(folder)
        settings = cell.settings
        train = load_examples(cell.task, settings.get("train_split", "train"))
        self.learnt, held = hold_out(train, settings["hold_out"])
        self.dev = prepare(self.dense, cell.dev())
        self.held = prepare(self.dense, first_rows(held, HELD_OUT))
        self._calibrations: dict[bool, lpjax.Calibration] = {}
        self._compressed: dict[Key, Checkpoint] = {}

    def compute(self, key: Key) -> dict[str, Any]:
        """The record of a cell."""
        began = time.perf_counter()
        more: dict[str, Any] = {}
        net = self.dense if key == DENSE else self._net(key._replace(then=""))
        if key.then:
            net, more = self._trained(net, key.then)
        seconds = time.perf_counter() - began
        dev, held = evaluate_task(net, self.dev), evaluate_task(net, self.held)
        return {
            "net": self.cell.net,
            "task": self.cell.task,
            **key._asdict(),
            "metrics": dev.metrics,
            "split": dev.split,
            "rows": dev.rows,
            "complete": dev.complete,
            "held_out": held.metrics,
            "held_out_rows": held.rows,
            "parameters": size(net.params),
            "seconds": round(seconds, 1),
            **more,
            **run_record(SEED),
        }

    def _net(self, key: Key) -> Checkpoint:
        if key in self._compressed:
            return self._compressed[key]
        net = self._compress(key.keep, WAYS[key.way])
        if key.keep == KEEPS[-1] and key.way in RECOVERED:
            self._compressed[key] = net
        return net

    def _compress(self, keep: float, way: Way) -> Checkpoint:
        known = None if way.weighting is None else self._calibration(way.weighting == "fwsvd")
        how: dict[str, Any] = {"statistics": known, "weighting": way.weighting}
        uniform = lpjax.compress(
            self.dense.params, select="encoder", keep=keep, solver=way.solver, p=way.p, **how
        ).params
        if way.allocation == "uniform":
            return dataclasses.replace(self.dense, params=uniform)
        some = first_rows(self.held.examples, MEASURED)
        measure = None
        if way.allocation == "measured":
            measure = lpjax.Divergence(self.dense, some.first, some.second, hidden=way.hidden)
        # As many parameters in all as the uniform ranks have.
        plan = lpjax.allocate(
            self.dense.params, budget=(size(uniform) + 0.5) / size(self.dense.params), select="encoder", levels=LEVELS,
            allocation=way.allocation, measure=measure, sparse_share=way.sparse, **how,
        )  # fmt: skip
        compressed = lpjax.compress(self.dense.params, plan=plan, statistics=known)
        return dataclasses.replace(self.dense, params=compressed.params)

    def _calibration(self, labelled: bool) -> lpjax.Calibration:
        if labelled not in self._calibrations:
            some = first_rows(self.learnt, CALIBRATED)
            self._calibrations[labelled] = lpjax.calibrate(
                self.dense, some.first, some.second, labels=self._labels(some) if labelled else None, select="encoder",
                seed=SEED,
            )  # fmt: skip
        return self._calibrations[labelled]

    def _labels(self, examples: Examples) -> list[float]:
        """In the order of the net's outputs."""
        task = examples.task
        return output_labels(task, examples.labels, self.dense.config_json, task.num_outputs).tolist()

    def _trained(self, net: Checkpoint, then: str) -> tuple[Checkpoint, dict[str, Any]]:
        """After one epoch."""
        some = first_rows(self.learnt, TRAINED)
        if then == "recover":
            trained = lpjax.recover(net, self.dense, some.first, some.second)
        else:
            settings = Settings(epochs=1, learning_rate=self.cell.settings["lr"], seed=SEED)
            trained = finetune(net, some, self.held.examples, settings)
        return trained.checkpoint, {"curve": list(trained.curve), "trained": len(some.first)}


def main() -> int:
    """Compute the missing cells."""
    arguments = parser(__doc__)
    arguments.add_argument("--then", action="append", help="only 'none', 'recover' or 'finetune'; may be repeated")
    arguments.add_argument("--measured", action="store_true", help="measured ranks, too")
    options = arguments.parse_args()
    jax.config.update("jax_compilation_cache_dir", str((options.runs / ".compiled").resolve()))
    for cell in chosen_cells(options):
        path = RESULTS / f"{cell.name}.jsonl"
        done = {Key(*(record[name] for name in Key._fields)) for record in read_lines(path)}
        todo = [key for key in keys(options.measured) if key not in done]
        todo = [key for key in todo if not options.then or (key.then or "none") in options.then]
        compute_missing(cell.name, path, todo, functools.partial(Bench, cell, cell.source(options.runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
