"""An ONNX graph under construction."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

Dim = Any
"""A size: a number, or an expression of `jax.export` in the symbols "batch" and "length"."""


class Value(NamedTuple):
    """A tensor of the graph.

    Attributes:
        name: name of the tensor.
        shape: shape of the tensor. Axes that the traced program broadcasts may still have size 1, or all be missing,
            because ONNX's operators broadcast themselves.
    """

    name: str
    shape: tuple[Dim, ...]


class Graph:
    """Nodes and initializers; equal nodes are created once.

    Attributes:
        sizes: symbol -> name of an int64 tensor (1,).
    """

    def __init__(self) -> None:
        self.sizes: dict[str, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._arrays: dict[str, np.ndarray] = {}
        self._made: dict[Any, str] = {}

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        key = (op, inputs, tuple(sorted((name, str(value)) for name, value in attributes.items())))
        if key not in self._made:
            name = f"{op}_{len(self._nodes)}"
            self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
            self._made[key] = name
        return self._made[key]

    def constant(self, array: Any, name: str | None = None) -> str:
        """Add an initializer and return its name; equal small ones without a given name are created once."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes()) if name is None and array.size <= 64 else object()
        if key not in self._made:
            self._made[key] = name or f"constant_{len(self._arrays)}"
            self._arrays[self._made[key]] = array
        return self._made[key]

    def output(self, name: str, output_name: str) -> str:
        """Add an output: a tensor under a given name."""
        self._nodes.append(helper.make_node("Identity", [name], [output_name], name=output_name))
        return output_name

    def cast(self, name: str, dtype: Any) -> str:
        """The tensor in another dtype."""
        return self.node("Cast", name, to=element_type(dtype))

    def shape(self, dims: Sequence[Dim]) -> str:
        """Sizes as an int64 tensor (rank,)."""
        if all(isinstance(dim, int) for dim in dims):
            return self.constant(np.array(dims, np.int64))
        pieces = [self.size(dim) for dim in dims]
        return pieces[0] if len(pieces) == 1 else self.node("Concat", *pieces, axis=0)

    def size(self, dim: Dim) -> str:
        """One size as an int64 tensor (1,)."""
        if isinstance(dim, int):
            return self.constant(np.array([dim], np.int64))
        return self._computed(ast.parse(str(dim).replace("^", "**"), mode="eval").body)

    def _computed(self, expression: ast.expr) -> str:
        """A size from its expression, such as `2*length - 1`."""
        match expression:
            case ast.Constant(value):
                return self.size(int(str(value)))
            case ast.Name(symbol):
                return self.sizes[symbol]
            case ast.UnaryOp(ast.USub(), operand):
                return self.node("Neg", self._computed(operand))
            case ast.BinOp(left, kind, right) if type(kind) in _ARITHMETIC:
                return self.node(_ARITHMETIC[type(kind)], self._computed(left), self._computed(right))
            case ast.Call(ast.Name("floordiv" | "mod" | "max" | "min" as function), arguments):
                # Sizes are not negative, so truncating division equals floor division.
                return self.node(_FUNCTIONS[function], *map(self._computed, arguments))
        raise NotImplementedError(f"sizes such as {ast.unparse(expression)} are not exported")

    def expanded(self, value: Value, shape: Sequence[Dim]) -> str:
        """The tensor in the full shape of the array that it stands for."""
        return value.name if value.shape == tuple(shape) else self.node("Expand", value.name, self.shape(shape))

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any], opset: int) -> onnx.ModelProto:
        """The ONNX model with the nodes and initializers that its outputs need."""
        needed, nodes = {info.name for info in outputs}, []
        for node in reversed(self._nodes):
            if needed & set(node.output):
                needed |= set(node.input)
                nodes.append(node)
        arrays = [numpy_helper.from_array(array, name) for name, array in self._arrays.items() if name in needed]
        graph = helper.make_graph(nodes[::-1], "lpjax", inputs, outputs, arrays)
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="lpjax")


_IR_VERSION = 10  # of opset 21; runtimes refuse newer versions than they know
_ARITHMETIC = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Pow: "Pow"}
_FUNCTIONS = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}


def element_type(dtype: Any) -> int:
    """ONNX's number of a dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
