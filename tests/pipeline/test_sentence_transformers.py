"""Against the package sentence-transformers and PyTorch's transformers, which lpjax does not need: run where they are.

The cases are those of experiments/sentence_vectors.py, which prints their differences; NumPy's definitions of the
same are in tests/pipeline/test_pipeline.py.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

import lpjax
from lpjax.evaluation.sentences import embed_sentences
from lpjax.pipeline import ACTIVATIONS
from tests.conftest import Command

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

from experiments.sentence_vectors import CASES, Case, difference, encode, make_folder, make_net, texts  # noqa: E402

PARITY = [name for name in CASES if not name.startswith("Dense, ") or name == "Dense, GELU"]
# Cases that change what is read of a text: their vectors are not those of the plain mean.
READ = ["default prompt", "prompt by name", "prompt given", "max_seq_length", "tokenizer_args", "do_lower_case"]
READ += ["model_max_length of the tokenizer"]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_net(tmp_path_factory.mktemp("net") / "net")


@pytest.mark.parametrize("name", PARITY)
def test_vectors_are_those_of_sentence_transformers(name: str, net: Path, tmp_path: Path):
    differences = difference(CASES[name], net, tmp_path)
    assert differences["vectors"] < 1e-5
    assert differences["saved"] == 0  # sentence-transformers makes the same of what lpjax saved


def test_cases_are_no_others_in_disguise(net: Path, tmp_path: Path):
    plain = encode(make_folder(CASES["mean"], net, tmp_path / "mean"), CASES["mean"])
    for name in READ:
        other = encode(make_folder(CASES[name], net, tmp_path / name), CASES[name])
        assert np.abs(other - plain).max() > 1e-2, name


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_torch(name: str):
    import torch

    x = np.linspace(-6, 6, 97, dtype=np.float32)
    expected = getattr(torch.nn, name)()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(np.asarray(ACTIVATIONS[name](x)), expected, atol=1e-6)  # pyright: ignore[reportArgumentType]


def test_pickled_stage_is_copied_and_loads(net: Path, tmp_path: Path, command: Command):
    """Both compress and export copy the pickle that holds the dense layer's weights, and do not open it."""
    import torch
    from safetensors.torch import load_file

    case = CASES["Dense without bias"]
    folder = make_folder(case, net, tmp_path / "folder")
    stage = folder / "2_Dense"
    torch.save(load_file(stage / "model.safetensors"), stage / "pytorch_model.bin")
    (stage / "model.safetensors").unlink()
    expected = encode(folder, case)
    with pytest.raises(lpjax.CheckpointError, match=r"2_Dense holds its weights only in pytorch_model.bin, a pickle"):
        embed_sentences(lpjax.load_checkpoint(folder), texts())
    small, whole = tmp_path / "small", tmp_path / "whole"
    status, _, err = command("compress", folder, small, "--layers", "attention", "--rank", 7, "--method", "svd")
    assert status == 0, err
    assert command("export", small, whole)[0] == 0
    for out in (small, whole):
        assert (out / "2_Dense" / "pytorch_model.bin").read_bytes() == (stage / "pytorch_model.bin").read_bytes()
    pooled = encode(whole, case)
    assert pooled.shape == expected.shape
    assert 0 < np.abs(pooled - expected).max() < np.abs(expected).max()
    # As the message says.
    from safetensors.torch import save_file

    save_file(torch.load(stage / "pytorch_model.bin", weights_only=True), str(stage / "model.safetensors"))
    vectors = embed_sentences(lpjax.load_checkpoint(folder), texts()).vectors
    np.testing.assert_allclose(np.asarray(vectors), expected, atol=1e-5)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("layout", ["mean", "0_Transformer"])
def test_factored_folder_is_refused_with_a_word(
    layout: str, int8: bool, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not loaded with random weights: neither from a folder nor from the hub's cache."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dense = lpjax.load_checkpoint(make_folder(CASES[layout], net, tmp_path / "folder"))
    params = lpjax.compress(dense.params, select=["attention"], rank=4, solver="svd").params
    small = tmp_path / "small"
    lpjax.save_checkpoint(dataclasses.replace(dense, params=params), small, int8=int8)
    words = r"no file named model\.safetensors|does not appear to have a file named"
    for load in (AutoModel.from_pretrained, lambda place: SentenceTransformer(place, device="cpu")):
        with pytest.raises(OSError, match=words):
            load(str(small))
    # The hub's cache: a repository whose snapshot is that folder.
    repo = tmp_path / "cache" / "models--owner--small"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(small, repo / "snapshots" / ("0" * 40))
    with pytest.raises(OSError, match=words):
        AutoModel.from_pretrained("owner/small", cache_dir=tmp_path / "cache", local_files_only=True)
    with pytest.raises(OSError, match=words):
        SentenceTransformer("owner/small", cache_folder=str(tmp_path / "cache"), local_files_only=True)
    assert lpjax.load_checkpoint(small).config == dense.config


def test_truncation_is_after_the_norm(net: Path, tmp_path: Path):
    case = CASES["truncate_dim"]
    vectors = encode(make_folder(case, net, tmp_path / "folder"), case)
    assert vectors.shape[1] == 5
    assert (np.linalg.norm(vectors, axis=1) < 1).all()
    assert isinstance(case, Case)
