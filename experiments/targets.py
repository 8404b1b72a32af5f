"""Every net in every runtime, its logits there against lpjax's: `python -m experiments.targets`.

Needs PyTorch, transformers 5, onnx, onnxruntime, keras and keras-hub, which lpjax does not: run it in an environment
that has them. Writes experiments/results/targets.json; with names of nets as arguments, only their rows of it. Nets
have three layers of the sizes of all-MiniLM-L6-v2, 8,192 tokens, random weights and a classification head. Each is
saved

- dense;
- factored: half of the parameters of every kernel and table, by the SVD;
- quantized: to a quarter of its bytes, as `--size 25%` does;
- in bfloat16: factored, and all of it in that dtype.

The reference is lpjax, in float32 as by default, with the weights that are in the file. A runtime loads what a user
would load: the folder in PyTorch, with `trust_remote_code` if it is compressed, the exports in onnxruntime and in JAX,
and a model of keras-hub that was saved and loaded again. PyTorch computes in the dtype of the file, the others in
float32.
"""

# They are no dependencies of lpjax.
# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity import NETS, SEED, error, load_torch, padded_batch, run_torch, torch_model
from experiments.readme import targets_table
from lpjax import Checkpoint, classify, compress, load_checkpoint, plan_for_size, save_checkpoint
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax._tree import walk
from lpjax.checkpoint.safetensors import read_tensors
from lpjax.export import export_program

Batch = dict[str, np.ndarray]

_KERAS = {"bert": "Bert", "distilbert": "DistilBert", "roberta": "Roberta"}
_SIZES = {"hidden_size": 384, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 1536}
_NAMES = {
    "distilbert": ("dim", "n_layers", "n_heads", "hidden_dim"),
    "xlnet": ("d_model", "n_layer", "n_head", "d_inner"),
}

_OWN: dict[str, dict[str, Any]] = {
    "bert": {"hidden_act": "gelu_new"},  # as keras-hub has it
    "roberta": {"layer_norm_eps": 1e-5},  # as well
    "modernbert": {"pad_token_id": 0},  # its own is beyond the vocabulary
}


def sizes_of(net: str) -> dict[str, Any]:
    """The sizes, by the names that the net's config has for them."""
    return dict(zip(_NAMES.get(net, _SIZES), _SIZES.values(), strict=True), vocab_size=8192) | _OWN.get(net, {})


def kinds_of(dense: Checkpoint) -> dict[str, Checkpoint]:
    """The net in each kind."""
    options: dict[str, Any] = {"select": ["embeddings", "encoder"], "keep": 0.5, "solver": "svd"}
    half = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.bfloat16), dense.params)
    params = {
        "dense": dense.params,
        "factored": compress(dense.params, **options).params,
        "quantized": compress(dense.params, plan=plan_for_size(dense.params, 0.25)).params,
        "bfloat16": compress(half, **options).params,
    }
    return {kind: dataclasses.replace(dense, params=tree, source=None) for kind, tree in params.items()}


def in_torch(net: Checkpoint, folder: Path, batch: Batch, place: Path) -> tuple[np.ndarray, int]:
    """Logits in PyTorch, and bytes of the file; `folder` is the checkpoint's, `place` is for files."""
    trust = (folder / "lpjax.safetensors").exists()
    model = load_torch("AutoModelForSequenceClassification", folder, trust_remote_code=trust)
    return run_torch(model, batch), bytes_in(folder, "*.safetensors")


def in_onnxruntime(net: Checkpoint, folder: Path, batch: Batch, place: Path) -> tuple[np.ndarray, int]:
    """As `in_torch`, of the ONNX export."""
    import onnxruntime

    export_program(net, place, "onnx")
    session = onnxruntime.InferenceSession(str(place / "onnx" / "model.onnx"))
    known = {name: ids.astype(np.int64) for name, ids in batch.items()}
    (logits,) = session.run(None, {item.name: known[item.name] for item in session.get_inputs()})
    return np.asarray(logits), bytes_in(place, "onnx/*")


