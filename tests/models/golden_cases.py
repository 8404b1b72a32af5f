"""The golden checkpoints that tests/goldens/make_bert.py made."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from lpjax.checkpoint import Checkpoint, load_checkpoint

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = ["bert_base", "bert_no_pooler", "bert_classifier", "bert_pretraining", "bert_bfloat16"]


class Golden(NamedTuple):
    checkpoint: Checkpoint
    batch: dict[str, np.ndarray]
    hidden_states: np.ndarray


def load_golden(name: str) -> Golden:
    batch = load_file(GOLDENS / name / "golden.safetensors")
    return Golden(load_checkpoint(GOLDENS / name), batch, batch.pop("hidden_states"))
