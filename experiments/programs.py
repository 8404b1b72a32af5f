"""Exported programs in onnxruntime, beside lpjax and PyTorch: `python -m experiments.programs [--runs DIR]`.

all-MiniLM-L6-v2, dense, its encoder at half of its parameters, and at 9.2 MB; each by lpjax, in float32 and bfloat16,
and by onnxruntime, in float32 and rounded by its dynamic int8, one scale a channel. The dense net also by PyTorch, in
float32 and bfloat16, if it is installed. Spearman of cosines on the development pairs of STS-B; bytes of the file that
each one loads; and the time of a batch, of 32 texts and of one, short and long: all in turn, the median and the 95th
percentile of 15 rounds after a warm-up, on two threads. Then where the time of onnxruntime's programs goes, by its own
profiler: in products with weights, in attention, in all others.

Writes experiments/results/programs.json. `python -m experiments.readme` makes the table.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from scipy import stats

import lpjax
from experiments.budget import SEED, calibrated_encoder, runs_parser
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.checkpoint.source import weight_bytes
from lpjax.data.tokenizer import tokenizer_of
from lpjax.evaluation.sentences import stsb
from lpjax.glue.data import Pairs, load_stsb
from lpjax.models import device_params

RESULTS = Path(__file__).parent / "results" / "programs.json"
SHAPES = ((32, 64), (32, 128), (1, 16), (1, 128))  # texts, tokens
ROUNDS = 15
THREADS = 2

Batch = dict[str, np.ndarray]


class Session:
    """A program in onnxruntime: vectors of sentences, by the model.onnx that `lpjax export --pooled` writes."""

    def __init__(self, checkpoint: lpjax.Checkpoint, path: Path, profile: Path | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        self._session = onnxruntime.InferenceSession(str(path), options)
        self._names = [info.name for info in self._session.get_inputs()]
        self._tokenizer = tokenizer_of(checkpoint)

    def __call__(self, batch: Batch) -> np.ndarray:
        """Vectors of a batch of tokens; token types are 0 if the tokenizer gives none."""
        zeros = np.zeros_like(batch["input_ids"])
        inputs = {name: batch.get(name, zeros) for name in self._names}
        return np.asarray(self._session.run(["sentence_embedding"], inputs)[0])

    def events(self) -> list[dict[str, Any]]:
        """What the profiler saw, if there is one; ends the profile."""
        return json.loads(Path(self._session.end_profiling()).read_text())

    def vectors(self, sentences: Sequence[str]) -> np.ndarray:
        """Vectors of sentences at length 1, as sentence-transformers reads them; the longest are run first."""
        order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
        by_row: dict[int, np.ndarray] = {}
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            texts = [sentences[i] for i in rows]
            tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="np")
            by_row |= zip(
                rows, self({name: np.asarray(array, np.int64) for name, array in tokens.items()}), strict=True
            )
        vectors = np.stack([by_row[i] for i in range(len(sentences))])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def spearman(self, pairs: Pairs) -> float:
        """The rank correlation of cosines with the scores of sentence pairs."""
        vectors = self.vectors([*pairs.first, *pairs.second])
        cosines = np.sum(vectors[: len(pairs.scores)] * vectors[len(pairs.scores) :], axis=1)
        return float(np.asarray(stats.spearmanr(cosines, pairs.scores))[0])


def dynamic_int8(path: Path) -> Path:
    """A model rounded by onnxruntime's dynamic quantization, beside it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    rounded = path.with_name("int8.onnx")
    quantize_dynamic(path, rounded, per_channel=True, weight_type=QuantType.QInt8)
    return rounded


