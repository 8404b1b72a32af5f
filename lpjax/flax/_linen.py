"""Linen: run a module on params with `LowRank` and `Quantized` leaves, and find which axes of its kernels are inputs.

Modules are not changed: within `factored`, calls of `nn.Dense`, `nn.DenseGeneral` and `nn.Embed` whose parameter is
such a leaf are computed here. (flax compares a parameter's shape with its initializer's before the layer sees it, so an
argument of the layer, such as `dot_general`, is not enough.)
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from flax.linen.module import InterceptorContext
from jaxtyping import Array

from lpjax._tree import leaves_with_paths
from lpjax.flax._product import attend, dense, lookup, normalize, sizes_of
from lpjax.weights.dispatch import is_weight
from lpjax.weights.low_rank import LowRank
from lpjax.weights.quantized import Quantized


def factored() -> AbstractContextManager[None]:
    """A context in which linen modules run with `LowRank` and `Quantized` leaves in place of dense weights.

    For code that applies a module itself. Modules with dense weights are not affected.
    """
    return nn.intercept_methods(_intercept)


def apply(module: nn.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """`module.apply(variables, *args, **kwargs)`; leaves of `variables` may be `LowRank` or `Quantized`.

    They may be weights of `nn.Dense`, `nn.DenseGeneral` and `nn.Embed`, alone or within other modules, under `nn.scan`,
    `nn.vmap` (stacked along axis 0) and `nn.remat`. The dense weight of a `LowRank` is never formed. A quantized kernel
    is expanded when it is used, and of a quantized table only the rows that are looked up. A custom `dot_general` is
    called twice, once for each factor.

    Raises:
        ValueError: such a weight is a parameter of another kind of module, is passed to a module that cannot use it, or
            does not have the shape of the layer's weight.
    """
    with factored():
        return module.apply(variables, *args, **kwargs)


def input_axes(
    module: nn.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any
) -> dict[str, int | tuple[int, int]]:
    """How `compress` must view the weights of `module`: path -> number of input axes.

    Traces `module.apply` without computing anything; arrays may be `jax.ShapeDtypeStruct`s.

    Args:
        module, variables, args, kwargs: as for `module.apply`; params as `module.init` or
            `jax.eval_shape(module.init, …)` returns them; some may be factored.

    Returns:
        For each weight of an `nn.Dense`, `nn.DenseGeneral` or `nn.Embed` that was called, under its path in
        `variables["params"]`: the number of axes that it contracts, 1 for a table; or the pair (leading axes,
        contracted axes) if it has further axes in front, such as stacks of `nn.scan` and `nn.vmap` and batch axes of
        `nn.DenseGeneral`. A weight that is stacked along another axis than the first is left out.
    """
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct)}

    def trace(variables: Mapping[str, Any]) -> list[_Weight]:
        seen: list[_Weight] = []

        def record(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: InterceptorContext) -> Any:
            seen.extend(_weight(context.module, _function(context)))
            return next_fun(*args, **kwargs)

        def run(variables: Mapping[str, Any], arrays: dict[int, Any]) -> None:
            args, kwargs = jax.tree.unflatten(structure, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
            apply(module, variables, *args, **kwargs)

        with nn.intercept_methods(record):
            jax.eval_shape(run, variables, arrays)
        return seen

    params = dict(leaves_with_paths(variables.get("params", {})))
    seen = [weight for weight in trace(variables) if weight.path in params]
    stacked = {weight.path for weight in seen if weight.ndim < params[weight.path].ndim}
    if stacked:
        # Trace again with these leaves in boxes, which flax tells each axis that nn.scan or nn.vmap removes. Others
        # are not boxed, because code that reads its variables itself would find the boxes.
        seen = [weight for weight in seen if weight.path not in stacked]
        boxed = dict(variables) | {"params": _boxed(variables["params"], stacked)}
        seen += [weight for weight in trace(boxed) if weight.path in stacked]
    views: dict[str, set[tuple[int, int]]] = {}
    for weight in seen:
        views.setdefault(weight.path, set()).add(_entry(weight, params[weight.path]))
    agreed = {path: entries.pop() for path, entries in views.items() if len(entries) == 1}
    entries = ((path, *agreed[path]) for path in params if path in agreed)
    return {path: (leading, inputs) if leading else inputs for path, leading, inputs in entries if inputs}


@dataclasses.dataclass(frozen=True)
class _Weight:
    """A layer's parameter as the layer sees it; `axes` are the remaining axes of its leaf, if that was boxed."""

    path: str
    shape: tuple[int, ...]
    batch: int
    inputs: int
    axes: tuple[int, ...] | None

    @property
    def ndim(self) -> int:
        return len(self.shape)


