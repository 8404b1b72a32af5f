"""Texts of letters, and tokenizers that know them, for the tiny models."""

from __future__ import annotations

import itertools

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lpjax.data.batching import Batch, collate, tokenize
from lpjax.models import ModelConfig

WORDS = [chr(letter) for letter in range(ord("a"), ord("v") + 1)]
FIRST_ID = 7  # id of "a"; the tiny models have 29 tokens
_TEMPLATES = {
    "bert": ("<cls> $A <sep>", "<cls> $A <sep> $B:1 <sep>:1"),
    "distilbert": ("<cls> $A <sep>", "<cls> $A <sep> $B:1 <sep>:1"),
    "roberta": ("<cls> $A <sep>", "<cls> $A <sep> <sep> $B <sep>"),
    "mpnet": ("<cls> $A <sep>", "<cls> $A <sep> <sep> $B <sep>"),
    "electra": ("<cls> $A <sep>", "<cls> $A <sep> $B:1 <sep>:1"),
    "modernbert": ("<cls> $A <sep>", "<cls> $A <sep> $B <sep>"),
    "albert": ("<cls> $A <sep>", "<cls> $A <sep> $B:1 <sep>:1"),
    "xlnet": ("$A <sep> <cls>:2", "$A <sep> $B:1 <sep>:1 <cls>:2"),
}
LONGEST = 9  # positions that the smallest of the models has
TEXTS = ["a b c", "d", "e f g h i j k", "", "l m n", "o", "p q r s t u v a b", "c d e", "f g h i j"]


def make_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers for a tiny model, with the special tokens of its kind; letters are words."""
    kind = config.model_type
    pad = 5 if kind == "xlnet" else config.padding_id or 0
    numbers = iter(i for i in range(FIRST_ID) if i != pad)
    ids = {"<pad>": pad} | {name: next(numbers) for name in ("<cls>", "<sep>", "<unk>", "<mask>")}
    ids |= {word: FIRST_ID + i for i, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    single, pair = _TEMPLATES[kind]
    special = [(name, ids[name]) for name in ("<cls>", "<sep>")]
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=single, pair=pair, special_tokens=special
    )
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "cls", "sep", "unk", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side="left" if kind == "xlnet" else "right", **names)


def some_texts(n: int, longest: int = 40, seed: int = 0) -> list[str]:
    """Texts of 0 to `longest` letters."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(0, longest + 1))) for _ in range(n)]


def texts_of(*lengths: int, n: int = 10, seed: int = 0) -> list[str]:
    """Texts of these numbers of letters, in turn. Lengths are few: without padding, each needs a compilation."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=size)) for size, _ in zip(itertools.cycle(lengths), range(n), strict=False)]


def one_at_a_time(checkpoint, texts):
    """The inputs of the model for each text alone, without padding."""
    tokens = tokenize(make_tokenizer(checkpoint.config), checkpoint.config, texts, max_length=LONGEST)
    for row, ids in enumerate(tokens.ids):
        yield collate(tokens, Batch(np.array([row]), len(ids)), 1)
