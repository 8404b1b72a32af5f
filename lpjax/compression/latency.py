"""The rank above which a factored layer is slower than the dense one: measured, and stored for `allocate`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from scipy.optimize import isotonic_regression

from lpjax._check import check_seed, check_whole
from lpjax._files.json import Positive, as_type, read_object
from lpjax._provenance import run_record
from lpjax._repr import short_repr
from lpjax._tree import is_table, leaves_with_paths
from lpjax.compression.timing import least_seconds
from lpjax.select import Select, max_rank, select_paths
from lpjax.weights.dispatch import matmul, take_rows
from lpjax.weights.low_rank import LowRank

if TYPE_CHECKING:
    from lpjax.compression.record import LayerRecord

TOKENS = 2048
"""Default number of tokens of a batch: 32 texts of 64."""

SCHEMA = "lpjax-break-even/1"

_RANKS = 8  # ranks measured per shape
_SECONDS, _LEAST = 0.15, 5  # seconds per rank, and the least number of rounds


@dataclasses.dataclass(frozen=True)
class LayerTiming:
    """Times of one matrix, dense and as a pair.

    Attributes:
        shape: shape of the dense leaf, (in, out), or (vocab, hidden) of a table.
        table: whether rows are looked up in it, as in an embedding, instead of being multiplied by it.
        dense_seconds: seconds per batch of the dense matrix.
        ranks: ranks of the timed pairs, ascending, up to the largest that stores less than the dense matrix.
        ratios: time of each pair relative to the dense matrix, ascending: an isotonic regression on the rank, as a
            larger pair takes no less time.
    """

    shape: tuple[Positive, Positive]
    table: bool
    dense_seconds: float
    ranks: tuple[Positive, ...]
    ratios: tuple[Annotated[float, msgspec.Meta(gt=0)], ...]

    def __post_init__(self) -> None:
        if not self.ranks or any(rank >= larger for rank, larger in itertools.pairwise(self.ranks)):
            raise ValueError(f"`ranks` is {self.ranks}; expected rising numbers, one or more")
        if len(self.ratios) != len(self.ranks):
            raise ValueError(f"`ratios` is {self.ratios}; expected {len(self.ranks)} numbers, one for each rank")

    def ratio(self, rank: int) -> float:
        """Time of a pair of this rank relative to the dense matrix, interpolated."""
        return float(np.interp(rank, self.ranks, self.ratios))

    @property
    def rank(self) -> int:
        """The break-even: the largest rank that takes no longer than dense; 0 if there is none."""
        below = [rank for rank in range(1, self.ranks[-1] + 1) if self.ratio(rank) <= 1]
        return max(below, default=0)

    @property
    def keep(self) -> float:
        """The share of the parameters that a pair of the break-even rank has."""
        n, d = self.shape
        return self.rank * (n + d) / (n * d)


@dataclasses.dataclass(frozen=True)
class BreakEven:
    """Timings of every shape, for batches of `tokens` tokens."""

    tokens: Positive
    timings: tuple[LayerTiming, ...]

    def __repr__(self) -> str:
        return short_repr(self)

    def ratio(self, path: str, shape: tuple[int, ...], rank: int) -> float | None:
        """Time of a leaf's pair relative to the dense leaf; None if the shape was not timed."""
        timing = self.timing(path, shape)
        return None if timing is None else timing.ratio(rank)

    def rank(self, path: str, shape: tuple[int, ...]) -> int | None:
        """The largest rank at which a leaf takes no longer than dense; None for a shape that was not timed."""
        timing = self.timing(path, shape)
        return None if timing is None else timing.rank

    def added_seconds(self, path: str, shape: tuple[int, ...], rank: int) -> float | None:
        """Seconds per batch that a leaf's pair takes beyond the dense leaf's; negative if it takes less."""
        timing = self.timing(path, shape)
        return None if timing is None else (timing.ratio(rank) - 1) * timing.dense_seconds

    def share(self, records: Sequence[LayerRecord]) -> float | None:
        """Time of all layers whose shapes were timed, as a share of the dense layers' time; None if there are none."""
        dense = compressed = 0.0
        for record in records:
            if (timing := self.timing(record.path, record.shape)) is not None:
                dense += timing.dense_seconds
                compressed += timing.dense_seconds * (record.time_ratio or 1.0)
        return compressed / dense if dense else None

    def notes(self, records: Sequence[LayerRecord], source: str) -> list[str]:
        """A line about layers slower than dense by these timings, named `source`; empty if there are none."""
        slower = [record for record in records if (record.time_ratio or 0) > 1]
        more = sum(self.added_seconds(record.path, record.shape, record.rank or 0) or 0 for record in slower)
        text = f"{len(slower)} of {len(records)} layers take longer than dense, by {source}: {1e3 * more:.2f} ms in all"
        return [f"{text} for {self.tokens} tokens"] if slower else []

    def timing(self, path: str, shape: tuple[int, ...]) -> LayerTiming | None:
        """The timing of a leaf's shape; None if the shape was not timed."""
        key = (tuple(shape), is_table(path))
        return next((timing for timing in self.timings if (timing.shape, timing.table) == key), None)


