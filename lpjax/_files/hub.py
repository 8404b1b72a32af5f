"""A probe whether the Hugging Face Hub answers, once and with a short timeout, before anything is fetched from it."""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

TIMEOUT = "LPJAX_HUB_TIMEOUT"
_SECONDS = 5.0
_REMEMBERED = 60.0  # seconds for which the outcome of a probe is remembered

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_TRUE = {"1", "ON", "YES", "TRUE"}


@contextmanager
def hub_or_cache() -> Iterator[str | None]:
    """Let huggingface_hub and datasets fetch from the hub, or read only their caches if the hub does not answer.

    Without this, they retry for half a minute, with a line for each attempt. Once the hub has answered, downloads have
    no time limit.

    Yields:
        The reason why the hub cannot be reached, in a few words; None if it answers.
    """
    reason = out_of_reach()
    with ExitStack() as stack:
        stack.enter_context(_quiet("huggingface_hub", "datasets"))
        for name in () if reason is None else ("huggingface_hub.constants", "datasets.config"):
            with suppress(ImportError):  # datasets need not be installed
                module = importlib.import_module(name)
                stack.callback(setattr, module, "HF_HUB_OFFLINE", getattr(module, "HF_HUB_OFFLINE"))  # noqa: B009
                setattr(module, "HF_HUB_OFFLINE", True)  # noqa: B010
        yield reason


def out_of_reach() -> str | None:
    """The reason why the hub cannot be reached: an environment variable, or no answer; None if it answers."""
    for name in _OFFLINE:
        if os.environ.get(name, "").upper() in _TRUE:
            return f"{name} is set"
    return _probed()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


_known: tuple[float, str | None] | None = None


def _probed() -> str | None:
    global _known
    if _known is None or time.monotonic() - _known[0] > _REMEMBERED:
        reason = _probe()
        _known = time.monotonic(), reason
    return _known[1]


def _probe() -> str | None:
    """Request the headers of the hub's front page once, in a thread, because resolving its name can block, too."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    seconds = _seconds()
    answers: list[Exception | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=seconds)
            answers.append(None)
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    with _quiet("huggingface_hub", "httpx", "urllib3"):
        thread.start()
        thread.join(seconds)
    if None in answers:
        return None
    what = first_line(answers[0]) if answers and answers[0] else "no answer"
    return f"{constants.ENDPOINT}: {what:.200}, within {seconds:g} s; set {TIMEOUT} to wait longer"


def _seconds() -> float:
    try:
        seconds = float(os.environ.get(TIMEOUT, _SECONDS))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise ValueError(f"{TIMEOUT} is {os.environ[TIMEOUT]!r}; expected seconds, above 0 and up to 3600")
    return seconds


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Suppress warnings of these loggers."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