def in_stablehlo(net: Checkpoint, folder: Path, batch: Batch, place: Path) -> tuple[np.ndarray, int]:
    """As `in_torch`, of the StableHLO export."""
    export_program(net, place, "stablehlo")
    program = jax.export.deserialize(bytearray((place / "stablehlo" / "program.bin").read_bytes()))
    weights = read_tensors(place / "stablehlo" / "weights.safetensors")[0]
    (_, names), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    (logits,) = program.call(dict(weights), {name: batch[name] for name in names})
    return np.asarray(logits), bytes_in(place, "stablehlo/*")


def in_keras(net: Checkpoint, folder: Path, batch: Batch, place: Path) -> tuple[np.ndarray, int]:
    """As `in_torch`, of a model of keras-hub with factored layers; codes are expanded."""
    import keras
    import keras_hub

    import lpjax.keras

    config = net.config
    sizes = {
        "vocabulary_size": config.to_json()["vocab_size"],
        "max_sequence_length": config.max_length,
        "num_layers": _SIZES["num_hidden_layers"],
        "num_heads": _SIZES["num_attention_heads"],
        "hidden_dim": _SIZES["hidden_size"],
        "intermediate_dim": _SIZES["intermediate_size"],
    }
    name = _KERAS[config.model_type]
    backbone = getattr(keras_hub.models, f"{name}Backbone")(**sizes)
    model = getattr(keras_hub.models, f"{name}TextClassifier")(backbone, num_classes=3)
    factored = any(isinstance(leaf, lpjax.LowRank) for _, leaf in walk(net.params))
    lpjax.keras.to_keras(net, model, factored=factored)
    place.mkdir()
    model.save(place / "model.keras")
    again = keras.saving.load_model(place / "model.keras", compile=False)
    inputs = {"token_ids": batch["input_ids"], "padding_mask": batch["attention_mask"]}
    inputs |= {"segment_ids": batch["token_type_ids"]} if "token_type_ids" in batch else {}
    return np.asarray(again(inputs)), bytes_in(place, "*.keras")


RUNTIMES: dict[str, Callable[..., tuple[np.ndarray, int]]] = {
    "onnx": in_onnxruntime,
    "torch": in_torch,
    "stablehlo": in_stablehlo,
    "keras": in_keras,
}


def bytes_in(folder: Path, pattern: str) -> int:
    """Size of the files that match."""
    return sum(path.stat().st_size for path in folder.glob(pattern))


def measure(net: str, folder: Path) -> list[dict[str, Any]]:
    """A row for each kind of a net: bytes of the checkpoint, and of each runtime the largest error and the bytes.

    Args:
        net: its model type.
        folder: for files.
    """
    model = torch_model(net, **sizes_of(net))
    batch = padded_batch(net, model.config)
    model.save_pretrained(folder / "torch")
    rows = []
    for kind, checkpoint in kinds_of(load_checkpoint(folder / "torch")).items():
        size = save_checkpoint(checkpoint, folder / kind)
        saved = load_checkpoint(folder / kind)
        expected = np.asarray(classify(saved.params, saved.config, batch))
        row: dict[str, Any] = {"net": net, "kind": kind, "bytes": size}
        for runtime, run in RUNTIMES.items():
            if runtime == "keras" and net not in _KERAS:
                continue
            logits, there = run(saved, folder / kind, batch, folder / f"{kind} {runtime}")
            row[runtime] = {"error": error(logits, expected), "bytes": there}
        rows.append(row)
    return rows


def main() -> None:
    """The nets that are named, or every net: a table, and their rows of the record."""
    os.environ["KERAS_BACKEND"] = "jax"
    path, nets = Path(__file__).parent / "results" / "targets.json", sys.argv[1:] or NETS
    record = run_record(SEED, "torch", "onnx", "onnxruntime", "keras", "keras-hub")
    rows: list[dict[str, Any]] = []
    if path.exists():
        rows = [row for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if row["net"] not in nets]
    for net in nets:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(net, Path(folder))
        rows.sort(key=lambda row: NETS.index(row["net"]))
        write_json(path, record | {"rows": rows})
    print(targets_table({"rows": rows}))


if __name__ == "__main__":
    main()
