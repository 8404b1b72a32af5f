"""Every net against PyTorch's transformers at full base size, with random weights: `python -m experiments.parity`.

Needs torch, which lpjax does not: run it in an environment that has torch, transformers 5 and lpjax. Prints a table of
the largest absolute error in each cell and writes experiments/results/parity.json:

- goldens: hidden states of tokens, and logits, against the committed files of tests/goldens;
- live: logits of a net of 12 layers (ModernBERT: 22) and hidden size 768 with a classification head, against torch's,
  padded;
- round trip: weights, torch → lpjax → torch;
- reload: weights and logits of the net with every kernel and table factored, saved and loaded again;
- export: logits of that net's dense export, loaded by AutoModelForSequenceClassification, against lpjax's; and base:
  hidden states of its base model, loaded by AutoModel; a missing or unexpected key is an error;
- full rank: logits with every kernel and table factored at full rank, against those of the dense net.
"""

# lpjax does not depend on PyTorch.
# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from experiments.readme import parity_table
from lpjax import LowRank, classify, compress, encode, export_checkpoint, load_checkpoint, save_checkpoint
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.checkpoint import Checkpoint
from lpjax.models import name_table

GOLDENS = Path(__file__).parents[1] / "tests" / "goldens"
NETS = ("bert", "distilbert", "roberta", "xlnet", "modernbert", "albert", "mpnet", "electra")
SEED = 0
# Wider than the nets' own initialization, so that attention is not even and logits are of order one.
_SPREAD = {"initializer_range": 0.05, "num_labels": 3}


