"""Limits of `compress` for layers that are replaced in place, in NNX and in Keras."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NOT_FOR_LAYERS = {"sparse_share": "are pairs alone", "input_axes": "say themselves what their inputs are"}


def check_in_place(options: Mapping[str, Any], models: str) -> None:
    """Refuse options of `compress` that factored layers do not support.

    Args:
        options: keywords of `compress`.
        models: "NNX" or "Keras".

    Raises:
        ValueError: naming the first.
    """
    for name, reason in _NOT_FOR_LAYERS.items():
        if name in options and (options[name] or name == "input_axes"):  # a share of 0 is the default
            raise ValueError(f"`{name}` is not for {models} models, whose factored layers {reason}")


def require_fitting(unfit: Sequence[str], kinds: Iterable[str]) -> None:
    """Refuse weights that cannot be factored in place.

    Args:
        unfit: paths of such weights, with the reason.
        kinds: names of the supported layers.

    Raises:
        ValueError: naming the first few, if there are any.
    """
    if unfit:
        raise ValueError(
            f"`select` matches weights that cannot be factored in place: {', '.join(unfit[:5])}"
            f"{', …' if len(unfit) > 5 else ''}; expected those of {', '.join(kinds)}"
        )
