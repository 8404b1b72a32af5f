"""NNX: replace a model's `nnx.Linear`, `nnx.LinearGeneral` and `nnx.Embed` by factored or quantized ones."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict
from jaxtyping import Array

from lpjax.compression import LayerRecord, compress
from lpjax.compression.in_place import check_in_place, require_fitting
from lpjax.flax._product import attend, dense, lookup, normalize, sizes_of
from lpjax.select import InputAxes, Select, exactly, matrix_view, select_paths
from lpjax.solvers import Solution
from lpjax.weights.low_rank import LowRank
from lpjax.weights.quantized import Quantized


class Codes(nnx.Variable[Any]):
    """Packed codes of a quantized matrix, and the order of their positions; not trained."""


class QuantizedMatrix(nnx.Module):
    """A `Quantized` matrix whose `scales` and `steps` are parameters of the type `kind`, and whose codes are not."""

    def __init__(self, matrix: Quantized, kind: type[nnx.Variable[Any]] = nnx.Param):
        arrays = jax.tree.map(jnp.asarray, matrix)
        self.codes = nnx.List([Codes(run) for run in arrays.codes])
        self.order = nnx.data(None) if arrays.order is None else Codes(arrays.order)
        self.scales = kind(arrays.scales)
        self.steps = nnx.data(None) if arrays.steps is None else kind(arrays.steps)
        self.runs, self.axis, self.group, self.dtype = matrix.runs, matrix.axis, matrix.group, matrix.dtype

    def __getitem__(self, index: Any) -> Quantized:
        """The matrix, read by `[...]` like a variable."""
        del index
        return Quantized(
            codes=tuple(run[...] for run in self.codes),
            scales=self.scales[...],
            steps=None if self.steps is None else self.steps[...],
            order=None if self.order is None else self.order[...],
            runs=self.runs,
            axis=self.axis,
            group=self.group,
            dtype=self.dtype,
        )


Factor = nnx.Variable[Any] | QuantizedMatrix


class _Linear(nnx.Module):
    """An `nnx.Linear` or `nnx.LinearGeneral` with a kernel of another kind."""

    def __init__(self, dense: nnx.Linear | nnx.LinearGeneral):
        self.bias = dense.bias if dense.bias is not None else nnx.data(None)
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.axis = getattr(dense, "axis", (-1,))
        self.batch_axis = getattr(dense, "batch_axis", FrozenDict({}))
        self.use_bias, self.dtype, self.param_dtype = dense.use_bias, dense.dtype, dense.param_dtype
        self.precision, self.promote_dtype = dense.precision, dense.promote_dtype
        self.dot_general = dense.dot_general
        self.dot_general_cls = getattr(dense, "dot_general_cls", None)
        self.preferred_element_type = dense.preferred_element_type

    @property
    def kernel(self) -> LowRank | Quantized:
        """The kernel."""
        raise NotImplementedError

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """The layer's output."""
        optional = {"out_sharding": out_sharding, "preferred_element_type": self.preferred_element_type}
        return dense(
            self,
            _promote(self),
            inputs,
            self.kernel,
            None if self.bias is None else self.bias[...],
            axes=normalize(self.axis, inputs.ndim),
            batch_axes=normalize(tuple(self.batch_axis), inputs.ndim),
            features=sizes_of(self.out_features),
            **{name: value for name, value in optional.items() if value is not None},
        )


class FactoredLinear(_Linear):
    """An `nnx.Linear` or `nnx.LinearGeneral` whose kernel is `left @ right`, with its other attributes unchanged.

    Attributes:
        left: left factor, shape (*batch, ∏ in_features, rank); a parameter or a `QuantizedMatrix`.
        right: right factor, shape (*batch, rank, ∏ out_features); as `left`.
    """

    def __init__(self, dense: nnx.Linear | nnx.LinearGeneral, left: Factor, right: Factor):
        super().__init__(dense)
        self.left, self.right = left, right

    @property
    def kernel(self) -> LowRank:
        """The factored kernel."""
        return LowRank(self.left[...], self.right[...])


class QuantizedLinear(_Linear):
    """An `nnx.Linear` or `nnx.LinearGeneral` whose kernel is quantized, with its other attributes unchanged.

    Attributes:
        matrix: kernel, shape (*batch, ∏ in_features, ∏ out_features).
    """

    def __init__(self, dense: nnx.Linear | nnx.LinearGeneral, matrix: QuantizedMatrix):
        super().__init__(dense)
        self.matrix = matrix

    @property
    def kernel(self) -> Quantized:
        """The quantized kernel."""
        return self.matrix[...]


