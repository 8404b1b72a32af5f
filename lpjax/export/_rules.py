"""Rules that express JAX's primitives in ONNX, for the primitives of forward passes.

A rule takes the graph, the equation of the traced program, and the tensors of its operands. A program with any other
primitive is refused by the primitive's name; to support it, add a rule here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import Literal
from jax.lax import GatherScatterMode
from ml_dtypes import finfo

from lpjax.export._graph import Dim, Graph, Value

Rule = Callable[..., Value | Sequence[Value]]

RULES: dict[str, Rule] = {}
"""Rules by the name of the primitive."""

CALLS: dict[str, Rule] = {}
"""Rules by the name of a function that the program calls, such as `normalized`."""


def _rule(*names: str, table: dict[str, Rule] = RULES) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        table.update(dict.fromkeys(names, rule))
        return rule

    return add


def shape_of(variable: Any) -> tuple[Dim, ...]:
    """Shape of an operand or a result of an equation."""
    return tuple(variable.aval.shape)


def _result(eqn: Any) -> tuple[Dim, ...]:
    return shape_of(eqn.outvars[0])


def _full(graph: Graph, eqn: Any, *values: Value) -> list[str]:
    """The operands in their full shapes."""
    return [graph.expanded(value, shape_of(var)) for value, var in zip(values, eqn.invars, strict=True)]


def _joint(*values: Value) -> tuple[Dim, ...]:
    """The shape of an operator's result after broadcasting its operands."""
    rank = max(len(value.shape) for value in values)
    shapes = [(1,) * (rank - len(value.shape)) + value.shape for value in values]
    return tuple(next((dim for dim in dims if not _is_one(dim)), 1) for dims in zip(*shapes, strict=True))


def _is_one(dim: Dim) -> bool:
    return isinstance(dim, int) and dim == 1


# Elementwise ------------------------------------------------------------------------------------------------------

_ELEMENTWISE = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow",
    "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf", "sqrt": "Sqrt", "abs": "Abs",
    "neg": "Neg", "sign": "Sign", "floor": "Floor", "sin": "Sin", "cos": "Cos",
    "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
}  # fmt: skip


def _elementwise(graph: Graph, eqn: Any, *values: Value) -> Value:
    names = [value.name for value in values]
    return Value(graph.node(_ELEMENTWISE[eqn.primitive.name], *names), _joint(*values))


RULES |= dict.fromkeys(_ELEMENTWISE, _elementwise)


@_rule("and", "or", "not")
def _logic(graph: Graph, eqn: Any, *values: Value) -> Value:
    bits = "" if eqn.invars[0].aval.dtype == bool else "Bitwise"
    names = [value.name for value in values]
    return Value(graph.node(bits + eqn.primitive.name.capitalize(), *names), _joint(*values))


@_rule("ne")
def _differ(graph: Graph, eqn: Any, left: Value, right: Value) -> Value:
    return Value(graph.node("Not", graph.node("Equal", left.name, right.name)), _joint(left, right))


@_rule("square")
def _square(graph: Graph, eqn: Any, x: Value) -> Value:
    return Value(graph.node("Mul", x.name, x.name), x.shape)


@_rule("rsqrt")
def _rsqrt(graph: Graph, eqn: Any, x: Value) -> Value:
    return Value(graph.node("Reciprocal", graph.node("Sqrt", x.name)), x.shape)


@_rule("log1p", "expm1")
def _near_one(graph: Graph, eqn: Any, x: Value) -> Value:
    unit = graph.constant(np.ones((), eqn.invars[0].aval.dtype))
    if eqn.primitive.name == "log1p":
        return Value(graph.node("Log", graph.node("Add", x.name, unit)), x.shape)
    return Value(graph.node("Sub", graph.node("Exp", x.name), unit), x.shape)


@_rule("exp2")
def _exp2(graph: Graph, eqn: Any, x: Value) -> Value:
    two = graph.constant(np.array(2, eqn.invars[0].aval.dtype))
    return Value(graph.node("Pow", two, x.name), x.shape)


@_rule("integer_pow")
def _integer_pow(graph: Graph, eqn: Any, x: Value) -> Value:
    exponent = graph.constant(np.array(eqn.params["y"], eqn.invars[0].aval.dtype))
    return Value(graph.node("Pow", x.name, exponent), x.shape)


