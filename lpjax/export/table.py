"""The table of runtimes for which a checkpoint can be exported.

A new runtime is a function, a line here, and the name of its file in `lpjax.checkpoint.formats.PROGRAM_FILES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lpjax._check import check_name
from lpjax.checkpoint import Checkpoint, export_folder
from lpjax.checkpoint.formats import FORMATS
from lpjax.export._files import write_onnx, write_stablehlo
from lpjax.export.program import Program, program_of

RUNTIMES: dict[str, Callable[[Program, Path], int]] = {"onnx": write_onnx, "stablehlo": write_stablehlo}
"""Runtime, also the folder's name -> function (program, folder) that writes its files and returns the size in bytes."""
DENSE = {entry.target or name: name for name, entry in FORMATS.items()}
"""Name for `lpjax export --to` -> format of the dense file."""
TARGETS = (*DENSE, *RUNTIMES)
"""All values of `lpjax export --to`."""


def export_program(
    checkpoint: Checkpoint,
    folder: str | Path,
    runtime: str = "onnx",
    *,
    pooled: bool = False,
    overwrite: bool = False,
    extra_files: Mapping[str, str | Callable[[int], str]] | None = None,
) -> int:
    """Save the forward pass of a checkpoint, compressed or dense, for another runtime.

    Factors stay two products, and codes of quantized weights stay packed in the file. Those of kernels are expanded
    once, when a runtime loads the program; those of tables when rows are looked up. Single entries stay sparse. Codes
    are not entropy coded, so the file of a checkpoint made by `plan_for_size` is larger than the checkpoint.

    Batch size and length are free. Inputs are `input_ids`, `attention_mask` and, if the model distinguishes segments,
    `token_type_ids`; outputs are `last_hidden_state`, or for a head `logits`, or `start_logits` and `end_logits`.

    Args:
        checkpoint: the checkpoint to export; weights that the forward pass does not use are left out.
        folder: the folder to write, with config.json, the tokenizer's files, and a subfolder for the runtime.
        runtime: "onnx": onnx/model.onnx of opset 21, with inputs of int64, as optimum and sentence-transformers
            (`backend="onnx"`) read it. "stablehlo": stablehlo/program.bin for `jax.export.deserialize`, on CPU, CUDA
            and TPU, and stablehlo/weights.safetensors; its inputs are int32.
        pooled: for an encoder of sentences, whether `sentence_embedding` is an output, too.
        overwrite, extra_files: as in `save_checkpoint`.

    Returns:
        Size of the runtime's files in bytes.

    Raises:
        ValueError: `runtime` is unknown, `pooled` is set for a model with a head, or the model is an XLNet with
            `bi_data`; also as `save_checkpoint`.
        MissingExtra: a package of the runtime is not installed.
        FileExistsError, FileNotFoundError: as `save_checkpoint`.
    """
    check_name("runtime", runtime, RUNTIMES)
    program = program_of(checkpoint, pooled=pooled)

    def write(staging: Path) -> int:
        inner = staging / runtime
        inner.mkdir()
        return RUNTIMES[runtime](program, inner)

    stored: dict[str, int] = {}
    for name, array in program.weights.items():
        path = name.partition(".")[0]
        stored[path] = stored.get(path, 0) + array.nbytes
    return export_folder(checkpoint, folder, write, overwrite=overwrite, extra_files=extra_files, stored=stored)
