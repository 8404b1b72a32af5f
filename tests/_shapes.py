"""A type checker for jaxtyping's import hook that checks shapes and dtypes of arrays, and no other annotation.

Functions check their arguments themselves, and the tests want their messages; what an annotation says of an array is
checked nowhere else.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from types import FunctionType
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as type checkers say


def check_arrays(function: Any) -> Any:
    """`function`, its annotations of arrays checked at every call; classes and functions without any as they are."""
    if not isinstance(function, FunctionType):
        return function
    hints = {name: hint for name, hint in _resolved(function) if _has_array(hint)}
    if not hints:
        return function
    whole = function.__annotations__
    function.__annotations__ = hints
    try:
        checked: Callable[..., Any] = _beartype(function)
    finally:
        function.__annotations__ = whole
    return checked


def _resolved(function: FunctionType) -> list[tuple[str, Any]]:
    """(name, annotation) of those that have a value at run time."""
    resolved = []
    for name, hint in function.__annotations__.items():
        try:
            resolved.append((name, eval(hint, function.__globals__) if isinstance(hint, str) else hint))
        except (NameError, TypeError):  # imported for type checkers only
            continue
    return resolved


def _has_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_has_array(part) for part in typing.get_args(hint))
