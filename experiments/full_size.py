"""Full-size nets of every kind: time and memory of loading and compressing: `python -m experiments.full_size`.

Makes random checkpoints in a temporary folder (12 layers, hidden 768, the vocabularies of bert-base-uncased,
distilbert-base-uncased, roberta-base and xlnet-base-cased; and one of the size of bert-large), compresses the token
embedding to 72 % of its parameters, and of bert-large all encoder kernels, each in a process of its own, and writes
experiments/results/full_size.json. Peak memory is the high-water mark of the process beyond what it held before
loading, in copies of the weights; pages of the mapped file that were touched are among it (Linux). To use such a
checkpoint yourself: `python -m experiments.full_size --make roberta FOLDER`.

`--sizes` measures instead what a tenth of the bytes takes of nets with 250,000 tokens, in the sizes of
multilingual-e5-small and xlm-roberta-base, with statistics. Their word tables have the singular values of
all-MiniLM-L6-v2's, stretched. The statistics are made, too: the frequency of a token is inverse to its rank (Zipf), and
second moments have eigenvalues that fall as 1/j. It writes experiments/results/full_size_sizes.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.matrices import EMBEDDING, stretched_spectrum
from benchmarks.solvers import resident
from experiments.readme import full_size_table, sizes_table
from lpjax import (
    Checkpoint,
    compress,
    load_calibration,
    load_checkpoint,
    plan_for_size,
    save_calibration,
    save_checkpoint,
)
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax._tree import is_table, leaves_with_paths
from lpjax.models import ModelConfig, config_from_json, name_table
from lpjax.weighting.statistics import Calibration, Statistics

ROOT = Path(__file__).parents[1]
SEED = 0
_BERT = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512, **_BERT},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 30522,
        "n_layers": 12,
        "dim": 768,
        "n_heads": 12,
        "hidden_dim": 3072,
    },
    "roberta": {
        "model_type": "roberta",
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        **_BERT,
    },
    "xlnet": {"model_type": "xlnet", "vocab_size": 32000, "n_layer": 12, "d_model": 768, "n_head": 12, "d_inner": 3072},
    "bert-large": {
        "model_type": "bert",
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "multilingual-e5-small": {
        "model_type": "bert",
        "vocab_size": 250037,
        "max_position_embeddings": 512,
        "num_hidden_layers": 12,
        "hidden_size": 384,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "xlm-roberta": {
        "model_type": "xlm-roberta",
        "vocab_size": 250002,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        **_BERT,
    },
}
SIZED = ("multilingual-e5-small", "xlm-roberta")
SHARE, TOKENS = 0.1, 100_000
CASES = [
    *((net, "embeddings", 0.72, method) for net in list(CONFIGS)[:4] for method in ("lewis", "admm_entries")),
    ("bert-large", "embeddings", 0.72, "lewis"),
    ("bert-large", "encoder", 0.5, "svd"),
]


def random_params(config: ModelConfig, seed: int = SEED) -> dict[str, Any]:
    """A base model's tree of normal weights with deviation 0.02, norms near 1."""
    rng = np.random.default_rng(seed)
    tree: dict[str, Any] = {}
    for weight in name_table(config).base:
        *parents, last = weight.path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        leaf = 0.02 * rng.standard_normal([int(n) for n in weight.shape], np.float32)
        node[last] = 1 + leaf if last == "scale" else leaf
    return tree


def make(net: str, folder: str | Path) -> None:
    """Save a random checkpoint of a net in `CONFIGS`, and statistics beside it if the net is in `SIZED`."""
    config = config_from_json(CONFIGS[net])
    params = random_params(config)
    if net in SIZED:
        table = params["embeddings"]["word_embeddings"]["embedding"]
        values = stretched_spectrum(EMBEDDING, table.shape[1])
        table *= (values / values.mean()).astype(np.float32)
        save_calibration(made_statistics(params), f"{folder}.statistics")
    save_checkpoint(Checkpoint(params, config), folder)


