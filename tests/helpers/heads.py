"""The golden models with heads for tokens, answers and masked words."""

from __future__ import annotations

import numpy as np

import lpjax
from tests.helpers.goldens import GOLDENS, Golden, load_golden

CASES = sorted(path.name for path in (GOLDENS / "heads").iterdir())


def load_head(name: str) -> tuple[Golden, np.ndarray]:
    golden = load_golden(f"heads/{name}")
    assert golden.logits is not None
    return golden, golden.logits


def run(params, golden: Golden, **options):
    run = lpjax.fill_mask if golden.checkpoint.config.head == "words" else lpjax.classify
    return run(params, golden.checkpoint.config, golden.batch, **options)


def there(golden: Golden) -> np.ndarray:
    return golden.batch["attention_mask"].astype(bool)
