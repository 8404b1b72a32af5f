"""The small models: files, tokenizers and initial weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from experiments.small_nets import NETS, make
from lpjax import classify, load_checkpoint
from lpjax._tree import walk
from lpjax.data.batching import Batch, collate, tokenize
from lpjax.data.tokenizer import load_tokenizer
from lpjax.models.heads import with_head

VOCAB_SIZE = 300


def sentences(count: int = 300) -> list[str]:
    """Phrases of made-up words, some as in SST-2: a space at the end, none before an apostrophe's s."""
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyzé")
    words = ["".join(rng.choice(letters, rng.integers(1, 9))) for _ in range(400)] + ["matrices", "under", ",", "'s"]
    return [" ".join(rng.choice(words, rng.integers(1, 12))) + " " for _ in range(count)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All models, made once."""
    root = tmp_path_factory.mktemp("runs")
    for net in NETS:
        make(net, sentences(), root / net, vocab_size=VOCAB_SIZE)
    return {net: root / net for net in NETS}


@pytest.mark.parametrize("net", NETS)
def test_two_runs_give_the_same_files(net: str, folders: dict[str, Path], tmp_path: Path):
    names = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in folders[net].iterdir()) == names
    for _ in range(2):
        make(net, sentences(), tmp_path / net, vocab_size=VOCAB_SIZE)
        for name in names:
            assert (tmp_path / net / name).read_bytes() == (folders[net] / name).read_bytes(), name


def test_the_seed_changes_the_weights_alone(folders: dict[str, Path], tmp_path: Path):
    make("roberta", sentences(), tmp_path / "other", vocab_size=VOCAB_SIZE, seed=1)
    for name, same in (("tokenizer.json", True), ("config.json", True), ("model.safetensors", False)):
        assert ((tmp_path / "other" / name).read_bytes() == (folders["roberta"] / name).read_bytes()) == same


@pytest.mark.parametrize("net", NETS)
def test_weights_are_initialized_as_published(net: str, folders: dict[str, Path]):
    checkpoint = load_checkpoint(folders[net])
    rows = {"distilbert": {"word_embeddings": 0}, "roberta": {"word_embeddings": 1, "position_embeddings": 1}}
    leaves = dict(walk(checkpoint.params))
    for path, leaf in leaves.items():
        parent, last = path.split("/")[-2:] if "/" in path else ("", path)
        if last == "scale":
            assert np.all(leaf == 1), path
        elif last == "bias":
            assert np.all(leaf == 0), path
        else:
            zero = rows.get(net, {}).get(parent)
            drawn = leaf if zero is None else np.delete(leaf, zero, axis=0)
            assert zero is None or np.all(leaf[zero] == 0), path
            # Five standard errors of the deviation; a leaf has 128 entries at least.
            assert np.std(drawn) == pytest.approx(0.02, rel=5 / np.sqrt(2 * drawn.size)), path
    assert sum(path.endswith(("r_w_bias", "r_r_bias", "r_s_bias")) for path in leaves) == 6 * (net == "xlnet")


SPECIALS: dict[str, dict[str, Any]] = {
    "distilbert": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
    "roberta": {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": VOCAB_SIZE - 1},
    "xlnet": {"unk": 0, "bos": 1, "eos": 2, "cls": 3, "sep": 4, "pad": 5, "mask": 6},
}


@pytest.mark.parametrize("net", NETS)
def test_special_tokens_have_the_ids_of_the_published_nets_or_their_order(net: str, folders: dict[str, Path]):
    tokenizer = load_tokenizer(folders[net])
    assert {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIALS[net]} == SPECIALS[net]
    assert tokenizer.padding_side == ("left" if net == "xlnet" else "right")
    assert len(tokenizer) == load_checkpoint(folders[net]).config.vocab_size == VOCAB_SIZE
    assert type(tokenizer).__name__.removesuffix("Fast") == NETS[net].tokenizer["tokenizer_class"]


@pytest.mark.parametrize("net", NETS)
def test_texts_and_pairs_have_the_form_that_the_net_reads(net: str, folders: dict[str, Path]):
    tokenizer = load_tokenizer(folders[net])
    ids = SPECIALS[net]
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("matrices", "under"))
    cls, sep = [ids["cls"]], [ids["sep"]]
    single, two = {
        "distilbert": (cls + first + sep, cls + first + sep + second + sep),
        "roberta": (cls + first + sep, cls + first + sep + sep + second + sep),
        "xlnet": (first + sep + cls, first + sep + second + sep + cls),
    }[net]
    assert ids["unk"] not in first + second
    assert tokenizer("matrices")["input_ids"] == single
    pair = tokenizer("matrices", "under", return_token_type_ids=True)
    assert pair["input_ids"] == two
    if net == "xlnet":
        assert pair["token_type_ids"] == [0] * (len(first) + 1) + [1] * (len(second) + 1) + [2]


@pytest.mark.parametrize("net", NETS)
def test_transformers_reads_the_tokenizer_as_it_was_trained(net: str, folders: dict[str, Path]):
    texts = [*sentences(50), "Under  naïve 東京 ``quoted'' low-rank", "the <mask> and [MASK]"]
    trained = tokenizers.Tokenizer.from_file(str(folders[net] / "tokenizer.json"))
    assert load_tokenizer(folders[net])(texts)["input_ids"] == [row.ids for row in trained.encode_batch(texts)]


@pytest.mark.parametrize("net", NETS)
def test_runs_with_a_head(net: str, folders: dict[str, Path]):
    checkpoint = load_checkpoint(folders[net])
    texts = sentences(4)
    tokens = tokenize(load_tokenizer(folders[net]), checkpoint.config, texts, max_length=128)
    batch = collate(tokens, Batch(np.arange(4), 128), 4)
    params, added = with_head(checkpoint.params, checkpoint.config, 2)
    logits = np.asarray(classify(params, checkpoint.config, batch))
    assert added
    assert logits.shape == (4, 2)
    # A text says the same without the padding.
    length = len(tokens.ids[0])
    alone = np.asarray(classify(params, checkpoint.config, collate(tokens, Batch(np.arange(1), length), 1)))
    np.testing.assert_allclose(alone[0], logits[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("net", NETS)
def test_few_texts_give_fewer_tokens(net: str, tmp_path: Path):
    config = make(net, ["low rank", "matrices"], tmp_path / net).config
    assert config.vocab_size < VOCAB_SIZE
    assert len(load_tokenizer(tmp_path / net)) == config.vocab_size
