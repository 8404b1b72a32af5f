"""Recovery without labels: a smaller net is trained to say of texts what the dense one says."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lpjax._check import check_settings
from lpjax._mesh import by_rows, data_mesh, put_sharded, replicated
from lpjax.checkpoint import Checkpoint
from lpjax.data.batching import Batch, Tokens, collate, round_up, shuffled
from lpjax.evaluation.divergence import Divergence, disagreement
from lpjax.models import ModelConfig, device_params
from lpjax.pipeline.outputs import Outputs, hidden_and_outputs, outputs_of

Progress = Callable[[int, int, str], None]

_MOST_HELD_OUT = 256
_SLOWER = 1 / 3  # what is left of the learning rate after each way back


@dataclasses.dataclass(frozen=True)
class Recovery:
    """How to train.

    Attributes:
        epochs: passes over the texts.
        batch_size: texts of an update, over all devices.
        learning_rate: peak of AdamW's, reached after the warm-up, from where it falls linearly to 0.
        warmup: share of all updates that it rises in.
        weight_decay: of AdamW.
        clip: largest norm of a gradient.
        hidden: what the loss has of the last hidden states' relative squared error, beside the divergence.
        max_length: tokens of a text at most.
        checks: how often an epoch the texts held out are measured. Where a net is further from the dense one than the
            best so far was, training goes on from that, at a third of the rate: nets that are near need small steps,
            and AdamW's are of one size however near they are.
        seed: of the order, and of the texts that are held out.

    Raises:
        ValueError: naming a value out of range.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    hidden: float = 1.0
    max_length: int = 128
    checks: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"epochs": 1, "batch_size": 1, "max_length": 1, "checks": 1, "seed": 0}
        check_settings(self, counts, ("learning_rate", "warmup", "weight_decay", "clip", "hidden"))


