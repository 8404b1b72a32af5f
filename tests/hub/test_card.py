"""Model cards: their metadata, what they say, and that every piece of code in them runs."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import transformers
from huggingface_hub import ModelCard

import lpjax
from lpjax.checkpoint import export_checkpoint, load_checkpoint, save_checkpoint
from lpjax.checkpoint.cards import MARKER
from lpjax.export import RUNTIMES, export_program
from lpjax.hub._loading import REPO
from lpjax.models import ARCHITECTURES
from tests.conftest import GOLDENS, Command
from tests.helpers.checkpoints import GOLDEN_NAMES, factor_all, files
from tests.helpers.nets import quantize

pytestmark = pytest.mark.filterwarnings("default")
CARD, SOURCE = "README.md", "README.source.md"
PERSONS = "---\nlicense: mit\nlanguage: [en, no]\nbase_model: owner/base\nmodel-index: 3\n---\n# By hand\n"


def factored(folder: Path) -> lpjax.Checkpoint:
    net = load_checkpoint(folder)
    steps: list[Any] = [{"method": "lewis", "p": 1.5, "paths": ["pooler/dense/kernel"]}]
    return dataclasses.replace(net, params=factor_all(net.params), compression={"method": "svd", "steps": steps})


def card_of(folder: Path) -> Any:
    """The card, as the hub's own client reads it."""
    text = (folder / CARD).read_text(encoding="utf-8")
    assert MARKER in text
    assert str(folder.parent) not in text
    return ModelCard.load(folder / CARD)


def hub_cache(folder: Path, name: str = "models--owner--base") -> Path:
    """The folder as a snapshot in a hub's cache."""
    return Path(shutil.copytree(folder, folder.parent / name / "snapshots" / ("0" * 40)))


