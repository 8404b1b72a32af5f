"""Batches of texts in few static shapes: tokenized once, sorted by length, padded to one of a few lengths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from lpjax.models import ModelConfig

LENGTHS = (*range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32), *range(320, 513, 64))
"""Lengths that batches are padded to, denser for short texts: at most one compilation each, 20 in all."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokenized texts, or pairs of them.

    Attributes:
        ids: token ids of each text, int32.
        types: segment of each token, int32, or None if the model has only one.
        padding: id of the padding token.
        left: whether padding goes to the left.
        max_length: largest number of tokens of a text.
        special: ids of the tokens that the tokenizer adds to texts, such as [CLS].
        mask: id of the mask token; None without one.
        vocab_size: number of token ids of the model.
        truncated: number of texts that were cut off at `max_length`.
    """

    ids: list[np.ndarray]
    types: list[np.ndarray] | None
    padding: int
    left: bool
    max_length: int
    special: frozenset[int] = frozenset()
    mask: int | None = None
    vocab_size: int = 0
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, shape (n,)."""
        return np.fromiter(map(len, self.ids), np.int64, len(self.ids))


class Batch(NamedTuple):
    """The indices of the texts in a batch, and the length that they are padded to."""

    rows: np.ndarray
    length: int


def tokenize(
    tokenizer: Any,
    config: ModelConfig,
    first: Sequence[str],
    second: Sequence[str] | None = None,
    *,
    max_length: int | None = None,
) -> Tokens:
    """Tokenize n texts, or n pairs, for a model.

    Args:
        tokenizer: a tokenizer of transformers. Its special tokens are added; a pair that is too long loses the end of
            its longer text.
        config: the model's config, for its positions, segments and padding.
        first: n strings, at least one.
        second: n strings, the other parts of pairs.
        max_length: largest number of tokens of a text or pair; by default the number of positions of the model, or 512
            if it has no limit.

    Raises:
        ValueError: there are no texts, a text is not a string, the two lists differ in length, `max_length` is out of
            range or leaves no room for the special tokens, or the model lacks one of the ids or segments.
    """
    texts = [first] if second is None else [first, second]
    if not first or any(isinstance(part, str) or not all(isinstance(text, str) for text in part) for part in texts):
        raise ValueError("`sentences` is empty or holds something other than strings; expected a list of strings")
    if second is not None and len(second) != len(first):
        raise ValueError(f"there are {len(first)} first texts and {len(second)} second ones; expected pairs")
    limit = config.max_length
    if max_length is None:
        max_length = limit or LENGTHS[-1]
    if max_length < 3 or (limit is not None and max_length > limit):
        expected = "3 or more" if limit is None else f"3 to {limit}, the number of positions of the model"
        raise ValueError(f"`max_length` is {max_length}; expected {expected}")
    segments = second is not None and config.num_token_types != 1
    options = {"return_token_type_ids": True} if segments or config.wants_token_types else {}
    try:
        encoded = tokenizer(*map(list, texts), truncation=True, max_length=max_length, **options)
    except (ValueError, OSError):
        raise
    except Exception as error:  # tokenizers raises a bare Exception, for example for a vocabulary without [UNK]
        raise ValueError(
            f"`tokenizer` fails on the texts: {error}; its files are damaged, or belong to another model"
        ) from error
    ids = [np.asarray(row, np.int32) for row in encoded["input_ids"]]
    sizes = [len(row) for row in ids]
    if not all(1 <= size <= max_length for size in sizes):
        # transformers' own truncation gives up if not even the special tokens fit.
        raise ValueError(
            f"`tokenizer` makes {min(sizes)} to {max(sizes)} tokens of a text, but `max_length` is {max_length}; "
            "expected 1 or more, and room for its special tokens"
        )
    types = [np.asarray(row, np.int32) for row in encoded["token_type_ids"]] if options else None
    check_known(config, ids, types)
    padding = getattr(tokenizer, "pad_token_id", 0) or 0 if config.padding_id is None else config.padding_id
    special = {getattr(tokenizer, f"{name}_token_id", None) for name in ("cls", "sep", "bos", "eos", "pad")}
    return Tokens(
        ids,
        types,
        padding,
        config.padding_side == "left",
        max_length,
        frozenset(int(token) for token in special if token is not None),
        getattr(tokenizer, "mask_token_id", None),
        config.vocab_size,
        _truncated(tokenizer, texts, ids, max_length),
    )


