"""Loading: what files may look like, and what is refused with which words."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpjax._tree import walk
from lpjax.checkpoint import CheckpointError, export_checkpoint, load_checkpoint, save_checkpoint
from lpjax.checkpoint.safetensors import read_tensors, write_tensors
from tests.checkpoint.hostile_files import shard
from tests.conftest import GOLDENS, Edit
from tests.helpers.checkpoints import GOLDEN_NAMES, assert_same


def leaves(folder: Path) -> dict[str, Any]:
    # Copies, for the tests overwrite the file that the leaves are views of.
    return {path: leaf.copy() for path, leaf in walk(load_checkpoint(folder).params)}


def test_tree_is_that_of_flax_with_kernels_transposed(folder: Path):
    checkpoint = load_checkpoint(str(folder))
    tensors = load_file(folder / "model.safetensors")
    layer = checkpoint.params["encoder"]["layer"]["1"]
    np.testing.assert_array_equal(
        layer["intermediate"]["dense"]["kernel"], tensors["encoder.layer.1.intermediate.dense.weight"].T
    )
    np.testing.assert_array_equal(
        layer["attention"]["output"]["LayerNorm"]["scale"],
        tensors["encoder.layer.1.attention.output.LayerNorm.weight"],
    )
    np.testing.assert_array_equal(
        checkpoint.params["embeddings"]["word_embeddings"]["embedding"],
        tensors["embeddings.word_embeddings.weight"],
    )
    assert len(dict(walk(checkpoint.params))) == len(tensors)
    assert checkpoint.source == folder
    assert checkpoint.compression is None
    assert checkpoint.config.to_json()["hidden_size"] == 12


def test_leaves_are_views_of_the_file(folder: Path):
    for _, leaf in walk(load_checkpoint(folder).params):
        assert not leaf.flags.owndata
        assert not leaf.flags.writeable


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("bert_no_pooler", set()),
        ("bert_classifier", {"classifier"}),
        ("bert_pretraining", {"cls"}),
    ],
)
def test_heads_and_pooler_may_be_there_or_not(name: str, heads: set[str]):
    params = load_checkpoint(GOLDENS / name).params
    base = params["bert"] if heads else params
    assert params.keys() == ({"bert"} | heads if heads else {"embeddings", "encoder"})
    assert ("pooler" in base) == (name != "bert_no_pooler")


def test_numbers_keep_their_format():
    params = load_checkpoint(GOLDENS / "bert_bfloat16").params
    assert {leaf.dtype for _, leaf in walk(params)} == {np.dtype(ml_dtypes.bfloat16)}


def test_old_names_are_understood(folder: Path, edit_weights: Edit):
    expected = leaves(folder)

    def age(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        old = {
            "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
            for name, t in tensors.items()
        }
        return old | {"bert.embeddings.position_ids": np.arange(9)[None]}

    edit_weights(age)
    assert_same({path.removeprefix("bert/"): leaf for path, leaf in leaves(folder).items()}, expected)


PREFIXES = {
    "bert": "bert.",
    "distilbert": "distilbert.",
    "roberta": "roberta.",
    "xlm-roberta": "roberta.",
    "camembert": "roberta.",
    "xlnet": "transformer.",
    "modernbert": "model.",
    "albert": "albert.",
    "mpnet": "mpnet.",
    "electra": "electra.",
}
HEADS = (
    "cls.",
    "classifier.",
    "pre_classifier.",
    "vocab_",
    "lm_head.",
    "lm_loss.",
    "logits_proj.",
    "sequence_summary.",
    "head.",
    "predictions.",
    "discriminator_predictions.",
)


def renamed(name: str, tmp_path: Path, rename: Callable[[str], str], **more: np.ndarray) -> Path:
    """A golden checkpoint with other names, and tensors besides; a dot in a name is written as two underscores."""
    shutil.copytree(GOLDENS / name, tmp_path / "renamed")
    path = tmp_path / "renamed" / "model.safetensors"
    tensors = {rename(key): np.array(tensor) for key, tensor in read_tensors(path)[0].items()}
    path.unlink()
    write_tensors(path, (tensors | {key.replace("__", "."): value for key, value in more.items()}).items())
    return tmp_path / "renamed"


@pytest.mark.parametrize("name", [name for name in GOLDEN_NAMES if not name.startswith("modernbert")])
def test_old_names_of_every_net(name: str, tmp_path: Path):
    """gamma and beta, and the index buffers of old files."""
    net = name.split("_")[0]
    prefix = PREFIXES[net] if any("embeddings" in p for p in load_checkpoint(GOLDENS / name).params) else ""

    def age(key: str) -> str:
        for norm in ("LayerNorm", "layer_norm"):
            key = key.replace(f"{norm}.weight", f"{norm}.gamma").replace(f"{norm}.bias", f"{norm}.beta")
        return key

    buffers = {} if net == "xlnet" else {f"{prefix}embeddings.position_ids".replace(".", "__"): np.arange(40)[None]}
    aged = renamed(name, tmp_path, age, **buffers)
    assert any(key.endswith("gamma") for key in read_tensors(aged / "model.safetensors")[0])
    assert_same(load_checkpoint(aged).params, load_checkpoint(GOLDENS / name).params)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_prefix_of_every_net_may_be_missing_or_more_than_there_should_be(name: str, tmp_path: Path):
    prefix = PREFIXES[name.split("_")[0]]
    with_head = any(key.startswith(HEADS) for key in read_tensors(GOLDENS / name / "model.safetensors")[0])

    def other(key: str) -> str:
        if with_head:
            return key.removeprefix(prefix)
        return prefix + key

    loaded, params = load_checkpoint(GOLDENS / name).params, load_checkpoint(renamed(name, tmp_path, other)).params
    assert_same(params, loaded if with_head else {prefix[:-1]: loaded})


@pytest.mark.parametrize("name", ["bert_base", "roberta_base"])
def test_pooler_may_be_absent(name: str, tmp_path: Path):
    folder = renamed(name, tmp_path, lambda key: key)
    path = folder / "model.safetensors"
    kept = {key: np.array(tensor) for key, tensor in read_tensors(path)[0].items() if not key.startswith("pooler")}
    path.unlink()
    write_tensors(path, kept.items())
    expected = load_checkpoint(GOLDENS / name).params
    assert_same(load_checkpoint(folder).params, {key: part for key, part in expected.items() if key != "pooler"})


def test_a_head_may_stand_beside_names_without_prefix(folder: Path, edit_weights: Edit):
    head = {"classifier.weight": np.ones((3, 12), np.float32), "classifier.bias": np.ones(3, np.float32)}
    edit_weights(lambda tensors: tensors.update(head))
    assert load_checkpoint(folder).params.keys() == {"bert", "classifier"}


def test_tied_weights_are_kept_only_where_they_differ(tmp_path: Path):
    shutil.copytree(GOLDENS / "bert_pretraining", tmp_path / "tied")
    path = tmp_path / "tied" / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    expected = leaves(tmp_path / "tied")
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].copy()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()
    save_file(tensors, path)
    assert_same(leaves(tmp_path / "tied"), expected)
    tensors["cls.predictions.decoder.weight"][0] += 1
    save_file(tensors, path)
    assert leaves(tmp_path / "tied").keys() == expected.keys() | {"cls/predictions/decoder/kernel"}


DECODERS = {
    "bert_pretraining": ("cls.predictions.decoder", "bert.embeddings.word_embeddings.weight"),
    "roberta_masked_lm": ("lm_head.decoder", "roberta.embeddings.word_embeddings.weight"),
    "distilbert_masked_lm": ("vocab_projector", "distilbert.embeddings.word_embeddings.weight"),
    "xlnet_same_length": ("lm_loss", "transformer.word_embedding.weight"),
    "modernbert_masked_lm": ("decoder", "model.embeddings.tok_embeddings.weight"),
    "albert_pretraining": ("predictions.decoder", "albert.embeddings.word_embeddings.weight"),
    "heads/mpnet_words": ("lm_head.decoder", "mpnet.embeddings.word_embeddings.weight"),
    "heads/electra_words": ("generator_lm_head", "electra.embeddings.word_embeddings.weight"),
}


def untied(name: str, tmp_path: Path, **more: np.ndarray) -> Path:
    """A golden whose config says that its embeddings are not tied, with tensors besides."""
    folder = renamed(name, tmp_path, lambda key: key, **more)
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"tie_word_embeddings": False}))
    return folder


@pytest.mark.parametrize(("name", "decoder", "table"), [(name, *pair) for name, pair in DECODERS.items()])
def test_a_weight_that_repeats_another_is_kept_unless_the_config_ties_them(
    tmp_path: Path, name: str, decoder: str, table: str
):
    tensors = read_tensors(GOLDENS / name / "model.safetensors")[0]
    bias = f"{decoder}.bias" if f"{decoder}.bias" in tensors else decoder.rpartition(".")[0] + ".bias"
    twins = {f"{decoder}.weight": tensors[table], f"{decoder}.bias": tensors[bias]}
    folder = untied(name, tmp_path, **{key.replace(".", "__"): value for key, value in twins.items()})
    loaded = load_checkpoint(folder)
    np.testing.assert_array_equal(dict(walk(loaded.params))[f"{decoder.replace('.', '/')}/kernel"].T, tensors[table])
    for write in (save_checkpoint, export_checkpoint):
        write(loaded, tmp_path / write.__name__)
        written = load_file(tmp_path / write.__name__ / "model.safetensors")
        assert written.keys() == (tensors | twins).keys()
        for key, value in twins.items():
            np.testing.assert_array_equal(written[key], value)
    assert_same(load_checkpoint(tmp_path / "save_checkpoint").params, loaded.params)


@pytest.mark.parametrize(("name", "decoder", "table"), [(name, *pair) for name, pair in DECODERS.items()])
def test_untied_weights_do_not_stand_for_each_other(tmp_path: Path, name: str, decoder: str, table: str):
    """transformers draws at random what is missing."""
    with pytest.raises(CheckpointError, match=rf"missing \(1\): {re.escape(decoder)}.weight"):
        load_checkpoint(untied(name, tmp_path / "decoder"))
    folder = untied(name, tmp_path / "table")
    path = folder / "model.safetensors"
    tensors = {key: np.array(tensor) for key, tensor in read_tensors(path)[0].items()}
    tensors[f"{decoder}.weight"] = tensors.pop(table)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=rf"missing \(1\): {re.escape(table.partition('.')[2])}"):
        load_checkpoint(folder)


def test_an_untied_bias_may_be_missing(tmp_path: Path):
    """transformers 4 ties the two biases in any case, and writes one of them."""
    table = read_tensors(GOLDENS / "bert_pretraining" / "model.safetensors")[0][DECODERS["bert_pretraining"][1]]
    folder = untied("bert_pretraining", tmp_path, cls__predictions__decoder__weight=table)
    assert load_checkpoint(folder).params["cls"]["predictions"]["decoder"].keys() == {"kernel"}


@pytest.mark.parametrize("tied", [True, False])
def test_factors_that_repeat_others(tmp_path: Path, tied: bool):
    """The decoder's are those of the table, transposed."""
    folder = untied("bert_pretraining", tmp_path)
    data = json.loads((folder / "config.json").read_text())
    ranks = {"bert/embeddings/word_embeddings/embedding": 2, "cls/predictions/decoder/kernel": 2}
    data |= {"tie_word_embeddings": tied, "lpjax": {"ranks": dict([*ranks.items()][: 1 if tied else 2])}}
    (folder / "config.json").write_text(json.dumps(data))
    decoder, table = DECODERS["bert_pretraining"]
    tensors = {key: np.array(value) for key, value in read_tensors(folder / "model.safetensors")[0].items()}
    rows, columns = tensors.pop(table).shape
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, 2), (2, columns)))
    factors = {f"{table}.left": left, f"{table}.right": right}
    factors |= {f"{decoder}.weight.left": right.T.copy(), f"{decoder}.weight.right": left.T.copy()}
    save_file(tensors | factors, folder / "model.safetensors")
    assert ("decoder" in load_checkpoint(folder).params["cls"]["predictions"]) == (not tied)
    if tied:  # under the second name alone, as of dense ones
        expected = jax.tree.map(np.array, load_checkpoint(folder).params)
        del factors[f"{table}.left"], factors[f"{table}.right"]
        save_file(tensors | factors, folder / "model.safetensors")
        assert_same(load_checkpoint(folder).params, expected)


