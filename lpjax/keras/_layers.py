"""Keras layers whose weight is a product of two factors, and the conversion of dense layers in place."""

from __future__ import annotations

import math
import string
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

_PACKAGE = "lpjax"


class View(NamedTuple):
    """The view of a layer's weight as a matrix (inputs, outputs).

    Attributes:
        axes: axes of the weight, those of the inputs first.
        inputs: number of input axes.
    """

    axes: tuple[int, ...]
    inputs: int

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """The weight as a matrix (∏ inputs, ∏ outputs)."""
        turned = weight.transpose(self.axes)
        return turned.reshape(math.prod(turned.shape[: self.inputs]), -1)

    def weight(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `matrix`: the weight of this shape."""
        turned = matrix.reshape([shape[axis] for axis in self.axes])
        return turned.transpose(np.argsort(self.axes))


class _Equation(NamedTuple):
    """The parts of an equation "inputs,kernel->outputs" of `EinsumDense`."""

    inputs: str
    kernel: str
    outputs: str

    @classmethod
    def parse(cls, equation: str) -> _Equation:
        operands, outputs = equation.replace(" ", "").split("->")
        return cls(*operands.split(","), outputs)

    @property
    def contracted(self) -> str:
        """Letters of the kernel that are summed over, in its order."""
        return "".join(letter for letter in self.kernel if letter in self.inputs and letter not in self.outputs)

    @property
    def added(self) -> str:
        """Letters of the kernel that only the output has, in its order."""
        return "".join(letter for letter in self.kernel if letter not in self.inputs and letter in self.outputs)

    def view(self) -> View | None:
        """The kernel's view as a matrix; None if one of its letters is in both inputs and outputs, or in neither."""
        letters = self.contracted + self.added
        if sorted(letters) != sorted(self.kernel) or not self.contracted or not self.added:
            return None
        return View(tuple(self.kernel.index(letter) for letter in letters), len(self.contracted))

    def factors(self) -> tuple[str, str]:
        """The equations of the two products: with `left` (*contracted, rank) and with `right` (rank, *added)."""
        between = "".join(letter for letter in self.inputs if letter not in self.contracted) + self._rank
        left, right = self.contracted + self._rank, self._rank + self.added
        return f"{self.inputs},{left}->{between}", f"{between},{right}->{self.outputs}"

    def product(self) -> str:
        """The equation of the kernel as a product of `left` and `right`."""
        return f"{self.contracted}{self._rank},{self._rank}{self.added}->{self.kernel}"

    @property
    def _rank(self) -> str:
        return next(letter for letter in string.ascii_letters if letter not in "".join(self))


class _Factored:
    """Mixin of the factored layers, which precedes the dense layer among their bases.

    A factored layer is built like the dense one, and then its weight is exchanged for `left` and `right`.
    """

    rank: int
    left: Any
    right: Any

    def build(self, input_shape: Any = None) -> None:
        """Create the factors, and the other variables of the layer."""
        if not self.built:
            super().build(input_shape)
            self._exchange()

    def _exchange(self) -> None:
        """Replace the dense weight, or existing factors, by new factors of rank `rank`."""
        if hasattr(self, "left"):
            inputs, outputs = self.left.shape[:-1], self.right.shape[1:]
            trainable = self.left.trainable
            del self.left, self.right
        else:
            view, weight = view_of(self), weight_of(self)
            sizes, trainable = [weight.shape[axis] for axis in view.axes], weight.trainable
            inputs, outputs = sizes[: view.inputs], sizes[view.inputs :]
            del weight
            delattr(self, _WEIGHT[is_embedding(self)])
        self.left = self.add_weight(name="left", shape=(*inputs, self.rank), trainable=trainable)
        self.right = self.add_weight(name="right", shape=(self.rank, *outputs), trainable=trainable)

    def get_config(self) -> dict[str, Any]:
        """The config of the dense layer, and `rank`."""
        return {**super().get_config(), "rank": self.rank}

    def _variables(self) -> dict[str, Any]:
        known = {"left": self.left, "right": self.right, "bias": getattr(self, "bias", None)}
        return {name: variable for name, variable in known.items() if variable is not None}

    def save_own_variables(self, store: Any) -> None:
        """Write the factors and the bias, by name."""
        for name, variable in self._variables().items():
            store[name] = variable

    def load_own_variables(self, store: Any) -> None:
        """Read what `save_own_variables` wrote.

        Raises:
            ValueError: the file has other variables, or other shapes.
        """
        variables = self._variables()
        if set(store.keys()) != set(variables):
            raise ValueError(
                f"layer {self.name} has {', '.join(variables)}, but the file {', '.join(store.keys()) or 'nothing'}; "
                "expected a file of a model that was factored in the same way"
            )
        for name, variable in variables.items():
            variable.assign(store[name])

    def enable_lora(self, *args: Any, **options: Any) -> None:
        """Refused: train the factors themselves.

        Raises:
            NotImplementedError: always.
        """
        del args, options
        raise NotImplementedError(f"layer {self.name} is factored; train its factors instead of LoRA's")


@keras.saving.register_keras_serializable(_PACKAGE)
class FactoredDense(_Factored, keras.layers.Dense):
    """A `keras.layers.Dense` whose kernel is `left @ right`.

    Attributes:
        left: left factor, shape (inputs, rank).
        right: right factor, shape (rank, units).
    """

    def __init__(self, units: int, rank: int, **options: Any):
        super().__init__(units, **options)
        self.rank = rank

    @property
    def kernel(self) -> Any:
        """The product, which `call` does not form."""
        return ops.matmul(self.left, self.right)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The layer's output, by two products."""
        del training
        outputs = ops.matmul(ops.matmul(inputs, self.left), self.right)
        outputs = outputs if self.bias is None else ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)


