"""Decoding the codes of a quantized matrix: interleaved rANS with a static model.

This file needs only NumPy: lpjax writes a copy of it, lpjax_codes.py, into compressed folders for PyTorch. The encoder
is lpjax/weights/entropy.py.

A magnitude below 16 is its own symbol; above, a symbol is an eighth of an octave, and the lower bits are stored
uncoded, like signs. Symbols are coded by the range variant of asymmetric numeral systems (Duda, arXiv 1311.2540),
interleaved (Giesen, arXiv 1402.3392): `lanes` coders run side by side, one NumPy operation for all. Decoding uses whole
numbers only, so a stream means the same on every machine.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

MAGIC = b"LPQ\x01"  # the last byte is the version
HEADER = struct.Struct("<4s9I")
DIRECT = 16  # smaller magnitudes are their own symbols
SYMBOLS = 112  # 16, and 8 for each of the 12 octaves up to 2^16
PRECISION = 14  # bits of frequencies, which have the sum 2^14 in each class
LOW = 1 << 16  # states are in [2^16, 2^32); 16 bits are moved at a time
STEPS = 1 << 14  # largest number of symbols of a lane, so that no short stream decodes for long
MOST = 1 << 31  # largest number of codes of a stream
LEVELS = 8  # steps of a logarithmic frequency per bit
ABSENT = 255  # the level of a symbol that does not occur
# round(2^(24 - i / 8)), as integers, so that they are the same on every machine.
_POWERS = np.array([16777216, 15384775, 14107901, 12937003, 11863283, 10878678, 9975792, 9147842], np.int64)

_CODED = struct.Struct("<4sBBBxI")
CODED_SIZE = _CODED.size  # bytes of the header before the stream of a matrix
CODED_MAGIC = b"LPW\x01"  # the last byte is the version
BITS = (0, 2, 3, 4, 5, 6, 8, 16)
"""Numbers of bits of a code in memory. With 0 bits the code is 0, and nothing is stored."""
FEWEST = 255  # instead of a number of bits: each position has the fewest bits that it needs
FLOATS = ("float32", "float16", "bfloat16", "float64")


class CodedHeader(NamedTuple):
    """The numbers before the stream of a matrix.

    Attributes:
        axis: 1 if lines are rows of the matrix, 0 if they are columns.
        bits: number of bits of all codes in memory, or `FEWEST`.
        dtype: index in `FLOATS` of the dtype of the expanded matrix.
        group: number of positions of a line that share a scale.
    """

    axis: int
    bits: int
    dtype: int
    group: int

    def packed(self) -> bytes:
        """The header as bytes."""
        return _CODED.pack(CODED_MAGIC, *self)


def read_coded_header(codes: np.ndarray) -> CodedHeader:
    """The header of the codes of a matrix, uint8 (bytes,).

    Raises:
        ValueError: it is damaged, or of another version.
    """
    if codes.ndim != 1 or codes.dtype != np.uint8:
        raise ValueError(f"its codes are {codes.dtype} of shape {codes.shape}, expected a stream of uint8")
    if len(codes) < CODED_SIZE:
        raise ValueError(f"its codes have {len(codes)} bytes, fewer than a header")
    magic, *numbers = _CODED.unpack(codes[:CODED_SIZE].tobytes())
    header = CodedHeader(*numbers)
    if magic != CODED_MAGIC:
        raise ValueError(f"its codes are of version {magic[3]}, expected {CODED_MAGIC[3]}")
    known = header.axis <= 1 and header.bits in (*BITS, FEWEST) and header.dtype < len(FLOATS)
    if not known or not header.group or codes[7]:
        numbers = f"axis {header.axis}, {header.bits} bits, dtype {header.dtype}, group {header.group}"
        raise ValueError(f"its header is damaged: {numbers}")
    return header


def decode_matrix(codes: np.ndarray, largest: int) -> tuple[CodedHeader, np.ndarray]:
    """The header and the codes, int16 (lines, length), of a matrix whose sides are at most `largest`.

    Raises:
        ValueError: they are damaged, or the matrix is larger: few bytes may hold many zeros.
    """
    header = read_coded_header(codes)
    shape = coded_shape(codes[CODED_SIZE:])
    if max(shape) > largest:
        raise ValueError(f"its codes have the shape {shape}, expected at most {largest}")
    return header, decode_codes(codes[CODED_SIZE:])


def pack_codes(
    codes: np.ndarray, bits: int | None = None
) -> tuple[tuple[np.ndarray, ...], tuple[tuple[int, int], ...], np.ndarray | None]:
    """Codes (lines, length) packed in runs of positions with equal numbers of bits, as `Quantized` has them.

    Args:
        codes: whole numbers, (lines, length).
        bits: number of bits of all codes; None for the fewest that each position needs, positions sorted into runs.

    Returns:
        The bytes of each run (lines, bytes), (bits, width) of each, and the index of each position in the runs, or None
        if positions are in order.

    Raises:
        ValueError: a code does not fit in its bits.
    """
    length = codes.shape[1]
    needed = _bits_needed(codes)
    if bits is not None:
        if needed.max(initial=0) > bits:
            raise codes_beyond(codes, f"{bits} bits")
        needed = np.full(length, bits)
    sorting = np.argsort(needed, kind="stable")
    order = None
    if np.any(np.diff(needed) < 0):
        order, codes = np.argsort(sorting).astype(np.uint16 if length <= 1 << 16 else np.int32), codes[:, sorting]
    runs = tuple((int(b), int(width)) for b, width in zip(*np.unique(needed, return_counts=True), strict=True))
    cuts = np.split(codes, np.cumsum([width for _, width in runs])[:-1], axis=1) if runs else []
    return tuple(_pack(run, b) for (b, _), run in zip(runs, cuts, strict=True)), runs, order


def codes_beyond(codes: np.ndarray, bits: str) -> ValueError:
    """The error for codes that `bits` cannot hold."""
    return ValueError(f"`codes` go from {codes.min()} to {codes.max()}; expected numbers of {bits}")


def _bits_needed(codes: np.ndarray) -> np.ndarray:
    """The fewest of `BITS` for the codes (lines, length) of each position."""
    low, high = codes.min(axis=0, initial=0).astype(np.float64), codes.max(axis=0, initial=0).astype(np.float64)
    most = np.maximum(high, -low - 1)  # fits in b bits if it is below 2^(b-1)
    needed = np.searchsorted([1 << bits - 1 for bits in BITS[1:]], most, side="right") + 1
    if needed.max(initial=0) == len(BITS):
        raise codes_beyond(codes, f"at most {BITS[-1]} bits")
    return np.where((low == 0) & (high == 0), 0, np.asarray(BITS)[needed])


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Bytes (lines, ceil(width · bits / 8)) of codes (lines, width). Eight codes take `bits` bytes."""
    lines, width = codes.shape
    eights = -(-width // 8)
    words = np.zeros((lines, 8 * eights), np.uint16)
    words[:, :width] = codes  # modulo 2^16, as is the sum
    words[:, :width] += np.uint16(1 << bits >> 1)
    words = words.reshape(lines, eights, 8)
    packed = np.zeros((lines, eights, bits), np.uint8)
    for number in range(8 if bits else 0):
        byte, shift = divmod(number * bits, 8)
        word = words[..., number] << shift
        packed[..., byte] |= (word & 0xFF).astype(np.uint8)
        if byte + 1 < bits:
            packed[..., byte + 1] |= (word >> 8).astype(np.uint8)
    return np.ascontiguousarray(packed.reshape(lines, eights * bits)[:, : -(-width * bits // 8)])


def inflated_floats(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Finite numbers of this shape: `array` itself, or the float16 numbers that it holds compressed by zlib.

    Raises:
        ValueError: they are damaged, or not finite.
    """
    if array.dtype == np.uint8:
        expected = 2 * int(np.prod(shape))
        decompressor = zlib.decompressobj()
        try:
            content = decompressor.decompress(np.ascontiguousarray(array).data, expected + 1)
        except zlib.error as error:
            raise ValueError(f"its {name} are damaged: {error}") from error
        if len(content) != expected or not decompressor.eof or decompressor.unused_data:
            raise ValueError(f"its {name} are damaged: expected {expected} bytes")
        array = np.frombuffer(content, "<f2").reshape(shape)
    if not np.isfinite(array).all():
        raise ValueError(f"its {name} hold NaN or infinity")
    return array


class Header(NamedTuple):
    """The numbers at the beginning of a stream.

    Attributes:
        magic: `MAGIC`.
        lines, length: shape of the codes.
        checksum: CRC-32 of the codes as little-endian int16.
        lanes: number of interleaved coders.
        low: sum of scales of the first class; smaller sums belong to it, too.
        classes: number of classes; larger sums belong to the last one.
        line_bytes, position_bytes, level_bytes: sizes of the compressed scales of lines, those of positions, and levels
            of the frequencies.
    """

    magic: bytes
    lines: int
    length: int
    checksum: int
    lanes: int
    low: int
    classes: int
    line_bytes: int
    position_bytes: int
    level_bytes: int


class Model(NamedTuple):
    """Classes of codes, and the frequencies of symbols in each.

    Attributes:
        lines, positions: scales, (lines,) and (length,).
        low: sum of scales of class 0.
        levels: -8·log2 of the frequency of each symbol in each class, (classes, symbols).
    """

    lines: np.ndarray
    positions: np.ndarray
    low: int
    levels: np.ndarray

    def classes(self) -> np.ndarray:
        """The class of every code."""
        classes = np.empty((len(self.lines), len(self.positions)), np.uint8)
        for part in blocks_of(*classes.shape):
            sums = self.lines[part, None].astype(np.int16) + self.positions
            classes[part] = np.clip(sums - self.low, 0, len(self.levels) - 1)
        return classes


def decode_codes(stream: Any, shape: tuple[int, int] | None = None) -> np.ndarray:
    """The codes of a stream, uint8 (bytes,), of `shape` if that is given.

    Raises:
        ValueError: the stream is damaged, cut off, or of another shape or version.
    """
    content, header = read_header(stream)
    if shape is not None and shape != (header.lines, header.length):
        raise ValueError(f"its codes have the shape ({header.lines}, {header.length}), expected {shape}")
    start, sides = HEADER.size, []
    for count, expected in (
        (header.line_bytes, header.lines),
        (header.position_bytes, header.length),
        (header.level_bytes, header.classes * SYMBOLS),
    ):
        sides.append(_inflate(content[start : start + count], expected))
        start += count
    levels = np.cumsum(sides[2].reshape(header.classes, SYMBOLS), axis=0, dtype=np.uint8)
    frequencies = frequencies_of(levels)
    classes = Model(sides[0], sides[1], header.low, levels).classes().reshape(-1)
    stop = start + 4 * header.lanes
    states = np.frombuffer(content[start:stop], "<u4").astype(np.uint64)
    words = np.frombuffer(content[stop : len(content) - len(content[stop:]) % 2], "<u2")
    if len(content[stop:]) % 2 or (states < LOW).any():
        raise ValueError("its coder states are invalid")
    symbols, states, used = _decode_symbols(classes, frequencies, states, words)
    if ((states < LOW) | (states >= 2 * LOW)).any():
        raise ValueError("decoding does not end in the initial states")
    raw = np.concatenate([(states - LOW).astype("<u2"), words[used:]])
    codes = _unpack_raw(symbols, raw, header.lanes).reshape(header.lines, header.length)
    if zlib.crc32(codes.data) != header.checksum:
        raise ValueError("its codes do not match its checksum")
    return codes.astype(np.int16, copy=False)


def coded_shape(stream: Any) -> tuple[int, int]:
    """(lines, length) of the codes of a stream, from its header alone.

    Raises:
        ValueError: it has no valid header.
    """
    header = read_header(stream)[1]
    return header.lines, header.length


def read_header(stream: np.ndarray) -> tuple[memoryview, Header]:
    if stream.ndim != 1 or stream.dtype != np.uint8:
        raise ValueError(f"it is {stream.dtype} of shape {stream.shape}, expected a stream of uint8")
    content = np.ascontiguousarray(stream).data.cast("B")
    if len(content) < HEADER.size:
        raise ValueError(f"it has {len(content)} bytes, fewer than a header of {HEADER.size}")
    header = Header(*HEADER.unpack(content[: HEADER.size]))
    if header.magic != MAGIC:
        kind = "a newer version of codes" if header.magic[:3] == MAGIC[:3] else "no codes"
        raise ValueError(f"it begins with {header.magic!r}: {kind}")
    size, sides = header.lines * header.length, header.line_bytes + header.position_bytes + header.level_bytes
    fits = (
        1 <= size <= MOST
        and 1 <= header.classes <= 256
        and header.low <= 510
        and 1 <= header.lanes <= size <= header.lanes * STEPS
        and HEADER.size + sides + 4 * header.lanes <= len(content)
    )
    if not fits:
        raise ValueError(f"its header does not fit its {len(content)} bytes")
    return content, header


def frequencies_of(levels: np.ndarray) -> np.ndarray:
    """Frequencies of symbols, (classes, symbols), with the sum 2^14 in each class; in integer arithmetic."""
    wide = levels.astype(np.int64)
    there = levels != ABSENT
    if not there.any(axis=1).all():
        raise ValueError("its table of frequencies has a class without symbols")
    weights = np.where(there, _POWERS[wide % LEVELS] >> (wide // LEVELS), 0)
    total = weights.sum(axis=1, keepdims=True)
    frequencies = np.where(there, np.maximum((weights << PRECISION) // np.maximum(total, 1), 1), 0)
    most = np.argmax(frequencies, axis=1)
    frequencies[np.arange(len(levels)), most] += (1 << PRECISION) - frequencies.sum(axis=1)
    if (frequencies < 0).any():
        raise ValueError("its table of frequencies is damaged")
    return frequencies


def blocks_of(lines: int, length: int) -> Iterator[slice]:
    """Slices of lines, of about 2^20 codes each."""
    height = max(1, (1 << 20) // length)
    return (slice(start, start + height) for start in range(0, lines, height))


def low_bits(symbols: np.ndarray) -> np.ndarray:
    """Number of bits of a magnitude that its symbol does not determine."""
    return np.where(symbols < DIRECT, 0, (symbols.astype(np.int64) - DIRECT) // 8 + 1)


def _unpack_raw(symbols: np.ndarray, words: np.ndarray, least: int) -> np.ndarray:
    """The codes, from their symbols and the words of `_pack_raw`, padded with zeros to at least `least` words."""
    bits = np.unpackbits(words.astype("<u2").view(np.uint8), bitorder="little")
    codes, used = np.zeros(len(symbols), np.dtype("<i2")), 0
    for block in blocks_of(len(symbols), 1):
        at = np.flatnonzero(symbols[block])
        kept = symbols[block][at].astype(np.int64)
        low = low_bits(kept)
        starts, total = starts_of(low)
        if used + total > len(bits):
            raise ValueError("its sign bits are truncated")
        values = np.where(kept < DIRECT, kept, (8 + (kept - DIRECT) % 8) << low)
        for place in range(1, int(low.max(initial=0)) + 1):
            here = low >= place
            values[here] += bits[used + starts[here] + place].astype(np.int64) << (place - 1)
        codes[block][at] = np.where(bits[used + starts], -values, values)
        used += total
    if len(words) != max(least, -(-used // 16)):
        raise ValueError("bytes follow its codes")
    if bits[used:].any():
        raise ValueError("it does not end with zeros")
    return codes


def starts_of(low: np.ndarray) -> tuple[np.ndarray, int]:
    """The position of each code's first bit, and the number of all bits."""
    ends = np.cumsum(low + 1)
    return ends - low - 1, int(ends[-1]) if len(ends) else 0


def _decode_symbols(
    classes: np.ndarray, frequencies: np.ndarray, states: np.ndarray, words: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """The symbols, the final states, and the number of words used."""
    of_slot = np.repeat(np.tile(np.arange(SYMBOLS, dtype=np.uint8), len(frequencies)), frequencies.reshape(-1))
    starts = (np.cumsum(frequencies, axis=1) - frequencies).astype(np.uint64).reshape(-1)
    shares = frequencies.astype(np.uint64).reshape(-1)
    symbols, used, lanes, mask = np.empty(len(classes), np.uint8), 0, len(states), np.uint64((1 << PRECISION) - 1)
    for begin in range(0, len(classes), lanes):
        here = classes[begin : begin + lanes].astype(np.intp)
        active = states[: len(here)]
        slots = active & mask
        symbol = of_slot[(here << PRECISION) + slots.astype(np.intp)]
        symbols[begin : begin + lanes] = symbol
        cells = here * SYMBOLS + symbol
        active >>= np.uint64(PRECISION)
        active *= shares[cells]
        active += slots - starts[cells]
        short = np.flatnonzero(active < LOW)
        if used + len(short) > len(words):
            raise ValueError("it is truncated")
        active[short] = active[short] << np.uint64(16) | words[used : used + len(short)]
        used += len(short)
    return symbols, states, used


def _inflate(content: memoryview, size: int) -> np.ndarray:
    """The inverse of `_deflate`; the result has `size` bytes."""
    decompressor = zlib.decompressobj(-15)
    try:
        whole = decompressor.decompress(content, size + 1)
    except zlib.error as error:
        raise ValueError(f"its scales are damaged: {error}") from error
    if len(whole) != size or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"its scales or frequencies are damaged, expected {size} bytes")
    return np.frombuffer(whole, np.uint8)