def test_shards_are_put_together(folder: Path):
    expected = {path: np.array(leaf) for path, leaf in leaves(folder).items()}
    shard(folder)
    assert_same(leaves(folder), expected)


def test_one_error_names_everything_that_does_not_fit(folder: Path, edit_weights: Edit):
    def damage(tensors: dict[str, np.ndarray]) -> None:
        del tensors["embeddings.LayerNorm.bias"], tensors["pooler.dense.bias"]
        tensors["encoder.layer.7.output.dense.bias"] = np.ones(3, np.float32)
        tensors["lm_head"] = np.ones(3, np.float32)
        tensors["encoder.layer.0.output.LayerNorm.gamma"] = np.ones(12, np.float32)
        tensors["encoder.layer.0.output.dense.weight"] = np.ones((17, 12), np.float32)
        tensors["embeddings.token_type_embeddings.weight"] = np.ones(24, np.float32)
        tensors["encoder.layer.1.output.dense.bias"] = np.ones(12, np.int32)

    edit_weights(damage)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert str(caught.value) == (
        f"{folder}/model.safetensors does not fit the bert of {folder}/config.json:\n"
        "  missing (2): embeddings.LayerNorm.bias, pooler.dense.bias\n"
        "  unknown (2): encoder.layer.7.output.dense.bias, lm_head\n"
        "  duplicate (1): encoder.layer.0.output.LayerNorm.weight "
        "(also encoder.layer.0.output.LayerNorm.gamma)\n"
        "  mis-shaped (2): embeddings.token_type_embeddings.weight is (24), expected (2, 12), "
        "encoder.layer.0.output.dense.weight is (17, 12), expected (12, 17)\n"
        "  unusable (1): encoder.layer.1.output.dense.bias is int32, expected floating-point numbers\n"
        "  the file has more layers than its config.json says"
    )


