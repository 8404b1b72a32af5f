"""One training step: loss, gradient, optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from lpjax.models import ModelConfig, classify
from lpjax.models.layers import at_least_float32
from lpjax.weights.dispatch import floats_of, is_weight, with_places
from lpjax.weights.parts import parts_of

Params = dict[str, Any]


class TrainState(NamedTuple):
    """The state that a step updates: weights in float32, and the optimizer's moments."""

    params: Params
    moments: optax.OptState


class Schedule(NamedTuple):
    """Linear warm-up over the first updates to `peak`, then linear decay towards 0 at the end of the last."""

    peak: float
    warmup_steps: int
    total_steps: int

    def __call__(self, step: int) -> float:
        """Learning rate of the update number `step`, from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        return self.peak * (self.total_steps - step) / (self.total_steps - self.warmup_steps)


def begin(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The initial state."""
    return TrainState(params, optimizer.init(_as_dicts(floats_of(params))))


def _as_dicts(tree: Any) -> Any:
    """`tree` with a dict {"left", "right", …} for each weight, since optimizers put non-arrays in place of leaves."""

    def plain(leaf: Any) -> Any:
        return {name: part for name, part in parts_of(leaf).items() if part is not None} if is_weight(leaf) else leaf

    return jax.tree.map(plain, tree, is_leaf=is_weight)


_SCALES = ("scales", "steps")  # fields of `Quantized`, and last parts of keys of `_as_dicts`
_PACE = 32  # 1/32 is about the magnitude of a weight


def _units(floats: Any) -> Any:
    """The change of each leaf in a unit step of the optimizer: 1, or proportional to its size for scales and steps.

    A scale is far smaller than a weight, and changes all weights that it scales, so it must not move as far as a
    weight. Scales and steps move relative to their own size, as fast as weights do on average.
    """

    def unit(path: Any, leaf: Any) -> Any:
        return _PACE * jnp.abs(leaf) if getattr(path[-1], "name", None) in _SCALES else 1.0

    return jax.tree_util.tree_map_with_path(unit, floats)


def decays(params: Mapping[str, Any], no_decay: frozenset[str]) -> Any:
    """Mask of the leaves that decay: all but scales and steps of codes, and those whose last key is in `no_decay`."""

    def decays(path: Any, _: Any) -> bool:
        key = path[-1].key
        return key not in no_decay and key.split(".")[-1] not in _SCALES

    return jax.tree_util.tree_map_with_path(decays, params)


@functools.lru_cache
def make_optimizer(weight_decay: float, clip: float, no_decay: frozenset[str]) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) after clipping of the global norm, at a learning rate of 1.

    All weights decay but those in `no_decay`, a trait of the architecture. The learning rate is an argument of the
    step, so that one compilation serves all schedules.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.add_decayed_weights(weight_decay, mask=functools.partial(decays, no_decay=no_decay)),
    )


def loss_sum(
    params: Params,
    config: ModelConfig,
    inputs: dict[str, Array],
    labels: Float[Array, " rows"],
    weights: Float[Array, " rows"],
    key: Array | None,
    dtype: np.dtype,
) -> Array:
    """Σ weight · loss over the rows: cross-entropy, or for a model of one output the squared error."""
    logits = classify(params, config, inputs, dtype=dtype, dropout_key=key)
    if logits.shape[1] == 1:
        losses = jnp.square(logits[:, 0] - labels)
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))
    return jnp.sum(losses * weights)


@functools.partial(jax.jit, static_argnames=("config", "optimizer", "dtype", "loss"), donate_argnames=("state",))
def train_step(
    state: TrainState,
    inputs: dict[str, Array],
    labels: Any,
    weights: Float[Array, "parts rows"],
    key: Array,
    rate: Float[Array, ""],
    *,
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    dtype: np.dtype,
    loss: Callable[..., Array] = loss_sum,
) -> tuple[TrainState, Array]:
    """One update from the mean loss of a batch; returns the new state and that loss.

    The batch comes in parts, whose gradients are accumulated: the update is that of the whole batch, with memory for
    one part only.

    Args:
        state: from `begin` or the step before; its buffers are reused.
        inputs: inputs of `classify`, each (parts, rows, length).
        labels: label indices or scores, or other targets of `loss`, (parts, rows, …).
        weights: 1 for an example, 0 for padding.
        key: PRNG key for dropout.
        rate: learning rate.
        config, optimizer, dtype: config, optimizer and dtype of the computation; static.
        loss: loss summed over the rows, with the arguments of `loss_sum`; static.
    """

    floats = floats_of(state.params)

    def part(microbatch: tuple[dict[str, Array], Any, Array, Array]) -> tuple[Array, Params]:
        inputs, labels, weights, key = microbatch

        def of(floats: Params) -> Array:
            return loss(with_places(floats, state.params), config, inputs, labels, weights, key, dtype)

        return jax.value_and_grad(of)(floats)

    parts = (inputs, labels, weights, jax.random.split(key, weights.shape[0]))
    if weights.shape[0] == 1:
        lost, grads = part(jax.tree.map(lambda x: x[0], parts))
    else:

        def add(so_far: Any, microbatch: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, so_far, part(microbatch)), None

        zero = (jnp.zeros((), at_least_float32(dtype)), jax.tree.map(jnp.zeros_like, floats))
        (lost, grads), _ = jax.lax.scan(add, zero, parts)
    total = jnp.sum(weights)
    units = _units(floats)
    grads = jax.tree.map(lambda g, unit: g / total * unit, grads, units)
    with jax.numpy_dtype_promotion("standard"):  # optax needs it, whatever the caller has set
        updates, moments = optimizer.update(_as_dicts(grads), state.moments, _as_dicts(floats))
    leaves, structure = jax.tree.flatten(floats)
    steps = zip(leaves, jax.tree.leaves(updates), jax.tree.leaves(units), strict=True)
    moved = [leaf - rate * unit * update for leaf, update, unit in steps]
    return TrainState(with_places(jax.tree.unflatten(structure, moved), state.params), moments), lost / total
