"""Saving: what is written, that it comes back bit for bit, and that nothing is lost on the way."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

import lpjax
from lpjax.checkpoint import Checkpoint, CheckpointError, export_checkpoint, load_checkpoint, save_checkpoint
from lpjax.models import BertConfig, name_table
from lpjax.models.names import Weight, walk
from lpjax.weights.low_rank import LowRank
from tests.conftest import GOLDENS, Edit
from tests.helpers.checkpoints import assert_same, files, random_leaf, set_leaf

KERNEL = "encoder/layer/0/attention/self/query/kernel"
TABLE = "embeddings/word_embeddings/embedding"


@pytest.fixture
def factored(folder: Path) -> Checkpoint:
    """A kernel (12, 12) and the table (29, 12) as pairs of rank 2 and 3."""
    rng = np.random.default_rng(3)
    dense = load_checkpoint(folder)
    params = dense.params
    for path, rank in ((KERNEL, 2), (TABLE, 3)):
        rows = 29 if path == TABLE else 12
        pair = (jnp.asarray(random_leaf(rng, shape)) for shape in ((rows, rank), (rank, 12)))
        params = set_leaf(params, path, LowRank(*pair))
    return dataclasses.replace(dense, params=params, compression={"method": "admm_entries", "p": 1.25})


@pytest.mark.parametrize(
    "name", ["bert_base", "bert_no_pooler", "bert_classifier", "bert_pretraining", "bert_bfloat16"]
)
def test_dense_checkpoint_comes_back_bit_for_bit(name: str, tmp_path: Path):
    source, target = GOLDENS / name, tmp_path / "deep" / "saved"
    checkpoint = load_checkpoint(source)
    size = save_checkpoint(checkpoint, target)
    again = load_checkpoint(target)
    assert_same(again.params, checkpoint.params)
    assert again.config == checkpoint.config
    assert again.compression is None
    assert json.loads((target / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    path = target / "model.safetensors"
    assert size == path.stat().st_size
    if name != "bert_bfloat16":  # which safetensors cannot read into NumPy in every release
        expected, got = load_file(source / "model.safetensors"), load_file(path)
        assert got.keys() == expected.keys()
        for tensor in got:
            np.testing.assert_array_equal(got[tensor], expected[tensor])
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_factored_checkpoint_comes_back_bit_for_bit(factored: Checkpoint, tmp_path: Path):
    size = save_checkpoint(factored, tmp_path / "small")
    again = load_checkpoint(tmp_path / "small")
    assert_same(again.params, factored.params)
    ranks = {TABLE: 3, KERNEL: 2}
    assert again.compression == {
        "version": lpjax.__version__,
        "method": "admm_entries",
        "p": 1.25,
        "weights": "lpjax.safetensors",
        "ranks": ranks,
    }
    data = json.loads((tmp_path / "small" / "config.json").read_text())
    assert data.pop("lpjax") == again.compression
    assert data.pop("auto_map") == {"AutoModel": "modeling_lpjax.LpjaxModel"}
    assert data == factored.config_json

    names = load_file(tmp_path / "small" / "lpjax.safetensors")
    query = "encoder.layer.0.attention.self.query.weight"
    assert names[f"{query}.left"].shape == (12, 2)
    assert names[f"{query}.right"].shape == (2, 12)
    assert names["embeddings.word_embeddings.weight.left"].shape == (29, 3)
    assert query not in names
    # Smaller on disk by the floats saved, less a header with two more names.
    assert factored.source is not None
    saved = 4 * (12 * 12 - 24 * 2 + 29 * 12 - 41 * 3)
    dense = (factored.source / "model.safetensors").stat().st_size
    assert 0 <= size - (dense - saved) < 400

    save_checkpoint(again, tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "small")


def test_encoder_reads_what_was_saved(factored: Checkpoint, tmp_path: Path):
    save_checkpoint(factored, tmp_path / "small")
    again = load_checkpoint(tmp_path / "small")
    batch = {"input_ids": np.arange(6).reshape(2, 3)}
    np.testing.assert_array_equal(
        lpjax.encode(again.params, again.config, batch), lpjax.encode(factored.params, factored.config, batch)
    )


def test_dense_again_after_factors_drops_the_block(factored: Checkpoint, folder: Path, tmp_path: Path):
    save_checkpoint(factored, tmp_path / "small")
    again = load_checkpoint(tmp_path / "small")
    dense = dataclasses.replace(again, params=load_checkpoint(folder).params, compression=None)
    save_checkpoint(dense, tmp_path / "dense again")
    assert "lpjax" not in json.loads((tmp_path / "dense again" / "config.json").read_text())


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "spiece.model", "tokenizer.model"])
def test_vocabularies_of_sentencepiece_go_along(folder: Path, tmp_path: Path, name: str):
    (folder / name).write_bytes(b"a vocabulary")
    save_checkpoint(load_checkpoint(folder), tmp_path / "saved")
    export_checkpoint(load_checkpoint(folder), tmp_path / "exported")
    for out in ("saved", "exported"):
        assert (tmp_path / out / name).read_bytes() == b"a vocabulary"


def test_stages_are_copied_whole_and_weights_in_other_formats_are_not(folder: Path, tmp_path: Path):
    (folder / "LICENSE.txt").write_text("terms")
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text("{}")
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"weights of another stage")
    (folder / "2_Dense" / "deep" / "er").mkdir(parents=True)
    (folder / "2_Dense" / "deep" / "er" / "file").write_text("of a router's stages")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"path": "2_Dense", "type": ""}]))
    (folder / "3_Results").mkdir()  # which modules.json does not name
    (folder / "3_Results" / "config.json").write_text("{}")
    save_checkpoint(load_checkpoint(folder), tmp_path / "saved")
    assert files(tmp_path / "saved").keys() == {
        "README.md",
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "tokenizer_config.json",
        "modules.json",
        "LICENSE.txt",
        "1_Pooling/config.json",
        "1_Pooling/pytorch_model.bin",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "2_Dense/deep/er/file",
    }
    before, after = files(folder), files(tmp_path / "saved")
    assert all(after[name] == before[name] for name in after.keys() - {"README.md", "config.json", "model.safetensors"})


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    """Any small BERT: sizes, heads, dtypes, memory orders, and any of its matrices factored."""
    heads = draw(st.integers(1, 3))
    config = BertConfig(
        vocab_size=draw(st.integers(1, 9)),
        hidden_size=heads * draw(st.integers(1, 3)),
        num_hidden_layers=draw(st.integers(1, 11)),  # two digits: no name may be another's prefix
        num_attention_heads=heads,
        intermediate_size=draw(st.integers(1, 7)),
        max_position_embeddings=draw(st.integers(1, 5)),
        hidden_act=draw(st.sampled_from(["gelu", "relu"])),
    )
    table = name_table(config)
    groups = draw(st.sets(st.sampled_from(sorted({w.group for w in (*table.base, *table.heads)})))) | {""}
    nested = draw(st.booleans()) or any(w.group in groups for w in table.heads)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtypes = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16]
    factor = draw(st.sampled_from([0.0, 0.3, 1.0]))

    def make(weight: Weight) -> Any:
        open_sizes = {"labels": 3, "outputs": 2}
        shape = tuple(open_sizes[n] if isinstance(n, str) else n for n in weight.shape)
        if len(shape) == 2 and rng.random() < factor:
            rank = int(rng.integers(1, 4))
            pair = (random_leaf(rng, s) for s in ((shape[0], rank), (rank, shape[1])))
            return LowRank(*map(jnp.asarray, pair))
        leaf = random_leaf(rng, shape, dtypes[rng.integers(len(dtypes))])
        return np.asfortranarray(leaf) if rng.random() < 0.5 else leaf

    params: dict[str, Any] = {}
    for part, root in ((table.base, ["bert"] if nested else []), (table.heads, [])):
        for weight in part:
            if weight.group in groups and (weight.tied_to is None or rng.random() < 0.5):
                tree = params
                *parents, last = [*root, *weight.path.split("/")]
                for key in parents:
                    tree = tree.setdefault(key, {})
                tree[last] = make(weight)
    return Checkpoint(params, config)


# beartype, which checks annotations under test, picks the items of a container that it looks at at random.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(checkpoint=checkpoints())
def test_any_checkpoint_comes_back_bit_for_bit(tmp_path: Path, checkpoint: Checkpoint):
    save_checkpoint(checkpoint, tmp_path / "saved", overwrite=True)
    again = load_checkpoint(tmp_path / "saved")
    assert_same(again.params, checkpoint.params)
    assert again.config == checkpoint.config


def test_config_that_was_changed_is_written(folder: Path, tmp_path: Path):
    checkpoint = load_checkpoint(folder)
    changed = dataclasses.replace(checkpoint.config, layer_norm_eps=1e-3)
    save_checkpoint(dataclasses.replace(checkpoint, config=changed), tmp_path / "saved")
    assert load_checkpoint(tmp_path / "saved").config == changed
    data = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert data["initializer_range"] == 0.02


def test_params_that_do_not_fit_are_refused_with_every_path(folder: Path, tmp_path: Path):
    checkpoint = load_checkpoint(folder)
    params = set_leaf(checkpoint.params, KERNEL, np.zeros((3, 4), np.float32))
    params = set_leaf(params, "embeddings/LayerNorm", {"scale": np.ones(12, np.float32)})
    params = set_leaf(params, TABLE, LowRank(jnp.ones((28, 2)), jnp.ones((2, 12))))
    params = set_leaf(params, "pooler/dense/bias", [1.0, 2.0]) | {"extra": {"kernel": np.ones(3)}}
    with pytest.raises(ValueError, match="`params` does not fit `config`") as caught:
        save_checkpoint(dataclasses.replace(checkpoint, params=params), tmp_path / "saved")
    assert str(caught.value).splitlines()[1:] == [
        "  missing (1): embeddings/LayerNorm/bias",
        "  unknown (1): extra/kernel",
        f"  mis-shaped (2): {TABLE} is (28, 2) times (2, 12), expected (29, 12), {KERNEL} is (3, 4), expected (12, 12)",
        "  unusable (1): pooler/dense/bias is list, expected floating-point numbers",
    ]
    assert not (tmp_path / "saved").exists()


def test_weights_that_are_not_finite_are_refused(factored: Checkpoint, tmp_path: Path):
    params = set_leaf(factored.params, KERNEL, LowRank(jnp.full((12, 2), jnp.inf), jnp.ones((2, 12))))
    with pytest.raises(ValueError, match=r"NaN or infinite weights: .*query.weight.left \(24 of 24\)"):
        save_checkpoint(dataclasses.replace(factored, params=params), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_existing_folder_is_replaced_only_when_told_to(folder: Path, factored: Checkpoint, tmp_path: Path):
    target = tmp_path / "saved"
    dense = load_checkpoint(folder)
    save_checkpoint(dense, target)
    before = files(target)
    with pytest.raises(FileExistsError, match=r"exists; choose another folder, or pass `overwrite=True`"):
        save_checkpoint(factored, target)
    assert files(target) == before
    # The old weights stay readable through the leaves that view them.
    old = load_checkpoint(target)
    save_checkpoint(factored, target, overwrite=True)
    assert_same(load_checkpoint(target).params, factored.params)
    assert_same(old.params, dense.params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "saved"]


def test_link_to_a_folder_is_followed(folder: Path, factored: Checkpoint, tmp_path: Path):
    save_checkpoint(load_checkpoint(folder), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save_checkpoint(factored, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert_same(load_checkpoint(tmp_path / "real").params, factored.params)


def test_what_is_not_a_checkpoint_is_never_replaced(folder: Path, tmp_path: Path):
    checkpoint = load_checkpoint(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=r"mine is not empty and not a checkpoint"):
        save_checkpoint(checkpoint, tmp_path / "mine", overwrite=True)
    with pytest.raises(FileExistsError, match=r"file is a file, expected a folder that is not there yet"):
        save_checkpoint(checkpoint, tmp_path / "file", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize("target", ["dense", "dense/1_Pooling", "."])
def test_source_is_never_overwritten(folder: Path, target: str, monkeypatch: pytest.MonkeyPatch):
    checkpoint = load_checkpoint(folder)
    monkeypatch.chdir(folder.parent)
    before = files(folder)
    with pytest.raises(FileExistsError, match=r"overlaps .*dense, which the checkpoint came from"):
        save_checkpoint(checkpoint, target, overwrite=True)
    assert files(folder) == before


def test_new_folder_inside_the_source_is_refused(folder: Path):
    """It would be a part of the model that it was made from."""
    with pytest.raises(FileExistsError, match=r"smaller overlaps .*dense, which the checkpoint came from"):
        save_checkpoint(load_checkpoint(folder), folder / "smaller")
    assert not (folder / "smaller").exists()


def test_source_that_is_gone_is_named(folder: Path, tmp_path: Path):
    checkpoint = load_checkpoint(folder)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match=r"`checkpoint.source`, .*dense, is no longer there"):
        save_checkpoint(checkpoint, tmp_path / "saved")
    save_checkpoint(dataclasses.replace(checkpoint, source=None), tmp_path / "saved")
    assert_same(load_checkpoint(tmp_path / "saved").params, checkpoint.params)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("moment", ["write_tensors", "copy_side_files", "first rename", "second rename"])
def test_interrupted_save_leaves_what_was_there(
    folder: Path,
    factored: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    interruption: type[BaseException],
):
    target = tmp_path / "saved"
    save_checkpoint(load_checkpoint(folder), target)
    before = files(target)
    renames = iter(["first rename", "second rename"])
    rename = Path.rename

    def interrupt(*_: Any) -> None:
        raise interruption

    def interrupt_rename(path: Path, to: Path) -> Path:
        if next(renames, None) == moment:
            raise interruption
        return rename(path, to)

    with monkeypatch.context() as patch:
        if moment.endswith("rename"):
            patch.setattr("lpjax._files.replacing._exchange", lambda *_: False)  # as on a system that cannot
            patch.setattr(Path, "rename", interrupt_rename)
        else:
            patch.setattr(f"lpjax.checkpoint._save.{moment}", interrupt)
        with pytest.raises(interruption):
            save_checkpoint(factored, target, overwrite=True)
    assert files(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "saved"]
    with monkeypatch.context() as patch:
        patch.setattr("lpjax.checkpoint._save.write_tensors", interrupt)
        with pytest.raises(interruption):
            save_checkpoint(factored, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("embeddings.word_embeddings.weight.left"), r"missing \(1\): .*weight.left"),
        (
            lambda t: t.update({"embeddings.word_embeddings.weight.right": np.ones((4, 12), np.float32)}),
            r"mis-shaped \(1\): .*_embeddings.weight is \(29, 3\) times \(4, 12\), expected \(29, 12\)",
        ),
        (
            lambda t: t.update({"embeddings.word_embeddings.weight": np.ones((29, 12), np.float32)}),
            r"duplicate \(2\): .*weight.left \(also embeddings.word_embeddings.weight\)",
        ),
        (
            lambda t: t.update({"pooler.dense.bias.left": np.ones((12, 1), np.float32)}),
            r"unknown \(1\): pooler.dense.bias.left",
        ),
    ],
)
def test_factors_that_do_not_pair_are_refused(
    factored: Checkpoint, folder: Path, edit_weights: Edit, tmp_path: Path, change: Any, message: str
):
    save_checkpoint(factored, tmp_path / "small")
    shutil.copyfile(tmp_path / "small" / "lpjax.safetensors", folder / "model.safetensors")

    def apply(tensors: dict[str, np.ndarray]) -> None:
        change(tensors)

    edit_weights(apply)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_transformers_loads_a_dense_checkpoint(factored: Checkpoint, folder: Path, tmp_path: Path):
    pytest.importorskip("torch")
    from transformers import AutoModel

    checkpoint = load_checkpoint(folder)
    save_checkpoint(checkpoint, tmp_path / "saved")
    model, info = AutoModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    query = model.encoder.layer[0].attention.self.query.weight.detach().numpy()
    np.testing.assert_array_equal(query.T, dict(walk(checkpoint.params))[KERNEL])
