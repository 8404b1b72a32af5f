"""Entropy coded codes: exact round trips, near the entropy of the model, and every damaged stream refused."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import struct
import time
import zlib

import numpy as np
import pytest

from lpjax.weights import decoding, entropy
from lpjax.weights.decoding import coded_shape, decode_codes
from lpjax.weights.entropy import encode_codes


def laplace(lines: int, length: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    """Codes whose spread differs by line and falls along the positions, as those of a rotated table do."""
    rng = np.random.default_rng(seed)
    spread = scale * np.exp(rng.normal(size=(lines, 1))) * np.geomspace(4, 0.05, length)
    return np.round(rng.laplace(size=(lines, length)) * spread).clip(-32768, 32767).astype(np.int32)


def entropy_bytes(codes: np.ndarray) -> float:
    """Empirical entropy of the codes of each class, and of both scales."""
    per_line, per_position = entropy._scales(codes)
    places = [np.round(2 * np.log2(scale)).astype(int) for scale in (per_line, per_position)]
    classes = places[0][:, None] + places[1]
    groups = [*places, *(codes[classes == value] for value in np.unique(classes))]
    counts = [np.unique(group, return_counts=True)[1] for group in groups]
    return sum(float(-(n * np.log2(n / n.sum())).sum()) for n in counts) / 8


SHAPES = [(1, 1), (1, 2), (1, 700), (700, 1), (3, 5), (17, 11), (64, 384), (300, 2), (2, 40_000)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["zeros", "one symbol", "least", "few", "laplace", "wide", "heavy", "uniform"])
def test_codes_come_back(shape: tuple[int, int], kind: str):
    rng = np.random.default_rng(sum(shape))
    codes = {
        "zeros": lambda: np.zeros(shape),
        "one symbol": lambda: np.full(shape, -3),
        "least": lambda: np.full(shape, -32768),
        "few": lambda: rng.random(shape) < 0.01,
        "laplace": lambda: laplace(*shape),
        "wide": lambda: laplace(*shape, scale=1000),
        "heavy": lambda: np.round(rng.standard_cauchy(shape)).clip(-32768, 32767),
        "uniform": lambda: rng.integers(-32768, 32768, shape),
    }[kind]()
    stream = encode_codes(codes.astype(np.int32))
    assert stream.dtype == np.uint8
    assert coded_shape(stream) == shape
    back = decode_codes(stream)
    assert back.dtype == np.int16
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, ">i2"])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_dtype_and_memory_order_do_not_count(dtype: str, order: str):
    codes = np.abs(laplace(40, 60)).clip(0, 100)
    stored = codes.astype(dtype)
    stored = {"C": stored, "F": np.asfortranarray(stored), "strided": np.repeat(stored, 2, axis=1)[:, ::2]}[order]
    np.testing.assert_array_equal(encode_codes(stored), encode_codes(codes))


@pytest.mark.parametrize("magnitude", [*range(14, 20), 31, 32, 33, 255, 256, 1023, 1024, 32766, 32767])
def test_every_octave(magnitude: int):
    codes = np.array([[magnitude, -magnitude, 0, magnitude - 1]])
    np.testing.assert_array_equal(decode_codes(encode_codes(codes)), codes)


def test_outliers_among_small_codes():
    codes = laplace(500, 200)
    codes[::50, ::20] = 32767
    codes[7, 3] = -32768
    np.testing.assert_array_equal(decode_codes(encode_codes(codes)), codes)


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("shape", [(3000, 384), (768, 768)])
def test_streams_are_within_two_percent_of_the_entropy(scale: float, shape: tuple[int, int]):
    codes = laplace(*shape, scale=scale)
    size = len(encode_codes(codes))
    assert size <= 1.02 * entropy_bytes(codes) + 256
    assert size < 0.9 * len(lzma.compress(codes.astype(np.int16 if np.abs(codes).max() > 127 else np.int8).tobytes()))


def test_the_order_of_lines_and_positions_does_not_count():
    codes, rng = laplace(1000, 200), np.random.default_rng(0)
    shuffled = codes[rng.permutation(1000)][:, rng.permutation(200)]
    assert abs(len(encode_codes(codes)) / len(encode_codes(shuffled)) - 1) < 0.005


def test_zeros_and_small_matrices_take_few_bytes():
    assert len(encode_codes(np.zeros((384, 1536), np.int8))) < 300
    assert len(encode_codes(np.zeros((1, 1), np.int8))) < 60


def test_the_same_codes_give_the_same_stream():
    codes = laplace(300, 100)
    assert encode_codes(codes).tobytes() == encode_codes(codes.copy()).tobytes()


def test_frequencies_are_those_of_the_format():
    """Whole numbers alone, so that streams written today are read on every machine, and by every later version."""
    levels = np.random.default_rng(3).integers(0, 256, (50, 112)).astype(np.uint8)
    frequencies = decoding.frequencies_of(levels)
    assert (frequencies.sum(axis=1) == 1 << 14).all()
    assert ((frequencies > 0) == (levels != 255)).all()
    digest = hashlib.sha256(frequencies.astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "f9be89866686a077"


def test_time_is_that_of_a_real_table():
    codes = laplace(30_000, 100)
    before = time.perf_counter()
    decode_codes(encode_codes(codes))
    assert time.perf_counter() - before < 10


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((0, 3), int), r"shape \(0, 3\)"),
        (np.zeros((3, 0), int), "matrix of whole numbers"),
        (np.zeros(3, int), "matrix"),
        (np.zeros((2, 2)), "float64"),
        (np.array([[40_000]]), "go from 40000 to 40000"),
        (np.array([[-32_769]]), "16 bits"),
    ],
)
def test_what_is_no_matrix_of_codes_is_refused(codes: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        encode_codes(codes)


# Damage

CODES = laplace(12, 20)  # few, since every bit of the stream is flipped
STREAM = encode_codes(CODES)


def refused_or_the_same(broken: np.ndarray) -> None:
    """Bits that pad the end of compressed scales mean nothing; any other damage is refused."""
    with contextlib.suppress(ValueError):
        np.testing.assert_array_equal(decode_codes(broken), CODES)


def test_every_cut_is_refused():
    for stop in range(len(STREAM)):
        with pytest.raises(ValueError, match=r"^it"):
            decode_codes(STREAM[:stop])


def test_what_is_appended_is_refused():
    for count in (1, 2, 3, 64):
        with pytest.raises(ValueError, match="its coder states are invalid" if count % 2 else "bytes follow its codes"):
            decode_codes(np.concatenate([STREAM, np.zeros(count, np.uint8)]))


def test_no_flipped_bit_gives_other_codes():
    for place in range(8 * len(STREAM)):
        broken = STREAM.copy()
        broken[place // 8] ^= 1 << place % 8
        refused_or_the_same(broken)


def test_random_damage_is_refused_or_harmless():
    rng = np.random.default_rng(5)
    for _ in range(500):
        broken = STREAM.copy()
        start, count = rng.integers(len(STREAM)), rng.integers(1, 30)
        broken[start : start + count] = rng.integers(0, 256, len(broken[start : start + count]))
        refused_or_the_same(broken)


@pytest.mark.parametrize(
    "fields",
    [
        {"lines": 0},
        {"length": 0},
        {"lines": 1 << 31},
        {"lines": (1 << 32) - 1, "length": (1 << 32) - 1},
        {"lines": 1 << 16, "length": 1 << 14, "lanes": 1 << 16},
        {"lanes": 0},
        {"lanes": (1 << 32) - 1},
        {"classes": 0},
        {"classes": 257},
        {"classes": 255},
        {"low": 511},
        {"line_bytes": (1 << 32) - 1},
        {"position_bytes": 0},
        {"level_bytes": 1},
        {"checksum": 7},
    ],
)
def test_hostile_headers_are_refused_at_once(fields: dict[str, int]):
    header = decoding.read_header(STREAM)[1]._replace(**fields)
    broken = np.concatenate([np.frombuffer(struct.pack("<4s9I", *header), np.uint8), STREAM[40:]])
    before = time.perf_counter()
    with pytest.raises(ValueError, match=r"^its"):
        decode_codes(broken)
    assert time.perf_counter() - before < 1


def test_a_bomb_is_not_inflated():
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = bomb.compress(bytes(1 << 24)) + bomb.flush()
    header = decoding.read_header(STREAM)[1]
    stream = struct.pack("<4s9I", *header._replace(line_bytes=len(content))) + content + STREAM[40:].tobytes()
    with pytest.raises(ValueError, match="scales or frequencies are damaged, expected 12 bytes"):
        decode_codes(np.frombuffer(stream, np.uint8))


def test_the_shape_is_checked_before_anything_is_decoded():
    with pytest.raises(ValueError, match=r"shape \(12, 20\), expected \(20, 12\)"):
        decode_codes(STREAM[:-1], (20, 12))


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (np.zeros(3, np.uint8), "fewer than a header"),
        (np.zeros(100, np.uint8), "no codes"),
        (np.concatenate([np.frombuffer(b"LPQ\x02", np.uint8), STREAM[4:]]), "a newer version"),
        (STREAM.astype(np.int32), "int32"),
        (STREAM[None], "expected a stream of uint8"),
    ],
)
def test_what_is_no_stream_is_refused(stream: np.ndarray, message: str):
    for read in (decode_codes, coded_shape):
        with pytest.raises(ValueError, match=message):
            read(stream)
