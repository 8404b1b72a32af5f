"""Forward passes, dense and factored, beside PyTorch's transformers: `python -m benchmarks.forward`.

all-MiniLM-L6-v2, and a BERT of base size with random weights; every kernel of the encoder as a pair at three keeps, at
half also with a fifth of each pair in single entries; no embedding. Hidden states of random tokens, float32, in one
run: all nets take turns on a batch, compiled before, each run waited for, and the least time of each counts. Where
torch is not installed its column is left out.
Writes benchmarks/results/forward.json; `python -m experiments.readme` makes the tables.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import lpjax
from experiments.full_size import CONFIGS, random_params
from experiments.readme import forward_table
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.checkpoint import Checkpoint
from lpjax.checkpoint.source import ALIAS, find_model
from lpjax.compression.timing import least_seconds
from lpjax.models import device_params

SEED = 0
KEEPS = (0.75, 0.5, 0.25)
SPARSE = 0.2
BATCHES = ((32, 64), (1, 32), (64, 128))
SECONDS, LEAST = 12.0, 2  # for a batch, and rounds at the least
RESULTS = Path(__file__).parent / "results" / "forward.json"


def nets(checkpoint: Checkpoint) -> dict[str, Any]:
    """The dense params and those at each keep, on the device."""
    trees = {"dense": checkpoint.params}
    for keep in KEEPS:
        trees[f"keep {keep:g}"] = lpjax.compress(checkpoint.params, select="encoder", keep=keep, solver="svd").params
    singles = lpjax.compress(checkpoint.params, select="encoder", keep=0.5, sparse_share=SPARSE, solver="svd")
    trees[f"keep 0.5, {SPARSE:.0%} single entries"] = singles.params
    return {name: device_params(tree, jnp.float32) for name, tree in trees.items()}


def torch_net(checkpoint: Checkpoint) -> Callable[[np.ndarray], Any] | None:
    """The dense net in PyTorch's transformers, from a saved folder; None if they are not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        lpjax.export_checkpoint(checkpoint, Path(folder) / "net")
        model: Any = transformers.AutoModel.from_pretrained(Path(folder) / "net").eval()

    def run(ids: np.ndarray) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(ids.astype(np.int64))).last_hidden_state

    return run


def measure(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Least seconds of every net on every batch, and how far torch's hidden states are from ours."""
    trees, theirs = nets(checkpoint), torch_net(checkpoint)
    rng, config = np.random.default_rng(SEED), checkpoint.config
    rows = []
    for batch, length in BATCHES:
        ids = rng.integers(1000, config.vocab_size, (batch, length), dtype=np.int32)
        inputs = {"input_ids": jnp.asarray(ids)}
        runs: dict[str, Callable[[], Any]] = {
            name: lambda tree=tree, inputs=inputs: lpjax.encode(tree, config, inputs) for name, tree in trees.items()
        }
        if theirs is not None:
            runs["torch"] = lambda ids=ids: theirs(ids)
        apart = None if theirs is None else float(np.abs(runs["dense"]() - runs["torch"]().numpy()).max())
        # Twice in a row, so that another's threads are at rest in the second.
        times = least_seconds([*runs.values()], rounds=LEAST, seconds=SECONDS, in_a_row=2)
        seconds = dict(zip(runs, times, strict=True))
        row = {"batch": batch, "length": length, "seconds": seconds, "apart": apart}
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Measure both nets, print a table, write the record."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    base = lpjax.config_from_json(CONFIGS["bert"])
    checkpoints = {
        "MiniLM": lpjax.load_checkpoint(find_model(ALIAS)),
        "BERT-base size": Checkpoint(random_params(base), base),
    }
    rows: list[dict[str, Any]] = [
        {"net": net} | row for net, checkpoint in checkpoints.items() for row in measure(checkpoint)
    ]
    record = run_record(SEED) | {"rows": rows}
    if importlib.util.find_spec("torch") is not None:
        import torch  # pyright: ignore[reportMissingImports]

        record |= {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    write_json(RESULTS, record)
    print(forward_table(record))


if __name__ == "__main__":
    main()
