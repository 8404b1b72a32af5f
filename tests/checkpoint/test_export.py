"""Dense exports: what other libraries find in them, and that nothing is lost or left on the way."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import lpjax
from lpjax._tree import walk
from lpjax.checkpoint import Checkpoint, export_checkpoint, formats, from_tree, load_checkpoint, save_checkpoint
from lpjax.checkpoint.safetensors import read_tensors
from lpjax.models import BertConfig, classify, name_table
from lpjax.weights.low_rank import LowRank
from tests.conftest import GOLDENS
from tests.helpers.checkpoints import GOLDEN_NAMES, assert_same, factor_all, files, flax_restore, random_leaf, set_leaf

FILES = {"safetensors": "model.safetensors", "msgpack": "flax_model.msgpack"}
FORMATS = list(FILES)
TABLE = "embeddings/word_embeddings/embedding"


def factored(folder: Path, dtype: Any = None) -> Checkpoint:
    loaded = load_checkpoint(folder)
    return dataclasses.replace(loaded, params=factor_all(loaded.params, dtype=dtype), compression={"method": "svd"})


def product(pair: LowRank) -> np.ndarray:
    """The pair's product, rounded once."""
    left, right = (np.asarray(x, np.float64) for x in (pair.left, pair.right))
    return (left @ right).astype(pair.left.dtype)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_what_was_not_compressed_is_bit_for_bit_the_same(name: str, format: str, tmp_path: Path):
    loaded = load_checkpoint(GOLDENS / name)
    size = export_checkpoint(loaded, tmp_path / "out", format=format)
    assert size == (tmp_path / "out" / FILES[format]).stat().st_size
    assert sorted(files(tmp_path / "out")) == sorted(["README.md", "config.json", FILES[format]])
    assert_same(load_checkpoint(tmp_path / "out").params, loaded.params)
    if format == "msgpack":
        assert_same(flax_restore((tmp_path / "out" / FILES[format]).read_bytes()), loaded.params)
        return
    expected, _ = read_tensors(GOLDENS / name / "model.safetensors")
    tensors, metadata = read_tensors(tmp_path / "out" / "model.safetensors")
    assert metadata == {"format": "pt"}
    assert_same(tensors, expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((GOLDENS / name / "config.json").read_text())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "name", [name for name in GOLDEN_NAMES if name.endswith(("_base", "_classifier", "_bfloat16"))]
)
def test_factors_are_multiplied_and_rounded_once(name: str, format: str, tmp_path: Path):
    checkpoint = factored(GOLDENS / name)
    save_checkpoint(checkpoint, tmp_path / "small")
    export_checkpoint(load_checkpoint(tmp_path / "small"), tmp_path / "out", format=format)
    exported = load_checkpoint(tmp_path / "out")
    assert exported.compression is None
    expected = {path: product(x) if isinstance(x, LowRank) else x for path, x in walk(checkpoint.params)}
    assert any(isinstance(leaf, LowRank) for _, leaf in walk(checkpoint.params))
    assert_same(dict(walk(exported.params)), expected)
    data = json.loads((tmp_path / "out" / "config.json").read_text())
    assert data == json.loads((GOLDENS / name / "config.json").read_text())


