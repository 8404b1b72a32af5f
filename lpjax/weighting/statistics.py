"""`Calibration`: statistics of a model's matrices on text, and their file.

The file is safetensors; its metadata hold the origin of the statistics as JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float

from lpjax._files.json import Count, Positive, RecordError, Text, as_type, json_line, parse_object, without_nulls
from lpjax._files.replacing import replacing
from lpjax._repr import short_repr
from lpjax.checkpoint.safetensors import read_tensors, write_tensors
from lpjax.checkpoint.targets import refuse_existing

SCHEMA = "lpjax-calibration/1"


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of one matrix: means over tokens, or sums for a table; None if not collected.

    x is the input of a kernel. g is the gradient of `Calibration.target` with respect to the output of a kernel or
    table; Σ gᵀδ over tokens is the effect of small errors δ on the model's output.

    Attributes:
        tokens: number of tokens. In the last layer of a model whose head reads one token per text, the number of texts.
            Inputs that all texts share, such as positions, count once per batch.
        inputs: mean of x xᵀ, shape (in, in), the metric of DRONE and SVD-LLM.
        mean: mean of x, shape (in,). No weighting uses it; it allows bias correction for the kernel's error.
        magnitude: mean of |x|, shape (in,), the scales of ASVD.
        outputs: mean of g gᵀ, shape (out, out).
        fisher: squared gradients with respect to the kernel, summed over its outputs, mean over the texts, shape (in,):
            the weights of FWSVD.
        counts: number of tokens of each row of a table, shape (rows,).
        gradients: sum of ‖g‖² over the tokens of each row, shape (rows,).

    For a table that is also the decoder of a word head, `counts`, `outputs` and `gradients` cover both uses, if there
    are gradients: the weight of a word has a term for its occurrences, and one for its logit's effect on predictions.
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
        """Name of the first statistic with NaN or infinity; None if all are finite."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not np.all(np.isfinite(value)):
                return field.name
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Statistics of a model's matrices, and their origin.

    Attributes:
        statistics: path -> `Statistics`.
        target: quantity that is differentiated: "labels", "predictions", "embedding"; "" without gradients.
        texts: number of texts or pairs.
        tokens: number of their tokens.
        seed: seed of the random directions.
        provenance: model, texts and versions, as JSON values.
    """

    statistics: Mapping[str, Statistics]
    target: str
    texts: int
    tokens: int
    seed: int
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        return short_repr(self)


SUMS = tuple(field.name for field in dataclasses.fields(Statistics) if field.name != "tokens")
"""Names of the arrays of `Statistics`."""


def save_calibration(calibration: Calibration, path: str | Path, *, overwrite: bool = False) -> int:
    """Write one safetensors file, whole or not at all, and return its size in bytes.

    Statistics that several matrices share, such as the inputs of query, key and value, are written once.

    Raises:
        FileExistsError: the file exists, and `overwrite` is not given.
        ValueError: `provenance` has values that JSON cannot represent.
        OSError: it cannot be written.
    """
    path = Path(path)
    refuse_existing(path, "calibration", overwrite=overwrite)
    arrays: dict[str, np.ndarray] = {}
    names: dict[bytes, str] = {}
    layers = []
    for leaf, statistics in calibration.statistics.items():
        layer: dict[str, Any] = {"path": leaf, "tokens": statistics.tokens}
        for name in SUMS:
            value = getattr(statistics, name)
            if value is not None:
                array = np.ascontiguousarray(value, np.float32)
                key = hashlib.sha256(array.data).digest() + str(array.shape).encode()
                layer[name] = names.setdefault(key, f"{leaf}:{name}")
                arrays[layer[name]] = array
        layers.append(layer)
    known = {key: getattr(calibration, key) for key in ("target", "texts", "tokens", "seed")}
    document = {"schema": SCHEMA, **known, "provenance": dict(calibration.provenance), "layers": layers}
    metadata = {"format": "np", "lpjax": json_line(document)}
    with replacing(path) as staging:
        return write_tensors(staging, arrays.items(), metadata)


def load_calibration(path: str | Path) -> Calibration:
    """The calibration in a file; its arrays are views of the file.

    Raises:
        RecordError: it is not a calibration of lpjax; names the file and the key.
        CheckpointError: it is not a whole safetensors file.
    """
    path = Path(path)
    arrays, metadata = read_tensors(path)
    if "lpjax" not in metadata:
        raise RecordError(f"{path} has no metadata `lpjax`; expected a file of `lpjax calibrate`")
    document = parse_object(metadata["lpjax"], str(path), schema=SCHEMA)
    stored = as_type(without_nulls(document), _Stored, str(path))
    statistics = {}
    for i, layer in enumerate(stored.layers):
        names = {name: getattr(layer, name) for name in SUMS}
        known = {
            name: _array(f'{path}: layers[{i}].{name} is "{tensor}"', name, arrays.get(tensor))
            for name, tensor in names.items()
            if tensor is not None
        }
        statistics[layer.path] = Statistics(layer.tokens, **known)
    return Calibration(statistics, stored.target, stored.texts, stored.tokens, stored.seed, stored.provenance)


_Layer: Any = msgspec.defstruct(
    "_Layer", [("path", Text), ("tokens", Positive), *((name, Text | None, None) for name in SUMS)]
)


class _Stored(msgspec.Struct):
    texts: Positive
    tokens: Positive
    seed: Count
    layers: tuple[_Layer, ...] = ()  # pyright: ignore[reportInvalidTypeForm]
    target: Text = ""
    provenance: dict[str, Any] = {}


def _array(place: str, name: str, array: np.ndarray | None) -> np.ndarray:
    """An array of a layer: a square matrix or a vector; finite, and not negative if it is a moment or a sum."""
    square = name in ("inputs", "outputs")
    fits = (
        array is not None
        and array.dtype == np.float32
        and array.ndim == (2 if square else 1)
        and array.size > 0
        and (not square or array.shape[0] == array.shape[1])
        and bool(np.all(np.isfinite(array)))
        and (name == "mean" or bool(np.all((np.diagonal(array) if square else array) >= 0)))
    )
    if array is None or not fits:
        kind = "a square float32 matrix" if square else "a float32 vector"
        raise RecordError(
            f"{place}; expected the name of a tensor that is {kind}, finite{'' if name == 'mean' else ', not negative'}"
        )
    return array