def measure_break_even(
    params: Any,
    *,
    select: Select = ("encoder", "embeddings"),
    tokens: int = TOKENS,
    dtype: Any = jnp.float32,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> BreakEven:
    """Time every shape among the selected matrices of a tree, on random numbers and without the rest of the model.

    The dense matrix and the pairs take turns. Each is compiled first, and every result is waited for. The minimum time
    is used, as disturbances only add time.

    Args:
        params: nested containers of arrays; only shapes matter. A factored leaf has the shape of the dense one.
        select: see `select_paths`.
        tokens: rows of a batch, texts times their length.
        dtype: dtype of weights and inputs.
        seed: random seed of the numbers.
        progress: called with (shapes done, shapes in all, the next one).

    Raises:
        ValueError: `select` matches nothing, or `tokens` is below 1.
    """
    tokens = operator.index(tokens) if isinstance(tokens, np.integer) else tokens
    check_whole("`tokens`", tokens, 1)
    check_seed("`seed`", seed)
    leaves = dict(leaves_with_paths(params))
    chosen = [(tuple(leaves[path].shape), is_table(path)) for path in select_paths(params, select)]
    shapes = dict.fromkeys((shape, table) for shape, table in chosen if len(shape) == 2 and max_rank(shape))
    timings = []
    for done, (shape, table) in enumerate(shapes):
        if progress is not None:
            progress(done, len(shapes), "×".join(map(str, shape)))
        timings.append(_time_shape(shape, table, tokens, dtype, np.random.default_rng([seed, *shape])))
    if progress is not None:
        progress(len(shapes), len(shapes), "done")
    return BreakEven(int(tokens), tuple(timings))


def _time_shape(shape: tuple[int, int], table: bool, tokens: int, dtype: Any, rng: np.random.Generator) -> LayerTiming:
    n, d = shape
    most = max_rank(shape)
    ranks = tuple(sorted({max(1, most * (i + 1) // _RANKS) for i in range(_RANKS)}))

    def draw(*size: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(size, np.float32), dtype)

    inputs = jnp.asarray(rng.integers(0, n, tokens, np.int32)) if table else draw(tokens, n)
    apply: Callable[..., jax.Array] = jax.jit(lambda weight, x: take_rows(weight, x) if table else matmul(x, weight))
    dense, least, ratios = functools.partial(apply, draw(n, d), inputs), np.inf, []
    for rank in ranks:  # one pair after the other: all of them would take several times the dense matrix's memory
        pair = functools.partial(apply, LowRank(draw(n, rank), draw(rank, d)), inputs)
        seconds = least_seconds([dense, pair], rounds=_LEAST, seconds=_SECONDS)
        least = min(least, seconds[0])
        ratios.append(seconds[1] / seconds[0])
    rising = isotonic_regression(ratios).x
    return LayerTiming(shape, table, least, ranks, tuple(float(ratio) for ratio in rising))


def break_even_document(model: str, break_even: BreakEven, seed: int) -> dict[str, Any]:
    """The content of a file of timings, with versions and machine."""
    timings = [
        dataclasses.asdict(timing) | {"break_even_rank": timing.rank, "break_even_keep": timing.keep}
        for timing in break_even.timings
    ]
    return {"schema": SCHEMA, "model": model, "tokens": break_even.tokens, "timings": timings, **run_record(seed)}


def read_break_even(path: Path) -> BreakEven:
    """The timings in a file.

    Raises:
        RecordError: the file does not hold timings; names the file and the key.
    """
    return as_type(read_object(path, schema=SCHEMA), BreakEven, str(path))
