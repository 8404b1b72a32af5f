"""Ways to round a matrix, beside lpjax's at equal bytes: `python -m experiments.rounding_ways [--runs DIR]`.

The word embedding of all-MiniLM-L6-v2, and a kernel of each shape from the middle of its encoder, under the calibration
of `experiments.budget`. Each way gives a size, entropy coded as in lpjax's files, and a weighted error; lpjax's error
at that size is interpolated between roundings by twelve steps. Then the size of lpjax's codes by general compressors.

Writes experiments/results/rounding_ways.json; `python -m experiments.readme` makes the tables.
"""

from __future__ import annotations

import lzma
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from experiments.budget import SEED, calibrated_encoder, runs_parser
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax._tree import is_table, leaves_with_paths
from lpjax.compression.rounding import Moments, moments_of
from lpjax.rounding import round_groups, round_kernel, round_pair, triangle_of, under_metric
from lpjax.weights.coded import Coded, stored_bytes
from lpjax.weights.low_rank import row_blocks

RESULTS = Path(__file__).parent / "results" / "rounding_ways.json"
LAYER = "encoder/layer/2"
PATHS = (
    "embeddings/word_embeddings/embedding",
    f"{LAYER}/attention/self/query/kernel",
    f"{LAYER}/intermediate/dense/kernel",
    f"{LAYER}/output/dense/kernel",
)
RATES = (2.0, 3.0, 4.0)  # bits a weight of the ways that have a step
TIERS = 4
RANK = 16  # of a pair beside a rounded matrix

Result = tuple[float, np.ndarray]
"""Bytes in a file, and the matrix that is stored."""


class Matrix(NamedTuple):
    """A matrix with its metrics, in double precision."""

    path: str
    weight: np.ndarray
    moments: Moments

    def error(self, other: np.ndarray) -> float:
        """The weighted norm of the difference, relative to that of the matrix."""
        return self.norm(self.weight - other) / self.norm(self.weight)

    def norm(self, matrix: np.ndarray) -> float:
        """‖H^{1/2} A G^{1/2}‖."""
        rows, columns = self.moments
        assert rows is not None
        return math.sqrt(np.sum(under_metric(rows, matrix, slice(None)) * (matrix @ columns)))


def stored(*weights: Any) -> Result:
    """What files hold of weights, whose sum stands for the matrix."""
    return sum(map(stored_bytes, weights)), np.sum([_dense(weight) for weight in weights], axis=0)


def _dense(weight: Any) -> np.ndarray:
    return np.concatenate([rows for _, rows in row_blocks(weight, 4096)])


def ours(matrix: Matrix, step: float) -> Result:
    """What `plan_for_size` makes."""
    if is_table(matrix.path):
        return stored(round_pair(matrix.weight, None, step, *matrix.moments))
    return stored(round_kernel(matrix.weight, step, *matrix.moments))


def without_feedback(matrix: Matrix, step: float) -> Result:
    """The same steps, each entry to the nearest."""
    return stored(round_kernel(matrix.weight, step, *map(_diagonal, matrix.moments)))


def feedback_of_inputs(matrix: Matrix, step: float) -> Result:
    """GPTQ with lpjax's steps: feedback under the metric of inputs alone."""
    rows, columns = matrix.moments
    return stored(round_kernel(matrix.weight, step, rows, _diagonal(columns)))


def rotated(matrix: Matrix, step: float) -> Result:
    """Random rotations of inputs and outputs before the rounding, undone afterwards (QuIP, arXiv 2307.13304)."""
    rng = np.random.default_rng(SEED)
    turns = [np.linalg.qr(rng.standard_normal((size, size)))[0] for size in matrix.weight.shape]
    turned = [turn.T @ metric @ turn for turn, metric in zip(turns, matrix.moments, strict=True)]
    size, rounded = stored(round_kernel(turns[0].T @ matrix.weight @ turns[1], step, *turned))
    return size, turns[0] @ rounded @ turns[1].T


def unrotated_table(matrix: Matrix, step: float) -> Result:
    """A table in its own basis, with feedback along the rows."""
    return stored(round_kernel(matrix.weight, step, *matrix.moments, axis=1))


def tiers(matrix: Matrix, step: float) -> Result:
    """A basis for each quarter of a table's rows by frequency (GroupReduce, arXiv 1806.06950)."""
    rows, columns = matrix.moments
    assert rows is not None
    result, size = np.empty_like(matrix.weight), 0.0
    for at in np.array_split(np.argsort(-rows), TIERS):
        own, result[at] = stored(round_pair(matrix.weight[at], None, step, rows[at], columns))
        size += own
    return size, result