@_rule("clamp")
def _clamp(graph: Graph, eqn: Any, low: Value, x: Value, high: Value) -> Value:
    least = graph.node("Max", x.name, low.name)
    return Value(graph.node("Min", least, high.name), _joint(low, x, high))


@_rule("select_n")
def _select(graph: Graph, eqn: Any, which: Value, *cases: Value) -> Value:
    if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
        raise NotImplementedError("a choice among more than two arrays is not exported")
    no, yes = cases
    return Value(graph.node("Where", which.name, yes.name, no.name), _joint(which, yes, no))


@_rule("shift_left", "shift_right_logical", "shift_right_arithmetic")
def _shift(graph: Graph, eqn: Any, x: Value, by: Value) -> Value:
    dtype, name = eqn.outvars[0].aval.dtype, eqn.primitive.name
    if name == "shift_right_arithmetic" and np.issubdtype(dtype, np.signedinteger):
        raise NotImplementedError("shifts of signed numbers to the right are not exported")
    # Runtimes shift unsigned numbers only; the bits are the same.
    operands = [graph.cast(value.name, np.uint32) for value in (x, by)]
    direction = "LEFT" if name == "shift_left" else "RIGHT"
    shifted = graph.node("BitShift", *operands, direction=direction)
    return Value(graph.cast(shifted, dtype), _joint(x, by))


@_rule("convert_element_type")
def _convert(graph: Graph, eqn: Any, x: Value) -> Value:
    before, after = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    return x if before == after else Value(graph.cast(x.name, after), x.shape)


@_rule("stop_gradient", "copy", "copy_p", "optimization_barrier")
def _same(graph: Graph, eqn: Any, x: Value) -> Value:
    return x


@_rule("reduce_precision")
def _reduce_precision(graph: Graph, eqn: Any, x: Value) -> Value:
    own = finfo(eqn.invars[0].aval.dtype)
    if eqn.params["exponent_bits"] < own.nexp or eqn.params["mantissa_bits"] < own.nmant:
        raise NotImplementedError("rounding to fewer bits by `reduce_precision` is not exported")
    return x


# Shapes -----------------------------------------------------------------------------------------------------------


@_rule("broadcast_in_dim")
def _broadcast(graph: Graph, eqn: Any, x: Value, *_: Value) -> Value:
    shape, places = _result(eqn), eqn.params["broadcast_dimensions"]
    if not x.shape:
        return x
    own: list[Dim] = [1] * len(shape)
    for place, dim in zip(places, x.shape, strict=True):
        own[place] = dim
    return _reshaped(graph, x, tuple(own))


def _reshaped(graph: Graph, x: Value, shape: tuple[Dim, ...]) -> Value:
    return x if x.shape == shape else Value(graph.node("Reshape", x.name, graph.shape(shape)), shape)


@_rule("reshape", "squeeze", "expand_dims")
def _reshape(graph: Graph, eqn: Any, x: Value, *_: Value) -> Value:
    before, after = shape_of(eqn.invars[0]), _result(eqn)
    if not x.shape and before:
        return x
    if [dim for dim in before if not _is_one(dim)] != [dim for dim in after if not _is_one(dim)]:
        x = Value(graph.expanded(x, before), before)
    elif x.shape != before:  # only axes of size 1 change, so axes that are not broadcast yet may stay so
        kept = iter(own for own, dim in zip(x.shape, before, strict=True) if not _is_one(dim))
        after = tuple(1 if _is_one(dim) else next(kept) for dim in after)
    return _reshaped(graph, x, after)


@_rule("transpose")
def _transpose(graph: Graph, eqn: Any, x: Value) -> Value:
    return _transposed(graph, x, eqn.params["permutation"]) if x.shape else x


def _transposed(graph: Graph, x: Value, order: Sequence[int]) -> Value:
    if list(order) == list(range(len(order))):
        return x
    return Value(graph.node("Transpose", x.name, perm=list(order)), tuple(x.shape[i] for i in order))


@_rule("concatenate")
def _concatenate(graph: Graph, eqn: Any, *values: Value) -> Value:
    joined = graph.node("Concat", *_full(graph, eqn, *values), axis=eqn.params["dimension"])
    return Value(joined, _result(eqn))


