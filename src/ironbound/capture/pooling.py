"""Builders for pooling and maxima: a gather of the windows, followed by the maximum over the trailing window axis."""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.capture.call import Call, Result, Value, scalar
from ironbound.capture.shapes import fixed
from ironbound.ops.affine import Scale
from ironbound.ops.piecewise import Maximum


def average_pool(call: Call) -> Result:
    """F.avg_pool1d, avg_pool2d, avg_pool3d with every attribute."""
    if call.has("divisor_override") and (call.plain("divisor_override") or 1) < 0:
        call.refuse("its divisor must be positive")
    return _pooled_spatially(call, "average pooling")


def adaptive_average_pool(call: Call) -> Result:
    """F.adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d."""
    return _pooled_spatially(call, "adaptive average pooling")


def _pooled_spatially(call: Call, label: str) -> Result:
    return fixed(call, "self" if call.has("self") else "input", label)


def max_pool(call: Call) -> Result:
    """F.max_pool1d, max_pool2d, max_pool3d with every attribute."""
    x = call.value("self")
    axes = _spatial_axes(call)
    kernel, padding, dilation = (call.sizes(name, axes) for name in ("kernel_size", "padding", "dilation"))
    stride = kernel if call.plain("stride") in (None, [], ()) else call.sizes("stride", axes)
    call.skip("ceil_mode")  # the output's shape in the trace says what it did
    out = call.shape[-axes:]
    whole = all(extent == count * size for extent, count, size in zip(x.shape[-axes:], out, kernel, strict=True))
    if whole and stride == kernel and not any(padding) and all(step == 1 for step in dilation):
        windows = _tiles(call, x, kernel)
    else:
        tables = []
        for axis in range(axes):
            first = torch.arange(out[axis]).unsqueeze(1) * stride[axis] - padding[axis]
            reads = first + torch.arange(kernel[axis]) * dilation[axis]
            tables.append(_inside(call, reads, x.shape[axis - axes]))
        windows = _gather(call, x, tables)
    value = call.emit(Maximum(), windows)
    return [value, None] if call.several else value


def adaptive_max_pool(call: Call) -> Result:
    """F.adaptive_max_pool1d, 2d, 3d: window i of m covers the positions floor(i n / m) to ceil((i + 1) n / m) - 1."""
    x = call.value("self")
    call.skip("output_size")
    axes = _spatial_axes(call)
    tables = []
    for extent, count in zip(x.shape[-axes:], call.shape[-axes:], strict=True):
        index = torch.arange(count)
        first, end = index * extent // count, ((index + 1) * extent + count - 1) // count
        reads = first.unsqueeze(1) + torch.arange(int((end - first).max()))
        tables.append(torch.minimum(reads, end.unsqueeze(1) - 1))
    return [call.emit(Maximum(), _gather(call, x, tables)), None]


def _spatial_axes(call: Call) -> int:
    axes = int(call.operator.partition("max_pool")[2][0])
    if len(call.shape) < axes + 1:
        call.refuse("its input must have a batch axis and a channel axis")
    return axes


def _inside(call: Call, reads: Tensor, extent: int) -> Tensor:
    """Replaces reads outside the image by the window's first element inside it: duplicates never change a maximum."""
    inside = (reads >= 0) & (reads < extent)
    if not bool(inside.any(1).all()):
        call.refuse("one of its windows lies on padding alone")
    first = reads.gather(1, inside.to(torch.int8).argmax(1, keepdim=True))
    return torch.where(inside, reads, first)


def _gather(call: Call, x: Value, tables: list[Tensor]) -> Value:
    """Windows as a trailing axis; `tables` hold for each spatial axis the positions [outputs, window] to read."""
    axes = len(tables)
    index = torch.zeros((1,) * (2 * axes), dtype=torch.int64)
    for axis, (table, extent) in enumerate(zip(tables, x.shape[-axes:], strict=True)):
        shape = [1] * (2 * axes)
        shape[axis], shape[axes + axis] = table.shape
        index = index * extent + table.reshape(shape)
    window = 1
    for table in tables:
        window *= table.shape[1]
    flat, shape = index.reshape(-1), (*call.shape, window)

    def function(v: Tensor) -> Tensor:
        return v.flatten(-axes).index_select(-1, flat.to(v.device)).reshape(len(v), *shape)

    return call.structural(function, "windows", x, shape=shape)


