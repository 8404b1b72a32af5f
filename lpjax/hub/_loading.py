"""How to load a folder in each library that can read it: paragraphs and code for its card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lpjax.checkpoint.formats import FACTORED_WEIGHTS, PROGRAM_FILES, WEIGHTS
from lpjax.models import ARCHITECTURES

REPO = "OWNER/NAME"
"""Placeholder in example code for the folder's id on the hub, which `lpjax push` fills in."""

_HEADS = {
    "sequence": ("ForSequenceClassification", "classify"),
    "tokens": ("ForTokenClassification", "classify"),
    "spans": ("ForQuestionAnswering", "classify"),
    "words": ("ForMaskedLM", "fill_mask"),
    None: ("", "encode"),
}
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")
_TEXTS = '["a cat", "a dog"]'
_TOKENIZED = f"""tokenizer = AutoTokenizer.from_pretrained("{REPO}")
inputs = tokenizer({_TEXTS}, padding=True, return_tensors="np")"""
_IDS = """inputs = {name: np.full((1, 3), value) for name, value in [("input_ids", 2), ("attention_mask", 1)]}
inputs["token_type_ids"] = np.zeros((1, 3), int)"""
_ZEROS = 'zeros = np.zeros_like(inputs["input_ids"])  # for a tokenizer that gives no token types'
_IMPORTS = {True: "from transformers import AutoTokenizer", False: "import numpy as np"}


def runtime_of(folder: Path) -> str | None:
    """The runtime that a folder holds a program for, one of `PROGRAM_FILES`."""
    return next((name for name, file in PROGRAM_FILES.items() if (folder / name / file).is_file()), None)


def loading(folder: Path, head: str | None, model_type: str) -> Iterator[str]:
    """The card's paragraphs on loading a folder, whose other files are already written.

    Args:
        folder: the folder.
        head: head of the saved model, one of `HEADS`, or None.
        model_type: model type of its config.json.
    """
    reads = any(any(folder.glob(pattern)) for pattern in _VOCABULARIES)
    inputs = _TOKENIZED if reads else _IDS
    sentences = reads and head is None and (folder / "modules.json").exists()
    suffix, run = _HEADS[head]
    if (runtime := runtime_of(folder)) is not None:
        yield "In onnxruntime:" if runtime == "onnx" else "In JAX, without lpjax:"
        yield _onnx(reads, inputs) if runtime == "onnx" else _stablehlo(reads, inputs)
        return
    yield "In lpjax (`pip install lpjax`):"
    made = f'checkpoint = lpjax.load_checkpoint("{REPO}")'
    if sentences:
        yield _python("import lpjax", made, f"vectors = lpjax.evaluation.embed_sentences(checkpoint, {_TEXTS}).vectors")
    else:
        lines = (made, inputs, f"outputs = lpjax.{run}(checkpoint.params, checkpoint.config, inputs)")
        yield _python(f"import lpjax\n{_IMPORTS[reads]}", *lines)
    compressed = (folder / FACTORED_WEIGHTS).exists()
    if not compressed and not (folder / WEIGHTS).exists():
        if ARCHITECTURES[model_type].config.has_flax_class:
            yield f'In Flax, with transformers 4: `FlaxAutoModel{suffix}.from_pretrained("{REPO}")`.'
        return
    trust = ", trust_remote_code=True" if compressed else ""
    if compressed:
        yield (
            "Without lpjax, in PyTorch: `trust_remote_code=True` lets the library run three files of this folder, "
            "which you can read first: `modeling_lpjax.py`, `lpjax_weights.py` and `lpjax_codes.py`."
        )
    else:
        yield "Without lpjax, in PyTorch:"
    if sentences:
        lines = (f'model = SentenceTransformer("{REPO}"{trust})', f"vectors = model.encode({_TEXTS})")
        yield _python("from sentence_transformers import SentenceTransformer", *lines)
    lines = (f'model = AutoModel{suffix}.from_pretrained("{REPO}"{trust})',)
    if reads:
        lines += (_TOKENIZED.replace('"np"', '"pt"'), "outputs = model(**inputs)")
    yield _python(f"from transformers import AutoModel{suffix}{', AutoTokenizer' if reads else ''}", *lines)


def _onnx(reads: bool, inputs: str) -> str:
    return _python(
        "import numpy as np\nimport onnxruntime\nfrom huggingface_hub import snapshot_download" + _tokenizer(reads),
        f'session = onnxruntime.InferenceSession(snapshot_download("{REPO}") + "/onnx/{PROGRAM_FILES["onnx"]}")',
        inputs,
        "names = [item.name for item in session.get_inputs()]",
        _ZEROS,
        "outputs = session.run(None, {name: inputs.get(name, zeros).astype(np.int64) for name in names})",
        "print([item.name for item in session.get_outputs()])",
    )


def _stablehlo(reads: bool, inputs: str) -> str:
    imports = (
        "from pathlib import Path\n\nimport jax\nimport numpy as np\nfrom huggingface_hub import snapshot_download\n"
        "from safetensors.numpy import load_file"
    )
    return _python(
        imports + _tokenizer(reads),
        f'folder = Path(snapshot_download("{REPO}")) / "stablehlo"',
        f'program = jax.export.deserialize(bytearray((folder / "{PROGRAM_FILES["stablehlo"]}").read_bytes()))',
        'weights = load_file(folder / "weights.safetensors")',
        inputs,
        "(_, names), _ = jax.tree.unflatten(program.in_tree, program.in_avals)",
        _ZEROS,
        "outputs = program.call(weights, {name: inputs.get(name, zeros).astype(np.int32) for name in names})",
    )


def _tokenizer(reads: bool) -> str:
    return f"\n{_IMPORTS[True]}" if reads else ""


def _python(imports: str, *lines: str) -> str:
    return "```python\n" + imports + "\n\n" + "\n".join(lines) + "\n```"
