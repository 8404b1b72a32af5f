"""Vectors against the package sentence-transformers: `python -m experiments.sentence_vectors`.

Needs sentence-transformers and torch, which lpjax does not: run it in an environment that has them and lpjax. A tiny
random BERT is put into a folder for each case (poolings, dense layers, norms, prompts, layouts). Prints the largest
absolute difference of the vectors of `lpjax.evaluation.sentences.embed_sentences` from those of
`SentenceTransformer.encode`, for
the folder itself and for the one that lpjax saves of it, and writes experiments/results/sentence_vectors.json.
"""

# lpjax does not depend on PyTorch or sentence-transformers.
# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import lpjax
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.evaluation.sentences import embed_sentences
from lpjax.pipeline import ACTIVATIONS, POOLINGS

SEED = 0
HIDDEN = 16
POSITIONS = 24
WORDS = [f"word{i}" for i in range(40)]
PROMPTS = {"query": "word1 word2: ", "passage": "word3 "}
RESULTS = Path(__file__).parent / "results" / "sentence_vectors.json"


@dataclasses.dataclass(frozen=True)
class Case:
    """One folder, and how its texts are encoded.

    Attributes:
        stages: type and arguments of each stage after the net, as sentence-transformers' classes take them.
        files: JSON files to be changed or added in the folder: keys to set, None to remove.
        change: what is done to the folder at last.
        options: of `encode` and `embed_sentences`.
    """

    stages: tuple[tuple[str, Mapping[str, Any]], ...] = (("Pooling", {}),)
    files: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    change: Callable[[Path], None] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def old_layout(folder: Path) -> None:
    """Move the net to 0_Transformer and write types and flags as sentence-transformers did before 2.0."""
    inner = folder / "0_Transformer"
    inner.mkdir()
    stages = {"modules.json", "config_sentence_transformers.json", "README.md"}
    for path in list(folder.iterdir()):
        if path.is_file() and path.name not in stages:
            path.rename(inner / path.name)
    entries = json.loads((folder / "modules.json").read_text())
    for entry in entries:
        entry["type"] = f"sentence_transformers.models.{entry['type'].rpartition('.')[2]}"
    entries[0]["path"] = inner.name
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "config.json").write_text('{"__version__": "0.4.1"}')
    (inner / "sentence_bert_config.json").rename(inner / "sentence_roberta_config.json")


def drop_modules(folder: Path) -> None:
    (folder / "modules.json").unlink()


def pooling(*modes: str, **options: Any) -> tuple[str, Mapping[str, Any]]:
    return "Pooling", {"pooling_mode": modes, **options}


def dense(size: int, activation: str = "Tanh", **options: Any) -> tuple[str, Mapping[str, Any]]:
    return "Dense", {"out_features": size, "activation_function": activation, **options}


_FLAGS = {
    "embedding_dimension": None,
    "pooling_mode": None,
    "word_embedding_dimension": HIDDEN,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_cls_token": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_lasttoken": True,
}
_NORM = ("Normalize", {})
_MAIN = "config_sentence_transformers.json"
_BERT = "sentence_bert_config.json"

CASES: dict[str, Case] = {
    **{name: Case((pooling(name),)) for name in POOLINGS},
    "all six": Case((pooling(*POOLINGS),)),
    "lasttoken, mean (order of the list)": Case((pooling("lasttoken", "mean"),)),
    "flags of older releases": Case(files={"1_Pooling/config.json": _FLAGS}),
    "mean, Normalize": Case((pooling("mean"), _NORM)),
    "cls, LayerNorm, Dropout, Dense, Normalize": Case(
        (pooling("cls"), ("LayerNorm", {}), ("Dropout", {}), dense(8), _NORM)
    ),
    "Dense of the tokens, Normalize of the tokens, mean": Case(
        (
            dense(12, "GELU", module_input_name="token_embeddings"),
            ("Normalize", {"module_input_name": "token_embeddings"}),
            pooling("mean"),
        )
    ),
    "Dense with residual": Case((pooling("mean"), dense(8, "ReLU", use_residual=True), dense(8, use_residual=True))),
    "Dense without bias": Case((pooling("mean", "max"), dense(8, "Identity", bias=False))),
    **{f"Dense, {name}": Case((pooling("mean"), dense(8, name))) for name in ACTIVATIONS},
    "default prompt": Case(files={_MAIN: {"prompts": PROMPTS, "default_prompt_name": "query"}}),
    "prompt by name": Case(files={_MAIN: {"prompts": PROMPTS}}, options={"prompt_name": "passage"}),
    "prompt given": Case(
        files={_MAIN: {"prompts": PROMPTS, "default_prompt_name": "query"}}, options={"prompt": "word5 "}
    ),
    "prompt that is not pooled": Case(
        (pooling(*POOLINGS, include_prompt=False),),
        files={_MAIN: {"prompts": PROMPTS, "default_prompt_name": "query"}},
    ),
    "max_seq_length": Case(files={_BERT: {"max_seq_length": 7}}),
    "model_max_length of the tokenizer": Case(files={"tokenizer_config.json": {"model_max_length": 9}}),
    "do_lower_case": Case(files={_BERT: {"do_lower_case": True}}),
    "tokenizer_args": Case(files={_BERT: {"max_seq_length": 9, "tokenizer_args": {"model_max_length": 6}}}),
    "truncate_dim": Case((pooling("mean"), _NORM), files={_MAIN: {"truncate_dim": 5}}),
    "0_Transformer": Case((pooling("cls"), dense(8)), files={_BERT: {"max_seq_length": 7}}, change=old_layout),
    "no modules.json": Case((pooling("cls"),), files={_BERT: {"max_seq_length": 7}}, change=drop_modules),
}