def made_statistics(params: Any, seed: int = SEED) -> Calibration:
    """Statistics of all matrices: Zipf's law for tokens, eigenvalues 1/j in random directions for moments."""
    rng = np.random.default_rng(seed)

    def moments(size: int) -> np.ndarray:
        directions = rng.standard_normal((size, size), np.float32) / np.sqrt(np.arange(1, size + 1, dtype=np.float32))
        return directions @ directions.T / size

    known = {}
    for path, leaf in leaves_with_paths(params):
        if leaf.ndim != 2:
            continue
        rows, columns = leaf.shape
        if is_table(path):
            counts = rng.permutation(TOKENS / np.arange(1.0, rows + 1)).astype(np.float32)
            known[path] = Statistics(TOKENS, counts=counts, outputs=moments(columns))
        else:
            known[path] = Statistics(TOKENS, inputs=moments(rows), outputs=moments(columns))
    return Calibration(known, "predictions", TOKENS // 100, TOKENS, seed)


def measure_size(folder: str) -> dict[str, Any]:
    """Load, compress to a tenth of the bytes, save; seconds and peak memory of this process."""
    import jax

    jax.block_until_ready(jax.jit(lambda x: x @ x)(np.ones((8, 8), np.float32)))
    held, times = resident("VmRSS"), [time.perf_counter()]
    checkpoint, statistics = load_checkpoint(folder), load_calibration(f"{folder}.statistics")
    times.append(time.perf_counter())
    plan = plan_for_size(checkpoint.params, SHARE, statistics=statistics)
    times.append(time.perf_counter())
    params = compress(checkpoint.params, plan, statistics).params
    times.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as target:
        file = save_checkpoint(Checkpoint(params, checkpoint.config), Path(target) / "smaller")
    times.append(time.perf_counter())
    seconds = dict(zip(("load", "plan", "compress", "save"), np.diff(times).tolist(), strict=True))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(checkpoint.params))
    mb = {"weights": weights, "statistics": Path(f"{folder}.statistics").stat().st_size, "file": file}
    mb["peak"] = resident("VmHWM") - held
    return {"seconds": seconds, "mb": {name: size / 1e6 for name, size in mb.items()}}


def measure(folder: str, layers: str, keep: float, method: str) -> dict[str, Any]:
    """Load, compress at p = 1, save; seconds and peak memory of this process."""
    import jax

    jax.block_until_ready(jax.jit(lambda x: x @ x)(np.ones((8, 8), np.float32)))
    held = resident("VmRSS")
    began = time.perf_counter()
    checkpoint = load_checkpoint(folder)
    loaded = time.perf_counter() - began
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(checkpoint.params))
    params, records = compress(checkpoint.params, select=layers, keep=keep, solver=method, p=1.0)
    peak = resident("VmHWM") - held
    with tempfile.TemporaryDirectory() as target:
        smaller = Checkpoint(params, checkpoint.config)
        save_checkpoint(smaller, Path(target) / "smaller")
    return {
        "ranks": sorted({record.rank for record in records if record.rank is not None}),
        "layers": len(records),
        "num_iters": max(record.num_iters for record in records),
        "objective_entries": float(np.mean([record.error_entries for record in records])),
        "seconds_load": loaded,
        "seconds_solve": sum(record.seconds for record in records),
        "seconds_in_all": time.perf_counter() - began,
        "weights_mb": size / 1e6,
        "peak_mb": peak / 1e6,
        "peak_with_saving_mb": (resident("VmHWM") - held) / 1e6,
    }


def measure_sizes() -> None:
    """Every net in `SIZED`, a table, and the record."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for net in SIZED:
            command = [sys.executable, "-m", "experiments.full_size"]
            subprocess.run([*command, "--make", net, f"{folder}/{net}"], check=True)
            output = subprocess.run([*command, "--one-size", f"{folder}/{net}"], check=True, stdout=subprocess.PIPE)
            rows.append({"net": net, **json.loads(output.stdout)})
            print(rows[-1], file=sys.stderr, flush=True)
    record = run_record(SEED) | {"share": SHARE, "rows": rows}
    write_json(Path(__file__).parent / "results" / "full_size_sizes.json", record)
    print(sizes_table(record))


def main() -> None:
    """Every case, a table, and the record."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for net, layers, keep, method in CASES:
            place = Path(folder) / net
            if not place.exists():
                make(net, place)
            command = [sys.executable, "-m", "experiments.full_size", "--one", str(place), layers, str(keep), method]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append({"net": net, "select": layers, "keep": keep, "method": method, **json.loads(output)})
            print(f"{net}, {layers}, {method}: {rows[-1]['seconds_in_all']:.0f} s", file=sys.stderr, flush=True)
    record = run_record(SEED) | {"rows": rows}
    write_json(Path(__file__).parent / "results" / "full_size.json", record)
    print(full_size_table(record))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make(*sys.argv[2:])
    elif sys.argv[1:2] == ["--one"]:
        path, chosen, share, solver = sys.argv[2:]
        print(json.dumps(measure(path, chosen, float(share), solver)))
    elif sys.argv[1:2] == ["--one-size"]:
        print(json.dumps(measure_size(sys.argv[2])))
    elif sys.argv[1:2] == ["--sizes"]:
        measure_sizes()
    else:
        main()
