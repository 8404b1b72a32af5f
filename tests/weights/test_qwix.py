"""Arrays of qwix and `Quantized` hold the same codes: docs/guides/flax.md shows both ways. Optional, with qwix."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpjax import Quantized
from lpjax.rounding import round_groups

qwix: Any = pytest.importorskip("qwix")


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("axis", [0, 1])
def test_codes_go_there_and_back(bits, axis):
    kernel = np.random.default_rng(bits).normal(size=(64, 96)).astype(np.float32)
    ours = round_groups(kernel, bits, 32, axis=axis)

    # To qwix
    codes, scales = jnp.asarray(ours.host_codes(), jnp.int8), jnp.asarray(ours.scales, jnp.float32)
    theirs = qwix.QArray(*(part if axis == 1 else part.T for part in (codes, scales)))
    assert np.allclose(qwix.dequantize(theirs), ours.dense(), rtol=1e-6)
    inputs = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    product = qwix.dot_general(jnp.asarray(inputs), theirs, (((1,), (0,)), ((), ())))
    assert np.allclose(product, inputs @ ours, atol=1e-4)

    # And back
    lines = [np.asarray(part if axis == 1 else part.T) for part in (theirs.qvalue, theirs.scale)]
    again = Quantized.from_codes(lines[0], lines[1], axis=axis, group=32, bits=bits)
    assert np.array_equal(again.dense(), ours.dense())


def test_what_qwix_rounds_is_taken():
    kernel = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    theirs = qwix.quantize(jnp.asarray(kernel), jnp.int4, channelwise_axes=[1], tiled_axes={0: 32})
    codes, scales = np.asarray(theirs.qvalue, np.int8).T, np.asarray(theirs.scale).T
    ours = Quantized.from_codes(codes, scales, axis=0, group=32, bits=4)
    # Scales become float16.
    assert np.allclose(ours.dense(), qwix.dequantize(theirs), rtol=1e-3)
