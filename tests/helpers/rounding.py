"""A BERT large enough that headers of files do not count for much, its matrices with falling spectra."""

from __future__ import annotations

import dataclasses

import numpy as np

from lpjax.checkpoint import Checkpoint
from lpjax.models import BertConfig

CONFIG = BertConfig(
    vocab_size=3000, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
    max_position_embeddings=200,
)  # fmt: skip


def random_net(vocab_size: int = CONFIG.vocab_size) -> Checkpoint:
    """The model, with a vocabulary of `vocab_size` words."""
    rng = np.random.default_rng(0)

    def matrix(n: int, d: int) -> np.ndarray:
        scales = np.geomspace(1, 0.05, min(n, d))
        basis, _ = np.linalg.qr(rng.normal(size=(d, d)))
        return ((rng.normal(size=(n, len(scales))) * scales) @ basis[: len(scales)] * 0.05).astype(np.float32)

    layers = {
        str(number): {
            "attention": {
                "self": {name: _dense(matrix(48, 48)) for name in ("query", "key", "value")},
                "output": {"dense": _dense(matrix(48, 48)), "LayerNorm": _norm(48)},
            },
            "intermediate": {"dense": _dense(matrix(48, 192))},
            "output": {"dense": _dense(matrix(192, 48)), "LayerNorm": _norm(48)},
        }
        for number in range(2)
    }
    embeddings = {
        "word_embeddings": {"embedding": matrix(vocab_size, 48)},
        "position_embeddings": {"embedding": matrix(200, 48)},
        "token_type_embeddings": {"embedding": matrix(2, 48)},
        "LayerNorm": _norm(48),
    }
    config = dataclasses.replace(CONFIG, vocab_size=vocab_size)
    return Checkpoint({"embeddings": embeddings, "encoder": {"layer": layers}}, config)


def _dense(kernel: np.ndarray) -> dict:
    return {"kernel": kernel, "bias": np.zeros(kernel.shape[1], np.float32)}


def _norm(size: int) -> dict:
    return {"scale": np.ones(size, np.float32), "bias": np.zeros(size, np.float32)}