@_rule("stack")
def _stack(graph: Graph, eqn: Any, *values: Value) -> Value:
    axis, shape = eqn.params["axis"], list(_result(eqn))
    shape[axis] = 1
    parts = [graph.node("Reshape", name, graph.shape(shape)) for name in _full(graph, eqn, *values)]
    return Value(graph.node("Concat", *parts, axis=axis), _result(eqn))


@_rule("slice")
def _slice(graph: Graph, eqn: Any, x: Value) -> Value:
    params = eqn.params
    rank = len(_result(eqn))
    steps = params["strides"] or (1,) * rank
    bounds = (graph.shape(params[name]) for name in ("start_indices", "limit_indices"))
    return _sliced(graph, _full(graph, eqn, x)[0], *bounds, steps=steps, shape=_result(eqn))


def _sliced(graph: Graph, name: str, start: str, end: str, steps: Sequence[int], shape: tuple[Dim, ...]) -> Value:
    axes, by = (graph.constant(np.array(part, np.int64)) for part in (range(len(steps)), steps))
    return Value(graph.node("Slice", name, start, end, axes, by), shape)


@_rule("rev")
def _reversed(graph: Graph, eqn: Any, x: Value) -> Value:
    axes = np.array(eqn.params["dimensions"], np.int64)
    most = np.iinfo(np.int64)
    bounds = (np.full_like(axes, fill) for fill in (most.max, most.min + 1))
    start, end, steps = (graph.constant(part) for part in (*bounds, -np.ones_like(axes)))
    turned = graph.node("Slice", _full(graph, eqn, x)[0], start, end, graph.constant(axes), steps)
    return Value(turned, _result(eqn))


@_rule("pad")
def _pad(graph: Graph, eqn: Any, x: Value, fill: Value) -> Value:
    low, high, inner = zip(*eqn.params["padding_config"], strict=True)
    if any(inner):
        raise NotImplementedError("padding between entries is not exported")
    padded = graph.node("Pad", _full(graph, eqn, x, fill)[0], graph.shape((*low, *high)), fill.name)
    return Value(padded, _result(eqn))


@_rule("iota")
def _iota(graph: Graph, eqn: Any, *_: Value) -> Value:
    shape, axis, dtype = _result(eqn), eqn.params["dimension"], eqn.params["dtype"]
    own = tuple(dim if place == axis else 1 for place, dim in enumerate(shape))
    if isinstance(shape[axis], int):
        return Value(graph.constant(np.arange(shape[axis], dtype=dtype).reshape(own)), own)
    scalar = graph.shape(())
    start, end, step = (
        graph.constant(np.int64(0)),
        graph.node("Reshape", graph.size(shape[axis]), scalar),
        graph.constant(np.int64(1)),
    )
    counted = graph.cast(graph.node("Range", start, end, step), dtype)
    return _reshaped(graph, Value(counted, (shape[axis],)), own)


@_rule("dim_as_value")
def _size(graph: Graph, eqn: Any) -> Value:
    size = graph.node("Reshape", graph.size(eqn.params["dim"]), graph.shape(()))
    return Value(graph.cast(size, eqn.outvars[0].aval.dtype), ())


# Sums -------------------------------------------------------------------------------------------------------------


@_rule("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or")
def _reduce(graph: Graph, eqn: Any, x: Value) -> Value:
    (name,), kind = _full(graph, eqn, x), eqn.primitive.name.removeprefix("reduce_")
    axes = graph.constant(np.array(eqn.params["axes"], np.int64))
    if not len(eqn.params["axes"]):
        return Value(name, _result(eqn))
    op = {"sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin", "and": "ReduceMin", "or": "ReduceMax"}[kind]
    logical = eqn.invars[0].aval.dtype == bool
    name = graph.node(op, graph.cast(name, np.int32) if logical else name, axes, keepdims=0)
    return Value(graph.cast(name, bool) if logical else name, _result(eqn))


