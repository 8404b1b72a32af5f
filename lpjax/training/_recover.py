"""Recovery without labels: a compressed model is trained to reproduce the outputs of the dense one."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lpjax._check import check_settings
from lpjax._mesh import by_rows, data_mesh, put_sharded, replicated
from lpjax._repr import short_repr
from lpjax.checkpoint import Checkpoint
from lpjax.data.batching import Batch, Tokens, collate, round_up
from lpjax.evaluation.divergence import Divergence, disagreement
from lpjax.models import ModelConfig, device_params
from lpjax.pipeline.outputs import Outputs, hidden_and_outputs, outputs_of
from lpjax.training.fit import CommonSettings, Problem, Progress, fingerprint, fit, updates_per_epoch

_MOST_HELD_OUT = 256


@dataclasses.dataclass(frozen=True)
class Recovery(CommonSettings):
    """Settings of recovery.

    Attributes:
        epochs: passes over the texts.
        batch_size: texts of an update, over all devices.
        learning_rate: peak of AdamW's learning rate, reached after the warm-up; then it falls linearly to 0.
        warmup: share of all updates in which the learning rate rises.
        weight_decay: weight decay of AdamW.
        clip: largest norm of a gradient.
        max_length: largest number of tokens of a text.
        seed: random seed of the order of the texts, and of the choice of held-out ones.
        hidden: weight of the relative squared error of the last hidden states, which is added to the divergence in the
            loss.
        checks: number of checks per epoch on the held-out texts. If the divergence is no smaller than at the best
            check so far, training restarts from that one at a third of the learning rate: steps of AdamW do not get
            smaller near the dense model, so a rate that was right at the start can be too large there.

    Raises:
        ValueError: a value is out of range; names it.
    """

    hidden: float = 1.0
    checks: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, {"checks": 1}, ("hidden",))


@dataclasses.dataclass(frozen=True)
class Recovered:
    """The result of recovery.

    Attributes:
        checkpoint: the model with the least divergence on the held-out texts, possibly the initial one; its weights are
            arrays on the host, in their original dtypes.
        curve: one entry per check, the first at the start: step, epoch, divergence of the outputs on the held-out
            texts, measured in the original dtypes, and from the second on loss, the mean over the updates since the
            last check, and learning_rate, of the last update. Values that are not finite, at a learning rate far too
            high, are infinite.
        best: the entry of `curve` that belongs to `checkpoint`.
        texts: number of training texts.
        held_out: number of held-out texts.
        seconds: time of training, including compilation, over all runs.
    """

    checkpoint: Checkpoint
    curve: tuple[dict[str, float], ...]
    best: dict[str, float]
    texts: int
    held_out: int
    seconds: float

    def __repr__(self) -> str:
        return short_repr(self)


def recover(
    smaller: Checkpoint,
    dense: Checkpoint,
    first: Sequence[str],
    second: Sequence[str] | None = None,
    settings: Recovery | None = None,
    *,
    tokenizer: Any = None,
    snapshot: str | Path | None = None,
    save_every: float = 60.0,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Recovered:
    """Train a factored model on the outputs of the dense one, without labels (distillation, Hinton et al., 1503.02531).

    All weights are trained, dense ones too; factors stay factors. The loss of a text is the `divergence` of the outputs
    plus `hidden` times the relative squared error of the last hidden states from which the outputs are computed. A
    tenth of the texts, at most 256, is held out; several times per epoch the divergence is measured on them: see
    `Recovery.checks`. There is no dropout: the models should agree, not generalize from few labels. Two runs with the
    same settings and texts, on the same machine and number of devices, give the same weights, even if one was
    interrupted and resumed from its snapshot.

    Args:
        smaller: the model to train.
        dense: the dense model, with the same config and head.
        first: n texts, or the first of n pairs.
        second: the second texts.
        settings: by default `Recovery()`.
        tokenizer: a tokenizer of transformers; by default the one in `dense.source`.
        snapshot: file in which the state is saved from time to time, and from which training resumes if it exists, as
            in `finetune`.
        save_every: seconds between snapshots; there is one at every check anyway.
        mesh: devices, along an axis "data"; by default all. A batch is spread over them.
        progress: called with (updates done, updates in all, what) after each update.

    Raises:
        ValueError: the models have different configs or heads, embed a text differently, or have outputs that are not
            finite; there are fewer than two texts; the snapshot is of another run (names the differences); or as
            `tokenize`.
        OSError: another running process writes to `snapshot`, or there is too little disk space for it.
    """
    settings = settings or Recovery()
    kind = _common_outputs(smaller, dense)
    if len(first) < 2:
        raise ValueError(f"`first` has {len(first)} texts; expected 2 or more, because some are held out")
    mesh = data_mesh() if mesh is None else mesh
    order = np.random.default_rng(settings.seed).permutation(len(first)).tolist()
    count = min(_MOST_HELD_OUT, max(1, len(first) // 10))
    held, learnt = (_take(first, second, rows) for rows in (order[:count], order[count:]))
    options: dict[str, Any] = {"tokenizer": tokenizer, "max_length": settings.max_length}
    measure = Divergence(dense, *held, hidden=0, batch_size=settings.batch_size, mesh=mesh, **options)
    tokens, kind = kind.tokenize(dense, *learnt, **options)
    per_epoch = updates_per_epoch(tokens, settings)

    def start() -> dict[str, float]:
        divergence = measure(smaller.params)
        if not math.isfinite(divergence):
            raise ValueError("the outputs of `smaller` or `dense` are not finite on the texts; repair its weights")
        return {"divergence": divergence}

    def check(params: Any) -> dict[str, float]:
        divergence = measure(_as_stored(params, smaller.params))
        return {"divergence": divergence if math.isfinite(divergence) else math.inf}

    digest = hashlib.sha256("\0".join([*first, *(second or ())]).encode("utf-8", "replace")).hexdigest()
    weights = jax.device_put(device_params(dense.params), replicated(mesh))
    problem = Problem(
        dense.config,
        tokens,
        _Teacher(weights, dense.config, kind, tokens, settings, mesh),
        check,
        leading="divergence",
        sign=-1,
        every=-(-per_epoch // settings.checks),
        span=per_epoch,
        about={
            "command": "recover",
            "texts": [len(first), second is not None, digest],
            "weights": fingerprint(smaller.params),
            "dense": fingerprint(dense.params),
        },
        start=start,
        loss=_loss_of(kind, settings.hidden),
    )
    run = fit(problem, smaller.params, settings, mesh=mesh, snapshot=snapshot, save_every=save_every, progress=progress)
    assert run.log.best is not None
    net = dataclasses.replace(smaller, params=_as_stored(run.best.params, smaller.params))
    curve = tuple(run.log.curve)
    return Recovered(net, curve, curve[run.log.best], len(tokens), count, run.log.seconds)


def _take(
    first: Sequence[str], second: Sequence[str] | None, rows: Sequence[int]
) -> tuple[list[str], list[str] | None]:
    return [first[i] for i in rows], None if second is None else [second[i] for i in rows]


def _common_outputs(smaller: Checkpoint, dense: Checkpoint) -> Outputs:
    """The kind of outputs that both models have.

    Raises:
        ValueError: the kinds differ.
    """
    kind = outputs_of(dense)
    # A model without a folder does not say how it embeds a text.
    like = dataclasses.replace(smaller, source=dense.source) if smaller.source is None else smaller
    if smaller.config != dense.config or outputs_of(like) != kind:
        raise ValueError(
            "`smaller` and `dense` have different configs or heads, or embed a text differently; expected one model, "
            "compressed and not"
        )
    return kind


def _as_stored(params: Any, before: Any) -> Any:
    """`params` in the dtypes of `before`: a half-precision model is trained in float32 and saved in half precision."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True)
    leaves = [x if x.dtype == old.dtype else x.astype(old.dtype) for x, old in pairs]
    return jax.tree.unflatten(jax.tree.structure(before), leaves)  # holds dtypes of quantized matrices