@keras.saving.register_keras_serializable(_PACKAGE)
class FactoredEinsumDense(_Factored, keras.layers.EinsumDense):
    """A `keras.layers.EinsumDense` whose kernel is a product of two factors.

    Attributes:
        left: left factor, shape (*inputs, rank); the inputs are the axes of the kernel that are summed over.
        right: right factor, shape (rank, *outputs).
    """

    def __init__(self, equation: str, output_shape: Any, rank: int, **options: Any):
        super().__init__(equation, output_shape, **options)
        self.rank = rank

    @property
    def kernel(self) -> Any:
        """The product, which `call` does not form."""
        return ops.einsum(_Equation.parse(self.equation).product(), self.left, self.right)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The layer's output, by two products."""
        del training
        first, second = _Equation.parse(self.equation).factors()
        outputs = ops.einsum(second, ops.einsum(first, inputs, self.left), self.right)
        outputs = outputs if self.bias is None else ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)


class _FactoredTable(_Factored):
    """Mixin of the two factored embeddings."""

    def __init__(self, input_dim: int, output_dim: int, rank: int, **options: Any):
        super().__init__(input_dim, output_dim, **options)
        self.rank = rank

    @property
    def embeddings(self) -> Any:
        """The product, which `call` does not form."""
        return ops.matmul(self.left, self.right)

    def _rows(self, ids: Any) -> Any:
        ids = ids if ids.dtype in ("int32", "int64") else ops.cast(ids, "int32")
        rows = ops.cast(ops.take(self.left, ids, axis=0), self.compute_dtype)
        return ops.matmul(rows, ops.cast(self.right, self.compute_dtype))


@keras.saving.register_keras_serializable(_PACKAGE)
class FactoredEmbedding(_FactoredTable, keras.layers.Embedding):
    """A `keras.layers.Embedding` whose table is `left @ right`.

    Attributes:
        left: left factor, shape (input_dim, rank).
        right: right factor, shape (rank, output_dim).
    """

    def call(self, inputs: Any) -> Any:
        """Rows of the table."""
        return self._rows(inputs)