def test_a_name_with_and_without_prefix_is_a_duplicate(folder: Path, edit_weights: Edit):
    edit_weights(lambda t: t.update({"bert.pooler.dense.bias": t["pooler.dense.bias"].copy()}))
    with pytest.raises(CheckpointError, match=r"duplicate \(1\): pooler.dense.bias \(also bert.pooler.dense.bias\)"):
        load_checkpoint(folder)


def test_a_head_in_part_is_missing_the_rest(folder: Path, edit_weights: Edit):
    edit_weights(lambda t: t.update({"cls.predictions.bias": np.ones(29, np.float32)}))
    with pytest.raises(CheckpointError, match=r"missing \(4\): cls.predictions.transform.dense.weight, "):
        load_checkpoint(folder)


def test_sizes_that_the_config_leaves_open_must_agree(folder: Path, edit_weights: Edit):
    head = {"classifier.weight": np.ones((3, 12), np.float32), "classifier.bias": np.ones(4, np.float32)}
    edit_weights(lambda tensors: tensors.update(head))
    with pytest.raises(CheckpointError, match=r"classifier.bias is \(4\), expected \(3\)"):
        load_checkpoint(folder)


def test_bfloat16_nan_is_found(tmp_path: Path):
    shutil.copytree(GOLDENS / "bert_bfloat16", tmp_path / "damaged")
    path = tmp_path / "damaged" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2:] = b"\xc0\x7f"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"NaN or infinite weights: .* \(1 of "):
        load_checkpoint(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (3, "`lpjax` is 3, expected an object"),
        ({"method": "svd"}, "`lpjax.ranks` is None, expected an object of whole numbers"),
        ({"ranks": {"pooler/dense/kernel": "2"}}, "`lpjax.ranks` is .* expected an object of whole numbers"),
        (
            {"ranks": {"pooler/dense/kernel": 2}},
            "`lpjax.ranks` and the factored weights .* differ at pooler/dense",
        ),
    ],
)
def test_bad_compression_block_is_refused(folder: Path, edit_config: Edit, block: Any, message: str):
    edit_config(lpjax=block)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("bert_classifier", "bert.pooler.dense.bias", r"missing \(1\): pooler.dense.bias"),
        ("distilbert_classifier", "pre_classifier.", r"missing \(2\): pre_classifier.weight, pre_classifier.bias"),
        ("roberta_classifier", "classifier.out_proj.", r"missing \(2\): classifier.out_proj.weight"),
        ("xlnet_classifier", "logits_proj.", r"missing \(2\): logits_proj.weight, logits_proj.bias"),
        ("modernbert_classifier", "head.", r"missing \(2\): head.dense.weight, head.norm.weight"),
        ("albert_classifier", "albert.pooler.bias", r"missing \(1\): pooler.bias"),
    ],
)
def test_a_classifier_without_its_head_is_refused(tmp_path: Path, name: str, lost: str, message: str):
    """`architectures` of config.json says that there is one."""
    shutil.copytree(GOLDENS / name, tmp_path / name)
    path = tmp_path / name / "model.safetensors"
    kept = {key: tensor.copy() for key, tensor in load_file(path).items() if not key.startswith(lost)}
    save_file(kept, path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / name)


