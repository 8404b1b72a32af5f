"""`Calibration`: what text says of which rows and directions of a net's matrices matter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from lpjax._repr import short_repr


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """What went through one matrix: means over tokens, of a table sums; None for what was not asked for.

    x is what a kernel is multiplied by. g is the gradient of `Calibration.target` by what comes out of a kernel or
    table; Σ gᵀδ over tokens is what small errors δ do to the net's output.

    Attributes:
        tokens: how many. Of the last layer of a net whose head reads one token of a text, one a text. What no text has
            for itself, XLNet's relative positions and other nets' position tables, counts once a batch.
        inputs: mean of x xᵀ, shape (in, in), the metric of DRONE and SVD-LLM.
        mean: of x, shape (in,): of no weighting, for callers who correct a bias by what its kernel lost.
        magnitude: mean of |x|, shape (in,), of which ASVD makes its scales.
        outputs: mean of g gᵀ, shape (out, out).
        fisher: sums over the outputs of the squared gradients of texts by the kernel, shape (in,), over the number of
            texts: the weights of FWSVD.
        counts: tokens of each row of a table, shape (rows,).
        gradients: sum of ‖g‖² over the tokens of each row, shape (rows,).

    Of a table that a word head decodes by, too, `counts`, `outputs` and `gradients` are those of both uses together, if
    there were gradients: a word counts as often as it is read, and for what its logit does to the predictions.
    """

    tokens: int
    inputs: Float[np.ndarray, "n n"] | None = None
    mean: Float[np.ndarray, " n"] | None = None
    magnitude: Float[np.ndarray, " n"] | None = None
    outputs: Float[np.ndarray, "d d"] | None = None
    fisher: Float[np.ndarray, " n"] | None = None
    counts: Float[np.ndarray, " n"] | None = None
    gradients: Float[np.ndarray, " n"] | None = None

    def __repr__(self) -> str:
        return short_repr(self)

    def not_finite(self) -> str | None:
        """The first that holds NaN or infinity, by its name."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not np.all(np.isfinite(value)):
                return field.name
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Statistics of a net's matrices, and what they were made of.

    Attributes:
        statistics: by path.
        target: what gradients are of: "labels", "predictions", "embedding", or "" where there are none.
        texts: how many texts or pairs.
        tokens: how many they have.
        seed: of the random directions.
        provenance: of the model, the texts, the versions; what JSON can say.
    """

    statistics: Mapping[str, Statistics]
    target: str
    texts: int
    tokens: int
    seed: int
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        return short_repr(self)