def rounded_pair(matrix: Matrix, step: float) -> Result:
    """The weighted SVD at half of the ranks, rounded."""
    left, right = _pair(matrix, matrix.weight, min(matrix.weight.shape) // 2)
    return stored(round_pair(left, right, step, *matrix.moments))


def with_pair(matrix: Matrix, step: float) -> Result:
    """A rounded matrix and a pair of low rank, alternated (CALDERA, arXiv 2405.18886)."""
    rest, pair = matrix.weight, None
    for _ in range(3):
        rounded = round_kernel(rest, step, *matrix.moments)
        pair = round_pair(*_pair(matrix, matrix.weight - _dense(rounded), RANK), step, *matrix.moments)
        rest = matrix.weight - _dense(pair)
    return stored(round_kernel(rest, step, *matrix.moments), pair)


def grouped(matrix: Matrix, bits: float) -> Result:
    """Groups of 32 with feedback, entropy coded as well."""
    return stored(
        round_groups(matrix.weight, int(bits), 32, axis=int(is_table(matrix.path)), rows=matrix.moments.rows,
                     columns=matrix.moments.columns)
    )  # fmt: skip


KERNEL_WAYS: dict[str, Callable[[Matrix, float], Result]] = {
    "without feedback": without_feedback,
    "feedback of inputs alone": feedback_of_inputs,
    "random rotations": rotated,
    "half of the ranks, rounded": rounded_pair,
    "and a pair of rank 16": with_pair,
    "groups of 32, feedback": grouped,
}
TABLE_WAYS: dict[str, Callable[[Matrix, float], Result]] = {
    "its own basis, feedback": unrotated_table,
    "a basis a quarter of the rows": tiers,
    "half of the ranks, rounded": rounded_pair,
    "groups of 32, feedback": grouped,
}


def _diagonal(metric: Any) -> np.ndarray:
    return metric if metric.ndim == 1 else np.diagonal(metric)


def _pair(matrix: Matrix, weight: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The best pair of a rank for another matrix, under the metrics of `matrix`."""
    rows, columns = (triangle_of(metric, size) for metric, size in zip(matrix.moments, weight.shape, strict=True))
    assert columns.upper is not None
    side, root = np.sqrt(rows.pivots)[:, None], np.sqrt(columns.pivots)[:, None] * columns.upper
    heavy = side * (weight if rows.upper is None else rows.upper @ weight)
    left, values, right = np.linalg.svd(heavy @ root.T, full_matrices=False)
    left = left[:, :rank] * values[:rank] / side
    if rows.upper is not None:
        left = np.linalg.solve(rows.upper, left)
    return left, np.linalg.solve(root, right[:rank].T).T


def curve_of(matrix: Matrix) -> Iterator[tuple[float, float, float]]:
    """(step, bits a weight, error) of lpjax's rounding, from many bits to few."""
    step = 16 * matrix.norm(matrix.weight) / math.sqrt(matrix.weight.size)
    while 8 * ours(matrix, step)[0] / matrix.weight.size < 4.5:
        step /= 2
    for number in range(12):
        bytes_, rounded = ours(matrix, step * 2 ** (number / 2))
        yield step * 2 ** (number / 2), 8 * bytes_ / matrix.weight.size, matrix.error(rounded)


def rows_of(matrix: Matrix, curve: Sequence[tuple[float, float, float]]) -> Iterator[dict[str, Any]]:
    """A row for each way and setting, beside lpjax's curve."""
    steps, bits, errors = map(np.array, zip(*curve, strict=True))
    ways = TABLE_WAYS if is_table(matrix.path) else KERNEL_WAYS
    for name, way in ways.items():
        for rate in RATES:
            knob = rate if way is grouped else math.exp(np.interp(-rate, -bits, np.log(steps)))
            size, rounded = way(matrix, knob)
            own = 8 * size / matrix.weight.size
            expected = math.exp(np.interp(-own, -bits, np.log(errors)))
            inside = bool(bits[-1] <= own <= bits[0])
            error = matrix.error(rounded)
            yield {
                "matrix": matrix.path, "way": name, "rate": rate, "bits": own, "error": error,
                "ours": expected if inside else None,
            }  # fmt: skip


def coders(matrix: Matrix, curve: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Bytes of lpjax's codes at three bits a weight, as packed, by general compressors and by its own coder."""
    step = next(step for step, bits, _ in curve if bits < 3)
    rounded = round_pair(matrix.weight, None, step, *matrix.moments).left if is_table(matrix.path) else round_kernel(
        matrix.weight, step, *matrix.moments)  # fmt: skip
    packed = b"".join(np.asarray(run).tobytes() for run in rounded.codes)  # pyright: ignore[reportAttributeAccessIssue]
    coded = Coded.of(rounded)  # pyright: ignore[reportArgumentType]
    row: dict[str, Any] = {"matrix": matrix.path, "bytes": {"packed": len(packed)}, "seconds": {}}
    for name, size, decode in (
        ("zlib", len(body := zlib.compress(packed, 9)), lambda body=body: zlib.decompress(body)),
        ("lzma", len(body := lzma.compress(packed, preset=9)), lambda body=body: lzma.decompress(body)),
        ("rANS", coded.codes.nbytes, coded.decoded),
    ):
        began = time.perf_counter()
        decode()
        row["bytes"][name], row["seconds"][name] = size, time.perf_counter() - began
    return row


def main() -> None:
    """Round every matrix in every way, and write the record."""
    console = Console()
    dense, _, _, calibration = calibrated_encoder(runs_parser(__doc__).parse_args().runs)
    leaves = dict(leaves_with_paths(dense.params))
    record: dict[str, Any] = {"model": "all-MiniLM-L6-v2", **run_record(SEED), "rows": [], "coders": []}
    for path in PATHS:
        matrix = Matrix(path, np.asarray(leaves[path], np.float64), moments_of(calibration, path))
        curve = [*curve_of(matrix)]
        for row in rows_of(matrix, curve):
            console.print(row)
            record["rows"].append(row)
        record["coders"].append(coders(matrix, curve))
        console.print(record["coders"][-1])
        write_json(RESULTS, record)


if __name__ == "__main__":
    main()