def torch_model(net: str, **sizes: Any) -> Any:
    """A random model of `net` with a classification head, of base size by default."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(SEED)
    own: dict[str, dict[str, Any]] = {}
    own["roberta"] = {"max_position_embeddings": 514, "type_vocab_size": 1, "vocab_size": 50265}
    own["xlnet"] = {"d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072}
    own["distilbert"] = {"n_layers": 12}
    own["modernbert"] = {"classifier_pooling": "mean", "local_attention": 16}  # shorter than the texts
    own["albert"] = own["electra"] = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    own["mpnet"] = {"max_position_embeddings": 514}
    config = AutoConfig.for_model(net, **{**_SPREAD, **own.get(net, {}), **sizes})
    return AutoModelForSequenceClassification.from_config(config).eval()


def padded_batch(net: str, config: Any, rows: int = 3, length: int = 48) -> dict[str, np.ndarray]:
    """Random tokens, padded on the side that the net's tokenizer pads, with two token types if the net has them."""
    rng = np.random.default_rng(SEED)
    lengths = np.linspace(length, length // 5, rows).astype(int)
    mask = (np.arange(length)[None] < lengths[:, None]).astype(np.int32)
    mask = mask[:, ::-1] if net == "xlnet" else mask
    ids = rng.integers(10, config.vocab_size, size=mask.shape, dtype=np.int32)
    ids = np.where(mask == 1, ids, config.pad_token_id).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ascontiguousarray(mask)}
    if net in ("bert", "xlnet", "albert", "electra"):
        batch["token_type_ids"] = (np.arange(length)[None] > lengths[:, None] // 2).astype(np.int32)
    return batch


def run_torch(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Logits, or the last hidden states of a base model, in float32."""
    import torch

    with torch.no_grad():
        outputs = model(**{key: torch.from_numpy(value).long() for key, value in batch.items()})
    return (outputs.logits if "logits" in outputs else outputs.last_hidden_state).float().numpy()


def load_torch(kind: str, folder: Path, **options: Any) -> Any:
    """`transformers.<kind>` of a folder, which must load without missing or unknown keys; options of transformers."""
    import transformers

    model, loading_info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, **options)
    faults = {key: value for key, value in loading_info.items() if value}
    if faults:
        raise ValueError(f"{folder} does not load whole: {faults}")
    return model.eval()


def error(left: Any, right: Any) -> float:
    """Largest absolute difference."""
    return float(np.max(np.abs(np.asarray(left, np.float64) - np.asarray(right, np.float64))))


def goldens(net: str) -> float:
    """The largest error of hidden states and logits over the net's golden files."""
    worst = 0.0
    for path in sorted(GOLDENS.glob(f"{net}_*/golden.safetensors")):
        batch, checkpoint = load_file(path), load_checkpoint(path.parent)
        hidden, logits = batch.pop("hidden_states"), batch.pop("logits", None)
        there = batch["attention_mask"].astype(bool)
        encoded = np.asarray(encode(checkpoint.params, checkpoint.config, batch))
        worst = max(worst, error(encoded[there], hidden[there]))
        if logits is not None:
            worst = max(worst, error(classify(checkpoint.params, checkpoint.config, batch), logits))
    return worst


def full_rank(params: dict[str, Any]) -> dict[str, Any]:
    """Every kernel and table as a pair of full rank, AQ and Qᵀ, of a random rotation Q."""
    rng = np.random.default_rng(SEED)
    rotations: dict[int, np.ndarray] = {}

    def rotate(path: Any, leaf: Any) -> Any:
        if path[-1].key not in ("kernel", "embedding"):
            return leaf
        width = leaf.shape[1]
        if width not in rotations:
            rotations[width] = np.linalg.qr(rng.standard_normal((width, width)))[0]
        left = np.asarray(leaf, np.float64) @ rotations[width]
        return LowRank(left.astype(np.float32), rotations[width].T.astype(np.float32))

    return jax.tree_util.tree_map_with_path(rotate, params)


def measure(net: str, folder: Path, **sizes: Any) -> dict[str, float]:
    """Every column but the goldens, of one net; `folder` is for files."""
    model = torch_model(net, **sizes)
    batch = padded_batch(net, model.config)
    model.save_pretrained(folder / "torch")
    dense = load_checkpoint(folder / "torch")
    logits = classify(dense.params, dense.config, batch)
    errors = {"live": error(logits, run_torch(model, batch))}

    save_checkpoint(dense, folder / "again")
    again = load_torch("AutoModelForSequenceClassification", folder / "again").state_dict()
    before = model.state_dict()
    if again.keys() != before.keys():
        raise ValueError(f"{net}: weights lost or added: {sorted(again.keys() ^ before.keys())}")
    errors["round trip"] = max(error(again[name].numpy(), before[name].numpy()) for name in before)

    params, _ = compress(dense.params, select=["embeddings", "encoder"], keep=0.5, solver="svd", p=2.0)
    smaller = dataclasses.replace(dense, params=params, compression={"method": "svd", "p": 2.0})
    save_checkpoint(smaller, folder / "smaller")
    reloaded = load_checkpoint(folder / "smaller")
    rough = classify(params, dense.config, batch)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(reloaded.params), strict=True)
    errors["reload"] = max(
        error(classify(reloaded.params, reloaded.config, batch), rough), *(error(leaf, other) for leaf, other in leaves)
    )

    export_checkpoint(reloaded, folder / "dense")
    exported = load_torch("AutoModelForSequenceClassification", folder / "dense")
    base = _base(reloaded)
    export_checkpoint(base, folder / "base")
    hidden = encode(base.params, base.config, batch)
    visible = batch["attention_mask"].astype(bool)
    errors["export"] = error(run_torch(exported, batch), rough)
    theirs = run_torch(load_torch("AutoModel", folder / "base"), batch)
    errors["base"] = error(theirs[visible], np.asarray(hidden)[visible])
    errors["full rank"] = error(classify(full_rank(dense.params), dense.config, batch), logits)
    return errors


def _base(checkpoint: Checkpoint) -> Checkpoint:
    """The base model alone. RoBERTa's and MPNet's classifiers lack a pooler, which AutoModel has: they get one."""
    inner = checkpoint.params[name_table(checkpoint.config).prefix]
    if checkpoint.config.model_type in ("roberta", "mpnet") and "pooler" not in inner:
        size = checkpoint.config.to_json()["hidden_size"]
        zeros = {"kernel": np.zeros((size, size), np.float32), "bias": np.zeros(size, np.float32)}
        inner = inner | {"pooler": {"dense": zeros}}
    return dataclasses.replace(checkpoint, params=inner)


def main() -> None:
    """Every net, a table, and the record."""

    cells: dict[str, dict[str, float]] = {}
    for net in NETS:
        with tempfile.TemporaryDirectory() as folder:
            cells[net] = {"goldens": goldens(net), **measure(net, Path(folder))}
    record = run_record(SEED, "torch")
    write_json(Path(__file__).parent / "results" / "parity.json", record | {"cells": cells})
    print(parity_table({"cells": cells}))


if __name__ == "__main__":
    main()
