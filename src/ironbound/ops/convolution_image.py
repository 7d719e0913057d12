"""The image of a box under a strided 2-d convolution, with a faster gradient for the box than the library's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight


class ConvolutionImage(torch.autograd.Function):
    """(c, r, W, b) -> (W * c + b, |W| * r), for kernels that are multiples of a common stride."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Both products; |W| is made once and kept."""
        size = weight.abs()
        ctx.save_for_backward(center, radius, weight, size)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(center, weight, bias, stride, padding), F.conv2d(radius, size, None, stride, padding)

    @staticmethod
    def backward(ctx, middle: Tensor, half: Tensor):  # type: ignore[override]
        """The gradient of both at once."""
        center, radius, weight, size = ctx.saved_tensors
        needs, how = ctx.needs_input_grad, (ctx.stride, ctx.padding)
        extents = center.shape[2:]
        slope = None
        if needs[2]:
            signed = conv2d_weight(center, weight.shape, middle, *how)
            slope = torch.addcmul(signed, conv2d_weight(radius, weight.shape, half, *how), weight.sgn())
        return (
            by_phases(middle, weight, *how, extents) if needs[0] else None,
            by_phases(half, size, *how, extents) if needs[1] else None,
            slope,
            middle.sum((0, 2, 3)) if needs[3] else None,
            None,
            None,
        )


def by_phases(rows: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], size: tuple[int, ...]) -> Tensor:
    """The adjoint of a convolution as a plain one: each offset of a stride is an output channel of its own.

    out[s q + a - p] = sum_m rows[q - m] w[a + s m] for 0 <= a < s.

    Args:
        rows: [rows, out channels, height, width].
        weight: [out channels, in channels, *kernel], the kernel a multiple of the stride.
        stride: s, of both axes.
        padding: p, per axis.
        size: height and width of the convolution's input.

    Returns:
        [rows, in channels, *size].
    """
    outputs, inputs, *kernel = weight.shape
    small = [extent // stride for extent in kernel]
    split = weight.reshape(outputs, inputs, small[0], stride, small[1], stride).flip(2, 4)
    phases = split.permute(1, 3, 5, 0, 2, 4).reshape(inputs * stride * stride, outputs, *small)
    found = F.conv2d(rows, phases, None, 1, (small[0] - 1, small[1] - 1)).unflatten(1, (inputs, stride, stride))
    have = found.shape[-2:]
    reached = all(want <= stride * got - pad for want, got, pad in zip(size, have, padding, strict=True))
    make = rows.new_empty if reached else rows.new_zeros
    result = make((len(rows), inputs, *size))
    for a in range(stride):
        to_y, from_y = _places(a, stride, padding[0], have[0], size[0])
        for b in range(stride):
            to_x, from_x = _places(b, stride, padding[1], have[1], size[1])
            result[:, :, to_y, to_x] = found[:, :, a, b, from_y, from_x]
    return result


def _places(offset: int, stride: int, pad: int, have: int, want: int) -> tuple[slice, slice]:
    """Where the results q of one offset a go, s q + a - p within [0, want), and which ones these are."""
    first = max(0, -((offset - pad) // stride))
    last = min(have - 1, (want - 1 + pad - offset) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    start = stride * first + offset - pad
    return slice(start, start + stride * (last - first) + 1, stride), slice(first, last + 1)