def _truncated(tokenizer: Any, texts: list[Any], ids: list[np.ndarray], max_length: int) -> int:
    """Number of texts with more than `max_length` tokens; those at the limit are tokenized again without one."""
    full = [i for i, row in enumerate(ids) if len(row) == max_length]
    if not full:
        return 0
    whole = tokenizer(*([part[i] for i in full] for part in texts), truncation=False, verbose=False)["input_ids"]
    return sum(len(row) > max_length for row in whole)


def check_known(config: ModelConfig, ids: Sequence[np.ndarray], types: Sequence[np.ndarray] | None) -> None:
    """Refuse token ids that the model does not have: a device would silently read other rows.

    Raises:
        ValueError: the model lacks an id or a segment.
    """
    for what, rows, count in (("ids", ids, config.vocab_size), ("segments", types, config.num_token_types)):
        largest = max((int(row.max()) for row in rows or ()), default=0)
        if count is not None and largest >= count:
            raise ValueError(
                f"`tokenizer` gives {what} up to {largest}, but the model has {count}, from 0; "
                "expected the tokenizer that the model was trained with"
            )


def padded_length(longest: int, max_length: int) -> int:
    """The smallest of `LENGTHS` that is `longest` or more, but at most `max_length`."""
    return min(next((length for length in LENGTHS if length >= longest), max_length), max_length)


def by_length(tokens: Tokens, batch_size: int) -> Iterator[Batch]:
    """Batches of all texts, shortest first; only the first may have fewer than `batch_size` texts.

    Missing rows are computed as padding, which costs least for the shortest texts.
    """
    lengths = tokens.lengths
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(len(order) % batch_size or batch_size, len(order) + 1, batch_size):
        rows = order[start:stop]
        yield Batch(rows, padded_length(int(lengths[rows[-1]]), tokens.max_length))
        start = stop


def run_by_length(
    tokens: Tokens,
    batch_size: int,
    run: Callable[[dict[str, np.ndarray]], Array],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Array], np.ndarray]:
    """Call `run` for each batch of `by_length`; returns the results, and each text's row in their concatenation.

    Args:
        tokens: n texts.
        batch_size: rows of a batch.
        run: inputs as from `collate` -> array on the devices, with a row for each row of the batch.
        progress: called with (texts done, texts in all) after each batch.
    """
    parts, row_of, done = [], np.zeros(len(tokens), np.int32), 0
    for batch in by_length(tokens, batch_size):
        row_of[batch.rows] = len(parts) * batch_size + np.arange(len(batch.rows))
        parts.append(run(collate(tokens, batch, batch_size)))
        done += len(batch.rows)
        # One batch is always ahead, so that the devices never wait for the host, and never more, so that no inputs pile
        # up there.
        jax.block_until_ready(parts[-2:-1])
        if progress is not None:
            progress(done, len(tokens))
    return parts, row_of


def shuffled(tokens: Tokens, batch_size: int, rng: np.random.Generator, span: int = 50) -> list[Batch]:
    """Batches of all texts in random order, each with texts of similar length; one batch may have fewer texts.

    Texts are shuffled, sorted by length within spans of `span` batches, and cut into batches, which are shuffled again.
    That is random enough to train on, and needs little padding.
    """
    lengths = tokens.lengths
    order = rng.permutation(len(tokens))
    batches = []
    for start in range(0, len(order), batch_size * span):
        part = order[start : start + batch_size * span]
        part = part[np.argsort(lengths[part], kind="stable")]
        for at in range(0, len(part), batch_size):
            rows = part[at : at + batch_size]
            batches.append(Batch(rows, padded_length(int(lengths[rows].max()), tokens.max_length)))
    return [batches[i] for i in rng.permutation(len(batches))]


def collate(tokens: Tokens, batch: Batch, batch_size: int) -> dict[str, np.ndarray]:
    """The inputs of `classify` for a batch, padded to (batch_size, batch.length); rows beyond the texts are padding."""
    shape = (batch_size, batch.length)
    inputs = {
        "input_ids": np.full(shape, tokens.padding, np.int32),
        "attention_mask": np.zeros(shape, np.int32),
    }
    if tokens.types is not None:
        inputs["token_type_ids"] = np.zeros(shape, np.int32)
    for at, row in enumerate(batch.rows):
        ids = tokens.ids[row]
        place = (at, slice(-len(ids), None) if tokens.left else slice(len(ids)))
        inputs["input_ids"][place] = ids
        inputs["attention_mask"][place] = 1
        if tokens.types is not None:
            inputs["token_type_ids"][place] = tokens.types[row]
    return inputs


def round_up(batch_size: int, mesh: Mesh, config: ModelConfig) -> int:
    """The smallest number of rows, `batch_size` or more, that divides evenly over the devices and fits the model."""
    unit = math.lcm(mesh.size, config.batch_multiple)
    return -(-batch_size // unit) * unit
