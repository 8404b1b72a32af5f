"""Score against size of all-MiniLM-L6-v2, on STS-B: `python -m experiments.frontier [--runs DIR]`.

Plain rounding at 8 to 3 bits, rounding with error feedback, the weighted SVD with factors in 8 bits, and
`plan_for_size` with text and without, all without training. Spearman of cosines on all development pairs; bytes are
those of the weights' file and, as "packed", of the codes and scales in memory, which is what formats without entropy
coding write. The calibration texts are those of `experiments.budget`, none of STS-B.

Writes experiments/results/frontier.json, row by row: a row that is there is not computed again, nor is the calibration,
which is kept in DIR. `python -m experiments.readme` makes the tables.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

import lpjax
from experiments.budget import SEED, calibrated_encoder
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax._tree import leaves_with_paths
from lpjax.checkpoint.source import weight_bytes
from lpjax.compression import Choice, Plan
from lpjax.evaluation.sentences import stsb
from lpjax.glue.data import load_stsb

RESULTS = Path(__file__).parent / "results" / "frontier.json"
SIZES = (9.2, 8.0, 7.0, 6.0, 5.0, 4.0)
BITS = ((8, None), (6, 64), (5, 32), (4, 32), (3, 32))

Known = lpjax.Calibration | None


def main() -> None:
    """Compress in each way, save, load, score, and write the record."""
    console, pairs = Console(), load_stsb()
    dense, held, _, calibration = calibrated_encoder(__doc__)
    divergence = lpjax.Divergence(dense, held)
    record: dict[str, Any] = {
        "model": "all-MiniLM-L6-v2",
        "texts": calibration.texts,
        "held_out": len(held),
        "tokens": calibration.tokens,
        "dense": stsb(dense, pairs).spearman,
        "dense_bytes": weight_bytes(dense.source),
        **run_record(SEED),
        "rows": [],
    }
    if RESULTS.exists():
        record["rows"] = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    for method, label, text, plan_of in _cases(dense.params):
        row: dict[str, Any] = {"method": method, "label": label, "text": text}
        if any(row.items() <= done.items() for done in record["rows"]):
            continue
        known = calibration if text else None
        began = time.perf_counter()
        plan = plan_of(known)
        params = lpjax.compress(dense.params, plan, known).params
        row["seconds"] = time.perf_counter() - began
        with tempfile.TemporaryDirectory() as out:
            small = dataclasses.replace(dense, params=params)
            row["bytes"] = lpjax.save_checkpoint(small, Path(out) / "net", int8=method == "weighted SVD")
            loaded = lpjax.load_checkpoint(Path(out) / "net").params
        row["packed"] = sum(leaf.nbytes for _, leaf in leaves_with_paths(loaded))
        small = dataclasses.replace(dense, params=loaded)
        row |= {"spearman": stsb(small, pairs).spearman, "divergence": divergence(loaded)}
        row["step"] = next((choice.step for choice in plan.layers.values() if choice.step), None)
        console.print(row)
        record["rows"].append(row)
        write_json(RESULTS, record)


def _cases(params: Any) -> list[tuple[str, str, bool, Callable[[Known], Plan]]]:
    """(method, label, whether it is calibrated, statistics -> plan) of each row."""
    matrices = [path for path, leaf in leaves_with_paths(params) if leaf.ndim == 2]

    def rounding(bits: int, group: int | None) -> Callable[[Known], Plan]:
        def plan(known: Known) -> Plan:
            return Plan(dict.fromkeys(matrices, Choice(None, bits=bits, group=group)), rest="float16")

        return plan

    def label(bits: int, group: int | None) -> str:
        return f"{bits} bits, " + ("a row" if group is None else f"groups of {group}")

    def sized(size: float) -> Callable[[Known], Plan]:
        return lambda known: lpjax.plan_for_size(params, size * 1e6, statistics=known)

    def shared(known: Known) -> Plan:
        return lpjax.allocate(params, budget=0.5, statistics=known)

    cases = [("rounding", label(*kind), False, rounding(*kind)) for kind in BITS]
    cases += [("rounding with feedback", label(*kind), True, rounding(*kind)) for kind in BITS[-2:]]
    cases += [("weighted SVD", "0.5 of the parameters, 8 bits", True, shared)]
    cases += [("lpjax", f"{size} MB", True, sized(size)) for size in SIZES]
    cases += [("lpjax", f"{size} MB", False, sized(size)) for size in (9.2, 7.0)]
    return cases


if __name__ == "__main__":
    main()
