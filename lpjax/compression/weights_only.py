"""Factor the matrices of any safetensors checkpoint without running its model, one matrix in memory at a time.

The factors are written first, and the dense files are computed from them: each matrix is solved once, and a dense
matrix is the product of its stored factors.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lpjax._files.json import exponent_text, finite, json_text
from lpjax._files.replacing import check_space, replacing_folder
from lpjax._provenance import run_record
from lpjax._repr import short_repr
from lpjax.checkpoint import (
    CheckpointError,
    Deferred,
    Shards,
    check_target,
    copy_side_files,
    densified,
    read_shards,
    write_card,
)
from lpjax.checkpoint.cards import CARD
from lpjax.checkpoint.formats import CONFIG
from lpjax.checkpoint.links import check_inside, copy_inside
from lpjax.checkpoint.safetensors import check_finite, read_tensors, write_tensors
from lpjax.checkpoint.source import code_files
from lpjax.compression._compress import compress
from lpjax.compression.plan import Choice, SolverLike, check_smaller, check_uniform, uniform_plan
from lpjax.select import compiled_pattern
from lpjax.solvers import solver_named
from lpjax.weights.low_rank import LowRank

RECORD = "lpjax_weights_only.json"
SCHEMA = "lpjax-weights-only/1"
FACTORS = "factors"
"""Folder of the factored files, inside OUT."""
LEAST = 8192
"""Smallest number of entries of a matrix that is factored by default."""

Patterns = str | re.Pattern[str] | Sequence[str | re.Pattern[str]]


@dataclasses.dataclass(frozen=True)
class WeightRecord:
    """The outcome for one selected matrix.

    Attributes:
        name: name of the tensor in the file.
        shape: (rows, columns); rows are outputs of a kernel or tokens of an embedding.
        rank: rank of its factors; None if it stayed dense.
        error: ‖A − LR‖_p / ‖A‖_p of the stored factors, over entries or rows like the solver's objective; 0 if dense.
        bytes_before, bytes_after: bytes of the matrix, and of its factors.
        converged: whether the solver converged.
        seconds: solve time excluding compilation.
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    error: float
    bytes_before: int
    bytes_after: int
    converged: bool = True
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class WeightKind:
    """Matrices of one shape and rank whose names differ only in numbers; `errors` are the smallest and largest."""

    name: str
    count: int
    shape: tuple[int, int]
    rank: int | None
    errors: tuple[float, float]
    bytes_before: int
    bytes_after: int


@dataclasses.dataclass(frozen=True)
class CompressedWeights:
    """The outcome of `compress_weights`.

    Attributes:
        method, p: the solver and its exponent.
        records: records of the selected matrices, in the order of the files.
        bytes_before, bytes_after: bytes of all files of weights of the source (as of the dense copy), and of the
            factored files.
    """

    method: str
    p: float
    records: tuple[WeightRecord, ...]
    bytes_before: int
    bytes_after: int

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def kinds(self) -> tuple[WeightKind, ...]:
        """The records, grouped by kind of matrix."""
        groups: dict[Any, list[WeightRecord]] = {}
        for record in self.records:
            # Only whole parts of a name: fc1 and fc2 are different matrices of a layer.
            name = re.sub(r"(?<![^.])\d+(?![^.])", "*", record.name)
            groups.setdefault((name, record.shape, record.rank), []).append(record)
        return tuple(
            WeightKind(
                name, len(group), shape, rank,
                (min(record.error for record in group), max(record.error for record in group)),
                sum(record.bytes_before for record in group), sum(record.bytes_after for record in group),
            )
            for (name, shape, rank), group in groups.items()
        )  # fmt: skip