def test_net_computes_the_same_after_export(folder: Path, tmp_path: Path):
    checkpoint = factored(folder)
    export_checkpoint(checkpoint, tmp_path / "out")
    dense = load_checkpoint(tmp_path / "out")
    batch = {"input_ids": np.arange(6).reshape(2, 3)}
    hidden, other = (lpjax.encode(c.params, c.config, batch) for c in (checkpoint, dense))
    np.testing.assert_allclose(hidden, other, atol=2e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_tokenizer_is_kept(format: str, folder: Path, tmp_path: Path):
    export_checkpoint(factored(folder), tmp_path / "out", format=format)
    contents = files(tmp_path / "out")
    assert contents.keys() == {
        *("README.md", "config.json", FILES[format], "vocab.txt", "tokenizer_config.json", "modules.json"),
        *("1_Pooling/config.json", "1_Pooling/pytorch_model.bin"),
    }
    assert contents["vocab.txt"] == (folder / "vocab.txt").read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_product_that_overflows_is_named_and_nothing_written(format: str, folder: Path, tmp_path: Path):
    loaded = load_checkpoint(folder)
    pair = LowRank(np.full((29, 2), 300, np.float16), np.full((2, 12), 300, np.float16))
    checkpoint = dataclasses.replace(loaded, params=set_leaf(loaded.params, TABLE, pair))
    with pytest.raises(ValueError, match=f"holds factors at {TABLE} whose product overflows float16"):
        export_checkpoint(checkpoint, tmp_path / "out", format=format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_bad_requests_write_nothing(folder: Path, tmp_path: Path):
    loaded = load_checkpoint(folder)
    with pytest.raises(ValueError, match=r"`format` is 'bin'; expected one of safetensors, msgpack"):
        export_checkpoint(loaded, tmp_path / "out", format="bin")
    with pytest.raises(FileExistsError, match=r"overlaps .*dense, which the checkpoint came from"):
        export_checkpoint(loaded, folder, overwrite=True)
    with pytest.raises(ValueError, match=r"does not fit `config`:\n  unknown \(1\): extra"):
        export_checkpoint(dataclasses.replace(loaded, params=loaded.params | {"extra": np.ones(3)}), tmp_path / "out")
    pair = LowRank(jnp.full((29, 2), jnp.nan), jnp.ones((2, 12)))
    with pytest.raises(ValueError, match=r"NaN or infinite weights: .*word_embeddings.weight.left \(58 of 58\)"):
        export_checkpoint(dataclasses.replace(loaded, params=set_leaf(loaded.params, TABLE, pair)), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


@pytest.mark.parametrize("dtype", [np.longdouble, ">f4"])
def test_numbers_that_no_file_holds_are_refused(dtype: Any, folder: Path, tmp_path: Path):
    loaded = load_checkpoint(folder)
    params = set_leaf(loaded.params, TABLE, np.ones((29, 12), dtype))
    for write in (save_checkpoint, export_checkpoint):
        with pytest.raises(ValueError, match=r"files cannot hold: embeddings.word_embeddings.weight \("):
            write(dataclasses.replace(loaded, params=params), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("write", [save_checkpoint, export_checkpoint])
def test_files_that_are_mapped_are_never_truncated(write: Any, folder: Path):
    """In place and without a source: the leaves view the very file that is replaced."""
    loaded = load_checkpoint(folder)
    before = {path: np.array(leaf) for path, leaf in walk(loaded.params)}
    anonymous = dataclasses.replace(loaded, source=None, params=factor_all(loaded.params))
    write(anonymous, folder, overwrite=True)
    assert all(np.array_equal(leaf, before[path]) for path, leaf in walk(loaded.params))
    kept = {path: leaf for path, leaf in walk(anonymous.params) if not isinstance(leaf, LowRank)}
    again = dict(walk(load_checkpoint(folder).params))
    assert all(np.array_equal(again[path], leaf) for path, leaf in kept.items())


@pytest.mark.parametrize("format", FORMATS)
def test_interrupted_export_leaves_what_was_there(
    format: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    export_checkpoint(load_checkpoint(folder), tmp_path / "out")
    before = files(tmp_path)

    def interrupt(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    for name, kind in [*formats.FORMATS.items()]:
        monkeypatch.setitem(formats.FORMATS, name, dataclasses.replace(kind, write=interrupt))
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(load_checkpoint(folder), tmp_path / "out", format=format, overwrite=True)
    assert files(tmp_path) == before


@pytest.mark.parametrize("format", FORMATS)
def test_memory_is_that_of_one_weight(format: str, tmp_path: Path):
    config = BertConfig(
        vocab_size=3,
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=1,
        intermediate_size=1024,
        max_position_embeddings=1,
    )
    rng, params = np.random.default_rng(0), {}
    for weight in name_table(config).base:
        if weight.group:
            continue
        n, *d = map(int, weight.shape)
        large = len(d) == 1 and n > 3
        leaf: Any = LowRank(*(random_leaf(rng, s) for s in ((n, 4), (4, *d)))) if large else np.ones((n, *d))
        tree = params
        *parents, last = weight.path.split("/")
        for key in parents:
            tree = tree.setdefault(key, {})
        tree[last] = leaf
    checkpoint = from_tree(params, config)
    tracemalloc.start()
    size = export_checkpoint(checkpoint, tmp_path / "out", format=format)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 32 << 20
    # The largest weight, 2 MiB, once as it is, once in the file's order, and a block of it in double precision.
    assert peak < 9 << 20


def test_config_tells_the_labels_that_the_head_has(tmp_path: Path):
    loaded = load_checkpoint(GOLDENS / "bert_classifier")
    made = from_tree(loaded.params, loaded.config)
    export_checkpoint(made, tmp_path / "out")
    data = json.loads((tmp_path / "out" / "config.json").read_text())
    assert data["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert data["label2id"] == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert load_checkpoint(tmp_path / "out").config == loaded.config


WITH_POOLER = [name for name in GOLDEN_NAMES if name != "bert_no_pooler"]  # which `AutoModel` misses


@pytest.mark.parametrize(
    ("name", "compressed"),
    [(name, False) for name in WITH_POOLER]
    + [(name, True) for name in WITH_POOLER if "_base" in name or "_cl" in name],
)
def test_torch_loads_it(name: str, compressed: bool, tmp_path: Path):
    """No missing and no unexpected key; the same bits where dense; and the logits, or hidden states, of lpjax."""
    torch = pytest.importorskip("torch")
    import transformers

    checkpoint = load_checkpoint(GOLDENS / name)
    if compressed:
        checkpoint = dataclasses.replace(checkpoint, params=factor_all(checkpoint.params, scale=0.1))
    export_checkpoint(checkpoint, tmp_path / "out")
    kind = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"][0]
    auto = (
        transformers.AutoModelForSequenceClassification if kind.endswith("Classification") else transformers.AutoModel
    )
    if kind.endswith(("PreTraining", "ForMaskedLM", "LMHeadModel")):
        auto = getattr(transformers, kind)
    model, info = auto.from_pretrained(tmp_path / "out", output_loading_info=True, dtype="auto")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    if not compressed:
        exported, _ = read_tensors(tmp_path / "out" / "model.safetensors")
        state = {key: value for key, value in model.state_dict().items() if key in exported}
        assert state.keys() == exported.keys()
        for key, value in state.items():
            assert value.float().numpy().tobytes() == exported[key].astype(np.float32).tobytes()
    golden, _ = read_tensors(GOLDENS / name / "golden.safetensors")
    batch = {key: np.array(golden[key]) for key in golden if key in ("input_ids", "attention_mask", "token_type_ids")}
    model = model.float().eval()
    tensors = {key: torch.tensor(value).long() for key, value in batch.items()}
    with torch.no_grad():
        if "logits" in golden:
            expected = model(**tensors).logits.numpy()
            actual = classify(checkpoint.params, checkpoint.config, batch)
        else:
            base = getattr(model, model.base_model_prefix, model)
            expected = base(**tensors).last_hidden_state.numpy()
            actual = lpjax.encode(checkpoint.params, checkpoint.config, batch)
            inside = batch["attention_mask"].astype(bool)
            expected, actual = expected[inside], np.asarray(actual)[inside]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_dtype_of_the_factors_is_that_of_the_product(dtype: Any, folder: Path, tmp_path: Path):
    checkpoint = factored(folder, dtype)
    export_checkpoint(checkpoint, tmp_path / "out")
    leaves = dict(walk(load_checkpoint(tmp_path / "out").params))
    for path, leaf in walk(checkpoint.params):
        assert leaves[path].dtype == (dtype if isinstance(leaf, LowRank) else np.float32)


@pytest.mark.parametrize("write", [save_checkpoint, export_checkpoint])
def test_the_base_of_a_classifier_is_saved_as_one(tmp_path: Path, write: Any):
    """Under the classifier's name, its reader would miss the head."""
    whole = load_checkpoint(GOLDENS / "bert_classifier")
    write(dataclasses.replace(whole, params=whole.params["bert"]), tmp_path / "base")
    assert json.loads((tmp_path / "base" / "config.json").read_text())["architectures"] == ["BertModel"]
    assert_same(load_checkpoint(tmp_path / "base").params, whole.params["bert"])
    write(whole, tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]


def test_exports_name_their_model_type(tmp_path: Path):
    whole = load_checkpoint(GOLDENS / "bert_base")
    old = {key: value for key, value in (whole.config_json or {}).items() if key != "model_type"}
    export_checkpoint(dataclasses.replace(whole, config_json=old), tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model_type"] == "bert"


def test_a_pooler_that_is_left_over_is_not_exported(tmp_path: Path):
    """PyTorch's RoBERTa for classification has none, but old files of it do."""
    whole = load_checkpoint(GOLDENS / "roberta_classifier")
    rest = {"pooler": {"dense": {"kernel": np.ones((10, 10), np.float32), "bias": np.ones(10, np.float32)}}}
    export_checkpoint(
        dataclasses.replace(whole, params=whole.params | {"roberta": whole.params["roberta"] | rest}), tmp_path / "new"
    )
    assert_same(load_checkpoint(tmp_path / "new").params, whole.params)
