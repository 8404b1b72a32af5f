"""Conversion of a traced JAX program to an ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from jax.extend.core import Literal
from onnx import helper

from lpjax.export._graph import Graph, Value, element_type
from lpjax.export._rules import CALLS, RULES, shape_of
from lpjax.export.program import Program

OPSET = 21


def onnx_model(program: Program) -> onnx.ModelProto:
    """The ONNX model of a program, with its weights; inputs are int64, as from tokenizers.

    Raises:
        NotImplementedError: a primitive of the program has no rule; names it.
    """
    shapes, traced, graph = program.shapes(), program.traced(), Graph()
    values = [Value(graph.constant(array, name), array.shape) for name, array in sorted(program.weights.items())]
    first = next(iter(shapes))
    for axis, symbol in enumerate(map(str, shapes[first].shape)):
        place = graph.constant(np.array([axis], np.int64))
        graph.sizes[symbol] = graph.node("Gather", graph.node("Shape", first), place, axis=0)
    values += [Value(graph.cast(name, np.int32), shape.shape) for name, shape in sorted(shapes.items())]
    results = _run(graph, traced.jaxpr, traced.consts, values)
    infos = []
    for name, value, variable in zip(program.outputs, results, traced.jaxpr.outvars, strict=True):
        named = graph.output(graph.expanded(value, shape_of(variable)), name)
        infos.append(_info(named, variable.aval.dtype, shape_of(variable)))
    inputs = [_info(name, np.int64, shapes[name].shape) for name in program.inputs]
    return graph.model(inputs, infos, OPSET)


def _info(name: str, dtype: Any, shape: Sequence[Any]) -> onnx.ValueInfoProto:
    dims = [dim if isinstance(dim, int) else str(dim) for dim in shape]
    return helper.make_tensor_value_info(name, element_type(dtype), dims)


def _run(graph: Graph, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
    """Add the nodes of a program, or of a function that it calls; returns its results."""
    known: dict[Any, Value] = {}

    def read(variable: Any) -> Value:
        if not isinstance(variable, Literal):
            return known[variable]
        dtype: Any = getattr(variable.aval, "dtype", None)
        return Value(graph.constant(np.asarray(variable.val, dtype)), shape_of(variable))

    for variable, const in zip(jaxpr.constvars, consts, strict=True):
        known[variable] = Value(graph.constant(np.asarray(const)), shape_of(variable))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        values, name = [read(variable) for variable in eqn.invars], eqn.primitive.name
        inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
        if inner is not None and name not in RULES:
            rule = CALLS.get(str(eqn.params.get("name")))
            if rule is None:
                results: Any = _run(graph, getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values)
            else:
                results = rule(graph, eqn, *values)
        elif name in RULES:
            results = RULES[name](graph, eqn, *values)
        else:
            raise NotImplementedError(f"the primitive `{name}` has no rule, so this model cannot be exported to ONNX")
        known |= dict(zip(eqn.outvars, [results] if isinstance(results, Value) else results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]
