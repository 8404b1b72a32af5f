"""Files of exported programs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from lpjax._extras import require
from lpjax.checkpoint.safetensors import write_tensors
from lpjax.export.program import Program
from lpjax.weights.exporting import exporting

PLATFORMS = ("cpu", "cuda", "tpu")
_LARGEST = 1_900_000_000  # bytes of weights inside model.onnx, which is a protobuf of at most 2 GiB


def write_onnx(program: Program, folder: Path) -> int:
    """Write model.onnx, with the weights in model.onnx_data if they exceed 1.9 GB, and return the size in bytes.

    Raises:
        MissingExtra: onnx is not installed.
        NotImplementedError: lpjax cannot express a part of the program in ONNX; names it.
    """
    require("onnx", "an export to ONNX")
    import onnx

    from lpjax.export._onnx import onnx_model

    large = sum(array.nbytes for array in program.weights.values()) > _LARGEST
    options = {"save_as_external_data": True, "location": "model.onnx_data"} if large else {}
    onnx.save_model(onnx_model(program), folder / "model.onnx", **options)
    return sum(path.stat().st_size for path in folder.iterdir())


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Trace programs without the files and lines of their source, which differ between machines."""
    before = jax.config.jax_traceback_in_locations_limit  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def write_stablehlo(program: Program, folder: Path) -> int:
    """Write program.bin, serialized by `jax.export` for `PLATFORMS`, and weights.safetensors; return the size in
    bytes."""
    weights = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in program.weights.items()}
    with exporting(), _without_tracebacks():
        exported = jax.export.export(jax.jit(program.function), platforms=PLATFORMS)(weights, program.shapes())
    code = bytes(exported.serialize())
    (folder / "program.bin").write_bytes(code)
    pairs = [(name, np.asarray(array)) for name, array in program.weights.items()]
    return len(code) + write_tensors(folder / "weights.safetensors", pairs)
