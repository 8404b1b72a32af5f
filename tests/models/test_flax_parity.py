"""Parity with transformers' Flax models, whose params lpjax takes as they are; only before version 5, which drops them.

Last passed with transformers 4.57.6, flax 0.12.8 and jax 0.10.2, in an environment of its own:

    python -m venv ENV && ENV/bin/pip install -e . --group dev 'transformers==4.57.*'
    ENV/bin/python -m pytest tests/models/test_flax_parity.py
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax

if int(version("transformers").partition(".")[0]) > 4:
    pytest.skip("transformers 5 has no Flax models", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

VOCAB, LENGTH = 61, 9
SIZES: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 15, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZES |= {"intermediate_size": 29, "max_position_embeddings": 17, "num_labels": 4}
DISTILBERT: dict[str, Any] = {"vocab_size": VOCAB, "dim": 15, "n_layers": 2, "n_heads": 3, "hidden_dim": 29}
DISTILBERT |= {"max_position_embeddings": 17, "num_labels": 4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SIZES),
    "bert, other activation, epsilon and type table": (
        "Bert",
        SIZES | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "type_vocab_size": 3},
    ),
    "roberta": ("Roberta", SIZES | {"type_vocab_size": 1}),
    "roberta, other padding": ("Roberta", SIZES | {"pad_token_id": 5, "hidden_act": "relu", "layer_norm_eps": 1e-5}),
    "distilbert": ("DistilBert", DISTILBERT),
    "distilbert, other activation": ("DistilBert", DISTILBERT | {"activation": "relu"}),
}


@pytest.fixture(autouse=True)
def usual_promotion() -> Iterator[None]:
    """transformers' code promotes ranks and dtypes."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("case", CASES)
def test_params_of_flax_models_run_as_they_are(case):
    import transformers

    net, options = CASES[case]
    config = getattr(transformers, f"{net}Config")(**options)
    ours = lpjax.config_from_json(config.to_dict())
    rng = np.random.default_rng(0)
    ids = rng.integers(6, VOCAB, (2, LENGTH))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    ids[mask == 0] = config.pad_token_id
    batch = {"input_ids": ids, "attention_mask": mask}
    inputs = dict(batch)
    if net == "Bert":
        inputs["token_type_ids"] = batch["token_type_ids"] = rng.integers(
            0, options.get("type_vocab_size", 2), ids.shape
        )

    for head in ("Model", "ForSequenceClassification"):
        theirs = getattr(transformers, f"Flax{net}{head}")(config)
        # Fresh models have biases of zero and scales of one, which would hide a mistake.
        params = jax.tree.map(lambda x: x + 0.3 * jnp.asarray(rng.normal(size=x.shape), x.dtype), theirs.params)
        if head == "Model":
            expected = np.asarray(theirs(**inputs, params=params).last_hidden_state)[mask == 1]
            actual = np.asarray(lpjax.encode(params, ours, batch))[mask == 1]
        else:
            expected = np.asarray(theirs(**inputs, params=params).logits)
            actual = np.asarray(lpjax.classify(params, ours, batch))
            assert actual.shape == (2, 4)
        assert np.abs(actual - expected).max() <= 1e-5 * max(1, np.abs(expected).max()), head
