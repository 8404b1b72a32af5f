"""What compression cost: STS-B with gold scores, or fidelity to the dense net on any text."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from scipy import stats

from lpjax.checkpoint import Checkpoint
from lpjax.glue.data import Pairs
from lpjax.models import ModelConfig, device_params, encode
from lpjax.tokenize import load_tokenizer

Progress = Callable[[int, int], None]

# Few lengths, closer together where texts are: at most one compilation each, and a tenth of the tokens is padding.
_LENGTHS = (16, 24, 32, 64, 128, 256, 512)


class Embeddings(NamedTuple):
    """Mean-pooled sentence embeddings.

    Attributes:
        vectors: shape (n, hidden), float32, in the order of the sentences, on the device.
        tokens: encoded, without padding, each different sentence once.
        seconds: from the first batch to the last embedding, with compilation where a shape was new.
    """

    vectors: Float[Array, "n hidden"]
    tokens: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class StsbResult:
    """Correlation of the cosines with the gold scores, over all pairs."""

    pearson: float
    spearman: float
    pairs: int
    tokens_per_second: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class FidelityResult:
    """Nearness to the dense net: mean cosine of the embeddings, Spearman of the two nets' similarities."""

    mean_cosine: float
    spearman: float
    sentences: int
    tokens_per_second: float
    seconds: float


def embed_sentences(
    checkpoint: Checkpoint,
    sentences: Sequence[str],
    *,
    tokenizer: Any = None,
    batch_size: int = 32,
    max_length: int | None = None,
    dtype: DTypeLike = jnp.float32,
    progress: Progress | None = None,
) -> Embeddings:
    """Encode sentences and average the hidden states of their tokens.

    Sentences are sorted by length and padded to one of a few lengths (16, 24, 32, 64, …), batches to `batch_size`
    rows: at most seven compilations a structure of the params. Embeddings stay on the device.

    Args:
        checkpoint: the net; dense and `LowRank` leaves alike.
        sentences: n strings; equal ones are encoded once.
        tokenizer: of transformers; by default the one in `checkpoint.source`.
        batch_size: rows of a batch.
        max_length: tokens of a sentence at most, the rest is cut off. By default what sentence_bert_config.json says,
            else all positions that the net has.
        dtype: of the computation, float32 or bfloat16; averages are float32.
        progress: called with (different sentences done, different sentences in all) after each batch.

    Raises:
        ValueError: no sentence, something that is no string, or a batch size or length out of range.
    """
    if not sentences or not all(isinstance(sentence, str) for sentence in sentences):
        raise ValueError("`sentences` is empty or holds something that is no string; expected a list of strings")
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; expected 1 or more")
    limit = checkpoint.config.max_length or _LENGTHS[-1]
    if max_length is None:
        max_length = min(limit, _sentence_length(checkpoint) or limit)
    if not 3 <= max_length <= limit:
        raise ValueError(f"`max_length` is {max_length}; expected 3 to {limit}, the positions that the net has")
    if tokenizer is None:
        if checkpoint.source is None:
            raise ValueError("`tokenizer` is None and the checkpoint has no folder to take one from; pass a tokenizer")
        tokenizer = load_tokenizer(checkpoint.source)

    unique = {sentence: i for i, sentence in enumerate(dict.fromkeys(sentences))}
    tokenized = tokenizer(list(unique), truncation=True, max_length=max_length, add_special_tokens=True)["input_ids"]
    largest = max(map(max, tokenized))
    if largest >= checkpoint.config.vocab_size:
        raise ValueError(
            f"`tokenizer` gives ids up to {largest}, but the net has {checkpoint.config.vocab_size} tokens; "
            "expected the tokenizer that the net was trained with"
        )
    order = sorted(range(len(unique)), key=lambda i: len(tokenized[i]))
    params = device_params(checkpoint.params, dtype)
    # RoBERTa's positions are counted by the id of padding, so that must be the net's.
    padding = getattr(checkpoint.config, "pad_token_id", tokenizer.pad_token_id or 0)

    pooled, places, start = [], [], 0
    began = time.perf_counter()
    while start < len(order):
        batch = _take_batch(order[start:], tokenized, batch_size, max_length)
        length = _padded_length(max(len(tokenized[i]) for i in batch), max_length)
        ids = np.full((batch_size, length), padding, np.int32)
        mask = np.zeros((batch_size, length), np.int32)
        for row, i in enumerate(batch):
            ids[row, : len(tokenized[i])] = tokenized[i]
            mask[row, : len(tokenized[i])] = 1
        pooled.append(_pool(params, checkpoint.config, ids, mask, np.dtype(dtype)))
        places += [*batch, *[-1] * (batch_size - len(batch))]
        start += len(batch)
        if progress is not None:
            pooled[-1].block_until_ready()
            progress(start, len(order))
    # Row r of the stack is sentence places[r]; rows of padding are -1 and never looked up.
    row_of = np.zeros(len(unique), np.int32)
    for row, i in enumerate(places):
        if i >= 0:
            row_of[i] = row
    rows = row_of[[unique[sentence] for sentence in sentences]]
    vectors = jnp.concatenate(pooled)[rows].block_until_ready()
    return Embeddings(vectors, sum(map(len, tokenized)), time.perf_counter() - began)