@dataclasses.dataclass(frozen=True)
class Recovered:
    """What came of it.

    Attributes:
        checkpoint: the net of the least divergence on the texts held out, which may be that of the start; its weights
            are arrays on the host, of the dtypes that they had.
        curve: an entry a check, the first at the start: step, epoch, divergence of the outputs for the texts held out,
            of the net in the dtypes that it is handed back in, and from the second on loss, the mean over the updates
            since the last, and the learning_rate of the last of them. What is not finite, of a rate far too high, is
            infinite.
        best: that of `checkpoint`, one of `curve`.
        texts: how many were trained on; held_out: how many were not.
        seconds: of training, with compilation, of all runs of it together.
    """

    checkpoint: Checkpoint
    curve: tuple[dict[str, float], ...]
    best: dict[str, float]
    texts: int
    held_out: int
    seconds: float


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
    """Train a factored net on the outputs of the dense one, without labels (distillation, Hinton et al., 1503.02531).

    All weights are trained, those that are no pairs, too. The loss of a text is the `divergence` of the outputs plus
    `hidden` times the relative squared error of the last hidden states that the outputs are made of. Factors stay
    factors; a tenth of the texts, at most 256, is held out to check by, several times an epoch, whether the net comes
    nearer: see `Recovery.checks`. There is no dropout: the nets should agree, not generalize from few labels.
    Two runs of the same settings and texts, on the same machine and number of devices, give the same weights, also if
    one was interrupted and went on from its snapshot.

    Args:
        smaller: the net to be trained.
        dense: the one to agree with, of the same config and head.
        first: n texts, or the first of n pairs.
        second: the second texts.
        settings: by default `Recovery()`.
        tokenizer: of transformers; by default the one in `dense.source`.
        snapshot: file to save the state in now and then, and to go on from if it is there, as in `finetune`.
        save_every: seconds between snapshots; there is one at every check anyway.
        mesh: devices, along an axis "data"; by default all. A batch is spread over them.
        progress: called with (updates done, updates in all, what) after each.

    Raises:
        ValueError: nets of different configs or heads, or that embed a text differently, or whose outputs are not
            finite; fewer than two texts, a snapshot of another run (naming what differs), or what `tokenize` refuses.
        OSError: another run that is alive writes to `snapshot`, or there is too little space beside it.
    """
    # Not above: optax takes a seventh of a second to import, and `import lpjax` comes by here.
    from lpjax.training.fit import Run, fit, resumed
    from lpjax.training.snapshot import Log
    from lpjax.training.step import Schedule, TrainState, begin, make_optimizer, train_step

    settings = settings or Recovery()
    config = dense.config
    kind = outputs_of(dense)
    # A net without a folder does not say how it embeds a text.
    like = dataclasses.replace(smaller, source=dense.source) if smaller.source is None else smaller
    if smaller.config != config or outputs_of(like) != kind:
        raise ValueError(
            "`smaller` and `dense` have different configs or heads, or embed a text differently; expected one net, "
            "compressed and not"
        )
    if len(first) < 2:
        raise ValueError(f"`first` has {len(first)} texts; expected 2 or more, for some are held out")
    mesh = data_mesh() if mesh is None else mesh
    order = np.random.default_rng(settings.seed).permutation(len(first))
    count = min(_MOST_HELD_OUT, max(1, len(first) // 10))

    def some(texts: Sequence[str] | None, places: np.ndarray) -> list[str] | None:
        return None if texts is None else [texts[int(i)] for i in places]

    held, learnt = order[:count], order[count:]
    measure = Divergence(
        dense, some(first, held) or [], some(second, held), hidden=0, tokenizer=tokenizer,
        batch_size=settings.batch_size, max_length=settings.max_length, mesh=mesh,
    )  # fmt: skip
    tokens, kind = kind.tokenize(
        dense, some(first, learnt) or [], some(second, learnt), tokenizer=tokenizer, max_length=settings.max_length
    )
    rows = round_up(settings.batch_size, mesh, config)
    per_epoch = -(-len(tokens) // settings.batch_size)
    total = settings.epochs * per_epoch
    schedule = Schedule(settings.learning_rate, min(round(settings.warmup * total), total - 1), total)
    optimizer = make_optimizer(settings.weight_decay, settings.clip, config.no_decay)
    loss = _loss_of(kind, settings.hidden)

    teacher = jax.device_put(device_params(dense.params), replicated(mesh))
    state = begin(device_params(smaller.params, jnp.float32), optimizer)
    # On the host, with the moments: on the devices there is no second copy of any.
    run = Run(state, jax.device_get(state), Log(_about(smaller, dense, first, second, settings)))
    if not resumed(run, snapshot, from_start=True):
        began = time.perf_counter()
        divergence = measure(smaller.params)
        if not math.isfinite(divergence):
            raise ValueError("the outputs of `smaller` or `dense` are not finite on the texts; mend its weights")
        run.log.curve.append({"step": 0, "epoch": 0, "divergence": divergence})
        run.log.best, run.log.seconds = 0, time.perf_counter() - began
    run.state, log = jax.device_put(run.state, replicated(mesh)), run.log
    between = -(-per_epoch // settings.checks)

    def update(state: TrainState, batch: Batch, step: int) -> tuple[TrainState, Array]:
        inputs, weights = _batch(tokens, batch, rows)
        epoch, before = divmod(step, per_epoch)
        inputs = kind.prepare(inputs, tokens, np.random.default_rng([settings.seed, epoch, before + 1]))
        wanted = _teach(teacher, config, put_sharded(inputs, by_rows(mesh)), kind)
        return train_step(
            state,
            put_sharded(_part(inputs), by_rows(mesh, axis=1)),
            _part(wanted),
            put_sharded(_part(weights), by_rows(mesh, axis=1)),
            jax.random.key(0),  # of no dropout
            jnp.float32(_share(log.curve) * schedule(step)),
            config=config,
            optimizer=optimizer,
            dtype=np.dtype(np.float32),
            loss=loss,
        )

    def is_due(step: int) -> bool:
        within = (step - 1) % per_epoch + 1
        return within % between == 0 or within == per_epoch

    def check(run: Run) -> None:
        mean = _finite(np.mean(np.asarray(jax.device_get(log.losses), np.float64)))
        found = _finite(measure(_as_stored(run.state.params, smaller.params)))
        rate = _share(log.curve) * schedule(log.step - 1)
        log.curve.append(
            {"step": log.step, "epoch": log.step / per_epoch, "divergence": found, "loss": mean, "learning_rate": rate}
        )
        log.losses = []
        assert log.best is not None
        if found < log.curve[log.best]["divergence"]:
            run.best, log.best = jax.device_get(run.state), len(log.curve) - 1
        else:
            run.state = put_sharded(run.best, replicated(mesh))

    fit(
        run,
        total=total,
        per_epoch=per_epoch,
        batches=lambda epoch: shuffled(tokens, settings.batch_size, np.random.default_rng([settings.seed, epoch])),
        update=update,
        is_due=is_due,
        check=check,
        may_save=lambda run: all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(run.state)),
        snapshot=None if snapshot is None else Path(snapshot),
        save_every=save_every,
        progress=progress,
    )
    assert log.best is not None
    net = dataclasses.replace(smaller, params=_as_stored(run.best.params, smaller.params))
    return Recovered(net, tuple(log.curve), log.curve[log.best], len(tokens), count, log.seconds)


def _share(curve: Sequence[Mapping[str, float]]) -> float:
    """What is left of the learning rate after as many ways back as the curve tells."""
    share, least = 1.0, math.inf
    for entry in curve:
        if entry["divergence"] < least:
            least = entry["divergence"]
        else:
            share *= _SLOWER
    return share


def _about(
    smaller: Checkpoint, dense: Checkpoint, first: Sequence[str], second: Sequence[str] | None, settings: Recovery
) -> dict[str, Any]:
    """What must be the same if a run goes on."""
    from lpjax.training.fit import fingerprint

    digest = hashlib.sha256("\0".join([*first, *(second or ())]).encode("utf-8", "replace")).hexdigest()
    return {
        "command": "recover",
        "texts": [len(first), second is not None, digest],
        "net": smaller.config.to_json(),
        "weights": fingerprint(smaller.params),
        "dense": fingerprint(dense.params),
        "settings": dataclasses.asdict(settings),
    }


def _as_stored(params: Any, before: Any) -> Any:
    """In the dtypes that they had: trained in float32, a net in half precision is saved as one."""
    return jax.tree.map(lambda x, old: x if x.dtype == old.dtype else x.astype(old.dtype), params, before)


def _finite(value: Any) -> float:
    return float(value) if math.isfinite(value) else math.inf


def _batch(tokens: Tokens, batch: Batch, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs of a batch, and 1 for its texts, 0 for padding."""
    return collate(tokens, batch, rows), (np.arange(rows) < len(batch.rows)).astype(np.float32)


def _part(tree: Any) -> Any:
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
    wanted: tuple[Array, Array],
    weights: Float[Array, " rows"],
    key: Array | None,
    dtype: np.dtype,
    *,
    kind: Outputs,
    hidden: float,
) -> Array:
    """Σ weight · loss over the rows."""
    with jax.default_matmul_precision("highest"):
        found = hidden_and_outputs(params, config, inputs, kind)
    return jnp.sum(disagreement(found, wanted, inputs, kind, hidden) * weights)