@keras.saving.register_keras_serializable(_PACKAGE)
class FactoredReversibleEmbedding(_FactoredTable, keras.layers.ReversibleEmbedding):
    """A tied `keras.layers.ReversibleEmbedding` whose table is `left @ right`.

    Attributes:
        left: left factor, shape (input_dim, rank).
        right: right factor, shape (rank, output_dim).
    """

    def call(self, inputs: Any, reverse: bool = False) -> Any:
        """Rows of the table; with `reverse`, the inner products of `inputs` with all rows."""
        if not reverse:
            return self._rows(inputs)
        left, right = self.left, self.right
        if self.reverse_dtype is not None:
            inputs, left, right = (ops.cast(array, self.reverse_dtype) for array in (inputs, left, right))
        logits = ops.matmul(ops.matmul(inputs, ops.transpose(right)), ops.transpose(left))
        cap = self.logit_soft_cap
        return logits if cap is None else ops.multiply(ops.tanh(ops.divide(logits, cap)), cap)


_WEIGHT = ("_kernel", "_embeddings")  # attributes of dense layers, and of embeddings


FACTORED: dict[type, type] = {
    keras.layers.Dense: FactoredDense,
    keras.layers.EinsumDense: FactoredEinsumDense,
    keras.layers.Embedding: FactoredEmbedding,
    keras.layers.ReversibleEmbedding: FactoredReversibleEmbedding,
}
"""Class of a dense layer -> its factored class. Subclasses may compute something else, and are refused."""


def is_factored(layer: Any) -> bool:
    """Whether a layer has factors."""
    return isinstance(layer, _Factored)


def is_embedding(layer: Any) -> bool:
    """Whether the weight of a layer is a table."""
    return isinstance(layer, keras.layers.Embedding)


def view_of(layer: Any) -> View | None:
    """The view of a layer's weight as a matrix; None if it is not one."""
    if isinstance(layer, keras.layers.EinsumDense):
        return _Equation.parse(layer.equation).view()
    return View((0, 1), 1)


def fault_of(layer: Any) -> str:
    """Why a layer cannot be factored in place; empty if it can."""
    if is_factored(layer):
        return ""
    if type(layer) not in FACTORED:
        return f"it is a {type(layer).__name__}"
    if layer.quantization_mode is not None:
        return f"it is quantized to {layer.quantization_mode}"
    if layer.lora_enabled:
        return "it has LoRA weights"
    kind = "embeddings" if is_embedding(layer) else "kernel"
    for rule in ("regularizer", "constraint"):
        if getattr(layer, f"{kind}_{rule}") is not None:
            return f"it has a {kind}_{rule}"
    if not getattr(layer, "tie_weights", True):
        return "its reverse embeddings are not tied"
    if isinstance(layer, keras.layers.ReversibleEmbedding) and layer.mask_zero:
        return "it makes a mask of its ids (mask_zero)"
    return "" if view_of(layer) is not None else f"its equation {layer.equation} is not one product of matrices"


def weight_of(layer: Any) -> Any:
    """The variable that holds the weight of a dense layer that can be factored; None if a subclass has another."""
    return getattr(layer, _WEIGHT[is_embedding(layer)], None)


def factors_of(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The factors of a layer as matrices, (∏ inputs, rank) and (rank, ∏ outputs)."""
    left, right = (ops.convert_to_numpy(variable) for variable in (layer.left, layer.right))
    return left.reshape(-1, layer.rank), right.reshape(layer.rank, -1)


def put_factors(layer: Any, left: np.ndarray, right: np.ndarray) -> None:
    """Make `layer` the factored layer of its kind, in place, with these matrices as its factors.

    Operations of functional models refer to the layer object, so its class changes instead, and its variables are
    exchanged as in Keras's own `enable_lora` and `quantize`. Nothing is checked: see `fault_of`.

    Args:
        layer: a built layer, dense or factored.
        left, right: factors (∏ inputs, rank) and (rank, ∏ outputs).
    """
    if not is_factored(layer):
        object.__setattr__(layer, "__class__", FACTORED[type(layer)])
    layer._tracker.unlock()
    layer.rank = left.shape[-1]
    layer._exchange()
    layer._tracker.lock()
    for variable, matrix in ((layer.left, left), (layer.right, right)):
        variable.assign(np.asarray(matrix).reshape(variable.shape))
