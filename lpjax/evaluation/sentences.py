"""The cost of compression: STS-B with gold scores, or fidelity to the dense model on any text."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from scipy import stats

from lpjax._check import check_seed, check_whole
from lpjax._repr import short_repr
from lpjax.checkpoint import Checkpoint
from lpjax.data.batching import run_by_length
from lpjax.evaluation.divergence import Divergence
from lpjax.glue.data import Pairs
from lpjax.models import ModelConfig, device_params, encode
from lpjax.pipeline import Stage, read_pipeline, sentence_vectors, tokenize_sentences
from lpjax.pipeline.outputs import Embedding, outputs_of

Progress = Callable[[int, int], None]


class Embeddings(NamedTuple):
    """Sentence embeddings.

    Attributes:
        vectors: shape (n, size), float32, in the order of the sentences, on the device.
        tokens: number of encoded tokens, without padding; each distinct sentence counts once.
        seconds: time from the first batch to the last embedding, including compilation for new shapes.
    """

    vectors: Float[Array, "n size"]
    tokens: int
    seconds: float

    def __repr__(self) -> str:
        return short_repr(self)


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
    """Closeness to the dense model: mean cosine of the embeddings, Spearman correlation of the similarities."""

    mean_cosine: float
    spearman: float
    sentences: int
    tokens_per_second: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class OutputsResult:
    """Closeness of the outputs of a model's head to those of the dense model.

    Attributes:
        kind: kind of the outputs: "classes", "regression", "labels", "classes of tokens", "spans", "words".
        divergence: mean over the texts, see `Outputs.divergence`: KL in nats, or squared differences of a regression.
        agreement: mean share of equal predictions; None for a regression.
        texts: number of texts.
        truncated: number of texts that were cut off at `max_length` tokens.
        max_length: largest number of tokens of a text.
    """

    kind: str
    divergence: float
    agreement: float | None
    texts: int
    truncated: int
    max_length: int


def embed_sentences(
    checkpoint: Checkpoint,
    sentences: Sequence[str],
    *,
    tokenizer: Any = None,
    batch_size: int = 32,
    max_length: int | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
    dtype: DTypeLike = jnp.float32,
    progress: Progress | None = None,
) -> Embeddings:
    """Embed sentences; the vectors equal those of `encode` in sentence-transformers up to rounding.

    A folder of sentence-transformers defines how they are computed from the hidden states: poolings, dense layers and
    norms, prompts, length and case of the text. Without such a folder, the hidden states of all tokens are averaged.
    Modules that lpjax does not support are refused by name: see docs/reference/sentence_transformers.md.

    Sentences are sorted by length and padded to one of a few lengths (8, 16, 24, 32, …), batches to `batch_size`
    rows, so there are at most twenty compilations per structure of params. Embeddings stay on the device.

    Args:
        checkpoint: the model; dense and `LowRank` leaves alike.
        sentences: n strings; equal ones are encoded once.
        tokenizer: a tokenizer of transformers, used unchanged; by default the one in `checkpoint.source`, set up as the
            folder says.
        batch_size: rows of a batch.
        max_length: largest number of tokens of a sentence; the rest is cut off. By default the limit in
            sentence_bert_config.json or of the tokenizer, at most the number of positions of the model (512 if it has
            no limit).
        prompt: text to put before every sentence in place of the folder's default prompt; "" for none.
        prompt_name: name of a prompt in config_sentence_transformers.json to use instead.
        dtype: dtype of the model, float32 or bfloat16; the stages after it are computed in float32.
        progress: called with (distinct sentences done, distinct sentences in all) after each batch.

    Raises:
        ValueError: no sentence, an element that is not a string, a batch size or length out of range, or an unknown
            prompt.
        CheckpointError: the folder needs a module that lpjax does not support.
    """
    check_whole("`batch_size`", batch_size, 1)
    unique = {sentence: i for i, sentence in enumerate(dict.fromkeys(sentences))}
    tokens, stages = tokenize_sentences(
        checkpoint, read_pipeline(checkpoint), list(unique),
        tokenizer=tokenizer, max_length=max_length, prompt=prompt, prompt_name=prompt_name,
    )  # fmt: skip
    params = device_params(checkpoint.params, dtype, expand=True)

    began = time.perf_counter()
    parts, row_of = run_by_length(
        tokens,
        batch_size,
        lambda inputs: _pool(params, checkpoint.config, inputs, np.dtype(dtype), stages),
        progress,
    )
    rows = row_of[[unique[sentence] for sentence in sentences]]
    vectors = jnp.concatenate(parts)[rows].block_until_ready()
    return Embeddings(vectors, int(tokens.lengths.sum()), time.perf_counter() - began)


@functools.partial(jax.jit, static_argnames=("config", "dtype", "stages"))
def _pool(
    params: dict[str, Any], config: ModelConfig, inputs: dict[str, Array], dtype: np.dtype, stages: tuple[Stage, ...]
) -> Array:
    hidden = encode(params, config, inputs, dtype=dtype).astype(jnp.float32)
    return sentence_vectors(stages, hidden, inputs["attention_mask"].astype(bool))


def stsb(checkpoint: Checkpoint, pairs: Pairs, **options: Any) -> StsbResult:
    """STS-B without a head: cosine of embeddings against the gold scores.

    Args:
        checkpoint: the model.
        pairs: from `lpjax.glue.load_stsb`.
        **options: options of `embed_sentences`.

    Raises:
        ValueError: fewer than two pairs, or all scores or all cosines are equal, so their correlation is not defined.
    """
    n = len(pairs.scores)
    embeddings = embed_sentences(checkpoint, [*pairs.first, *pairs.second], **options)
    cosines = np.asarray(_cosines(embeddings.vectors[:n], embeddings.vectors[n:]), np.float64)
    gold = np.asarray(pairs.scores, np.float64)
    pearson, spearman = (_correlation(measure, cosines, gold) for measure in (stats.pearsonr, stats.spearmanr))
    return StsbResult(pearson, spearman, n, embeddings.tokens / embeddings.seconds, embeddings.seconds)


def fidelity(
    checkpoint: Checkpoint,
    baseline: Checkpoint | Embeddings,
    sentences: Sequence[str],
    *,
    seed: int = 0,
    **options: Any,
) -> FidelityResult:
    """Compare the embeddings of a compressed model with those of the dense one, without labels.

    Args:
        checkpoint: the compressed model.
        baseline: the dense model, or its embeddings of the same sentences.
        sentences: distinct strings, at least three; see `lpjax.glue.load_sentences`.
        seed: random seed for the sentence pairs whose similarities are compared, ten pairs per sentence.
        **options: options of `embed_sentences`.

    Raises:
        ValueError: fewer than three sentences, embeddings of other sentences, or similarities that are all equal.
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
    check_seed("`seed`", seed)
    rng = np.random.default_rng(seed)
    count = len(sentences)
    first = np.repeat(np.arange(count), 10)
    second = (first + rng.integers(1, count, size=first.size)) % count  # never a sentence with itself
    similarities = [
        np.asarray(_cosines(vectors[first], vectors[second]), np.float64) for vectors in (ours.vectors, theirs.vectors)
    ]
    spearman = _correlation(stats.spearmanr, *similarities)
    return FidelityResult(cosine, spearman, count, ours.tokens / ours.seconds, ours.seconds)


