"""Rules for pooling and for reductions over axes other than the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ironbound.capture.onnx.layers import padding, widths
from ironbound.capture.onnx.operation import Function, Operation

_AVERAGES = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class _Window:
    """Kernel, strides and dilations of a pooling node, and the padding that its windows reach."""

    def __init__(self, op: Operation) -> None:
        sizes = op.shape()[2:]
        kernel = op.integers("kernel_shape")
        self.axes = len(sizes)
        if kernel is None or len(kernel) != self.axes or self.axes not in _MAXIMA:
            op.refuse(f"its kernel_shape {kernel} does not fit its input {list(op.shape())}")
        self.kernel = tuple(kernel)
        self.strides = tuple(op.integers("strides") or (1,) * self.axes)
        self.dilations = tuple(op.integers("dilations") or (1,) * self.axes)
        if any(len(part) != self.axes or min(part) < 1 for part in (self.kernel, self.strides, self.dilations)):
            op.refuse("its kernel_shape, strides and dilations must be positive, one for each spatial axis")
        self.begin, self.pads = padding(op, sizes, self.kernel, self.strides, self.dilations)
        ceiling = bool(op.integer("ceil_mode", 0))
        reach = [(width - 1) * step + 1 for width, step in zip(self.kernel, self.dilations, strict=True)]
        self.end = []
        for size, begin, end, width, stride in zip(sizes, self.begin, self.pads, reach, self.strides, strict=True):
            room = size + begin + end - width
            if room < 0 or max(begin, end) >= width:
                op.refuse("its window does not fit its input, or lies on padding alone")
            count = (-(-room // stride) if ceiling else room // stride) + 1
            if (count - 1) * stride >= size + begin:
                count -= 1  # a window that starts in the padding behind is not counted
            # where the last window ends before the image does, nothing is padded behind it
            self.end.append(max((count - 1) * stride + width - size - begin, 0))
        self.sizes = sizes


def max_pool(op: Operation) -> Function:
    """MaxPool; padding that is not symmetric repeats the edge, which no maximum over a window can tell from none."""
    if len([name for name in op.node.output if name]) > 1:
        op.refuse("the indices of its maxima are not supported")
    op.integer("storage_order", 0)  # orders the indices only
    window = _Window(op)
    run = _MAXIMA[window.axes]
    symmetric = window.begin == window.pads and all(
        have <= pad for have, pad in zip(window.end, window.pads, strict=True)
    )
    if symmetric and all(2 * pad <= width for pad, width in zip(window.begin, window.kernel, strict=True)):
        around = tuple(window.begin)
        return lambda x: run(x, window.kernel, window.strides, around, window.dilations)
    if any(step != 1 for step in window.dilations):
        op.refuse("dilations are supported with symmetric padding only")
    extra = widths(window.begin, window.end)
    if not any(extra):
        return lambda x: run(x, window.kernel, window.strides)
    return lambda x: run(F.pad(x, extra, mode="replicate"), window.kernel, window.strides)


def average_pool(op: Operation) -> Function:
    """AveragePool; where padding does not count, each mean is scaled by the window's size over what lies inside."""
    counted = bool(op.integer("count_include_pad", 0))
    window = _Window(op)
    if any(step != 1 for step in window.dilations):
        op.refuse("dilations are not supported")
    run = _AVERAGES[window.axes]
    if any(window.begin) or any(window.end):
        extra = widths(window.begin, window.end)
        share = _share(window, counted).to(op.dtype)
        if bool((share == 1).all()):
            return lambda x: run(F.pad(x, extra), window.kernel, window.strides)
        op.keep("share", share)
        return lambda x, share: run(F.pad(x, extra), window.kernel, window.strides) * share
    return lambda x: run(x, window.kernel, window.strides)


def _share(window: _Window, counted: bool) -> Tensor:
    """Size of the window over the number of elements that count, [*outputs]; float64."""
    share = torch.ones((), dtype=torch.float64)
    for axis in range(window.axes):
        inside = torch.ones(window.sizes[axis], dtype=torch.float64)
        behind = min(window.end[axis], window.pads[axis])
        inside = F.pad(inside, (window.begin[axis], behind), value=float(counted))
        inside = F.pad(inside, (0, window.end[axis] - behind))  # what ceil_mode adds never counts
        count = inside.unfold(0, window.kernel[axis], window.strides[axis]).sum(1)
        share = share.unsqueeze(-1) * (window.kernel[axis] / count)
    return share


def _over_space(reduce: Callable[..., Tensor]) -> Callable[[Operation], Function]:
    def rule(op: Operation) -> Function:
        axes = list(range(2, len(op.shape())))
        if not axes:
            op.refuse(f"its input {list(op.shape())} has no spatial axes")
        return lambda x: reduce(x, axes, True)

    return rule


def _over_axes(reduce: Callable[..., Tensor]) -> Callable[[Operation], Function | None]:
    def rule(op: Operation) -> Function | None:
        shape, axes = op.shape(), op.plain_integers(1, "axes")
        keep, nothing = bool(op.integer("keepdims", 1)), bool(op.integer("noop_with_empty_axes", 0))
        if not axes and nothing:
            return None
        found = sorted({op.front(axis, len(shape)) for axis in axes or range(len(shape))})
        if 0 in found and not keep:
            op.refuse("it drops the batch axis; reduce over the others")
        found = [axis for axis in found if axis != 0]  # of size 1: nothing to reduce
        return (lambda x: reduce(x, found, keep)) if found else None

    return rule


RULES = {
    "AveragePool": average_pool,
    "GlobalAveragePool": _over_space(torch.mean),
    "GlobalMaxPool": _over_space(torch.amax),
    "MaxPool": max_pool,
    "ReduceMax": _over_axes(torch.amax),
    "ReduceMean": _over_axes(torch.mean),
    "ReduceMin": _over_axes(torch.amin),
    "ReduceSum": _over_axes(torch.sum),
}