def main() -> None:
    """Export, score, time in turn, and write the record."""
    console, pairs = Console(), load_stsb()
    dense, _, _, calibration = calibrated_encoder(runs_parser(__doc__).parse_args().runs)
    folder = dense.source
    assert folder is not None
    plan = lpjax.uniform_plan(dense.params, select="encoder", keep=0.5, solver="svd", p=2.0, weighting="gauss_newton")
    sized = lpjax.plan_for_size(dense.params, "9.2MB", statistics=calibration)
    nets = {
        "dense": dense.params,
        "encoder at 0.5": lpjax.compress(dense.params, plan, calibration).params,
        "9.2 MB": lpjax.compress(dense.params, sized, calibration).params,
    }
    rows: list[dict[str, Any]] = []
    runs: list[Callable[[Batch], Any]] = []
    files: dict[tuple[str, str], Path] = {}
    with tempfile.TemporaryDirectory() as out:
        for name, params in nets.items():
            net = dataclasses.replace(dense, params=params)
            size = weight_bytes(folder)
            if name != "dense":
                size = lpjax.save_checkpoint(net, Path(out) / f"{name} saved")
            rows.append({"net": name, "runtime": "lpjax", "bytes": size, "spearman": stsb(net, pairs).spearman})
            runs.append(_by_lpjax(net))
            score = stsb(net, pairs, dtype=jnp.bfloat16).spearman
            rows.append({"net": name, "runtime": "lpjax, bfloat16", "bytes": size, "spearman": score})
            runs.append(_by_lpjax(net, jnp.bfloat16))
            lpjax.export_program(net, Path(out) / name, "onnx", pooled=True)
            path = Path(out) / name / "onnx" / "model.onnx"
            paths = {"onnxruntime": path}
            if name != "9.2 MB":  # whose weights are codes already
                paths["onnxruntime, dynamic int8"] = dynamic_int8(path)
            for runtime, file in paths.items():
                session = Session(dense, file)
                row = {"net": name, "runtime": runtime, "bytes": file.stat().st_size}
                files[name, runtime] = file
                rows.append(row | {"spearman": session.spearman(pairs)})
                runs.append(session)
                console.print(rows[-1])
        for runtime, dtype in (("PyTorch", "float32"), ("PyTorch, bfloat16", "bfloat16")):
            if (run := _by_torch(folder, dtype)) is not None:
                rows.append({"net": "dense", "runtime": runtime, "bytes": weight_bytes(folder), "spearman": None})
                runs.append(run)
        rng = np.random.default_rng(SEED)
        batches = {}
        for shape in SHAPES:
            ids = rng.integers(1000, 30000, shape)
            batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            batches[shape] = batch
            for row, seconds in zip(rows, _timed(runs, batch), strict=True):
                row[f"ms {shape[0]} x {shape[1]}"] = 1e3 * float(np.median(seconds))
                row[f"p95 {shape[0]} x {shape[1]}"] = 1e3 * float(np.percentile(seconds, 95))
        parts = [
            {"net": net, "runtime": runtime, **profile(Session(dense, file, Path(out) / "profile"), batches[SHAPES[0]])}
            for (net, runtime), file in files.items()
        ]
    for row in (*rows, *parts):
        console.print(row)
    run = run_record(SEED, "onnx", "onnxruntime", "torch")
    write_json(RESULTS, {"model": "all-MiniLM-L6-v2", "rounds": ROUNDS, **run, "rows": rows, "parts": parts})


def profile(session: Session, batch: Batch) -> dict[str, Any]:
    """Milliseconds of the parts of a program, by onnxruntime's profiler: the median of each node, added up.

    Also the number of products with weights, and of roundings for them. The profiler's own work is in the times.
    """
    for _ in range(ROUNDS + 2):
        session(batch)
    micros: dict[tuple[str, str], list[float]] = {}
    for event in session.events():
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            rank = max(
                (len(shape) for entry in event["args"]["output_type_shape"] for shape in entry.values()), default=0
            )
            kind = _part(event["args"]["op_name"], rank)
            micros.setdefault((kind, event["name"]), []).append(event["dur"])
    parts: dict[str, float] = dict.fromkeys(("products", "attention", "others"), 0.0)
    for (kind, _), times in micros.items():
        parts[kind] += float(np.median(times[2:])) / 1e3
    return {"ms": parts, "products": sum(kind == "products" for kind, _ in micros)}


def _part(op: str, rank: int) -> str:
    """The part of the program that an operator belongs to; attention alone has arrays with an axis for heads."""
    if op in ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"):
        return "products"
    if op == "MatMul" and rank <= 3:
        return "products"
    return "attention" if rank == 4 else "others"


def _timed(runs: Sequence[Callable[[Batch], Any]], batch: Batch) -> list[list[float]]:
    """The seconds of each run, all in turn."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(ROUNDS + 2):
        for run, own in zip(runs, times, strict=True):
            began = time.perf_counter()
            run(batch)
            if number >= 2:
                own.append(time.perf_counter() - began)
    return times


def _by_lpjax(net: lpjax.Checkpoint, dtype: Any = jnp.float32) -> Callable[[Batch], Any]:
    params = device_params(net.params, dtype, expand=True)  # as `embed_sentences` runs it

    def run(batch: Batch) -> Any:
        narrow = {name: array.astype(np.int32) for name, array in batch.items()}
        return jax.block_until_ready(lpjax.encode(params, net.config, narrow, dtype=dtype))

    return run


def _by_torch(folder: Path, dtype: str) -> Callable[[Batch], Any] | None:
    """PyTorch's transformers, if it is installed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return None
    import transformers

    torch.set_num_threads(THREADS)
    model = transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def run(batch: Batch) -> Any:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(array) for name, array in batch.items()})

    return run


if __name__ == "__main__":
    main()