def test_an_encoder_may_name_the_class_that_it_was_trained_as(folder: Path, edit_config: Edit):
    edit_config(architectures=["BertForMaskedLM"])
    assert load_checkpoint(folder).params.keys() == {"embeddings", "encoder", "pooler"}


def test_kernels_of_xlnet_are_reshaped_and_nothing_else_is_taken_for_one(tmp_path: Path):
    shutil.copytree(GOLDENS / "xlnet_base", tmp_path / "net")
    path = tmp_path / "net" / "model.safetensors"
    tensors = {key: tensor.copy() for key, tensor in load_file(path).items()}
    heads = load_checkpoint(tmp_path / "net").params["layer"]["1"]["rel_attn"]
    np.testing.assert_array_equal(heads["q"]["kernel"], tensors["layer.1.rel_attn.q"].reshape(12, 12))
    np.testing.assert_array_equal(heads["o"]["kernel"], tensors["layer.1.rel_attn.o"].reshape(12, 12).T)
    tensors["layer.1.rel_attn.o"] = tensors["layer.1.rel_attn.o"].reshape(12, 12)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"layer.1.rel_attn.o is \(12, 12\), expected \(12, 3, 4\)"):
        load_checkpoint(tmp_path / "net")


@pytest.mark.parametrize(
    ("name", "kept", "lost"),
    [
        ("roberta_masked_lm", "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("roberta_masked_lm", "lm_head.decoder.bias", "lm_head.bias"),
        ("xlnet_same_length", "lm_loss.weight", "transformer.word_embedding.weight"),
        ("distilbert_masked_lm", "vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
        ("modernbert_masked_lm", "decoder.weight", "model.embeddings.tok_embeddings.weight"),
        ("albert_pretraining", "predictions.decoder.bias", "predictions.bias"),
        ("heads/electra_words", "generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),
    ],
)
def test_tied_weights_may_be_there_under_their_second_name_alone(tmp_path: Path, name: str, kept: str, lost: str):
    shutil.copytree(GOLDENS / name, tmp_path / name)
    path = tmp_path / name / "model.safetensors"
    tensors = {key: tensor.copy() for key, tensor in load_file(path).items()}
    tensors[kept] = tensors.pop(lost)
    save_file(tensors, path)
    assert_same(load_checkpoint(tmp_path / name).params, load_checkpoint(GOLDENS / name).params)


def test_advice_on_a_pickle_names_the_class_that_keeps_the_head(folder: Path, edit_config: Edit):
    (folder / "model.safetensors").unlink()
    for names, expected in ((["BertForSequenceClassification"], "BertForSequenceClassification"), (None, "AutoModel")):
        edit_config(architectures=names)
        advice = re.escape(f'transformers.{expected}.from_pretrained("{folder}").save_pretrained')
        with pytest.raises(CheckpointError, match=f"only pytorch_model.bin, a pickle.*{advice}"):
            load_checkpoint(folder)


def test_a_file_that_is_cut_off_is_told_in_few_words(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8000])
    with pytest.raises(CheckpointError, match=r"; and \d+ more; fetch or save it again$") as caught:
        load_checkpoint(folder)
    assert str(caught.value).count("lies at bytes") == 3
