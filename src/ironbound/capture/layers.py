"""Builders for the layers with weights: linear, convolutions, batch normalisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ironbound.capture.call import Call, Constant, Result, Value
from ironbound.ops.affine import BatchNorm, Convolution, Linear, Reshape, TransposedConvolution


def _matrix(call: Call, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    if x.rank < 2:
        call.mixes("it sums over the batch axis")
    if weight.dim() == 1:  # a vector: the last axis disappears
        single = call.emit(Linear(weight.unsqueeze(0), bias), x, shape=(*x.shape[:-1], 1))
        return call.emit(Reshape(call.shape), single)
    if weight.dim() != 2:
        call.refuse("its constant factor must be a matrix or a vector")
    return call.emit(Linear(weight, bias), x, shape=(*x.shape[:-1], len(weight)))


def linear(call: Call) -> Result:
    """F.linear."""
    return _matrix(call, call.value("input"), call.constant("weight"), call.optional_constant("bias"))


def matmul(call: Call) -> Result:
    """A product with a constant matrix or vector on either side."""
    left, right = (call.read("self"), call.read("mat2" if call.has("mat2") else "other"))
    if isinstance(left, Value) and isinstance(right, Constant):
        weight = right.tensor
        return _matrix(call, left, weight.mT if weight.dim() > 1 else weight)
    if isinstance(left, Constant) and isinstance(right, Value):
        if right.rank < 3:
            call.mixes("a constant on the left sums over the batch axis")
        turned = _swap_last(call, right)
        if left.tensor.dim() == 1:
            return _matrix(call, turned, left.tensor)
        return _swap_last(call, _matrix(call, turned, left.tensor))
    call.refuse("both factors depend on the network's input; only products with a constant are supported")


def _swap_last(call: Call, x: Value) -> Value:
    shape = (*x.shape[:-2], x.shape[-1], x.shape[-2])
    return call.structural(lambda v: v.transpose(-1, -2), "transpose(-1, -2)", x, shape=shape)


def addmm(call: Call) -> Result:
    """The sum bias + x @ constant, as older exports spell a linear layer."""
    if call.plain("beta") != 1 or call.plain("alpha") != 1:
        call.refuse("beta and alpha must be 1")
    bias, weight = call.constant("self"), call.constant("mat2")
    bias = bias.squeeze(0) if bias.dim() == 2 and len(bias) == 1 else bias
    if bias.dim() != 1 or len(bias) != weight.shape[1]:
        call.refuse("its constant term must have one entry per output")
    return _matrix(call, call.value("mat1"), weight.t(), bias)


def convolution(call: Call) -> Result:
    """F.conv1d, conv2d, conv3d with padding as numbers or as 'same' and 'valid'."""
    x, weight, bias = call.value("input"), call.constant("weight"), call.optional_constant("bias")
    axes = weight.dim() - 2
    if x.rank != axes + 2:
        call.refuse("its input must have a batch axis and a channel axis")
    dilation = call.sizes("dilation", axes)
    padding = call.plain("padding")
    if isinstance(padding, str):
        x, padding = _pad_by_name(call, x, padding, dilation, weight)
    else:
        padding = call.sizes("padding", axes)
    stride = call.sizes("stride", axes)
    return call.emit(Convolution(weight, bias, stride, padding, dilation, call.plain("groups")), x)


def _pad_by_name(
    call: Call, x: Value, padding: str, dilation: tuple[int, ...], weight: Tensor
) -> tuple[Value, tuple[int, ...]]:
    if padding not in ("same", "valid"):
        call.refuse(f"padding={padding!r} is not supported")
    if padding == "valid":
        return x, (0,) * len(dilation)
    totals = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
    half = tuple(total // 2 for total in totals)
    # an odd total puts one more element behind the image, which a symmetric padding cannot say
    extra = [total % 2 for total in totals]
    if any(extra):
        widths = [width for more in reversed(extra) for width in (0, more)]
        shape = (x.shape[0], *(extent + more for extent, more in zip(x.shape[1:], extra, strict=True)))
        x = call.structural(lambda v: F.pad(v, widths), f"pad{tuple(widths)}", x, shape=shape)
    return x, half


def transposed_convolution(call: Call) -> Result:
    """F.conv_transpose1d, conv_transpose2d, conv_transpose3d."""
    x, weight, bias = call.value("input"), call.constant("weight"), call.optional_constant("bias")
    axes = weight.dim() - 2
    if x.rank != axes + 2:
        call.refuse("its input must have a batch axis and a channel axis")
    names = ("stride", "padding", "output_padding", "dilation")
    stride, padding, output_padding, dilation = (call.sizes(name, axes) for name in names)
    operator = TransposedConvolution(weight, bias, stride, padding, output_padding, dilation, call.plain("groups"))
    return call.emit(operator, x)


def core_convolution(call: Call) -> Result:
    """aten.convolution, the spelling of decomposed programs."""
    if call.plain("transposed"):
        return transposed_convolution(call)
    call.skip("output_padding")  # has no meaning for a convolution that is not transposed
    return convolution(call)


def batch_norm(call: Call) -> Result:
    """F.batch_norm with its running statistics."""
    x = call.value("input")
    call.skip("momentum", "cudnn_enabled")  # they matter in training only
    if (call.has("training") and call.plain("training")) or call.read("running_mean") is None:
        call.in_training("it normalises by the statistics of the batch (training mode, or no running statistics)")
    mean, variance = call.constant("running_mean"), call.constant("running_var")
    weight, bias = call.optional_constant("weight"), call.optional_constant("bias")
    value = call.emit(BatchNorm(mean, variance, weight, bias, call.plain("eps")), x)
    return [value, None, None] if call.several else value


RULES = {
    "aten.linear.default": linear,
    "aten.matmul.default": matmul,
    "aten.mm.default": matmul,
    "aten.addmm.default": addmm,
    **{f"aten.conv{n}d.{overload}": convolution for n in (1, 2, 3) for overload in ("default", "padding")},
    "aten.conv_transpose1d.default": transposed_convolution,
    "aten.conv_transpose2d.input": transposed_convolution,
    "aten.conv_transpose3d.input": transposed_convolution,
    "aten.convolution.default": core_convolution,
    "aten.batch_norm.default": batch_norm,
    "aten._native_batch_norm_legit_no_training.default": batch_norm,
}
