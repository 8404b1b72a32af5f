"""The layers of a model by path, and saving of models with factored layers by `model.save` and `load_model`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from lpjax.keras._layers import fault_of, is_factored, put_factors, view_of, weight_of

_PACKAGE, _NAME = "lpjax", "FactoredModel"


def layers_of(model: Any) -> dict[str, list[Any]]:
    """Path -> layers with this path, for all dense, einsum and embedding layers that are built, in order.

    Raises:
        ValueError: `model` is not a Keras model, or is not built.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` is a {type(model).__name__}, expected a keras.Model")
    if not model.built:
        raise ValueError(f"`model` {model.name} is not built, so it has no weights; call it on an input first")
    kinds = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)
    weights = {
        id(weight): (layer, weight.path.rpartition("/")[0])
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, kinds) and layer.built
        for weight in [layer.left if is_factored(layer) else weight_of(layer)]
        if weight is not None
    }
    layers_by_path: dict[str, list[Any]] = {}
    for variable in model.variables:  # in the order of the data flow, unlike the layers
        if id(variable) in weights:
            layer, path = weights[id(variable)]
            layers_by_path.setdefault(path, []).append(layer)
    return layers_by_path


@keras.saving.register_keras_serializable(_PACKAGE, _NAME)
class FactoredModel(keras.Model):
    """Base class that `compress_keras` adds to a model's class, so that its file records which layers have factors.

    Composite layers and keras-hub's models build their layers from a config without ranks. So the config of a factored
    model holds that of the dense one and the rank of every factored layer, by path. A model stays an instance of its
    own class.
    """

    def get_config(self) -> dict[str, Any]:
        """The config of the dense model, and the ranks."""
        own, dense = type(self), type(self).__bases__[1]
        object.__setattr__(self, "__class__", dense)
        try:
            config = keras.saving.serialize_keras_object(self)
        finally:
            object.__setattr__(self, "__class__", own)
        config.pop("compile_config", None)  # it is in the config of the factored model
        ranks = {path: layer.rank for path, layers in layers_of(self).items() for layer in layers if is_factored(layer)}
        return {"dense": config, "ranks": ranks}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """A model with factored layers, whose factors are zeros.

        Raises:
            ValueError: the model from the config lacks one of these layers.
        """
        model = keras.saving.deserialize_keras_object(config["dense"], custom_objects=custom_objects)
        ranks, layers_by_path = config["ranks"], layers_of(model)
        for path, layers in layers_by_path.items():
            # Layers that the model's own config lists already have factors, and perhaps another path than before.
            for layer in layers:
                if path in ranks and not fault_of(layer) and not is_factored(layer):
                    inputs, outputs = _sizes(layer)
                    zeros = (np.zeros(shape, np.float32) for shape in ((inputs, ranks[path]), (ranks[path], outputs)))
                    put_factors(layer, *zeros)
        factored = [path for path, layers in layers_by_path.items() for layer in layers if is_factored(layer)]
        if len(factored) != len(ranks):
            lost = sorted(ranks.keys() - {*factored})
            raise ValueError(f"the file has factors of {', '.join(lost)}, which the model in its config does not have")
        make_saveable(model)
        return model


def make_saveable(model: Any) -> None:
    """Give a model with factored layers a class that saves their ranks, and forget its compiled functions."""
    if not isinstance(model, FactoredModel) and any(map(is_factored, model._flatten_layers())):
        own = type(_NAME, (FactoredModel, type(model)), {"__module__": FactoredModel.__module__})
        keras.saving.register_keras_serializable(_PACKAGE, _NAME)(own)
        # Afterwards the name means the class that reads all such models; keras-hub looks up a preset's classes by name.
        keras.saving.register_keras_serializable(_PACKAGE, _NAME)(FactoredModel)
        object.__setattr__(model, "__class__", own)
    for part in (model, *model._flatten_layers()):
        if isinstance(part, keras.Model):
            part.train_function = part.test_function = part.predict_function = None


def _sizes(layer: Any) -> tuple[int, int]:
    """The numbers of inputs and outputs of a dense layer's weight."""
    view, shape = view_of(layer), tuple(weight_of(layer).shape)
    sizes = [shape[axis] for axis in view.axes]
    return int(np.prod(sizes[: view.inputs])), int(np.prod(sizes[view.inputs :]))