class _Embed(nnx.Module):
    """An `nnx.Embed` with a table of another kind."""

    def __init__(self, dense: nnx.Embed):
        self.num_embeddings, self.features = dense.num_embeddings, dense.features
        self.dtype, self.param_dtype, self.promote_dtype = dense.dtype, dense.param_dtype, dense.promote_dtype

    @property
    def embedding(self) -> LowRank | Quantized:
        """The table."""
        raise NotImplementedError

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Rows of the table; NaN for ids out of range, as in `nnx.Embed`."""
        return lookup(_promote(self), self.embedding, inputs, self.num_embeddings, out_sharding=out_sharding)

    def attend(self, query: Array, out_sharding: Any = None) -> Array:
        """Inner products of `query` (..., features) with all rows: (..., num_embeddings)."""
        return attend(_promote(self), self.embedding, query, out_sharding=out_sharding)


class FactoredEmbed(_Embed):
    """An `nnx.Embed` whose table is `left @ right`, with its other attributes unchanged.

    Attributes:
        left: left factor, shape (num_embeddings, rank); a parameter or a `QuantizedMatrix`.
        right: right factor, shape (rank, features); as `left`.
    """

    def __init__(self, dense: nnx.Embed, left: Factor, right: Factor):
        super().__init__(dense)
        self.left, self.right = left, right

    @property
    def embedding(self) -> LowRank:
        """The factored table."""
        return LowRank(self.left[...], self.right[...])


class QuantizedEmbed(_Embed):
    """An `nnx.Embed` whose table is quantized, with its other attributes unchanged.

    Attributes:
        matrix: table, shape (num_embeddings, features).
    """

    def __init__(self, dense: nnx.Embed, matrix: QuantizedMatrix):
        super().__init__(dense)
        self.matrix = matrix

    @property
    def embedding(self) -> Quantized:
        """The quantized table."""
        return self.matrix[...]


def _promote(layer: Any) -> Callable[..., Any]:
    return lambda *arrays, **options: layer.promote_dtype(arrays, dtype=layer.dtype, **options)


def compress_nnx(
    model: nnx.Module,
    *,
    select: Select,
    keep: float | None = None,
    rank: int | None = None,
    solver: str | Callable[..., Solution] | None = None,
    p: float | None = None,
    **options: Any,
) -> tuple[LayerRecord, ...]:
    """Replace chosen layers of an NNX model, in place, by `FactoredLinear` and `FactoredEmbed`.

    Parameters are chosen by their paths, such as "encoder/layers/0/attention/query/kernel". A layer that occurs several
    times in the model stays one layer, and layers that share a kernel share its factors. The parameters of the new
    layers are `left` and `right`, of the kernel's type (`nnx.Param`), without its metadata: a sharding of the dense
    kernel does not fit two thin ones. A layer that is already factored is chosen by the path that its dense weight had,
    and gets smaller factors, as by `compress`. Extra leading axes, as from `nnx.vmap`, are taken for a stack of layers.

    The new structure depends only on the shapes, `select`, and `keep` or `rank`. So to restore a saved state, compress
    a fresh model in the same way and call `nnx.update`.

    Args:
        model: model to compress in place; it changes only after all layers are solved.
        select, keep, rank, solver, p: as for `compress`, with its defaults.
        **options: `statistics`, `weighting`, `row_weights`, `rows`, `batch_size`, `progress`, and the solver's, as
            for `compress`. Single entries are not supported.

    Returns:
        A record of each selected parameter.

    Raises:
        ValueError: as `compress`; or a selected parameter is not a weight of an `nnx.Linear`, `nnx.LinearGeneral` or
            `nnx.Embed`, also belongs to another module, or belongs to a layer that cannot be replaced. The model
            is then unchanged.
    """
    check_in_place(options, "NNX")
    options["sparse_share"] = 0.0  # tables would have some by default with a calibration
    parameters = _find(model)
    factored = _factored(parameters)
    axes: InputAxes = {path: entry for path, uses in parameters.items() if (entry := _input_axes(uses)) is not None}
    tree = collections.OrderedDict((path, uses[0].param[...]) for path, uses in parameters.items())
    for path, (layer, *_) in factored.items():
        tree[path] = getattr(layer, _PAIRS[type(layer)])
        if stacked := tree[path].ndim - 2:
            axes[path] = (stacked, 1)
    chosen = select_paths(tree, select, axes)
    dense = [path for path in chosen if path not in factored]
    unfit = [f"{path} ({fault})" for path in dense if (fault := _fault(parameters[path], path in axes))]
    require_fitting(unfit, ("nnx.Linear", "nnx.LinearGeneral", "nnx.Embed"))
    params, records = compress(
        tree,
        select=exactly(chosen),
        keep=keep,
        rank=rank,
        solver=solver,
        p=p,
        input_axes=axes,
        **options,
    )
    layers: dict[int, nnx.Module] = {}
    for path in chosen:
        if isinstance(pair := params[path], LowRank) and pair is not tree[path]:
            if path in factored:
                kind = type(factored[path][0].left)
                left, right = kind(jnp.asarray(pair.left)), kind(jnp.asarray(pair.right))
                for layer in factored[path]:
                    layer.left, layer.right = left, right
            else:
                layers |= _layers_of(parameters[path], pair)
    _swap(model, layers, set())
    return records


def put_weights_nnx(model: nnx.Module, weights: Mapping[str, LowRank | Quantized]) -> None:
    """Replace layers of an NNX model, in place, by layers with the given weights.

    They become `FactoredLinear`, `FactoredEmbed`, `QuantizedLinear` and `QuantizedEmbed`. The scales and steps of a
    quantized matrix are parameters, of the dense weight's type; its codes are `Codes`.

    Args:
        model: model to change in place.
        weights: path of a dense parameter -> its replacement, of shape (*stack of layers, inputs, outputs).

    Raises:
        ValueError: as `compress_nnx` for parameters that cannot be replaced; a path that is not a parameter, or a
            weight of another shape. The model is then unchanged.
    """
    parameters = _find(model)
    if unknown := sorted(weights.keys() - parameters.keys()):
        raise ValueError(f"`weights` names {', '.join(unknown[:5])}, which are not parameters of the model")
    for path, weight in weights.items():
        entry = _input_axes(uses := parameters[path])
        if fault := _fault(uses, entry is not None):
            raise ValueError(f"`weights` names {path}, which cannot be replaced: {fault}")
        assert entry is not None
        view = matrix_view(uses[0].param[...], entry if isinstance(entry, tuple) else (0, entry))
        if weight.shape != (shape := (*view.stack, view.inputs, view.outputs)):
            raise ValueError(f"`weights` has {path} of shape {weight.shape}; expected {shape}")
    layers: dict[int, nnx.Module] = {}
    for path, weight in weights.items():
        layers |= _layers_of(parameters[path], weight)
    _swap(model, layers, set())


def _layers_of(uses: list[_Use], weight: LowRank | Quantized) -> dict[int, nnx.Module]:
    """Id of each layer that uses a parameter -> the layer that replaces it; all share their parameters."""
    kind = type(uses[0].param)

    def held(matrix: Any) -> Any:
        return QuantizedMatrix(matrix, kind) if isinstance(matrix, Quantized) else kind(jnp.asarray(matrix))

    makers: tuple[Any, Any] = (QuantizedLinear, QuantizedEmbed)
    parts = [held(weight)] if isinstance(weight, Quantized) else [held(weight.left), held(weight.right)]
    if isinstance(weight, LowRank):
        makers = FactoredLinear, FactoredEmbed
    return {id(use.owner): makers[isinstance(use.owner, nnx.Embed)](use.owner, *parts) for use in uses}


_WEIGHT: dict[type, str] = {nnx.Linear: "kernel", nnx.LinearGeneral: "kernel", nnx.Embed: "embedding"}


_PAIRS: dict[type, str] = {FactoredLinear: "kernel", FactoredEmbed: "embedding"}


class _Use(NamedTuple):
    """A parameter in one of its owners; `fixed` if the owner cannot be replaced in its container."""

    param: nnx.Param[Any]
    owner: Any
    name: str
    fixed: bool


def _find(model: nnx.Module) -> dict[str, list[_Use]]:
    """Every parameter with all its uses, under its first path, as `nnx.state` names it."""
    paths: dict[int, str] = {}
    uses: dict[int, list[tuple[nnx.Param[Any], Any, str]]] = {}
    seen: set[int] = set()
    fixed: set[int] = set()

    def visit(node: Any, path: tuple[str, ...], owner: Any, replaceable: bool) -> None:
        if isinstance(node, nnx.Param):
            paths.setdefault(id(node), "/".join(path))
            uses.setdefault(id(node), []).append((node, owner, path[-1]))
        if not replaceable:
            fixed.add(id(node))
        if isinstance(node, nnx.Variable) or id(node) in seen:
            return
        if not isinstance(node, tuple):  # children of a tuple may be replaceable through one holder but not another
            seen.add(id(node))
        inner = replaceable if isinstance(node, tuple) else isinstance(node, _MUTABLE)
        for key, child in _children(node):
            visit(child, (*path, str(key)), node, inner)

    visit(model, (), None, False)
    return {
        paths[key]: [_Use(param, owner, name, id(owner) in fixed) for param, owner, name in uses[key]] for key in paths
    }


def _factored(parameters: dict[str, list[_Use]]) -> dict[str, list[Any]]:
    """Layers that are already factored, by the path of their dense weight.

    Their factors are removed from `parameters`.
    """
    layers = {}
    for path, uses in list(parameters.items()):
        owner, (stem, slash, name) = uses[0].owner, path.rpartition("/")
        if type(owner) in _PAIRS and name in ("left", "right"):
            layers[f"{stem}{slash}{_PAIRS[type(owner)]}"] = [use.owner for use in uses]
            del parameters[path]
    return layers


_MUTABLE = (nnx.Pytree, list, dict)


def _children(node: Any) -> list[tuple[Any, Any]]:
    """The children of a container, as (key, child), in nnx's order; none for anything else."""
    if isinstance(node, list | tuple | nnx.List):
        return list(zip(getattr(node, "_fields", range(len(node))), node, strict=True))
    if isinstance(node, dict | nnx.Pytree):
        items = node.items() if isinstance(node, dict) else vars(node).items()
        named = [(key, child) for key, child in items if not str(key).startswith("_pytree__")]
        return sorted(named, key=lambda item: str(item[0]))
    leaves, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    return [(jax.tree_util.keystr(path, simple=True), child) for path, child in leaves if path]