def compare_outputs(
    checkpoint: Checkpoint,
    baseline: Checkpoint,
    sentences: Sequence[str],
    *,
    tokenizer: Any = None,
    batch_size: int = 32,
    max_length: int | None = 128,
) -> OutputsResult:
    """Compare the outputs of a compressed model's head with those of the dense model, without labels, in float32.

    Args:
        checkpoint: the compressed model.
        baseline: the dense model, with the same head.
        sentences: n texts.
        tokenizer, batch_size, max_length: as for `Divergence`.

    Raises:
        ValueError: models without heads or with different ones, and what `Divergence` refuses.
    """
    kind = outputs_of(baseline)
    if isinstance(kind, Embedding) or outputs_of(checkpoint) != kind:
        raise ValueError("the two models have no head, or different ones; compare their embeddings: `fidelity`")
    measure = Divergence(
        baseline, sentences, hidden=0, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length
    )
    return OutputsResult(
        kind.kind,
        measure(checkpoint.params),
        measure.agreement(checkpoint.params),
        len(sentences),
        measure.tokens.truncated,
        measure.tokens.max_length,
    )


@jax.jit
def _cosines(first: Array, second: Array) -> Array:
    lengths = jnp.linalg.norm(first, axis=1) * jnp.linalg.norm(second, axis=1)
    return jnp.sum(first * second, axis=1) / jnp.maximum(lengths, jnp.finfo(first.dtype).tiny)


def _correlation(measure: Callable[..., Any], x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError(f"{len(x)} similarities, or all of them equal: their correlation is not defined")
    return float(np.asarray(measure(x, y))[0])
