"""Tokens a second against PyTorch's transformers, in one run: `python -m experiments.throughput MODEL --task sst2`.

Needs torch. MODEL is a folder with a head for the task, dense. Both libraries see the same tokens, sorted by length and
in batches of the same size; PyTorch pads a batch to its longest text, lpjax to one of its few static lengths. Each goes
over all of them once to warm up, then both in turns; the medians count. Written to experiments/results/throughput.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import lpjax
from lpjax._provenance import run_record
from lpjax.glue import find_task, load_examples
from lpjax.glue.evaluate import predict, prepare

RESULTS = Path(__file__).parent / "results" / "throughput.json"


def torch_logits(model: Any, tokens: Any, batch_size: int) -> np.ndarray:
    """Logits of all texts by PyTorch, sorted by length, each batch padded to its longest."""
    import torch  # pyright: ignore[reportMissingImports]

    order = np.argsort(tokens.lengths, kind="stable")
    batch_logits = []
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            length = int(tokens.lengths[rows].max())
            ids = np.full((len(rows), length), tokens.padding, np.int64)
            mask = np.zeros((len(rows), length), np.int64)
            types = np.zeros((len(rows), length), np.int64)
            for at, row in enumerate(rows):
                n = len(tokens.ids[row])
                place = slice(length - n, length) if tokens.left else slice(n)
                ids[at, place], mask[at, place] = tokens.ids[row], 1
                if tokens.types is not None:
                    types[at, place] = tokens.types[row]
            inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            if tokens.types is not None:
                inputs["token_type_ids"] = torch.from_numpy(types)
            batch_logits.append(model(**inputs).logits.numpy())
    logits = np.empty((len(order), batch_logits[0].shape[1]), np.float32)
    logits[order] = np.concatenate(batch_logits)
    return logits


def measure(folder: str, task: str, split: str, rows: int | None, batch_size: int, repeats: int) -> dict[str, Any]:
    """Speeds of both, and how far their logits are apart."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    from lpjax.glue.split import first_rows

    examples = load_examples(find_task(task), split)
    if rows is not None:
        examples = first_rows(examples, rows)
    checkpoint = lpjax.load_checkpoint(folder)
    tokens = prepare(checkpoint, examples).tokens
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    params = lpjax.models.device_params(checkpoint.params)

    def ours() -> np.ndarray:
        return predict(params, checkpoint.config, tokens, batch_size=batch_size).values

    def theirs() -> np.ndarray:
        return torch_logits(model, tokens, batch_size)

    apart = float(np.abs(ours() - theirs()).max())  # and both are warm
    seconds: dict[str, list[float]] = {"lpjax": [], "torch": []}
    for _ in range(repeats):
        for name, run in (("lpjax", ours), ("torch", theirs)):
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    count = int(tokens.lengths.sum())
    speed = {name: count / statistics.median(times) for name, times in seconds.items()}
    return {
        "net": checkpoint.config.model_type,
        "task": task,
        "split": examples.split,
        "rows": len(tokens),
        "tokens": count,
        "batch_size": batch_size,
        "tokens_per_second": speed,
        "ratio": speed["lpjax"] / speed["torch"],
        "logits_apart": apart,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        **run_record(0),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+", help="FOLDER:TASK")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    records = []
    for spec in options.model:
        folder, _, task = spec.rpartition(":")
        records.append(measure(folder, task, options.split, options.rows, options.batch_size, options.repeats))
        print(
            json.dumps({key: records[-1][key] for key in ("net", "task", "tokens_per_second", "ratio", "logits_apart")})
        )
    options.out.write_text(json.dumps({"rows": records}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