@pytest.fixture
def in_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the code of cards loads."""
    place = tmp_path / "desk" / REPO
    place.parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "desk")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo: str(tmp_path / "desk" / repo))
    return place


def run_code(folder: Path) -> list[dict[str, Any]]:
    """The names after each piece of code that runs without PyTorch."""
    namespaces = []
    for code in re.findall(r"```python\n(.*?)```", (folder / CARD).read_text(), re.DOTALL):
        compile(code, "card", "exec")
        if not re.search(r"import (SentenceTransformer|AutoModel)", code):
            names: dict[str, Any] = {}
            exec(code, names)
            namespaces.append(names)
    return namespaces


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize("kind", ["factors", "8 bits", "dense", "dense export", "flax", *RUNTIMES])
def test_code_in_cards_runs(folder: Path, in_the_hub: Path, kind: str, with_tokenizer: bool):
    net = factored(folder) if kind != "dense" else load_checkpoint(folder)
    net = net if with_tokenizer else dataclasses.replace(net, source=None)
    if kind in RUNTIMES:
        pytest.importorskip("onnxruntime" if kind == "onnx" else "jax")
        export_program(net, in_the_hub, kind)
    elif kind in ("dense export", "flax"):
        export_checkpoint(net, in_the_hub, format="msgpack" if kind == "flax" else "safetensors")
    else:
        save_checkpoint(net, in_the_hub, int8=kind == "8 bits")
    net = load_checkpoint(in_the_hub) if kind == "8 bits" else net
    names = run_code(in_the_hub)
    assert len(names) == 1
    if "vectors" in names[0]:
        vectors = lpjax.evaluation.embed_sentences(net, ["a cat", "a dog"]).vectors
        np.testing.assert_allclose(names[0]["vectors"], vectors, atol=1e-5)
    else:
        outputs = names[0]["outputs"]
        hidden = outputs[0] if kind in RUNTIMES else outputs
        batch = {name: np.asarray(value) for name, value in names[0]["inputs"].items()}
        np.testing.assert_allclose(hidden, lpjax.encode(net.params, net.config, batch), atol=1e-4)
    text = (in_the_hub / CARD).read_text()
    assert ("trust_remote_code=True" in text) == (kind in ("factors", "8 bits"))
    assert ("SentenceTransformer(" in text) == (
        with_tokenizer and kind in ("factors", "8 bits", "dense", "dense export")
    )
    assert ("import AutoModel" in text) == (kind not in ("flax", *RUNTIMES))
    assert ("FlaxAutoModel" in text) == (kind == "flax")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_flax_classes_are_named_where_transformers_4_had_them(model_type: str, tmp_path: Path):
    """The names are those of its `FLAX_MODEL_MAPPING_NAMES`."""
    had = {"albert", "bert", "distilbert", "electra", "roberta", "xlm-roberta"}
    golden = next(name for name in GOLDEN_NAMES if name.startswith(f"{model_type}_"))
    net = load_checkpoint(GOLDENS / golden)
    export_checkpoint(dataclasses.replace(net, source=None), tmp_path / "out", format="msgpack")
    assert ("FlaxAutoModel" in (tmp_path / "out" / CARD).read_text()) == (model_type in had)


@pytest.mark.parametrize(
    ("name", "head", "tag"),
    [
        ("bert_classifier", "ForSequenceClassification", "text-classification"),
        ("heads/roberta_spans", "ForQuestionAnswering", "question-answering"),
        ("heads/xlnet_tokens", "ForTokenClassification", "token-classification"),
        ("distilbert_masked_lm", "ForMaskedLM", "fill-mask"),
        ("xlnet_base", "", "feature-extraction"),
    ],
)
def test_heads_are_loaded_by_their_classes(in_the_hub: Path, name: str, head: str, tag: str):
    save_checkpoint(factored(GOLDENS / name), in_the_hub)
    card = card_of(in_the_hub)
    assert card.data.pipeline_tag == tag
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None
    assert f"AutoModel{head}.from_pretrained" in card.text
    assert hasattr(transformers, f"AutoModel{head}")
    auto_map = json.loads((in_the_hub / "config.json").read_text())["auto_map"]
    assert f"AutoModel{head}" in auto_map
    assert len(run_code(in_the_hub)) == 1


def test_the_table_adds_up(folder: Path, tmp_path: Path):
    net = factored(folder)
    save_checkpoint(net, tmp_path / "small")
    text = card_of(tmp_path / "small").text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["weights", "count", "method", "stored as", "rank", "bits per weight", "MB before", "MB after"]
    table = {row[0]: dict(zip(rows[0], row, strict=False)) for row in rows[2:]}
    word = table["`embeddings.word_embeddings.weight`"]
    assert (word["count"], word["method"], word["stored as"], word["rank"]) == ("1", "svd", "factors", "2")
    assert float(word["MB before"]) == pytest.approx(29 * 12 * 4 / 1e6, rel=0.05)
    assert float(word["MB after"]) == pytest.approx((29 + 12) * 2 * 4 / 1e6, rel=0.05)
    assert float(word["bits per weight"]) == pytest.approx(32 * (29 + 12) * 2 / (29 * 12), rel=0.01)
    assert table["`pooler.dense.weight`"]["method"] == "lewis, p = 1.5"
    assert table["`encoder.layer.*.attention.self.query.weight`"]["count"] == str(
        json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    )
    assert "all others" in table


def test_codes_and_bits_of_a_rounded_model(folder: Path, tmp_path: Path):
    net = load_checkpoint(folder)
    save_checkpoint(dataclasses.replace(net, params=quantize(net.params)), tmp_path / "small")
    card = card_of(tmp_path / "small")
    assert card.data.tags == ["lpjax", "quantized", "custom_code"]
    assert "| codes |" in card.text


def test_a_card_is_the_same_each_time_and_in_each_place(folder: Path, tmp_path: Path):
    for place in ("one", "deep/other"):
        save_checkpoint(factored(folder), tmp_path / place)
    save_checkpoint(load_checkpoint(tmp_path / "one"), tmp_path / "again")
    texts = {(tmp_path / place / CARD).read_bytes() for place in ("one", "deep/other", "again")}
    assert len(texts) == 1


def test_what_a_card_keeps_of_the_source(folder: Path, tmp_path: Path):
    (folder / CARD).write_text(PERSONS)
    save_checkpoint(factored(folder), tmp_path / "small")
    data = card_of(tmp_path / "small").data
    assert (data.license, data.language, data.eval_results) == ("mit", ["en", "no"], None)
    assert (data.base_model, data.base_model_relation) == ("owner/base", "finetune")  # as a person said
    assert data.library_name == "sentence-transformers"
    assert data.pipeline_tag == "sentence-similarity"
    assert (tmp_path / "small" / SOURCE).read_text() == PERSONS
    # A further step has the same source.
    export_checkpoint(load_checkpoint(tmp_path / "small"), tmp_path / "whole")
    again = card_of(tmp_path / "whole").data
    assert (again.license, again.base_model, again.base_model_relation) == ("mit", "owner/base", "finetune")
    assert again.tags == ["lpjax", "low-rank"]
    assert (tmp_path / "whole" / SOURCE).read_text() == PERSONS


def test_a_model_of_the_hub_is_the_base(folder: Path, tmp_path: Path):
    (folder / CARD).write_text(PERSONS.replace("owner/base", "owner/older"))
    save_checkpoint(factored(hub_cache(folder)), tmp_path / "small")
    data = card_of(tmp_path / "small").data
    assert (data.base_model, data.base_model_relation, data.license) == ("owner/base", "quantized", "mit")
    save_checkpoint(load_checkpoint(tmp_path / "small"), tmp_path / "smaller", int8=True)
    again = card_of(tmp_path / "smaller").data
    assert (again.base_model, again.base_model_relation) == ("owner/base", "quantized")
    assert "base, compressed" in card_of(tmp_path / "smaller").text


@pytest.mark.parametrize("front", ["license: [", "license: {a: 1}", "- 1", "license: " + "[" * 5000, "license: 3"])
def test_a_damaged_card_of_the_source_stops_nothing(folder: Path, tmp_path: Path, front: str):
    (folder / CARD).write_text(f"---\n{front}\n---\n")
    save_checkpoint(load_checkpoint(folder), tmp_path / "saved")
    assert card_of(tmp_path / "saved").data.license is None


def test_names_cannot_write_metadata_or_markdown(folder: Path, tmp_path: Path):
    evil = "mit\n---\n# <script>\nbase_model: evil/model"
    (folder / CARD).write_text(f"---\nlicense: {json.dumps(evil)}\nbase_model: {json.dumps(evil)}\n---\n")
    net = factored(folder)
    steps = [{"method": "a | b\n\n# <script>alert()</script>", "p": 1, "paths": ["pooler/dense/kernel"]}]
    block = {"method": evil, "steps": [*steps, {"paths": 3}, 3]}
    save_checkpoint(dataclasses.replace(net, compression=block), tmp_path / "small")
    card = card_of(tmp_path / "small")
    assert card.data.license == evil
    assert card.data.base_model is None
    assert "<script>" not in card.text
    assert "evil/model" not in card.text
    assert len(re.findall("^# ", card.text, re.MULTILINE)) == 1


def test_a_persons_card_is_kept(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    out = tmp_path / "out"
    save_checkpoint(load_checkpoint(folder), out, extra_files={CARD: "mine"})
    assert (out / CARD).read_text() == "mine"
    save_checkpoint(factored(folder), out, overwrite=True)
    assert (out / CARD).read_text() == "mine"
    assert "README.md was not written by lpjax and is kept" in caplog.text
    (out / CARD).write_text(f"{MARKER}\nold")
    save_checkpoint(factored(folder), out, overwrite=True)
    assert "compressed" in card_of(out).text


def test_a_card_that_is_a_link_elsewhere_is_not_read(folder: Path, tmp_path: Path):
    (tmp_path / "secret").write_text(PERSONS)
    (folder / CARD).symlink_to(tmp_path / "secret")
    save_checkpoint(load_checkpoint(folder), tmp_path / "out")
    assert card_of(tmp_path / "out").data.license is None
    assert SOURCE not in files(tmp_path / "out")


def test_commands_say_what_was_measured(command: Command, folder: Path, small: Path, tmp_path: Path):
    assert "| error |" in card_of(small).text
    assert "[lpjax_record.json](lpjax_record.json)" in card_of(small).text
    curve = [{"step": 0, "divergence": 0.5}, {"step": 9, "divergence": 0.25}]
    recovery = {"best": curve[1], "curve": curve, "texts": 1000, "held_out": 10, "model": str(tmp_path)}
    (small / "recover.json").write_text(json.dumps(recovery))
    best = {"step": 3, "epoch": 1.0, "loss": 0.1, "accuracy": 0.75, "<b>": 1.0}
    tuned: dict[str, Any] = {"best": best, "train": {"rows": 40, "split": "train"}, "task": "sst2", "model": "x"}
    tuned |= {"dev": {"rows": 12, "split": "validation"}}
    (small / "finetune.json").write_text(json.dumps(tuned))
    assert command("quantize", small, tmp_path / "tiny")[0] == 0
    text = card_of(tmp_path / "tiny").text
    assert "factors in 8 bits" in text
    assert "| error |" not in text  # of the weights before the training
    assert "is 0.25; before the training it was 0.5." in text
    assert "Steps after the training are not in these numbers." in text
    assert "finetune.json, which says how it was trained, can't be read." in text
    del best["<b>"]
    (small / "finetune.json").write_text(json.dumps(tuned))
    assert command("export", small, tmp_path / "whole")[0] == 0
    text = card_of(tmp_path / "whole").text
    assert "Fine-tuned on 40 examples of sst2" in text
    assert "accuracy 0.7500." in text
