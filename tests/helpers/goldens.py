"""The golden checkpoints that tests/goldens/make_goldens.py made."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from lpjax.checkpoint import Checkpoint, load_checkpoint
from tests.conftest import GOLDENS

CASES = sorted(path.parent.name for path in GOLDENS.glob("*/golden.safetensors"))
NETS = [f"{net}_base" for net in ("bert", "distilbert", "roberta", "xlnet", "mpnet", "electra", "modernbert", "albert")]


class Golden(NamedTuple):
    checkpoint: Checkpoint
    batch: dict[str, np.ndarray]
    hidden_states: np.ndarray
    logits: np.ndarray | None


def load_golden(name: str) -> Golden:
    batch = load_file(GOLDENS / name / "golden.safetensors")
    hidden, logits = batch.pop("hidden_states"), batch.pop("logits", None)
    return Golden(load_checkpoint(GOLDENS / name), batch, hidden, logits)