def _entry(weight: _Weight, leaf: Any) -> tuple[int, int]:
    """(leading axes, input axes) of a leaf; (0, 0) if its further axes are not in front."""
    extra = leaf.ndim - weight.ndim
    if tuple(leaf.shape[extra:]) != weight.shape or (
        extra and weight.axes not in (None, tuple(range(extra, leaf.ndim)))
    ):
        return 0, 0
    return extra + weight.batch, weight.inputs


def _weight(module: nn.Module, function: Callable[..., Any]) -> list[_Weight]:
    """The layer's own weight in a list; an empty list if `function` does not use one."""
    if function not in _METHODS:
        return []
    name, value = _own(module)
    if value is None:
        return []
    axes = value.axes if isinstance(value, _Probe) else None
    # A box of the user's adds a key to the path, as it does in the tree.
    (inner, value), *others = leaves_with_paths(value if axes is None else value.value)
    if others:
        return []
    path = "/".join((*module.path, name, *([inner] if inner else [])))
    general = isinstance(module, nn.DenseGeneral)
    batch = len(module.batch_dims) if general else 0
    inputs = np.size(module.axis) if general and not is_weight(value) else 1  # others have one axis
    return [_Weight(path, tuple(value.shape), batch, inputs, axes)]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Probe(meta.AxisMetadata[Any]):
    """A box that records which axes of the leaf remain."""

    value: Any
    axes: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> _Probe:
        return _Probe(val, self.axes)

    def add_axis(self, index: int, params: dict[Any, Any]) -> _Probe:
        axes = list(self.axes)
        axes.insert(index if index >= 0 else len(axes) + 1 + index, -1)
        return _Probe(self.value, tuple(axes))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> _Probe:
        axes = list(self.axes)
        del axes[index]
        return _Probe(self.value, tuple(axes))


