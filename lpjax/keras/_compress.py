"""`compress_keras`: replace layers of a Keras model by factored ones, in place."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

from keras import ops

from lpjax.compression import LayerRecord, compress
from lpjax.compression.in_place import check_in_place, require_fitting
from lpjax.keras._layers import (
    FACTORED,
    factors_of,
    fault_of,
    is_embedding,
    is_factored,
    put_factors,
    view_of,
    weight_of,
)
from lpjax.keras._saving import layers_of, make_saveable
from lpjax.select import Select, exactly, select_paths
from lpjax.solvers import Solution
from lpjax.weights.low_rank import LowRank


def compress_keras(
    model: Any,
    *,
    select: Select,
    keep: float | None = None,
    rank: int | None = None,
    solver: str | Callable[..., Solution] | None = None,
    p: float | None = None,
    **options: Any,
) -> tuple[LayerRecord, ...]:
    """Replace chosen layers of a built Keras model, in place, by factored ones.

    A weight is chosen by the path of its layer and "kernel" or "embedding", such as
    "transformer_layer_0/self_attention_layer/query/kernel". A layer stays the same object, so everything that refers to
    it runs on the factors; only its class and its variables change. The variables are `left` and `right`. A layer that
    is already factored is chosen by the same path, and gets smaller factors, as by `compress`.

    `model.save` and `keras.saving.load_model` work, the latter once `lpjax.keras` is imported. Compile the model after
    it is compressed: an optimizer holds the variables that it was compiled with.

    Args:
        model: a built `keras.Model`; it changes only after all layers are solved.
        select, keep, rank, solver, p: as for `compress`, with its defaults.
        **options: `statistics`, `weighting`, `row_weights`, `rows`, `batch_size`, `progress`, and the solver's, as
            for `compress`. Single entries are not supported.

    Returns:
        A record of each selected weight. The axes of an `EinsumDense` kernel are in the order inputs, outputs.

    Raises:
        ValueError: as `compress`; or `model` is not a built Keras model, or a selected weight does not belong to a
            `Dense`, `EinsumDense`, `Embedding` or tied `ReversibleEmbedding`, or belongs to one with LoRA, a
            regularizer or the like. The model is then unchanged.
    """
    check_in_place(options, "Keras")
    options["sparse_share"] = 0.0  # tables would have some by default with a calibration
    layers_by_path = {
        f"{path}/{_leaf(layer)}": layers for path, layers in layers_of(model).items() for layer in layers[:1]
    }
    tree, axes = collections.OrderedDict(), {}
    for path, (layer, *_) in layers_by_path.items():
        tree[path], inputs = _weight(layer)
        if inputs is not None:
            axes[path] = inputs
    chosen = select_paths(tree, select, axes)
    unfit = [f"{path} ({fault})" for path in chosen if (fault := _fault(layers_by_path[path]))]
    require_fitting(unfit, [kind.__name__ for kind in FACTORED])
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
    for path in chosen:
        if isinstance(pair := params[path], LowRank) and pair is not tree[path]:
            put_factors(layers_by_path[path][0], pair.left, pair.right)
    make_saveable(model)
    return records


def _leaf(layer: Any) -> str:
    return "embedding" if is_embedding(layer) else "kernel"


def _fault(layers: list[Any]) -> str:
    return fault_of(layers[0]) if len(layers) == 1 else f"{len(layers)} layers have this path; rename them"


def _weight(layer: Any) -> tuple[Any, int | None]:
    """The weight of a layer with the input axes first, and their number if the weight has more than two axes."""
    if is_factored(layer):
        return LowRank(*factors_of(layer)), None
    weight, view = ops.convert_to_numpy(weight_of(layer)), view_of(layer)
    if view is None or weight.ndim != len(view.axes):  # not one matrix, or packed codes: `fault_of` says so
        return weight, weight.ndim - 1 if weight.ndim > 2 else None
    return weight.transpose(view.axes), view.inputs if weight.ndim > 2 else None
