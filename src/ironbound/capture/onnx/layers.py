"""Rules for layers with weights: products with matrices, convolutions, batch normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ironbound.capture.onnx.operation import Function, Operation

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def gemm(op: Operation) -> Function:
    """Gemm: alpha A B + beta C with constant B and C."""
    op.only_first()
    alpha, beta = op.number("alpha", 1.0), op.number("beta", 1.0)
    if op.integer("transA", 0):
        op.refuse("transA moves the batch axis")
    turned = bool(op.integer("transB", 0))
    if len(op.shape(0)) != 2 or len(op.shape(1)) != 2:
        op.refuse(f"its factors have the shapes {list(op.shape(0))} and {list(op.shape(1))}, not two axes each")
    features = op.shape(1)[0 if turned else 1]
    given = op.given(2)
    if given and op.shape(2) not in ((), (1,), (1, 1), (features,), (1, features)):
        op.refuse(f"its term of shape {list(op.shape(2))} does not have one entry per output")
    fused = given and op.constant(2).numel() == features and alpha == 1 and beta == 1

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        weight = weight if turned else weight.t()
        if bias is not None and fused:
            return F.linear(x, weight, bias.reshape(-1))
        value = F.linear(x, weight)
        value = value if alpha == 1 else value * alpha
        if bias is None or beta == 0:
            return value
        # beta b + v = beta (v / beta + b) keeps the parameter itself in the network
        return value + bias if beta == 1 else (value / beta + bias) * beta

    return run


def matmul(op: Operation) -> Function:
    """MatMul with a constant on one side."""
    if op.dynamic(0) and op.dynamic(1):
        op.refuse("both factors depend on the network's input; only products with a constant are supported")
    value, constant = (0, 1) if op.dynamic(0) else (1, 0)
    matrix = op.constant(constant)
    if matrix.dim() > 2:
        if any(extent != 1 for extent in matrix.shape[:-2]) or matrix.dim() > len(op.shape(value)):
            op.refuse(f"its constant factor has the shape {list(matrix.shape)}; it must be a matrix or a vector")
        return lambda a, b: (
            torch.matmul(a, b.reshape(b.shape[-2:])) if value == 0 else torch.matmul(a.reshape(a.shape[-2:]), b)
        )
    return torch.matmul


def _window(op: Operation, kernel: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    axes = len(kernel)
    named = op.integers("kernel_shape")
    if named is not None and tuple(named) != kernel:
        op.refuse(f"its kernel_shape {named} is not that of its weight, {list(kernel)}")
    strides = tuple(op.integers("strides") or (1,) * axes)
    dilations = tuple(op.integers("dilations") or (1,) * axes)
    if len(strides) != axes or len(dilations) != axes or min(*strides, *dilations) < 1:
        op.refuse(f"its strides {list(strides)} or dilations {list(dilations)} are not {axes} positive numbers")
    return strides, dilations


def padding(
    op: Operation, sizes: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """Zeros in front of and behind each spatial axis, explicit or by auto_pad.

    Args:
        op: the node.
        sizes: extents of the spatial axes.
        kernel: extents of the window.
        strides: per axis.
        dilations: per axis.

    Returns:
        Begin and end, one number per axis.
    """
    axes = len(sizes)
    how, pads = op.text("auto_pad", "NOTSET"), op.integers("pads")
    if how in ("NOTSET", ""):
        pads = [0] * (2 * axes) if pads is None else pads
        if len(pads) != 2 * axes or min(pads) < 0:
            op.refuse(f"its pads {pads} are not {2 * axes} numbers >= 0")
        return pads[:axes], pads[axes:]
    if pads is not None and any(pads):
        op.refuse(f"it has both pads and auto_pad = {how!r}")
    if how == "VALID":
        return [0] * axes, [0] * axes
    if how not in ("SAME_UPPER", "SAME_LOWER"):
        op.refuse(f"auto_pad = {how!r} is unknown")
    begin, end = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        outputs = -(-size // stride)
        total = max((outputs - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if how == "SAME_UPPER" else large)
        end.append(large if how == "SAME_UPPER" else small)
    return begin, end


def widths(begin: list[int], end: list[int]) -> list[int]:
    """Padding in the order of torch.nn.functional.pad: last axis first."""
    return [width for pair in reversed(list(zip(begin, end, strict=True))) for width in pair]


def convolution(op: Operation) -> Function:
    """Conv with every kind of padding; what is not symmetric is a pad of its own."""
    op.only_first()
    weight, sizes = op.constant(1), op.shape()[2:]
    kernel = tuple(weight.shape[2:])
    if len(kernel) not in _CONVOLUTIONS or len(sizes) != len(kernel):
        op.refuse(f"its input {list(op.shape())} and weight {list(weight.shape)} must have 1 to 3 spatial axes")
    strides, dilations = _window(op, kernel)
    groups = op.integer("group", 1)
    begin, end = padding(op, sizes, kernel, strides, dilations)
    run, extra = _CONVOLUTIONS[len(kernel)], None if begin == end else widths(begin, end)
    around = tuple(begin) if extra is None else (0,) * len(kernel)

    def function(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x if extra is None else F.pad(x, extra)
        return run(x, weight, bias, strides, around, dilations, groups)

    return function


def transposed_convolution(op: Operation) -> Function:
    """ConvTranspose; what padding takes away unequally on both sides is cut off afterwards."""
    op.only_first()
    weight, sizes = op.constant(1), op.shape()[2:]
    kernel = tuple(weight.shape[2:])
    axes = len(kernel)
    if axes not in _TRANSPOSED or len(sizes) != axes:
        op.refuse(f"its input {list(op.shape())} and weight {list(weight.shape)} must have 1 to 3 spatial axes")
    strides, dilations = _window(op, kernel)
    groups = op.integer("group", 1)
    more = tuple(op.integers("output_padding") or (0,) * axes)
    full = [
        stride * (size - 1) + extra + (width - 1) * dilation + 1
        for stride, size, extra, width, dilation in zip(strides, sizes, more, kernel, dilations, strict=True)
    ]
    begin, end = _cut(op, full, sizes, strides)
    run, equal = _TRANSPOSED[axes], begin == end
    around = tuple(begin) if equal else (0,) * axes

    def function(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        value = run(x, weight, bias, strides, around, more, groups, dilations)
        if not equal:
            for axis in range(axes):
                value = value.narrow(axis + 2, begin[axis], full[axis] - begin[axis] - end[axis])
        return value

    return function


def _cut(
    op: Operation, full: list[int], sizes: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """What to cut off a full transposed convolution in front and behind."""
    how, wanted, pads = op.text("auto_pad", "NOTSET"), op.integers("output_shape"), op.integers("pads")
    axes = len(full)
    if wanted is None and how in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    if wanted is None:
        if how not in ("NOTSET", "", "VALID"):
            op.refuse(f"auto_pad = {how!r} is unknown")
        pads = pads or [0] * (2 * axes)
        if len(pads) != 2 * axes or min(pads) < 0:
            op.refuse(f"its pads {pads} are not {2 * axes} numbers >= 0")
        return pads[:axes], pads[axes:]
    totals = [have - want for have, want in zip(full, wanted[-axes:], strict=True)]
    if min(totals) < 0:
        op.refuse(f"its output {wanted} is larger than the {full} that its window reaches; use output_padding")
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (small, large) if how == "SAME_UPPER" else (large, small)


def batch_normalization(op: Operation) -> Function:
    """BatchNormalization with its running statistics."""
    op.only_first()
    op.attribute("momentum", None)  # matters in training only
    if op.integer("training_mode", 0) or len([name for name in op.node.output if name]) > 1:
        op.refuse("it is in training mode; export the network in evaluation mode")
    if op.integer("spatial", 1) != 1:
        op.refuse("spatial = 0 is not supported")
    epsilon = op.number("epsilon", 1e-5)
    return lambda x, weight, bias, mean, variance: F.batch_norm(x, mean, variance, weight, bias, eps=epsilon)


RULES = {
    "BatchNormalization": batch_normalization,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Gemm": gemm,
    "MatMul": matmul,
}