def _sentence_length(checkpoint: Checkpoint) -> int | None:
    """`max_seq_length` of sentence-transformers, where its file is there and says so."""
    try:
        text = (
            (checkpoint.source / "sentence_bert_config.json").read_text(encoding="utf-8") if checkpoint.source else "{}"
        )
        length = json.loads(text).get("max_seq_length")
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return length if isinstance(length, int) and length >= 3 else None


def _padded_length(longest: int, max_length: int) -> int:
    return min(next((length for length in _LENGTHS if length >= longest), max_length), max_length)


def _take_batch(order: list[int], tokenized: list[list[int]], size: int, max_length: int) -> list[int]:
    """The next sentences, shortest first, that share the padded length of the first, where there are many."""
    shortest = _padded_length(len(tokenized[order[0]]), max_length)
    alike = [i for i in order[:size] if _padded_length(len(tokenized[i]), max_length) == shortest]
    # A few short ones ride along with longer ones rather than fill a batch of their own with padding.
    return alike if len(alike) > size // 2 else order[:size]


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _pool(params: dict[str, Any], config: ModelConfig, ids: Array, mask: Array, dtype: np.dtype) -> Array:
    hidden = encode(params, config, {"input_ids": ids, "attention_mask": mask}, dtype=dtype).astype(jnp.float32)
    weights = mask.astype(jnp.float32)[:, :, None]
    # A row of padding has no token: 0/1 instead of 0/0.
    return jnp.sum(hidden * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)


def stsb(checkpoint: Checkpoint, pairs: Pairs, **options: Any) -> StsbResult:
    """STS-B without a head: cosine of mean-pooled embeddings against the gold scores.

    Args:
        checkpoint: the net.
        pairs: from `lpjax.glue.load_stsb`.
        **options: of `embed_sentences`.

    Raises:
        ValueError: fewer than two pairs, or scores or cosines that are all equal, whose correlation is not defined.
    """
    n = len(pairs.scores)
    embeddings = embed_sentences(checkpoint, [*pairs.first, *pairs.second], **options)
    cosines = np.asarray(_cosines(embeddings.vectors[:n], embeddings.vectors[n:]), np.float64)
    gold = np.asarray(pairs.scores, np.float64)
    speed = embeddings.tokens / embeddings.seconds
    return StsbResult(_pearson(cosines, gold), _spearman(cosines, gold), n, speed, embeddings.seconds)


def fidelity(
    checkpoint: Checkpoint,
    baseline: Checkpoint | Embeddings,
    sentences: Sequence[str],
    *,
    seed: int = 0,
    **options: Any,
) -> FidelityResult:
    """How near a compressed net stays to the dense one, for those who have no labels.

    Args:
        checkpoint: the compressed net.
        baseline: the dense net, or its embeddings of the same sentences.
        sentences: different strings, at least three; see `lpjax.glue.load_sentences`.
        seed: of the sentence pairs whose similarities are compared, ten for each sentence.
        **options: of `embed_sentences`.

    Raises:
        ValueError: fewer than three sentences, embeddings of others, or similarities that are all equal.
    """
    if len(sentences) < 3:
        raise ValueError(f"`sentences` has {len(sentences)}; expected at least three")
    ours = embed_sentences(checkpoint, sentences, **options)
    theirs = baseline if isinstance(baseline, Embeddings) else embed_sentences(baseline, sentences, **options)
    if theirs.vectors.shape != ours.vectors.shape:
        raise ValueError(
            f"`baseline` has embeddings of shape {theirs.vectors.shape}, the checkpoint {ours.vectors.shape}; "
            "expected the same sentences and the same hidden size"
        )
    cosine = float(jnp.mean(_cosines(ours.vectors, theirs.vectors)))
    rng = np.random.default_rng(seed)
    count = len(sentences)
    first = np.repeat(np.arange(count), 10)
    second = (first + rng.integers(1, count, size=first.size)) % count  # never a sentence with itself
    similarities = [
        np.asarray(_cosines(vectors[first], vectors[second]), np.float64) for vectors in (ours.vectors, theirs.vectors)
    ]
    return FidelityResult(cosine, _spearman(*similarities), count, ours.tokens / ours.seconds, ours.seconds)


@jax.jit
def _cosines(first: Array, second: Array) -> Array:
    lengths = jnp.linalg.norm(first, axis=1) * jnp.linalg.norm(second, axis=1)
    return jnp.sum(first * second, axis=1) / jnp.maximum(lengths, jnp.finfo(first.dtype).tiny)


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    _require_spread(x, y)
    return float(np.asarray(stats.pearsonr(x, y))[0])


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    _require_spread(x, y)
    return float(np.asarray(stats.spearmanr(x, y))[0])


def _require_spread(x: np.ndarray, y: np.ndarray) -> None:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError(f"{len(x)} similarities, or all of them equal: their correlation is not defined")
