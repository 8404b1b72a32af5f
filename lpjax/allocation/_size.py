"""Sizes in bytes: parsed from a text, and checked against a model."""

from __future__ import annotations

import math
import re
from typing import Any

import jax.numpy as jnp

from lpjax._tree import leaves_with_paths
from lpjax.select import Select, require_unquantized, select_paths
from lpjax.weighting.statistics import Calibration
from lpjax.weighting.weightings import Weighting, check_weighting, require_comparable

_FEWEST = 1 << 13  # parameters of the smallest matrix that is worth rounding


def checked_size(
    params: Any,
    size: float | str,
    statistics: Calibration | None,
    weighting: str | Weighting | None,
    select: Select | None,
    other_bytes: int,
) -> tuple[list[str], float]:
    """Paths of the matrices that are rounded, in tree order, and the size in bytes; raises as `plan_for_size`."""
    size = parse_size(size) if isinstance(size, str) else size
    check_size(size)
    check_weighting(weighting, calibrated=statistics is not None)
    require_comparable(weighting, "`size`")
    return check_sized(params, size, select, other_bytes)


def check_size(size: float) -> None:
    """Refuse a size that no model can have.

    Raises:
        ValueError: it is not a finite number above 0.
    """
    if not 0 < size < math.inf:
        raise ValueError(f"`size` is {size}; expected bytes, or a share from 0 to 1")


def parse_size(text: str) -> float:
    """The bytes, or the share below 1, that a text such as "9MB", "512 KiB", "9000000" or "10%" gives.

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*(%|[kmg]?i?b?)", text.strip(), re.IGNORECASE)
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or not 0 < number < math.inf:
        raise ValueError(f"`size` is {text!r}; expected bytes or a share, such as 9MB, 512KiB or 10%")
    unit = match[2].lower()
    if unit == "%":
        if number >= 100:
            raise ValueError(f"`size` is {text!r}; expected less than 100%")
        return number / 100
    base = 1024 if "i" in unit else 1000
    size = number * base ** " kmg".index(unit[0] if unit[:1] in ("k", "m", "g") else " ")
    if size <= 1:
        raise ValueError(f"`size` is {text!r}; expected more than one byte, or a share such as 10%")
    return size


def check_sized(params: Any, size: float, select: Select | None, other_bytes: int = 0) -> tuple[list[str], float]:
    """Paths of the matrices that are rounded, in tree order, and the size in bytes.

    Raises:
        ValueError: the model has no such matrix, one is quantized already, or the model is no larger than `size`.
    """
    tree = dict(leaves_with_paths(params))
    whole = other_bytes + sum(leaf.nbytes for leaf in tree.values())
    limit = size * whole if size <= 1 else size
    if limit >= whole:
        raise ValueError(f"`size` is {limit / 1e6:.4g} MB, but the model has {whole / 1e6:.4g} MB; expected less")
    if select is not None:
        paths = select_paths(params, select)
    else:
        paths = [
            path
            for path, leaf in tree.items()
            if len(leaf.shape) == 2 and leaf.size >= _FEWEST and jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
    require_unquantized({path: tree[path] for path in paths})
    if not paths:
        raise ValueError("no matrix of the model is large enough to be worth rounding")
    return paths, limit
