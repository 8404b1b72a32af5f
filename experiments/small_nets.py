"""Small nets of three architectures to train from scratch: `python -m experiments.small_nets [--runs DIR]`.

Makes the checkpoints DIR/small-distilbert, DIR/small-roberta and DIR/small-xlnet, by default in runs/: random weights
as each net's own are initialized, its config, and a tokenizer of its kind with about 8000 tokens, trained on the texts
of SST-2's training split. Two runs give the same files. Then
`python -m experiments.finetune experiments/configs/small.toml` trains them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lpjax import Checkpoint, config_from_json, save_checkpoint
from lpjax._tree import put
from lpjax.glue import load_examples
from lpjax.models import ModelConfig, name_table

SEED = 0
VOCAB_SIZE = 8000
POSITIONS = 128  # GLUE's texts are cut off there
LAYERS, HIDDEN, HEADS, INNER = 2, 128, 4, 512


def wordpiece(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """DistilBERT's kind of tokenizer: lower-case WordPiece."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    # Letters inside words would be numbered in the order of a hash table that is new in each run, and ties between
    # merges broken by these numbers. As special tokens of a trainer they come first, in their own order.
    letters = sorted({letter for text in texts for letter in normalizer.normalize_str(text) if not letter.isspace()})

    def empty(vocab: dict[str, int]) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    first = [*specials, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False)
    trained = empty({})
    trained.train_from_iterator(texts, trainer)
    tokenizer = empty(trained.get_vocab())
    tokenizer.add_special_tokens(specials)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", specials.index("[CLS]")), ("[SEP]", specials.index("[SEP]"))],
    )
    return tokenizer


def byte_level(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """RoBERTa's kind of tokenizer: byte pairs from all 256 bytes, with <mask> for its last token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def unigram(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """XLNet's kind of tokenizer: a unigram model of pieces, texts ending in <sep> <cls>."""
    specials = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]

    def empty(vocab: list[tuple[str, float]] | None, unk_id: int | None) -> Tokenizer:
        tokenizer = Tokenizer(models.Unigram(vocab, unk_id, False))
        quotes = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        tokenizer.normalizer = normalizers.Sequence([*quotes, normalizers.NFKD(), normalizers.StripAccents()])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        return tokenizer

    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    trained = empty(None, None)
    trained.train_from_iterator(texts, trainer)
    vocabulary = json.loads(trained.to_str())["model"]["vocab"][len(specials) :]
    # The trainer's hash tables have another order in each run. Letters that are no pieces in their own right get the
    # least score, and 0.0001 more from one to the next; the last digits of the others depend on the order of sums.
    least = min(score for _, score in vocabulary)
    rare = least + 0.0001 * sum(len(piece) == 1 for piece, _ in vocabulary)
    pieces = [(piece, round(least if len(piece) == 1 and score <= rare else score, 4)) for piece, score in vocabulary]
    pieces.sort(key=lambda entry: (-entry[1], entry[0]))
    tokenizer = empty([*((token, 0.0) for token in specials), *pieces], specials.index("<unk>"))
    tokenizer.add_special_tokens([AddedToken(token, lstrip=token == "<mask>", special=True) for token in specials])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2",
        pair="$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2",
        special_tokens=[("<sep>", specials.index("<sep>")), ("<cls>", specials.index("<cls>"))],
    )
    return tokenizer


class Net(NamedTuple):
    """A net to make: how its tokenizer is trained, the object of tokenizer_config.json, and that of config.json."""

    train: Callable[[Sequence[str], int], Tokenizer]
    tokenizer: dict[str, Any]
    config: dict[str, Any]


NETS = {
    "distilbert": Net(
        wordpiece,
        {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": True, "model_max_length": POSITIONS},
        {
            "model_type": "distilbert",
            "architectures": ["DistilBertModel"],
            "n_layers": LAYERS,
            "dim": HIDDEN,
            "n_heads": HEADS,
            "hidden_dim": INNER,
            "max_position_embeddings": POSITIONS,
            "pad_token_id": 0,
        },
    ),
    "roberta": Net(
        byte_level,
        {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False, "model_max_length": POSITIONS},
        {
            "model_type": "roberta",
            "architectures": ["RobertaModel"],
            "num_hidden_layers": LAYERS,
            "hidden_size": HIDDEN,
            "num_attention_heads": HEADS,
            "intermediate_size": INNER,
            "max_position_embeddings": POSITIONS + 2,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "xlnet": Net(
        unigram,
        {"tokenizer_class": "XLNetTokenizer", "do_lower_case": False, "padding_side": "left"},
        {
            "model_type": "xlnet",
            "architectures": ["XLNetModel"],
            "n_layer": LAYERS,
            "d_model": HIDDEN,
            "n_head": HEADS,
            "d_inner": INNER,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 5,
        },
    ),
}
"""The nets by their `model_type`; what a config leaves out is as in the published one."""


def initial_params(config: ModelConfig, seed: int = SEED) -> dict[str, Any]:
    """A base model's tree as transformers initializes it.

    Normal weights of standard deviation 0.02, XLNet's biases of attention too; all other biases 0, scales of layer
    normalization 1. DistilBERT's and RoBERTa's embeddings of padding are 0.
    """
    rng = np.random.default_rng(seed)
    padding = {"distilbert": {"word_embeddings": 0}, "roberta": {"word_embeddings": 1, "position_embeddings": 1}}
    tree: dict[str, Any] = {}
    for weight in name_table(config).base:
        *parents, last = weight.path.split("/")
        shape = [int(n) for n in weight.shape]
        if last == "scale":
            leaf = np.ones(shape, np.float32)
        elif last == "bias":
            leaf = np.zeros(shape, np.float32)
        else:
            leaf = np.float32(0.02) * rng.standard_normal(shape, np.float32)
        row = padding.get(config.model_type, {}).get(parents[-1]) if last == "embedding" else None
        if row is not None:
            leaf[row] = 0
        put(tree, [*parents, last], leaf)
    return tree


def make(
    net: str, texts: Sequence[str], folder: str | Path, *, vocab_size: int = VOCAB_SIZE, seed: int = SEED
) -> Checkpoint:
    """Save a small net with random weights and a tokenizer trained on `texts`; a checkpoint there is replaced.

    Args:
        net: key of `NETS`.
        texts: to train the tokenizer on.
        folder: where to.
        vocab_size: tokens at most; few texts give fewer.
        seed: of the weights.
    """
    train, tokenizer_config, data = NETS[net]
    tokenizer = train(texts, vocab_size)
    data = {**data, "vocab_size": tokenizer.get_vocab_size()}
    config = config_from_json(data)
    checkpoint = Checkpoint(initial_params(config, seed), config, config_json=data)
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(tokenizer_config, indent=2) + "\n",
    }
    save_checkpoint(checkpoint, folder, overwrite=True, extra_files=files)
    return checkpoint


def main() -> None:
    """Make all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    texts = load_examples("sst2", "train").first
    for net in NETS:
        folder = options.runs / f"small-{net}"
        config = make(net, texts, folder).config
        print(f"{folder}: {config.vocab_size} tokens")


if __name__ == "__main__":
    main()
