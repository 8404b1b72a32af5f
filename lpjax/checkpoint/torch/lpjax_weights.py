"""The factored and quantized weights of lpjax.safetensors in PyTorch; modeling_lpjax.py replaces parameters by them.

A `Weight` is a matrix. PyTorch's functions dispatch to its `__torch_function__`, so `torch.nn.Linear`,
`torch.nn.Embedding` and tied decoders work with a `Weight` as with a parameter.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

try:
    from .lpjax_codes import FEWEST, FLOATS, decode_matrix, inflated_floats, pack_codes
except ImportError:  # if this file is imported from its folder, not by transformers
    from lpjax_codes import FEWEST, FLOATS, decode_matrix, inflated_floats, pack_codes


class Weight(nn.Module):
    """A matrix, or its transpose if `transposed`, as in linear layers. Subclasses define `times` and `rows`."""

    def __init__(self, rows, columns, dtype):
        super().__init__()
        self.matrix_shape, self.shape, self.transposed = (rows, columns), torch.Size((rows, columns)), False
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)  # follows .half() and .to()

    dtype = property(lambda self: self.like.dtype)
    device = property(lambda self: self.like.device)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func not in COMPUTED:
            name = getattr(func, "__name__", func)
            raise TypeError(f"a weight that lpjax compressed is only multiplied or looked up; {name} needs a dense one")
        return COMPUTED[func](*args, **(kwargs or {}))


def _linear(x, weight, bias=None):
    product = weight.times(x, not weight.transposed)
    return product if bias is None else product + bias


def _einsum(equation, x, weight):
    """The product with an XLNet kernel, a parameter of shape (hidden, heads, size), over the last axes of x."""
    if equation.endswith("hnd->ibh"):
        return weight.times(x.flatten(2), False)
    return weight.times(x, False).unflatten(-1, weight.shape[1:])


COMPUTED = {
    F.linear: _linear,
    F.embedding: lambda ids, weight, *_, **__: weight.rows(ids),
    torch.matmul: lambda x, weight: weight.times(x, weight.transposed),
    torch.einsum: _einsum,
}


def weight_of(parts, largest):
    """Make a `Weight` from its parts in a file, by name.

    A product has `left` and `right`, and with single entries `values`, `columns` and `starts`. A quantized matrix has
    `codes`, `scales` and perhaps `steps`, and so may a factor (`left.codes`, …). An int8 factor has `left_scale`.
    Quantized matrices with a side above `largest` are refused.
    """
    parts = dict(parts)
    if "codes" in parts:
        return Quantized(**parts, largest=largest)
    factors = []
    for side, axis in (("left", 1), ("right", 0)):  # and the axis of its rank
        own = {name.partition(".")[2]: parts.pop(name) for name in [*parts] if name.partition(".")[0] == side}
        factor, scale = own.get(""), parts.pop(f"{side}_scale", None)
        factor = Quantized(**own, largest=largest) if factor is None else factor
        if scale is not None:
            if (
                factor.dtype != torch.int8
                or not scale.is_floating_point()
                or scale.shape != factor.shape[axis : axis + 1]
            ):
                raise ValueError(f"its {side} is {factor.dtype} {tuple(factor.shape)}, its scale {tuple(scale.shape)}")
            factor = (factor.double() * scale.double().unsqueeze(1 - axis)).to(scale.dtype)
        factors.append(factor)
    return LowRank(*factors, **parts)


class LowRank(Weight):
    """left @ right, plus single entries (compressed sparse rows) if there are any."""

    def __init__(self, left, right, values=None, columns=None, starts=None):
        (rows, rank), (height, width) = left.shape, right.shape
        if rank != height or rank < 1:
            raise ValueError(f"its factors are {tuple(left.shape)} and {tuple(right.shape)}, which do not fit")
        super().__init__(rows, width, torch.promote_types(left.dtype, right.dtype))
        self.left, self.right = (part if isinstance(part, Weight) else nn.Parameter(part) for part in (left, right))
        self.values = None if values is None else nn.Parameter(values)
        if len({part is None for part in (values, columns, starts)}) > 1:
            raise ValueError("its single entries lack values, columns or starts")
        if values is not None:
            starts, columns = starts.long(), columns.to(torch.int32)
            rising = len(starts) == rows + 1 and starts[0] == 0 and bool((starts.diff() >= 0).all())
            if not rising or not starts[-1] == len(columns) == len(values):
                raise ValueError("the starts of its single entries are damaged")
            places = torch.arange(rows).repeat_interleave(starts.diff()) * width + columns
            if len(places) and (columns.min() < 0 or columns.max() >= width or (places.diff() <= 0).any()):
                raise ValueError("the columns of its single entries are damaged")
            # As few bytes as in the file; PyTorch has few operations on uint16.
            self.register_buffer("columns", columns.to(torch.int16) if width <= 1 << 16 else columns)
            self.register_buffer("starts", starts.to(torch.int32))

    def times(self, x, transposed):
        """x @ matrix, or x @ its transpose."""
        if transposed:
            product = F.linear(F.linear(x, self.right), self.left)
        else:
            product = torch.matmul(torch.matmul(x, self.left), self.right)
        return product if self.values is None else product + _blockwise(x, self.entries, *self.matrix_shape, transposed)

    def rows(self, ids):
        """Rows `ids` of the matrix."""
        rows = torch.matmul(F.embedding(ids, self.left), self.right)
        return rows if self.values is None else rows + self.entries(ids.flatten()).view_as(rows)

    def entries(self, which):
        """The single entries of some rows, 0 elsewhere."""
        first, last = self.starts[:-1][which].long(), self.starts[1:][which].long()
        ends = (last - first).cumsum(0)
        row = torch.arange(len(ends), device=ends.device).repeat_interleave(last - first)
        place = torch.arange(len(row), device=ends.device) + (last - ends)[row]
        columns = self.columns[place].long()
        columns = columns & 0xFFFF if self.columns.dtype == torch.int16 else columns
        return self.values.new_zeros(len(ends), self.matrix_shape[1]).index_put((row, columns), self.values[place])


class Quantized(Weight):
    """A quantized matrix in lines: entry j of line i is scales[i, j // group] · steps[j] · codes[i, j].

    Lines are the matrix's rows if `axis` is 1, else its columns. Codes stay packed as by `pack_codes`: in runs of
    positions j with equal numbers of bits. Lines are expanded when they are used.
    """

    def __init__(self, codes, scales, steps=None, *, largest):
        head, numbers = decode_matrix(codes.numpy(), largest)
        lines, length = numbers.shape
        super().__init__(*(numbers.shape if head.axis else (length, lines)), getattr(torch, FLOATS[head.dtype]))
        self.axis, self.group = bool(head.axis), head.group
        packed, self.runs, order = pack_codes(numbers, None if head.bits == FEWEST else head.bits)
        for number, run in enumerate(packed):
            self.register_buffer(f"codes{number}", torch.from_numpy(run))
        narrow = torch.int16 if length < 1 << 15 else torch.int32
        self.register_buffer("order", None if order is None else torch.from_numpy(order.astype("i4")).to(narrow))
        self.register_buffer("scales", _floats("scales", scales, (lines, -(-length // head.group))))
        self.register_buffer("steps", None if steps is None else _floats("steps", steps, (length,)))
        most = max(int(numbers.max()), -int(numbers.min())) * self.scales.abs().max().double()
        most = most if steps is None else most * self.steps.abs().max()
        blocks = range(0, lines if most > torch.finfo(self.dtype).max else 0, 1024)
        if not all(self.lines(slice(i, i + 1024), self.dtype).isfinite().all() for i in blocks):
            raise ValueError(f"its scales times its codes are more than {self.dtype} can hold")

    def _apply(self, fn, *args, **options):
        # Scales are moved as bytes, so that .half() and .bfloat16() do not round them.
        kept = {name: getattr(self, name) for name in ("scales", "steps") if getattr(self, name) is not None}
        super()._apply(fn, *args, **options)
        for name, floats in kept.items():
            setattr(self, name, fn(floats.view(torch.uint8)).view(floats.dtype))
        return self

    def times(self, x, transposed):
        """x @ matrix, or x @ its transpose."""
        shape = self.matrix_shape if self.axis else self.matrix_shape[::-1]
        return _blockwise(x, lambda which: self.lines(which, x.dtype), *shape, transposed == self.axis)

    def rows(self, ids):
        """Rows `ids` of the matrix; if they are lines, only these are expanded."""
        if not self.axis:
            return F.embedding(ids, self.lines(slice(None), self.dtype).T)
        if bool((ids < 0).any()):
            raise IndexError("index out of range in self")  # as torch.nn.Embedding says it
        return self.lines(ids.flatten(), self.dtype).unflatten(0, ids.shape)

    def lines(self, which, dtype):
        """Some lines, expanded."""
        wide = torch.promote_types(torch.float32, dtype)
        codes = [_unpacked(getattr(self, f"codes{i}")[which], *run, wide) for i, run in enumerate(self.runs)]
        codes = codes[0] if len(codes) == 1 else torch.cat(codes, 1)
        codes = codes if self.order is None else codes[:, self.order.int()]
        factors = self.scales[which].to(wide)
        factors = factors.repeat_interleave(self.group, 1)[:, : codes.shape[1]] if factors.shape[1] > 1 else factors
        factors = factors if self.steps is None else factors * self.steps.to(wide)
        return (codes * factors).to(dtype)


def _unpacked(packed, bits, width, dtype):
    """Unpack codes, (lines, width); every `count` codes take `size` bytes."""
    if not bits:
        return packed.new_zeros(len(packed), width, dtype=dtype)
    count = 8 // math.gcd(bits, 8)
    size = count * bits // 8
    kind = torch.uint8 if size == 1 else torch.int32 if size <= 4 else torch.int64
    place = torch.arange(8, device=packed.device, dtype=kind)
    padded = F.pad(packed, (0, -packed.shape[1] % size)) if packed.shape[1] % size else packed
    word = (padded.unflatten(1, (-1, size)).to(kind) << 8 * place[:size]).sum(-1, keepdim=True, dtype=kind)
    codes = (word >> bits * place[:count] & (1 << bits) - 1).flatten(1)[:, :width]
    return codes.to(dtype) - (1 << bits >> 1)


def _blockwise(x, lines, count, length, outputs):
    """x times the transpose of `count` lines of `length` numbers if lines are outputs, else x times the lines.

    `lines` expands a slice of them, of about 2^22 numbers, at a time.
    """
    height = max(1, (1 << 22) // length)
    blocks = [slice(start, start + height) for start in range(0, count, height)]
    if outputs:
        return torch.cat([F.linear(x, lines(block)) for block in blocks], -1)
    return sum(torch.matmul(x[..., block], lines(block)) for block in blocks)


def _floats(name, floats, shape):
    """Scales or steps, checked to be finite and of this shape; those in uint8 are float16, compressed."""
    if floats.dtype == torch.uint8:
        return torch.from_numpy(inflated_floats(name, floats.numpy(), shape).copy())
    if floats.shape != shape or not floats.is_floating_point() or not floats.isfinite().all():
        raise ValueError(f"its {name} are {floats.dtype} of shape {tuple(floats.shape)}, expected {shape}, finite")
    return floats
