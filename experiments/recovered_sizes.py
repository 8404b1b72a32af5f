"""Small files after one epoch of recovery, on STS-B: `python -m experiments.recovered_sizes [--runs DIR]`.

all-MiniLM-L6-v2 at 5 and at 4 MB, by `plan_for_size` under the calibration of `experiments.budget`; then one epoch of
`lpjax.recover` on the same texts, none of STS-B. Codes stay as they are: scales, steps, biases and norms are trained.
The texts that calibration leaves out tell the divergence. Writes experiments/results/recovered_sizes.json, row by row:
a row that is there is not computed again. `python -m experiments.readme` makes the table.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

import lpjax
from experiments.budget import SEED, calibrated_encoder, runs_parser
from experiments.rows import has_row, read_rows
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.evaluation.sentences import stsb
from lpjax.glue.data import load_stsb

RESULTS = Path(__file__).parent / "results" / "recovered_sizes.json"
SIZES = (5.0, 4.0)  # MB


def main() -> None:
    """Compress, recover, score the saved net, and write the record."""
    console, pairs = Console(), load_stsb()
    dense, held, others, calibration = calibrated_encoder(runs_parser(__doc__).parse_args().runs)
    divergence = lpjax.Divergence(dense, held)
    record: dict[str, Any] = {"texts": len(others), "dense": stsb(dense, pairs).spearman, **run_record(SEED)}
    record["rows"] = read_rows(RESULTS)

    def scored(net: lpjax.Checkpoint) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            size = lpjax.save_checkpoint(net, Path(folder) / "net")
            net = dataclasses.replace(net, params=lpjax.load_checkpoint(Path(folder) / "net", copy=True).params)
        return {"bytes": size, "spearman": stsb(net, pairs).spearman, "divergence": divergence(net.params)}

    for size in SIZES:
        if has_row(record["rows"], {"size": size}):
            continue
        plan = lpjax.plan_for_size(dense.params, size * 1e6, statistics=calibration)
        small = dataclasses.replace(dense, params=lpjax.compress(dense.params, plan, calibration).params)
        before = scored(small)
        recovery = lpjax.recover(small, dense, others)
        row = {"size": size, "before": before, "after": scored(recovery.checkpoint)}
        row |= {"curve": list(recovery.curve), "seconds": recovery.seconds}
        console.print(row)
        record["rows"].append(row)
        write_json(RESULTS, record)


if __name__ == "__main__":
    main()