def _input_axes(uses: list[_Use]) -> int | tuple[int, int] | None:
    """An entry of `input_axes`; None if the weight is not a matrix, or its layers view it differently."""
    views = {_view(use) for use in uses}
    entry = views.pop()
    if views or entry is None:
        return None
    return entry if entry[0] else entry[1]


def _view(use: _Use) -> tuple[int, int] | None:
    owner: Any = use.owner
    if _WEIGHT.get(type(owner)) != use.name:
        return None
    batch, inputs, outputs = (), (), ()
    if isinstance(owner, nnx.Embed):
        inputs, outputs = (owner.num_embeddings,), (owner.features,)
    else:
        batch = tuple(getattr(owner, "batch_axis", {}).values())
        inputs, outputs = sizes_of(owner.in_features), sizes_of(owner.out_features)
    shape, expected = use.param[...].shape, (*batch, *inputs, *outputs)
    stacked = len(shape) - len(expected)
    if stacked < 0 or shape[stacked:] != expected:
        return None
    return stacked + len(batch), len(inputs)


def _fault(uses: list[_Use], viewed: bool) -> str:
    """Why a parameter cannot be factored in place; empty if it can."""
    for use in uses:
        if _WEIGHT.get(type(use.owner)) != use.name:
            return f"{use.name} of {type(use.owner).__name__}"
        if use.fixed:
            return "its layer is the model itself, or in a container that cannot be changed"
    return "" if viewed else f"its shape {uses[0].param[...].shape} is not what its layers' features say"


def _swap(node: Any, layers: dict[int, nnx.Module], seen: set[int]) -> Any:
    """`node` with its layers replaced: in place, except in tuples, which are rebuilt."""
    if id(node) in layers:
        return layers[id(node)]
    if isinstance(node, nnx.Variable) or id(node) in seen:
        return node
    children = _children(node)
    if isinstance(node, tuple):
        swapped = [_swap(child, layers, seen) for _, child in children]
        if all(new is child for new, (_, child) in zip(swapped, children, strict=True)):
            return node
        return type(node)(*swapped) if hasattr(node, "_fields") else type(node)(swapped)
    seen.add(id(node))
    for key, child in children:
        new = _swap(child, layers, seen)
        if new is not child and isinstance(node, list | dict | nnx.List | nnx.Dict):
            node[key] = new
        elif new is not child:
            setattr(node, key, new)
    return node
