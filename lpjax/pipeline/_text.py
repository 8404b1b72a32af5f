"""Tokenize sentences as a folder of sentence-transformers specifies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lpjax.checkpoint import Checkpoint
from lpjax.data.batching import Tokens, tokenize
from lpjax.data.tokenizer import tokenizer_of
from lpjax.pipeline._read import read_pipeline
from lpjax.pipeline._rules import TextRules as TextRules
from lpjax.pipeline._stages import Pooling, SentencePipeline, Stage


def sentence_tokenizer(checkpoint: Checkpoint, pipeline: SentencePipeline | None = None) -> Any:
    """The tokenizer of a checkpoint's folder as sentence-transformers sets it up.

    Raises:
        ValueError, FileNotFoundError, CheckpointError: as `tokenizer_of` and `read_pipeline`.
    """
    rules = (read_pipeline(checkpoint) if pipeline is None else pipeline).text
    tokenizer = tokenizer_of(checkpoint, **dict(rules.tokenizer))
    if rules.lower_case:
        _lower(tokenizer)
    return tokenizer


def tokenize_sentences(
    checkpoint: Checkpoint,
    pipeline: SentencePipeline,
    first: Sequence[str],
    second: Sequence[str] | None = None,
    *,
    tokenizer: Any = None,
    max_length: int | None = None,
    most: int | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
) -> tuple[Tokens, tuple[Stage, ...]]:
    """Tokenize texts, or pairs, with the prompt before each (first) text.

    Args:
        checkpoint: the model.
        pipeline: its folder's pipeline.
        first: n texts, or the first of n pairs.
        second: the second texts.
        tokenizer: a tokenizer of transformers, used unchanged; by default `sentence_tokenizer`.
        max_length: largest number of tokens of a text; by default the folder's limit, but at most the number of
            positions of the model.
        most: further limit on that default.
        prompt: text to put before each text instead of the default prompt; "" for none.
        prompt_name: name of a prompt of the folder.

    Returns:
        Tokens, and the stages for texts with this prompt.

    Raises:
        ValueError: as `TextRules.prompt` and `tokenize`.
    """
    prompt = pipeline.text.prompt(prompt, prompt_name)
    if tokenizer is None:
        tokenizer = sentence_tokenizer(checkpoint, pipeline)
    if max_length is None:
        rule = pipeline.text.max_length
        rule = getattr(tokenizer, "model_max_length", None) if rule is None else rule
        limits = (rule, most, checkpoint.config.max_length)
        # A tokenizer without a limit has 10³⁰.
        max_length = min((int(limit) for limit in limits if limit is not None and limit < 10**9), default=None)
    if prompt and not isinstance(first, str) and all(isinstance(text, str) for text in first):
        first = [prompt + text for text in first]
    tokens = tokenize(tokenizer, checkpoint.config, first, second, max_length=max_length)
    stages = pipeline.stages
    if prompt and any(isinstance(stage, Pooling) and not stage.include_prompt for stage in stages):
        skipped = _prompt_tokens(tokenizer, prompt, tokens.max_length)
        stages = tuple(
            dataclasses.replace(stage, skipped=skipped)
            if isinstance(stage, Pooling) and not stage.include_prompt
            else stage
            for stage in stages
        )
    return tokens, stages


def _prompt_tokens(tokenizer: Any, prompt: str, max_length: int) -> int:
    """Number of tokens of the prompt, without a special token at its end, as sentence-transformers counts them."""
    ids = tokenizer([prompt], truncation=True, max_length=max_length)["input_ids"][0]
    return len(ids) - (ids[-1] in getattr(tokenizer, "all_special_ids", ()))


def _lower(tokenizer: Any) -> None:
    """Make a tokenizer convert texts to lower case first, as in sentence-transformers."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:  # a slow tokenizer, of transformers 4
        try:
            tokenizer.do_lower_case = True
        except AttributeError:
            tokenizer.basic_tokenizer.do_lower_case = True
        return
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as NormalizerSequence

    before = fast.normalizer
    parts: list[Any] = [before] if before is not None else []
    if isinstance(before, NormalizerSequence):
        parts = [before[i] for i in range(len(before))]
    if not any(isinstance(part, Lowercase) for part in parts):
        fast.normalizer = NormalizerSequence([Lowercase(), *parts])