@_rule("argmax", "argmin")
def _place(graph: Graph, eqn: Any, x: Value) -> Value:
    (name,), (axis,) = _full(graph, eqn, x), eqn.params["axes"]
    name = graph.cast(name, np.int32) if eqn.invars[0].aval.dtype == bool else name
    op = "ArgMax" if eqn.primitive.name == "argmax" else "ArgMin"
    place = graph.node(op, name, axis=axis, keepdims=0)
    return Value(graph.cast(place, eqn.outvars[0].aval.dtype), _result(eqn))


@_rule("cumsum")
def _cumsum(graph: Graph, eqn: Any, x: Value) -> Value:
    axis = graph.constant(np.int64(eqn.params["axis"]))
    total = graph.node("CumSum", _full(graph, eqn, x)[0], axis, reverse=int(eqn.params["reverse"]))
    return Value(total, _result(eqn))


@_rule("dot_general")
def _dot(graph: Graph, eqn: Any, left: Value, right: Value) -> Value:
    """MatMul if each side has one free dimension or the right one is a matrix, else Einsum."""
    ((over_left, over_right), (batch_left, batch_right)) = eqn.params["dimension_numbers"]
    shapes = [shape_of(var) for var in eqn.invars]
    names = _full(graph, eqn, left, right)
    free = [
        [axis for axis in range(len(shape)) if axis not in (*over, *batch)]
        for shape, over, batch in zip(shapes, (over_left, over_right), (batch_left, batch_right), strict=True)
    ]
    single_axes = len(over_left) == 1 and len(free[1]) == 1
    if single_axes and (len(free[0]) == 1 or (not batch_left and len(shapes[1]) == 2 and free[0])):
        x = _transposed(graph, Value(names[0], shapes[0]), [*batch_left, *free[0], *over_left])
        y = _transposed(graph, Value(names[1], shapes[1]), [*batch_right, *over_right, *free[1]])
        return Value(graph.node("MatMul", x.name, y.name), _result(eqn))
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    sides = [[next(letters) for _ in shape] for shape in shapes]
    for i, j in (*zip(over_left, over_right, strict=True), *zip(batch_left, batch_right, strict=True)):
        sides[1][j] = sides[0][i]
    out = [sides[0][i] for i in (*batch_left, *free[0])] + [sides[1][j] for j in free[1]]
    equation = f"{''.join(sides[0])},{''.join(sides[1])}->{''.join(out)}"
    return Value(graph.node("Einsum", *names, equation=equation), _result(eqn))


# Gather and scatter -----------------------------------------------------------------------------------------------


@_rule("gather")
def _gather(graph: Graph, eqn: Any, x: Value, indices: Value) -> Value:
    (name, places), params = _full(graph, eqn, x, indices), eqn.params
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    shape, spots = (shape_of(var) for var in eqn.invars)
    indexed, batched = list(numbers.start_index_map), list(numbers.operand_batching_dims)
    if not numbers.collapsed_slice_dims and not batched and len(spots) == 1:
        return _window(graph, name, places, indexed, sizes, _result(eqn))
    rest = [axis for axis in range(len(shape)) if axis not in indexed + batched]
    whole = all(sizes[axis] is shape[axis] or str(sizes[axis]) == str(shape[axis]) for axis in rest)
    if sorted(indexed) != sorted(numbers.collapsed_slice_dims) or not whole:
        raise NotImplementedError(f"a gather of slices {sizes} of {shape} is not exported")
    if params["mode"] == GatherScatterMode.CLIP:
        places = _clipped(graph, places, [shape[axis] - 1 for axis in indexed], eqn.invars[1].aval.dtype)
    data = _transposed(graph, Value(name, shape), batched + indexed + rest)
    batch = list(numbers.start_indices_batching_dims)
    loose = [axis for axis in range(len(spots) - 1) if axis not in batch]
    at = _transposed(graph, Value(places, spots), [*batch, *loose, len(spots) - 1])
    if len(indexed) == 1 and not batch:
        flat = graph.node("Reshape", at.name, graph.shape(at.shape[:-1]))
        taken = graph.node("Gather", data.name, flat, axis=0)
    else:
        taken = graph.node("GatherND", data.name, graph.cast(at.name, np.int64), batch_dims=len(batch))
    # ONNX puts the axes of the indices first, and then the rest; transpose them to JAX's order.
    offsets = list(numbers.offset_dims)
    outer = [axis for axis in range(len(_result(eqn))) if axis not in offsets]
    stand = [outer[axis] for axis in (*batch, *loose)] + offsets
    own = tuple(_result(eqn)[axis] for axis in stand)
    return _transposed(graph, Value(taken, own), [stand.index(axis) for axis in range(len(stand))])


