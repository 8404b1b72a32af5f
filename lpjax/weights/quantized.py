"""`Quantized`: a matrix of few-bit integers times scales, packed in memory and expanded for use."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

from lpjax._repr import short_repr
from lpjax.weights.decoding import BITS, pack_codes
from lpjax.weights.exporting import is_exporting, rows_of
from lpjax.weights.product import product

if TYPE_CHECKING:
    Codes = tuple[UInt8[Array | np.ndarray, "*batch lines bytes"], ...]
    Scales = Float[Array | np.ndarray, "*batch lines groups"]
    Steps = Float[Array | np.ndarray, "*batch length"] | None
    Order = Integer[Array | np.ndarray, "*batch length"] | None
else:  # what tree functions put there may be anything, as with `LowRank`
    Codes = Scales = Steps = Order = Any

_BLOCK = 1 << 22  # entries of a large matrix expanded at a time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no single truth value, nor a hash
class Quantized:
    """A matrix whose entries are whole numbers, called codes, times scales.

    It has `lines` rows of `length` positions, or is the transpose of that. Position j of line i holds

        scales[i, j // group] · steps[j] · code[i, j].

    Codes are packed: a run of positions has the same number of bits b, and a code q in [-2^(b-1), 2^(b-1) - 1] is
    stored as q + 2^(b-1) in a little-endian stream of bits along the line, each line padded to whole bytes. A
    registered pytree; under vmap, and in a stack, all arrays have the same leading dimensions. `floats_of` keeps
    `scales` and `steps` alone, for gradients.

    Attributes:
        codes: packed codes of each run, uint8, shape (..., lines, bytes) with bytes = ceil(width · bits / 8).
        scales: shape (..., lines, groups), groups = ceil(length / group); float16, or float32 if float16 cannot hold
            them, or while they are trained.
        steps: shape (..., length), dtype as for `scales`; None for ones.
        order: index of each position among the positions of all runs, shape (..., length); None if they are in order.
        runs: (bits, width) of each run; bits in `BITS`.
        axis: 1 if lines are rows of the matrix (tables), 0 if they are columns (Flax kernels: one line per output).
        group: number of positions of a line that share a scale.
        dtype: dtype of the expanded matrix.
    """

    codes: Codes
    scales: Scales
    steps: Steps
    order: Order
    runs: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})
    dtype: np.dtype = dataclasses.field(metadata={"static": True})

    # Makes a NumPy array on the left of `@` call `__rmatmul__` instead of converting this to an array.
    __array_ufunc__ = None

    @classmethod
    def from_codes(
        cls,
        codes: Any,
        scales: Any,
        steps: Any = None,
        *,
        axis: int,
        group: int | None = None,
        bits: int | None = None,
        dtype: Any = np.float32,
    ) -> Quantized:
        """Pack codes on the host.

        Args:
            codes: integers, shape (lines, length).
            scales: shape (lines, groups); stored as float16 if that can hold them (`narrowed`).
            steps: shape (length,), stored like `scales`; None for ones.
            axis: 1 if lines are rows of the matrix, 0 if they are columns.
            group: number of positions that share a scale; None for one scale per line.
            bits: number of bits of all codes; None for the fewest that each position needs, positions sorted into runs.
            dtype: dtype of the expanded matrix.

        Raises:
            ValueError: shapes do not fit each other, a code does not fit in its bits, a scale or step is not finite
                in float32, or `axis`, `group` or `bits` is out of range.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.dtype.kind not in "iu":
            raise ValueError(f"`codes` is {codes.dtype} of shape {codes.shape}; expected whole numbers (lines, length)")
        lines, length = codes.shape
        group = int(max(length, 1)) if group is None else group
        if axis not in (0, 1) or group < 1 or bits not in (None, *BITS):
            raise ValueError(
                f"`axis`, `group`, `bits` are {axis}, {group}, {bits}; expected 0 or 1, at least 1, and None or one of "
                f"{BITS}"
            )
        scales = _narrow("scales", scales, (lines, -(-length // group)))
        steps = None if steps is None else _narrow("steps", steps, (length,))
        packed, runs, order = pack_codes(codes, bits)
        return cls(packed, scales, steps, order, runs, axis, group, np.dtype(dtype))

    def __repr__(self) -> str:
        return short_repr(self)

    def __rmatmul__(self, x: Any) -> Array:
        """`x @ self`. A large matrix whose lines are outputs is expanded a block of lines at a time."""
        x = jnp.asarray(x)
        if self.axis == 1 or not self._large:
            return product(x, self.dense())
        return jnp.moveaxis(self._map_lines(lambda line: product(x, line)), 0, -1)

    @property
    def T(self) -> Quantized:
        """The transpose, with the same arrays; batch dimensions stay in front."""
        return dataclasses.replace(self, axis=1 - self.axis)

    mT = T  # the name that arrays use for it

    @property
    def length(self) -> int:
        """Number of positions of a line."""
        return sum(width for _, width in self.runs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        *batch, lines, _ = self.scales.shape
        return (*batch, lines, self.length) if self.axis == 1 else (*batch, self.length, lines)

    @property
    def ndim(self) -> int:
        """Number of dimensions of the matrix."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries of the matrix."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def astype(self, dtype: Any) -> Quantized:
        """The same codes and scales, to be expanded to another dtype."""
        return dataclasses.replace(self, dtype=np.dtype(dtype))

    def unpacked(self) -> Integer[Array, "*batch lines length"]:
        """All codes (..., lines, length), in the order of positions; also under jit."""
        if self.order is None and len(self.runs) == 1:
            return _unpack(self.codes[0], *self.runs[0], jnp)
        # All runs at once, from the first bit of each position: a program of few operations, which compiles fast.
        places = _layout(self.runs)
        if self.order is not None:
            order = jnp.asarray(self.order).astype(np.int32)
            places = tuple(jnp.asarray(part)[order] for part in places)
        byte, shift, mask, half = (part[..., None, :] for part in places)
        packed = [jnp.asarray(run) for run in self.codes]
        stream = jnp.concatenate([*packed, jnp.zeros((*self.scales.shape[:-1], 2), np.uint8)], axis=-1)
        byte = jnp.broadcast_to(byte, (*self.scales.shape[:-1], self.length))
        low, high = (jnp.take_along_axis(stream, byte + i, axis=-1).astype(np.uint32) for i in (0, 1))
        word = (low | high << 8) >> shift & mask
        return (word.astype(np.int32) - half).astype(np.int16)

    def host_codes(self) -> Integer[np.ndarray, "*batch lines length"]:
        """`unpacked` in NumPy, which compiles nothing; a large matrix is unpacked some lines at a time."""
        host = jax.tree.map(np.asarray, self)
        if not self._large:
            return host._unpacked_on_host()
        codes = np.empty((len(self.scales), self.length), np.int16)
        height = max(1, _BLOCK // self.length)
        for start in range(0, len(codes), height):
            lines = slice(start, start + height)
            codes[lines] = host._some_lines(lines)._unpacked_on_host()
        return codes

    def dense(self) -> Float[Array, "*batch n d"]:
        """The expanded matrix; a large one is expanded a block of lines at a time."""
        lines = self._map_lines(lambda line: line) if self._large else self._lines(jnp, self.dtype)
        return lines if self.axis == 1 else lines.mT

    def take(self, ids: Integer[Array | np.ndarray, "*batch"]) -> Float[Array, "*batch d"]:
        """Rows `ids`; ids outside the matrix are clamped. If lines are rows, only the rows `ids` are expanded."""
        if self.axis == 0:
            return rows_of(self.dense(), ids)
        codes = tuple(rows_of(run, jnp.ravel(ids)) for run in self.codes)
        scales = rows_of(self.scales, jnp.ravel(ids))
        rows = dataclasses.replace(self, codes=codes, scales=scales)._lines(jnp, self.dtype)
        return rows.reshape(*jnp.shape(ids), self.length)

    def blocks(self, height: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of the matrix, on the host and in double precision, `height` rows at a time."""
        host = jax.tree.map(np.asarray, self)
        whole = host._lines(np, np.float64).T if self.axis == 0 else None
        for start in range(0, self.shape[0], height):
            rows = slice(start, start + height)
            if whole is None:
                yield start, host._some_lines(rows)._lines(np, np.float64)
            else:
                yield start, whole[rows]

    def _some_lines(self, lines: slice) -> Quantized:
        """Some lines of a matrix without batch dimensions."""
        return dataclasses.replace(self, codes=tuple(run[lines] for run in self.codes), scales=self.scales[lines])

    @property
    def _large(self) -> bool:
        return self.ndim == 2 and self.size > _BLOCK and not is_exporting()

    def _map_lines(self, function: Callable[[Array], Array]) -> Array:
        """`function` of each line (length,), stacked; some lines are expanded at a time."""

        def of_line(codes: tuple[Array, ...], scales: Array) -> Array:
            line = dataclasses.replace(self, codes=tuple(run[None] for run in codes), scales=scales[None])
            return function(line._lines(jnp, self.dtype)[0])

        parts = jax.tree.map(jnp.asarray, (self.codes, self.scales))
        return jax.lax.map(lambda line: of_line(*line), parts, batch_size=max(1, _BLOCK // self.length))

    def _unpacked_on_host(self) -> np.ndarray:
        """`unpacked`, a run at a time: NumPy compiles nothing, so operations may be many."""
        runs = [_unpack(run, *kind, np) for run, kind in zip(self.codes, self.runs, strict=True)]
        if not runs:  # lines without positions
            return np.zeros((*self.scales.shape[:-1], 0), np.int16)
        codes = runs[0] if len(runs) == 1 else np.concatenate(runs, axis=-1)
        if self.order is None:
            return codes
        order = np.asarray(self.order).astype(np.int32)
        return codes[..., order] if order.ndim == 1 else np.take_along_axis(codes, order[..., None, :], axis=-1)

    def _lines(self, xp: Any, dtype: Any) -> Any:
        """The lines (..., lines, length), expanded by NumPy or JAX."""
        wide = np.promote_types(np.float32, dtype)  # holds the product of two float16 exactly: codes round it once
        factors = xp.asarray(self.scales).astype(wide)
        if factors.shape[-1] > 1:
            factors = xp.repeat(factors, self.group, axis=-1)[..., : self.length]
        if self.steps is not None:
            factors = factors * xp.asarray(self.steps).astype(wide)[..., None, :]
        codes = self._unpacked_on_host() if xp is np else self.unpacked()
        return (codes.astype(wide) * factors).astype(dtype)


def expanded(matrix: Any) -> Any:
    """The dense matrix of a `Quantized`; an array is returned unchanged."""
    return matrix.dense() if isinstance(matrix, Quantized) else matrix


def host_array(matrix: Any) -> np.ndarray:
    """The dense matrix of a `Quantized` or an array, in its dtype, as a NumPy array."""
    if not isinstance(matrix, Quantized):
        return np.asarray(matrix)
    return np.concatenate([rows.astype(matrix.dtype) for _, rows in matrix.blocks(4096)])


def check_range(matrix: Quantized, codes: np.ndarray | None = None) -> None:
    """Refuse a matrix with entries that its dtype cannot hold.

    Args:
        matrix: without batch dimensions.
        codes: its codes, if known; otherwise they are unpacked if scales alone do not decide.

    Raises:
        ValueError: there is one; says how large it is.
    """
    limit = float(jnp.finfo(matrix.dtype).max)
    scales, steps = (
        np.abs(np.asarray(part, np.float64))
        for part in (matrix.scales, np.ones(1) if matrix.steps is None else matrix.steps)
    )
    unit = scales.max(initial=0) * steps.max(initial=0)
    if unit * max((1 << bits >> 1 for bits, _ in matrix.runs), default=0) <= limit:
        return
    codes = matrix.host_codes() if codes is None else codes
    if unit * max(int(codes.max(initial=0)), -int(codes.min(initial=0))) <= limit:
        return
    for line, own in zip(codes, scales, strict=True):
        entries = np.abs(line.astype(np.float64)) * np.repeat(own, min(matrix.group, len(line)))[: len(line)] * steps
        if entries.max(initial=0) > limit:
            raise ValueError(f"it has entries up to {entries.max():.4g}, which {matrix.dtype} cannot hold")


def narrowed(values: Any) -> np.ndarray:
    """`values` as float16, or as float32 if float16 cannot hold them: if one is too large, or all are too small.

    A value may lose bits if it is small beside the largest one.
    """
    wide = np.asarray(values).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = wide.astype(np.float16)
        lost = np.abs(narrow.astype(np.float32) - wide)
        magnitudes = np.abs(wide)
        held = np.all(lost <= 2.0**-10 * magnitudes + 2.0**-16 * magnitudes.max(initial=0))
    return narrow if held and np.isfinite(narrow).all() else wide


def _narrow(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """`narrowed` values; refused unless they are finite and have this shape."""
    with np.errstate(over="ignore"):
        values = narrowed(values)
    if values.shape != shape or not np.all(np.isfinite(values)):
        finite = "finite" if np.all(np.isfinite(values)) else "not finite"
        raise ValueError(f"`{name}` has shape {values.shape} and is {finite} in float32; expected {shape}, finite")
    return values


@functools.lru_cache(maxsize=256)
def _layout(runs: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, ...]:
    """The location of each position's bits in the joined runs, as four arrays.

    They are the first of its at most two bytes; the number of bits before it in that byte; the mask of its bits; and
    half of their range.
    """
    bits = np.repeat([b for b, _ in runs], [width for _, width in runs]).astype(np.int32)
    starts, begin = [np.zeros(0, np.int32)], 0
    for b, width in runs:
        starts.append(8 * begin + b * np.arange(width, dtype=np.int32))
        begin += -(-width * b // 8)
    start = np.concatenate(starts)
    return start >> 3, (start & 7).astype(np.uint32), ((1 << bits) - 1).astype(np.uint32), 1 << bits >> 1


def _unpack(packed: Any, bits: int, width: int, xp: Any) -> Any:
    """Codes (..., width) of int16 from bytes (..., ceil(width · bits / 8)), by NumPy or JAX, as `pack_codes` packs."""
    *lines, count = packed.shape
    if bits == 0:
        return xp.zeros((*lines, width), np.int16)
    eights = -(-width // 8)
    packed = xp.pad(xp.asarray(packed), [*[(0, 0)] * len(lines), (0, eights * bits - count)])
    packed = packed.reshape(*lines, eights, bits).astype(np.uint16)
    words = []
    for number in range(8):
        byte, shift = divmod(number * bits, 8)
        word = packed[..., byte] | packed[..., byte + 1] << 8 if byte + 1 < bits else packed[..., byte]
        words.append(word >> shift & (1 << bits) - 1)
    codes = xp.stack(words, axis=-1).reshape(*lines, 8 * eights)[..., :width]
    return (codes.astype(np.int32) - (1 << bits - 1)).astype(np.int16)
