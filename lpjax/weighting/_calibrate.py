"""Calibration: statistics of a model on text that weight rows and directions of its matrices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from lpjax._check import check_seed, check_whole
from lpjax._mesh import by_rows, data_mesh, fetch, put_sharded, replicated
from lpjax._tree import is_table, leaves_with_paths, replace_leaves
from lpjax.checkpoint import Checkpoint
from lpjax.data.batching import by_length, collate, round_up
from lpjax.models import ModelConfig, device_params
from lpjax.models.taps import TappedWeight, Taps
from lpjax.pipeline.outputs import Outputs, Words, hidden_and_outputs, outputs_of
from lpjax.select import Select, select_paths
from lpjax.weighting.statistics import SUMS, Calibration, Statistics

Progress = Callable[[int, int], None]

_MOST_OUTPUTS = 1 << 14  # largest number of outputs of a kernel: 1 GB of second moments
_ADDED_IN_FLOAT32 = 32  # batches summed in float32 before they are added to the float64 total on the host


def calibrate(
    checkpoint: Checkpoint,
    first: Sequence[str],
    second: Sequence[str] | None = None,
    *,
    labels: Sequence[float] | None = None,
    gradients: bool = True,
    select: Select = ("encoder", "embeddings"),
    tokenizer: Any = None,
    batch_size: int = 32,
    max_length: int | None = 128,
    seed: int = 0,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Run texts through a model once, and sum statistics of its matrices' inputs and gradients.

    Memory does not grow with the number of texts. Sums over a few batches are float32, on the devices; their totals are
    float64, on the host.

    Gradients are those of uᵀ outputs, with a new random direction u for each text, so that the mean of g gᵀ gives the
    expected squared change of the outputs by an error in a layer (Gauss–Newton). For a classification head, u is the
    gradient of the log-likelihood of labels drawn from the model's own predictions (Fisher information), or of the
    given `labels`; for a regression it is Gaussian. Without a head it is Gaussian as well, and the output is the
    embedding at length 1: see `lpjax.evaluation.embed_sentences`.
    Multi-label outputs are drawn independently of each other, token classes for each token except padding and special
    ones, and the first and last token of an answer among the tokens of the text. For a masked language model, 15 % of
    the tokens are masked, and words are drawn for these.

    Args:
        checkpoint: model with dense or `LowRank` leaves.
        first: n texts, or the first texts of n pairs.
        second: the second texts of the pairs.
        labels: class indices in the order of the model's outputs, or values of a regression, shape (n,); for a
            multi-label model 0 or 1, shape (n, labels). Not for heads of tokens, spans or words.
        gradients: whether to run the backward pass, too, which triples the time; without it there are no `outputs`,
            `fisher` and `gradients`.
        select: matrices to collect statistics of; see `select_paths`.
        tokenizer: tokenizer of transformers; by default that of `checkpoint.source`.
        batch_size: texts per batch, over all devices.
        max_length: largest number of tokens of a text.
        seed: random seed of the directions.
        mesh: devices, along an axis "data"; by default all.
        progress: called with (texts done, texts in all) after each batch.

    Raises:
        ValueError: no text; labels without a head or without gradients, not one per text, or unknown to the model; a
            batch size or seed out of range; matrices that the model does not use, or with gradients kernels of more
            than 16,384 outputs; statistics that are not finite; or what `tokenize` and `select_paths` refuse.
    """
    config, params = checkpoint.config, checkpoint.params
    check_whole("`batch_size`", batch_size, 1)
    kind = outputs_of(checkpoint)
    check_seed("`seed`", seed)
    if labels is not None and not gradients:
        raise ValueError("`labels` need gradients; pass either `labels` or `gradients=False`")
    values = None if labels is None else kind.check_labels(labels, len(first))
    target = "" if not gradients else kind.target if labels is None else "labels"
    paths = select_paths(params, select)
    shapes = {path: leaf.shape for path, leaf in leaves_with_paths(params)}
    if gradients:
        _require_narrow({path: shapes[path] for path in paths})
    tokens, kind = kind.tokenize(checkpoint, first, second, tokenizer=tokenizer, max_length=max_length)
    mesh = data_mesh() if mesh is None else mesh
    rows = round_up(batch_size, mesh, config)
    weights = jax.device_put(device_params(params), replicated(mesh))
    watched = tuple((path, shapes[path]) for path in paths)
    sums, done, rng = Sums(), 0, np.random.default_rng(seed)
    shape = (rows,) if values is None else (rows, *values.shape[1:])
    for index, batch in enumerate(by_length(tokens, rows)):
        inputs = put_sharded(kind.prepare(collate(tokens, batch, rows), tokens, rng), by_rows(mesh))
        targets = np.zeros(shape, np.float32)
        targets[: len(batch.rows)] = 0 if values is None else values[batch.rows]
        key = jax.random.fold_in(jax.random.key(seed), index)
        batch_sums = _sums(
            weights, inputs, put_sharded(targets, by_rows(mesh)), key, watched, config, kind, target, mesh
        )
        if not index:
            _require_run(batch_sums)
        sums.add(batch_sums)
        done += len(batch.rows)
        if progress is not None:
            progress(done, len(tokens))
    count = int(tokens.lengths.sum())
    total = sums.total()
    del sums  # with its arrays on the devices; below, each layer's sums are freed once its statistics are made
    statistics = {path: _statistics(total.pop(path), len(tokens)) for path in list(total)}
    for path, known in statistics.items():
        if name := known.not_finite():
            raise ValueError(
                f"`{name}` of {path} is not finite: the model's weights are not, or its activations or gradients on "
                "these texts; repair the checkpoint, or find the text"
            )
    return Calibration(statistics, target, len(tokens), count, seed)