def _boxed(params: Any, paths: set[str]) -> Any:
    def box(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return _Probe(leaf, tuple(range(leaf.ndim))) if name in paths else leaf

    return jax.tree_util.tree_map_with_path(box, params, is_leaf=is_weight)


class _Misplaced(ValueError):
    """A weight in a place where it cannot be used; not wrapped again on its way up."""


def _function(context: InterceptorContext) -> Callable[..., Any]:
    """The function about to run, which may be a base class's version of an overridden method."""
    method = context.orig_method
    return inspect.unwrap(getattr(method, "func", method))


def _intercept(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: InterceptorContext) -> Any:
    module, method = context.module, _METHODS.get(_function(context))
    if method is not None:
        weight = _weight_in(_own(module)[1])
        if weight is not None:
            return method(module, weight, *args, **kwargs)
    try:
        return next_fun(*args, **kwargs)
    except _Misplaced:
        raise
    except flax.errors.ScopeParamShapeError as error:
        own = [] if module.scope is None else module.scope.variables().get("params", {}).items()
        weights = {"/".join((*module.path, name)): weight for name, value in own if (weight := _weight_in(value))}
        if not weights:
            raise
        kind = type(next(iter(weights.values()))).__name__
        raise _Misplaced(
            f"{', '.join(weights)} is a {kind}, but belongs to {type(module).__name__}; only nn.Dense, "
            f"nn.DenseGeneral and nn.Embed run on factored or quantized weights: leave it out of `select`"
        ) from error
    except (TypeError, ValueError) as error:
        # JAX raises these for anything but an array, such as for the tied table that is passed to a decoder.
        handed = filter(is_weight, jax.tree.leaves((args, kwargs), is_leaf=is_weight))
        if (weight := next(handed, None)) is None:
            raise
        kind = type(weight).__name__
        raise _Misplaced(
            f"{'/'.join(module.path)}, a {type(module).__name__}, was handed a {kind} that it could not use "
            f"({error}): leave the weight that is shared with it out of `select`"
        ) from error


def _own(module: nn.Module) -> tuple[str, Any]:
    """Name and value of a layer's weight; the value is None if there is none yet."""
    name = "embedding" if isinstance(module, nn.Embed) else "kernel"
    return name, None if module.scope is None else module.scope.get_variable("params", name, None)


def _weight_in(value: Any) -> LowRank | Quantized | None:
    """The weight in `value`, without its box, since flax's boxes would shard all its arrays in the same way."""
    if isinstance(value, meta.AxisMetadata):
        leaves = jax.tree.leaves(value, is_leaf=is_weight)
        value = leaves[0] if len(leaves) == 1 else None
    return value if is_weight(value) else None


def _dense(module: nn.Dense, weight: LowRank | Quantized, inputs: Array) -> Array:
    return _general(module, weight, inputs, (jnp.ndim(inputs) - 1,), (), (module.features,))


def _dense_general(module: nn.DenseGeneral, weight: LowRank | Quantized, inputs: Array) -> Array:
    batch = tuple(module.batch_dims)
    if sorted(batch) != list(range(len(batch))):
        raise ValueError(f"`batch_dims` are {batch}; expected leading axes, from 0 on")
    axes, batch_axes = normalize(module.axis, inputs.ndim), normalize(batch, inputs.ndim)
    return _general(module, weight, inputs, axes, batch_axes, sizes_of(module.features))


def _general(
    module: Any,
    weight: LowRank | Quantized,
    inputs: Array,
    axes: tuple[int, ...],
    batch_axes: tuple[int, ...],
    features: tuple[int, ...],
) -> Array:
    shape = jnp.shape(inputs)
    batch = tuple(shape[axis] for axis in batch_axes)
    _check_shape(module, "kernel", weight, (*batch, math.prod(shape[axis] for axis in axes), math.prod(features)))
    bias = None
    if module.use_bias:
        bias = module.param("bias", module.bias_init, (*batch, *features), module.param_dtype)
    return dense(module, _promote(module), inputs, weight, bias, axes=axes, batch_axes=batch_axes, features=features)


def _promote(module: Any) -> Callable[..., Any]:
    return functools.partial(module.promote_dtype, dtype=module.dtype)


def _setup(module: Any, weight: LowRank | Quantized) -> None:
    _check_shape(module, "embedding", weight, (module.num_embeddings, module.features))
    module.embedding = weight  # as nn.Embed sets it, for code that reads `embed.embedding.T`


def _embed(module: Any, weight: LowRank | Quantized, inputs: Array) -> Array:
    return lookup(_promote(module), weight, inputs, module.num_embeddings)


def _attend(module: Any, weight: LowRank | Quantized, query: Array) -> Array:
    return attend(_promote(module), weight, query)


def _check_shape(module: nn.Module, name: str, weight: LowRank | Quantized, expected: tuple[int, ...]) -> None:
    if weight.shape != expected:
        path = "/".join((*module.path, name))
        raise _Misplaced(
            f"{path} is a {type(weight).__name__} of shape {weight.shape}; expected {expected}, inputs by outputs "
            f"of this {type(module).__name__}"
        )


_METHODS: dict[Callable[..., Any], Callable[..., Any]] = {
    inspect.unwrap(method): replacement
    for method, replacement in (
        (nn.Dense.__call__, _dense),
        (nn.DenseGeneral.__call__, _dense_general),
        (nn.Embed.setup, _setup),
        (nn.Embed.__call__, _embed),
        (nn.Embed.attend, _attend),
    )
}