def _tiles(call: Call, x: Value, kernel: tuple[int, ...]) -> Value:
    """Windows that tile the image, without a gather."""
    axes = len(kernel)
    kept, out = x.shape[:-axes], call.shape[-axes:]
    split = tuple(extent for pair in zip(out, kernel, strict=True) for extent in pair)
    front = 1 + len(kept)
    order = (*range(front), *range(front, front + 2 * axes, 2), *range(front + 1, front + 2 * axes, 2))
    window = 1
    for size in kernel:
        window *= size
    shape = (*call.shape, window)

    def function(v: Tensor) -> Tensor:
        return v.reshape(len(v), *kept, *split).permute(order).reshape(len(v), *shape)

    return call.structural(function, "windows", x, shape=shape)


def amax(call: Call) -> Result:
    """Maximum over axes other than the batch."""
    x = call.value("self")
    return _maximum_over(call, x, call.axes("dim", x.rank))


def amin(call: Call) -> Result:
    """Minimum over axes: the negative of the negatives' maximum."""
    x = call.value("self")
    axes = call.axes("dim", x.rank)
    return _negative(call, _maximum_over(call, _negative(call, x), axes))


def max_along(call: Call) -> Result:
    """torch.max(x, dim): the values; the indices are refused where they are used."""
    x = call.value("self")
    return [_maximum_over(call, x, [call.axis("dim", x.rank)]), None]


def min_along(call: Call) -> Result:
    """torch.min(x, dim): the values; the indices are refused where they are used."""
    x = call.value("self")
    axis = call.axis("dim", x.rank)
    return [_negative(call, _maximum_over(call, _negative(call, x), [axis])), None]


def _maximum_over(call: Call, x: Value, axes: list[int]) -> Value:
    call.skip("keepdim")
    kept = [axis for axis in range(x.rank) if axis not in axes]
    window = 1
    for axis in axes:
        window *= x.shape[axis - 1]
    order, shape = (*kept, *sorted(axes)), (*call.shape, window)
    gathered = call.structural(lambda v: v.permute(order).reshape(len(v), *shape), "windows", x, shape=shape)
    return call.emit(Maximum(), gathered)


def _negative(call: Call, x: Value) -> Value:
    return call.emit(Scale(scalar(-1.0)), x, shape=x.shape)


def maximum(call: Call) -> Result:
    """The larger of two values, element by element."""
    return _larger(call, call.value("self"), call.value("other"))


def minimum(call: Call) -> Result:
    """The smaller of two values, element by element."""
    return _negative(call, _larger(call, _negative(call, call.value("self")), _negative(call, call.value("other"))))


def _larger(call: Call, left: Value, right: Value) -> Value:
    left, right = call.expand(left, call.shape), call.expand(right, call.shape)
    shape = (*call.shape, 2)
    stacked = call.structural(lambda a, b: torch.stack([a, b], -1), "stack", left, right, shape=shape)
    return call.emit(Maximum(), stacked)


RULES = {
    **{f"aten.avg_pool{n}d.default": average_pool for n in (1, 2, 3)},
    **{f"aten.{mark}adaptive_avg_pool{n}d.default": adaptive_average_pool for n in (1, 2, 3) for mark in ("", "_")},
    **{f"aten.max_pool{n}d.default": max_pool for n in (1, 2, 3)},
    **{f"aten.max_pool{n}d_with_indices.default": max_pool for n in (1, 2, 3)},
    **{f"aten.adaptive_max_pool{n}d.default": adaptive_max_pool for n in (1, 2, 3)},
    "aten.amax.default": amax,
    "aten.amin.default": amin,
    "aten.max.dim": max_along,
    "aten.min.dim": min_along,
    "aten.maximum.default": maximum,
    "aten.minimum.default": minimum,
    "aten.max.other": maximum,
    "aten.min.other": minimum,
}