def compress_weights(
    source: str | Path,
    out: str | Path,
    *,
    select: Patterns | None = None,
    keep: float | None = None,
    rank: int | None = None,
    solver: SolverLike | None = None,
    p: float | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> CompressedWeights:
    """Factor the matrices of a safetensors checkpoint of any model, from their weights alone.

    The model is not run, so errors are not weighted by text, and the model may be one without a forward pass in lpjax:
    a decoder, a vision model, an encoder-decoder. Each matrix A (rows, columns) is factored directly into L (rows,
    rank) and R (rank, columns): PyTorch's kernels are (out, in), embeddings (tokens, hidden). Memory holds one matrix,
    its factors and the solver's arrays. `out` gets

    - the files of `source` (same names, index, config.json, tokenizer), with each factored matrix replaced by its
      product in its dtype and all other tensors unchanged: other libraries load it like `source`;
    - factors/, smaller files of the same names with `N.left` and `N.right` in place of N;
    - lpjax_weights_only.json, the record.

    Args:
        source: folder with config.json and safetensors, in one file or in shards with an index; or a hub id.
        out: folder to write, whole or not at all.
        select: regular expressions that are searched for in the names of floating-point matrices. By default all
            matrices with 8192 entries or more that get smaller.
        keep: largest share of a matrix's parameters that its factors may have, in (0, 1]; determines the rank.
        rank: rank of all factors; instead of `keep`.
        solver: name in `SOLVERS`, or a function, see `compress`; by default "lewis".
        p: exponent; by default that of the solver.
        overwrite: whether to replace `out` if it is a checkpoint or empty; never `source` or a folder in it.
        progress: called with (matrices done, matrices in all, name).
        **options: further keywords for the solver: num_iters, tol, …

    Raises:
        ValueError: before any solving: an argument out of range, or a selection without a matrix that gets smaller.
            Later: a product that its dtype cannot hold. `out` is then not written.
        CheckpointError: as `load_checkpoint`, for files; also quantized weights, or selected matrices with NaN or
            infinities, by name.
        FileExistsError, FileNotFoundError, OSError: as `load_checkpoint` and `save_checkpoint`.
    """
    check_uniform(keep=keep, rank=rank, solver=solver, p=p, **options)
    check_target(out, None, overwrite)
    shards = read_shards(source)
    layers = choose_weights(shards, select, keep=keep, rank=rank, solver=solver, p=p)
    return write_weights(
        shards, layers, out, model=str(source), overwrite=overwrite, progress=progress, options=options
    )


def choose_weights(
    shards: Shards,
    select: Patterns | None,
    *,
    keep: float | None,
    rank: int | None,
    solver: SolverLike | None,
    p: float | None,
) -> dict[str, Choice]:
    """A choice for each selected matrix, with rank None if it would get no smaller; arguments of `compress_weights`.

    Raises:
        ValueError: as `compress_weights`, before any solving.
    """
    tensors = shards.tensors
    matrices = {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and tensor.size and jax.numpy.issubdtype(tensor.dtype, np.floating)
    }
    if not matrices:
        raise ValueError(f"{shards.inner} holds no floating-point matrix; nothing can be factored")
    names = {name for name, matrix in matrices.items() if matrix.size >= LEAST}
    if select is not None:
        names = _matched(matrices, [select] if isinstance(select, str | re.Pattern) else select)
    if not names:
        raise ValueError(
            f"no matrix of {shards.inner} has {LEAST} entries; pass `select` for smaller ones, such as {_few(matrices)}"
        )
    plan = uniform_plan(matrices, select=lambda name, _: name in names, keep=keep, rank=rank, solver=solver, p=p)
    factored = set(plan.factored(matrices))
    check_smaller(plan, matrices, keep=keep, rank=rank)
    if taken := [name for name in factored if tensors.keys() & {f"{name}.left", f"{name}.right"}]:
        raise ValueError(f"{min(taken)} can't be factored: another tensor has the name of its factor")
    layers = {name: choice if name in factored else choice._replace(rank=None) for name, choice in plan.layers.items()}
    return {name: layers[name] for name in tensors if name in (factored if select is None else layers)}


def write_weights(
    shards: Shards,
    layers: Mapping[str, Choice],
    out: str | Path,
    *,
    model: str,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    options: Mapping[str, Any],
) -> CompressedWeights:
    """Solve and write the choices of `choose_weights`; `model` is the name of the source in the record.

    Raises:
        ValueError, CheckpointError, OSError: as `compress_weights`.
    """
    from lpjax.hub import weights_card  # imported here, as that package imports this module

    target = check_target(out, shards.source, overwrite)
    for path in _beside(shards):
        check_inside(path, shards.source)
    tensors, records = shards.tensors, dict[str, WeightRecord]()
    check_finite(((name, tensors[name]) for name in layers), str(shards.inner), CheckpointError)

    @functools.lru_cache(maxsize=1)  # left and right are written one after the other
    def solved(name: str) -> LowRank:
        params, (layer,) = compress({name: tensors[name]}, {name: layers[name]}, rows="first", **options)
        pair, by_rows = params[name], solver_named(layers[name].method).objective == "rows"
        error = layer.error_rows if by_rows else layer.error_entries
        before, after = tensors[name].nbytes, pair.left.nbytes + pair.right.nbytes
        records[name] = WeightRecord(
            name, tensors[name].shape, pair.rank, error, before, after, layer.converged, layer.seconds
        )
        if progress is not None:
            progress(sum(record.rank is not None for record in records.values()), total, name)
        return pair

    for name in layers:
        size = tensors[name].nbytes
        records[name] = WeightRecord(name, tensors[name].shape, None, 0.0, size, size)
    total, after = sum(choice.rank is not None for choice in layers.values()), 0
    check_space(target, 2 * shards.size)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(target, overwrite) as staging:
        (staging / FACTORS).mkdir()
        for file, shard in shards.files.items():
            pairs = [pair for name in shard.tensors for pair in _parts(name, tensors[name], layers.get(name), solved)]
            after += write_tensors(staging / FACTORS / file, pairs, dict(shard.metadata) or None)
            _write_dense(staging, file, shard.metadata, shard.tensors)
        first, *_ = (choice for choice in layers.values() if choice.rank is not None)
        method = first.method if isinstance(first.method, str) else getattr(first.method, "__name__", "custom")
        result = CompressedWeights(method, float(first.p), tuple(records.values()), shards.size, after)
        _copy_beside(staging, shards)
        write_card(staging, target / CARD, lambda: weights_card(staging, shards.source, result))
        scalars = {name: value for name, value in options.items() if isinstance(value, int | float | str)}
        document = {"schema": SCHEMA, "model": model, "options": scalars} | vars(result) | run_record(None)
        document["p"] = exponent_text(result.p)
        document["records"] = [vars(record) for record in result.records]
        (staging / RECORD).write_text(json_text(finite(document), ascii=False), encoding="utf-8")
    return result


def _beside(shards: Shards) -> list[Path]:
    """Files to copy besides those of every folder: config.json, the index, and code that a config names."""
    own = [shards.inner / CONFIG, *([] if shards.index is None else [shards.index])]
    return own + code_files(shards.inner)


def _copy_beside(folder: Path, shards: Shards) -> None:
    """Copy the files beside the weights; nothing is run or unpickled."""
    for path in _beside(shards):
        copy_inside(path, folder / path.name, shards.source)
    copy_side_files(shards.source, folder)
    if shards.index is not None:
        _write_index(folder / FACTORS, shards)


def _parts(
    name: str, tensor: np.ndarray, choice: Choice | None, solved: Callable[[str], LowRank]
) -> Iterator[tuple[str, Any]]:
    """(name, array) of a tensor, or of its factors, which are solved for when they are written."""
    if choice is None or choice.rank is None:
        yield name, tensor
        return
    rows, columns = tensor.shape
    for part, shape in (("left", (rows, choice.rank)), ("right", (choice.rank, columns))):
        outline = np.broadcast_to(np.zeros((), tensor.dtype), shape)
        yield f"{name}.{part}", Deferred(lambda part=part: np.asarray(getattr(solved(name), part)), outline)


def _write_dense(folder: Path, file: str, metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> None:
    """Write the products of the factors in FACTORS/file, in the order of the source."""
    stored, _ = read_tensors(folder / FACTORS / file)
    dense = {
        name: stored[name] if name in stored else LowRank(stored[f"{name}.left"], stored[f"{name}.right"])
        for name in tensors
    }
    write_tensors(folder / file, densified(dense).items(), dict(metadata) or None)


def _write_index(folder: Path, shards: Shards) -> None:
    """The index of the factored files."""
    names, size = dict[str, str](), 0
    for file in shards.files:
        stored, _ = read_tensors(folder / file)
        names |= dict.fromkeys(stored, file)
        size += sum(tensor.nbytes for tensor in stored.values())
    assert shards.index is not None
    text = json_text({"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}, ascii=False)
    (folder / shards.index.name).write_text(text, encoding="utf-8")


def _matched(matrices: Mapping[str, np.ndarray], patterns: Sequence[str | re.Pattern[str]]) -> set[str]:
    """Names of the matrices that patterns match.

    Raises:
        ValueError: a pattern is not a regular expression, or matches none.
    """
    if not patterns:
        raise ValueError("`select` is empty; expected a regular expression")
    chosen = set()
    for pattern in patterns:
        expression = compiled_pattern(pattern)
        if not (matched := {name for name in matrices if expression.search(name)}):
            near = difflib.get_close_matches(expression.pattern, matrices, n=3, cutoff=0.3) or matrices
            raise ValueError(
                f"`select` {expression.pattern!r} is in the name of no floating-point matrix; there are {_few(near)}"
            )
        chosen |= matched
    return chosen


def _few(names: Sequence[str] | Mapping[str, Any]) -> str:
    first = [*names][:3]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")