def make_net(folder: Path) -> Path:
    """A tiny random BERT with a tokenizer of words, as transformers saves it."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(SEED)
    letters = [chr(code) for code in range(97, 123)]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ":",
        "W",
        *WORDS,
        *letters,
        *(f"##{x}" for x in letters),
    ]
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, max_position_embeddings=POSITIONS, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).eval().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    return folder


def make_folder(case: Case, net: Path, folder: Path) -> Path:
    """The folder of a case, saved by sentence-transformers."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as kinds

    torch.manual_seed(SEED)
    stages: list[Any] = [kinds.Transformer(str(net))]
    sizes = {"token_embeddings": HIDDEN}
    for name, settings in case.stages:
        options = dict(settings)
        feature = options.get("module_input_name", "sentence_embedding")
        if name == "Pooling":
            sizes["sentence_embedding"] = sizes["token_embeddings"] * len(options.get("pooling_mode", "1"))
            options["embedding_dimension"] = sizes["token_embeddings"]
        elif name == "Dense":
            options["in_features"], sizes[feature] = sizes[feature], options["out_features"]
            options["activation_function"] = getattr(torch.nn, options["activation_function"])()
        elif name == "LayerNorm":
            options["dimension"] = sizes[feature]
        stage = getattr(kinds, name)(**options)
        for weight in stage.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        stages.append(stage)
    SentenceTransformer(modules=stages, device="cpu").save(str(folder), create_model_card=False)
    for file, keys in case.files.items():
        path = folder / file
        data = (json.loads(path.read_text()) if path.exists() else {}) | dict(keys)
        path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    if case.change is not None:
        case.change(folder)
    return folder


def texts() -> list[str]:
    """Sentences of 0 to 30 words, some of them in capitals."""
    rng = np.random.default_rng(SEED)
    sentences = [" ".join(rng.choice(WORDS, size=size)) for size in (0, 1, 2, 3, 5, 8, 13, 21, 30)]
    return [*sentences, "Word1 WORD2 word3", "unheard of", "word7, word8: word9"]


def encode(folder: Path, case: Case) -> np.ndarray:
    """The vectors of sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(model.encode(texts(), batch_size=4, show_progress_bar=False, **case.options))


def difference(case: Case, net: Path, place: Path) -> dict[str, float]:
    """Largest differences: `vectors` of a case's folder, `saved` of what sentence-transformers makes of lpjax's copy.

    Raises:
        ValueError: vectors of another shape.
    """
    folder = make_folder(case, net, place / "folder")
    theirs = encode(folder, case)
    checkpoint = lpjax.load_checkpoint(folder)
    ours = np.asarray(embed_sentences(checkpoint, texts(), batch_size=4, **case.options).vectors)
    lpjax.save_checkpoint(checkpoint, place / "saved")
    again = encode(place / "saved", case)
    if not theirs.shape == ours.shape == again.shape:
        raise ValueError(f"vectors of shapes {theirs.shape}, {ours.shape} and {again.shape}")
    return {"vectors": float(np.abs(ours - theirs).max()), "saved": float(np.abs(again - theirs).max())}


def main() -> None:

    table = Table("folder", "vectors", "saved by lpjax, loaded by sentence-transformers", title_justify="left")
    cells = {}
    with tempfile.TemporaryDirectory() as name:
        net = make_net(Path(name) / "net")
        for i, (title, case) in enumerate(CASES.items()):
            cells[title] = difference(case, net, Path(name) / str(i))
            table.add_row(title, *(f"{value:.1e}" for value in cells[title].values()))
    Console().print(table)
    record = run_record(SEED, "torch", "sentence-transformers")
    write_json(RESULTS, record | {"cells": cells})


if __name__ == "__main__":
    main()