class _Teacher(NamedTuple):
    """The dense model, whose hidden states and outputs for each batch are the targets."""

    params: Any
    config: ModelConfig
    kind: Outputs
    tokens: Tokens
    settings: Recovery
    mesh: Mesh

    def __call__(self, batch: Batch, step: int) -> tuple[dict[str, Array], tuple[Array, Array], Array]:
        rows = round_up(self.settings.batch_size, self.mesh, self.config)
        epoch, before = divmod(step, updates_per_epoch(self.tokens, self.settings))
        rng = np.random.default_rng([self.settings.seed, epoch, before + 1])
        inputs = self.kind.prepare(collate(self.tokens, batch, rows), self.tokens, rng)
        weights = (np.arange(rows) < len(batch.rows)).astype(np.float32)  # 0 for padding
        targets = _teach(self.params, self.config, put_sharded(inputs, by_rows(self.mesh)), self.kind)
        inputs, weights = put_sharded(_one_part((inputs, weights)), by_rows(self.mesh, axis=1))
        return inputs, _one_part(targets), weights


def _one_part(tree: Any) -> Any:
    """A batch in one part, as `train_step` takes it."""
    return jax.tree.map(lambda x: x[None], tree)


@functools.partial(jax.jit, static_argnums=(1, 3))
def _teach(params: dict[str, Any], config: ModelConfig, inputs: dict[str, Array], kind: Outputs) -> tuple[Array, Array]:
    with jax.default_matmul_precision("highest"):
        return hidden_and_outputs(params, config, inputs, kind)


@functools.cache
def _loss_of(kind: Outputs, hidden: float) -> Any:
    """The same function for the same arguments, so that it is compiled once for all runs."""
    return functools.partial(_loss, kind=kind, hidden=hidden)


def _loss(
    params: dict[str, Any],
    config: ModelConfig,
    inputs: dict[str, Array],
    targets: tuple[Array, Array],
    weights: Float[Array, " rows"],
    key: Array | None,
    dtype: np.dtype,
    *,
    kind: Outputs,
    hidden: float,
) -> Array:
    """Σ weight · loss over the rows."""
    with jax.default_matmul_precision("highest"):
        outputs = hidden_and_outputs(params, config, inputs, kind)
    return jnp.sum(disagreement(outputs, targets, inputs, kind, hidden) * weights)
