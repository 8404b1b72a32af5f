"""The file of `lpjax calibrate`: safetensors, with what they were made of as JSON in its metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lpjax._files.json import Fields, RecordError, parse_object
from lpjax._files.replacing import replacing
from lpjax.checkpoint.documents import refuse_existing
from lpjax.checkpoint.safetensors import read_tensors, write_tensors
from lpjax.weighting.statistics import Calibration, Statistics

SCHEMA = "lpjax-calibration/1"
_SUMS = tuple(field.name for field in dataclasses.fields(Statistics) if field.name != "tokens")


def save_calibration(calibration: Calibration, path: str | Path, *, overwrite: bool = False) -> int:
    """Write one safetensors file, whole or not at all, and return its size in bytes.

    What several matrices share, as query, key and value their inputs, is written once.

    Raises:
        FileExistsError: the file is there, and `overwrite` is not given.
        ValueError: `provenance` holds what JSON cannot say.
        OSError: it cannot be written.
    """
    path = Path(path)
    refuse_existing(path, "calibration", overwrite=overwrite)
    arrays: dict[str, np.ndarray] = {}
    names: dict[bytes, str] = {}
    layers = []
    for leaf, statistics in calibration.statistics.items():
        layer: dict[str, Any] = {"path": leaf, "tokens": statistics.tokens}
        for name in _SUMS:
            value = getattr(statistics, name)
            if value is not None:
                array = np.ascontiguousarray(value, np.float32)
                key = hashlib.sha256(array.data).digest() + str(array.shape).encode()
                layer[name] = names.setdefault(key, f"{leaf}:{name}")
                arrays[layer[name]] = array
        layers.append(layer)
    told = {key: getattr(calibration, key) for key in ("target", "texts", "tokens", "seed")}
    document = {"schema": SCHEMA, **told, "provenance": dict(calibration.provenance), "layers": layers}
    metadata = {"format": "np", "lpjax": json.dumps(document, allow_nan=False)}
    with replacing(path) as fresh:
        return write_tensors(fresh, arrays.items(), metadata)


def load_calibration(path: str | Path) -> Calibration:
    """The calibration in a file, its arrays views of it.

    Raises:
        RecordError: it is no calibration of lpjax; names the file and the key.
        CheckpointError: it is no whole safetensors file.
    """
    path = Path(path)
    arrays, metadata = read_tensors(path)
    if "lpjax" not in metadata:
        raise RecordError(f"{path} has no metadata `lpjax`; expected a file of `lpjax calibrate`")
    fields = parse_object(metadata["lpjax"], str(path))
    if fields.data.get("schema") != SCHEMA:
        raise fields.refuse("schema", f'"{SCHEMA}"')
    statistics = {}
    for layer in fields.objects("layers"):
        found = Statistics(
            layer.need("tokens", layer.count("tokens", 1)),
            **{name: _array(layer, name, arrays) for name in _SUMS if name in layer},
        )
        statistics[layer.need("path", layer.text("path"))] = found
    return Calibration(
        statistics,
        fields.text("target") or "",
        fields.need("texts", fields.count("texts", 1)),
        fields.need("tokens", fields.count("tokens", 1)),
        fields.need("seed", fields.count("seed")),
        fields.anything("provenance"),
    )


def _array(layer: Fields, name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """An array of a layer: a matrix that is square, or a vector; finite, and not negative where that has no sense."""
    array = arrays.get(layer.need(name, layer.text(name)))
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
        raise layer.refuse(
            name, f"the name of a tensor that is {kind}, finite{'' if name == 'mean' else ', not negative'}"
        )
    return array