def _window(
    graph: Graph, name: str, start: str, axes: Sequence[int], sizes: Sequence[Dim], shape: tuple[Dim, ...]
) -> Value:
    """A slice that begins at computed indices."""
    begin = graph.cast(start, np.int64)
    end = graph.node("Add", begin, graph.shape([sizes[axis] for axis in axes]))
    return Value(graph.node("Slice", name, begin, end, graph.constant(np.array(axes, np.int64))), shape)


def _clipped(graph: Graph, places: str, most: Sequence[Dim], dtype: Any) -> str:
    ends = graph.cast(graph.shape(most), dtype)
    zero = graph.constant(np.zeros((), dtype))
    return graph.node("Max", graph.node("Min", places, ends), zero)


@_rule("scatter", "scatter-add", "scatter_add")
def _scatter(graph: Graph, eqn: Any, x: Value, indices: Value, updates: Value) -> Value:
    name, places, added = _full(graph, eqn, x, indices, updates)
    numbers, shape, dtype = eqn.params["dimension_numbers"], shape_of(eqn.invars[0]), eqn.invars[1].aval.dtype
    indexed, count = list(numbers.scatter_dims_to_operand_dims), len(numbers.scatter_dims_to_operand_dims)
    window = list(range(len(shape_of(eqn.invars[2])) - (len(shape) - count), len(shape_of(eqn.invars[2]))))
    if (
        numbers.operand_batching_dims
        or indexed != list(range(count))
        or list(numbers.inserted_window_dims) != indexed
        or list(numbers.update_window_dims) != window
    ):
        raise NotImplementedError(f"a scatter with {numbers} is not exported")
    # Updates out of range are dropped: they go to an extra row and column, which are cut off.
    sizes, rank = [shape[axis] for axis in indexed], len(shape)
    ends = graph.cast(graph.shape(sizes), dtype)
    negative = graph.node("Less", places, graph.constant(np.zeros((), dtype)))
    inside = graph.node("Where", negative, ends, graph.node("Min", places, ends))
    more = np.array([0] * rank + [int(axis < count) for axis in range(rank)], np.int64)
    wide = graph.node("Pad", name, graph.constant(more))
    reduction = "none" if eqn.primitive.name == "scatter" else "add"
    total = graph.node("ScatterND", wide, graph.cast(inside, np.int64), added, reduction=reduction)
    return _sliced(graph, total, graph.shape([0] * rank), graph.shape(shape), [1] * rank, shape)


# Functions that ONNX has operators for ------------------------------------------------------------------------------


@_rule("normalized", table=CALLS)
def _normalized(graph: Graph, eqn: Any, x: Value, scale: Value, bias: Value, _: Value) -> Value:
    eps = eqn.invars[3]
    if not isinstance(eps, Literal):
        raise NotImplementedError("a layer normalization with a computed epsilon is not exported")
    names = _full(graph, eqn, x, scale, bias, _)[:3]
    return Value(graph.node("LayerNormalization", *names, axis=-1, epsilon=float(eps.val)), _result(eqn))


@_rule("gelu", "gelu_tanh", table=CALLS)
def _gelu(graph: Graph, eqn: Any, x: Value) -> Value:
    options = {"approximate": "tanh"} if eqn.params["name"] == "gelu_tanh" else {}
    return Value(graph.node("Gelu", x.name, **options), x.shape)


@_rule("attended", table=CALLS)
def _attended(graph: Graph, eqn: Any, scores: Value, visible: Value, value: Value) -> Value:
    zero, least = (graph.constant(np.float32(number)) for number in (0, np.finfo(np.float32).min))
    names = _full(graph, eqn, scores, visible, value)
    # Not "Where" of the scores: onnxruntime's takes four times as long as "Add", and all layers share this mask.
    masked = graph.node("Add", names[0], graph.node("Where", visible.name, zero, least))
    return Value(graph.node("MatMul", graph.node("Softmax", masked, axis=-1), names[2]), _result(eqn))