def _require_narrow(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse kernels with too many outputs for second moments, such as an untied decoder's."""
    for path, (_, d) in shapes.items():
        if not is_table(path) and d > _MOST_OUTPUTS:
            raise ValueError(
                f"`select` names {path}, whose {d} outputs have second moments of {4e-9 * d * d:.1f} GB; leave it out, "
                "or pass `gradients=False` (--forward-only)"
            )


def _require_run(sums: dict[str, Taps]) -> None:
    """Refuse matrices that the model does not use on text, such as word heads, which have no statistics."""
    seen = fetch({path: taps.tokens for path, taps in sums.items()})
    if idle := [path for path, count in seen.items() if not count]:
        more = ", …" if len(idle) > 5 else ""
        raise ValueError(
            f"`select` names matrices that the model does not use on text: {', '.join(idle[:5])}{more}; leave them out"
        )


def _taps(path: str, shape: tuple[int, ...], gradients: bool, words: bool) -> Taps:
    (n, d), zeros = shape, functools.partial(jnp.zeros, dtype=jnp.float32)
    outputs = zeros((d, d)) if gradients else None
    if is_table(path):
        taps = Taps(counts=zeros(n), outputs=outputs, gradients=zeros(n) if gradients else None, tokens=zeros(()))
        if not (gradients and words):
            return taps
        return dataclasses.replace(
            taps, places=zeros(()), decoder=zeros((d, d)), decoded=zeros(n), decoded_gradients=zeros(n)
        )
    fisher = zeros(n) if gradients else None
    return Taps(zeros((n, n)), zeros(n), zeros(n), outputs, fisher, tokens=zeros(()))


class Sums:
    """Sums over many batches: partial sums in float32 on the devices, totals in float64 on the host."""

    def __init__(self) -> None:
        self._some: Any = None
        self._added = 0
        self._all: Any = None

    def add(self, batch_sums: Any) -> None:
        """Add the sums of a batch after those of earlier ones are computed, so that batches do not pile up."""
        self._some = batch_sums if self._some is None else _plus(jax.block_until_ready(self._some), batch_sums)
        self._added += 1
        if self._added == _ADDED_IN_FLOAT32:
            self._flush()

    def _flush(self) -> None:
        some = fetch(self._some)
        if self._all is None:
            self._all = jax.tree.map(lambda part: np.zeros(np.shape(part), np.float64), some)
        for total, part in zip(jax.tree.leaves(self._all), jax.tree.leaves(some), strict=True):
            total += part
        self._some, self._added = None, 0

    def total(self) -> Any:
        """The sums over all batches."""
        if self._added and self._all is None:  # for few batches float64 gains nothing
            return fetch(self._some)
        if self._added:
            self._flush()
        return self._all


@functools.partial(jax.jit, donate_argnums=(0,))
def _plus(total: Any, batch_sums: Any) -> Any:
    return jax.tree.map(jnp.add, total, batch_sums)


def _statistics(sums: Taps, texts: int) -> Statistics:
    tokens = int(np.asarray(sums.tokens).item())

    def mean(total: Any, over: int) -> np.ndarray | None:
        return None if total is None else (np.asarray(total) / over).astype(np.float32)

    over = {"fisher": texts, "counts": 1, "gradients": 1}
    statistics = Statistics(tokens, **{name: mean(getattr(sums, name), over.get(name, tokens)) for name in SUMS})
    return _with_decoder(statistics, sums)


def _with_decoder(statistics: Statistics, sums: Taps) -> Statistics:
    """Joint statistics of a table that is also the decoder of a word head.

    Its Gauss–Newton matrix is the sum of two Kronecker products, diag(c) ⊗ mean g gᵀ as a table with counts c, and
    diag(Σ u²) ⊗ mean x xᵀ as a decoder. It is approximated by the Kronecker product with the same partial traces,
    scaled to keep the mean of ‖g‖²: `counts` are then those of the tokens plus a term from the predictions.
    """
    if sums.places is None or not float(np.asarray(sums.places)):
        return statistics
    counts, outputs, moment, decoded, squares = (
        np.asarray(part, np.float64)
        for part in (sums.counts, sums.outputs, sums.decoder, sums.decoded, sums.decoded_gradients)
    )
    moment = moment / float(np.asarray(sums.places))
    each = np.trace(outputs) / statistics.tokens
    unit = each or 1.0
    rows = (counts * each + decoded * np.trace(moment)) / unit
    columns = (outputs + decoded.sum() * moment) / (rows.sum() or 1.0)
    gradients = np.asarray(sums.gradients, np.float64) + squares
    return dataclasses.replace(
        statistics,
        counts=rows.astype(np.float32),
        outputs=columns.astype(np.float32),
        gradients=gradients.astype(np.float32),
    )


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _sums(
    params: dict[str, Any],
    inputs: dict[str, Array],
    labels: Array,  # one row per text
    key: Array,
    watched: tuple[tuple[str, tuple[int, ...]], ...],
    config: ModelConfig,
    kind: Outputs,
    target: str,
    mesh: Mesh,
) -> dict[str, Taps]:
    """The sums of one batch."""
    tokens = inputs["attention_mask"].astype(jnp.float32)
    leaves = dict(leaves_with_paths(params))

    def output(taps: dict[str, Taps]) -> Array:
        places = kind.places(inputs)
        tapped = {path: TappedWeight(leaves[path], tap, tokens, places) for path, tap in taps.items()}
        with_taps = replace_leaves(params, tapped)
        with jax.default_matmul_precision("highest"):
            return _scalar(with_taps, config, inputs, labels if target == "labels" else None, key, kind)

    words = isinstance(kind, Words)
    taps = {path: _taps(path, shape, bool(target), words) for path, shape in watched}
    return jax.lax.with_sharding_constraint(jax.grad(output)(taps), replicated(mesh))


def _scalar(
    params: dict[str, Any],
    config: ModelConfig,
    inputs: dict[str, Array],
    labels: Array | None,
    key: Array,
    kind: Outputs,
) -> Array:
    """Σ over the texts of uᵀ outputs."""
    outputs = hidden_and_outputs(params, config, inputs, kind)[1]
    direction = jax.lax.stop_gradient(kind.direction(outputs, inputs, key, labels))
    there = jnp.max(inputs["attention_mask"], axis=1).astype(outputs.dtype)  # 0 for rows of padding
    return jnp.sum(direction * outputs * there.reshape(-1, *[1] * (outputs.ndim - 1)))
